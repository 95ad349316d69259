//! The pinned maps, opened, and the operations on them that belong together.

use std::{io, net::IpAddr};

use weft_abi::{
    Addr, DestKey, DestVerdict, FlowKey, FlowOwner, ListenerKey, OriginalDst, PodConfig, PodStats, UdpGrant, UdpPort,
    counter, direction, limits, map_name,
};

use super::{
    bpf::{Map, PerCpuMap},
    convert,
    error::CaptureError,
    listeners::Listeners,
    pins::Pins,
};

/// Every map that user space reads or writes, but for the two that the data path has for itself.
#[derive(Debug)]
pub(crate) struct Tables {
    pub(crate) pods: Map<u64, PodConfig>,
    pub(crate) host_pods: Map<u64, PodConfig>,
    pub(crate) local_addrs: Map<Addr, u64>,
    pub(crate) destinations: Map<DestKey, DestVerdict>,
    pub(crate) captured: Map<FlowKey, OriginalDst>,
    pub(crate) bypass: Map<FlowKey, FlowOwner>,
    pub(crate) node_flows: Map<FlowKey, FlowOwner>,
    pub(crate) listeners: Map<ListenerKey, u32>,
    pub(crate) udp_ports: Map<UdpPort, u32>,
    pub(crate) udp_grants: Map<UdpGrant, u32>,
    pub(crate) pod_stats: PerCpuMap<u64, PodStats>,
    pub(crate) counters: PerCpuMap<u32, u64>,
}

/// Opens a pinned map.
pub(crate) fn open<K: bytemuck::Pod, V: bytemuck::Pod>(pins: &Pins, name: &str) -> Result<Map<K, V>, CaptureError> {
    Map::open(&pins.map(name)).map_err(CaptureError::kernel(format!("open map {}", pins.map(name).display())))
}

fn open_per_cpu<K: bytemuck::Pod, V: bytemuck::Pod>(pins: &Pins, name: &str) -> Result<PerCpuMap<K, V>, CaptureError> {
    PerCpuMap::open(&pins.map(name)).map_err(CaptureError::kernel(format!("open map {}", pins.map(name).display())))
}

impl Tables {
    pub(crate) fn open(pins: &Pins) -> Result<Self, CaptureError> {
        Ok(Self {
            pods: open(pins, map_name::PODS)?,
            host_pods: open(pins, map_name::HOST_PODS)?,
            local_addrs: open(pins, map_name::LOCAL_ADDRS)?,
            destinations: open(pins, map_name::DESTINATIONS)?,
            captured: open(pins, map_name::CAPTURED)?,
            bypass: open(pins, map_name::BYPASS)?,
            node_flows: open(pins, map_name::NODE_FLOWS)?,
            listeners: open(pins, map_name::LISTENERS)?,
            udp_ports: open(pins, map_name::UDP_PORTS)?,
            udp_grants: open(pins, map_name::UDP_GRANTS)?,
            pod_stats: open_per_cpu(pins, map_name::POD_STATS)?,
            counters: open_per_cpu(pins, map_name::COUNTERS)?,
        })
    }

    pub(crate) fn set_pod(&self, cookie: u64, config: &PodConfig) -> Result<(), CaptureError> {
        self.pods.set(&cookie, config).map_err(full(map_name::PODS, limits::PODS_MAX))
    }

    pub(crate) fn set_host_pod(&self, cgroup_id: u64, config: &PodConfig) -> Result<(), CaptureError> {
        self.host_pods.set(&cgroup_id, config).map_err(full(map_name::HOST_PODS, limits::PODS_MAX))
    }

    pub(crate) fn set_destination(&self, key: &DestKey, verdict: &DestVerdict) -> Result<(), CaptureError> {
        self.destinations.set(key, verdict).map_err(full(map_name::DESTINATIONS, limits::DESTINATIONS_MAX))
    }

    /// Makes the pod's statistics; those of an earlier agent go on.
    pub(crate) fn begin_stats(&self, key: u64) -> Result<(), CaptureError> {
        let limit = 2 * limits::PODS_MAX;
        if self.pod_stats.get(&key).map_err(CaptureError::kernel("read a pod's statistics"))?.is_some() {
            return Ok(());
        }
        self.pod_stats.set(&key, PodStats::default()).map_err(full(map_name::POD_STATS, limit))
    }

    /// The statistics of all CPUs added up.
    pub(crate) fn stats(&self, key: u64) -> PodStats {
        let per_cpu = self.pod_stats.get(&key).ok().flatten().unwrap_or_default();
        per_cpu.iter().fold(PodStats::default(), |sum, one| PodStats {
            outbound_captured: sum.outbound_captured + one.outbound_captured,
            outbound_direct: sum.outbound_direct + one.outbound_direct,
            outbound_refused: sum.outbound_refused + one.outbound_refused,
            outbound_denied: sum.outbound_denied + one.outbound_denied,
            inbound_captured: sum.inbound_captured + one.inbound_captured,
            inbound_direct: sum.inbound_direct + one.inbound_direct,
            inbound_refused: sum.inbound_refused + one.inbound_refused,
            inbound_node: sum.inbound_node + one.inbound_node,
            outbound_udp_denied: sum.outbound_udp_denied + one.outbound_udp_denied,
            inbound_udp_denied: sum.inbound_udp_denied + one.inbound_udp_denied,
        })
    }

    pub(crate) fn counter(&self, slot: u32) -> u64 {
        self.counters.get(&slot).ok().flatten().unwrap_or_default().iter().sum()
    }

    pub(crate) fn all_counters(&self) -> [u64; counter::COUNT as usize] {
        let mut counters = [0; counter::COUNT as usize];
        for (slot, value) in (0..counter::COUNT).zip(&mut counters) {
            *value = self.counter(slot);
        }
        counters
    }

    /// From now on programs hand connections to these sockets.
    pub(crate) fn publish(&self, cookie: u64, listeners: &Listeners) -> Result<(), CaptureError> {
        for (direction, ip_version, socket) in listeners.iter() {
            let key = ListenerKey { netns_cookie: cookie, direction, ip_version };
            self.listeners
                .set_socket(&key, std::os::fd::AsFd::as_fd(socket))
                .map_err(full(map_name::LISTENERS, limits::LISTENERS_MAX))?;
        }
        Ok(())
    }

    /// From now on they find no listener of this namespace.
    pub(crate) fn unpublish(&self, cookie: u64) -> io::Result<()> {
        for direction in [direction::OUTBOUND, direction::INBOUND] {
            for ip_version in [4, 6] {
                self.listeners.remove(&ListenerKey { netns_cookie: cookie, direction, ip_version })?;
            }
        }
        Ok(())
    }

    /// Makes `ips` the namespace's addresses.
    pub(crate) fn set_local_addrs(&self, cookie: u64, ips: &[IpAddr]) -> Result<(), CaptureError> {
        let wanted: Vec<Addr> = ips.iter().map(|ip| convert::addr(*ip)).collect();
        for addr in &wanted {
            self.local_addrs.set(addr, &cookie).map_err(full(map_name::LOCAL_ADDRS, limits::LOCAL_ADDRS_MAX))?;
        }
        let read = CaptureError::kernel("read map LOCAL_ADDRS");
        let stale = self.local_addrs.keys().map_err(read)?;
        for addr in stale.iter().filter(|addr| !wanted.contains(addr)) {
            // Another pod may have the address by now; then it is that pod's.
            if self.local_addrs.get(addr).ok().flatten() == Some(cookie) {
                self.local_addrs.remove(addr).map_err(CaptureError::kernel("delete from map LOCAL_ADDRS"))?;
            }
        }
        Ok(())
    }

    /// Forgets redirected connections that wait for a listener that is gone.
    pub(crate) fn forget_captured(&self, cookie: u64) -> io::Result<()> {
        for key in self.captured.keys()?.iter().filter(|key| key.netns_cookie == cookie) {
            self.captured.remove(key)?;
        }
        Ok(())
    }
}

/// What an insert that failed means.
pub(crate) fn full(map: &'static str, limit: u32) -> impl FnOnce(io::Error) -> CaptureError {
    move |source| match source.raw_os_error() {
        Some(libc::E2BIG | libc::ENOSPC) => CaptureError::Full { map, limit },
        _ => CaptureError::Kernel { action: format!("write to map {map}"), source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_map_is_told_by_name_limit_and_metric() {
        let error = full(map_name::DESTINATIONS, 10)(io::Error::from_raw_os_error(libc::E2BIG));
        let text = error.to_string();
        assert!(
            text.contains("DESTINATIONS") && text.contains("10") && text.contains("weft_capture_map_entries"),
            "{text}"
        );
        let error = full(map_name::DESTINATIONS, 10)(io::Error::from_raw_os_error(libc::EPERM));
        assert!(matches!(error, CaptureError::Kernel { .. }));
    }
}
