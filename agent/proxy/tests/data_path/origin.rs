//! Servers that tests forward to.

use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use crate::{mesh::soon, wire::Wire};

/// A socket that a test accepts from by hand.
pub(crate) struct Origin {
    pub(crate) listener: TcpListener,
    pub(crate) address: SocketAddr,
}

impl Origin {
    pub(crate) async fn bind() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        Self { address: listener.local_addr().unwrap(), listener }
    }

    pub(crate) async fn accept(&self) -> Wire {
        let (stream, _) = soon(self.listener.accept()).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Wire::new(stream)
    }
}

/// An address that refuses connections: it was bound a moment ago, and is held without listening.
pub(crate) fn refusing() -> (SocketAddr, socket2::Socket) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    (socket.local_addr().unwrap().as_socket().unwrap(), socket)
}

/// A real HTTP server that answers with its name, what it got, and how many connections it has seen.
#[derive(Clone)]
pub(crate) struct Named {
    pub(crate) address: SocketAddr,
    pub(crate) connections: Arc<AtomicUsize>,
    pub(crate) requests: Arc<AtomicUsize>,
}

impl Named {
    /// One that is given its connections.
    pub(crate) fn given(name: &'static str, mut connections: mpsc::UnboundedReceiver<std::net::TcpStream>) -> Self {
        let named = Self {
            address: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            connections: Arc::default(),
            requests: Arc::default(),
        };
        let running = named.clone();
        tokio::spawn(async move {
            while let Some(stream) = connections.recv().await {
                running.connections.fetch_add(1, Ordering::SeqCst);
                stream.set_nonblocking(true).unwrap();
                tokio::spawn(running.clone().serve(TcpStream::from_std(stream).unwrap(), name));
            }
        });
        named
    }

    pub(crate) async fn start(name: &'static str) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let named =
            Self { address: listener.local_addr().unwrap(), connections: Arc::default(), requests: Arc::default() };
        let running = named.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                running.connections.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(running.clone().serve(stream, name));
            }
        });
        named
    }

    async fn serve(self, stream: TcpStream, name: &'static str) {
        let service = service_fn(move |request: Request<Incoming>| {
            self.requests.fetch_add(1, Ordering::SeqCst);
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
                let mut response = Response::builder().header("x-name", name).header("x-target", parts.uri.to_string());
                for (field, value) in &parts.headers {
                    response = response.header(format!("got-{field}"), value);
                }
                let body = if body.is_empty() { Bytes::from(name) } else { body };
                Ok::<_, Infallible>(response.body(Full::new(body)).unwrap())
            }
        });
        // Clients that go away are no failure of the server.
        let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    }
}
