//! A client's HTTP/2 socket as hyper's server sees it. It follows the frames of both directions, and so knows what hyper does not
//! say: which streams are open on the wire, what the client's next silence would mean, and when its frames only make work.

use std::{
    cell::{Cell, RefCell},
    io,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    config::ProxyConfig,
    flows::{Flow, bump},
    http::{
        body::Meter,
        frames::{Frame, Frames, code, go_away, kind},
    },
    limits,
    metrics::{Limit, Metrics},
    stream::Stream,
    tcp,
};

/// What a client connection is waiting for; what its deadline is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// The connection preface, or the rest of a header block.
    Head,
    /// Nothing that is the client's to do.
    Answer,
    /// The client, who has let no part of an answer through that is ready to go.
    Window,
    /// The next request.
    Request,
}

/// What a client may make us do for nothing: each frame that carries nothing takes one, each that carries an answer gives some back,
/// and so does time.
#[derive(Debug)]
struct Budget {
    left: u32,
    refilled: Instant,
}

impl Budget {
    fn new() -> Self {
        Self { left: limits::H2_OVERHEAD_FRAMES_MAX, refilled: Instant::now() }
    }

    fn earn(&mut self, frames: u32) {
        self.left = (self.left + frames).min(limits::H2_OVERHEAD_FRAMES_MAX);
    }

    /// Takes one; tells whether there was one.
    fn spend(&mut self) -> bool {
        if self.left == 0 {
            // The clock is asked only here.
            let now = Instant::now();
            let earned =
                now.duration_since(self.refilled).as_secs_f64() * f64::from(limits::H2_OVERHEAD_FRAMES_PER_SECOND);
            self.left = (earned as u32).min(limits::H2_OVERHEAD_FRAMES_MAX);
            self.refilled = now;
        }
        self.left = match self.left.checked_sub(1) {
            Some(left) => left,
            None => return false,
        };
        true
    }
}

/// Where one HTTP/2 client connection stands. Shared by its socket and its requests.
#[derive(Debug)]
pub(crate) struct Session {
    flow: Rc<Flow>,
    config: Arc<ProxyConfig>,
    metrics: Arc<Metrics>,
    /// The socket. hyper reads and writes it; from outside it is looked at, and taken when hyper is done.
    stream: RefCell<Option<Stream>>,
    waiting: Cell<Waiting>,
    /// The client's first frame has come.
    begun: Cell<bool>,
    /// A header block has begun and not ended.
    in_block: Cell<bool>,
    /// Streams that the client has opened and nobody has ended; few, so a list will do.
    open: RefCell<Vec<u32>>,
    /// The highest stream that the client has opened.
    last: Cell<u32>,
    /// Requests that were taken and whose answers are not given yet as a whole.
    taken: Cell<usize>,
    /// Streams that carry bytes and no answer.
    upgrades: Cell<usize>,
    budget: RefCell<Budget>,
    /// Why the client is not listened to any more.
    refused: Cell<Option<Limit>>,
    /// hyper has said itself that the connection is over.
    told: Cell<bool>,
    /// What was written last was a whole frame.
    between: Cell<bool>,
    /// Of the request that hyper is about to make a task for.
    starting: RefCell<Option<Rc<Meter>>>,
}

impl Session {
    pub(crate) fn new(flow: Rc<Flow>, config: Arc<ProxyConfig>, metrics: Arc<Metrics>, stream: Stream) -> Self {
        flow.after(config.header_read_timeout);
        Self {
            flow,
            config,
            metrics,
            stream: RefCell::new(Some(stream)),
            waiting: Cell::new(Waiting::Head),
            begun: Cell::new(false),
            in_block: Cell::new(false),
            open: RefCell::default(),
            last: Cell::new(0),
            taken: Cell::new(0),
            upgrades: Cell::new(0),
            budget: RefCell::new(Budget::new()),
            refused: Cell::new(None),
            told: Cell::new(false),
            between: Cell::new(true),
            starting: RefCell::default(),
        }
    }

    /// Takes the socket; hyper must be done with it.
    pub(crate) fn take_stream(&self) -> Option<Stream> {
        self.stream.take()
    }

    /// Whether bytes have come that hyper does not know of yet.
    pub(crate) fn has_unread(&self) -> bool {
        self.stream.borrow().as_ref().and_then(Stream::socket).is_some_and(tcp::has_unread)
    }

    pub(crate) fn waiting(&self) -> Waiting {
        self.waiting.get()
    }

    /// Whether the client has said anything in HTTP/2.
    pub(crate) fn has_begun(&self) -> bool {
        self.begun.get()
    }

    /// Whether an answer is owed, or on its way.
    pub(crate) fn owed(&self) -> bool {
        self.taken.get() > 0 || !self.open.borrow().is_empty()
    }

    /// The limit that the client has met, if that is why the connection ended.
    pub(crate) fn refused(&self) -> Option<Limit> {
        self.refused.get()
    }

    /// hyper gives a request; the task that it makes next is this request's.
    pub(crate) fn request_taken(&self, meter: &Rc<Meter>) {
        self.taken.set(self.taken.get() + 1);
        *self.starting.borrow_mut() = Some(Rc::clone(meter));
        self.settle();
    }

    /// The request that a task is made for.
    pub(crate) fn task_for(&self) -> Option<Rc<Meter>> {
        self.starting.take()
    }

    /// hyper has all of an answer, or nobody wants it any more.
    pub(crate) fn answer_given(&self) {
        self.taken.set(self.taken.get() - 1);
        self.settle();
    }

    /// An answer has made its stream one of bytes, for which nothing is waited.
    pub(crate) fn upgraded(&self) {
        self.upgrades.set(self.upgrades.get() + 1);
        self.settle();
    }

    /// Such a stream is over.
    pub(crate) fn upgrade_over(&self) {
        self.upgrades.set(self.upgrades.get() - 1);
        self.settle();
    }

    /// The bytes that end the connection with a word, if it can still be said: hyper has not said one, and no frame is half written.
    pub(crate) fn last_word(&self, code: u32, words: &str) -> Option<Vec<u8>> {
        (self.between.get() && !self.told.get()).then(|| go_away(self.last.get(), code, words))
    }

    /// Sets the deadline if it is about something else now.
    fn settle(&self) {
        let waiting = if !self.begun.get() || self.in_block.get() {
            Waiting::Head
        } else {
            let (open, taken) = (self.open.borrow().len(), self.taken.get() + self.upgrades.get());
            match (open, taken) {
                (0, 0) => Waiting::Request,
                // More answers are ready than hyper still has to do with: they wait for the client's window.
                _ if open > taken => Waiting::Window,
                _ => Waiting::Answer,
            }
        };
        if waiting == self.waiting.replace(waiting) {
            return;
        }
        match waiting {
            Waiting::Head => self.flow.after(self.config.header_read_timeout),
            Waiting::Answer => self.flow.deadline.set(None),
            Waiting::Window => self.flow.after(self.config.h2_stall_timeout),
            Waiting::Request => self.flow.after(self.config.downstream_idle_timeout),
        }
    }

    fn closed(&self, stream: u32) -> bool {
        let mut open = self.open.borrow_mut();
        let place = open.iter().position(|other| *other == stream);
        if let Some(place) = place {
            open.swap_remove(place);
        }
        place.is_some()
    }

    fn received(&self, frame: Frame<'_>) {
        self.begun.set(true);
        let works = match frame.kind {
            kind::DATA => frame.length > 0 || frame.ends_stream(),
            kind::HEADERS => {
                self.in_block.set(!frame.ends_headers());
                if frame.stream > self.last.get() {
                    self.last.set(frame.stream);
                    self.open.borrow_mut().push(frame.stream);
                }
                true
            }
            kind::CONTINUATION => {
                self.in_block.set(!frame.ends_headers());
                frame.length > 0
            }
            kind::RST_STREAM => {
                self.closed(frame.stream);
                false
            }
            _ => false,
        };
        if !works && !self.budget.borrow_mut().spend() {
            self.refused.set(Some(Limit::H2OverheadFrames));
        }
    }

    fn sent(&self, frame: Frame<'_>) {
        match frame.kind {
            kind::DATA | kind::HEADERS => {
                let ended = frame.ends_stream() && self.closed(frame.stream);
                if ended || (frame.kind == kind::DATA && frame.length > 0) {
                    self.budget.borrow_mut().earn(limits::H2_OVERHEAD_FRAMES_EARNED);
                    if self.waiting.get() == Waiting::Window {
                        // The client lets something through.
                        self.flow.after(self.config.h2_stall_timeout);
                    }
                }
            }
            kind::RST_STREAM => {
                self.closed(frame.stream);
                if frame.error_code() == Some(code::REFUSED_STREAM) {
                    self.metrics.reached(Limit::H2Streams);
                }
            }
            kind::GOAWAY => self.ended_by_hyper(frame),
            _ => {}
        }
    }

    /// hyper says GOAWAY; what it says in words is the only place where it says which of its limits was met.
    fn ended_by_hyper(&self, frame: Frame<'_>) {
        if frame.error_code().is_none_or(|code| code == code::NO_ERROR) {
            return;
        }
        self.told.set(true);
        let limit = match frame.words() {
            b"too_many_resets" | b"too_many_internal_resets" => Limit::H2Resets,
            b"too_many_continuations" => Limit::H2Continuations,
            b"header_list_way_too_large" => Limit::HeadBytes,
            b"too_many_data_frames" => Limit::H2SmallFrames,
            _ if frame.error_code() == Some(code::ENHANCE_YOUR_CALM) => Limit::H2Other,
            // A broken protocol, and no limit.
            _ => return,
        };
        self.metrics.reached(limit);
    }

    fn with<T>(&self, act: impl FnOnce(Pin<&mut Stream>) -> Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match &mut *self.stream.borrow_mut() {
            Some(stream) => act(Pin::new(stream)),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

/// The socket.
pub(crate) struct Wire {
    session: Rc<Session>,
    incoming: Frames,
    outgoing: Frames,
}

impl Wire {
    pub(crate) fn new(session: Rc<Session>) -> Self {
        Self { session, incoming: Frames::of_client(), outgoing: Frames::of_server() }
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { session, incoming, .. } = self.get_mut();
        let before = buf.filled().len();
        ready!(session.with(|stream| stream.poll_read(cx, buf)))?;
        let bytes = &buf.filled()[before..];
        bump(&session.flow.bytes_sent, bytes.len());
        incoming.feed(bytes, |frame, _| session.received(frame));
        session.settle();
        if session.refused.get().is_some() {
            return Poll::Ready(Err(io::Error::other("client's frames only make work")));
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
        let Self { session, outgoing, .. } = self.get_mut();
        let written = ready!(session.with(|stream| stream.poll_write_vectored(cx, bufs)))?;
        bump(&session.flow.bytes_received, written);
        let mut left = written;
        for buf in bufs {
            let part = left.min(buf.len());
            outgoing.feed(&buf[..part], |frame, _| session.sent(frame));
            left -= part;
        }
        session.between.set(outgoing.is_between());
        session.settle();
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.session.with(|stream| stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.session.with(|stream| stream.poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn budget_is_given_back_by_work_and_by_time() {
        let mut budget = Budget::new();
        for _ in 0..limits::H2_OVERHEAD_FRAMES_MAX {
            assert!(budget.spend());
        }
        budget.refilled = Instant::now();
        assert!(!budget.spend());
        budget.earn(2);
        assert!(budget.spend() && budget.spend());
        budget.refilled = Instant::now() - Duration::from_secs(1);
        let taken = (0..limits::H2_OVERHEAD_FRAMES_MAX).take_while(|_| budget.spend()).count();
        assert!((taken as u32).abs_diff(limits::H2_OVERHEAD_FRAMES_PER_SECOND) < 50, "{taken}");
        budget.earn(u32::MAX / 2);
        assert_eq!(budget.left, limits::H2_OVERHEAD_FRAMES_MAX);
    }
}
