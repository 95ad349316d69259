//! What capture did, for status and metrics.

use weft_abi::{PodStats, counter, limits, map_name};
use weft_policy::names::WorkloadId;

use super::{
    Capture,
    cgroup::{ProgramAhead, programs_ahead},
    keep,
    limits::KEEP_ENTRIES_MAX,
    pod::Attached,
    programs::{self, Hook},
};

/// Everything that capture counts.
#[derive(Clone, Debug)]
pub struct CaptureStats {
    /// For each captured pod.
    pub pods: Vec<(WorkloadId, PodStats)>,
    /// Slots of `weft_abi::counter`.
    pub counters: [u64; counter::COUNT as usize],
    /// How full the maps are.
    pub maps: Vec<MapFill>,
    /// What is attached.
    pub hooks: Vec<Hook>,
}

/// How full a map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapFill {
    /// Its name.
    pub map: &'static str,
    /// Entries in it.
    pub entries: u64,
    /// Entries it has room for.
    pub limit: u64,
}

impl Capture {
    /// Reads all counters. Some system calls for each pod, and one for each connection that is redirected but not accepted.
    #[must_use]
    pub fn stats(&self) -> CaptureStats {
        let pods =
            self.attached.iter().map(|(id, attached)| (id.clone(), self.tables.stats(attached.stats_key()))).collect();
        let counters = self.tables.all_counters();
        CaptureStats { pods, maps: self.fill(&counters), counters, hooks: self.hooks() }
    }

    /// Connect programs of others that see connections before ours; walks the cgroup tree.
    #[must_use]
    pub fn programs_ahead(&self) -> Vec<ProgramAhead> {
        programs_ahead(self.cgroups.connect(), programs::connect_ids(&self.pins))
    }

    fn hooks(&self) -> Vec<Hook> {
        let of_pods = self
            .attached
            .values()
            .filter(|attached| !attached.is_host())
            .map(|attached| (attached.config.netns_cookie, format!("pod {}", attached.title())));
        let of_host = self.host.iter().map(|_| (self.home.cookie(), "host network".to_owned()));
        programs::hooks(&self.pins, &self.cgroups, of_pods.chain(of_host))
    }

    fn fill(&self, counters: &[u64; counter::COUNT as usize]) -> Vec<MapFill> {
        let difference = |added: u32, removed: u32| counters[added as usize].saturating_sub(counters[removed as usize]);
        let count = |entries: usize| u64::try_from(entries).unwrap_or(u64::MAX);
        let host_pods = self.attached.values().filter(|attached| attached.is_host()).count();
        let listeners: usize = self.attached.values().map(|attached| attached.listeners.iter().count()).sum::<usize>()
            + self.host.iter().map(|host| host.listeners().iter().count()).sum::<usize>();
        let fill = |map, entries, limit: u32| MapFill { map, entries, limit: u64::from(limit) };
        vec![
            fill(map_name::PODS, count(self.attached.len() - host_pods), limits::PODS_MAX),
            fill(map_name::HOST_PODS, count(host_pods), limits::PODS_MAX),
            fill(map_name::LISTENERS, count(listeners), limits::LISTENERS_MAX),
            fill(
                map_name::LOCAL_ADDRS,
                count(self.tables.local_addrs.keys().unwrap_or_default().len()),
                limits::LOCAL_ADDRS_MAX,
            ),
            fill(map_name::DESTINATIONS, count(self.destinations.len()), limits::DESTINATIONS_MAX),
            fill(
                map_name::CAPTURED,
                count(self.tables.captured.keys().unwrap_or_default().len()),
                limits::CAPTURED_MAX,
            ),
            fill(map_name::BYPASS, difference(counter::BYPASS_ADDED, counter::BYPASS_REMOVED), limits::BYPASS_MAX),
            fill(
                map_name::NODE_FLOWS,
                difference(counter::NODE_FLOWS_ADDED, counter::NODE_FLOWS_REMOVED),
                limits::NODE_FLOWS_MAX,
            ),
            fill(map_name::UDP_PORTS, count(self.udp.ports.len()), limits::UDP_PORTS_MAX),
            fill(map_name::UDP_GRANTS, count(self.udp.grants.len()), limits::UDP_GRANTS_MAX),
            fill(keep::MAP, count(self.keep.names().unwrap_or_default().len()), KEEP_ENTRIES_MAX),
            fill(map_name::POD_STATS, count(self.attached.len()), 2 * limits::PODS_MAX),
        ]
    }

    /// Pods captured now.
    #[must_use]
    pub fn attached(&self) -> Vec<WorkloadId> {
        self.attached.keys().cloned().collect()
    }

    /// `namespace/name` of the pod, if it is captured.
    #[must_use]
    pub fn title(&self, id: &WorkloadId) -> Option<String> {
        self.attached.get(id).map(Attached::title)
    }
}
