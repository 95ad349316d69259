//! Tells a client from elsewhere that it is refused: in HTTP if that is what it speaks, else with a reset. It is told no object's name,
//! since nobody knows who it is; those are in the access log.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    pin::{Pin, pin},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::{
    detect::{self, Detected},
    dial,
    flows::Flow,
    http::grpc,
    limits,
    metrics::Limit,
    reply::{self, LocalReply, Reason},
    tcp,
    worker::Worker,
};

/// What such a client is told.
const DETAIL: &str = "the destination does not take this from clients that it does not know";

/// Answers a client, or resets it.
pub(super) async fn refuse(worker: &Worker, flow: &Flow, stream: TcpStream) {
    let detected = tokio::select! {
        detected = tokio::time::timeout(worker.config.refusal_wait, detect::client(&stream, false, worker)) => detected,
        () = flow.control.cut() => Ok(Ok(Detected::Opaque)),
    };
    match detected {
        Ok(Ok(Detected::Http1)) => {
            return tcp::say(stream, &reply::raw(Reason::Denied, DETAIL), &worker.scratch).await;
        }
        Ok(Ok(Detected::Http2)) => return refuse2(stream).await,
        Ok(_) => {}
        Err(_) => worker.metrics.reached(Limit::RefusalWait),
    }
    worker.metrics.resets.inc();
    dial::reset(stream);
}

/// Answers the first request of a client of HTTP/2, and those that came with it.
async fn refuse2(stream: TcpStream) {
    let answered = tokio::sync::Notify::new();
    let service = service_fn(|request: Request<Incoming>| {
        answered.notify_one();
        answer(&request)
    });
    let mut connection = pin!(
        http2::Builder::new(Here)
            .max_concurrent_streams(limits::H2_STREAMS_MAX)
            .max_header_list_size(limits::HEAD_BYTES_MAX as u32)
            .max_local_error_reset_streams(limits::H2_ERROR_RESETS_MAX)
            .max_pending_accept_reset_streams(limits::H2_PENDING_RESETS_MAX)
            .serve_connection(TokioIo::new(stream), service)
    );
    let told = async {
        tokio::select! {
            done = connection.as_mut() => return done,
            () = answered.notified() => {}
        }
        connection.as_mut().graceful_shutdown();
        connection.await
    };
    // A client that does not take its answer in time goes without.
    if let Ok(Err(error)) = tokio::time::timeout(limits::LINGER_TIMEOUT, told).await {
        tracing::debug!(error = &error as &dyn std::error::Error, "client that is refused failed");
    }
}

fn answer<B>(request: &Request<B>) -> Ready<Result<Response<Once>, Infallible>> {
    let reply = LocalReply::new(Reason::Denied, DETAIL);
    let (response, body) = if grpc::is_grpc(request.headers()) { reply.into_grpc() } else { reply.into_parts() };
    let (mut parts, ()) = response.into_parts();
    parts.version = http::Version::HTTP_2;
    parts.headers.remove(http::header::CONNECTION);
    ready(Ok(Response::from_parts(parts, Once(body))))
}

/// hyper's tasks, on the worker's thread.
#[derive(Clone, Copy)]
struct Here;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for Here {
    fn execute(&self, task: F) {
        tokio::task::spawn_local(task);
    }
}

/// A body in one piece.
struct Once(Bytes);

impl Body for Once {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let bytes = std::mem::take(&mut self.0);
        Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.len() as u64)
    }
}
