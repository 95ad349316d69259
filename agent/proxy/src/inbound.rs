//! A connection made to a captured pod from elsewhere: its policy is asked, then the application is dialled as the client. What is
//! carried is opaque: who the client is nobody can tell, so no grant of requests can be for it.

mod refuse;

use std::rc::Rc;

use bytes::Bytes;
use tokio::net::TcpStream;

use crate::{
    access::Passage,
    dial::{self, Dialled},
    flows::{Direction, FlowEntry, FlowProtocol},
    metrics::Limit,
    reply::Reason,
    socket::{Dial, SocketError},
    tcp::{self, End, Side},
    worker::{Pod, Worker},
};

/// Serves one accepted connection until it ends.
pub(crate) async fn serve(worker: Rc<Worker>, pod: Rc<Pod>, stream: TcpStream, entry: FlowEntry) {
    let flow = &entry.flow;
    flow.protocol.set(FlowProtocol::Tcp);
    flow.open(pod.cells.connections(Direction::Inbound, None, None));
    if let Err(denial) = worker.admit_stranger(&pod.pod, flow.destination) {
        worker.metrics.replied(Reason::Denied);
        worker.report(flow, &denial);
        return Box::pin(refuse::refuse(&worker, flow, stream)).await;
    }
    let passage = Passage::new(pod.pod.id.clone(), flow.destination, None);
    *flow.passage.borrow_mut() = Some(passage);
    let dial = Dial::Inbound { pod: &pod.pod, client: flow.peer, to: flow.destination };
    let dialled = tokio::select! {
        dialled = dial::dial(&worker, dial) => dialled,
        () = flow.control.cut() => return dial::reset(stream),
    };
    let Dialled { stream: application, lease } = match dialled {
        Ok(dialled) => dialled,
        Err(error) => {
            if matches!(&error, dial::DialError::Socket { source: SocketError::PortsExhausted { .. }, .. }) {
                worker.limit_reached(
                    Limit::TransparentPorts,
                    "no transparent source port is left for an inbound connection",
                );
            }
            worker.metrics.resets.inc();
            return dial::reset(stream);
        }
    };
    flow.endpoint.set(Some(flow.destination));
    let downstream = Side { stream, early: Bytes::new() };
    let upstream = Side { stream: application, early: Bytes::new() };
    let end = tcp::splice(downstream, upstream, flow, &worker.scratch).await;
    if end == End::Cut {
        worker.metrics.resets.inc();
    }
    tracing::debug!(pod = %pod.pod.name, client = %flow.peer, to = %flow.destination, ?end, "inbound connection closed");
    drop(lease);
}
