//! A bound: hyper, one thread, nothing shared, the split and a counter, and nothing else. What weft's proxy adds to this is what its
//! policy, its metrics and its limits cost.

use std::{
    cell::{Cell, RefCell},
    net::{SocketAddr, TcpListener},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use anyhow::Result;
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::{
    body::Incoming,
    client::conn::http1::{self as client, SendRequest},
    server::conn::http1 as server,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::split::Split;

struct Upstream {
    address: SocketAddr,
    /// Idle connections, the one used last on top.
    idle: RefCell<Vec<SendRequest<Incoming>>>,
    requests: Cell<u64>,
}

struct Proxy {
    split: RefCell<Split>,
    upstreams: [Rc<Upstream>; 2],
}

/// Serves until the process ends.
///
/// # Errors
/// When the kernel refuses to accept.
pub fn serve(listener: TcpListener, backends: [SocketAddr; 2]) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let upstream = |address| Rc::new(Upstream { address, idle: RefCell::default(), requests: Cell::new(0) });
    let proxy = Rc::new(Proxy { split: RefCell::new(Split::new(1)), upstreams: backends.map(upstream) });
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let proxy = Rc::clone(&proxy);
            tokio::task::spawn_local(async move {
                let service = service_fn(|request| proxy.carry(request));
                // A client that breaks its connection is nobody's error here.
                server::Builder::new().serve_connection(TokioIo::new(stream), service).await.ok();
            });
        }
    })
}

impl Proxy {
    async fn carry(&self, request: Request<Incoming>) -> Result<Response<Lent>> {
        let choice = self.split.borrow_mut().choose();
        let upstream = Rc::clone(&self.upstreams[choice]);
        upstream.requests.set(upstream.requests.get() + 1);
        let mut sender = upstream.sender().await?;
        let (head, body) = sender.send_request(request).await?.into_parts();
        Ok(Response::from_parts(head, Lent { body, loan: Some((sender, upstream)) }))
    }
}

impl Upstream {
    async fn sender(&self) -> Result<SendRequest<Incoming>> {
        loop {
            let Some(mut sender) = self.idle.borrow_mut().pop() else { return self.dial().await };
            if sender.ready().await.is_ok() {
                return Ok(sender);
            }
        }
    }

    async fn dial(&self) -> Result<SendRequest<Incoming>> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = client::handshake(TokioIo::new(stream)).await?;
        tokio::task::spawn_local(connection);
        Ok(sender)
    }
}

/// A response's body; its connection goes back to the pool at its end.
struct Lent {
    body: Incoming,
    loan: Option<(SendRequest<Incoming>, Rc<Upstream>)>,
}

impl Lent {
    fn give_back(&mut self) {
        if let Some((sender, upstream)) = self.loan.take() {
            upstream.idle.borrow_mut().push(sender);
        }
    }
}

impl Body for Lent {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        match &polled {
            Poll::Ready(None) => self.give_back(),
            Poll::Ready(Some(Ok(_))) if self.body.is_end_stream() => self.give_back(),
            Poll::Ready(_) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{bounds_tests, poll};

    fn start() -> SocketAddr {
        let backends = bounds_tests::backends();
        let listener = poll::listen(([127, 0, 0, 1], 0).into()).expect("listens");
        let address = listener.local_addr().expect("address");
        std::thread::spawn(move || serve(listener, backends));
        address
    }

    #[test]
    fn requests_are_split_ninety_to_ten() {
        bounds_tests::splits_requests(start());
    }

    #[test]
    fn a_request_in_pieces_is_carried() {
        bounds_tests::carries_pieces(start());
    }
}
