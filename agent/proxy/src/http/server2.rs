//! Serves one client connection as HTTP/2 and ends it in the right way: with two GOAWAY frames, with one, or abruptly.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    rc::Rc,
    task::Poll,
};

use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http2, service::Service};
use hyper_util::rt::TokioIo;
use weft_policy::snapshot::PlanHandle;

use crate::{
    drain::Phase,
    early::Early,
    flows::{Flow, FlowEntry},
    http::{
        body::{Meter, ResponseBody},
        exchange::exchange,
        frames::code,
        link::{Downstream, Link, Outcome, Record},
        wire2::{Session, Waiting, Wire},
    },
    limits,
    metrics::Limit,
    stream::Stream,
    tcp,
    worker::{Pod, Worker},
};

/// The requests of one connection.
struct Requests {
    link: Rc<Link>,
    session: Rc<Session>,
}

impl Service<Request<Incoming>> for Requests {
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>>>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let meter = Rc::<Meter>::default();
        self.session.request_taken(&meter);
        Box::pin(exchange(Record::begin(&self.link, meter), request, None))
    }
}

/// Runs hyper's tasks, one for each request, on the worker's thread; and ends those whose answer nobody takes.
#[derive(Clone)]
struct Tasks {
    link: Rc<Link>,
    session: Rc<Session>,
}

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, task: F) {
        let meter = self.session.task_for().unwrap_or_default();
        tokio::task::spawn_local(answered(task, meter, Rc::clone(&self.link)));
    }
}

/// Runs a request's task; drops it, which resets its stream, if a part of its answer waits for the client's window for too long.
async fn answered<F: Future<Output = ()>>(task: F, meter: Rc<Meter>, link: Rc<Link>) {
    let mut task = pin!(task);
    let (mut timer, mut handed) = (None, 0);
    let stalled = poll_fn(|cx| {
        if task.as_mut().poll(cx).is_ready() {
            return Poll::Ready(false);
        }
        if !meter.held.get() {
            timer = None;
            return Poll::Pending;
        }
        if handed != meter.handed.get() {
            handed = meter.handed.get();
            timer = None;
        }
        let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(link.worker.config.h2_stall_timeout)));
        timer.as_mut().poll(cx).map(|()| true)
    })
    .await;
    if stalled {
        link.worker.metrics.reached(Limit::H2Stall);
        tracing::debug!(peer = %link.flow.peer, "client does not take an answer");
    }
}

type Connection = http2::Connection<TokioIo<Wire>, Requests, Tasks>;

/// Serves the connection until it ends.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    pod: Rc<Pod>,
    entry: FlowEntry,
    stream: Stream,
    plan: PlanHandle,
    early: Option<Early>,
) {
    let flow = &entry.flow;
    let session = Rc::new(Session::new(Rc::clone(flow), worker.config.clone(), worker.metrics.clone(), stream));
    let downstream = Downstream::Http2(Rc::clone(&session));
    let link = Rc::new(Link::open(Rc::clone(&worker), pod, Rc::clone(flow), plan, downstream, early));
    let tasks = Tasks { link: Rc::clone(&link), session: Rc::clone(&session) };
    let mut builder = http2::Builder::new(tasks);
    if flow.remote.get().is_some() {
        // Other agents carry upgraded connections so.
        builder.enable_connect_protocol();
    }
    let mut connection = builder
        .max_concurrent_streams(limits::H2_STREAMS_MAX)
        .initial_stream_window_size(limits::H2_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::H2_WINDOW_BYTES)
        .max_frame_size(limits::H2_FRAME_BYTES_MAX)
        .max_header_list_size(limits::HEAD_BYTES_MAX as u32)
        .header_table_size(limits::H2_HEADER_TABLE_BYTES)
        .max_send_buf_size(limits::H2_SEND_BUFFER_BYTES)
        .max_local_error_reset_streams(limits::H2_ERROR_RESETS_MAX)
        .max_pending_accept_reset_streams(limits::H2_PENDING_RESETS_MAX)
        .serve_connection(
            TokioIo::new(Wire::new(Rc::clone(&session))),
            Requests { link, session: Rc::clone(&session) },
        );
    let outcome = drive(flow, &session, &mut connection).await;
    // Ends requests that are still under way, before the socket is dealt with.
    drop(connection);
    let Some(stream) = session.take_stream() else { return };
    end(&worker, &session, outcome, stream, entry).await;
}

async fn drive(flow: &Flow, session: &Session, connection: &mut Connection) -> Outcome {
    let mut phase = Phase::Running;
    loop {
        phase = tokio::select! {
            biased;
            done = &mut *connection => return Outcome::Done(done),
            phase = flow.control.changed(phase) => phase,
        };
        match phase {
            Phase::Running => {}
            // Its first words have not come, and may never.
            Phase::Draining if !session.has_begun() && !session.has_unread() => return Outcome::Told(phase),
            // The first GOAWAY names no stream; the second one, after a round trip, the last (RFC 9113 6.8).
            Phase::Draining => Pin::new(&mut *connection).graceful_shutdown(),
            Phase::TimedOut | Phase::Cut => return Outcome::Told(phase),
        }
    }
}

async fn end(worker: &Worker, session: &Session, outcome: Outcome, stream: Stream, entry: FlowEntry) {
    let peer = entry.flow.peer;
    // All is said, or nobody listens: what is left is to be polite, and no drain waits for that.
    drop(entry);
    let metrics = &worker.metrics;
    if let Some(limit) = session.refused() {
        metrics.reached(limit);
        tracing::debug!(%peer, ?limit, "client's frames only make work");
        return say(worker, session, stream, code::ENHANCE_YOUR_CALM, "too_many_overhead_frames").await;
    }
    match outcome {
        Outcome::Done(Ok(())) => tcp::linger(stream, &worker.scratch).await,
        Outcome::Done(Err(error)) => {
            tracing::debug!(%peer, error = &error as &dyn std::error::Error, "client connection failed");
            // What hyper said of it is on its way; a reset would take it back.
            tcp::linger(stream, &worker.scratch).await;
        }
        Outcome::Told(Phase::Cut) if session.owed() => {
            metrics.resets.inc();
            stream.reset();
        }
        Outcome::Told(Phase::TimedOut) => match session.waiting() {
            Waiting::Request => {
                metrics.reached(Limit::DownstreamIdleTimeout);
                say(worker, session, stream, code::NO_ERROR, "idle").await;
            }
            Waiting::Head => {
                metrics.reached(Limit::HeaderReadTimeout);
                say(worker, session, stream, code::ENHANCE_YOUR_CALM, "head_timeout").await;
            }
            Waiting::Window | Waiting::Answer => {
                metrics.reached(Limit::H2Stall);
                stream.reset();
            }
        },
        Outcome::Told(_) => say(worker, session, stream, code::NO_ERROR, "draining").await,
    }
}

/// Ends the connection with a GOAWAY of our own, if one can still be said.
async fn say(worker: &Worker, session: &Session, stream: Stream, code: u32, words: &str) {
    if let Some(word) = session.last_word(code, words) {
        tcp::say(stream, &word, &worker.scratch).await;
    } else {
        tcp::linger(stream, &worker.scratch).await;
    }
}
