//! Who may send datagrams to a port of a pod.

use weft_abi::{UdpGrant, UdpPort};

use crate::maps::{UDP_GRANTS, UDP_PORTS};

/// Whether a pod (`source`: its namespace's cookie; `None` for whoever is not known) may send to a port of another. A port that policy
/// does not guard takes everything, and every pod may send to itself.
#[inline(always)]
pub fn granted(destination: u64, port: u16, source: Option<u64>) -> bool {
    if source == Some(destination) {
        return true;
    }
    let guarded = UdpPort { destination, port, pad: [0; 3] };
    // SAFETY (both): only ask whether an entry is there.
    if unsafe { UDP_PORTS.get(guarded) }.is_none() {
        return true;
    }
    let Some(source) = source else { return false };
    unsafe { UDP_GRANTS.get(UdpGrant { destination, source, port, pad: [0; 3] }) }.is_some()
}
