//! HTTP/2 on both sides of the data path: a client and a server that show what crate `h2` sees, and frames made by hand.

use std::{
    convert::Infallible,
    net::Ipv4Addr,
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;
use h2::{RecvStream, SendStream, client, server};
use http::{HeaderMap, Request, Response, response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};

use crate::{
    mesh::{Mesh, soon},
    origin::Named,
    wire::Wire,
};

/// A client with one connection.
pub(crate) struct Client {
    pub(crate) send: client::SendRequest<Bytes>,
    pub(crate) driver: tokio::task::JoinHandle<Result<(), h2::Error>>,
}

/// A response with all that belongs to it.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) head: response::Parts,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Option<HeaderMap>,
}

impl Answer {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.head.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub(crate) fn reason(&self) -> &str {
        self.field("weft-reason").unwrap_or("")
    }
}

pub(crate) fn get(path: &str) -> Request<()> {
    Request::get(format!("http://web{path}")).body(()).unwrap()
}

pub(crate) fn post(path: &str) -> Request<()> {
    Request::post(format!("http://web{path}")).body(()).unwrap()
}

impl Client {
    pub(crate) async fn connect(mesh: &Mesh, at: std::net::SocketAddr) -> Self {
        Self::over(mesh.connect(at).await, &client::Builder::new()).await
    }

    pub(crate) async fn over(stream: TcpStream, builder: &client::Builder) -> Self {
        let (send, connection) = soon(builder.handshake(stream)).await.unwrap();
        Self { send, driver: tokio::spawn(connection) }
    }

    /// Sends a head; gives what the rest is sent and received with.
    pub(crate) async fn begin(&self, request: Request<()>, end: bool) -> (client::ResponseFuture, SendStream<Bytes>) {
        let mut send = soon(self.send.clone().ready()).await.unwrap();
        send.send_request(request, end).unwrap()
    }

    pub(crate) async fn ask(&self, request: Request<()>, body: Option<&'static str>) -> Answer {
        let (response, mut stream) = self.begin(request, body.is_none()).await;
        if let Some(body) = body {
            stream.send_data(Bytes::from_static(body.as_bytes()), true).unwrap();
        }
        answer(response).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.ask(get(path), None).await
    }
}

pub(crate) async fn answer(response: client::ResponseFuture) -> Answer {
    let (head, mut stream) = soon(response).await.unwrap().into_parts();
    let body = read(&mut stream).await.unwrap();
    let trailers = soon(stream.trailers()).await.unwrap();
    Answer { head, body, trailers }
}

/// The next part of a body.
pub(crate) async fn part(stream: &mut RecvStream) -> Option<Result<Bytes, h2::Error>> {
    let part = soon(stream.data()).await?;
    if let Ok(part) = &part {
        stream.flow_control().release_capacity(part.len()).unwrap();
    }
    Some(part)
}

/// All of a body.
pub(crate) async fn read(stream: &mut RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut body = Vec::new();
    while let Some(data) = part(stream).await {
        body.extend(data?);
    }
    Ok(body)
}

/// A server with one connection.
pub(crate) struct Server {
    pub(crate) connection: server::Connection<TcpStream, Bytes>,
}

pub(crate) type Call = (Request<RecvStream>, server::SendResponse<Bytes>);

impl Server {
    pub(crate) async fn over(wire: Wire, builder: &server::Builder) -> Self {
        Self { connection: soon(builder.handshake(wire.stream)).await.unwrap() }
    }

    /// The next request; the connection moves only while this, or [`Server::run`], is waited for.
    pub(crate) async fn call(&mut self) -> Call {
        soon(self.connection.accept()).await.unwrap().unwrap()
    }

    /// Lets the connection go on while something else is waited for.
    pub(crate) async fn during<T>(&mut self, what: impl Future<Output = T>) -> T {
        let mut what = std::pin::pin!(soon(what));
        tokio::select! {
            biased;
            done = &mut what => return done,
            // The connection is over; the rest does not need it.
            other = self.connection.accept() => assert!(!matches!(other, Some(Ok(_))), "a request that nobody expects"),
        }
        what.await
    }
}

/// A real HTTP/2 server that answers with its name and what it got, as [`Named`] does for HTTP/1.
pub(crate) async fn named2(name: &'static str) -> Named {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let named =
        Named { address: listener.local_addr().unwrap(), connections: Arc::default(), requests: Arc::default() };
    let running = named.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            running.connections.fetch_add(1, Ordering::SeqCst);
            stream.set_nodelay(true).unwrap();
            let requests = Arc::clone(&running.requests);
            let service = service_fn(move |request: Request<Incoming>| {
                requests.fetch_add(1, Ordering::SeqCst);
                async move {
                    let (parts, body) = request.into_parts();
                    let head = parts.method == http::Method::HEAD;
                    let collected = body.collect().await;
                    let mut response =
                        Response::builder().header("x-name", name).header("x-target", parts.uri.to_string());
                    for (field, value) in &parts.headers {
                        response = response.header(format!("got-{field}"), value);
                    }
                    let body = match collected {
                        Ok(collected) => {
                            for (field, value) in collected.trailers().into_iter().flatten() {
                                response = response.header(format!("trailer-{field}"), value);
                            }
                            collected.to_bytes()
                        }
                        Err(_) => Bytes::new(),
                    };
                    let mut body = if body.is_empty() { Bytes::from(name) } else { body };
                    if head {
                        response = response.header("content-length", body.len());
                        body.clear();
                    }
                    Ok::<_, Infallible>(response.body(Full::new(body)).unwrap())
                }
            });
            let serving = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
            // Clients that go away are no failure of the server.
            tokio::spawn(async move { _ = serving.await });
        }
    });
    named
}

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Types of frames (RFC 9113 6).
pub(crate) mod kind {
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const PRIORITY: u8 = 2;
    pub(crate) const RST_STREAM: u8 = 3;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const PING: u8 = 6;
    pub(crate) const GOAWAY: u8 = 7;
    pub(crate) const WINDOW_UPDATE: u8 = 8;
    pub(crate) const CONTINUATION: u8 = 9;
}

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// A frame as it goes over the wire.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A header block without compression: each field literal and not remembered (RFC 7541 6.2.2).
pub(crate) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        for text in [name, value] {
            // A length in seven bits, then the rest in groups of seven (RFC 7541 5.1).
            let mut length = text.len();
            if length < 127 {
                bytes.push(length as u8);
            } else {
                bytes.push(127);
                length -= 127;
                while length >= 128 {
                    bytes.push((length % 128 + 128) as u8);
                    length /= 128;
                }
                bytes.push(length as u8);
            }
            bytes.extend(text.as_bytes());
        }
    }
    bytes
}

pub(crate) const GET: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":authority", "web"), (":path", "/")];

/// A GET without a body.
pub(crate) fn get_frame(stream: u32) -> Vec<u8> {
    frame(kind::HEADERS, END_STREAM | END_HEADERS, stream, &block(&GET))
}

/// A frame that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    fn number(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }

    /// Of a GOAWAY: the last stream, the code and the words.
    pub(crate) fn go_away(&self) -> (u32, u32, String) {
        assert_eq!(self.kind, kind::GOAWAY, "{self:?}");
        (self.number(0), self.number(4), String::from_utf8(self.payload[8..].to_vec()).unwrap())
    }

    /// Of an RST_STREAM: its code.
    pub(crate) fn reset(&self) -> u32 {
        assert_eq!(self.kind, kind::RST_STREAM, "{self:?}");
        self.number(0)
    }
}

/// A client of frames.
pub(crate) struct Raw(pub(crate) Wire);

impl Raw {
    /// Connects, and has exchanged settings.
    pub(crate) async fn connect(mesh: &Mesh, at: std::net::SocketAddr, settings: &[(u16, u32)]) -> Self {
        let mut raw = Self(Wire::new(mesh.connect(at).await));
        let settings: Vec<u8> =
            settings.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
        raw.0.send([PREFACE, &frame(kind::SETTINGS, 0, 0, &settings)].concat()).await;
        raw.0.send(frame(kind::SETTINGS, ACK, 0, &[])).await;
        raw.next_of(kind::SETTINGS).await;
        raw
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.send(bytes).await;
    }

    pub(crate) async fn next(&mut self) -> Frame {
        let head = self.0.exactly(9).await;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        Frame {
            kind: head[3],
            flags: head[4],
            stream: u32::from_be_bytes(head[5..9].try_into().unwrap()),
            payload: self.0.exactly(length).await,
        }
    }

    /// The next frame of a type.
    pub(crate) async fn next_of(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.next().await;
            if frame.kind == kind {
                return frame;
            }
        }
    }

    /// The GOAWAY that the connection ends with. What is written meanwhile may fail.
    pub(crate) async fn last_word(&mut self) -> (u32, u32, String) {
        self.next_of(kind::GOAWAY).await.go_away()
    }
}
