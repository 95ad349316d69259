//! A connection that a captured pod made: what it was meant for, what it speaks, and on to the right place.

use std::{net::SocketAddr, rc::Rc, sync::Arc};

use bytes::Bytes;
use tokio::net::TcpStream;
use weft_policy::{
    endpoints::Endpoint,
    plan::{AppProtocol, Destination},
    snapshot::PlanHandle,
};

use crate::{
    balance::{EndpointLoad, InFlight},
    choose::{self, Choice},
    dial::{self, Dialled},
    drain::Phase,
    flows::{Direction, Flow, FlowEntry, FlowProtocol, bump},
    http, limits,
    metrics::Limit,
    reply::{LocalReply, Reason},
    sniff::{self, Sniffed},
    socket::Dial,
    tcp::{self, End, Side},
    worker::{Pod, Worker},
};

/// Serves one accepted connection until it ends.
pub(crate) async fn serve(worker: Rc<Worker>, pod: Rc<Pod>, stream: TcpStream, entry: FlowEntry) {
    let flow = Rc::clone(&entry.flow);
    let mut plan = PlanHandle::new(Arc::clone(&worker.snapshots), flow.destination);
    let destination = plan.current().cloned();
    let protocol = match &destination {
        Some(Destination::Service(plan)) => {
            *flow.service.borrow_mut() = Some((plan.service.clone(), plan.port));
            plan.protocol
        }
        Some(Destination::Pod(pod)) => pod.protocol(flow.destination.port()),
        // The snapshot does not know it any more: bytes, to where they were going.
        None => AppProtocol::Tcp,
    };
    let sniffed = tokio::select! {
        sniffed = sniff::sniff(&stream, protocol, &worker.config) => Some(sniffed),
        () = told_to_end(&stream, protocol, &flow) => None,
    };
    let Some(sniffed) = sniffed else {
        // In order: not a byte of it is lost.
        return drop(stream);
    };
    tracing::debug!(source = %pod.pod.name, peer = %flow.peer, destination = %flow.destination, ?protocol, ?sniffed, "captured");
    match sniffed {
        Ok((Sniffed::Http, _)) => http::server::serve(worker, pod, entry, stream, plan).await,
        Ok((Sniffed::Opaque, early)) => {
            opaque(&worker, &pod, &flow, Side { stream, early }, destination.as_ref()).await;
        }
        Ok((Sniffed::Ended, _)) => tcp::linger(stream, &worker.scratch).await,
        Ok((Sniffed::Silent, _)) => {
            worker.metrics.reached(Limit::HeaderReadTimeout);
            tcp::linger(stream, &worker.scratch).await;
        }
        Err(error) => {
            tracing::debug!(peer = %flow.peer, %error, "client connection failed before its first byte");
            dial::reset(stream);
        }
    }
}

/// Returns when a connection whose protocol is not known yet is to end. A drain ends those that have not said a word of HTTP: their
/// clients know that an idle connection may close. Others become known within a moment.
async fn told_to_end(stream: &TcpStream, protocol: AppProtocol, flow: &Flow) {
    let mut phase = Phase::Running;
    loop {
        phase = flow.control.changed(phase).await;
        if phase > Phase::Draining || (protocol == AppProtocol::Http && !tcp::has_unread(stream)) {
            return;
        }
    }
}

async fn opaque(worker: &Worker, pod: &Pod, flow: &Flow, downstream: Side, destination: Option<&Destination>) {
    flow.protocol.set(FlowProtocol::Tcp);
    bump(&flow.bytes_sent, downstream.early.len());
    let reached = tokio::select! {
        reached = reach(worker, pod, flow, destination) => reached,
        () = flow.control.cut() => return dial::reset(downstream.stream),
    };
    {
        let (service, backend) = (flow.service.borrow(), flow.backend.borrow());
        flow.open(pod.cells.connections(
            Direction::Outbound,
            service.as_ref().map(|(service, _)| service),
            backend.as_ref(),
        ));
    }
    let (Dialled { stream, lease }, in_flight) = match reached {
        Ok(reached) => reached,
        Err(reply) => {
            // Before any byte, so the client sees what it would see of a server that is not there.
            worker.metrics.resets.inc();
            worker.metrics.replied(reply.reason);
            tracing::debug!(source = %pod.pod.name, destination = %flow.destination, reason = reply.reason.word(), detail = reply.detail, "reset");
            return dial::reset(downstream.stream);
        }
    };
    let end = tcp::splice(downstream, Side { stream, early: Bytes::new() }, flow, &worker.scratch).await;
    if end == End::Cut {
        worker.metrics.resets.inc();
    }
    tracing::debug!(destination = %flow.destination, ?end, sent = flow.bytes_sent.get(), received = flow.bytes_received.get(), "closed");
    drop((lease, in_flight));
}

/// Connects to an endpoint of whatever the connection was meant for.
async fn reach(
    worker: &Worker,
    pod: &Pod,
    flow: &Flow,
    destination: Option<&Destination>,
) -> Result<(Dialled, InFlight), LocalReply> {
    let direct = |workload, node| EndpointLoad::new(Endpoint { address: flow.destination, workload, node });
    match destination {
        Some(Destination::Service(plan)) => {
            let split = plan.route_connection();
            let choice = choose::split(worker, split, plan.balance).map_err(|none| choose::no_backend(split, none))?;
            first(worker, pod, flow, choice).await
        }
        Some(Destination::Pod(plan)) => {
            first(worker, pod, flow, Choice::Pod(&direct(Some(plan.workload.clone()), plan.node.clone()))).await
        }
        None => first(worker, pod, flow, Choice::Pod(&direct(None, None))).await,
    }
}

/// Connects to the first endpoint that answers.
async fn first(worker: &Worker, pod: &Pod, flow: &Flow, choice: Choice<'_>) -> Result<(Dialled, InFlight), LocalReply> {
    let mut tried: Vec<SocketAddr> = Vec::new();
    let mut failure = None;
    while let Some(load) = choice.next(worker, flow.destination, &tried) {
        let endpoint = &load.endpoint;
        worker.authorize_endpoint(endpoint).map_err(|denied| {
            LocalReply::new(Reason::Denied, format_args!("connection to {}: {denied}", endpoint.address))
        })?;
        flow.chose(choice.backend().map(|backend| &backend.service), endpoint.address);
        let in_flight = load.begin();
        let dial = Dial::Outbound { source: &pod.pod, to: endpoint.address, to_workload: endpoint.workload.as_ref() };
        match dial::dial(worker, dial).await {
            Ok(dialled) => return Ok((dialled, in_flight)),
            Err(error) => {
                tried.push(endpoint.address);
                let last = !error.retryable() || tried.len() >= limits::CONNECT_TRIES_MAX;
                failure = Some(error);
                if last {
                    worker.metrics.reached(Limit::ConnectTries);
                    break;
                }
            }
        }
    }
    Err(choice.exhausted(failure.as_ref()))
}
