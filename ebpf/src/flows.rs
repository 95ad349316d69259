//! Entries of `CAPTURED`, `BYPASS` and `NODE_FLOWS`: each belongs to one socket and is deleted only by it.

use aya_ebpf::maps::HashMap;
use weft_abi::{FlowKey, FlowOwner, OriginalDst, counter, derived};

use crate::{
    count,
    maps::{BYPASS, CAPTURED, NODE_FLOWS},
};

/// "Whether or not there is one already" (`enum` in linux/bpf.h, `BPF_ANY`).
const ANY: u64 = 0;

/// Records a captured connection; false if there is no room.
#[inline(always)]
pub fn add_captured(key: &FlowKey, original: &OriginalDst) -> bool {
    if CAPTURED.insert(key, original, ANY).is_err() {
        count::event(counter::CAPTURED_FULL);
        return false;
    }
    true
}

/// Records a connection of the agent's own; false if there is no room.
#[inline(always)]
pub fn add_bypass(key: &FlowKey, owner: &FlowOwner) -> bool {
    // SAFETY: only asks whether it is there.
    let replaces = unsafe { BYPASS.get(key) }.is_some();
    if BYPASS.insert(key, owner, ANY).is_err() {
        count::event(counter::BYPASS_FULL);
        return false;
    }
    if !replaces {
        count::event(counter::BYPASS_ADDED);
    }
    true
}

/// Records a connection of the node's own; false if there is no room.
#[inline(always)]
pub fn add_node_flow(key: &FlowKey, owner: &FlowOwner) -> bool {
    // SAFETY: only asks whether it is there.
    let replaces = unsafe { NODE_FLOWS.get(key) }.is_some();
    if NODE_FLOWS.insert(key, owner, ANY).is_err() {
        count::event(counter::NODE_FLOWS_FULL);
        return false;
    }
    if !replaces {
        count::event(counter::NODE_FLOWS_ADDED);
    }
    true
}

/// Deletes the entry in the map that `derived` names, if it is still the one of the socket with this cookie.
#[inline(always)]
pub fn remove(derived: u32, key: &FlowKey, socket_cookie: u64) {
    match derived {
        derived::CAPTURED => {
            // SAFETY: this map is not preallocated, so what is found stays readable until the program ends.
            if unsafe { CAPTURED.get(key) }.is_some_and(|entry| entry.socket_cookie == socket_cookie) {
                // It may have been accepted in between.
                let _gone = CAPTURED.remove(key);
            }
        }
        derived::BYPASS => remove_owned(&BYPASS, key, socket_cookie, counter::BYPASS_REMOVED),
        derived::NODE_FLOW => remove_owned(&NODE_FLOWS, key, socket_cookie, counter::NODE_FLOWS_REMOVED),
        _ => {}
    }
}

#[inline(always)]
fn remove_owned(map: &HashMap<FlowKey, FlowOwner>, key: &FlowKey, socket_cookie: u64, counted: u32) {
    // SAFETY: as in `remove`.
    if unsafe { map.get(key) }.is_some_and(|entry| entry.socket_cookie == socket_cookie) && map.remove(key).is_ok() {
        count::event(counted);
    }
}

/// Notes in a captured connection's entry that its socket was closed in good order.
#[inline(always)]
pub fn mark_closed(key: &FlowKey, socket_cookie: u64) {
    if let Some(entry) = CAPTURED.get_ptr_mut(key) {
        // SAFETY: as in `remove`; one aligned word, written by the only socket that owns the entry.
        unsafe {
            if (*entry).socket_cookie == socket_cookie {
                core::ptr::write_volatile(&raw mut (*entry).closed, 1);
            }
        }
    }
}
