//! Carries an opaque connection: bytes both ways, an end as an end, a reset as a reset. Knows no policy.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    pin::pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use rustix::net::RecvFlags;
use tokio::{
    io::{AsyncWriteExt, ReadBuf},
    net::TcpStream,
};

use crate::{
    flows::{Flow, FlowProtocol, bump},
    hello::{Progress, Reader},
    limits::{COPY_BUFFER_BYTES, COPY_TURN_READS, LINGER_BYTES_MAX, LINGER_TIMEOUT},
    metrics::Limit,
    stream::Stream,
    worker::Worker,
};

/// How an opaque connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Both sides said all that they had to say.
    Finished,
    /// One side was reset or failed; the other one was reset too.
    Reset,
    /// The worker ended it; both sides were reset.
    Cut,
}

/// The buffer that all opaque connections of a worker read into. Only what cannot be written at once is kept elsewhere, so an idle
/// connection has no buffer at all.
#[derive(Debug)]
pub(crate) struct Scratch(RefCell<Box<[u8]>>);

impl Default for Scratch {
    fn default() -> Self {
        Self(RefCell::new(vec![0; COPY_BUFFER_BYTES].into_boxed_slice()))
    }
}

/// One side of a connection, with bytes of it that were read, and counted, already.
#[derive(Debug)]
pub(crate) struct Side {
    pub(crate) stream: Stream,
    pub(crate) early: Bytes,
}

impl Side {
    pub(crate) fn new(stream: impl Into<Stream>, early: Bytes) -> Self {
        Self { stream: stream.into(), early }
    }
}

/// Carries bytes until both sides have ended.
pub(crate) async fn splice(downstream: Side, upstream: Side, flow: &Flow, scratch: &Scratch) -> End {
    carry(downstream, upstream, flow, scratch, None).await
}

/// The same for a client that is thought to speak TLS: reads what it says of itself as it passes, and notes it with the flow.
pub(crate) async fn splice_tls(downstream: Side, upstream: Side, flow: &Flow, worker: &Worker) -> End {
    let mut reader = Reader::default();
    let note = |bytes: &[u8]| match reader.feed(bytes) {
        Progress::More => true,
        Progress::Done(hello) => {
            tracing::debug!(peer = %flow.peer, destination = %flow.destination, server_name = hello.server_name.as_deref().unwrap_or("-"), alpn = ?hello.alpn, "TLS client");
            *flow.hello.borrow_mut() = Some(Box::new(hello));
            false
        }
        Progress::TooLong => {
            worker.metrics.reached(Limit::HelloBytes);
            false
        }
        Progress::Invalid => {
            flow.protocol.set(FlowProtocol::Tcp);
            false
        }
    };
    carry(downstream, upstream, flow, &worker.scratch, Some(Box::new(note))).await
}

async fn carry(downstream: Side, upstream: Side, flow: &Flow, scratch: &Scratch, tap: Option<Tap<'_>>) -> End {
    let end = {
        let (down, up) = (&downstream.stream, &upstream.stream);
        let mut out = Pump::new(down, up, downstream.early, &flow.bytes_sent);
        out.tap = tap;
        let mut back = Pump::new(up, down, upstream.early, &flow.bytes_received);
        let both = poll_fn(|cx| {
            let (out, back) = (out.poll(cx, scratch), back.poll(cx, scratch));
            match (out, back) {
                (Poll::Ready(Err(_)), _) | (_, Poll::Ready(Err(_))) => Poll::Ready(End::Reset),
                (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(End::Finished),
                _ => Poll::Pending,
            }
        });
        tokio::select! {
            biased;
            end = both => end,
            () = flow.control.cut() => End::Cut,
            () = down.failed() => End::Reset,
            () = up.failed() => End::Reset,
        }
    };
    if end != End::Finished {
        downstream.stream.reset();
        upstream.stream.reset();
    }
    end
}

/// Looks at bytes as they pass, until it gives false.
type Tap<'a> = Box<dyn FnMut(&[u8]) -> bool + 'a>;

/// One direction.
struct Pump<'a> {
    from: &'a Stream,
    to: &'a Stream,
    /// Read, and not written yet; at most [`COPY_BUFFER_BYTES`].
    held: Bytes,
    ended: bool,
    done: bool,
    /// What was written may not have left yet.
    unflushed: bool,
    count: &'a Cell<u64>,
    tap: Option<Tap<'a>>,
}

impl<'a> Pump<'a> {
    fn new(from: &'a Stream, to: &'a Stream, early: Bytes, count: &'a Cell<u64>) -> Self {
        Self { from, to, held: early, ended: false, done: false, unflushed: false, count, tap: None }
    }

    fn poll(&mut self, cx: &mut Context<'_>, scratch: &Scratch) -> Poll<io::Result<()>> {
        if self.done {
            return Poll::Ready(Ok(()));
        }
        let mut scratch = scratch.0.borrow_mut();
        for _ in 0..COPY_TURN_READS {
            while !self.held.is_empty() {
                let written = ready!(self.to.poll_write(cx, &self.held))?;
                drop(self.held.split_to(written));
                self.unflushed = true;
            }
            // Gives the memory back.
            self.held = Bytes::new();
            if self.ended {
                ready!(self.to.poll_shutdown(cx))?;
                self.done = true;
                return Poll::Ready(Ok(()));
            }
            let mut buffer = ReadBuf::new(&mut scratch);
            let Poll::Ready(read) = self.from.poll_read(cx, &mut buffer) else {
                // There is nothing more to go with it.
                if std::mem::take(&mut self.unflushed) && self.to.poll_flush(cx)?.is_pending() {
                    self.unflushed = true;
                }
                return Poll::Pending;
            };
            read?;
            let read = buffer.filled().len();
            if read == 0 {
                self.ended = true;
                continue;
            }
            bump(self.count, read);
            if self.tap.as_mut().is_some_and(|tap| !tap(&scratch[..read])) {
                self.tap = None;
            }
            let written = match self.to.poll_write(cx, &scratch[..read])? {
                Poll::Ready(written) => written,
                Poll::Pending => 0,
            };
            self.unflushed = true;
            if written < read {
                self.held = Bytes::copy_from_slice(&scratch[written..read]);
            }
        }
        // Others first.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Whether bytes wait in the kernel that nobody has read.
pub(crate) fn has_unread(stream: &TcpStream) -> bool {
    let mut byte = [0];
    matches!(rustix::net::recv(stream, &mut byte[..], RecvFlags::PEEK | RecvFlags::DONTWAIT), Ok((_, read)) if read > 0)
}

/// Whether nothing has come: no bytes that nobody asked for, and no end.
pub(crate) fn is_quiet(stream: &TcpStream) -> bool {
    let mut byte = [0];
    matches!(rustix::net::recv(stream, &mut byte[..], RecvFlags::PEEK | RecvFlags::DONTWAIT), Err(error) if error == rustix::io::Errno::AGAIN)
}

/// Writes a last word and ends the connection as [`linger`] does. A client that does not take it in time goes without.
pub(crate) async fn say(stream: impl Into<Stream>, word: &[u8], scratch: &Scratch) {
    let mut stream = stream.into();
    let said = async {
        stream.write_all(word).await?;
        stream.flush().await
    };
    if let Ok(Ok(())) = tokio::time::timeout(LINGER_TIMEOUT, said).await {
        linger(stream, scratch).await;
    }
}

/// Shuts down the sending side and reads what still comes, for a bounded while: closing with unread bytes would reset the
/// connection and could take the last answer with it.
pub(crate) async fn linger(stream: impl Into<Stream>, scratch: &Scratch) {
    let mut stream = stream.into();
    let drained = pin!(async {
        if stream.shutdown().await.is_err() {
            return;
        }
        // What comes within TLS is of no interest either.
        let Some(socket) = stream.socket() else { return };
        let mut left = LINGER_BYTES_MAX;
        poll_fn(|cx| {
            loop {
                let read = match socket.try_read(&mut scratch.0.borrow_mut()) {
                    Ok(read) => read,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        match ready!(socket.poll_read_ready(cx)) {
                            Ok(()) => continue,
                            Err(_) => 0,
                        }
                    }
                    Err(_) => 0,
                };
                left = left.saturating_sub(read);
                if read == 0 || left == 0 {
                    return Poll::Ready(());
                }
            }
        })
        .await;
    });
    // What is left after that long is the client's loss.
    let _ = tokio::time::timeout(LINGER_TIMEOUT, drained).await;
}
