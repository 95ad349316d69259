//! Serves one client connection as HTTP/1.1 and ends it in the right way: in order, with a word, or abruptly.

use std::{convert::Infallible, future::Future, pin::Pin, rc::Rc};

use bytes::Bytes;
use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http1, service::Service};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use weft_policy::snapshot::PlanHandle;

use crate::{
    dial,
    drain::Phase,
    flows::{FlowEntry, FlowProtocol},
    http::{
        body::ResponseBody,
        exchange::{self, Link},
        upgrade,
        wire::{Waiting, Wire},
    },
    limits,
    metrics::Limit,
    reply::{self, Reason},
    tcp::{self, End},
    worker::{Pod, Worker},
};

/// The requests of one connection. The future is boxed, so that an idle connection does not hold room for a request.
struct Requests(Rc<Link>);

impl Service<Request<Incoming>> for Requests {
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>>>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        // From here on an answer is owed, not from the first poll on.
        let fault = self.0.turn.request_taken(&self.0.flow);
        Box::pin(exchange::exchange(Rc::clone(&self.0), request, fault))
    }
}

type Connection = http1::Connection<TokioIo<Wire>, Requests>;

/// How hyper's part of the connection came to its end.
enum Outcome {
    /// hyper is done.
    Done(hyper::Result<()>),
    /// The worker asked for it.
    Told(Phase),
}

/// Serves the connection until it ends.
pub(crate) async fn serve(worker: Rc<Worker>, pod: Rc<Pod>, entry: FlowEntry, stream: TcpStream, plan: PlanHandle) {
    let flow = &entry.flow;
    flow.protocol.set(FlowProtocol::Http);
    let service = flow.service.borrow().as_ref().map(|(service, _)| service.clone());
    flow.open(pod.cells.connections(flow.direction, service.as_ref(), None));
    let link = Rc::new(Link::new(Rc::clone(&worker), pod, Rc::clone(flow), plan, stream));
    let wire = Wire::new(Rc::clone(flow), Rc::clone(&link.turn), worker.config.clone(), worker.metrics.clone());
    let mut connection = http1::Builder::new()
        .half_close(false)
        .header_read_timeout(None)
        .max_buf_size(limits::HEAD_BYTES_MAX)
        .max_header_size(limits::HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(wire), Requests(Rc::clone(&link)));
    let outcome = drive(&link, &mut connection).await;
    let parts = connection.into_parts();
    // Ends a request that is still under way, before the socket is dealt with.
    drop((parts.service, parts.io));
    let Some(stream) = link.turn.take_stream() else { return };
    let upgrade = link.upgrade.take();
    match (outcome, upgrade) {
        (Outcome::Done(Ok(())), Some(upgrade)) => {
            let end = upgrade::run(upgrade, stream, parts.read_buf, flow, &worker.scratch).await;
            if end == End::Reset {
                worker.metrics.resets.inc();
            }
        }
        (outcome, _) => end(&link, outcome, stream, entry).await,
    }
}

async fn drive(link: &Link, connection: &mut Connection) -> Outcome {
    let mut phase = Phase::Running;
    loop {
        phase = tokio::select! {
            biased;
            done = &mut *connection => return Outcome::Done(done),
            phase = link.flow.control.changed(phase) => phase,
        };
        match phase {
            Phase::Running => {}
            Phase::Draining => {
                link.closing.set(true);
                // A request that the kernel has already and hyper does not know of yet is answered, and then is the last one.
                let coming = link.turn.waiting() == Waiting::Head || (!link.turn.owed() && link.turn.has_unread());
                if !coming {
                    Pin::new(&mut *connection).graceful_shutdown();
                }
            }
            Phase::TimedOut | Phase::Cut => return Outcome::Told(phase),
        }
    }
}

async fn end(link: &Link, outcome: Outcome, stream: TcpStream, entry: FlowEntry) {
    // All is said, or nobody listens: what is left is to be polite, and no drain waits for that.
    drop(entry);
    let metrics = &link.worker.metrics;
    match outcome {
        _ if link.turn.is_broken() => {
            metrics.resets.inc();
            dial::reset(stream);
        }
        Outcome::Done(Ok(())) => tcp::linger(stream, &link.worker.scratch).await,
        // The parser refused, and said so.
        Outcome::Done(Err(error)) if error.is_parse() => tcp::linger(stream, &link.worker.scratch).await,
        Outcome::Done(Err(error)) => {
            tracing::debug!(peer = %link.flow.peer, error = &error as &dyn std::error::Error, "client connection failed");
            dial::reset(stream);
        }
        Outcome::Told(Phase::Cut) if link.turn.owed() => {
            metrics.resets.inc();
            dial::reset(stream);
        }
        Outcome::Told(Phase::TimedOut) => timed_out(link, stream).await,
        Outcome::Told(_) => drop(stream),
    }
}

async fn timed_out(link: &Link, stream: TcpStream) {
    let metrics = &link.worker.metrics;
    match link.turn.waiting() {
        Waiting::Request => {
            metrics.reached(Limit::DownstreamIdleTimeout);
            tcp::linger(stream, &link.worker.scratch).await;
        }
        Waiting::Head => {
            metrics.reached(Limit::HeaderReadTimeout);
            metrics.replied(Reason::HeadTimeout);
            let within = link.worker.config.header_read_timeout.as_secs_f32();
            let answer: Bytes =
                reply::raw(Reason::HeadTimeout, &format!("request head was not complete within {within} s"));
            // If the socket does not take it now, the client does not read.
            let _ = stream.try_write(&answer);
            tcp::linger(stream, &link.worker.scratch).await;
        }
        Waiting::Answer | Waiting::AnswerHalfClosed => {
            metrics.reached(Limit::HalfClosedGrace);
            dial::reset(stream);
        }
    }
}
