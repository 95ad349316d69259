//! Which UDP ports of captured pods are guarded, and which other pods may send to them. In maps that stay in force without an agent.

use std::collections::HashSet;

use weft_abi::{UdpGrant, UdpPort, limits, map_name};
use weft_policy::names::WorkloadId;

use super::{
    Capture,
    error::CaptureError,
    tables::{Tables, full},
};

/// What an entry that only has to be there holds.
const THERE: u32 = 1;

/// A UDP port that takes datagrams from those alone that are named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardedPort {
    /// The captured pod.
    pub destination: WorkloadId,
    /// Its port.
    pub port: u16,
    /// Captured pods that may send to it.
    pub granted: Vec<WorkloadId>,
}

/// What is in the maps.
#[derive(Debug, Default)]
pub(crate) struct UdpAccess {
    pub(crate) ports: HashSet<UdpPort>,
    pub(crate) grants: HashSet<UdpGrant>,
}

impl UdpAccess {
    /// What an earlier agent left.
    pub(crate) fn read(tables: &Tables) -> Result<Self, CaptureError> {
        let ports = tables.udp_ports.keys().map_err(CaptureError::kernel("read map UDP_PORTS"))?;
        let grants = tables.udp_grants.keys().map_err(CaptureError::kernel("read map UDP_GRANTS"))?;
        Ok(Self { ports: ports.into_iter().collect(), grants: grants.into_iter().collect() })
    }
}

impl Capture {
    /// Makes these the guarded ports, and forgets all others. Pods that are not captured, or share the host's namespace, are left out: nobody
    /// can tell what they send from what the node sends. At no time is a port open that is guarded before and after.
    ///
    /// # Errors
    /// When a map is full or the kernel refuses. Ports come first; a grant that is not written denies.
    pub fn set_udp(&mut self, guarded: &[GuardedPort]) -> Result<(), CaptureError> {
        let mut wanted = UdpAccess::default();
        for guard in guarded {
            let Some(destination) = self.inbound_capture(&guard.destination) else { continue };
            wanted.ports.insert(UdpPort { destination, port: guard.port, pad: [0; 3] });
            for source in guard.granted.iter().filter_map(|id| self.inbound_capture(id)) {
                wanted.grants.insert(UdpGrant { destination, source, port: guard.port, pad: [0; 3] });
            }
        }
        let Self { tables, udp, .. } = self;
        // What denies comes first, what allows later.
        for grant in udp.grants.difference(&wanted.grants).copied().collect::<Vec<_>>() {
            tables.udp_grants.remove(&grant).map_err(CaptureError::kernel("delete from map UDP_GRANTS"))?;
            udp.grants.remove(&grant);
        }
        for port in wanted.ports.difference(&udp.ports).copied().collect::<Vec<_>>() {
            tables.udp_ports.set(&port, &THERE).map_err(full(map_name::UDP_PORTS, limits::UDP_PORTS_MAX))?;
            udp.ports.insert(port);
        }
        for grant in wanted.grants.difference(&udp.grants).copied().collect::<Vec<_>>() {
            tables.udp_grants.set(&grant, &THERE).map_err(full(map_name::UDP_GRANTS, limits::UDP_GRANTS_MAX))?;
            udp.grants.insert(grant);
        }
        for port in udp.ports.difference(&wanted.ports).copied().collect::<Vec<_>>() {
            tables.udp_ports.remove(&port).map_err(CaptureError::kernel("delete from map UDP_PORTS"))?;
            udp.ports.remove(&port);
        }
        Ok(())
    }
}
