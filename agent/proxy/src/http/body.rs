//! Bodies as they pass: counted, and a request's held back where the client waits for `100 Continue`. Nothing is buffered here.

use std::{
    pin::Pin,
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Sleep;

use crate::{
    balance::InFlight,
    flows::bump,
    http::{
        client::Upstream,
        exchange::{Link, Record},
    },
    metrics::{Limit, Metrics},
    pool::Kept,
};

/// Whether a request's body may be sent. Shared with hyper's callback for interim responses, which must be `Send`.
#[derive(Debug, Default)]
pub(crate) struct Gate(Mutex<GateState>);

#[derive(Debug, Default)]
struct GateState {
    position: Position,
    waker: Option<Waker>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Position {
    /// Nothing was heard yet.
    #[default]
    Waiting,
    /// The body goes.
    Open,
    /// There is a final response already; the body is not wanted.
    Unwanted,
    /// And that response is over, so the connection can end.
    Over,
}

impl Gate {
    fn put(&self, from: &[Position], to: Position) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !from.contains(&state.position) {
            return false;
        }
        state.position = to;
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
        true
    }

    /// The upstream said `100 Continue`.
    pub(crate) fn open(&self) {
        self.put(&[Position::Waiting], Position::Open);
    }

    /// The upstream gave its final response. Tells whether the body was never let through.
    pub(crate) fn answered(&self) -> bool {
        self.put(&[Position::Waiting], Position::Unwanted)
    }

    /// The final response is over.
    fn over(&self) {
        self.put(&[Position::Unwanted], Position::Over);
    }

    fn poll(&self, cx: &Context<'_>) -> Position {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.waker = Some(cx.waker().clone());
        state.position
    }
}

/// A request body that waits for its gate.
struct Gated {
    gate: Arc<Gate>,
    timer: Pin<Box<Sleep>>,
    metrics: Arc<Metrics>,
}

/// Why a request body ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestBodyError {
    #[error("request body could not be read")]
    Read(#[source] hyper::Error),
    #[error("request body is not wanted")]
    Unwanted,
}

impl RequestBodyError {
    /// Whether the client's chunks make no sense; otherwise its connection ended.
    pub(crate) fn is_malformed(&self) -> bool {
        let mut cause: Option<&dyn std::error::Error> = Some(self);
        while let Some(error) = cause {
            if let Some(io) = error.downcast_ref::<std::io::Error>() {
                return matches!(io.kind(), std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData);
            }
            cause = error.source();
        }
        false
    }
}

/// A client's request body on its way upstream.
pub(crate) struct RequestBody {
    inner: Incoming,
    gated: Option<Gated>,
    link: Rc<Link>,
}

impl RequestBody {
    pub(crate) fn new(inner: Incoming, link: Rc<Link>) -> Self {
        Self { inner, gated: None, link }
    }

    /// Holds the body back until the gate opens, or `patience` is over (RFC 9110 10.1.1).
    pub(crate) fn behind(mut self, gate: Arc<Gate>, patience: Duration) -> Self {
        let metrics = Arc::clone(&self.link.worker.metrics);
        self.gated = Some(Gated { gate, timer: Box::pin(tokio::time::sleep(patience)), metrics });
        self
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = RequestBodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        let this = self.get_mut();
        if let Some(gated) = &mut this.gated {
            match gated.gate.poll(cx) {
                Position::Open => {}
                Position::Waiting => {
                    ready!(gated.timer.as_mut().poll(cx));
                    gated.metrics.reached(Limit::ContinueTimeout);
                    gated.gate.open();
                }
                Position::Unwanted => return Poll::Pending,
                Position::Over => return Poll::Ready(Some(Err(RequestBodyError::Unwanted))),
            }
            this.gated = None;
        }
        let frame = ready!(Pin::new(&mut this.inner).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            bump(&this.link.request_bytes, data.len());
        }
        Poll::Ready(frame.map(|frame| frame.map_err(RequestBodyError::Read)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A response body on its way to the client. When it is dropped the exchange is over.
pub(crate) struct ResponseBody {
    source: Source,
    link: Rc<Link>,
    record: Record,
}

/// Where a response body comes from.
pub(crate) enum Source {
    /// The mesh itself.
    Local(Bytes),
    /// An endpoint.
    Upstream(Streamed),
}

/// A body that an endpoint sends.
pub(crate) struct Streamed {
    pub(crate) body: Incoming,
    /// Goes back to the pool when the body is over, if it can be used again.
    pub(crate) upstream: Option<Upstream>,
    /// Of the request, if its body was never wanted.
    pub(crate) unwanted: Option<Arc<Gate>>,
    pub(crate) _in_flight: InFlight,
    pub(crate) ended: bool,
}

impl ResponseBody {
    pub(crate) fn new(source: Source, link: Rc<Link>, record: Record) -> Self {
        Self { source, link, record }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        match &mut this.source {
            Source::Local(bytes) if bytes.is_empty() => Poll::Ready(None),
            Source::Local(bytes) => {
                this.record.response_bytes += bytes.len() as u64;
                Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes)))))
            }
            Source::Upstream(streamed) => {
                let frame = ready!(Pin::new(&mut streamed.body).poll_frame(cx));
                match &frame {
                    Some(Ok(frame)) => match frame.data_ref() {
                        Some(data) => this.record.response_bytes += data.len() as u64,
                        None => streamed.ended |= frame.is_trailers(),
                    },
                    Some(Err(error)) => {
                        tracing::debug!(%error, "upstream failed in the middle of a response");
                        this.link.turn.broke();
                    }
                    None => streamed.ended = true,
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Local(bytes) => bytes.is_empty(),
            Source::Upstream(streamed) => streamed.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Local(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::Upstream(streamed) => streamed.body.size_hint(),
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        self.link.turn.response_said();
        let Source::Upstream(streamed) = &mut self.source else { return };
        if let Some(gate) = streamed.unwanted.take() {
            gate.over();
        } else if (streamed.ended || streamed.body.is_end_stream())
            && let Some(upstream) = streamed.upstream.take()
            && self.link.pod.pool.put_back(upstream, self.link.worker.config.pool_idle_per_key_max) == Kept::Full
        {
            self.link.worker.metrics.reached(Limit::PoolIdlePerKey);
        }
    }
}
