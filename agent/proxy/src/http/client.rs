//! Connections to endpoints that speak HTTP/1.1: opened, driven, and handed out for one request at a time.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    io,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::oneshot,
};
use weft_policy::endpoints::{Endpoint, EndpointCell};

use crate::{
    dial::{self, DialError, Dialled},
    http::body::RequestBody,
    limits,
    pool::Key,
    socket::{Dial, Lease, LocalPod},
    tcp,
    transport::Transport,
    worker::Worker,
};

/// A connection to an endpoint, for one request at a time.
#[derive(Debug)]
pub(crate) struct Upstream {
    sender: http1::SendRequest<RequestBody>,
    pub(crate) shared: Rc<Shared>,
}

/// What a connection's task and its user share.
#[derive(Debug)]
pub(crate) struct Shared {
    endpoint: Endpoint,
    key: Key,
    cell: Option<Arc<EndpointCell>>,
    /// The socket; the task and whoever looks at it from outside borrow it in turn. Gone once the connection is over.
    stream: RefCell<Option<TcpStream>>,
    lease: RefCell<Option<Lease>>,
    /// The current request asks for an upgrade.
    upgrading: Cell<bool>,
    /// Gives what the task had read beyond the response once the connection is upgraded.
    upgraded: RefCell<Option<oneshot::Receiver<Bytes>>>,
}

/// Which endpoint to open a connection to, and how it was found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Via<'a> {
    pub(crate) pod: &'a LocalPod,
    pub(crate) endpoint: &'a Endpoint,
    pub(crate) cell: Option<&'a Arc<EndpointCell>>,
    pub(crate) transport: &'a Transport,
}

impl<'a> Via<'a> {
    /// The dial for it.
    pub(crate) fn dial(&self) -> Dial<'a> {
        self.transport.dial(self.pod, self.endpoint)
    }
}

/// Opens a connection.
pub(crate) async fn connect(worker: &Worker, via: Via<'_>) -> Result<Upstream, DialError> {
    let dialled = dial::dial(worker, via.dial()).await?;
    adopt(via, dialled).await
}

/// Takes a connection over that was dialled already.
pub(crate) async fn adopt(via: Via<'_>, dialled: Dialled) -> Result<Upstream, DialError> {
    let Via { endpoint, cell, transport, .. } = via;
    let Dialled { stream, lease } = dialled;
    let to = endpoint.address;
    let (sent, upgraded) = oneshot::channel();
    let shared = Rc::new(Shared {
        endpoint: endpoint.clone(),
        key: Key::new(endpoint, transport),
        cell: cell.cloned(),
        stream: RefCell::new(Some(stream)),
        lease: RefCell::new(Some(lease)),
        upgrading: Cell::new(false),
        upgraded: RefCell::new(Some(upgraded)),
    });
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(limits::HEAD_BYTES_MAX)
        .max_header_size(limits::HEAD_BYTES_MAX)
        .handshake(TokioIo::new(Stream(Rc::clone(&shared))))
        .await
        .map_err(|error| DialError::Unreachable { to, source: io::Error::other(error) })?;
    tokio::task::spawn_local(drive(connection, Rc::clone(&shared), sent));
    Ok(Upstream { sender, shared })
}

type Connection = http1::Connection<TokioIo<Stream>, RequestBody>;

async fn drive(mut connection: Connection, shared: Rc<Shared>, upgraded: oneshot::Sender<Bytes>) {
    match (&mut connection).await {
        Ok(()) if shared.upgrading.get() => {
            // Whoever sent the request has the socket from now on.
            let _ = upgraded.send(connection.into_parts().read_buf);
            return;
        }
        Ok(()) => {}
        Err(error) => {
            tracing::debug!(endpoint = %shared.endpoint.address, error = &error as &dyn std::error::Error, "upstream connection failed");
            if let Some(stream) = shared.stream.take() {
                dial::reset(stream);
            }
        }
    }
    shared.stream.take();
    shared.lease.take();
}

impl Upstream {
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.shared.endpoint
    }

    pub(crate) fn key(&self) -> &Key {
        &self.shared.key
    }

    /// Whether it can take a request now.
    pub(crate) fn is_ready(&self) -> bool {
        self.sender.is_ready()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Whether nothing has come on it: an end, or bytes that nobody asked for. What the kernel knows already the task may not.
    pub(crate) fn is_quiet(&self) -> bool {
        let stream = self.shared.stream.borrow();
        let Some(stream) = &*stream else { return false };
        tcp::is_quiet(stream)
    }

    /// Whether its endpoint still is one of its Service's.
    pub(crate) fn is_wanted(&self) -> bool {
        self.shared.cell.as_ref().is_none_or(|cell| cell.load().ready.contains(&self.shared.endpoint))
    }

    /// Says that the next request asks for an upgrade, or does not.
    pub(crate) fn set_upgrading(&self, upgrading: bool) {
        self.shared.upgrading.set(upgrading);
    }

    /// Sends a request. The error gives it back if none of it was sent.
    pub(crate) fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> impl Future<Output = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>> {
        self.sender.try_send_request(request)
    }
}

impl Shared {
    /// The socket of an upgraded connection, what was read of it, and what must live as long as it.
    pub(crate) async fn take_upgraded(&self) -> Option<(TcpStream, Bytes, Option<Lease>)> {
        let upgraded = self.upgraded.take()?;
        let early = upgraded.await.ok()?;
        Some((self.stream.take()?, early, self.lease.take()))
    }
}

/// The socket as hyper's client sees it.
struct Stream(Rc<Shared>);

impl Stream {
    fn with<T>(&self, act: impl FnOnce(Pin<&mut TcpStream>) -> Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match &mut *self.0.stream.borrow_mut() {
            Some(stream) => act(Pin::new(stream)),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.with(|stream| stream.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.with(|stream| stream.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_shutdown(cx))
    }
}
