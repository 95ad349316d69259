//! Reads HTTP/1.1 messages from a connection that may end anywhere, and tells how far it got.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// How much of a message there was.
#[derive(Debug)]
pub(crate) enum Seen {
    /// Not a byte of it.
    Nothing,
    /// The connection ended within it.
    Part(String),
    /// All of it.
    Whole(Message),
}

/// A message.
#[derive(Debug, Default)]
pub(crate) struct Message {
    pub(crate) first: String,
    fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Message {
    pub(crate) fn status(&self) -> u16 {
        self.first.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_default()
    }

    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(of, _)| of.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub(crate) fn reason(&self) -> &str {
        self.field("weft-reason").unwrap_or_default()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Why there is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    InOrder,
    Reset,
}

/// One side of a connection.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) stream: TcpStream,
    read: Vec<u8>,
}

impl Reader {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self { stream, read: Vec::new() }
    }

    /// A request; says `100 Continue` where that is waited for.
    pub(crate) async fn request(&mut self) -> Seen {
        self.message(true).await
    }

    /// A response, without the interim ones before it.
    pub(crate) async fn response(&mut self) -> Seen {
        loop {
            match self.message(false).await {
                Seen::Whole(message) if message.status() < 200 => {}
                other => return other,
            }
        }
    }

    /// Everything up to the end.
    pub(crate) async fn rest(&mut self) -> (Vec<u8>, Ended) {
        loop {
            if let Err(ended) = self.more().await {
                return (std::mem::take(&mut self.read), ended);
            }
        }
    }

    /// Reads until so many bytes wait to be looked at.
    pub(crate) async fn until(&mut self, count: usize) {
        while self.read.len() < count && self.more().await.is_ok() {}
    }

    async fn more(&mut self) -> Result<(), Ended> {
        match self.stream.read_buf(&mut self.read).await {
            Ok(0) => Err(Ended::InOrder),
            Ok(_) => Ok(()),
            Err(_) => Err(Ended::Reset),
        }
    }

    async fn message(&mut self, is_request: bool) -> Seen {
        let mut message = Message::default();
        match self.read_message(is_request, &mut message).await {
            Ok(()) => Seen::Whole(message),
            Err(_) if message.first.is_empty() && self.read.is_empty() => Seen::Nothing,
            Err(_) => Seen::Part(format!("{message:?} {:?}", String::from_utf8_lossy(&self.read))),
        }
    }

    async fn line(&mut self) -> Result<String, Ended> {
        loop {
            if let Some(at) = self.read.windows(2).position(|window| window == b"\r\n") {
                let line = String::from_utf8_lossy(&self.read[..at]).into_owned();
                self.read.drain(..at + 2);
                return Ok(line);
            }
            self.more().await?;
        }
    }

    async fn take(&mut self, count: usize) -> Result<Vec<u8>, Ended> {
        while self.read.len() < count {
            self.more().await?;
        }
        Ok(self.read.drain(..count).collect())
    }

    async fn fields(&mut self) -> Result<Vec<(String, String)>, Ended> {
        let mut fields = Vec::new();
        loop {
            let line = self.line().await?;
            let Some((name, value)) = line.split_once(':') else { return Ok(fields) };
            fields.push((name.to_owned(), value.trim().to_owned()));
        }
    }

    async fn read_message(&mut self, is_request: bool, message: &mut Message) -> Result<(), Ended> {
        // The head is taken whole or not at all, so that what was read of it can be told.
        while !self.read.windows(4).any(|window| window == b"\r\n\r\n") {
            self.more().await?;
        }
        message.first = self.line().await?;
        message.fields = self.fields().await?;
        if is_request && message.field("expect").is_some() {
            self.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.map_err(|_| Ended::Reset)?;
        }
        if message.field("transfer-encoding") == Some("chunked") {
            loop {
                let size = usize::from_str_radix(self.line().await?.trim(), 16).unwrap_or_default();
                if size == 0 {
                    self.fields().await?;
                    return Ok(());
                }
                message.body.extend(self.take(size).await?);
                self.line().await?;
            }
        }
        let length = message.field("content-length").and_then(|length| length.parse().ok());
        match length {
            _ if !is_request && (message.status() < 200 || matches!(message.status(), 204 | 304)) => {}
            Some(length) => message.body = self.take(length).await?,
            None if is_request => {}
            None => {
                let (body, ended) = self.rest().await;
                message.body = body;
                if ended == Ended::Reset {
                    return Err(ended);
                }
            }
        }
        Ok(())
    }
}
