//! The HTTP/1.1 server: paths that exercise what a proxy must pass through unchanged.

use std::{convert::Infallible, net::SocketAddr, pin::Pin, time::Duration};

use anyhow::Result;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, Full, combinators::BoxBody};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};

use super::control::{Counters, peer_ip};

type Body = BoxBody<Bytes, hyper::Error>;

/// Chunks that a stream holds ready.
const STREAM_QUEUE: usize = 1;

/// Serves one port.
///
/// # Errors
/// When accepting fails.
pub async fn serve(listener: TcpListener, counters: Counters) -> Result<()> {
    let port = listener.local_addr()?.port();
    loop {
        let (stream, peer) = listener.accept().await?;
        counters.connection(port, peer);
        tokio::spawn(connection(stream, peer, port, counters.clone()));
    }
}

async fn connection(stream: TcpStream, peer: SocketAddr, port: u16, counters: Counters) {
    let Ok(local) = stream.local_addr() else { return };
    stream.set_nodelay(true).ok();
    let service = hyper::service::service_fn(|request| {
        counters.request(port);
        let context = Context { name: counters.name.to_string(), peer, local };
        async move { Ok::<_, Infallible>(respond(request, &context).await) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    // A client that half-closes after its request still wants the answer.
    http.half_close(true);
    // What goes wrong on a connection is for the client to see.
    http.serve_connection(TokioIo::new(stream), service).with_upgrades().await.ok();
}

struct Context {
    name: String,
    peer: SocketAddr,
    local: SocketAddr,
}

async fn respond(request: Request<Incoming>, context: &Context) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let mut segments = path.trim_start_matches('/').split('/');
    match (segments.next().unwrap_or_default(), segments.next()) {
        ("who", None) => who(&request, context),
        ("echo", None) => echo(request),
        ("count", None) => count(request).await,
        ("reject", None) => {
            // Answers without reading the body: with `Expect: 100-continue` it must never be sent.
            with_status(StatusCode::EXPECTATION_FAILED, text("rejected\n"))
        }
        ("stream", chunks) => stream(chunks.and_then(|text| text.parse().ok()).unwrap_or(5)),
        ("trailers", None) => trailers(),
        ("upgrade", None) => upgrade(request),
        ("status", Some(code)) => {
            let status = code.parse().ok().and_then(|code| StatusCode::from_u16(code).ok());
            with_status(status.unwrap_or(StatusCode::BAD_REQUEST), text("\n"))
        }
        ("bytes", Some(size)) => text(&"x".repeat(size.parse().unwrap_or(0))),
        ("slow", Some(millis)) => {
            tokio::time::sleep(Duration::from_millis(millis.parse().unwrap_or(0))).await;
            text(&format!("{}\n", context.name))
        }
        ("abort", None) => abort(),
        _ => text(&format!("{}\n", context.name)),
    }
}

fn text(text: &str) -> Response<Body> {
    Response::new(Full::new(Bytes::copy_from_slice(text.as_bytes())).map_err(|never| match never {}).boxed())
}

fn with_status(status: StatusCode, mut response: Response<Body>) -> Response<Body> {
    *response.status_mut() = status;
    response
}

/// Who answers, and what arrived.
fn who(request: &Request<Incoming>, context: &Context) -> Response<Body> {
    let mut headers = serde_json::Map::new();
    for (name, value) in request.headers() {
        let value = String::from_utf8_lossy(value.as_bytes());
        headers
            .entry(name.as_str())
            .and_modify(|all| *all = json!(format!("{}, {value}", all.as_str().unwrap_or(""))))
            .or_insert(json!(value));
    }
    let body = json!({
        "name": context.name,
        "peer": peer_ip(context.peer),
        "local": context.local.ip().to_canonical(),
        "local_port": context.local.port(),
        "method": request.method().as_str(),
        "uri": request.uri().to_string(),
        "version": format!("{:?}", request.version()),
        "headers": headers,
    });
    let mut response = text(&format!("{body}\n"));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The request's body comes back as it arrives, trailers too.
fn echo(request: Request<Incoming>) -> Response<Body> {
    Response::new(request.into_body().boxed())
}

/// The number of bytes in the body, once it has all arrived.
async fn count(request: Request<Incoming>) -> Response<Body> {
    let mut body = request.into_body();
    let mut total = 0;
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => total += frame.data_ref().map_or(0, Bytes::len),
            Err(_) => return with_status(StatusCode::BAD_REQUEST, text("the body broke\n")),
        }
    }
    text(&format!("{total}\n"))
}

/// A chunk each 50 ms: arrives bit by bit unless somebody buffers.
fn stream(chunks: u32) -> Response<Body> {
    let (sender, receiver) = tokio::sync::mpsc::channel(STREAM_QUEUE);
    tokio::spawn(async move {
        for number in 0..chunks {
            if sender.send(Frame::data(Bytes::from(format!("chunk {number}\n")))).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    Response::new(channel_body(receiver))
}

/// A body with a trailer behind it.
fn trailers() -> Response<Body> {
    let (sender, receiver) = tokio::sync::mpsc::channel(STREAM_QUEUE);
    tokio::spawn(async move {
        sender.send(Frame::data(Bytes::from_static(b"body\n"))).await.ok();
        let mut trailers = HeaderMap::new();
        trailers.insert("x-checksum", HeaderValue::from_static("of-the-body"));
        sender.send(Frame::trailers(trailers)).await.ok();
    });
    let mut response = Response::new(channel_body(receiver));
    response.headers_mut().insert(header::TRAILER, HeaderValue::from_static("x-checksum"));
    response
}

/// Sends a first part of what it promises and then breaks the connection.
fn abort() -> Response<Body> {
    let (sender, receiver) = tokio::sync::mpsc::channel(STREAM_QUEUE);
    tokio::spawn(async move {
        sender.send(Frame::data(Bytes::from_static(b"part\n"))).await.ok();
    });
    let mut response = Response::new(channel_body(receiver));
    // hyper closes a connection whose body ends short of its length.
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from_static("1000"));
    response
}

/// Switches to a protocol that echoes.
fn upgrade(request: Request<Incoming>) -> Response<Body> {
    if request.method() != Method::GET || request.headers().get(header::UPGRADE).is_none() {
        return with_status(StatusCode::UPGRADE_REQUIRED, text("ask for an upgrade\n"));
    }
    let protocol = request.headers().get(header::UPGRADE).cloned();
    tokio::spawn(async move {
        let Ok(upgraded) = hyper::upgrade::on(request).await else { return };
        let mut stream = TokioIo::new(upgraded);
        let (mut reader, mut writer) = tokio::io::split(&mut stream);
        if tokio::io::copy(&mut reader, &mut writer).await.is_ok() {
            tokio::io::AsyncWriteExt::shutdown(&mut writer).await.ok();
        }
    });
    let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    if let Some(protocol) = protocol {
        response.headers_mut().insert(header::UPGRADE, protocol);
    }
    response
}

fn channel_body(receiver: tokio::sync::mpsc::Receiver<Frame<Bytes>>) -> Body {
    BodyExt::boxed(ChannelBody { receiver })
}

struct ChannelBody {
    receiver: tokio::sync::mpsc::Receiver<Frame<Bytes>>,
}

impl http_body::Body for ChannelBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.receiver.poll_recv(context).map(|frame| frame.map(Ok))
    }
}
