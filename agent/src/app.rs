//! Wiring: the only file that knows every room.

use std::{
    collections::BTreeSet,
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use ::kube::Client;
use prometheus::Registry;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    net::{TcpListener, UnixStream},
    signal::unix::{Signal, SignalKind, signal},
    sync::{Notify, mpsc},
    task::JoinHandle,
};
use weft_identity::{Credential, Credentials, authority::Profile};
use weft_policy::{inbound::Stance, snapshot::SnapshotCell};
use weft_proxy::{config::ProxyConfig, proxy::Proxy};

use crate::{
    admin::server,
    capture::{
        self, Capture, CaptureConfig,
        handover::{self, Handover},
    },
    cni::{
        install::{self, Plugin},
        metrics::CniMetrics,
        protocol::CNI_SOCKET,
        server::{Announcement, serve as serve_cni},
    },
    config::{DefaultStance, Places, RunArgs, SourceArgs},
    identity::{
        Manager, Store,
        authority::Authority,
        keep,
        local::{Local, LocalError},
        metrics::IdentityMetrics,
        remote::{AddressError, Remote, RemoteConfig},
    },
    limits,
    locate::{HostPaths, Locate},
    metrics::AgentMetrics,
    prove,
    reconcile::Reconciler,
    removal,
    state::Shared,
    status::{
        Identity, Status,
        publish::{self, Publisher, metrics::PublishMetrics},
    },
    successor::{self, Stayed},
    telemetry::{Chain, LogLevel},
    uninstall::{self, DaemonSet},
    watch::{
        Change,
        directory::Directory,
        kube::{self, Cluster, health::Sources},
        notify,
    },
};

/// Name of the hand-over socket inside the run directory.
const HANDOVER_SOCKET: &str = "handover.sock";
/// Everything that an agent which is killed leaves in the run directory.
pub(crate) const SOCKETS: [&str; 3] = [server::ADMIN_SOCKET, HANDOVER_SOCKET, CNI_SOCKET];

/// Why the agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The run directory.
    #[error("cannot make the run directory {path}")]
    RunDir {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The manifests.
    #[error(transparent)]
    Manifests(#[from] crate::watch::directory::DirectoryError),
    /// The API server, or what names it.
    #[error(transparent)]
    Kube(#[from] crate::watch::kube::KubeError),
    /// The kernel's side.
    #[error("connections cannot be captured")]
    Capture(#[from] crate::capture::CaptureError),
    /// The authority in this process.
    #[error("there is nobody to sign certificates")]
    Authority(#[from] LocalError),
    /// The authority of the cluster.
    #[error("there is nobody to sign certificates")]
    AuthorityAddress(#[from] AddressError),
    /// The data path.
    #[error("the data path cannot start")]
    Proxy(#[from] weft_proxy::proxy::ProxyError),
    /// The admin socket or the metrics port.
    #[error(transparent)]
    Admin(#[from] server::AdminError),
    /// Metrics.
    #[error("metrics cannot be registered")]
    Metrics(#[from] prometheus::Error),
    /// After a hand-over, with `--stay-after-handover`.
    #[error("the agent that took over is gone; start again")]
    Alone,
    /// Threads, signals.
    #[error("the runtime cannot start")]
    Runtime(#[source] io::Error),
}

/// Where capture keeps its things.
#[must_use]
pub fn capture_config(places: &Places) -> CaptureConfig {
    CaptureConfig {
        bpf_dir: places.bpf_dir.clone(),
        cgroup_root: places.cgroup_root.clone(),
        ..CaptureConfig::default()
    }
}

/// Runs the agent until it is told to stop or hands over to another one.
///
/// # Errors
/// When it cannot start; nothing is left behind that was not there before.
pub fn run(args: &RunArgs, log_level: LogLevel) -> Result<(), RunError> {
    // Two threads: a scrape or a long compilation does not hold up the admin socket. Workers and the heartbeat have their own.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("weft-control")
        .enable_all()
        .build()
        .map_err(RunError::Runtime)?;
    runtime.block_on(start(args, log_level))
}

async fn start(args: &RunArgs, log_level: LogLevel) -> Result<(), RunError> {
    let run_dir = &args.places.run_dir;
    make_run_dir(run_dir)?;
    raise_file_limit();
    let mut signals = Signals::listen().map_err(RunError::Runtime)?;
    let registry = Registry::new();
    // An agent that runs already holds the port until it has handed over.
    let mut metrics_listener = match args.metrics_addr.0 {
        Some(addr) if !is_running(run_dir) => Some(server::bind_metrics(addr).await?),
        _ => None,
    };
    // What can fail without root or kernel comes first, so that a mistake in the command line changes nothing. And whoever carries
    // connections now goes on until there is policy to take over with.
    let sources = Arc::<Sources>::default();
    let mut source = Source::open(args, &sources, &registry).await?;
    capture::check_cgroup(&capture_config(&args.places))?;
    let Some(first) = source.first(metrics_listener.as_ref(), &registry, &mut signals).await? else { return Ok(()) };

    let mut old_agent = ask_for_handover(run_dir).await;
    if let (Some(addr), None, None) = (args.metrics_addr.0, &old_agent, &metrics_listener) {
        metrics_listener = Some(server::bind_metrics(addr).await?);
    }

    capture::use_proc(&args.host_proc);
    let capture = Capture::open(&capture_config(&args.places))?;
    let identities = start_identities(args, &capture, &registry)?;
    let store = identities.as_ref().map(|(store, _)| Arc::clone(store));
    let sockets = capture.sockets();
    let snapshots = Arc::new(SnapshotCell::default());
    let proxy_config = ProxyConfig { workers: args.workers.map(usize::from), ..ProxyConfig::default() };
    let credentials = store.clone().map(|store| store as Arc<dyn Credentials>);
    let proxy = Proxy::start(&proxy_config, Arc::clone(&snapshots), sockets.clone(), sockets, credentials, &registry)?;
    let shared = Arc::new(Shared::new(
        (&args.node, &args.places.bpf_dir, args.mtls),
        (source.locate(args), sources),
        proxy,
        snapshots,
        capture,
        store,
    ));
    if args.mtls.is_strict() && shared.identity.is_none() {
        tracing::warn!(
            "--mtls strict without an authority (--ca-address): pods in the mesh take nothing from other nodes"
        );
    }
    let deny = args.default_stance == DefaultStance::Deny;
    shared.compiler().set_default_stance(Stance { deny, origin: None });
    AgentMetrics::register(&registry, &shared)?;

    // Before any pod is captured: until the kernel has seen it once, a captured pod meets its fail mode.
    shared.capture().beat(shared.proxy.heartbeat_age())?;
    let heartbeat = Beating::start(Arc::clone(&shared)).map_err(RunError::Runtime)?;
    let handed = old_agent.as_mut().map(|old| std::mem::take(&mut old.listeners)).unwrap_or_default();
    let mut reconciler = Reconciler::new(Arc::clone(&shared), handed);
    reconciler.start(first).await;
    shared.set_ready();

    let drain = Arc::new(Notify::new());
    let admin = server::bind_socket(run_dir, server::ADMIN_SOCKET)?;
    let handover_socket = server::bind_socket(run_dir, HANDOVER_SOCKET)?;
    let (announcement_tx, announcement_rx) = mpsc::channel(limits::CNI_CONNECTIONS_MAX);
    // Manifests say themselves where their pods are.
    let client = source.client();
    let plugin = args.cni.places().map(Plugin::new);
    let cni = match client {
        Some(_) => start_cni(args, &registry, announcement_tx, plugin.clone())?,
        None => Vec::new(),
    };
    if let Some(old) = old_agent {
        if let Err(error) = join(tokio::task::spawn_blocking(move || old.done())).await {
            tracing::warn!(%error, "the agent before this one did not confirm that it stops");
        }
        metrics_listener = inherit_metrics_port(args).await;
    }

    let status = source.write_status(args, &shared);
    // Not before the first pods have said what they need: they are asked for together.
    let identities = identities.map(|(_, manager)| tokio::spawn(manager.run()));
    let publisher = source.publish(args, &shared, &registry)?;
    let prover = publisher.as_ref().and(shared.identity.clone()).map(|store| {
        let (readiness, sockets) = (Arc::clone(&shared.readiness), shared.capture().sockets());
        tokio::spawn(prove::run(readiness, sockets, store))
    });
    let (change_tx, change_rx) = mpsc::channel(limits::RECONCILE_QUEUE_MAX);
    let tasks = [
        tokio::spawn(sweep(Arc::clone(&shared))),
        tokio::spawn(source.follow(change_tx)),
        tokio::spawn(reconciler.run(change_rx, announcement_rx)),
        tokio::spawn(server::serve_admin(admin, Arc::clone(&shared), log_level, Arc::clone(&drain))),
    ];
    let metrics = metrics_listener
        .map(|listener| tokio::spawn(server::serve_metrics(listener, Arc::clone(&shared), registry.clone())));
    tracing::info!(node = args.node, source = %SourceName(&args.source), pid = std::process::id(), "weft is running");

    let ending = wait_for_end(&shared, &handover_socket, &drain, &mut signals).await;
    shared.set_draining();
    // Whether weft is removed is asked while everything is still served.
    let is_removed = matches!(ending, Ending::Stopped) && is_removed(args, client.as_ref()).await;
    for task in tasks.into_iter().chain(status).chain(publisher).chain(prover).chain(cni).chain(identities) {
        task.abort();
    }
    if let Ending::HandedOver(successor) = &ending {
        // The successor wants the port and both sockets; it holds the listeners, and its programs are in place.
        tracing::info!(successor, "another agent has taken over");
        if let Some(metrics) = &metrics {
            metrics.abort();
        }
    } else {
        if is_removed {
            leave(args, &shared, client.as_ref(), plugin.as_ref()).await;
        }
        // From here on new connections meet the fail mode; those that wait in accept queues are still served.
        if let Err(error) = shared.capture().unpublish_listeners() {
            tracing::warn!(error = %Chain(&error), "listeners stay published until they are closed");
        }
    }
    // From here on, so that a signal that comes while connections finish is not lost.
    let mut told = signal(SignalKind::terminate()).map_err(RunError::Runtime)?;
    shared.proxy.stop_accepting().await;
    let report = shared.proxy.drain(args.drain_timeout()).await;
    drop(heartbeat);
    tracing::info!(finished = report.finished, closed = report.closed, "weft has stopped");
    if matches!(ending, Ending::Stopped) {
        for name in SOCKETS {
            let _ = std::fs::remove_file(run_dir.join(name));
        }
        if is_removed {
            removal::undo_capture(&args.places);
        } else if let Err(error) = shared.capture().finish_all_leaving() {
            tracing::warn!(error = %Chain(&error), "pods were released only in part");
        }
    } else if args.stay_after_handover {
        // Not the hand-over socket: whoever connects there takes over.
        let told = async {
            told.recv().await;
        };
        if successor::stay(&run_dir.join(server::ADMIN_SOCKET), told).await == Stayed::Alone {
            return Err(RunError::Alone);
        }
    }
    Ok(())
}

/// Takes weft off this node, as far as that can be done while connections are still served: no other node talks mutual TLS to its pods
/// any more, and then their new connections go direct.
async fn leave(args: &RunArgs, shared: &Shared, client: Option<&Client>, plugin: Option<&Plugin>) {
    match plugin.map(Plugin::remove) {
        Some(Ok(files)) => tracing::info!(?files, "the CNI plugin is removed"),
        Some(Err(error)) => {
            tracing::error!(error = %Chain(&error), "the CNI plugin cannot be removed; it lets every pod start at once");
        }
        None => {}
    }
    if let Err(error) = shared.capture().start_all_leaving() {
        tracing::warn!(error = %Chain(&error), "connections to pods are captured until weft is gone");
    }
    if let Some(client) = client {
        publish::withdraw_all(client, &args.node, limits::PUBLISH_WITHDRAW_MAX).await;
    }
    if let Err(error) = shared.capture().let_all_go() {
        tracing::warn!(error = %Chain(&error), "not every pod could be let go of; those left meet their fail mode until weft is gone");
    }
}

/// Where objects come from.
enum Source {
    Directory(Box<Directory>, PathBuf),
    Cluster(Box<Cluster>, Client),
}

impl Source {
    /// Opens what the command line names.
    async fn open(args: &RunArgs, sources: &Arc<Sources>, registry: &Registry) -> Result<Self, RunError> {
        if let Some(path) = &args.source.manifests {
            return Ok(Self::Directory(Box::new(Directory::new(path)), path.clone()));
        }
        let client = kube::connect(args.source.kubeconfig.as_deref(), args.api_lost_after()).await?;
        kube::health::register(registry, sources)?;
        Ok(Self::Cluster(Box::new(Cluster::watch(&client, &args.node, sources)), client))
    }

    /// Everything that there is. An API server is waited for, and meanwhile the metrics port says so; `None` if the agent is told to stop.
    async fn first(
        &mut self,
        port: Option<&TcpListener>,
        registry: &Registry,
        signals: &mut Signals,
    ) -> Result<Option<Change>, RunError> {
        let cluster = match self {
            Self::Directory(directory, _) => return Ok(Some(directory.scan(&BTreeSet::new())?)),
            Self::Cluster(cluster, _) => cluster,
        };
        tracing::info!("waiting for the API server to list every kind of object; nothing is changed until then");
        tokio::select! {
            change = cluster.first() => Ok(change),
            () = server::serve_waiting(port, registry) => Ok(None),
            () = signals.recv() => Ok(None),
        }
    }

    /// How pods are found. What a pod says of itself counts only where whoever writes the manifests is root of this machine anyway.
    fn locate(&self, args: &RunArgs) -> Locate {
        match self {
            Self::Directory(..) => Locate::Manifests,
            Self::Cluster(..) => Locate::Host(HostPaths::new(&args.host_proc, args.places.cgroup_root.as_deref())),
        }
    }

    /// The API server.
    fn client(&self) -> Option<Client> {
        match self {
            Self::Directory(..) => None,
            Self::Cluster(_, client) => Some(client.clone()),
        }
    }

    /// Hands over every further change.
    async fn follow(self, changes: mpsc::Sender<Change>) {
        match self {
            Self::Directory(directory, path) => notify::follow(*directory, path, changes).await,
            Self::Cluster(cluster, _) => cluster.follow(changes).await,
        }
    }

    /// Begins to write what becomes of objects, where there is somewhere to write it.
    fn write_status(&self, args: &RunArgs, shared: &Arc<Shared>) -> Option<JoinHandle<()>> {
        let Self::Cluster(_, client) = self else { return None };
        let identity = Identity::new(&args.pod_namespace, &args.node);
        Some(tokio::spawn(Status::new(client, Arc::clone(shared), identity).run()))
    }
}

impl Source {
    /// Begins to tell other nodes of this one's pods, where there are others.
    fn publish(
        &self,
        args: &RunArgs,
        shared: &Arc<Shared>,
        registry: &Registry,
    ) -> Result<Option<JoinHandle<()>>, RunError> {
        let Self::Cluster(_, client) = self else { return Ok(None) };
        if let Some(store) = shared.identity.clone() {
            let is_valid = |credential: Arc<Credential>| credential.svid().not_after > SystemTime::now();
            shared.readiness.set_certificates(Box::new(move |account| store.of(account).is_some_and(is_valid)));
        }
        shared.readiness.require_proof();
        let metrics = PublishMetrics::register(registry)?;
        let publisher = Publisher::new(client, &args.node, Arc::clone(&shared.readiness), metrics);
        Ok(Some(tokio::spawn(publisher.run())))
    }
}

/// A source in the words of the command line.
struct SourceName<'a>(&'a SourceArgs);

impl std::fmt::Display for SourceName<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.0.manifests, &self.0.kubeconfig) {
            (Some(path), _) | (None, Some(path)) => path.display().fmt(f),
            (None, None) => f.write_str("the cluster that the agent runs in"),
        }
    }
}

/// The identities of this node's pods, where somebody signs for them.
fn start_identities(
    args: &RunArgs,
    capture: &Capture,
    registry: &Registry,
) -> Result<Option<(Arc<Store>, Manager)>, RunError> {
    let (keep, identity) = (capture.keep(), &args.identity);
    let trust_domain = identity.trust_domain.clone();
    let authority: Arc<dyn Authority> = if let Some(address) = &identity.ca_address {
        let config = RemoteConfig {
            address: address.clone(),
            server_name: identity.ca_server_name.clone(),
            token_file: identity.ca_token_file.clone(),
            bundle_file: identity.ca_bundle_file.clone(),
            trust_domain: trust_domain.clone(),
            call_timeout: limits::AUTHORITY_CALL_TIMEOUT,
        };
        Remote::start(config, keep::bundle(&*keep))?
    } else if args.source.manifests.is_some() {
        let profile = Profile::unchecked(Duration::from_secs(identity.certificate_ttl_s));
        Arc::new(Local::open(trust_domain.clone(), identity.ca_keys_file.as_deref(), &*keep, profile)?)
    } else {
        tracing::info!(
            "no authority is named (--ca-address): pods have no identity, and there is no mutual TLS between nodes"
        );
        return Ok(None);
    };
    let store = Store::new(trust_domain, authority.name());
    let metrics = IdentityMetrics::register(registry, &store)?;
    let manager = Manager::new(Arc::clone(&store), authority, keep, metrics);
    Ok(Some((store, manager)))
}

/// Listens to the CNI plugin, and keeps it in its place if that is wanted.
fn start_cni(
    args: &RunArgs,
    registry: &Registry,
    announcements: mpsc::Sender<Announcement>,
    plugin: Option<Plugin>,
) -> Result<Vec<JoinHandle<()>>, RunError> {
    let run_dir = &args.places.run_dir;
    let metrics = CniMetrics::register(registry)?;
    let listener = server::bind_socket(run_dir, CNI_SOCKET)?;
    let mut tasks = vec![tokio::spawn(serve_cni(listener, announcements, metrics.clone()))];
    if let Some(plugin) = plugin {
        let program = install::program().map_err(RunError::Runtime)?;
        // The run directory has the same path on the node.
        tasks.push(tokio::spawn(plugin.keep(program, run_dir.join(CNI_SOCKET), metrics)));
    }
    Ok(tasks)
}

/// Whether an agent answers.
pub(crate) fn is_running(run_dir: &Path) -> bool {
    std::os::unix::net::UnixStream::connect(run_dir.join(server::ADMIN_SOCKET)).is_ok()
}

/// Every carried connection takes two descriptors, and processes are started with a limit that suits select(2). Raising the hard limit
/// needs CAP_SYS_RESOURCE; without it the agent takes what it may have.
fn raise_file_limit() {
    let before = getrlimit(Resource::Nofile);
    let wanted = before.maximum.map(|maximum| maximum.max(limits::FILES_MAX));
    let raised = setrlimit(Resource::Nofile, Rlimit { current: wanted, maximum: wanted })
        .or_else(|_| setrlimit(Resource::Nofile, Rlimit { current: before.maximum, maximum: before.maximum }));
    let now = getrlimit(Resource::Nofile).current;
    if let Err(error) = raised {
        tracing::warn!(%error, limit = ?now, "the limit of open files stays as it was");
    } else if now < wanted {
        tracing::info!(limit = ?now, wanted = ?wanted, "the limit of open files could not be raised as far as weft would like");
    }
}

/// The port becomes free in the moment in which the old agent lets go of it.
async fn inherit_metrics_port(args: &RunArgs) -> Option<TcpListener> {
    let addr = args.metrics_addr.0?;
    let deadline = tokio::time::Instant::now() + limits::HANDOVER_TIMEOUT;
    loop {
        match server::bind_metrics(addr).await {
            Ok(listener) => return Some(listener),
            Err(error) if tokio::time::Instant::now() > deadline => {
                tracing::error!(error = %Chain(&error), "there are no metrics");
                return None;
            }
            Err(_) => tokio::time::sleep(limits::METRICS_PORT_RETRY).await,
        }
    }
}

fn make_run_dir(run_dir: &Path) -> Result<(), RunError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(run_dir)
        .map_err(|source| RunError::RunDir { path: run_dir.to_path_buf(), source })
}

/// Shows the kernel that the data path is alive, as long as it is.
/// Tells the programs that the agent runs, until it is dropped. On a thread of its own: nothing that this process does, however long it
/// takes, makes the heartbeat late.
struct Beating {
    stop: Option<std::sync::mpsc::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Beating {
    fn start(shared: Arc<Shared>) -> io::Result<Self> {
        // Not through the lock on capture: capturing a pod may take longer than a heartbeat may be late.
        let heartbeat = shared.capture().heartbeat();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let beat = move || {
            while stopped.recv_timeout(limits::HEARTBEAT_PERIOD) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                let age = shared.proxy.heartbeat_age();
                if let Err(error) = heartbeat.beat(age) {
                    tracing::error!(%error, worker_age_ms = age.as_millis(), "heartbeat is not written; pods will meet their fail mode");
                }
            }
        };
        let thread = std::thread::Builder::new().name("weft-heartbeat".to_owned()).spawn(beat)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Beating {
    fn drop(&mut self) {
        drop(self.stop.take());
        // It only ends by panicking otherwise, which has been told.
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

/// Forgets what applications closed before the agent could accept it.
async fn sweep(shared: Arc<Shared>) {
    let mut tick = tokio::time::interval(limits::SWEEP_PERIOD);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if let Err(error) = shared.capture().sweep() {
            tracing::warn!(error = %Chain(&error), "stale entries stay in the map of captured connections");
        }
    }
}

/// Whether this agent stops because weft is removed from the cluster.
async fn is_removed(args: &RunArgs, client: Option<&Client>) -> bool {
    let Some((name, client)) = args.daemonset.clone().zip(client) else { return false };
    uninstall::is_removed(client, &DaemonSet { namespace: args.pod_namespace.clone(), name }).await
}

/// Why the agent stops.
#[derive(Debug)]
enum Ending {
    Stopped,
    HandedOver(String),
}

/// The signals that end the agent, from its start on: one that comes while it starts is not lost.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

async fn wait_for_end(
    shared: &Arc<Shared>,
    handover_socket: &tokio::net::UnixListener,
    drain: &Notify,
    signals: &mut Signals,
) -> Ending {
    loop {
        tokio::select! {
            () = signals.recv() => return Ending::Stopped,
            () = drain.notified() => return Ending::Stopped,
            accepted = handover_socket.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let peer = stream.peer_cred().ok().and_then(|cred| cred.pid()).map_or_else(|| "unknown".to_owned(), |pid| pid.to_string());
                match give(shared, stream).await {
                    Ok(()) => return Ending::HandedOver(peer),
                    Err(error) => tracing::warn!(%error, peer, "hand-over failed; this agent goes on"),
                }
            }
        }
    }
}

async fn give(shared: &Arc<Shared>, stream: UnixStream) -> io::Result<()> {
    let listeners = shared.capture().offer()?;
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    join(tokio::task::spawn_blocking(move || handover::serve(&stream, &listeners))).await?;
    shared.capture().handed_over();
    Ok(())
}

async fn ask_for_handover(run_dir: &Path) -> Option<Handover> {
    let path = run_dir.join(HANDOVER_SOCKET);
    let stream = std::os::unix::net::UnixStream::connect(path).ok()?;
    match join(tokio::task::spawn_blocking(move || handover::receive(stream))).await {
        Ok(old) => {
            tracing::info!(listeners = old.listeners.len(), "taking over from the agent that runs already");
            Some(old)
        }
        Err(error) => {
            tracing::warn!(%error, "an agent seems to run already but does not hand over; starting without its listeners");
            None
        }
    }
}

async fn join<T>(task: tokio::task::JoinHandle<io::Result<T>>) -> io::Result<T> {
    task.await.map_err(io::Error::other)?
}
