//! Datagrams: whether a pod may send them to a port of another one. Maps alone decide, so that it holds while no agent runs.

use aya_ebpf::{EbpfContext, helpers::bpf_get_netns_cookie, programs::SockAddrContext};
use weft_abi::{Addr, pod_flags};

use crate::{
    addr, count,
    maps::{LOCAL_ADDRS, PODS, SETTINGS},
    udp_access,
};

/// Asked when a socket connects, and for every datagram of one that is not connected. Only pods that are captured are asked for; what
/// others send is looked at where it arrives.
#[inline(always)]
pub fn may_send(ctx: &SockAddrContext, to: &Addr, port: u16) -> bool {
    if addr::is_loopback(to) {
        return true;
    }
    let Some(settings) = SETTINGS.get(0) else { return true };
    // SAFETY: the context is this program's own.
    let source = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    if source == settings.host_netns_cookie {
        return true;
    }
    // SAFETY: as in `connect::decide`.
    if unsafe { PODS.get(source) }.is_none_or(|pod| pod.flags & pod_flags::OUTBOUND == 0) {
        return true;
    }
    // SAFETY: one word, which stays readable even if it is replaced meanwhile.
    let Some(destination) = (unsafe { LOCAL_ADDRS.get(to) }).copied() else { return true };
    if udp_access::granted(destination, port, Some(source)) {
        return true;
    }
    // SAFETY: a field of the entry that `pod` hands over.
    count::pod(source, |stats| unsafe { &raw mut (*stats).outbound_udp_denied });
    false
}
