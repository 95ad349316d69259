//! Bodies as they pass: counted, and a request's held back where the client waits for `100 Continue`. Nothing is buffered here.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker, ready},
    time::{Duration, Instant},
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
        client2::Stream,
        grpc, hop,
        link::{Link, Record},
        rules::Tee,
    },
    limits,
    metrics::{Limit, Metrics},
    pool::Kept,
    reply::Reason,
};

/// What has passed of a request's body, and whether its response moves. HTTP/1 needs one for a connection, since its requests follow
/// each other; HTTP/2 one for each request.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    /// Of request bodies.
    pub(crate) request_bytes: Cell<u64>,
    /// Parts of response bodies that hyper was given.
    pub(crate) handed: Cell<u64>,
    /// hyper has not come back since for another part: the last one waits for the client.
    pub(crate) held: Cell<bool>,
}

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
    inner: Inner,
    gated: Option<Gated>,
    meter: Rc<Meter>,
}

enum Inner {
    Empty,
    Given(Incoming),
    Lent(Lent),
    Copied(VecDeque<Bytes>),
}

/// A request's body before it is sent.
pub(crate) enum Content {
    None,
    Whole(Incoming),
    /// As it was given back, with its gate.
    Made(RequestBody, Option<Arc<Gate>>),
    Lent(Rc<Loan>),
    /// All of another request's.
    Copied(Vec<Bytes>),
}

impl Content {
    /// Makes it one that can be sent again, if it is one at all.
    pub(crate) fn keep(&mut self) -> Option<Rc<Loan>> {
        let loan = match std::mem::replace(self, Self::None) {
            Self::None | Self::Made(..) | Self::Copied(_) => return None,
            Self::Whole(body) if body.is_end_stream() => return None,
            Self::Whole(body) => Loan::new(body),
            Self::Lent(loan) => loan,
        };
        loan.most.set(limits::REPLAY_BYTES_MAX);
        loan.held.set(true);
        Some(loan)
    }
}

/// A request body that can be taken back, as long as little of it was read: a server that never looked at a request says so, and
/// then another one may have it (RFC 9113 8.7).
pub(crate) struct Loan {
    body: RefCell<Incoming>,
    /// What was read so far, unless it was too much to keep.
    kept: RefCell<Option<Vec<Bytes>>>,
    kept_bytes: Cell<usize>,
    /// Bytes that are kept.
    most: Cell<usize>,
    /// How many of the kept parts were read in this turn.
    replayed: Cell<usize>,
    /// Whoever has it decides when it is not needed any more.
    held: Cell<bool>,
    /// It will not be asked for again.
    forgotten: Cell<bool>,
    /// Its end was read.
    ended: Cell<bool>,
    /// Who is to have a copy.
    tee: RefCell<Option<Tee>>,
    /// Counts the requests that were made of it: only the last one may read.
    turn: Cell<usize>,
}

impl Loan {
    pub(crate) fn new(body: Incoming) -> Rc<Self> {
        Rc::new(Self {
            body: RefCell::new(body),
            kept: RefCell::new(Some(Vec::new())),
            kept_bytes: Cell::new(0),
            most: Cell::new(limits::H2_REPLAY_BYTES_MAX),
            replayed: Cell::new(0),
            held: Cell::new(false),
            forgotten: Cell::new(false),
            ended: Cell::new(false),
            tee: RefCell::default(),
            turn: Cell::new(0),
        })
    }

    /// One that others are to have a copy of.
    pub(crate) fn with_copies(body: Incoming, tee: Tee) -> Rc<Self> {
        let loan = Self::new(body);
        *loan.tee.borrow_mut() = Some(tee);
        loan
    }

    /// Whether it can be lent once more as if it had never been.
    pub(crate) fn is_whole(&self) -> bool {
        self.kept.borrow().is_some() && !self.forgotten.get()
    }

    /// There is an answer: it will not be asked for again, unless it is held for longer.
    pub(crate) fn answered(&self) {
        if !self.held.get() {
            self.forget();
        }
    }

    /// It is not held any more.
    pub(crate) fn release(&self) {
        self.held.set(false);
        self.forget();
    }

    fn forget(&self) {
        self.forgotten.set(true);
        self.let_go();
    }

    /// Lets go of what was kept, once it was read in this turn.
    fn let_go(&self) {
        if self.forgotten.get() && self.to_replay() == 0 {
            self.kept.take();
        }
    }

    /// How much of what was kept is still to be read, in bytes.
    fn to_replay(&self) -> u64 {
        let kept = self.kept.borrow();
        kept.as_ref().map_or(0, |parts| parts.iter().skip(self.replayed.get()).map(|part| part.len() as u64).sum())
    }

    /// A part that was read in an earlier turn.
    fn earlier(&self) -> Option<Bytes> {
        let part = self.kept.borrow().as_ref()?.get(self.replayed.get())?.clone();
        self.replayed.set(self.replayed.get() + 1);
        self.let_go();
        Some(part)
    }

    /// All of it was read, but for trailers perhaps.
    fn whole(&self) {
        if let Some(tee) = self.tee.take() {
            tee.whole();
        }
    }

    fn read(&self, data: &Bytes) {
        {
            let mut tee = self.tee.borrow_mut();
            if tee.as_mut().is_some_and(|tee| !tee.read(data)) {
                *tee = None;
            }
        }
        let mut kept = self.kept.borrow_mut();
        let Some(parts) = &mut *kept else { return };
        let bytes = self.kept_bytes.get() + data.len();
        if bytes > self.most.get() {
            *kept = None;
        } else {
            self.kept_bytes.set(bytes);
            self.replayed.set(self.replayed.get() + 1);
            parts.push(data.clone());
        }
    }
}

struct Lent {
    loan: Rc<Loan>,
    turn: usize,
}

impl RequestBody {
    pub(crate) fn new(inner: Incoming, meter: Rc<Meter>) -> Self {
        Self { inner: Inner::Given(inner), gated: None, meter }
    }

    /// None at all.
    pub(crate) fn empty(meter: Rc<Meter>) -> Self {
        Self { inner: Inner::Empty, gated: None, meter }
    }

    /// A copy of another one.
    pub(crate) fn copied(parts: Vec<Bytes>, meter: Rc<Meter>) -> Self {
        Self { inner: Inner::Copied(parts.into()), gated: None, meter }
    }

    /// One that can be taken back; whoever read it before reads nothing more.
    pub(crate) fn lent(loan: &Rc<Loan>, meter: Rc<Meter>) -> Self {
        let turn = loan.turn.get() + 1;
        loan.turn.set(turn);
        loan.replayed.set(0);
        Self { inner: Inner::Lent(Lent { loan: Rc::clone(loan), turn }), gated: None, meter }
    }

    /// Holds the body back until the gate opens, or `patience` is over (RFC 9110 10.1.1).
    pub(crate) fn behind(mut self, gate: Arc<Gate>, patience: Duration, metrics: Arc<Metrics>) -> Self {
        self.gated = Some(Gated { gate, timer: Box::pin(tokio::time::sleep(patience)), metrics });
        self
    }

    fn poll_inner(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        let mut frame = match &mut self.inner {
            Inner::Empty => return Poll::Ready(None),
            Inner::Copied(parts) => {
                return Poll::Ready(parts.pop_front().map(|part| Ok(Frame::data(part))));
            }
            Inner::Given(inner) => ready!(Pin::new(inner).poll_frame(cx)),
            Inner::Lent(lent) => {
                if lent.turn != lent.loan.turn.get() {
                    return Poll::Ready(Some(Err(RequestBodyError::Unwanted)));
                }
                if let Some(part) = lent.loan.earlier() {
                    return Poll::Ready(Some(Ok(Frame::data(part))));
                }
                if lent.loan.ended.get() {
                    return Poll::Ready(None);
                }
                let frame = ready!(Pin::new(&mut *lent.loan.body.borrow_mut()).poll_frame(cx));
                match &frame {
                    Some(Ok(frame)) => match frame.data_ref() {
                        Some(data) => {
                            lent.loan.read(data);
                            // Nobody asks again where the length was known.
                            if lent.loan.body.borrow().is_end_stream() {
                                lent.loan.whole();
                            }
                        }
                        // Trailers cannot be read twice.
                        None => {
                            lent.loan.whole();
                            lent.loan.forget();
                        }
                    },
                    Some(Err(_)) => lent.loan.forget(),
                    None => {
                        lent.loan.whole();
                        lent.loan.ended.set(true);
                    }
                }
                frame
            }
        };
        if let Some(Ok(frame)) = &mut frame {
            if let Some(data) = frame.data_ref() {
                bump(&self.meter.request_bytes, data.len());
            } else if let Some(trailers) = frame.trailers_mut() {
                hop::request_trailers(trailers);
            }
        }
        Poll::Ready(frame.map(|frame| frame.map_err(RequestBodyError::Read)))
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
        this.poll_inner(cx)
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Empty => true,
            Inner::Copied(parts) => parts.is_empty(),
            Inner::Given(inner) => inner.is_end_stream(),
            Inner::Lent(lent) => lent.loan.to_replay() == 0 && lent.loan.body.borrow().is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Empty => SizeHint::with_exact(0),
            Inner::Copied(parts) => SizeHint::with_exact(parts.iter().map(|part| part.len() as u64).sum()),
            Inner::Given(inner) => inner.size_hint(),
            Inner::Lent(lent) => match lent.loan.body.borrow().size_hint().exact() {
                Some(left) => SizeHint::with_exact(left + lent.loan.to_replay()),
                None => SizeHint::default(),
            },
        }
    }
}

/// A response body on its way to the client. When it is dropped the exchange is over.
pub(crate) struct ResponseBody {
    source: Source,
    record: Record,
}

/// Where a response body comes from.
pub(crate) enum Source {
    /// The mesh itself.
    Local(Bytes),
    /// An endpoint.
    Upstream(Streamed),
    /// Nowhere: the stream is reset, or the connection of HTTP/1.
    Reset,
}

/// A body that an endpoint sends.
pub(crate) struct Streamed {
    pub(crate) body: Incoming,
    pub(crate) upstream: Carrier,
    /// Of the request, if its body was never wanted.
    pub(crate) unwanted: Option<Arc<Gate>>,
    pub(crate) _in_flight: InFlight,
    pub(crate) ended: bool,
    /// When it must have ended.
    pub(crate) expiry: Option<Expiry>,
}

/// The time that a rule gives.
pub(crate) struct Expiry {
    timer: Pin<Box<Sleep>>,
    reason: Reason,
}

impl Expiry {
    /// The end of what `reason` is about.
    pub(crate) fn new(at: Instant, reason: Reason) -> Self {
        Self { timer: Box::pin(tokio::time::sleep_until(at.into())), reason }
    }
}

/// Why a response ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResponseBodyError {
    #[error(transparent)]
    Upstream(#[from] hyper::Error),
    #[error("response took longer than it may: {}", .0.word())]
    Expired(Reason),
    #[error("a fault that was asked for")]
    Fault,
}

/// What a response comes on.
pub(crate) enum Carrier {
    /// A connection of its own, which goes back to the pool when the body is over; `None` if it cannot be used again.
    Http1(Option<Upstream>),
    /// A stream of a connection that is shared.
    Http2(#[expect(dead_code, reason = "held for its place on the connection")] Stream),
}

impl Record {
    /// How a response ends that has begun and may not go on. HTTP/1 and HTTP/2 have no other word for it than a reset; gRPC has.
    fn expired(&mut self, reason: Reason) -> Result<Frame<Bytes>, ResponseBodyError> {
        self.link.worker.metrics.expired(reason);
        if self.grpc && self.link.is_http2() {
            let trailers = grpc::trailers(grpc::DEADLINE_EXCEEDED, &format!("weft: {}", reason.word()));
            self.status = grpc::stands_for(&trailers).or(self.status);
            return Ok(Frame::trailers(trailers));
        }
        self.link.response_broke();
        Err(ResponseBodyError::Expired(reason))
    }
}

impl ResponseBody {
    pub(crate) fn new(source: Source, record: Record) -> Self {
        Self { source, record }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = ResponseBodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Self { source, record } = self.get_mut();
        record.meter.held.set(false);
        if let Source::Upstream(Streamed { expiry: Some(expiry), .. }) = source
            && expiry.timer.as_mut().poll(cx).is_ready()
        {
            let reason = expiry.reason;
            // Lets go of the endpoint, which hears of it by the end of its stream or connection.
            *source = Source::Local(Bytes::new());
            return Poll::Ready(Some(record.expired(reason)));
        }
        match source {
            Source::Reset => Poll::Ready(Some(Err(ResponseBodyError::Fault))),
            Source::Local(bytes) if bytes.is_empty() => Poll::Ready(None),
            Source::Local(bytes) => {
                record.handed(bytes.len());
                Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes)))))
            }
            Source::Upstream(streamed) => {
                let mut frame = ready!(Pin::new(&mut streamed.body).poll_frame(cx));
                match &mut frame {
                    Some(Ok(frame)) => {
                        if let Some(data) = frame.data_ref() {
                            record.handed(data.len());
                        } else if let Some(trailers) = frame.trailers_mut() {
                            streamed.ended = true;
                            hop::trailers(trailers);
                            if record.grpc {
                                record.status = grpc::stands_for(trailers).or(record.status);
                            }
                        }
                    }
                    Some(Err(error)) => {
                        tracing::debug!(
                            error = error as &dyn std::error::Error,
                            "upstream failed in the middle of a response"
                        );
                        record.link.response_broke();
                    }
                    None => streamed.ended = true,
                }
                Poll::Ready(frame.map(|frame| frame.map_err(ResponseBodyError::from)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Local(bytes) => bytes.is_empty(),
            Source::Reset => false,
            Source::Upstream(streamed) => streamed.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Local(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::Upstream(streamed) => streamed.body.size_hint(),
            Source::Reset => SizeHint::default(),
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        let link = &self.record.link;
        link.response_over();
        if let Source::Upstream(streamed) = &mut self.source {
            streamed.over(link);
        }
    }
}

impl Streamed {
    /// Gives its connection back, if all of it was read.
    fn over(&mut self, link: &Link) {
        if let Some(gate) = self.unwanted.take() {
            gate.over();
        } else if let Carrier::Http1(upstream) = &mut self.upstream
            && (self.ended || self.body.is_end_stream())
            && let Some(upstream) = upstream.take()
            && link.pod.pool.put_back(upstream, link.worker.config.pool_idle_per_key_max) == Kept::Full
        {
            link.worker.metrics.reached(Limit::PoolIdlePerKey);
        }
    }

    /// Reads a response that nobody wants, so that its connection can be used again; one that is long or slow ends it.
    pub(crate) async fn discarded(mut self, link: Rc<Link>) {
        let body = &mut self.body;
        let read = async {
            let mut bytes = 0;
            while let Some(frame) = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await {
                bytes += frame.ok()?.data_ref().map_or(0, Bytes::len);
                if bytes > limits::DISCARD_BYTES_MAX {
                    return None;
                }
            }
            Some(())
        };
        match tokio::time::timeout(limits::DISCARD_TIMEOUT, read).await {
            Ok(Some(())) => self.ended = true,
            Ok(None) => {}
            Err(_) => link.worker.metrics.reached(Limit::Discard),
        }
        self.over(&link);
    }
}
