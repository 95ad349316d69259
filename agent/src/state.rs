//! What the agent's parts share. Locks here are for the control side only; the data path never takes one.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use weft_policy::{compile::Compiler, snapshot::SnapshotCell};
use weft_proxy::proxy::Proxy;

use crate::{
    capture::Capture,
    config::DefaultMtls,
    identity::Store,
    locate::Locate,
    older::NotCut,
    pods::Pods,
    readiness::Readiness,
    watch::{SourceProblem, kube::health::Sources},
};

/// What the agent's parts share.
pub struct Shared {
    /// Name of this node.
    pub node: String,
    /// Where programs, maps and links are pinned.
    pub bpf_dir: PathBuf,
    /// What pods take from elsewhere whose namespace does not say.
    pub mtls: DefaultMtls,
    /// When the agent started.
    pub started: Instant,
    /// How this node's pods are found.
    pub locate: Locate,
    /// How the watches of the API server are doing; empty where objects come from a directory.
    pub sources: Arc<Sources>,
    /// The data path.
    pub proxy: Proxy,
    /// Where the plans in force are found.
    pub snapshots: Arc<SnapshotCell>,
    /// The identities of this node's pods; none where there is no authority.
    pub identity: Option<Arc<Store>>,
    /// Connections that policy denies and that could not be ended.
    pub not_cut: NotCut,
    /// What other nodes are told of this node's pods.
    pub readiness: Arc<Readiness>,
    capture: Mutex<Capture>,
    compiler: Mutex<Compiler>,
    pods: Mutex<Pods>,
    problems: Mutex<Arc<[SourceProblem]>>,
    ready: AtomicBool,
    draining: AtomicBool,
}

impl Shared {
    /// Everything as it is before the first change.
    #[must_use]
    pub fn new(
        (node, bpf_dir, mtls): (&str, &Path, DefaultMtls),
        (locate, sources): (Locate, Arc<Sources>),
        proxy: Proxy,
        snapshots: Arc<SnapshotCell>,
        capture: Capture,
        identity: Option<Arc<Store>>,
    ) -> Self {
        Self {
            node: node.to_owned(),
            bpf_dir: bpf_dir.to_path_buf(),
            mtls,
            started: Instant::now(),
            locate,
            sources,
            proxy,
            snapshots,
            identity,
            not_cut: NotCut::default(),
            readiness: Arc::default(),
            capture: Mutex::new(capture),
            compiler: Mutex::default(),
            pods: Mutex::new(Pods::new(node)),
            problems: Mutex::default(),
            ready: AtomicBool::new(false),
            draining: AtomicBool::new(false),
        }
    }

    /// The kernel's side.
    pub fn capture(&self) -> MutexGuard<'_, Capture> {
        lock(&self.capture)
    }

    /// The model and the plans made from it.
    pub fn compiler(&self) -> MutexGuard<'_, Compiler> {
        lock(&self.compiler)
    }

    /// This node's pods.
    pub fn pods(&self) -> MutexGuard<'_, Pods> {
        lock(&self.pods)
    }

    /// What the source cannot use.
    pub fn problems(&self) -> MutexGuard<'_, Arc<[SourceProblem]>> {
        lock(&self.problems)
    }

    /// Whether objects are applied and every pod was tried.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.ready.load(Ordering::Acquire) && !self.draining()
    }

    /// From now on [`ready`](Self::ready).
    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Release);
    }

    /// Whether the agent takes no new connections.
    #[must_use]
    pub fn draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// From now on [`draining`](Self::draining).
    pub fn set_draining(&self) {
        self.draining.store(true, Ordering::Release);
    }
}

/// A panic elsewhere leaves plain data behind, which is still the best there is.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
