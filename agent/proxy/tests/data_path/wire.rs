//! A client that sees the wire: what it writes goes out as it is, and what it reads is framed but not interpreted.

use std::{collections::BTreeMap, net::Shutdown};

use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::mesh::soon;

/// One side of a connection.
pub(crate) struct Wire {
    pub(crate) stream: TcpStream,
    read: Vec<u8>,
}

/// A message head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) first: String,
    pub(crate) fields: BTreeMap<String, Vec<String>>,
}

impl Head {
    pub(crate) fn status(&self) -> u16 {
        self.first.split(' ').nth(1).unwrap().parse().unwrap()
    }

    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(|values| values[0].as_str())
    }

    pub(crate) fn reason(&self) -> &str {
        self.field("weft-reason").unwrap_or("")
    }
}

/// A response with its body and trailers.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: BTreeMap<String, Vec<String>>,
}

impl Answer {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

impl Wire {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self { stream, read: Vec::new() }
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        soon(self.stream.write_all(bytes.as_ref())).await.unwrap();
    }

    /// Whether the other side still takes something.
    pub(crate) async fn try_send(&mut self, bytes: &[u8]) -> bool {
        soon(self.stream.write_all(bytes)).await.is_ok()
    }

    /// Everything up to the end of the stream, or to its reset.
    pub(crate) async fn so_far(&mut self) -> Vec<u8> {
        while soon(self.stream.read_buf(&mut self.read)).await.is_ok_and(|read| read > 0) {}
        std::mem::take(&mut self.read)
    }

    /// Reads more; false at the end of the stream.
    pub(crate) async fn more(&mut self) -> bool {
        soon(self.stream.read_buf(&mut self.read)).await.unwrap() > 0
    }

    async fn through(&mut self, end: &[u8]) -> Vec<u8> {
        loop {
            if let Some(at) = self.read.windows(end.len()).position(|window| window == end) {
                return self.read.drain(..at + end.len()).collect();
            }
            assert!(self.more().await, "stream ended within {:?}", String::from_utf8_lossy(&self.read));
        }
    }

    pub(crate) async fn exactly(&mut self, count: usize) -> Vec<u8> {
        while self.read.len() < count {
            assert!(self.more().await, "stream ended within {:?}", String::from_utf8_lossy(&self.read));
        }
        self.read.drain(..count).collect()
    }

    /// Everything up to the end of the stream.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        while self.more().await {}
        std::mem::take(&mut self.read)
    }

    fn fields(text: &str) -> BTreeMap<String, Vec<String>> {
        let mut fields = BTreeMap::<String, Vec<String>>::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            let (name, value) = line.split_once(':').unwrap();
            fields.entry(name.to_ascii_lowercase()).or_default().push(value.trim().to_owned());
        }
        fields
    }

    pub(crate) async fn head(&mut self) -> Head {
        let text = String::from_utf8(self.through(b"\r\n\r\n").await).unwrap();
        let (first, rest) = text.split_once("\r\n").unwrap();
        Head { first: first.to_owned(), fields: Self::fields(rest) }
    }

    /// One chunk of a chunked body; empty at its end.
    pub(crate) async fn chunk(&mut self) -> Vec<u8> {
        let line = String::from_utf8(self.through(b"\r\n").await).unwrap();
        let size = usize::from_str_radix(line.trim(), 16).unwrap();
        if size == 0 {
            return Vec::new();
        }
        let data = self.exactly(size).await;
        assert_eq!(self.exactly(2).await, b"\r\n");
        data
    }

    pub(crate) async fn trailers(&mut self) -> BTreeMap<String, Vec<String>> {
        let mut text = String::new();
        loop {
            let line = String::from_utf8(self.through(b"\r\n").await).unwrap();
            if line == "\r\n" {
                return Self::fields(&text);
            }
            text.push_str(&line);
        }
    }

    /// The body that goes with a head.
    pub(crate) async fn body(&mut self, head: Head, bodiless: bool) -> Answer {
        let mut answer = Answer { body: Vec::new(), trailers: BTreeMap::new(), head };
        let head = &answer.head;
        if bodiless || matches!(head.first.split(' ').nth(1), Some("204" | "304")) {
            return answer;
        }
        if head.field("transfer-encoding") == Some("chunked") {
            loop {
                let chunk = self.chunk().await;
                if chunk.is_empty() {
                    break;
                }
                answer.body.extend(chunk);
            }
            answer.trailers = self.trailers().await;
        } else if let Some(length) = head.field("content-length") {
            answer.body = self.exactly(length.parse().unwrap()).await;
        } else {
            answer.body = self.rest().await;
        }
        answer
    }

    pub(crate) async fn answer(&mut self) -> Answer {
        let head = self.head().await;
        self.body(head, false).await
    }

    /// A request as it is, and its answer.
    pub(crate) async fn ask(&mut self, request: impl AsRef<[u8]>) -> Answer {
        self.send(request).await;
        self.answer().await
    }

    pub(crate) async fn get(&mut self, path: &str) -> Answer {
        self.ask(format!("GET {path} HTTP/1.1\r\nHost: web\r\n\r\n")).await
    }

    pub(crate) fn shutdown(&self) {
        SockRef::from(&self.stream).shutdown(Shutdown::Write).unwrap();
    }

    /// Whether the other side ended in order, with nothing more to read.
    pub(crate) async fn ended(&mut self) {
        assert!(self.read.is_empty(), "unread: {:?}", String::from_utf8_lossy(&self.read));
        assert_eq!(
            soon(self.stream.read_buf(&mut self.read)).await.expect("should have ended, not failed"),
            0,
            "{:?}",
            self.read
        );
    }

    /// The other side reset the connection, perhaps after some bytes.
    pub(crate) async fn reset(&mut self) {
        loop {
            match soon(self.stream.read_buf(&mut self.read)).await {
                Ok(0) => panic!("ended in order instead of by a reset; read {:?}", String::from_utf8_lossy(&self.read)),
                Ok(_) => {}
                Err(error) => return assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
            }
        }
    }

    pub(crate) fn read_so_far(&self) -> &[u8] {
        &self.read
    }

    /// Resets the connection.
    pub(crate) fn kill(self) {
        self.stream.set_zero_linger().unwrap();
    }
}

impl Wire {
    /// The other side is gone, in whichever way.
    pub(crate) async fn reset_or_end(&mut self) {
        loop {
            match soon(self.stream.read_buf(&mut self.read)).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }
}
