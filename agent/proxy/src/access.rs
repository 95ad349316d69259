//! The inbound step: whether a destination that is captured on this node takes what is meant for it. Every path to it asks here,
//! each request and each connection anew, and so does the worker's tick for connections that nobody asks for any more.

use std::{cell::Cell, cell::RefCell, fmt, net::SocketAddr, ptr, sync::Arc, time::Instant};

use http::{HeaderMap, Method, Uri};
use weft_policy::{
    endpoints::Endpoint,
    inbound::{Basis, ConnectionVerdict, InboundPlan, Source, Verdict},
    matcher::RequestHead,
    names::WorkloadId,
};

use crate::{
    drain::Phase,
    flows::{Direction, Flow},
    limits,
    metrics::BasisKind,
    mutual::Remote,
    socket::LocalPod,
    worker::Worker,
};

/// What is asked of a destination.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Asks<'a> {
    /// To connect; what will be said is not known yet.
    Connect,
    /// To carry bytes that weft does not look into.
    Bytes,
    /// One request.
    Request(RequestHead<'a>),
}

/// What may be said on a connection that may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admitted {
    Anything,
    /// Requests, each of which is asked for.
    Requests,
}

/// Why a destination takes nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Denied {
    #[error("{0}")]
    By(Basis),
    #[error("the destination is captured and has no inbound plan yet")]
    NoPlan,
}

impl Denied {
    fn kind(&self) -> BasisKind {
        match self {
            Self::By(Basis::StanceDeny(_) | Basis::StanceAllow(_)) => BasisKind::Stance,
            Self::By(Basis::NotGranted(_) | Basis::Grant(_)) => BasisKind::NotGranted,
            Self::By(Basis::Unidentified(_)) => BasisKind::Unidentified,
            Self::By(Basis::NotHttp(_)) => BasisKind::NotHttp,
            Self::By(Basis::Plaintext(_)) => BasisKind::Plaintext,
            Self::NoPlan => BasisKind::NoPlan,
        }
    }
}

/// What was denied, for people.
#[derive(Debug)]
pub(crate) struct Denial {
    pub(crate) denied: Denied,
    /// The destination.
    pub(crate) workload: WorkloadId,
    /// Where it would have been reached.
    pub(crate) to: SocketAddr,
    /// Method and path, cut to [`limits::ACCESS_LOG_PATH_BYTES_MAX`]; `None` for a connection.
    pub(crate) request: Option<String>,
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.request.is_some() { "request" } else { "connection" };
        write!(f, "{what} to {}: {}", self.to, self.denied)
    }
}

/// Who a captured pod is to those that it asks.
fn source(pod: &LocalPod) -> Source<'_> {
    Source { account: &pod.account, workload: Some(&pod.id) }
}

/// What a plan says. A captured workload without one takes nothing.
fn judge(
    plan: Option<&InboundPlan>,
    source: Option<Source<'_>>,
    workload: &WorkloadId,
    port: u16,
    asks: Asks<'_>,
) -> Result<Admitted, Denied> {
    // Nobody needs a grant to talk to itself.
    if source.is_some_and(|source| source.workload == Some(workload)) {
        return Ok(Admitted::Anything);
    }
    let plan = plan.ok_or(Denied::NoPlan)?;
    if source.is_none()
        && let Some(basis) = plan.plaintext()
    {
        return Err(Denied::By(basis));
    }
    if let Asks::Request(head) = asks {
        return match plan.request(source, port, &head) {
            Verdict::Allow(_) => Ok(Admitted::Anything),
            Verdict::Deny(basis) => Err(Denied::By(basis)),
        };
    }
    match (plan.connection(source, port), asks) {
        (ConnectionVerdict::Allow(_), _) => Ok(Admitted::Anything),
        (ConnectionVerdict::Requests(_), Asks::Connect) => Ok(Admitted::Requests),
        (ConnectionVerdict::Requests(basis) | ConnectionVerdict::Deny(basis), _) => Err(Denied::By(basis)),
    }
}

impl Worker {
    fn ask(
        &self,
        source: Option<Source<'_>>,
        workload: &WorkloadId,
        to: SocketAddr,
        asks: Asks<'_>,
    ) -> Result<Admitted, Box<Denial>> {
        self.refresh();
        let snapshot = self.snapshot.borrow();
        let plan = snapshot.inbound.get(workload).map(AsRef::as_ref);
        if plan.is_none() && self.sockets.is_leaving(workload) {
            // It has left the mesh, and takes everything directly; what still comes this way is no other than that.
            return Ok(Admitted::Anything);
        }
        judge(plan, source, workload, to.port(), asks).map_err(|denied| {
            let request = match asks {
                Asks::Request(head) => Some(shown(head.method, head.path)),
                Asks::Connect | Asks::Bytes => None,
            };
            Box::new(Denial { denied, workload: workload.clone(), to, request })
        })
    }

    /// The inbound step in process, where the endpoint is captured on this node; `None` if it is not. What it was when a connection
    /// to it was made does not matter.
    pub(crate) fn admit(
        &self,
        pod: &LocalPod,
        endpoint: &Endpoint,
        asks: Asks<'_>,
    ) -> Result<Option<Admitted>, Box<Denial>> {
        match &endpoint.workload {
            Some(workload) if self.sockets.is_captured(workload) => {
                self.ask(Some(source(pod)), workload, endpoint.address, asks).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// The inbound step for a connection that came from elsewhere. Who made it nobody can tell.
    pub(crate) fn admit_stranger(&self, pod: &LocalPod, to: SocketAddr) -> Result<(), Box<Denial>> {
        self.ask(None, &pod.id, to, Asks::Bytes).map(drop)
    }

    /// The inbound step for what came from another node with a proof of who asks.
    pub(crate) fn admit_remote(
        &self,
        remote: &Remote,
        pod: &LocalPod,
        to: SocketAddr,
        asks: Asks<'_>,
    ) -> Result<Admitted, Box<Denial>> {
        self.ask(Some(Source { account: remote.account(), workload: None }), &pod.id, to, asks)
    }

    /// Counts a denial under its destination, and says so in the access log.
    pub(crate) fn report(&self, flow: &Flow, denial: &Denial) {
        let kind = denial.denied.kind();
        let destination = self.known_pod(&denial.workload);
        match &destination {
            Some(pod) => pod.cells.denied(kind),
            None => self.metrics.denied_elsewhere(kind),
        }
        let unsaid = match &destination {
            Some(pod) => pod.access_log.due(kind),
            None => self.warnings.due("denied"),
        };
        let Some(unsaid) = unsaid else { return };
        say(flow, destination.as_ref().map(|pod| &*pod.pod), denial, kind, unsaid, "denied");
    }

    /// Ends connections that weft only carries, and that are not let through any more. Asks for those alone whose destination has
    /// another plan than the last time.
    pub(crate) fn cut_denied(&self) {
        self.refresh();
        let snapshot = self.snapshot.borrow();
        self.flows.each(|flow| {
            let passage = flow.passage.borrow();
            let Some(passage) = &*passage else { return };
            let plan = snapshot.inbound.get(&passage.workload);
            // One to a pod that was captured only later is no other than one that is made now.
            if passage.is_known(plan) || !self.sockets.is_captured(&passage.workload) {
                return;
            }
            let asks = match &passage.request {
                Some(head) => Asks::Request(head.as_head()),
                None => Asks::Bytes,
            };
            let from = match flow.direction {
                Direction::Outbound => Some(source(&flow.pod)),
                Direction::Inbound => {
                    flow.remote.get().map(|remote| Source { account: remote.account(), workload: None })
                }
            };
            let port = passage.to.port();
            match judge(plan.map(AsRef::as_ref), from, &passage.workload, port, asks) {
                Ok(_) => *passage.seen.borrow_mut() = plan.cloned(),
                Err(denied) => {
                    if !flow.control.advance(Phase::Cut) {
                        return;
                    }
                    self.metrics.cut_denied.inc();
                    let kind = denied.kind();
                    let request = passage.request.as_ref().map(|head| shown(&head.method, head.path.path()));
                    let denial = Denial { denied, workload: passage.workload.clone(), to: passage.to, request };
                    let destination = self.known_pod(&passage.workload);
                    let unsaid = destination.as_ref().map_or(Some(0), |pod| pod.access_log.due(kind));
                    if let Some(unsaid) = unsaid {
                        say(flow, destination.as_ref().map(|pod| &*pod.pod), &denial, kind, unsaid, "cut");
                    }
                }
            }
        });
    }
}

/// One line of the access log.
fn say(flow: &Flow, destination: Option<&LocalPod>, denial: &Denial, kind: BasisKind, unsaid: u64, verdict: &str) {
    let (account, pod) = match flow.direction {
        Direction::Outbound => (Some(&flow.pod.account), Some(&flow.pod.name)),
        Direction::Inbound => (flow.remote.get().map(|remote| remote.account()), None),
    };
    tracing::warn!(
        target: "weft::access",
        verdict,
        source = account.map(tracing::field::display),
        source_pod = pod.map(tracing::field::display),
        source_identity = flow.remote.get().map(|remote| tracing::field::display(remote.id())),
        certificate = flow.remote.get().map(|remote| remote.svid().serial.as_str()),
        client = %flow.peer,
        destination_namespace = destination.map(|pod| &*pod.namespace),
        destination_workload = destination.map(|pod| &*pod.owner),
        destination_pod = destination.map(|pod| &*pod.name),
        to = %denial.to,
        request = denial.request,
        basis = kind.as_str(),
        because = %denial.denied,
        unsaid,
        "not let through"
    );
}

/// A request in one line.
fn shown(method: &Method, path: &str) -> String {
    let end = (0..=path.len().min(limits::ACCESS_LOG_PATH_BYTES_MAX)).rev().find(|end| path.is_char_boundary(*end));
    let cut = &path[..end.unwrap_or_default()];
    let method = method.as_str();
    let method = method.get(..limits::ACCESS_LOG_METHOD_BYTES_MAX).unwrap_or(method);
    format!("{method} {cut}{}", if cut.len() < path.len() { "..." } else { "" })
}

/// What a connection is for whose bytes nobody looks into.
#[derive(Debug)]
pub(crate) struct Passage {
    workload: WorkloadId,
    to: SocketAddr,
    /// The request that made it one, if it was upgraded.
    request: Option<Box<Asked>>,
    /// The plan that it was last held against.
    seen: RefCell<Option<Arc<InboundPlan>>>,
}

impl Passage {
    pub(crate) fn new(workload: WorkloadId, to: SocketAddr, request: Option<Box<Asked>>) -> Box<Self> {
        Box::new(Self { workload, to, request, seen: RefCell::default() })
    }

    fn is_known(&self, plan: Option<&Arc<InboundPlan>>) -> bool {
        let seen = self.seen.borrow();
        matches!((&*seen, plan), (Some(seen), Some(plan)) if ptr::eq(Arc::as_ptr(seen), Arc::as_ptr(plan)))
    }
}

/// A request's head, kept for when it is asked for again.
#[derive(Debug)]
pub(crate) struct Asked {
    method: Method,
    path: Uri,
    headers: HeaderMap,
}

impl Asked {
    pub(crate) fn keep<B>(request: &http::Request<B>) -> Box<Self> {
        let (method, path, headers) = (request.method().clone(), request.uri().clone(), request.headers().clone());
        Box::new(Self { method, path, headers })
    }

    fn as_head(&self) -> RequestHead<'_> {
        RequestHead { method: &self.method, path: self.path.path(), query: self.path.query(), headers: &self.headers }
    }
}

/// Keeps the denials of one destination from filling the log.
#[derive(Debug, Default)]
pub(crate) struct AccessLog([Cell<Option<(Instant, u64)>>; BasisKind::ALL.len()]);

impl AccessLog {
    /// Whether to say one now, and how many were left unsaid since the last one of its kind.
    fn due(&self, kind: BasisKind) -> Option<u64> {
        let (now, last) = (Instant::now(), &self.0[kind as usize]);
        match last.get() {
            Some((said, unsaid)) if now.duration_since(said) < limits::ACCESS_LOG_INTERVAL => {
                last.set(Some((said, unsaid + 1)));
                None
            }
            before => {
                last.set(Some((now, 0)));
                Some(before.map_or(0, |(_, unsaid)| unsaid))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_shown_in_one_line_of_bounded_length() {
        assert_eq!(shown(&Method::GET, "/a?b"), "GET /a?b");
        let long = "/".repeat(limits::ACCESS_LOG_PATH_BYTES_MAX + 1);
        assert_eq!(shown(&Method::GET, &long).len(), "GET ".len() + limits::ACCESS_LOG_PATH_BYTES_MAX + "...".len());
        let method = Method::from_bytes(&[b'A'; 1000]).unwrap();
        assert_eq!(shown(&method, "/"), format!("{} /", "A".repeat(limits::ACCESS_LOG_METHOD_BYTES_MAX)));
        let wide = format!("{}ä", "/".repeat(limits::ACCESS_LOG_PATH_BYTES_MAX - 1));
        assert!(shown(&Method::GET, &wide).ends_with("/..."), "never cut within a character");
    }

    #[test]
    fn a_kind_of_denial_is_said_once_in_a_while_and_the_others_are_counted() {
        let log = AccessLog::default();
        assert_eq!(log.due(BasisKind::Stance), Some(0));
        assert_eq!(log.due(BasisKind::Stance), None);
        assert_eq!(log.due(BasisKind::NotHttp), Some(0), "each kind by itself");
        let long_ago = Instant::now().checked_sub(limits::ACCESS_LOG_INTERVAL).unwrap();
        log.0[BasisKind::Stance as usize].set(Some((long_ago, 7)));
        assert_eq!(log.due(BasisKind::Stance), Some(7));
    }

    #[test]
    fn a_workload_without_a_plan_takes_nothing_but_from_itself() {
        let (me, other) = (WorkloadId::new("me"), WorkloadId::new("other"));
        let account = weft_policy::names::ServiceAccountKey::new("shop", "web");
        let from = |workload| Some(Source { account: &account, workload: Some(workload) });
        assert_eq!(judge(None, from(&other), &me, 80, Asks::Bytes), Err(Denied::NoPlan));
        assert_eq!(judge(None, None, &me, 80, Asks::Bytes), Err(Denied::NoPlan));
        assert_eq!(judge(None, from(&me), &me, 80, Asks::Bytes), Ok(Admitted::Anything));
    }
}
