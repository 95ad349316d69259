//! `sk_lookup` in the namespace of a pod that is not captured any more: resets what other agents still dial for mutual TLS.
//!
//! They learn late that the pod has left, and a ClientHello must not reach its application. Everything else passes, and after a while
//! everything does: the program knows its own end, so that it needs no agent.

use aya_ebpf::{bindings::sk_action, helpers::bpf_ktime_get_ns, macros::sk_lookup, programs::SkLookupContext};
use weft_abi::{DIAG_IFINDEX, IPPROTO_TCP, counter, ports};

use crate::{
    addr, count,
    tuple::{self, Tuple},
};

/// Until when it refuses, as `bpf_ktime_get_ns` counts; set by the loader.
#[unsafe(no_mangle)]
static REFUSE_UNTIL_NS: u64 = 0;

/// The hook.
#[sk_lookup]
pub fn released_lookup(ctx: SkLookupContext) -> u32 {
    let Tuple { protocol, ifindex, local, remote, remote_port, .. } = tuple::of(&ctx);
    let others = protocol != u32::from(IPPROTO_TCP) || !ports::is_tls_dial(remote_port);
    if others || ifindex == DIAG_IFINDEX || addr::is_loopback(&local) || tuple::same(&local, &remote) {
        return sk_action::SK_PASS;
    }
    // SAFETY: a plain static; volatile, because the loader sets it behind the compiler's back.
    let until = unsafe { core::ptr::read_volatile(&raw const REFUSE_UNTIL_NS) };
    // SAFETY: no arguments.
    if unsafe { bpf_ktime_get_ns() } > until {
        return sk_action::SK_PASS;
    }
    count::event(counter::TLS_TO_RELEASED);
    sk_action::SK_DROP
}
