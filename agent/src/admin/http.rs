//! The little HTTP that the admin socket and the metrics port need, on hyper.

use std::{convert::Infallible, future::Future, sync::Arc};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Semaphore,
};

use crate::limits;

/// An answer.
pub type Reply = Response<Full<Bytes>>;

/// Serves one connection in a task of its own; beyond the limit connections are closed at once.
pub fn serve<IO, F, Fut>(io: IO, slots: &Arc<Semaphore>, handle: F)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Fn(Request<Incoming>) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Reply> + Send + 'static,
{
    let Ok(slot) = Arc::clone(slots).try_acquire_owned() else { return };
    tokio::spawn(async move {
        let service = service_fn(move |request| {
            let reply = handle(request);
            async move { Ok::<_, Infallible>(reply.await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits::ADMIN_HEAD_TIMEOUT)
            .serve_connection(TokioIo::new(io), service);
        // A client that goes away in the middle is its own business.
        let _ = connection.await;
        drop(slot);
    });
}

/// As many connections as may be open on one port or socket.
#[must_use]
pub fn slots() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(limits::ADMIN_CONNECTIONS_MAX))
}

/// A line of text.
#[must_use]
pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Reply {
    reply(status, "text/plain; charset=utf-8", body.into())
}

/// A JSON document.
#[must_use]
pub fn json(value: &impl Serialize) -> Reply {
    match serde_json::to_vec(value) {
        Ok(body) => reply(StatusCode::OK, "application/json", body.into()),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

/// Any body.
#[must_use]
pub fn reply(status: StatusCode, content_type: &'static str, body: Bytes) -> Reply {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}
