//! Serves one client connection as HTTP/1.1 and ends it in the right way: in order, with a word, or abruptly.

use std::{convert::Infallible, future::Future, pin::Pin, rc::Rc};

use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http1, service::Service};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use weft_policy::snapshot::PlanHandle;

use crate::{
    dial,
    drain::Phase,
    early::Early,
    flows::{Flow, FlowEntry},
    http::{
        body::ResponseBody,
        exchange::exchange,
        link::{Downstream, Link, OneByOne, Outcome, Record},
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
struct Requests {
    link: Rc<Link>,
    one: Rc<OneByOne>,
}

impl Service<Request<Incoming>> for Requests {
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>>>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        // From here on an answer is owed, not from the first poll on.
        let fault = self.one.turn.request_taken(&self.link.flow);
        let record = Record::begin(&self.link, Rc::clone(&self.one.meter));
        Box::pin(exchange(record, request, fault))
    }
}

type Connection = http1::Connection<TokioIo<Wire>, Requests>;

/// Serves the connection until it ends.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    pod: Rc<Pod>,
    entry: FlowEntry,
    stream: TcpStream,
    plan: PlanHandle,
    early: Option<Early>,
) {
    let flow = &entry.flow;
    let one = Rc::new(OneByOne::new(stream));
    let downstream = Downstream::Http1(Rc::clone(&one));
    let link = Rc::new(Link::open(Rc::clone(&worker), pod, Rc::clone(flow), plan, downstream, early));
    let wire = Wire::new(Rc::clone(flow), Rc::clone(&one.turn), worker.config.clone(), worker.metrics.clone());
    let mut connection = http1::Builder::new()
        .half_close(false)
        .header_read_timeout(None)
        .max_buf_size(limits::HEAD_BYTES_MAX)
        .max_header_size(limits::HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(wire), Requests { link, one: Rc::clone(&one) });
    let outcome = drive(flow, &one, &mut connection).await;
    let parts = connection.into_parts();
    // Ends a request that is still under way, before the socket is dealt with.
    drop((parts.service, parts.io));
    let Some(stream) = one.turn.take_stream() else { return };
    let upgrade = one.upgrade.take();
    match (outcome, upgrade) {
        (Outcome::Done(Ok(())), Some(upgrade)) => {
            let end = upgrade::run(upgrade, stream, parts.read_buf, flow, &worker.scratch).await;
            if end != End::Finished {
                worker.metrics.resets.inc();
            }
        }
        (outcome, _) => end(&worker, &one, outcome, stream, entry).await,
    }
}

async fn drive(flow: &Flow, one: &OneByOne, connection: &mut Connection) -> Outcome {
    let mut phase = Phase::Running;
    loop {
        phase = tokio::select! {
            biased;
            done = &mut *connection => return Outcome::Done(done),
            phase = flow.control.changed(phase) => phase,
        };
        match phase {
            Phase::Running => {}
            Phase::Draining => {
                one.closing.set(true);
                // A request that the kernel has already and hyper does not know of yet is answered, and then is the last one.
                let coming = one.turn.waiting() == Waiting::Head || (!one.turn.owed() && one.turn.has_unread());
                if !coming {
                    Pin::new(&mut *connection).graceful_shutdown();
                }
            }
            Phase::TimedOut | Phase::Cut => return Outcome::Told(phase),
        }
    }
}

async fn end(worker: &Worker, one: &OneByOne, outcome: Outcome, stream: TcpStream, entry: FlowEntry) {
    let peer = entry.flow.peer;
    // All is said, or nobody listens: what is left is to be polite, and no drain waits for that.
    drop(entry);
    let metrics = &worker.metrics;
    match outcome {
        _ if one.turn.is_broken() => {
            metrics.resets.inc();
            dial::reset(stream);
        }
        Outcome::Done(Ok(())) => tcp::linger(stream, &worker.scratch).await,
        // The parser refused, and said so.
        Outcome::Done(Err(error)) if error.is_parse() => tcp::linger(stream, &worker.scratch).await,
        Outcome::Done(Err(error)) if error.is_incomplete_message() && !one.turn.owed() => {
            let detail = "client ended its side within the head of a request";
            refuse(worker, stream, Reason::MalformedRequest, detail).await;
        }
        Outcome::Done(Err(error)) => {
            metrics.resets.inc();
            tracing::debug!(%peer, error = &error as &dyn std::error::Error, "client connection failed");
            dial::reset(stream);
        }
        Outcome::Told(Phase::Cut) if one.turn.owed() => {
            metrics.resets.inc();
            dial::reset(stream);
        }
        Outcome::Told(Phase::TimedOut) => timed_out(worker, one, stream).await,
        Outcome::Told(_) => drop(stream),
    }
}

async fn timed_out(worker: &Worker, one: &OneByOne, stream: TcpStream) {
    let metrics = &worker.metrics;
    match one.turn.waiting() {
        Waiting::Request => {
            metrics.reached(Limit::DownstreamIdleTimeout);
            tcp::linger(stream, &worker.scratch).await;
        }
        Waiting::Head => {
            metrics.reached(Limit::HeaderReadTimeout);
            let within = worker.config.header_read_timeout.as_secs_f32();
            let detail = format!("request head was not complete within {within} s");
            refuse(worker, stream, Reason::HeadTimeout, &detail).await;
        }
        Waiting::Answer | Waiting::AnswerHalfClosed => {
            metrics.reached(Limit::HalfClosedGrace);
            dial::reset(stream);
        }
    }
}

/// Answers a request that hyper never saw, and ends the connection.
async fn refuse(worker: &Worker, stream: TcpStream, reason: Reason, detail: &str) {
    worker.metrics.replied(reason);
    tcp::say(stream, &reply::raw(reason, detail), &worker.scratch).await;
}
