//! One pod: capturing it, and letting it go.
//!
//! The order is what matters: nothing is redirected before somebody listens, what a release must restore is recorded before it is
//! changed, and a failure leaves the pod as it was.

use std::{
    io,
    net::IpAddr,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use weft_abi::{PodConfig, STATS_CGROUP_BIT, pod_flags};
use weft_policy::names::{ServiceAccountKey, WorkloadId};
use weft_proxy::socket::{LocalPod, PodListeners};

use super::{
    Capture,
    cgroup::Cgroup,
    convert,
    diag::Diag,
    error::{CaptureError, PodError},
    handover::HandedListener,
    listeners::{Listeners, has_ipv6},
    netns::Netns,
    pins::{Pins, remove_link},
    released, routes,
    sockets::PodSockets,
    sysctl,
    tables::Tables,
};

/// A pod that is to be captured.
#[derive(Clone, Debug)]
pub struct PodSpec {
    /// UID.
    pub id: WorkloadId,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// What it belongs to.
    pub owner: Arc<str>,
    /// Its service account.
    pub account: ServiceAccountKey,
    /// Path of its network namespace; `None` for a host-network pod.
    pub netns: Option<PathBuf>,
    /// Path of its cgroup; only host-network pods need it.
    pub cgroup: Option<PathBuf>,
    /// Its addresses, the first of each family being the one it is redirected to.
    pub ips: Vec<IpAddr>,
    /// With the agent gone: refuse, instead of going direct.
    pub fail_closed: bool,
}

/// A pod that is captured.
#[derive(Debug)]
pub struct PodAttachment {
    /// Where its connections arrive.
    pub listeners: PodListeners,
    /// Connections that were established when capture of the pod first began, and so never pass the agent.
    pub connections_before: u32,
    /// Whether an earlier agent captured it already, so that there was no moment without capture.
    pub adopted: bool,
}

/// A captured pod, as the facade remembers it.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) sockets: Arc<PodSockets>,
    pub(crate) config: PodConfig,
    /// Where its network namespace was found; `None` for a host-network pod.
    pub(crate) netns_path: Option<PathBuf>,
    /// More descriptors for its listeners, to be given to the next agent. Empty for host-network pods, which share theirs.
    pub(crate) listeners: Listeners,
}

impl Attached {
    pub(crate) fn is_host(&self) -> bool {
        self.config.flags & pod_flags::HOST_NETWORK != 0
    }

    pub(crate) fn stats_key(&self) -> u64 {
        if self.is_host() { self.sockets.cgroup_id | STATS_CGROUP_BIT } else { self.config.netns_cookie }
    }

    pub(crate) fn title(&self) -> String {
        format!("{}/{}", self.sockets.pod.namespace, self.sockets.pod.name)
    }
}

/// What captures the outbound connections of all host-network pods together.
#[derive(Debug)]
pub(crate) struct HostCapture {
    listeners: Listeners,
    config: PodConfig,
}

impl HostCapture {
    pub(crate) fn listeners(&self) -> &Listeners {
        &self.listeners
    }
}

impl Capture {
    /// Captures a pod, or takes it over from an earlier agent. `handed` are the sockets that the earlier agent gave, if there was a
    /// hand-over; those of other namespaces are left alone.
    ///
    /// # Errors
    /// When the pod is not as it says, or the kernel refuses. Nothing is changed then.
    pub fn attach_pod(&mut self, spec: &PodSpec, handed: &mut Vec<HandedListener>) -> Result<PodAttachment, PodError> {
        if self.attached.contains_key(&spec.id) {
            return Err(PodError::Attached(spec.id.clone()));
        }
        if spec.ips.is_empty() {
            return Err(PodError::NoAddress);
        }
        match &spec.netns {
            Some(path) => {
                let netns =
                    Netns::open(path, &self.home).map_err(|source| PodError::Netns { path: path.clone(), source })?;
                if netns.cookie() == self.home.cookie() {
                    return Err(PodError::HostNetns { path: path.clone() });
                }
                self.attach_netns(spec, &netns, handed)
            }
            None => self.attach_host(spec, handed),
        }
    }

    /// Lets a pod go: its connections go direct from now on, its namespace is as it was, and what still runs through the agent ends.
    /// Works for a pod whose processes are all gone, too. For a while it resets what other agents dial for mutual TLS.
    ///
    /// # Errors
    /// When the pod is not captured, or something of it could not be undone; everything else of it is, even then.
    pub fn release_pod(&mut self, id: &WorkloadId) -> Result<(), PodError> {
        let attached = self.attached.remove(id).ok_or_else(|| PodError::NotAttached(id.clone()))?;
        self.sockets.remove(id);
        if attached.is_host() {
            return self.release_host(&attached);
        }
        let netns = &attached.sockets.netns;
        let refused = released::refuse_tls(&mut self.programs, &self.pins, netns, self.refuse_tls_for);
        tear_down(&self.tables, &self.pins, attached.config.netns_cookie, Some(netns), &attached.config)?;
        Ok(refused?)
    }

    /// Captured pods at whose path there is another network namespace by now: their sandbox was made anew. Nothing else tells; the
    /// pod's object stays the same. A path that leads nowhere is no such case: the namespace may live on without a name.
    #[must_use]
    pub fn replaced_pods(&self) -> Vec<WorkloadId> {
        let is_replaced = |attached: &Attached| {
            let Some(path) = &attached.netns_path else { return false };
            // The inode first, which is cheap: it cannot be given to another namespace while this one is held open here. While a
            // runtime makes a namespace, its path is a plain file for a moment.
            std::fs::metadata(path).is_ok_and(|found| found.ino() != attached.sockets.netns.inode())
                && Netns::open(path, &self.home).is_ok_and(|netns| netns.cookie() != attached.config.netns_cookie)
        };
        self.attached.iter().filter(|(_, attached)| is_replaced(attached)).map(|(id, _)| id.clone()).collect()
    }

    /// Captured pods at whose path there is nothing any more, though their namespace may live on.
    #[must_use]
    pub fn lost_pods(&self) -> Vec<WorkloadId> {
        let is_lost = |attached: &Attached| attached.netns_path.as_ref().is_some_and(|path| !path.exists());
        self.attached.iter().filter(|(_, attached)| is_lost(attached)).map(|(id, _)| id.clone()).collect()
    }

    /// Whether a captured pod's namespace is at this path, too; from then on it is looked for there.
    pub fn found_at(&mut self, id: &WorkloadId, path: &Path) -> bool {
        let Some(attached) = self.attached.get_mut(id) else { return false };
        let same = Netns::open(path, &self.home).is_ok_and(|netns| netns.cookie() == attached.config.netns_cookie);
        if same {
            attached.netns_path = Some(path.to_owned());
        }
        same
    }

    /// A captured pod's namespace is at no path that lasts: it is looked for by the pod's processes from now on.
    pub fn forget_place(&mut self, id: &WorkloadId) {
        if let Some(attached) = self.attached.get_mut(id).filter(|attached| !attached.is_host()) {
            // Leads nowhere.
            attached.netns_path = Some(PathBuf::new());
        }
    }

    /// Changes what happens to a pod while the agent is gone.
    ///
    /// # Errors
    /// When the pod is not captured, or the kernel refuses.
    pub fn set_fail_closed(&mut self, id: &WorkloadId, fail_closed: bool) -> Result<(), PodError> {
        let attached = self.attached.get_mut(id).ok_or_else(|| PodError::NotAttached(id.clone()))?;
        let mut config = attached.config;
        config.flags = (config.flags & !pod_flags::FAIL_CLOSED) | if fail_closed { pod_flags::FAIL_CLOSED } else { 0 };
        if attached.is_host() {
            self.tables.set_host_pod(attached.sockets.cgroup_id, &config)?;
        } else {
            self.tables.set_pod(config.netns_cookie, &config)?;
        }
        attached.config = config;
        Ok(())
    }

    fn attach_netns(
        &mut self,
        spec: &PodSpec,
        netns: &Netns,
        handed: &mut Vec<HandedListener>,
    ) -> Result<PodAttachment, PodError> {
        let cookie = netns.cookie();
        if let Some(other) =
            self.attached.values().find(|attached| !attached.is_host() && attached.config.netns_cookie == cookie)
        {
            return Err(PodError::NetnsTaken { other: other.title() });
        }
        check_addresses(netns, &spec.ips)?;

        // One that was let go of and comes back: what its namespace was like is still recorded.
        self.leaving.retain(|_, leaving| leaving.config.netns_cookie != cookie);
        let found = self.tables.pods.get(&cookie).map_err(PodError::kernel("read map PODS"))?;
        // Without flags it is only the record of an attachment that was never completed, or of a pod that was let go of.
        let adopted = found.is_some_and(|config| config.flags != 0);
        let mut config = found.unwrap_or_default();
        (config.ipv4, config.ipv6) = convert::own_addresses(&spec.ips);
        config.netns_cookie = cookie;
        if found.is_none() {
            netns
                .enter(|| sysctl::remember(&mut config, true))
                .and_then(|done| done)
                .map_err(PodError::kernel(SYSCTLS))?;
            self.tables.set_pod(cookie, &config)?;
        }
        let result = self.install(spec, netns, config, adopted, handed);
        if result.is_err() && !adopted {
            // The first error is the one to tell; what cannot be undone is told beside it.
            if let Err(error) = tear_down(&self.tables, &self.pins, cookie, Some(netns), &config) {
                tracing::warn!(%error, pod = %spec.id, "pod that could not be captured is not as it was");
            }
        }
        result
    }

    fn install(
        &mut self,
        spec: &PodSpec,
        netns: &Netns,
        mut config: PodConfig,
        adopted: bool,
        handed: &mut Vec<HandedListener>,
    ) -> Result<PodAttachment, PodError> {
        let cookie = netns.cookie();
        netns.enter(|| sysctl::apply(true)).and_then(|done| done).map_err(PodError::kernel(SYSCTLS))?;
        netns
            .enter(|| routes::add(has_ipv6()))
            .and_then(|done| done)
            .map_err(PodError::kernel("add a rule and a route"))?;
        self.tables.begin_stats(cookie)?;

        let listeners = self.listen(netns, true, handed)?;
        let kept = listeners.try_clone().map_err(PodError::kernel("duplicate a listening socket"))?;
        self.tables.publish(cookie, &listeners)?;
        self.programs.attach_lookup(&self.pins, netns)?;

        let diag =
            netns.enter(Diag::open).and_then(|made| made).map_err(PodError::kernel("open a sock_diag socket"))?;
        let diag = Mutex::new(diag);
        if !adopted {
            let counted = diag.lock().unwrap_or_else(std::sync::PoisonError::into_inner).established();
            config.connections_before = counted.map_err(PodError::kernel("count the pod's connections"))?;
        }
        config.flags =
            pod_flags::OUTBOUND | pod_flags::INBOUND | if spec.fail_closed { pod_flags::FAIL_CLOSED } else { 0 };
        self.tables.set_local_addrs(cookie, &spec.ips)?;
        self.tables.set_pod(cookie, &config)?;
        released::accept_tls(&self.pins, cookie)?;

        let pod = local_pod(spec, cookie);
        let sockets = PodSockets {
            pod: Arc::clone(&pod),
            netns: netns.clone(),
            ips: spec.ips.clone().into(),
            inbound: true,
            cgroup_id: 0,
            diag,
        };
        let sockets = Arc::new(sockets);
        self.sockets.insert(&sockets);
        let netns_path = spec.netns.clone();
        self.attached.insert(spec.id.clone(), Attached { sockets, config, netns_path, listeners: kept });
        let connections_before = config.connections_before;
        Ok(PodAttachment { listeners: pod_listeners(pod, listeners), connections_before, adopted })
    }

    /// The sockets that were handed over for this namespace, or new ones.
    fn listen(&self, netns: &Netns, inbound: bool, handed: &mut Vec<HandedListener>) -> Result<Listeners, PodError> {
        let listeners = self.listen_at(netns, inbound, handed)?;
        // Before anything is handed to them: what they accept inherits it.
        for (_, _, socket) in listeners.iter() {
            self.sockets.tag_listener(socket.as_fd()).map_err(PodError::kernel("tag a listener as the agent's own"))?;
        }
        Ok(listeners)
    }

    fn listen_at(&self, netns: &Netns, inbound: bool, handed: &mut Vec<HandedListener>) -> Result<Listeners, PodError> {
        let given = take_handed(handed, netns.cookie());
        if given.complete(inbound) {
            return Ok(given);
        }
        // What was captured for a listener that is gone waits in vain; with a listener of the same name it would be taken for new.
        self.tables.forget_captured(netns.cookie()).map_err(PodError::kernel("clear map CAPTURED"))?;
        drop(given);
        Listeners::open(netns, inbound)
    }

    fn attach_host(&mut self, spec: &PodSpec, handed: &mut Vec<HandedListener>) -> Result<PodAttachment, PodError> {
        let path = spec.cgroup.as_ref().ok_or(PodError::NoCgroup)?;
        let cgroup = Cgroup::open(path).map_err(|source| PodError::Cgroup { path: path.clone(), source })?;
        if let Some(other) = self.attached.values().find(|attached| attached.sockets.cgroup_id == cgroup.id) {
            return Err(PodError::NetnsTaken { other: other.title() });
        }
        let home = self.home.clone();
        check_addresses(&home, &spec.ips)?;
        let first = self.host.is_none();
        let result = self.install_host(spec, &cgroup, handed);
        if result.is_err()
            && first
            && let Err(error) = self.release_host_capture()
        {
            tracing::warn!(%error, pod = %spec.id, "pod that could not be captured is not as it was");
        }
        result
    }

    fn install_host(
        &mut self,
        spec: &PodSpec,
        cgroup: &Cgroup,
        handed: &mut Vec<HandedListener>,
    ) -> Result<PodAttachment, PodError> {
        let cookie = self.home.cookie();
        let adopted = self.tables.host_pods.get(&cgroup.id).map_err(PodError::kernel("read map HOST_PODS"))?.is_some();
        if self.host.is_none() {
            self.host = Some(self.capture_host(handed)?);
        }
        let host = self.host.as_ref().ok_or(PodError::NoAddress)?;
        let listeners = host.listeners.try_clone().map_err(PodError::kernel("duplicate a listening socket"))?;

        let mut config = PodConfig { netns_cookie: cookie, ..PodConfig::default() };
        (config.ipv4, config.ipv6) = convert::own_addresses(&spec.ips);
        config.flags =
            pod_flags::OUTBOUND | pod_flags::HOST_NETWORK | if spec.fail_closed { pod_flags::FAIL_CLOSED } else { 0 };
        let diag = Diag::open().map_err(PodError::kernel("open a sock_diag socket"))?;
        self.tables.begin_stats(cgroup.id | STATS_CGROUP_BIT)?;
        self.tables.set_host_pod(cgroup.id, &config)?;
        self.heartbeat.set_host_pods(true).map_err(PodError::kernel("write map SETTINGS"))?;

        let pod = local_pod(spec, cookie);
        let sockets = PodSockets {
            pod: Arc::clone(&pod),
            netns: self.home.clone(),
            ips: spec.ips.clone().into(),
            inbound: false,
            cgroup_id: cgroup.id,
            diag: Mutex::new(diag),
        };
        let sockets = Arc::new(sockets);
        self.sockets.insert(&sockets);
        let listeners_of_host = Listeners::default();
        let attached = Attached { sockets, config, netns_path: None, listeners: listeners_of_host };
        self.attached.insert(spec.id.clone(), attached);
        // Which of the host's connections are a pod's cannot be told afterwards.
        Ok(PodAttachment { listeners: pod_listeners(pod, listeners), connections_before: 0, adopted })
    }

    /// What the first host-network pod needs in the host's namespace: listeners, and a look-up program that only serves what was
    /// redirected. Inbound connections of the host are nobody's business.
    fn capture_host(&mut self, handed: &mut Vec<HandedListener>) -> Result<HostCapture, PodError> {
        let home = self.home.clone();
        let cookie = home.cookie();
        let found = self.tables.pods.get(&cookie).map_err(PodError::kernel("read map PODS"))?;
        let mut config = found.unwrap_or_default();
        config.netns_cookie = cookie;
        config.flags = pod_flags::HOST_NETWORK;
        if found.is_none() {
            sysctl::remember(&mut config, false).map_err(PodError::kernel(SYSCTLS))?;
            self.tables.set_pod(cookie, &config)?;
        }
        sysctl::apply(false).map_err(PodError::kernel(SYSCTLS))?;
        let listeners = self.listen(&home, false, handed)?;
        self.tables.publish(cookie, &listeners)?;
        self.programs.attach_lookup(&self.pins, &home)?;
        Ok(HostCapture { listeners, config })
    }

    pub(super) fn release_host(&mut self, attached: &Attached) -> Result<(), PodError> {
        let cgroup_id = attached.sockets.cgroup_id;
        self.tables.host_pods.remove(&cgroup_id).map_err(PodError::kernel("delete from map HOST_PODS"))?;
        self.tables.pod_stats.remove(&attached.stats_key()).map_err(PodError::kernel("delete from map POD_STATS"))?;
        if self.attached.values().any(Attached::is_host) {
            return Ok(());
        }
        self.release_host_capture()
    }

    fn release_host_capture(&mut self) -> Result<(), PodError> {
        self.heartbeat.set_host_pods(false).map_err(PodError::kernel("write map SETTINGS"))?;
        let home = self.home.clone();
        let recorded = self.tables.pods.get(&home.cookie()).map_err(PodError::kernel("read map PODS"))?;
        let config = self.host.take().map(|host| host.config).or(recorded);
        if let Some(config) = config {
            tear_down(&self.tables, &self.pins, home.cookie(), Some(&home), &config)?;
        }
        Ok(())
    }
}

const SYSCTLS: &str = "set the sysctls of the pod's network namespace";

fn local_pod(spec: &PodSpec, netns_cookie: u64) -> Arc<LocalPod> {
    Arc::new(LocalPod {
        id: spec.id.clone(),
        namespace: Arc::clone(&spec.namespace),
        name: Arc::clone(&spec.name),
        owner: Arc::clone(&spec.owner),
        account: spec.account.clone(),
        netns_cookie,
    })
}

fn pod_listeners(pod: Arc<LocalPod>, listeners: Listeners) -> PodListeners {
    let sockets =
        |listeners: Vec<(u32, std::net::TcpListener)>| listeners.into_iter().map(|(_, socket)| socket).collect();
    PodListeners { pod, outbound: sockets(listeners.outbound), inbound: sockets(listeners.inbound) }
}

fn take_handed(handed: &mut Vec<HandedListener>, netns_cookie: u64) -> Listeners {
    let mut listeners = Listeners::default();
    for listener in handed.extract_if(.., |listener| listener.netns_cookie == netns_cookie) {
        let entry = (listener.ip_version, listener.socket);
        if listener.direction == weft_abi::direction::OUTBOUND {
            listeners.outbound.push(entry);
        } else {
            listeners.inbound.push(entry);
        }
    }
    listeners
}

fn check_addresses(netns: &Netns, ips: &[IpAddr]) -> Result<(), PodError> {
    let present = netns
        .enter(routes::addresses)
        .and_then(|found| found)
        .map_err(PodError::kernel("read the addresses of the pod's network namespace"))?;
    match ips.iter().find(|ip| !present.contains(&ip.to_canonical())) {
        Some(ip) => Err(PodError::Address { ip: *ip, present }),
        None => Ok(()),
    }
}

/// Undoes all that was done for a namespace, in reverse. Goes on after an error; the first is returned. Without the namespace (it is
/// gone, or cannot be found) only the maps and the link are left to undo.
pub(crate) fn tear_down(
    tables: &Tables,
    pins: &Pins,
    cookie: u64,
    netns: Option<&Netns>,
    config: &PodConfig,
) -> Result<(), CaptureError> {
    let detached = detach(tables, pins, cookie, config);
    detached.and(restore(tables, cookie, netns, config))
}

/// The first half of it: nothing is captured any more, and what was captured before can go on.
pub(super) fn detach(tables: &Tables, pins: &Pins, cookie: u64, config: &PodConfig) -> Result<(), CaptureError> {
    let mut undone = Undone::default();
    let mut step = |action, result| undone.step(action, result);
    let stopped = PodConfig { flags: config.flags & pod_flags::HOST_NETWORK, ..*config };
    step("stop capturing a pod", tables.pods.set(&cookie, &stopped));
    step("forget a pod's addresses", tables.set_local_addrs(cookie, &[]).map_err(io::Error::other));
    step("detach a pod's look-up program", remove_link(&pins.lookup_link(cookie)));
    step("delete a pod's listeners", tables.unpublish(cookie));
    step("delete a pod's statistics", tables.pod_stats.remove(&cookie).map(drop));
    undone.result()
}

/// The second half: what is still carried of the pod breaks, and its namespace is as it was.
pub(super) fn restore(
    tables: &Tables,
    cookie: u64,
    netns: Option<&Netns>,
    config: &PodConfig,
) -> Result<(), CaptureError> {
    let mut undone = Undone::default();
    let mut step = |action, result| undone.step(action, result);
    step("forget a pod's redirected connections", tables.forget_captured(cookie));
    if let Some(netns) = netns {
        let switches = config.flags & pod_flags::HOST_NETWORK == 0;
        if switches {
            step("remove rule and route", netns.enter(|| routes::remove(has_ipv6())).and_then(|done| done.map(drop)));
        }
        step("restore sysctls", netns.enter(|| sysctl::restore(config, switches)).and_then(|done| done));
    }
    step("forget a pod", tables.pods.remove(&cookie).map(drop));
    undone.result()
}

/// Steps that all have to be tried; the first error is the one to tell.
#[derive(Default)]
struct Undone(Option<CaptureError>);

impl Undone {
    fn step(&mut self, action: &'static str, result: io::Result<()>) {
        if let Err(source) = result {
            self.0.get_or_insert(CaptureError::Kernel { action: action.to_owned(), source });
        }
    }

    fn result(self) -> Result<(), CaptureError> {
        self.0.map_or(Ok(()), Err)
    }
}
