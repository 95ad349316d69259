//! A connection made to a captured pod from elsewhere. If another agent made it, its certificate says who asks, and what it carries is
//! served like what this node's own pods ask for. Whoever else made it nobody can tell: policy is asked once, then the application is
//! dialled as the client, and what is carried is opaque.

mod refuse;

use std::{future::poll_fn, io, pin::pin, rc::Rc, sync::Arc};

use bytes::Bytes;
use rustix::net::RecvFlags;
use tokio::{
    io::{Interest, ReadBuf},
    net::TcpStream,
    time::timeout,
};
use weft_identity::{Alpn, tls};
use weft_policy::{names::ServiceKey, snapshot::PlanHandle};

use crate::{
    access::{Admitted, Asks, Passage},
    detect,
    dial::{self, Dialled},
    flows::{Direction, FlowEntry, FlowProtocol, bump},
    hello::{Progress, Reader},
    http,
    limits::{self, TLS_RECORD_BYTES_MAX},
    metrics::Limit,
    mutual::{self, Accepted},
    reply::Reason,
    socket::{Dial, SocketError},
    stream::Stream,
    tcp::{self, End, Side},
    transport::Encryption,
    worker::{Pod, Worker},
};

/// Serves one accepted connection until it ends.
pub(crate) async fn serve(worker: Rc<Worker>, pod: Rc<Pod>, stream: TcpStream, entry: FlowEntry) {
    // From such a port a `ClientHello` follows, and until it is there nothing is to be heard of the server.
    let stream = if worker.sockets.is_tls_port(entry.flow.peer.port()) {
        Some(stream)
    } else {
        Box::pin(plaintext(&worker, &pod, stream, &entry)).await
    };
    if let Some(stream) = stream {
        Box::pin(mutual(worker, pod, stream, entry)).await;
    }
}

/// Serves a client that nobody vouches for. Gives the connection back if it turns out to be another agent's, whose port was changed on
/// the way.
async fn plaintext(worker: &Rc<Worker>, pod: &Rc<Pod>, stream: TcpStream, entry: &FlowEntry) -> Option<TcpStream> {
    let flow = &entry.flow;
    flow.protocol.set(FlowProtocol::Tcp);
    flow.encryption.set(Some(Encryption::None));
    if let Err(denial) = worker.admit_stranger(&pod.pod, flow.destination) {
        let may_be_agent = worker.credentials.is_some();
        if may_be_agent && tls_comes(worker, &stream).await && is_agents(worker, &stream).await {
            return Some(stream);
        }
        flow.open(pod.cells.connections(Direction::Inbound, None, None));
        worker.metrics.replied(Reason::Denied);
        worker.report(flow, &denial);
        refuse::refuse(worker, flow, stream).await;
        return None;
    }
    let Some(Dialled { stream: application, lease }) = reach(worker, pod, entry).await else {
        flow.open(pod.cells.connections(Direction::Inbound, None, None));
        dial::reset(stream);
        return None;
    };
    let mut early = Bytes::new();
    if worker.credentials.is_some() {
        let is_agents = tokio::select! {
            biased;
            // A server that speaks first does not wait for what a client may say.
            _ = application.ready(Interest::READABLE) => false,
            is_agents = is_agents(worker, &stream) => is_agents,
            () = flow.control.cut() => false,
        };
        if is_agents {
            dial::reset(application);
            return Some(stream);
        }
        // A look at them may have cleared the readiness.
        match detect::take(&stream) {
            Ok(bytes) => early = bytes,
            Err(error) => {
                tracing::debug!(peer = %flow.peer, %error, "client connection failed");
                dial::reset(application);
                dial::reset(stream);
                return None;
            }
        }
        bump(&flow.bytes_sent, early.len());
    }
    flow.open(pod.cells.connections(Direction::Inbound, None, None));
    *flow.passage.borrow_mut() = Some(Passage::new(pod.pod.id.clone(), flow.destination, None));
    carry(worker, entry, Side::new(stream, early), application).await;
    drop(lease);
    None
}

/// Serves another agent: shows and checks certificates, and then carries what it brings for one pod of its node.
async fn mutual(worker: Rc<Worker>, pod: Rc<Pod>, stream: TcpStream, entry: FlowEntry) {
    let flow = Rc::clone(&entry.flow);
    let accepted = tokio::select! {
        accepted = mutual::accept(&worker, &pod.pod, stream) => accepted,
        () = flow.control.cut() => return,
    };
    let Accepted { stream, alpn, remote } = match accepted {
        Ok(accepted) => accepted,
        // A client's agent that found another way meanwhile.
        Err(refused) if refused.is_left() => {
            tracing::debug!(client = %flow.peer, to = %flow.destination, "a handshake was not begun or not finished");
            return;
        }
        Err(refused) => {
            worker.metrics.resets.inc();
            if let Some(unsaid) = worker.warnings.due("handshake") {
                tracing::warn!(
                    target: "weft::access", client = %flow.peer, destination_namespace = %pod.pod.namespace,
                    destination_pod = %pod.pod.name, to = %flow.destination, because = %refused, unsaid,
                    "mutual TLS was refused"
                );
            }
            return;
        }
    };
    let account = remote.account();
    let client = ServiceKey { namespace: Arc::clone(&account.namespace), name: Arc::clone(&account.name) };
    *flow.service.borrow_mut() = Some((client.clone(), 0));
    flow.encryption.set(Some(Encryption::MutualTls));
    // There is one handshake to a flow.
    _ = flow.remote.set(remote);
    flow.open(pod.cells.connections(Direction::Inbound, Some(&client), None));
    match alpn {
        Alpn::H2 => {
            let plan = PlanHandle::new(Arc::clone(&worker.snapshots), flow.destination);
            http::server2::serve(worker, pod, entry, stream, plan, None).await;
        }
        Alpn::Tcp => bytes(&worker, &pod, stream, &entry).await,
    }
}

/// Carries bytes whose client has proved who it is.
async fn bytes(worker: &Rc<Worker>, pod: &Rc<Pod>, stream: Stream, entry: &FlowEntry) {
    let flow = &entry.flow;
    flow.protocol.set(FlowProtocol::Tcp);
    let ask = |asks| match flow.remote.get() {
        Some(remote) => worker.admit_remote(remote, &pod.pod, flow.destination, asks),
        None => worker.admit_stranger(&pod.pod, flow.destination).map(|()| Admitted::Anything),
    };
    let mut admitted = ask(Asks::Connect);
    if let Ok(Admitted::Requests) = admitted {
        // The other agent listens for a server that speaks first, and has not heard its client yet, who may be about to ask in HTTP.
        let waited = tokio::select! {
            waited = timeout(worker.config.header_read_timeout, says_something(&stream)) => waited,
            () = flow.control.cut() => return,
        };
        if !matches!(waited, Ok(Ok(true))) {
            return;
        }
        admitted = ask(Asks::Bytes);
    }
    if let Err(denial) = admitted {
        worker.metrics.replied(Reason::Denied);
        worker.metrics.resets.inc();
        worker.report(flow, &denial);
        return stream.reset();
    }
    *flow.passage.borrow_mut() = Some(Passage::new(pod.pod.id.clone(), flow.destination, None));
    let Some(Dialled { stream: application, lease }) = reach(worker, pod, entry).await else {
        return stream.reset();
    };
    carry(worker, entry, Side::new(stream, Bytes::new()), application).await;
    drop(lease);
}

/// Whether the other end says anything before it ends.
async fn says_something(stream: &Stream) -> io::Result<bool> {
    let mut byte = [0];
    let mut byte = ReadBuf::new(&mut byte);
    poll_fn(|cx| stream.poll_read(cx, &mut byte)).await?;
    Ok(!byte.filled().is_empty())
}

/// Connects to the application as the client.
async fn reach(worker: &Worker, pod: &Pod, entry: &FlowEntry) -> Option<Dialled> {
    let flow = &entry.flow;
    let dial = Dial::Inbound { pod: &pod.pod, client: flow.peer, to: flow.destination };
    let dialled = tokio::select! {
        dialled = dial::dial(worker, dial) => dialled,
        () = flow.control.cut() => return None,
    };
    match dialled {
        Ok(dialled) => Some(dialled),
        Err(error) => {
            if matches!(&error, dial::DialError::Socket { source: SocketError::PortsExhausted { .. }, .. }) {
                worker.limit_reached(
                    Limit::TransparentPorts,
                    "no transparent source port is left for an inbound connection",
                );
            }
            worker.metrics.resets.inc();
            None
        }
    }
}

async fn carry(worker: &Worker, entry: &FlowEntry, downstream: Side, application: TcpStream) {
    let flow = &entry.flow;
    flow.endpoint.set(Some(flow.destination));
    let end = tcp::splice(downstream, Side::new(application, Bytes::new()), flow, &worker.scratch).await;
    if end == End::Cut {
        worker.metrics.resets.inc();
    }
    tracing::debug!(pod = %flow.pod.name, client = %flow.peer, to = %flow.destination, ?end, "inbound connection closed");
}

/// Whether a client that is about to be refused begins a handshake of TLS soon.
async fn tls_comes(worker: &Worker, stream: &TcpStream) -> bool {
    let detected = timeout(worker.config.refusal_wait, detect::client(stream, false, worker)).await;
    matches!(detected, Ok(Ok(detect::Detected::Tls)))
}

/// Whether a client begins with a handshake that is for an agent. Looks only; waits as long as the client says nothing.
async fn is_agents(worker: &Worker, stream: &TcpStream) -> bool {
    let mut hello = pin!(hello(stream));
    // The first byte may take for ever, the others only as long as a handshake may.
    if stream.ready(Interest::READABLE).await.is_err() {
        return false;
    }
    matches!(timeout(worker.config.tls_handshake_timeout, &mut hello).await, Ok(Ok(true)))
}

/// Looks at a `ClientHello` until it says which protocols it offers.
async fn hello(stream: &TcpStream) -> io::Result<bool> {
    let mut buffer = Vec::new();
    loop {
        let complete = stream.ready(Interest::READABLE).await?.is_read_closed();
        let looked = stream.try_io(Interest::READABLE, || {
            if buffer.is_empty() {
                // Most clients are no agents, and the first byte shows it.
                let mut first = [0];
                let (_, read) = rustix::net::recv(stream, &mut first[..], RecvFlags::PEEK | RecvFlags::DONTWAIT)?;
                if read == 0 || first[0] != detect::HANDSHAKE {
                    return Ok(false);
                }
                buffer.resize(limits::HELLO_BYTES_MAX + TLS_RECORD_BYTES_MAX, 0);
            }
            let (_, read) = rustix::net::recv(stream, &mut buffer[..], RecvFlags::PEEK | RecvFlags::DONTWAIT)?;
            match Reader::default().feed(&buffer[..read]) {
                Progress::Done(hello) => Ok(hello.alpn.iter().any(|name| tls::is_weft(name.as_bytes()))),
                Progress::Invalid | Progress::TooLong => Ok(false),
                // Nothing follows. A side that has ended stays ready, so waiting would spin.
                Progress::More if complete || read == buffer.len() => Ok(false),
                // The next look waits for new bytes.
                Progress::More => Err(io::ErrorKind::WouldBlock.into()),
            }
        });
        match looked {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            outcome => return outcome,
        }
    }
}
