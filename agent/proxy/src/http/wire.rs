//! The client's socket as hyper's server sees it. It knows, as hyper does not say, whether an answer is owed; with that it tells
//! hyper's own error answers from an application's, a slow request from an idle client, and a client that has said all from one
//! that is gone.

use std::{
    cell::{Cell, RefCell},
    io,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::{
    config::ProxyConfig,
    flows::{Flow, bump},
    http::scan::{Fault, Scan},
    limits,
    metrics::{Limit, Metrics},
    reply::{self, Reason},
    tcp,
};

/// What a client connection is waiting for; what its deadline is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// The next request.
    Request,
    /// The rest of a request's head.
    Head,
    /// The answer, and nothing limits it.
    Answer,
    /// The answer, for a client that has shut down its sending side.
    AnswerHalfClosed,
}

/// Where one client connection stands. Shared by its socket, its requests and their bodies.
#[derive(Debug)]
pub(crate) struct Turn {
    waiting: Cell<Waiting>,
    /// hyper has let go of the response's body, so all of it is in hyper's buffer.
    said: Cell<bool>,
    requests: Cell<u64>,
    scan: RefCell<Scan>,
    /// The response cannot be finished and must not look as if it were.
    broken: Cell<bool>,
    reader: RefCell<Option<Waker>>,
    /// The socket. hyper reads and writes it; from outside it is looked at, and taken when hyper is done.
    stream: RefCell<Option<TcpStream>>,
}

impl Turn {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self {
            stream: RefCell::new(Some(stream)),
            waiting: Cell::new(Waiting::Request),
            said: Cell::new(false),
            requests: Cell::new(0),
            scan: RefCell::default(),
            broken: Cell::new(false),
            reader: RefCell::default(),
        }
    }

    /// Takes the socket; hyper must be done with it.
    pub(crate) fn take_stream(&self) -> Option<TcpStream> {
        self.stream.take()
    }

    /// Whether bytes have come that hyper does not know of yet.
    pub(crate) fn has_unread(&self) -> bool {
        self.stream.borrow().as_ref().is_some_and(tcp::has_unread)
    }

    fn with<T>(&self, act: impl FnOnce(Pin<&mut TcpStream>) -> Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match &mut *self.stream.borrow_mut() {
            Some(stream) => act(Pin::new(stream)),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    pub(crate) fn waiting(&self) -> Waiting {
        self.waiting.get()
    }

    /// Whether a request was taken whose response is not on its way as a whole.
    pub(crate) fn owed(&self) -> bool {
        matches!(self.waiting.get(), Waiting::Answer | Waiting::AnswerHalfClosed)
    }

    /// hyper has parsed a request; gives what the scan found wrong with it.
    pub(crate) fn request_taken(&self, flow: &Flow) -> Option<Fault> {
        self.waiting.set(Waiting::Answer);
        self.said.set(false);
        flow.deadline.set(None);
        bump(&self.requests, 1);
        self.scan.borrow().fault(self.requests.get())
    }

    /// hyper has taken all of the response.
    pub(crate) fn response_said(&self) {
        self.said.set(true);
    }

    pub(crate) fn broke(&self) {
        self.broken.set(true);
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken.get()
    }
}

/// The socket.
pub(crate) struct Wire {
    flow: Rc<Flow>,
    turn: Rc<Turn>,
    config: Arc<ProxyConfig>,
    metrics: Arc<Metrics>,
    /// The client has shut down its sending side.
    ended: bool,
    /// An answer of our own, in the place of hyper's.
    own: Bytes,
}

impl Wire {
    pub(crate) fn new(flow: Rc<Flow>, turn: Rc<Turn>, config: Arc<ProxyConfig>, metrics: Arc<Metrics>) -> Self {
        flow.after(config.downstream_idle_timeout);
        Self { flow, turn, config, metrics, ended: false, own: Bytes::new() }
    }

    /// hyper writes while no answer is owed: its own answer to what it could not parse. It has no body and does not say who it is
    /// from, so another one goes out instead. Gives false if it is nothing that we know.
    fn replace(&mut self, written: &[u8]) -> bool {
        let (reason, detail) = match written.strip_prefix(b"HTTP/1.1 ").or_else(|| written.strip_prefix(b"HTTP/1.0 ")) {
            Some(rest) if rest.starts_with(b"431 ") => {
                self.metrics.reached(Limit::HeadBytes);
                let (bytes, fields) = (limits::HEAD_BYTES_MAX, limits::HEADERS_MAX);
                (
                    Reason::HeadTooLarge,
                    format!("request head is larger than {bytes} bytes or has more than {fields} fields"),
                )
            }
            Some(rest) if rest.starts_with(b"414 ") => (Reason::TargetTooLong, "request target is too long".to_owned()),
            Some(rest) if rest.starts_with(b"400 ") => {
                (Reason::MalformedRequest, "request cannot be parsed".to_owned())
            }
            _ => return false,
        };
        self.metrics.replied(reason);
        self.own = reply::raw(reason, &detail);
        true
    }

    fn poll_own(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.own.is_empty() {
            let own = &self.own;
            let written = ready!(self.turn.with(|stream| stream.poll_write(cx, own)))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            bump(&self.flow.bytes_received, written);
            self.own.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    /// hyper's buffer is empty; if the response was all in it, the client has its answer.
    fn flushed(&mut self) {
        if !(self.turn.owed() && self.turn.said.get()) {
            return;
        }
        self.turn.waiting.set(Waiting::Request);
        self.turn.scan.borrow_mut().between();
        self.flow.after(self.config.downstream_idle_timeout);
        if let Some(reader) = self.turn.reader.borrow_mut().take() {
            reader.wake();
        }
    }

    fn half_closed(&mut self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        self.ended = true;
        // Within a body hyper has to know, so that the request fails and does not wait.
        if !self.turn.owed() || self.turn.scan.borrow().is_within_body() {
            return Poll::Ready(Ok(()));
        }
        if self.turn.waiting.get() == Waiting::Answer {
            // hyper would drop the request at once.
            self.turn.waiting.set(Waiting::AnswerHalfClosed);
            self.flow.after(self.config.half_closed_grace);
        }
        *self.turn.reader.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.ended {
            return this.half_closed(cx);
        }
        let before = buf.filled().len();
        ready!(this.turn.with(|stream| stream.poll_read(cx, buf)))?;
        let bytes = &buf.filled()[before..];
        if bytes.is_empty() {
            return if buf.remaining() == 0 { Poll::Ready(Ok(())) } else { this.half_closed(cx) };
        }
        bump(&this.flow.bytes_sent, bytes.len());
        this.turn.scan.borrow_mut().feed(bytes);
        if this.turn.waiting.get() == Waiting::Request {
            this.turn.waiting.set(Waiting::Head);
            this.flow.after(this.config.header_read_timeout);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if !this.turn.owed() && bufs.first().is_some_and(|first| this.replace(first)) {
            return Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()));
        }
        let written = ready!(this.turn.with(|stream| stream.poll_write_vectored(cx, bufs)))?;
        bump(&this.flow.bytes_received, written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_own(cx))?;
        this.flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_own(cx))?;
        this.turn.with(|stream| stream.poll_shutdown(cx))
    }
}
