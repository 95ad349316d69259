//! One worker: a thread with a runtime of its own, and everything that its connections share. Workers share nothing with each other
//! but listeners, snapshots and metrics.

use std::{
    cell::RefCell,
    collections::{HashMap, hash_map::Entry},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    task::LocalSet,
};
use weft_identity::Credentials;
use weft_policy::{
    names::WorkloadId,
    snapshot::{Snapshot, SnapshotCell},
};

use crate::{
    access::AccessLog,
    balance::Balancer,
    budget::Budgets,
    config::ProxyConfig,
    drain::{DrainReport, Phase},
    flows::{Direction, FlowRow, FlowTable},
    learnt::{Learnt, LearntRow},
    limits,
    listener::{self, Listeners, Stop},
    metrics::{DetectionCells, Limit, Metrics, PodCells},
    pool::Pool,
    socket::{FlowSource, LocalPod, PodListeners, SocketFactory},
    tcp::Scratch,
};

/// What the control thread asks of a worker.
pub(crate) enum Command {
    AddPod(PodListeners),
    RemovePod(WorkloadId, Stop),
    Flows { limit: usize, answer: oneshot::Sender<Vec<FlowRow>> },
    Learnt { answer: oneshot::Sender<Vec<LearntRow>> },
    StopAccepting { answer: oneshot::Sender<()> },
    Drain { within: Duration, answer: oneshot::Sender<DrainReport> },
    Shutdown,
}

/// When a worker last showed that it lives: written by it, read by the control thread.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    epoch: Instant,
    last_ms: AtomicU64,
}

impl Heartbeat {
    pub(crate) fn new(epoch: Instant) -> Self {
        let heartbeat = Self { epoch, last_ms: AtomicU64::new(0) };
        heartbeat.beat();
        heartbeat
    }

    fn beat(&self) {
        let now = u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(now, Ordering::Relaxed);
    }

    pub(crate) fn age(&self) -> Duration {
        self.epoch.elapsed().saturating_sub(Duration::from_millis(self.last_ms.load(Ordering::Relaxed)))
    }
}

/// What workers are made from.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) config: Arc<ProxyConfig>,
    pub(crate) snapshots: Arc<SnapshotCell>,
    pub(crate) sockets: Arc<dyn SocketFactory>,
    pub(crate) captured: Arc<dyn FlowSource>,
    pub(crate) credentials: Option<Arc<dyn Credentials>>,
    pub(crate) metrics: Arc<Metrics>,
}

/// What all connections of one worker share.
pub(crate) struct Worker {
    pub(crate) index: usize,
    pub(crate) config: Arc<ProxyConfig>,
    pub(crate) snapshots: Arc<SnapshotCell>,
    pub(crate) sockets: Arc<dyn SocketFactory>,
    pub(crate) captured: Arc<dyn FlowSource>,
    /// Certificates of this node's pods; none where there is no authority.
    pub(crate) credentials: Option<Arc<dyn Credentials>>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) flows: Rc<FlowTable>,
    pub(crate) balancer: RefCell<Balancer>,
    pub(crate) budgets: RefCell<Budgets>,
    pub(crate) learnt: Learnt,
    pub(crate) detection: DetectionCells,
    pub(crate) scratch: Scratch,
    /// Room for downstream connections.
    pub(crate) connections: Arc<Semaphore>,
    /// Room for connects under way.
    pub(crate) dials: Semaphore,
    /// Room for handshakes of clients.
    pub(crate) handshakes: Semaphore,
    /// Room for copies of requests.
    pub(crate) mirrors: Arc<Semaphore>,
    pub(crate) warnings: Warnings,
    pods: RefCell<HashMap<WorkloadId, Rc<Pod>>>,
    /// The snapshot that inbound steps were last taken with.
    pub(crate) snapshot: RefCell<Arc<Snapshot>>,
    heartbeat: Arc<Heartbeat>,
}

/// What one worker has for one pod.
pub(crate) struct Pod {
    pub(crate) pod: Arc<LocalPod>,
    pub(crate) cells: PodCells,
    pub(crate) pool: Pool,
    pub(crate) access_log: AccessLog,
    pub(crate) listeners: Listeners,
}

impl Worker {
    fn new(index: usize, parts: Parts, heartbeat: Arc<Heartbeat>) -> Self {
        let (learnt, detection) = (Learnt::new(parts.config.learnt_ports_max), parts.metrics.detection_cells());
        Self {
            index,
            connections: Arc::new(Semaphore::new(parts.config.downstream_connections_max)),
            dials: Semaphore::new(parts.config.dials_max),
            handshakes: Semaphore::new(limits::TLS_HANDSHAKES_MAX),
            mirrors: Arc::new(Semaphore::new(limits::MIRRORS_MAX)),
            config: parts.config,
            snapshot: RefCell::new(parts.snapshots.load()),
            snapshots: parts.snapshots,
            sockets: parts.sockets,
            captured: parts.captured,
            credentials: parts.credentials,
            metrics: parts.metrics,
            flows: Rc::default(),
            balancer: RefCell::new(Balancer::new(fastrand::u64(..))),
            budgets: RefCell::new(Budgets::new(Instant::now())),
            learnt,
            detection,
            scratch: Scratch::default(),
            warnings: Warnings::default(),
            pods: RefCell::default(),
            heartbeat,
        }
    }

    /// The worker's state for a pod. A pod without listeners of its own shares another one's namespace.
    pub(crate) fn pod(&self, pod: &Arc<LocalPod>) -> Rc<Pod> {
        match self.pods.borrow_mut().entry(pod.id.clone()) {
            Entry::Occupied(entry) => Rc::clone(entry.get()),
            Entry::Vacant(entry) => Rc::clone(entry.insert(Rc::new(Pod {
                pod: Arc::clone(pod),
                cells: self.metrics.pod_cells(pod),
                pool: Pool::default(),
                access_log: AccessLog::default(),
                listeners: Listeners::default(),
            }))),
        }
    }

    /// The worker's state for a pod, if it has any.
    pub(crate) fn known_pod(&self, id: &WorkloadId) -> Option<Rc<Pod>> {
        self.pods.borrow().get(id).cloned()
    }

    /// Takes the current snapshot, if that is another one.
    pub(crate) fn refresh(&self) {
        if self.snapshot.borrow().generation != self.snapshots.generation() {
            self.snapshot.replace(self.snapshots.load());
        }
    }

    fn add_pod(self: &Rc<Self>, listeners: PodListeners) {
        // The same pod in another namespace: its sandbox was made anew, and nothing of the old one is of use.
        let moved = self
            .pods
            .borrow()
            .get(&listeners.pod.id)
            .is_some_and(|known| known.pod.netns_cookie != listeners.pod.netns_cookie);
        if moved {
            self.remove_pod(&listeners.pod.id, Stop::Now);
        }
        let pod = self.pod(&listeners.pod);
        for (sockets, direction) in [(listeners.outbound, Direction::Outbound), (listeners.inbound, Direction::Inbound)]
        {
            for socket in sockets {
                match tokio::net::TcpListener::from_std(socket) {
                    Ok(socket) => listener::listen(self, &pod, socket, direction),
                    Err(error) => {
                        self.metrics.accept_errors.inc();
                        tracing::error!(
                            worker = self.index, pod = %pod.pod.name, namespace = %pod.pod.namespace, direction = direction.as_str(), %error,
                            "a listener cannot be served by this worker"
                        );
                    }
                }
            }
        }
    }

    fn remove_pod(self: &Rc<Self>, id: &WorkloadId, how: Stop) {
        let Some(pod) = self.pods.borrow_mut().remove(id) else { return };
        pod.listeners.stop(how);
        if how == Stop::Now {
            pod.pool.clear();
            if self.flows.advance(Phase::Draining, |flow| flow.pod.id == pod.pod.id) == 0 {
                return;
            }
        }
        let worker = Rc::clone(self);
        tokio::task::spawn_local(async move {
            // Only its own connections: a pod that was added again under the same UID has new ones.
            let of_pod = |flow: &crate::flows::Flow| Arc::ptr_eq(&flow.pod, &pod.pod);
            if how == Stop::WhenEmpty {
                pod.listeners.stopped().await;
                pod.pool.clear();
                worker.flows.advance(Phase::Draining, of_pod);
            }
            tokio::time::sleep(worker.config.pod_removal_grace).await;
            worker.flows.advance(Phase::Cut, of_pod);
        });
    }

    async fn stop_accepting(&self) {
        let pods: Vec<_> = self.pods.borrow().values().cloned().collect();
        for pod in &pods {
            pod.listeners.stop(Stop::WhenEmpty);
        }
        for pod in pods {
            pod.listeners.stopped().await;
        }
    }

    async fn drain(&self, within: Duration) -> DrainReport {
        let deadline = tokio::time::Instant::now() + within;
        self.stop_accepting().await;
        let open = self.flows.advance(Phase::Draining, |_| true);
        while self.flows.len() > 0 && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(DRAIN_LOOK.min(deadline - tokio::time::Instant::now())).await;
        }
        let closed = self.cut_all().await;
        self.flush();
        DrainReport { finished: open.saturating_sub(closed), closed, workers_lost: 0 }
    }

    /// Resets every connection; returns how many there were.
    async fn cut_all(&self) -> usize {
        let open = self.flows.advance(Phase::Cut, |_| true);
        let deadline = Instant::now() + limits::SHUTDOWN_CUT;
        while self.flows.len() > 0 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        open
    }

    fn flush(&self) {
        self.detection.flush();
        for pod in self.pods.borrow().values() {
            pod.cells.flush();
        }
    }

    fn tick(&self) {
        self.heartbeat.beat();
        // Lets go of a snapshot that is not the current one any more.
        self.refresh();
        self.cut_denied();
        let (now, wall) = (Instant::now(), SystemTime::now());
        self.end_with_certificates(wall);
        self.flows.sweep(now);
        self.balancer.borrow_mut().sweep(now, limits::BALANCE_STATE_IDLE);
        self.budgets.borrow_mut().sweep(now);
        self.learnt.sweep(now, limits::LEARNT_IDLE);
        self.detection.flush();
        self.pods.borrow_mut().retain(|_, pod| {
            pod.cells.flush();
            let idle = (self.config.pool_idle_timeout, self.config.h2_pool_idle_timeout);
            pod.pool.sweep((now, wall), idle, self.credentials.as_deref());
            // A pod without listeners that nothing is open for is forgotten; it comes back with its next connection.
            !pod.listeners.is_empty() || Rc::strong_count(pod) > 1 || !pod.pool.is_empty()
        });
    }

    /// Ends connections whose certificates have, and begins to end those for which there are newer ones.
    fn end_with_certificates(&self, now: SystemTime) {
        self.flows.each(|flow| {
            let Some(remote) = flow.remote.get() else { return };
            if remote.has_expired(now) {
                if flow.control.advance(Phase::Cut) {
                    self.metrics.cut_expired.inc();
                    tracing::info!(peer = %flow.peer, identity = %remote.id(), "connection ends with its certificate");
                }
            } else if self.credentials.as_deref().is_some_and(|credentials| remote.is_outdated(credentials)) {
                flow.control.advance(Phase::Draining);
            }
        });
    }

    async fn run(self: Rc<Self>, mut commands: mpsc::Receiver<Command>) {
        let mut tick = tokio::time::interval(limits::TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let command = tokio::select! {
                _ = tick.tick() => {
                    self.tick();
                    continue;
                }
                command = commands.recv() => command,
            };
            match command {
                Some(Command::AddPod(listeners)) => self.add_pod(listeners),
                Some(Command::RemovePod(id, how)) => self.remove_pod(&id, how),
                Some(Command::Flows { limit, answer }) => _ = answer.send(self.flows.rows(self.index, limit)),
                Some(Command::Learnt { answer }) => _ = answer.send(self.learnt.rows()),
                Some(Command::StopAccepting { answer }) => {
                    let worker = Rc::clone(&self);
                    tokio::task::spawn_local(async move {
                        worker.stop_accepting().await;
                        let _ = answer.send(());
                    });
                }
                Some(Command::Drain { within, answer }) => {
                    let worker = Rc::clone(&self);
                    tokio::task::spawn_local(async move { _ = answer.send(worker.drain(within).await) });
                }
                Some(Command::Shutdown) | None => break,
            }
        }
        for pod in self.pods.borrow().values() {
            pod.listeners.stop(Stop::Now);
        }
        self.cut_all().await;
        self.flush();
    }
}

/// How often a drain looks whether all connections have ended.
const DRAIN_LOOK: Duration = Duration::from_millis(10);

/// Runs a worker on this thread until it is told to end.
pub(crate) fn run(
    runtime: &tokio::runtime::Runtime,
    index: usize,
    parts: Parts,
    heartbeat: Arc<Heartbeat>,
    commands: mpsc::Receiver<Command>,
) {
    let worker = Rc::new(Worker::new(index, parts, heartbeat));
    LocalSet::new().block_on(runtime, worker.run(commands));
}

/// Keeps warnings about what a peer can cause from filling the log.
#[derive(Debug, Default)]
pub(crate) struct Warnings(RefCell<HashMap<&'static str, (Instant, u64)>>);

impl Warnings {
    /// Whether to say it now, and how many times it was left unsaid since the last time.
    pub(crate) fn due(&self, what: &'static str) -> Option<u64> {
        let mut warnings = self.0.borrow_mut();
        let now = Instant::now();
        match warnings.entry(what) {
            Entry::Vacant(entry) => {
                entry.insert((now, 0));
                Some(0)
            }
            Entry::Occupied(mut entry) => {
                let (last, unsaid) = entry.get_mut();
                if now.duration_since(*last) < limits::WARN_INTERVAL {
                    *unsaid += 1;
                    return None;
                }
                *last = now;
                Some(std::mem::take(unsaid))
            }
        }
    }
}

impl Worker {
    /// Notes that a limit was met: in the metric, and now and then in the log.
    pub(crate) fn limit_reached(&self, limit: Limit, what: &'static str) {
        self.metrics.reached(limit);
        if let Some(unsaid) = self.warnings.due(what) {
            tracing::warn!(worker = self.index, limit = ?limit, unsaid, "{what}");
        }
    }
}
