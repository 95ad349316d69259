//! A data path with one captured client pod, and the plans that a test gives it.

use std::{
    collections::{HashMap, HashSet},
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use prometheus::Registry;
use tokio::{
    net::{TcpSocket, TcpStream},
    sync::mpsc,
};
use weft_identity::Credentials;
use weft_policy::{
    backend_policy::{BackendPolicy, Balance},
    endpoints::{Endpoint, EndpointCell, EndpointSet},
    inbound::InboundPlan,
    matcher::RouteMatcher,
    names::{Generation, ObjectRef, ServiceAccountKey, ServiceKey, WorkloadId},
    plan::{AppProtocol, OutboundPlan, PodPlan, RouteTable},
    rule::{Action, Rule, RuleIr},
    snapshot::{Snapshot, SnapshotCell},
    split::{Backend, Split},
};
use weft_proxy::{
    config::ProxyConfig,
    proxy::Proxy,
    socket::{CapturedFlow, Dial, DialSocket, FlowSource, Lease, LocalPod, PodListeners, SocketError, SocketFactory},
};

use crate::wire::Wire;

/// Longer than anything that works takes, even on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The outcome of something that must come about.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("should have come about long ago")
}

/// Looks until it is so.
pub(crate) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !is_so() {
        assert!(tokio::time::Instant::now() < deadline, "never came about: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Plays capture: knows where test clients were going, and makes plain sockets.
#[derive(Default)]
pub(crate) struct Capture {
    pub(crate) destinations: Mutex<HashMap<SocketAddr, CapturedFlow>>,
    pub(crate) captured: Mutex<HashSet<WorkloadId>>,
    pub(crate) dials: AtomicUsize,
    pub(crate) started: AtomicUsize,
    pub(crate) leases: Arc<AtomicUsize>,
    /// Held by a test, it hangs the worker that accepts next.
    pub(crate) hang: Mutex<()>,
    /// Fails every dial to these before it begins.
    pub(crate) no_socket: Mutex<HashSet<SocketAddr>>,
    /// Whether clients come from ports that are for mutual TLS.
    pub(crate) tls_ports: AtomicBool,
    /// Where applications get what is dialled for a client elsewhere. A pod's listener holds their address, so each of these connections
    /// has a listener of its own, for the moment in which it is made.
    pub(crate) applications: Mutex<Option<mpsc::UnboundedSender<std::net::TcpStream>>>,
    listening: Mutex<HashMap<SocketAddr, std::net::TcpListener>>,
}

/// A listener whose address others may have too.
pub(crate) fn shared_listener(at: SocketAddr) -> std::net::TcpListener {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.bind(&at.into()).unwrap();
    socket.listen(64).unwrap();
    socket.into()
}

struct Held(Arc<AtomicUsize>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl SocketFactory for Capture {
    fn socket(&self, dial: &Dial<'_>) -> Result<DialSocket, SocketError> {
        let to = match dial {
            Dial::Outbound { to, .. } | Dial::Inbound { to, .. } => *to,
        };
        self.dials.fetch_add(1, Ordering::SeqCst);
        if self.no_socket.lock().unwrap().contains(&to) {
            return Err(SocketError::BypassFull);
        }
        let kernel = |action| move |source| SocketError::Kernel { action, source };
        let socket = socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None)
            .map_err(kernel("open"))?;
        socket.set_nonblocking(true).map_err(kernel("unblock"))?;
        if let Dial::Inbound { to, .. } = dial
            && self.applications.lock().unwrap().is_some()
        {
            self.listening.lock().unwrap().insert(*to, shared_listener(*to));
        }
        self.leases.fetch_add(1, Ordering::SeqCst);
        Ok(DialSocket { socket, lease: Lease(Some(Box::new(Held(Arc::clone(&self.leases))))) })
    }

    fn started(&self, _socket: &DialSocket, dial: &Dial<'_>) -> Result<(), SocketError> {
        self.started.fetch_add(1, Ordering::SeqCst);
        if let Dial::Inbound { to, .. } = dial
            && let Some(listener) = self.listening.lock().unwrap().remove(to)
            && let Some(applications) = &*self.applications.lock().unwrap()
        {
            let (application, _) = listener.accept().unwrap();
            // Whoever comes next is for the pod's listener.
            drop(listener);
            // A test that has ended takes none.
            let _ = applications.send(application);
        }
        Ok(())
    }

    fn is_captured(&self, workload: &WorkloadId) -> bool {
        self.captured.lock().unwrap().contains(workload)
    }

    fn is_tls_port(&self, _port: u16) -> bool {
        self.tls_ports.load(Ordering::SeqCst)
    }
}

impl FlowSource for Capture {
    fn take(&self, _pod: &Arc<LocalPod>, _local: SocketAddr, peer: SocketAddr) -> Option<CapturedFlow> {
        drop(self.hang.lock().unwrap());
        self.destinations.lock().unwrap().remove(&peer)
    }
}

/// A Service address for tests; nothing listens there.
pub(crate) fn vip(n: u8) -> SocketAddr {
    SocketAddr::from(([198, 51, 100, n], 80))
}

pub(crate) fn local_pod(name: &str) -> Arc<LocalPod> {
    Arc::new(LocalPod {
        id: WorkloadId::new(&format!("uid-{name}")),
        namespace: "shop".into(),
        name: name.into(),
        owner: name.split('-').next().unwrap().into(),
        account: ServiceAccountKey::new("shop", name),
        netns_cookie: 1,
    })
}

pub(crate) fn endpoint(address: SocketAddr) -> Endpoint {
    Endpoint { address, workload: None, node: None }
}

pub(crate) fn cell(addresses: &[SocketAddr]) -> Arc<EndpointCell> {
    speaking(AppProtocol::Detect, addresses)
}

/// Endpoints of a Service port that is declared to speak something.
pub(crate) fn speaking(protocol: AppProtocol, addresses: &[SocketAddr]) -> Arc<EndpointCell> {
    let mut ready: Vec<_> = addresses.iter().copied().map(endpoint).collect();
    ready.sort();
    let policy = BackendPolicy::shared(Balance::RoundRobin);
    Arc::new(EndpointCell::new(EndpointSet { ready: ready.into(), protocol, policy, ..EndpointSet::default() }))
}

pub(crate) fn split(name: &str, backends: &[(&str, u64, &Arc<EndpointCell>)]) -> Arc<Split> {
    let backend = |(name, weight, cell): &(&str, u64, &Arc<EndpointCell>)| {
        Backend::new(ServiceKey::new("shop", name), 80, *weight, Arc::clone(cell))
    };
    Arc::new(Split::new(ObjectRef::new("TrafficSplit", "shop", name), backends.iter().map(backend).collect()))
}

pub(crate) fn plan(protocol: AppProtocol, otherwise: Arc<Split>) -> Arc<OutboundPlan> {
    Arc::new(OutboundPlan {
        service: ServiceKey::new("shop", "web"),
        port: 80,
        protocol,
        routes: RouteTable { matcher: RouteMatcher::default(), matched: Box::default(), otherwise: rule(&otherwise) },
        consumers: Box::default(),
        connection: otherwise,
    })
}

/// A rule that chooses from a split.
pub(crate) fn rule(split: &Arc<Split>) -> Arc<Rule> {
    let ir = Arc::new(RuleIr::forward(split.origin.clone(), Vec::new()));
    Arc::new(Rule { ir, action: Action::Forward(Arc::clone(split)), mirrors: Box::default() })
}

/// A plan for a Service that is not split.
pub(crate) fn service(protocol: AppProtocol, addresses: &[SocketAddr]) -> Arc<OutboundPlan> {
    plan(protocol, split("web", &[("web", 1, &speaking(protocol, addresses))]))
}

/// A running data path.
pub(crate) struct Mesh {
    pub(crate) proxy: Option<Proxy>,
    pub(crate) capture: Arc<Capture>,
    pub(crate) snapshots: Arc<SnapshotCell>,
    pub(crate) registry: Registry,
    pub(crate) pod: Arc<LocalPod>,
    /// Where captured connections of the pod arrive.
    pub(crate) outbound: SocketAddr,
    generation: AtomicU64,
    snapshot: Mutex<Snapshot>,
}

impl Mesh {
    pub(crate) fn start() -> Self {
        Self::with(&ProxyConfig::default())
    }

    /// With one worker unless the test says otherwise, so that shares are exact.
    pub(crate) fn with(config: &ProxyConfig) -> Self {
        Self::secured(config, None)
    }

    /// With certificates.
    pub(crate) fn secured(config: &ProxyConfig, credentials: Option<Arc<dyn Credentials>>) -> Self {
        let config = ProxyConfig { workers: config.workers.or(Some(1)), ..config.clone() };
        let (capture, snapshots, registry) =
            (Arc::<Capture>::default(), Arc::<SnapshotCell>::default(), Registry::new());
        let proxy =
            Proxy::start(&config, Arc::clone(&snapshots), capture.clone(), capture.clone(), credentials, &registry)
                .unwrap();
        let mesh = Self {
            proxy: Some(proxy),
            capture,
            snapshots,
            registry,
            pod: local_pod("client-1"),
            outbound: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            generation: AtomicU64::new(0),
            snapshot: Mutex::default(),
        };
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let outbound = listener.local_addr().unwrap();
        mesh.proxy().add_pod(PodListeners {
            pod: Arc::clone(&mesh.pod),
            outbound: vec![listener],
            inbound: Vec::new(),
        });
        Self { outbound, ..mesh }
    }

    pub(crate) fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().unwrap()
    }

    /// Waits until a worker has ticked: the heartbeat's age falls.
    pub(crate) async fn ticked(&self) {
        let mut last = Duration::ZERO;
        until("a tick", || {
            let age = self.proxy().heartbeat_age();
            age < std::mem::replace(&mut last, age)
        })
        .await;
    }

    /// Publishes a changed snapshot.
    pub(crate) fn publish(&self, change: impl FnOnce(&mut Snapshot)) {
        let mut snapshot = self.snapshot.lock().unwrap();
        change(&mut snapshot);
        let next = Snapshot {
            generation: Generation(self.generation.fetch_add(1, Ordering::SeqCst) + 1),
            services: snapshot.services.clone(),
            addresses: snapshot.addresses.clone(),
            pods: snapshot.pods.clone(),
            inbound: snapshot.inbound.clone(),
            peers: snapshot.peers.clone(),
            strict: snapshot.strict.clone(),
        };
        self.snapshots.publish(Arc::new(next));
    }

    pub(crate) fn serve(&self, at: SocketAddr, plan: Arc<OutboundPlan>) {
        self.publish(|snapshot| _ = snapshot.addresses.insert(at, plan));
    }

    pub(crate) fn serve_pod(&self, plan: PodPlan) {
        self.publish(|snapshot| _ = snapshot.pods.insert(plan.address, Arc::new(plan)));
    }

    pub(crate) fn allow_inbound(&self, workload: &WorkloadId) {
        self.publish(|snapshot| _ = snapshot.inbound.insert(workload.clone(), Arc::new(InboundPlan::default())));
    }

    /// A connection of the client pod that asked for `destination`.
    pub(crate) async fn connect(&self, destination: SocketAddr) -> TcpStream {
        self.try_connect(destination).await.unwrap()
    }

    /// Waits until the data path has accepted a connection.
    pub(crate) async fn taken(&self, stream: &TcpStream) {
        let client = stream.local_addr().unwrap();
        until("it is accepted", || !self.capture.destinations.lock().unwrap().contains_key(&client)).await;
    }

    /// A connection that is reset without a byte; perhaps so fast that the connect itself fails.
    pub(crate) async fn connect_and_be_reset(&self, destination: SocketAddr) {
        match self.try_connect(destination).await {
            Ok(stream) => {
                let mut client = Wire::new(stream);
                client.reset().await;
                assert_eq!(client.read_so_far(), b"");
            }
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        }
    }

    async fn try_connect(&self, destination: SocketAddr) -> std::io::Result<TcpStream> {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let flow = CapturedFlow { original_dst: destination, source: Arc::clone(&self.pod) };
        self.capture.destinations.lock().unwrap().insert(socket.local_addr().unwrap(), flow);
        let stream = soon(socket.connect(self.outbound)).await?;
        // As clients of HTTP do; small frames that answer each other would wait for delayed acknowledgements.
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// The sum of a counter or gauge over the series that have all these labels.
    pub(crate) fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let has = |metric: &prometheus::proto::Metric, (name, value): &(&str, &str)| {
            metric.get_label().iter().any(|label| label.name() == *name && label.value() == *value)
        };
        self.registry
            .gather()
            .iter()
            .filter(|family| family.name() == name)
            .flat_map(|family| family.get_metric())
            .filter(|metric| labels.iter().all(|label| has(metric, label)))
            .map(|metric| {
                metric.get_counter().get_value()
                    + metric.get_gauge().get_value()
                    + metric.get_histogram().get_sample_count() as f64
            })
            .sum()
    }

    /// How many series of a family have all these labels.
    pub(crate) fn series(&self, name: &str) -> usize {
        self.registry
            .gather()
            .iter()
            .filter(|family| family.name() == name)
            .map(|family| family.get_metric().len())
            .sum()
    }

    /// Waits until a metric has a value; counters of requests follow by the worker's tick.
    pub(crate) async fn metric_becomes(&self, name: &str, labels: &[(&str, &str)], value: f64) {
        until(&format!("{name}{labels:?} is {value}, not {}", self.metric(name, labels)), || {
            self.metric(name, labels) == value
        })
        .await;
    }
}
