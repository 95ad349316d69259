//! One side of a connection as whoever reads and writes it sees it: in clear, within TLS of our own, or one stream of HTTP/2.

use std::{
    cell::RefCell,
    io,
    net::Shutdown,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::TlsStream;

/// Where bytes come from and go to. Both directions may be under way at a time, so all is done through a shared reference.
#[derive(Debug)]
pub(crate) enum Stream {
    /// The socket itself.
    Plain(Socket),
    /// Within mutual TLS between agents.
    Mutual(Socket, RefCell<Box<TlsStream<Socket>>>),
    /// A stream of HTTP/2 that a request has made one of bytes (RFC 8441).
    Upgraded(RefCell<Box<TokioIo<Upgraded>>>),
}

impl From<TcpStream> for Stream {
    fn from(stream: TcpStream) -> Self {
        Self::Plain(Socket::new(stream))
    }
}

impl From<Socket> for Stream {
    fn from(socket: Socket) -> Self {
        Self::Plain(socket)
    }
}

impl From<TlsStream<Socket>> for Stream {
    fn from(stream: TlsStream<Socket>) -> Self {
        Self::Mutual(stream.get_ref().0.clone(), RefCell::new(Box::new(stream)))
    }
}

impl From<Upgraded> for Stream {
    fn from(stream: Upgraded) -> Self {
        Self::Upgraded(RefCell::new(Box::new(TokioIo::new(stream))))
    }
}

impl Stream {
    /// The socket beneath, if it is this connection's alone.
    pub(crate) fn socket(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(socket) | Self::Mutual(socket, _) => Some(&socket.0),
            Self::Upgraded(_) => None,
        }
    }

    /// Closes with a reset instead of an orderly end. A stream of HTTP/2 is reset by dropping it.
    pub(crate) fn reset(self) {
        if let Some(socket) = self.socket() {
            // An error means that the connection is gone already.
            let _ = socket.set_zero_linger();
        }
    }

    /// Returns once the socket has failed: a reset shows in a read or a write, unless that direction is blocked or over.
    pub(crate) async fn failed(&self) {
        let Some(socket) = self.socket() else { return std::future::pending().await };
        if socket.ready(Interest::ERROR).await.is_ok_and(|ready| !ready.is_error()) {
            std::future::pending::<()>().await;
        }
    }

    /// Reads once it can.
    pub(crate) fn poll_read(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(socket) => socket.poll_read(cx, buf),
            Self::Mutual(_, stream) => Pin::new(&mut **stream.borrow_mut()).poll_read(cx, buf),
            Self::Upgraded(stream) => Pin::new(&mut **stream.borrow_mut()).poll_read(cx, buf),
        }
    }

    /// Writes once it can. Only a flush makes sure that it leaves.
    pub(crate) fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(socket) => socket.poll_write(cx, &[io::IoSlice::new(bytes)]),
            Self::Mutual(_, stream) => Pin::new(&mut **stream.borrow_mut()).poll_write(cx, bytes),
            Self::Upgraded(stream) => Pin::new(&mut **stream.borrow_mut()).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(&self, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(socket) => socket.poll_write(cx, bufs),
            Self::Mutual(_, stream) => Pin::new(&mut **stream.borrow_mut()).poll_write_vectored(cx, bufs),
            Self::Upgraded(stream) => Pin::new(&mut **stream.borrow_mut()).poll_write_vectored(cx, bufs),
        }
    }

    /// Sends what was written.
    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(_) => Poll::Ready(Ok(())),
            Self::Mutual(_, stream) => Pin::new(&mut **stream.borrow_mut()).poll_flush(cx),
            Self::Upgraded(stream) => Pin::new(&mut **stream.borrow_mut()).poll_flush(cx),
        }
    }

    /// Ends the sending side; TLS says so before the socket does.
    pub(crate) fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(socket) => Poll::Ready(socket.shutdown()),
            Self::Mutual(_, stream) => Pin::new(&mut **stream.borrow_mut()).poll_shutdown(cx),
            Self::Upgraded(stream) => Pin::new(&mut **stream.borrow_mut()).poll_shutdown(cx),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Stream::poll_read(&self, cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Stream::poll_write(&self, cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Stream::poll_write_vectored(&self, cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Stream::poll_flush(&self, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Stream::poll_shutdown(&self, cx)
    }
}

/// A socket that is read and written through TLS, and looked at from outside meanwhile.
#[derive(Clone, Debug)]
pub(crate) struct Socket(Rc<TcpStream>);

impl Socket {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self(Rc::new(stream))
    }

    fn poll_read(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            match self.0.try_read_buf(buf) {
                Ok(_) => return Poll::Ready(Ok(())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready!(self.0.poll_read_ready(cx))?,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn poll_write(&self, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        loop {
            match self.0.try_write_vectored(bufs) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready!(self.0.poll_write_ready(cx))?,
                done => return Poll::Ready(done),
            }
        }
    }

    fn shutdown(&self) -> io::Result<()> {
        SockRef::from(&*self.0).shutdown(Shutdown::Write)
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Socket::poll_read(&self, cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Socket::poll_write(&self, cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Socket::poll_write(&self, cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.shutdown())
    }
}
