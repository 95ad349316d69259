//! The data path's metrics. Label sets are resolved once and kept in worker-local cells; requests touch plain integers, which the
//! worker's tick adds to the shared metrics. Nothing here decides anything.

mod limit;
mod rules;

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    local::{LocalHistogram, LocalIntCounter},
};
use weft_policy::names::ServiceKey;

pub(crate) use self::{
    limit::Limit,
    rules::{Faulted, Mirrored, Retried, RetrySkipped},
};
use crate::{flows::Direction, learnt::Seen, reply::Reason, socket::LocalPod, transport::Encryption};

const REQUEST_LABELS: [&str; 7] = [
    "direction",
    "source_namespace",
    "source_workload",
    "destination_namespace",
    "destination_service",
    "backend",
    "status_class",
];
const CONNECTION_LABELS: [&str; 6] =
    ["direction", "source_namespace", "source_workload", "destination_namespace", "destination_service", "backend"];
const REACHED_LABELS: [&str; 5] =
    ["source_namespace", "source_workload", "destination_namespace", "destination_service", "encryption"];
const DENIED_LABELS: [&str; 3] = ["destination_namespace", "destination_workload", "basis"];
/// Upper bounds in seconds: a fast local answer to a slow report.
const DURATION_BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];

/// Upper bounds in seconds: a client that sends at once to a server that thinks before it greets.
const DETECTION_BUCKETS: [f64; 14] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 10.0];

/// What a denial rests on, for `weft_denied_total{basis}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BasisKind {
    Stance,
    NotGranted,
    Unidentified,
    NotHttp,
    Plaintext,
    NoPlan,
}

impl BasisKind {
    pub(crate) const ALL: [Self; 6] =
        [Self::Stance, Self::NotGranted, Self::Unidentified, Self::NotHttp, Self::Plaintext, Self::NoPlan];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Stance => "stance",
            Self::NotGranted => "not_granted",
            Self::Unidentified => "unidentified",
            Self::NotHttp => "not_http",
            Self::Plaintext => "plaintext",
            Self::NoPlan => "no_plan",
        }
    }
}

/// How a dial ended, for `weft_dials_total{result}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DialResult {
    Connected,
    Refused,
    TimedOut,
    Unreachable,
    NoSocket,
}

impl DialResult {
    const ALL: [Self; 5] = [Self::Connected, Self::Refused, Self::TimedOut, Self::Unreachable, Self::NoSocket];

    fn as_str(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Refused => "refused",
            Self::TimedOut => "timed_out",
            Self::Unreachable => "unreachable",
            Self::NoSocket => "no_socket",
        }
    }
}

/// Which end of a handshake this agent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TlsSide {
    Client,
    Server,
}

impl TlsSide {
    fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

/// All metric families of the data path, shared by the workers.
#[derive(Debug)]
pub(crate) struct Metrics {
    requests: IntCounterVec,
    duration: HistogramVec,
    detection: HistogramVec,
    request_bytes: IntCounterVec,
    response_bytes: IntCounterVec,
    connections: IntCounterVec,
    connections_open: IntGaugeVec,
    sent_bytes: IntCounterVec,
    received_bytes: IntCounterVec,
    replies: Vec<IntCounter>,
    dials: Vec<IntCounter>,
    limits: Vec<IntCounter>,
    retries: Vec<IntCounter>,
    retries_skipped: Vec<IntCounter>,
    mirrored: Vec<IntCounter>,
    faults: Vec<IntCounter>,
    reached: IntCounterVec,
    handshakes: IntCounterVec,
    /// Handshakes that went well, by side.
    secured: [IntCounter; 2],
    denied: IntCounterVec,
    /// Connections that were cut because policy does not let them through any more.
    pub(crate) cut_denied: IntCounter,
    /// The same, of connections that were never carried.
    pub(crate) cut_older: IntCounter,
    /// Connections that ended with a certificate.
    pub(crate) cut_expired: IntCounter,
    pub(crate) resets: IntCounter,
    pub(crate) split_skipped: IntCounter,
    pub(crate) fields_removed: IntCounter,
    pub(crate) accept_errors: IntCounter,
    owners: Mutex<HashMap<Owner, OwnerSeries>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Owner {
    namespace: Arc<str>,
    workload: Arc<str>,
}

/// The series that exist because of one workload's pods; removed with the last holder.
#[derive(Debug, Default)]
struct OwnerSeries {
    holders: usize,
    requests: HashSet<[String; 7]>,
    reached: HashSet<[String; 5]>,
    denied: HashSet<[String; 3]>,
    connections: HashSet<[String; 6]>,
}

impl Metrics {
    pub(crate) fn register(registry: &Registry) -> Result<Arc<Self>, prometheus::Error> {
        let counter = |name: &str, help: &str, labels: &[&str]| -> Result<IntCounterVec, prometheus::Error> {
            let vec = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(vec.clone()))?;
            Ok(vec)
        };
        let single = |name: &str, help: &str| -> Result<IntCounter, prometheus::Error> {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let options =
            HistogramOpts::new("weft_request_duration_seconds", "From a request's head to the end of its response")
                .buckets(DURATION_BUCKETS.to_vec());
        let duration = HistogramVec::new(options, &REQUEST_LABELS)?;
        registry.register(Box::new(duration.clone()))?;
        let options = HistogramOpts::new(
            "weft_detection_seconds",
            "From a connection's arrival to the first bytes that told its protocol, where that is not declared",
        )
        .buckets(DETECTION_BUCKETS.to_vec());
        let detection = HistogramVec::new(options, &["protocol", "first"])?;
        registry.register(Box::new(detection.clone()))?;
        let connections_open = IntGaugeVec::new(
            Opts::new("weft_connections_open", "Captured connections that are open"),
            &CONNECTION_LABELS,
        )?;
        registry.register(Box::new(connections_open.clone()))?;
        let replies = counter("weft_local_replies_total", "Answers that the mesh itself made, by reason", &["reason"])?;
        let dials = counter("weft_dials_total", "Connects to endpoints, by result", &["result"])?;
        let cut = counter(
            "weft_connections_cut_total",
            "Connections that were ended because they are not let through any more, by reason",
            &["reason"],
        )?;
        let handshakes = counter(
            "weft_tls_handshakes_total",
            "Handshakes of mutual TLS with other agents, by side and result",
            &["side", "result"],
        )?;
        let retries =
            counter("weft_retries_total", "Requests that were tried again as their rules ask, by cause", &["cause"])?;
        let skipped = counter(
            "weft_retry_skipped_total",
            "Requests that were not tried again though their rules ask for retries, by reason",
            &["reason"],
        )?;
        let mirrored = counter(
            "weft_mirrored_total",
            "Copies of requests that rules ask for, by what became of them",
            &["result"],
        )?;
        let faults = counter("weft_faults_total", "Requests that went wrong on purpose, by how", &["fault"])?;
        let limits = counter(
            "weft_limit_reached_total",
            "Times that a named limit or timeout of the data path was reached",
            &["limit"],
        )?;
        Ok(Arc::new(Self {
            requests: counter("weft_requests_total", "Requests that were answered, by status class", &REQUEST_LABELS)?,
            duration,
            detection,
            request_bytes: counter("weft_request_bytes_total", "Bytes of request bodies", &REQUEST_LABELS)?,
            response_bytes: counter("weft_response_bytes_total", "Bytes of response bodies", &REQUEST_LABELS)?,
            connections: counter("weft_connections_total", "Captured connections, by direction", &CONNECTION_LABELS)?,
            connections_open,
            sent_bytes: counter(
                "weft_tcp_sent_bytes_total",
                "Bytes of opaque connections from source to destination",
                &CONNECTION_LABELS,
            )?,
            received_bytes: counter(
                "weft_tcp_received_bytes_total",
                "Bytes of opaque connections from destination to source",
                &CONNECTION_LABELS,
            )?,
            replies: Reason::ALL.iter().map(|reason| replies.with_label_values(&[reason.word()])).collect(),
            dials: DialResult::ALL.iter().map(|result| dials.with_label_values(&[result.as_str()])).collect(),
            limits: Limit::ALL.iter().map(|limit| limits.with_label_values(&[limit.as_str()])).collect(),
            retries: Retried::ALL.iter().map(|cause| retries.with_label_values(&[cause.as_str()])).collect(),
            retries_skipped: RetrySkipped::ALL.iter().map(|why| skipped.with_label_values(&[why.as_str()])).collect(),
            mirrored: Mirrored::ALL.iter().map(|result| mirrored.with_label_values(&[result.as_str()])).collect(),
            faults: Faulted::ALL.iter().map(|fault| faults.with_label_values(&[fault.as_str()])).collect(),
            denied: counter(
                "weft_denied_total",
                "Requests and connections that the policy of their destination denied, by what that rests on",
                &DENIED_LABELS,
            )?,
            cut_denied: cut.with_label_values(&["denied"]),
            cut_older: cut.with_label_values(&["older"]),
            cut_expired: cut.with_label_values(&["certificate"]),
            reached: counter(
                "weft_upstream_connections_total",
                "Connections that were made to endpoints, by whether mutual TLS protects them",
                &REACHED_LABELS,
            )?,
            secured: [TlsSide::Client, TlsSide::Server]
                .map(|side| handshakes.with_label_values(&[side.as_str(), "ok"])),
            handshakes,
            resets: single("weft_connections_reset_total", "Captured connections that the mesh itself reset")?,
            split_skipped: single(
                "weft_split_skipped_total",
                "Choices made without a backend that has a weight but no ready endpoint",
            )?,
            fields_removed: single(
                "weft_request_fields_removed_total",
                "Fields that clients sent and only the mesh may set",
            )?,
            accept_errors: single("weft_accept_errors_total", "Failed accepts on pods' listeners")?,
            owners: Mutex::default(),
        }))
    }

    pub(crate) fn reached(&self, limit: Limit) {
        self.limits[limit as usize].inc();
    }

    /// A request is tried again.
    pub(crate) fn retried(&self, cause: Retried) {
        self.retries[cause as usize].inc();
    }

    /// A request is not.
    pub(crate) fn retry_skipped(&self, why: RetrySkipped) {
        self.retries_skipped[why as usize].inc();
    }

    /// A copy of a request was made, or was not.
    pub(crate) fn mirrored(&self, result: Mirrored) {
        self.mirrored[result as usize].inc();
    }

    /// A request went wrong on purpose.
    pub(crate) fn faulted(&self, fault: Faulted) {
        self.faults[fault as usize].inc();
    }

    /// The time that a rule gives is over.
    pub(crate) fn expired(&self, reason: Reason) {
        self.reached(match reason {
            Reason::BackendTimeout => Limit::BackendTimeout,
            Reason::DeadlineExceeded => Limit::Deadline,
            _ => Limit::RequestTimeout,
        });
    }

    /// A handshake went well.
    pub(crate) fn secured(&self, side: TlsSide) {
        self.secured[side as usize].inc();
    }

    /// A handshake came to nothing. Words are of a closed set.
    pub(crate) fn handshake(&self, side: TlsSide, why: &'static str) {
        self.handshakes.with_label_values(&[side.as_str(), why]).inc();
    }

    pub(crate) fn dialled(&self, result: DialResult) {
        self.dials[result as usize].inc();
    }

    pub(crate) fn replied(&self, reason: Reason) {
        self.replies[reason as usize].inc();
    }

    /// A denial by a destination that is not captured any more.
    pub(crate) fn denied_elsewhere(&self, kind: BasisKind) {
        self.denied.with_label_values(&["", "", kind.as_str()]).inc();
    }

    /// A worker's own histograms of detection.
    pub(crate) fn detection_cells(&self) -> DetectionCells {
        DetectionCells(Seen::ALL.map(|seen| self.detection.with_label_values(&[seen.protocol(), seen.first()]).local()))
    }

    /// A worker's share in the series of one pod's workload.
    pub(crate) fn pod_cells(self: &Arc<Self>, pod: &LocalPod) -> PodCells {
        let owner = Owner { namespace: Arc::clone(&pod.namespace), workload: Arc::clone(&pod.owner) };
        self.owners.lock().unwrap_or_else(PoisonError::into_inner).entry(owner.clone()).or_default().holders += 1;
        PodCells {
            metrics: Arc::clone(self),
            owner,
            requests: RefCell::default(),
            connections: RefCell::default(),
            reached: RefCell::default(),
            denied: RefCell::default(),
        }
    }

    /// Remembers that a label set exists. Whoever calls holds a share, so the entry is there.
    fn remember(&self, owner: &Owner, note: impl FnOnce(&mut OwnerSeries)) {
        if let Some(series) = self.owners.lock().unwrap_or_else(PoisonError::into_inner).get_mut(owner) {
            note(series);
        }
    }

    fn release(&self, owner: &Owner) {
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(series) = owners.get_mut(owner) else { return };
        series.holders -= 1;
        if series.holders > 0 {
            return;
        }
        // A label set that was never used has no series; that is no error here.
        for labels in &series.requests {
            let _ = self.requests.remove_label_values(labels);
            let _ = self.duration.remove_label_values(labels);
            let _ = self.request_bytes.remove_label_values(labels);
            let _ = self.response_bytes.remove_label_values(labels);
        }
        for labels in &series.reached {
            let _ = self.reached.remove_label_values(labels);
        }
        for labels in &series.connections {
            let _ = self.connections.remove_label_values(labels);
            let _ = self.connections_open.remove_label_values(labels);
            let _ = self.sent_bytes.remove_label_values(labels);
            let _ = self.received_bytes.remove_label_values(labels);
        }
        for labels in &series.denied {
            let _ = self.denied.remove_label_values(labels);
        }
        owners.remove(owner);
    }
}

/// How long it took to tell what connections speak, by what they turned out to be.
#[derive(Debug)]
pub(crate) struct DetectionCells([LocalHistogram; Seen::ALL.len()]);

impl DetectionCells {
    pub(crate) fn observe(&self, seen: Seen, took: Duration) {
        self.0[seen as usize].observe(took.as_secs_f64());
    }

    pub(crate) fn flush(&self) {
        for cell in &self.0 {
            cell.flush();
        }
    }
}

/// Who is asked for, and who answers; `None` where there is no Service.
type Route = (Option<ServiceKey>, Option<ServiceKey>);

/// One worker's cells for one pod.
#[derive(Debug)]
pub(crate) struct PodCells {
    metrics: Arc<Metrics>,
    owner: Owner,
    requests: RefCell<HashMap<(Direction, Route), std::rc::Rc<RequestCells>>>,
    connections: RefCell<HashMap<(Direction, Route), std::rc::Rc<ConnectionCells>>>,
    reached: RefCell<HashMap<(Option<ServiceKey>, Encryption), IntCounter>>,
    denied: RefCell<[Option<IntCounter>; BasisKind::ALL.len()]>,
}

impl Drop for PodCells {
    fn drop(&mut self) {
        self.flush();
        self.metrics.release(&self.owner);
    }
}

impl PodCells {
    /// Adds what has gathered to the shared metrics.
    pub(crate) fn flush(&self) {
        for cells in self.requests.borrow().values() {
            cells.flush();
        }
    }

    /// The cells for requests to `service` that `backend` answers; inbound, of the service account `service`.
    pub(crate) fn requests(
        &self,
        direction: Direction,
        service: Option<&ServiceKey>,
        backend: Option<&ServiceKey>,
    ) -> std::rc::Rc<RequestCells> {
        let mut cells = self.requests.borrow_mut();
        let route = self.bounded((service.cloned(), backend.cloned()), cells.len());
        let make = || {
            std::rc::Rc::new(RequestCells {
                metrics: Arc::clone(&self.metrics),
                owner: self.owner.clone(),
                direction,
                route: route.clone(),
                classes: RefCell::default(),
            })
        };
        std::rc::Rc::clone(cells.entry((direction, route.clone())).or_insert_with(make))
    }

    /// Counts a connection that was made to an endpoint of `service`.
    pub(crate) fn reached(&self, service: Option<&ServiceKey>, encryption: Encryption) {
        let mut cells = self.reached.borrow_mut();
        let service = self.bounded((service.cloned(), None), cells.len()).0;
        let resolve = || {
            let part = |part: fn(&ServiceKey) -> &Arc<str>| {
                service.as_ref().map(|service| part(service).to_string()).unwrap_or_default()
            };
            let labels = [
                self.owner.namespace.to_string(),
                self.owner.workload.to_string(),
                part(|service| &service.namespace),
                part(|service| &service.name),
                encryption.as_str().to_owned(),
            ];
            let cell = self.metrics.reached.with_label_values(&labels);
            self.metrics.remember(&self.owner, |series| _ = series.reached.insert(labels));
            cell
        };
        cells.entry((service.clone(), encryption)).or_insert_with(resolve).inc();
    }

    /// The cells for connections to `service` that go to `backend`.
    pub(crate) fn connections(
        &self,
        direction: Direction,
        service: Option<&ServiceKey>,
        backend: Option<&ServiceKey>,
    ) -> std::rc::Rc<ConnectionCells> {
        let mut cells = self.connections.borrow_mut();
        let route = self.bounded((service.cloned(), backend.cloned()), cells.len());
        let make = || std::rc::Rc::new(ConnectionCells::resolve(&self.metrics, &self.owner, direction, &route));
        std::rc::Rc::clone(cells.entry((direction, route.clone())).or_insert_with(make))
    }

    /// Counts something that the policy of this pod denied.
    pub(crate) fn denied(&self, kind: BasisKind) {
        let mut cells = self.denied.borrow_mut();
        let resolve = || {
            let labels = [self.owner.namespace.to_string(), self.owner.workload.to_string(), kind.as_str().to_owned()];
            let cell = self.metrics.denied.with_label_values(&labels);
            self.metrics.remember(&self.owner, |series| _ = series.denied.insert(labels));
            cell
        };
        cells[kind as usize].get_or_insert_with(resolve).inc();
    }

    fn bounded(&self, route: Route, cells: usize) -> Route {
        if cells < crate::limits::METRIC_CELLS_PER_POD_MAX {
            return route;
        }
        self.metrics.reached(Limit::MetricCells);
        (Some(ServiceKey::new("", "overflow")), None)
    }
}

fn route_labels(route: &Route) -> [String; 3] {
    let (service, backend) = route;
    let part = |part: Option<&Arc<str>>| part.map(ToString::to_string).unwrap_or_default();
    [
        part(service.as_ref().map(|service| &service.namespace)),
        part(service.as_ref().map(|service| &service.name)),
        part(backend.as_ref().map(|backend| &backend.name)),
    ]
}

/// How a request ended, for `status_class`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StatusClass {
    Of(http::StatusCode),
    /// The client went away before there was an answer.
    Canceled,
}

impl StatusClass {
    fn index(self) -> usize {
        match self {
            Self::Of(status) => usize::from(status.as_u16() / 100).clamp(1, 5),
            Self::Canceled => 0,
        }
    }
}

const CLASSES: [&str; 6] = ["canceled", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// Local counters of requests with the same source, destination and backend.
#[derive(Debug)]
pub(crate) struct RequestCells {
    metrics: Arc<Metrics>,
    owner: Owner,
    direction: Direction,
    route: Route,
    classes: RefCell<[Option<ClassCells>; 6]>,
}

#[derive(Debug)]
struct ClassCells {
    requests: LocalIntCounter,
    duration: LocalHistogram,
    request_bytes: LocalIntCounter,
    response_bytes: LocalIntCounter,
}

impl RequestCells {
    pub(crate) fn record(&self, class: StatusClass, duration: Duration, request_bytes: u64, response_bytes: u64) {
        let mut classes = self.classes.borrow_mut();
        let cells = classes[class.index()].get_or_insert_with(|| self.resolve(class));
        cells.requests.inc();
        cells.duration.observe(duration.as_secs_f64());
        cells.request_bytes.inc_by(request_bytes);
        cells.response_bytes.inc_by(response_bytes);
    }

    fn resolve(&self, class: StatusClass) -> ClassCells {
        let [namespace, service, backend] = route_labels(&self.route);
        let (own_namespace, own_name) = (self.owner.namespace.to_string(), self.owner.workload.to_string());
        let (direction, class_label) = (self.direction.as_str().to_owned(), CLASSES[class.index()].to_owned());
        let labels = match self.direction {
            Direction::Outbound => [direction, own_namespace, own_name, namespace, service, backend, class_label],
            Direction::Inbound => [direction, namespace, service, own_namespace, own_name, String::new(), class_label],
        };
        let cells = ClassCells {
            requests: self.metrics.requests.with_label_values(&labels).local(),
            duration: self.metrics.duration.with_label_values(&labels).local(),
            request_bytes: self.metrics.request_bytes.with_label_values(&labels).local(),
            response_bytes: self.metrics.response_bytes.with_label_values(&labels).local(),
        };
        self.metrics.remember(&self.owner, |series| _ = series.requests.insert(labels));
        cells
    }

    fn flush(&self) {
        for cells in self.classes.borrow().iter().flatten() {
            cells.requests.flush();
            cells.duration.flush();
            cells.request_bytes.flush();
            cells.response_bytes.flush();
        }
    }
}

/// Shared counters of connections with the same labels; touched once a tick, not once a read.
#[derive(Debug)]
pub(crate) struct ConnectionCells {
    total: IntCounter,
    open: IntGauge,
    sent: IntCounter,
    received: IntCounter,
}

impl ConnectionCells {
    fn resolve(metrics: &Metrics, owner: &Owner, direction: Direction, route: &Route) -> Self {
        let [namespace, service, backend] = route_labels(route);
        let (own_namespace, own_name) = (owner.namespace.to_string(), owner.workload.to_string());
        let direction_label = direction.as_str().to_owned();
        let labels = match direction {
            Direction::Outbound => [direction_label, own_namespace, own_name, namespace, service, backend],
            // The client's service account, if it has proved one; the destination is the pod's workload itself.
            Direction::Inbound => [direction_label, namespace, service, own_namespace, own_name, String::new()],
        };
        let cells = Self {
            total: metrics.connections.with_label_values(&labels),
            open: metrics.connections_open.with_label_values(&labels),
            sent: metrics.sent_bytes.with_label_values(&labels),
            received: metrics.received_bytes.with_label_values(&labels),
        };
        metrics.remember(owner, |series| _ = series.connections.insert(labels));
        cells
    }

    pub(crate) fn opened(&self) {
        self.total.inc();
        self.open.inc();
    }

    pub(crate) fn closed(&self) {
        self.open.dec();
    }

    pub(crate) fn bytes(&self, sent: u64, received: u64) {
        if sent > 0 {
            self.sent.inc_by(sent);
        }
        if received > 0 {
            self.received.inc_by(received);
        }
    }
}
