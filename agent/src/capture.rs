//! Capture: the BPF programs, the pods that they steer into the agent, and the sockets inside those pods.
//!
//! Everything in the kernel is pinned and outlives the agent, which therefore never cleans up when it ends: [`cleanup()`] does, when
//! asked. This module is the only one that writes BPF maps. It must not know policy: it is told which destinations are whose, and
//! which pods fail closed.

#[allow(unsafe_code, reason = "bpf(2) has no safe wrapper for what is needed")]
mod bpf;
mod cgroup;
mod cleanup;
pub mod convert;
mod diag;
mod error;
pub mod handover;
mod heartbeat;
mod keep;
mod leaving;
pub mod limits;
mod listeners;
mod netlink;
#[allow(unsafe_code, reason = "the namespace's cookie is a socket option that no library knows")]
mod netns;
mod older;
mod pins;
mod pod;
mod probe;
mod programs;
mod released;
mod routes;
mod sockets;
mod stats;
mod sysctl;
mod tables;
mod transparent;
mod udp;

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use weft_abi::{DestKey, DestVerdict, FlowKey, map_name, pod_flags};
use weft_policy::names::WorkloadId;

use self::{
    cgroup::Cgroups,
    handover::HandedListener,
    netns::Netns,
    pins::Pins,
    pod::{Attached, HostCapture, tear_down},
    programs::Programs,
    tables::Tables,
    udp::UdpAccess,
};
pub use self::{
    cgroup::ProgramAhead,
    cleanup::{CleanupReport, cleanup},
    error::{CaptureError, PodError},
    heartbeat::Heartbeat,
    keep::{Keep, KeepError},
    older::{Cut, Cutter, OlderConnection, OlderConnections},
    pins::BPF_DIR,
    pod::{PodAttachment, PodSpec},
    programs::{Hook, built},
    sockets::CaptureSockets,
    stats::{CaptureStats, MapFill},
    udp::GuardedPort,
};

/// Where capture attaches and pins.
#[derive(Clone, Debug)]
pub struct CaptureConfig {
    /// Directory for pins, on a BPF file system; made if it is not there.
    pub bpf_dir: PathBuf,
    /// Root of the cgroup2 hierarchy; `None` finds it.
    pub cgroup_root: Option<PathBuf>,
    /// How long a released pod resets what other agents still dial for mutual TLS.
    pub refuse_tls_for: Duration,
}

impl Default for CaptureConfig {
    fn default() -> Self {
        Self { bpf_dir: PathBuf::from(BPF_DIR), cgroup_root: None, refuse_tls_for: limits::TLS_REFUSED_AFTER_RELEASE }
    }
}

/// Says where the node's `/proc` is, before anything is captured: in a container its own shows a read-only `sys`. The first call counts.
pub fn use_proc(directory: &std::path::Path) {
    sysctl::set_proc(directory);
}

/// Whether what this process dials would be known as the agent's own. To be asked by whoever dials, before anything is changed.
///
/// # Errors
/// When there is no cgroup2 hierarchy where one is wanted, or this process is not in it.
pub fn check_cgroup(config: &CaptureConfig) -> Result<(), CaptureError> {
    cgroup::check_own(config.cgroup_root.as_deref())
}

/// The programs of this node, attached, and the pods that are captured.
#[derive(Debug)]
pub struct Capture {
    pins: Pins,
    cgroups: Cgroups,
    home: Netns,
    programs: Programs,
    tables: Tables,
    heartbeat: Arc<Heartbeat>,
    sockets: Arc<CaptureSockets>,
    keep: Arc<Keep>,
    attached: HashMap<WorkloadId, Attached>,
    /// Pods that were let go of, and through whose namespaces something may still be carried.
    leaving: HashMap<WorkloadId, Attached>,
    host: Option<HostCapture>,
    destinations: HashMap<DestKey, DestVerdict>,
    udp: UdpAccess,
    closed_before: HashSet<FlowKey>,
    refuse_tls_for: Duration,
    handed_over: bool,
}

impl Capture {
    /// Loads and attaches the programs, or takes over those that an earlier agent left. Pods stay captured as they were; the fail
    /// mode decides until each is attached again.
    ///
    /// # Errors
    /// When the process, the kernel or the node is not fit for it, or the pin directory is not as weft left it.
    pub fn open(config: &CaptureConfig) -> Result<Self, CaptureError> {
        probe::check(&config.bpf_dir)?;
        let pins = Pins::new(&config.bpf_dir);
        pins.verify()?;
        check_abi(&pins)?;
        let home = Netns::home().map_err(CaptureError::kernel("open this process's network namespace"))?;
        let cgroups = Cgroups::find(config.cgroup_root.as_deref())?;
        remove_other_versions(&pins)?;
        pins.create().map_err(CaptureError::kernel(format!("create {}", pins.dir().display())))?;

        let mut programs = Programs::new(&pins)?;
        programs.attach_cgroups(&pins, &cgroups)?;
        let tables = Tables::open(&pins)?;
        let settings = tables::open(&pins, map_name::SETTINGS)?;
        let heartbeat = Heartbeat::new(settings, home.cookie(), cgroups.pods.is_some())
            .map_err(CaptureError::kernel("write map SETTINGS"))?;
        let sockets = CaptureSockets::new(
            tables::open(&pins, map_name::CAPTURED)?,
            tables::open(&pins, map_name::SOCKETS)?,
            tables::open(&pins, map_name::ACCEPTED)?,
        );
        let keep = Keep::open(&pins)?;
        let destinations = read_destinations(&tables)?;
        let udp = UdpAccess::read(&tables)?;
        forget_gone(&tables, &pins, &home)?;
        Ok(Self {
            pins,
            cgroups,
            home,
            programs,
            tables,
            heartbeat: Arc::new(heartbeat),
            sockets: Arc::new(sockets),
            keep: Arc::new(keep),
            attached: HashMap::new(),
            leaving: HashMap::new(),
            host: None,
            destinations,
            udp,
            closed_before: HashSet::new(),
            refuse_tls_for: config.refuse_tls_for,
            handed_over: false,
        })
    }

    /// What the proxy needs of capture.
    #[must_use]
    pub fn sockets(&self) -> Arc<CaptureSockets> {
        Arc::clone(&self.sockets)
    }

    /// The heartbeat, for whoever watches the workers.
    #[must_use]
    pub fn heartbeat(&self) -> Arc<Heartbeat> {
        Arc::clone(&self.heartbeat)
    }

    /// What outlives the agent without touching a disk.
    #[must_use]
    pub fn keep(&self) -> Arc<Keep> {
        Arc::clone(&self.keep)
    }

    /// Sets what happens to connections to destinations; `None` and `PASS` leave them alone.
    ///
    /// # Errors
    /// When the map is full or the kernel refuses. What was set before the failure stays.
    pub fn set_destinations(
        &mut self,
        changes: impl IntoIterator<Item = (DestKey, Option<DestVerdict>)>,
    ) -> Result<(), CaptureError> {
        for (key, verdict) in changes {
            match verdict.filter(|verdict| verdict.verdict != weft_abi::verdict::PASS) {
                Some(verdict) if self.destinations.get(&key) != Some(&verdict) => {
                    self.tables.set_destination(&key, &verdict)?;
                    self.destinations.insert(key, verdict);
                }
                Some(_) => {}
                None => {
                    if self.destinations.contains_key(&key) {
                        self.remove_destination(&key)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Forgets all other destinations: those that an earlier agent knew and that are not there any more.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn retain_destinations(&mut self, keep: &HashSet<DestKey>) -> Result<(), CaptureError> {
        let gone: Vec<DestKey> = self.destinations.keys().filter(|key| !keep.contains(key)).copied().collect();
        gone.iter().try_for_each(|key| self.remove_destination(key))
    }

    fn remove_destination(&mut self, key: &DestKey) -> Result<(), CaptureError> {
        self.tables.destinations.remove(key).map_err(CaptureError::kernel("delete from map DESTINATIONS"))?;
        self.destinations.remove(key);
        Ok(())
    }

    /// Releases pods that an earlier agent captured and nobody attached since. To be called once every pod that is to be captured was
    /// attached. Gives how many there were.
    ///
    /// # Errors
    /// When something could not be undone; the rest is, even then.
    pub fn release_unclaimed(&mut self) -> Result<usize, CaptureError> {
        let read = |map| CaptureError::kernel(format!("read map {map}"));
        let claimed: HashSet<u64> =
            self.attached.values().chain(self.leaving.values()).map(|attached| attached.config.netns_cookie).collect();
        let cookies = self.tables.pods.keys().map_err(read(map_name::PODS))?;
        let unclaimed: Vec<u64> = cookies.into_iter().filter(|cookie| !claimed.contains(cookie)).collect();
        let cgroups: HashSet<u64> = self.attached.values().map(|attached| attached.sockets.cgroup_id).collect();
        let host_pods = self.tables.host_pods.keys().map_err(read(map_name::HOST_PODS))?;
        let unclaimed_host: Vec<u64> = host_pods.into_iter().filter(|id| !cgroups.contains(id)).collect();

        let mut first_error = None;
        for cgroup_id in &unclaimed_host {
            let stats_key = cgroup_id | weft_abi::STATS_CGROUP_BIT;
            let gone = self.tables.host_pods.remove(cgroup_id).and_then(|_| self.tables.pod_stats.remove(&stats_key));
            if let Err(error) = gone {
                first_error.get_or_insert(CaptureError::kernel("forget a host-network pod")(error));
            }
        }
        if !unclaimed.is_empty() {
            let mut namespaces: HashMap<u64, Netns> =
                netns::all(&self.home).into_iter().map(|netns| (netns.cookie(), netns)).collect();
            namespaces.insert(self.home.cookie(), self.home.clone());
            for cookie in &unclaimed {
                let config = self.tables.pods.get(cookie).map_err(read(map_name::PODS))?.unwrap_or_default();
                let netns = namespaces.get(cookie);
                if let Some(netns) = netns.filter(|_| config.flags & pod_flags::INBOUND != 0)
                    && let Err(error) = released::refuse_tls(&mut self.programs, &self.pins, netns, self.refuse_tls_for)
                {
                    first_error.get_or_insert(error);
                }
                if let Err(error) = tear_down(&self.tables, &self.pins, *cookie, netns, &config) {
                    first_error.get_or_insert(error);
                }
            }
        }
        first_error.map_or(Ok(unclaimed.len() + unclaimed_host.len()), Err)
    }

    /// Says that every worker was seen running `age` ago or later; see [`Heartbeat::beat`].
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn beat(&self, age: Duration) -> Result<(), CaptureError> {
        self.heartbeat.beat(age).map_err(CaptureError::kernel("write map SETTINGS"))
    }

    /// Forgets redirected connections that were closed by their application and never came out of an accept queue: the kernel gave
    /// them up there. Removes what was left in released pods and is over. To be called every half minute or so; an entry must have been seen closed by the call before.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn sweep(&mut self) -> Result<(), CaptureError> {
        let failed = |error| CaptureError::kernel("sweep map CAPTURED")(error);
        let mut closed = HashSet::new();
        for key in self.tables.captured.keys().map_err(failed)? {
            let Some(entry) = self.tables.captured.get(&key).map_err(failed)? else { continue };
            if entry.closed == 0 {
                continue;
            }
            if self.closed_before.contains(&key) {
                self.tables.captured.remove(&key).map_err(failed)?;
            } else {
                closed.insert(key);
            }
        }
        self.closed_before = closed;
        self.sweep_released()
    }

    /// Takes the listeners away from the programs, so that new connections meet the fail mode at once. What waits in the accept
    /// queues can still be accepted. Nothing happens after a hand-over: the listeners are the next agent's.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn unpublish_listeners(&self) -> Result<(), CaptureError> {
        if self.handed_over {
            return Ok(());
        }
        let host = self.host.iter().map(|_| self.home.cookie());
        for cookie in self.attached.values().map(|attached| attached.config.netns_cookie).chain(host) {
            self.tables.unpublish(cookie).map_err(CaptureError::kernel("delete from map LISTENERS"))?;
        }
        Ok(())
    }

    /// More descriptors for the listening sockets of all pods, for [`handover::serve`].
    ///
    /// # Errors
    /// When there are too many open files.
    pub fn offer(&self) -> std::io::Result<Vec<HandedListener>> {
        let of_pods =
            self.attached.iter().map(|(id, attached)| (id, attached.config.netns_cookie, &attached.listeners));
        // Any host-network pod will do: what counts is the namespace.
        let host_pod = self.attached.iter().find(|(_, attached)| attached.is_host()).map(|(id, _)| id);
        let of_host = self.host.iter().zip(host_pod).map(|(host, id)| (id, self.home.cookie(), host.listeners()));
        let mut offered = Vec::new();
        for (id, netns_cookie, listeners) in of_pods.chain(of_host) {
            for (direction, ip_version, socket) in listeners.iter() {
                let (workload, socket) = (id.clone(), socket.try_clone()?);
                offered.push(HandedListener { workload, netns_cookie, direction, ip_version, socket });
            }
        }
        Ok(offered)
    }

    /// To be called when the next agent has taken everything over: from now on this one neither beats nor takes anything away.
    pub fn handed_over(&mut self) {
        self.handed_over = true;
        self.heartbeat.retire();
    }
}

/// Detaches what agents of other ABI versions left. Their maps cannot be read, so their pods are captured anew.
fn remove_other_versions(pins: &Pins) -> Result<(), CaptureError> {
    for dir in pins.other_versions() {
        tracing::warn!(dir = %dir.display(), "removing what a weft of another version pinned");
        pins::remove_all(&dir).map_err(CaptureError::kernel(format!("remove {}", dir.display())))?;
    }
    Ok(())
}

/// Compares the version that is written in the maps with ours, before anything is touched.
fn check_abi(pins: &Pins) -> Result<(), CaptureError> {
    let path = pins.map(map_name::SETTINGS);
    if !path.exists() {
        return Ok(());
    }
    let map = tables::open::<u32, weft_abi::Settings>(pins, map_name::SETTINGS)?;
    let settings = map.get(&0).map_err(CaptureError::kernel("read map SETTINGS"))?.unwrap_or_default();
    match settings.abi_version {
        // An agent that was killed between making the map and writing it leaves zero.
        0 | weft_abi::ABI_VERSION => Ok(()),
        other => Err(CaptureError::Pins {
            path,
            what: format!(
                "was written by a weft of ABI version {other}, and this is version {}",
                weft_abi::ABI_VERSION
            ),
        }),
    }
}

fn read_destinations(tables: &Tables) -> Result<HashMap<DestKey, DestVerdict>, CaptureError> {
    let failed = |error| CaptureError::kernel("read map DESTINATIONS")(error);
    let mut destinations = HashMap::new();
    for key in tables.destinations.keys().map_err(failed)? {
        if let Some(verdict) = tables.destinations.get(&key).map_err(failed)? {
            destinations.insert(key, verdict);
        }
    }
    Ok(destinations)
}

/// Removes what is left of pods whose namespaces are gone. A pod without a link was never fully captured, and may still be there.
fn forget_gone(tables: &Tables, pins: &Pins, home: &Netns) -> Result<(), CaptureError> {
    let cookies = pins.lookup_cookies().map_err(CaptureError::kernel(format!("read {}", pins.dir().display())))?;
    for cookie in cookies {
        if cookie == home.cookie() || programs::netns_exists(pins, cookie) {
            continue;
        }
        let config = tables.pods.get(&cookie).map_err(CaptureError::kernel("read map PODS"))?.unwrap_or_default();
        tear_down(tables, pins, cookie, None, &config)?;
    }
    Ok(())
}
