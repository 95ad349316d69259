//! A client connection as its requests see it, whatever version of HTTP it speaks, and the record that is kept of each request.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Instant,
};

use http::{HeaderValue, StatusCode, Version, header, response};
use hyper::upgrade::OnUpgrade;
use tokio::net::TcpStream;
use weft_policy::{endpoints::Endpoint, names::ServiceKey, snapshot::PlanHandle};

use crate::{
    balance::EndpointLoad,
    drain::Phase,
    early::Early,
    flows::{Direction, Flow, FlowProtocol, bump},
    http::{body::Meter, upgrade::Upgrade, wire::Turn, wire2::Session},
    limits,
    metrics::{RequestCells, StatusClass},
    mutual::Remote,
    worker::{Pod, Worker},
};

/// A client connection.
pub(crate) struct Link {
    pub(crate) worker: Rc<Worker>,
    pub(crate) pod: Rc<Pod>,
    pub(crate) flow: Rc<Flow>,
    pub(crate) downstream: Downstream,
    /// What the destination stands for.
    pub(crate) plan: RefCell<PlanHandle>,
    /// What was dialled before it was known that this is HTTP; the first request takes it, or closes it.
    early: RefCell<Option<Box<Early>>>,
    /// The pod behind the address that was asked for, where it is a pod's own.
    direct: RefCell<Option<Rc<EndpointLoad>>>,
    /// Metric cells by split and backend.
    cells: RefCell<Vec<(u64, usize, Rc<RequestCells>)>>,
}

/// What the two versions of HTTP do not share.
pub(crate) enum Downstream {
    /// One request after the other.
    Http1(Rc<OneByOne>),
    /// Many requests at a time; what is one request's alone belongs to it.
    Http2(Rc<Session>),
}

/// State of an HTTP/1 connection.
pub(crate) struct OneByOne {
    pub(crate) turn: Rc<Turn>,
    /// The connection is to end with the response that is next.
    pub(crate) closing: Cell<bool>,
    /// Set once an endpoint has switched protocols.
    pub(crate) upgrade: RefCell<Option<Upgrade>>,
    /// Of all request bodies so far.
    pub(crate) meter: Rc<Meter>,
}

impl OneByOne {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self {
            turn: Rc::new(Turn::new(stream)),
            closing: Cell::new(false),
            upgrade: RefCell::default(),
            meter: Rc::default(),
        }
    }
}

/// How hyper's part of a client connection came to its end.
pub(crate) enum Outcome {
    /// hyper is done.
    Done(hyper::Result<()>),
    /// The worker asked for it.
    Told(Phase),
}

impl Link {
    /// Begins with a connection that turned out to be HTTP.
    pub(crate) fn open(
        worker: Rc<Worker>,
        pod: Rc<Pod>,
        flow: Rc<Flow>,
        plan: PlanHandle,
        downstream: Downstream,
        early: Option<Early>,
    ) -> Self {
        flow.protocol.set(match downstream {
            Downstream::Http1(_) => FlowProtocol::Http,
            Downstream::Http2(_) => FlowProtocol::Http2,
        });
        let service = flow.service.borrow().as_ref().map(|(service, _)| service.clone());
        // One that came from elsewhere counts already.
        if flow.direction == Direction::Outbound {
            flow.open(pod.cells.connections(flow.direction, service.as_ref(), None));
        }
        Self {
            worker,
            pod,
            flow,
            downstream,
            plan: RefCell::new(plan),
            early: RefCell::new(early.map(Box::new)),
            direct: RefCell::default(),
            cells: RefCell::default(),
        }
    }

    /// Who the client is, if it is on another node.
    pub(crate) fn remote(&self) -> Option<&Rc<Remote>> {
        self.flow.remote.get()
    }

    /// The version that the client speaks.
    pub(crate) fn is_http2(&self) -> bool {
        matches!(self.downstream, Downstream::Http2(_))
    }

    /// Makes a response's head one of the client's version.
    pub(crate) fn finish(&self, parts: &mut response::Parts) {
        match &self.downstream {
            Downstream::Http1(one) => {
                parts.version = Version::HTTP_11;
                if one.closing.get() {
                    parts.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
            }
            Downstream::Http2(_) => {
                parts.version = Version::HTTP_2;
                // The mesh's own answers ask an HTTP/1 connection to close; here a request concerns nobody but itself.
                parts.headers.remove(header::CONNECTION);
            }
        }
    }

    /// hyper has let go of a response.
    pub(crate) fn response_over(&self) {
        match &self.downstream {
            Downstream::Http1(one) => one.turn.response_said(),
            Downstream::Http2(_) => {}
        }
    }

    /// A response cannot be finished, and must not look as if it were. HTTP/2 resets its stream.
    pub(crate) fn response_broke(&self) {
        match &self.downstream {
            Downstream::Http1(one) => one.turn.broke(),
            Downstream::Http2(_) => {}
        }
    }

    /// The backend of what was dialled early, if that leads to the split that the first request is routed to (0: the pod itself);
    /// it is closed otherwise, and the choice given back.
    pub(crate) fn early_backend(&self, split: u64) -> Option<usize> {
        let mut early = self.early.borrow_mut();
        if let Some(unused) = early.take_if(|early| early.split != split) {
            unused.unused(&self.worker);
        }
        early.as_ref().map(|early| early.index)
    }

    /// What was dialled early, for the request that asked for its backend just now.
    pub(crate) fn take_early(&self) -> Option<Early> {
        self.early.take().map(|early| *early)
    }

    /// One load for all requests to a pod's own address.
    pub(crate) fn direct(&self, endpoint: Endpoint) -> Rc<EndpointLoad> {
        let mut direct = self.direct.borrow_mut();
        match &*direct {
            Some(load) if load.endpoint == endpoint => Rc::clone(load),
            _ => Rc::clone(direct.insert(EndpointLoad::new(endpoint))),
        }
    }

    /// The cells for a backend of a split; resolved by name only the first time on this connection.
    pub(crate) fn cells(
        &self,
        split: u64,
        backend: usize,
        names: (Option<&ServiceKey>, Option<&ServiceKey>),
    ) -> Rc<RequestCells> {
        let mut cells = self.cells.borrow_mut();
        if let Some((_, _, known)) = cells.iter().find(|(of, index, _)| (*of, *index) == (split, backend)) {
            return Rc::clone(known);
        }
        // What comes from elsewhere counts under its client.
        let client = self.flow.service.borrow();
        let client = client.as_ref().filter(|_| self.flow.direction == Direction::Inbound).map(|(client, _)| client);
        let found = self.pod.cells.requests(self.flow.direction, client.or(names.0), names.1);
        if cells.len() >= limits::METRIC_CELLS_PER_CONNECTION_MAX {
            cells.clear();
        }
        cells.push((split, backend, Rc::clone(&found)));
        found
    }
}

/// Counts a request once, however it ends.
pub(crate) struct Record {
    pub(crate) link: Rc<Link>,
    pub(crate) cells: Option<Rc<RequestCells>>,
    pub(crate) service: Option<ServiceKey>,
    pub(crate) status: Option<StatusCode>,
    /// The request is gRPC, so its status comes last.
    pub(crate) grpc: bool,
    pub(crate) meter: Rc<Meter>,
    /// What another agent's request becomes if the application switches protocols.
    pub(crate) asked: Option<OnUpgrade>,
    pub(crate) started: Instant,
    request_bytes_before: u64,
    pub(crate) response_bytes: u64,
    /// Of a request that no client has sent: it counts nowhere.
    pub(crate) is_copy: bool,
}

impl Record {
    pub(crate) fn begin(link: &Rc<Link>, meter: Rc<Meter>) -> Self {
        bump(&link.flow.requests, 1);
        Self::new(link, meter, false)
    }

    /// Of a copy of a request.
    pub(crate) fn copy(link: &Rc<Link>) -> Self {
        Self::new(link, Rc::default(), true)
    }

    fn new(link: &Rc<Link>, meter: Rc<Meter>, is_copy: bool) -> Self {
        Self {
            link: Rc::clone(link),
            cells: None,
            service: None,
            status: None,
            grpc: false,
            asked: None,
            started: Instant::now(),
            request_bytes_before: meter.request_bytes.get(),
            meter,
            response_bytes: 0,
            is_copy,
        }
    }
}

impl Record {
    /// hyper has been given so many bytes of the response.
    pub(crate) fn handed(&mut self, bytes: usize) {
        self.response_bytes += bytes as u64;
        bump(&self.meter.handed, 1);
        self.meter.held.set(true);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if self.is_copy {
            return;
        }
        let cells = self.cells.take().unwrap_or_else(|| self.link.cells(0, 0, (self.service.as_ref(), None)));
        let class = self.status.map_or(StatusClass::Canceled, StatusClass::Of);
        let request_bytes = self.meter.request_bytes.get() - self.request_bytes_before;
        cells.record(class, self.started.elapsed(), request_bytes, self.response_bytes);
        if let Downstream::Http2(session) = &self.link.downstream {
            session.answer_given();
        }
    }
}
