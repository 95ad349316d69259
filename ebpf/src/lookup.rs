//! `sk_lookup`: decides who accepts a connection that arrives in a pod's namespace, and whether its application gets a datagram.
//!
//! One instance for each namespace, with the namespace's cookie in its read-only data, because the hook cannot ask for it. Must not
//! let a connection fall through to the application when the pod's fail mode is `closed`, nor ever one that another agent dialled for
//! mutual TLS: its first bytes are no application's business.

use aya_ebpf::{bindings::sk_action, macros::sk_lookup, programs::SkLookupContext};
use weft_abi::{
    Addr, DIAG_IFINDEX, FlowKey, IPPROTO_TCP, IPPROTO_UDP, ListenerKey, NODE_NETNS, counter, direction, pod_flags,
    ports,
};

use crate::{
    addr, agent, count,
    maps::{BYPASS, CAPTURED, LISTENERS, LOCAL_ADDRS, NODE_FLOWS, PODS},
    tuple::{self, Tuple},
    udp_access,
};

/// The kernel goes on: to the socket that was assigned, else to whoever listens.
const PASS: u32 = sk_action::SK_PASS;
/// The connection is reset.
const DROP: u32 = sk_action::SK_DROP;

/// Cookie of the namespace that this instance is attached to; set by the loader.
#[unsafe(no_mangle)]
static NETNS: u64 = 0;

/// The hook.
#[sk_lookup]
pub fn pod_lookup(ctx: SkLookupContext) -> u32 {
    let Tuple { protocol, ifindex, local, remote, local_port, remote_port } = tuple::of(&ctx);
    let is_udp = protocol == u32::from(IPPROTO_UDP);
    if !(is_udp || protocol == u32::from(IPPROTO_TCP)) || ifindex == DIAG_IFINDEX {
        return PASS;
    }
    // SAFETY: a plain static; volatile, because the loader sets it behind the compiler's back.
    let netns_cookie = unsafe { core::ptr::read_volatile(&raw const NETNS) };
    if is_udp {
        return datagram(netns_cookie, &local, &remote, local_port);
    }
    let mut flow = FlowKey { netns_cookie, local, remote, local_port, remote_port, pad: 0 };

    // SAFETY (all three): only ask whether an entry is there.
    if unsafe { BYPASS.get(flow) }.is_some() {
        return PASS;
    }
    if unsafe { CAPTURED.get(flow) }.is_some() {
        return hand_over(&ctx, direction::OUTBOUND, netns_cookie, &local);
    }
    flow.netns_cookie = NODE_NETNS;
    if unsafe { NODE_FLOWS.get(flow) }.is_some() {
        // SAFETY: a field of the entry that `pod` hands over.
        count::pod(netns_cookie, |stats| unsafe { &raw mut (*stats).inbound_node });
        return PASS;
    }
    if addr::is_loopback(&local) {
        // The agent's listeners are bound there, and reached only by way of this program.
        let agents = local_port == ports::LISTENER_OUTBOUND || local_port == ports::LISTENER_INBOUND;
        return if agents { DROP } else { PASS };
    }
    // The pod talks to itself. From outside such a packet is a martian (IPv4), or its answers never leave the pod (IPv6).
    if tuple::same(&local, &remote) {
        return PASS;
    }
    inbound(&ctx, netns_cookie, &local, remote_port)
}

/// A datagram that no connected socket takes. The agent never sees it: it goes to the application, or nowhere, and its sender learns of that
/// (ICMP, port unreachable).
#[inline(always)]
fn datagram(netns_cookie: u64, local: &Addr, remote: &Addr, port: u16) -> u32 {
    if addr::is_loopback(local) || tuple::same(local, remote) {
        return PASS;
    }
    // SAFETY: one word, which stays readable even if it is replaced meanwhile.
    let source = unsafe { LOCAL_ADDRS.get(remote) }.copied();
    if udp_access::granted(netns_cookie, port, source) {
        return PASS;
    }
    // SAFETY: a field of the entry that `pod` hands over.
    count::pod(netns_cookie, |stats| unsafe { &raw mut (*stats).inbound_udp_denied });
    DROP
}

#[inline(always)]
fn inbound(ctx: &SkLookupContext, netns_cookie: u64, local: &Addr, remote_port: u16) -> u32 {
    // SAFETY: user space deletes a pod only after its look-up program is detached.
    let Some(pod) = (unsafe { PODS.get(netns_cookie) }) else { return PASS };
    let flags = pod.flags;
    if flags & pod_flags::INBOUND == 0 || flags & pod_flags::LEAVING != 0 && !ports::is_tls_dial(remote_port) {
        return PASS;
    }
    let ip_version = addr::ip_version(local);
    if agent::is_there(netns_cookie, direction::INBOUND, ip_version)
        && LISTENERS
            .redirect_sk_lookup(ctx, ListenerKey { netns_cookie, direction: direction::INBOUND, ip_version }, 0)
            .is_ok()
    {
        // SAFETY: a field of the entry that `pod` hands over.
        count::pod(netns_cookie, |stats| unsafe { &raw mut (*stats).inbound_captured });
        return PASS;
    }
    if flags & pod_flags::FAIL_CLOSED != 0 || ports::is_tls_dial(remote_port) {
        // SAFETY: as above.
        count::pod(netns_cookie, |stats| unsafe { &raw mut (*stats).inbound_refused });
        return DROP;
    }
    // SAFETY: as above.
    count::pod(netns_cookie, |stats| unsafe { &raw mut (*stats).inbound_direct });
    PASS
}

/// Gives a redirected connection to the agent. If it is gone by now, nobody else can serve it.
#[inline(always)]
fn hand_over(ctx: &SkLookupContext, direction: u32, netns_cookie: u64, local: &Addr) -> u32 {
    let key = ListenerKey { netns_cookie, direction, ip_version: addr::ip_version(local) };
    if LISTENERS.redirect_sk_lookup(ctx, key, 0).is_err() {
        count::event(counter::REDIRECT_LOST);
        return DROP;
    }
    PASS
}
