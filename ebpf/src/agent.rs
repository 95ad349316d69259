//! Is there an agent to hand connections to?

use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_map_lookup_elem, bpf_sk_release};
use weft_abi::{ListenerKey, Settings};

use crate::maps::{LISTENERS, SETTINGS};

/// Whether the agent runs (its heartbeat is young) and listens here. A dead agent's listeners are gone at once; a hung one's are
/// not, hence the heartbeat.
#[inline(always)]
pub fn is_there(netns_cookie: u64, direction: u32, ip_version: u32) -> bool {
    let Some(settings) = SETTINGS.get(0) else { return false };
    beats(settings) && listens(&ListenerKey { netns_cookie, direction, ip_version })
}

#[inline(always)]
fn beats(settings: &Settings) -> bool {
    // SAFETY: volatile, because user space writes it at any time; aligned and inside the map's value.
    let beat = unsafe { core::ptr::read_volatile(&raw const settings.heartbeat_ns) };
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    now.saturating_sub(beat) <= settings.heartbeat_max_age_ns
}

#[inline(always)]
fn listens(key: &ListenerKey) -> bool {
    // SAFETY: the map's key type is `ListenerKey`. The socket comes back with a reference, which is released at once.
    unsafe {
        let socket = bpf_map_lookup_elem((&raw const LISTENERS).cast_mut().cast(), core::ptr::from_ref(key).cast());
        if socket.is_null() {
            return false;
        }
        bpf_sk_release(socket);
    }
    true
}
