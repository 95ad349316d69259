//! Counters. Atomic although per CPU: a program in process context can be interrupted by one in softirq on the same CPU.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use weft_abi::PodStats;

use crate::maps::{COUNTERS, POD_STATS};

/// Adds one to a slot of `COUNTERS`.
#[inline(always)]
pub fn event(slot: u32) {
    if let Some(cell) = COUNTERS.get_ptr_mut(slot) {
        // SAFETY: the map's value is an aligned u64 that lives as long as the program.
        unsafe { add_one(cell) }
    }
}

/// Adds one to a field of a pod's statistics, if user space made an entry for it.
#[inline(always)]
pub fn pod(key: u64, field: impl FnOnce(*mut PodStats) -> *mut u64) {
    if let Some(stats) = POD_STATS.get_ptr_mut(key) {
        // SAFETY: `field` names a field inside the map's value, which outlives the program's run.
        unsafe { add_one(field(stats)) }
    }
}

#[inline(always)]
unsafe fn add_one(cell: *mut u64) {
    // `AtomicU64` has no arithmetic on this target, because BPF had no compare-and-swap before kernel 5.12; addition it always had.
    // SAFETY: the caller's cell is valid and aligned, and is only ever written atomically.
    let _before: u64 = unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(cell, 1) };
}
