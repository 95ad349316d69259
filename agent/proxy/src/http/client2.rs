//! Connections to endpoints that speak HTTP/2: opened, driven, and shared by the requests of one pod.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    io,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http2},
};
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
};
use weft_identity::Alpn;
use weft_policy::endpoints::{Endpoint, EndpointCell};

use crate::{
    dial::{self, DialError, Dialled},
    http::{
        body::RequestBody,
        client::Via,
        frames::{Frame, Frames, code, kind},
    },
    limits,
    mutual::{self, Remote, Secured},
    socket::Lease,
    stream,
    transport::Transport,
    worker::Worker,
};

/// A connection that many requests share.
pub(crate) struct Connection {
    sender: RefCell<http2::SendRequest<RequestBody>>,
    endpoint: Endpoint,
    cell: Option<Arc<EndpointCell>>,
    /// Who is at the other end, if that is another agent.
    remote: Option<Rc<Remote>>,
    peer: Rc<Peer>,
    /// Requests on it.
    streams: Cell<usize>,
    idle_since: Cell<Instant>,
    /// Told when a request ends.
    room: Rc<Notify>,
}

/// A request's place on a connection; given back when dropped.
pub(crate) struct Stream {
    connection: Rc<Connection>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        let connection = &self.connection;
        connection.streams.set(connection.streams.get() - 1);
        if connection.streams.get() == 0 {
            connection.idle_since.set(Instant::now());
        }
        connection.room.notify_one();
    }
}

impl Stream {
    /// The connection that it is on.
    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Sends a request. The error gives it back if none of it was sent.
    pub(crate) fn send(
        &self,
        request: Request<RequestBody>,
    ) -> impl Future<Output = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>> + use<> {
        self.connection.sender.borrow_mut().try_send_request(request)
    }
}

impl Connection {
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Who is at the other end, if that is another agent.
    pub(crate) fn remote(&self) -> Option<&Rc<Remote>> {
        self.remote.as_ref()
    }

    /// Ends it, with all that is on it.
    pub(crate) fn cut(&self) {
        self.peer.cut.notify_one();
    }

    /// Whether it takes requests at all; one that does not finishes those that it has.
    pub(crate) fn is_usable(&self) -> bool {
        !self.peer.going_away.get() && !self.sender.borrow().is_closed()
    }

    /// Whether its endpoint still is one of its Service's.
    pub(crate) fn is_wanted(&self) -> bool {
        self.cell.as_ref().is_none_or(|cell| cell.load().ready.contains(&self.endpoint))
    }

    /// Since when nothing was asked of it.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        (self.streams.get() == 0).then(|| self.idle_since.get())
    }

    /// A place for one more request, if there is one.
    pub(crate) fn join(self: &Rc<Self>) -> Option<Stream> {
        let most = limits::H2_UPSTREAM_STREAMS_MAX.min(self.peer.streams_max.get());
        if !self.is_usable() || self.streams.get() >= most {
            return None;
        }
        self.streams.set(self.streams.get() + 1);
        Some(Stream { connection: Rc::clone(self) })
    }
}

/// Connects, and waits until the endpoint has shown that it speaks HTTP/2: no request ever meets a server that does not.
pub(crate) async fn connect(worker: &Worker, via: Via<'_>, room: &Rc<Notify>) -> Result<Connection, DialError> {
    let dialled = dial::dial(worker, via.dial()).await?;
    open(worker, via, dialled, room).await
}

/// Begins HTTP/2 on a connection that was made already.
pub(crate) async fn open(
    worker: &Worker,
    via: Via<'_>,
    dialled: Dialled,
    room: &Rc<Notify>,
) -> Result<Connection, DialError> {
    let to = via.endpoint.address;
    // A peer that vanished would go on being given requests. PING frames would tell, too, but gRPC's servers take more than one in
    // five minutes for abuse (grpc/doc/keepalive.md). Not worth failing for.
    if let Err(error) = SockRef::from(&dialled.stream).set_tcp_user_timeout(Some(limits::H2_UNACKNOWLEDGED_TIMEOUT)) {
        tracing::debug!(%error, "socket option could not be set");
    }
    let (stream, lease, remote) = match via.transport {
        Transport::Mutual { peer, credential } => {
            let Secured { stream, lease, remote, .. } =
                mutual::connect(worker, credential, peer, dialled, Alpn::H2).await?;
            (stream, lease, Some(remote))
        }
        _ => (dialled.stream.into(), dialled.lease, None),
    };
    let peer = Rc::<Peer>::default();
    let socket = Socket {
        stream,
        peer: Rc::clone(&peer),
        incoming: Frames::of_server(),
        outgoing: Frames::of_client(),
        open: Vec::new(),
        last: 0,
        _lease: lease,
    };
    let (sender, connection) = http2::Builder::new(LocalTasks)
        .initial_stream_window_size(limits::H2_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::H2_UPSTREAM_WINDOW_BYTES)
        .max_frame_size(limits::H2_FRAME_BYTES_MAX)
        .max_header_list_size(limits::HEAD_BYTES_MAX as u32)
        .header_table_size(limits::H2_HEADER_TABLE_BYTES)
        .max_send_buf_size(limits::H2_SEND_BUFFER_BYTES)
        .handshake(TokioIo::new(socket))
        .await
        .map_err(|error| DialError::Unreachable { to, source: io::Error::other(error) })?;
    let ended = Rc::clone(&peer);
    tokio::task::spawn_local(async move {
        tokio::select! {
            done = connection => if let Err(error) = done {
                tracing::debug!(endpoint = %to, error = &error as &dyn std::error::Error, "upstream connection failed");
            },
            () = ended.cut.notified() => tracing::debug!(endpoint = %to, "upstream connection ends with a certificate"),
        }
        ended.ended();
    });
    let what = match tokio::time::timeout(worker.config.connect_timeout, peer.shown()).await {
        Ok(Shown::Http2) => {
            return Ok(Connection {
                sender: RefCell::new(sender),
                endpoint: via.endpoint.clone(),
                cell: via.cell.cloned(),
                remote,
                peer,
                streams: Cell::new(0),
                idle_since: Cell::new(Instant::now()),
                room: Rc::clone(room),
            });
        }
        Ok(Shown::Http1) => "it answers with HTTP/1",
        Ok(Shown::Other) => "its first bytes are no SETTINGS frame",
        Ok(Shown::Ended | Shown::Nothing) => "it ends the connection without a SETTINGS frame",
        Err(_) => "it does not send its SETTINGS",
    };
    Err(DialError::NotHttp2 { to, what })
}

/// Runs hyper's tasks on the worker's thread.
#[derive(Clone, Copy, Debug)]
struct LocalTasks;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for LocalTasks {
    fn execute(&self, task: F) {
        tokio::task::spawn_local(task);
    }
}

/// What an endpoint has shown of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Shown {
    #[default]
    Nothing,
    Http2,
    Http1,
    Other,
    Ended,
}

/// The other end, as its frames show it.
#[derive(Debug)]
struct Peer {
    shown: Cell<Shown>,
    changed: Notify,
    /// How many streams it takes at a time (SETTINGS_MAX_CONCURRENT_STREAMS).
    streams_max: Cell<usize>,
    /// It has sent GOAWAY.
    going_away: Cell<bool>,
    /// Told when the connection is to end at once.
    cut: Notify,
}

impl Default for Peer {
    fn default() -> Self {
        Self {
            shown: Cell::default(),
            changed: Notify::new(),
            streams_max: Cell::new(usize::MAX),
            going_away: Cell::new(false),
            cut: Notify::new(),
        }
    }
}

impl Peer {
    async fn shown(&self) -> Shown {
        while self.shown.get() == Shown::Nothing {
            self.changed.notified().await;
        }
        self.shown.get()
    }

    fn show(&self, what: Shown) {
        if self.shown.get() == Shown::Nothing {
            self.shown.set(what);
            self.changed.notify_one();
        }
    }

    fn ended(&self) {
        self.going_away.set(true);
        self.show(Shown::Ended);
    }

    fn received(&self, frame: Frame<'_>) {
        // The server's preface is a SETTINGS frame (RFC 9113 3.4).
        self.show(match frame.kind {
            kind::SETTINGS if frame.stream == 0 && !frame.is_ack() => Shown::Http2,
            // `HTTP/1.1 ` read as a frame's header: its type is the `P`, its flags the slash.
            b'P' if frame.length == 0x48_54_54 => Shown::Http1,
            _ => Shown::Other,
        });
        if let Some(most) = frame.setting(SETTINGS_MAX_CONCURRENT_STREAMS) {
            self.streams_max.set(most as usize);
        }
        if frame.kind == kind::GOAWAY {
            self.going_away.set(true);
        }
    }
}

/// RFC 9113 6.5.2.
const SETTINGS_MAX_CONCURRENT_STREAMS: u16 = 3;

/// The socket as hyper's client sees it.
struct Socket {
    stream: stream::Stream,
    peer: Rc<Peer>,
    incoming: Frames,
    outgoing: Frames,
    /// Streams whose response has not ended.
    open: Vec<u32>,
    /// The highest stream so far.
    last: u32,
    _lease: Lease,
}

impl Socket {
    fn closed(open: &mut Vec<u32>, stream: u32) -> bool {
        let place = open.iter().position(|other| *other == stream);
        if let Some(place) = place {
            open.swap_remove(place);
        }
        place.is_some()
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, peer, incoming, open, .. } = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(stream).poll_read(cx, buf))?;
        let bytes = &mut buf.filled_mut()[before..];
        // A response that breaks off with NO_ERROR would look whole: hyper takes that code for the end, which it is only after one.
        let mut broken_off = Vec::new();
        incoming.feed(bytes, |frame, passed| {
            peer.received(frame);
            let was_open = (frame.ends_stream() || frame.kind == kind::RST_STREAM) && Self::closed(open, frame.stream);
            if was_open && frame.error_code() == Some(code::NO_ERROR) {
                broken_off.push(passed);
            }
        });
        for passed in broken_off {
            // The last byte of the frame is the last byte of its code.
            bytes[passed - 1] = code::INTERNAL_ERROR as u8;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self { stream, outgoing, open, last, .. } = self.get_mut();
        let written = ready!(Pin::new(stream).poll_write_vectored(cx, bufs))?;
        let mut left = written;
        for buf in bufs {
            let part = left.min(buf.len());
            outgoing.feed(&buf[..part], |frame, _| match frame.kind {
                // Not trailers.
                kind::HEADERS if frame.stream > *last => {
                    *last = frame.stream;
                    open.push(frame.stream);
                }
                kind::RST_STREAM => _ = Self::closed(open, frame.stream),
                _ => {}
            });
            left -= part;
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
