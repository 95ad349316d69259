//! Live connections: what each one is, and the rows that people see of them.

use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Serialize;
use weft_policy::names::ServiceKey;

use crate::{
    access::Passage,
    drain::{Control, Phase},
    hello::Hello,
    metrics::ConnectionCells,
    mutual::Remote,
    socket::LocalPod,
    transport::Encryption,
};

/// Which way a captured connection goes, seen from the pod whose listener took it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// The pod made it.
    Outbound,
    /// It was made to the pod.
    Inbound,
}

impl Direction {
    /// The word for labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// What a connection turned out to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowProtocol {
    /// Not known yet.
    Detecting,
    /// HTTP/1.
    Http,
    /// HTTP/2.
    Http2,
    /// TLS, passed through.
    Tls,
    /// HTTP/1 that was upgraded to something else.
    Upgraded,
    /// Bytes.
    Tcp,
}

/// One live connection, as people see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FlowRow {
    /// Which way it goes.
    pub direction: Direction,
    /// Outbound: namespace/workload/pod. Inbound: the client's address.
    pub source: String,
    /// Outbound: the Service and its port, or the pod's address. Inbound: namespace/workload/pod and port.
    pub destination: String,
    /// The backend of the last choice.
    pub backend: Option<String>,
    /// The address that the last choice was dialled at.
    pub endpoint: Option<String>,
    /// What it speaks.
    pub protocol: FlowProtocol,
    /// The server that the client of a TLS connection asks for.
    pub server_name: Option<String>,
    /// The protocols that it offers (ALPN), its favourite first.
    pub alpn: Vec<String>,
    /// Since it was accepted, ms.
    pub age_ms: u64,
    /// Requests begun so far.
    pub requests: u64,
    /// From source to destination so far: of HTTP the bytes on the source's wire, else those taken from it.
    pub bytes_sent: u64,
    /// From destination to source so far.
    pub bytes_received: u64,
    /// How the last choice was reached, or how the client came.
    pub encryption: Option<Encryption>,
    /// The SPIFFE ID that the other agent has proved: the client's if inbound, the server's if outbound and opaque.
    pub peer_identity: Option<String>,
    /// The worker that carries it.
    pub worker: usize,
}

/// One live connection. Shared by its task, its sockets and the worker's table.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) direction: Direction,
    /// The pod that it belongs to: the source if outbound, the destination if inbound.
    pub(crate) pod: Arc<LocalPod>,
    pub(crate) peer: SocketAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) started: Instant,
    pub(crate) control: Control,
    pub(crate) protocol: Cell<FlowProtocol>,
    pub(crate) service: RefCell<Option<(ServiceKey, u16)>>,
    pub(crate) backend: RefCell<Option<ServiceKey>>,
    pub(crate) endpoint: Cell<Option<SocketAddr>>,
    pub(crate) encryption: Cell<Option<Encryption>>,
    /// Who is at the other end, where another agent has proved it.
    pub(crate) remote: OnceCell<Rc<Remote>>,
    /// What a TLS client says of itself.
    pub(crate) hello: RefCell<Option<Box<Hello>>>,
    pub(crate) requests: Cell<u64>,
    pub(crate) bytes_sent: Cell<u64>,
    pub(crate) bytes_received: Cell<u64>,
    /// Counters of this connection's labels, once they are known, and what was added to them so far.
    cells: RefCell<Option<Rc<ConnectionCells>>>,
    counted: Cell<(u64, u64)>,
    /// Where weft only carries its bytes: to which pod, and what for.
    pub(crate) passage: RefCell<Option<Box<Passage>>>,
    /// When the worker's sweep ends the connection unless it is moved or cleared.
    pub(crate) deadline: Cell<Option<Instant>>,
}

impl Flow {
    pub(crate) fn new(direction: Direction, pod: Arc<LocalPod>, peer: SocketAddr, destination: SocketAddr) -> Self {
        Self {
            direction,
            pod,
            peer,
            destination,
            started: Instant::now(),
            control: Control::default(),
            protocol: Cell::new(FlowProtocol::Detecting),
            service: RefCell::default(),
            backend: RefCell::default(),
            endpoint: Cell::new(None),
            encryption: Cell::new(None),
            remote: OnceCell::new(),
            hello: RefCell::default(),
            requests: Cell::new(0),
            bytes_sent: Cell::new(0),
            bytes_received: Cell::new(0),
            cells: RefCell::default(),
            counted: Cell::new((0, 0)),
            passage: RefCell::default(),
            deadline: Cell::new(None),
        }
    }

    /// Counts the connection as opened under these labels, and as closed when the flow is dropped.
    pub(crate) fn open(&self, cells: Rc<ConnectionCells>) {
        cells.opened();
        *self.cells.borrow_mut() = Some(cells);
    }

    /// Notes the backend; clones its name only when it is another one than before.
    pub(crate) fn chose(&self, backend: Option<&ServiceKey>, endpoint: SocketAddr) {
        self.endpoint.set(Some(endpoint));
        let mut current = self.backend.borrow_mut();
        if current.as_ref() != backend {
            *current = backend.cloned();
        }
    }

    pub(crate) fn after(&self, span: Duration) {
        self.deadline.set(Some(Instant::now() + span));
    }

    /// Adds the bytes since the last time to the counters; requests have counters of their own.
    fn count(&self) {
        if matches!(self.protocol.get(), FlowProtocol::Http | FlowProtocol::Http2) {
            return;
        }
        if let Some(cells) = &*self.cells.borrow() {
            let (sent, received) = self.counted.get();
            let now = (self.bytes_sent.get(), self.bytes_received.get());
            cells.bytes(now.0 - sent, now.1 - received);
            self.counted.set(now);
        }
    }

    fn row(&self, worker: usize) -> FlowRow {
        let pod = format!("{}/{}/{}", self.pod.namespace, self.pod.owner, self.pod.name);
        let (source, destination) = match self.direction {
            Direction::Outbound => {
                let service = self.service.borrow();
                (
                    pod,
                    service
                        .as_ref()
                        .map_or_else(|| self.destination.to_string(), |(key, port)| format!("{key}:{port}")),
                )
            }
            Direction::Inbound => (self.peer.to_string(), format!("{pod}:{}", self.destination.port())),
        };
        let hello = self.hello.borrow();
        FlowRow {
            server_name: hello.as_ref().and_then(|hello| hello.server_name.as_deref().map(str::to_owned)),
            alpn: hello.as_ref().map_or_else(Vec::new, |hello| hello.alpn.iter().map(ToString::to_string).collect()),
            direction: self.direction,
            source,
            destination,
            backend: self.backend.borrow().as_ref().map(ToString::to_string),
            endpoint: self.endpoint.get().map(|endpoint| endpoint.to_string()),
            protocol: self.protocol.get(),
            age_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            requests: self.requests.get(),
            bytes_sent: self.bytes_sent.get(),
            bytes_received: self.bytes_received.get(),
            encryption: self.encryption.get(),
            peer_identity: self.remote.get().map(|remote| remote.id().to_string()),
            worker,
        }
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.count();
        if let Some(cells) = self.cells.get_mut() {
            cells.closed();
        }
    }
}

/// Adds to a counter that only one thread touches.
pub(crate) fn bump(counter: &Cell<u64>, by: usize) {
    counter.set(counter.get() + by as u64);
}

/// All live connections of one worker.
#[derive(Debug, Default)]
pub(crate) struct FlowTable {
    next: Cell<u64>,
    flows: RefCell<HashMap<u64, Rc<Flow>>>,
}

/// A place in the table; given back when dropped.
#[derive(Debug)]
pub(crate) struct FlowEntry {
    table: Rc<FlowTable>,
    id: u64,
    pub(crate) flow: Rc<Flow>,
}

impl Drop for FlowEntry {
    fn drop(&mut self) {
        self.table.flows.borrow_mut().remove(&self.id);
    }
}

impl FlowTable {
    pub(crate) fn insert(self: &Rc<Self>, flow: Flow) -> FlowEntry {
        let id = self.next.get();
        self.next.set(id + 1);
        let flow = Rc::new(flow);
        self.flows.borrow_mut().insert(id, Rc::clone(&flow));
        FlowEntry { table: Rc::clone(self), id, flow }
    }

    pub(crate) fn len(&self) -> usize {
        self.flows.borrow().len()
    }

    /// Calls `look` with every connection.
    pub(crate) fn each(&self, look: impl FnMut(&Flow)) {
        self.flows.borrow().values().map(AsRef::as_ref).for_each(look);
    }

    /// Moves every connection on that `which` selects; returns how many.
    pub(crate) fn advance(&self, to: Phase, which: impl Fn(&Flow) -> bool) -> usize {
        let flows = self.flows.borrow();
        flows.values().filter(|flow| which(flow)).inspect(|flow| _ = flow.control.advance(to)).count()
    }

    /// Counts bytes, and ends what is past its deadline.
    pub(crate) fn sweep(&self, now: Instant) {
        for flow in self.flows.borrow().values() {
            flow.count();
            if flow.deadline.get().is_some_and(|deadline| deadline <= now) {
                flow.control.advance(Phase::TimedOut);
            }
        }
    }

    /// At most `limit` rows, and whether there are more.
    pub(crate) fn rows(&self, worker: usize, limit: usize) -> Vec<FlowRow> {
        let flows = self.flows.borrow();
        let mut oldest: Vec<_> = flows.iter().collect();
        oldest.sort_unstable_by_key(|(id, _)| **id);
        oldest.into_iter().take(limit).map(|(_, flow)| flow.row(worker)).collect()
    }
}
