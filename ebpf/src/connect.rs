//! `cgroup/connect4` and `connect6`: decides what becomes of an outbound connection, before anything is sent.
//!
//! A UDP socket is let connect or not (see `udp`), and never redirected. Must not touch loopback or the agent's own sockets, and must
//! not let a connection to a proxied destination go direct because some resource ran out: it is refused then.

use aya_ebpf::{
    EbpfContext,
    bindings::bpf_sock_addr,
    helpers::{bpf_get_current_ancestor_cgroup_id, bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use weft_abi::{
    Addr, DestKey, IPPROTO_TCP, IPPROTO_UDP, PodConfig, STATS_CGROUP_BIT, SocketState, counter, derived, direction,
    limits, pod_flags, settings_flags, socket_kind, verdict,
};

use crate::{
    addr, agent,
    cgroup_maps::{DESTINATIONS, HOST_PODS, SOCKETS},
    count, flows,
    maps::{PODS, SETTINGS},
    redirect_port, udp,
};

/// The connection goes on, to wherever the context's address now points.
pub const PROCEED: i32 = 1;
/// The connection ends here, with the error given to `bpf_set_retval`.
const END: i32 = 0;
/// errno(3).
const ECONNREFUSED: i32 = 111;

enum Decision {
    /// As the application asked.
    Untouched,
    /// connect(2) fails with ECONNREFUSED.
    Refuse,
    /// To one of the pod's own addresses, which `sk_lookup` hands to the agent.
    Redirect(Addr, u16),
}

/// The pod behind a socket.
struct Source<'a> {
    pod: &'a PodConfig,
    /// Zero unless it shares the host's namespace.
    cgroup_id: u64,
    stats_key: u64,
}

/// IPv4 sockets.
#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    let sock_addr = ctx.sock_addr;
    // SAFETY: the verifier checks every access to the context. Volatile, so that LLVM neither merges nor moves them.
    let (protocol, word) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*sock_addr).protocol),
            core::ptr::read_volatile(&raw const (*sock_addr).user_ip4),
        )
    };
    let (asked, port) = (Addr::v4(word), asked_port(sock_addr));
    if protocol == u32::from(IPPROTO_UDP) {
        return if udp::may_send(&ctx, &asked, port) { PROCEED } else { refuse() };
    }
    if protocol != u32::from(IPPROTO_TCP) {
        return PROCEED;
    }
    match decide(&ctx, asked, port) {
        Decision::Untouched => PROCEED,
        Decision::Refuse => refuse(),
        Decision::Redirect(to, port) => {
            // SAFETY: as above; both fields are writable in this hook.
            unsafe { core::ptr::write_volatile(&raw mut (*sock_addr).user_ip4, to.words_be[3]) };
            write_port(sock_addr, port);
            PROCEED
        }
    }
}

/// IPv6 sockets, also when they speak IPv4 through mapped addresses.
#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    let sock_addr = ctx.sock_addr;
    // SAFETY: as in `connect4`.
    let (protocol, words) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*sock_addr).protocol),
            [
                core::ptr::read_volatile(&raw const (*sock_addr).user_ip6[0]),
                core::ptr::read_volatile(&raw const (*sock_addr).user_ip6[1]),
                core::ptr::read_volatile(&raw const (*sock_addr).user_ip6[2]),
                core::ptr::read_volatile(&raw const (*sock_addr).user_ip6[3]),
            ],
        )
    };
    let (asked, port) = (Addr { words_be: words }, asked_port(sock_addr));
    if protocol == u32::from(IPPROTO_UDP) {
        return if udp::may_send(&ctx, &asked, port) { PROCEED } else { refuse() };
    }
    if protocol != u32::from(IPPROTO_TCP) {
        return PROCEED;
    }
    match decide(&ctx, asked, port) {
        Decision::Untouched => PROCEED,
        Decision::Refuse => refuse(),
        Decision::Redirect(to, port) => {
            // SAFETY: as in `connect4`. A mapped destination gets the pod's mapped IPv4 address.
            unsafe {
                core::ptr::write_volatile(&raw mut (*sock_addr).user_ip6[0], to.words_be[0]);
                core::ptr::write_volatile(&raw mut (*sock_addr).user_ip6[1], to.words_be[1]);
                core::ptr::write_volatile(&raw mut (*sock_addr).user_ip6[2], to.words_be[2]);
                core::ptr::write_volatile(&raw mut (*sock_addr).user_ip6[3], to.words_be[3]);
            }
            write_port(sock_addr, port);
            PROCEED
        }
    }
}

#[inline(always)]
pub fn asked_port(sock_addr: *mut bpf_sock_addr) -> u16 {
    // SAFETY: as in `connect4`. The low half of the word holds the port in network byte order.
    u16::from_be(unsafe { core::ptr::read_volatile(&raw const (*sock_addr).user_port) } as u16)
}

#[inline(always)]
fn write_port(sock_addr: *mut bpf_sock_addr, port: u16) {
    // SAFETY: as in `connect4`.
    unsafe { core::ptr::write_volatile(&raw mut (*sock_addr).user_port, u32::from(port.to_be())) };
}

#[inline(always)]
pub fn refuse() -> i32 {
    // SAFETY: a plain helper. Without it the application would see EPERM, which no client takes for "try another address".
    unsafe { bpf_set_retval(-ECONNREFUSED) };
    END
}

#[inline(always)]
fn decide(ctx: &SockAddrContext, asked: Addr, port: u16) -> Decision {
    // SAFETY: null or the socket's storage, which lives while the socket is being connected.
    if let Some(state) = unsafe { SOCKETS.get_ptr_mut(ctx).as_mut() } {
        if state.kind == socket_kind::AGENT {
            return Decision::Untouched;
        }
        forget(ctx, state);
    }
    if addr::is_loopback(&asked) {
        return Decision::Untouched;
    }
    let Some(settings) = SETTINGS.get(0) else { return Decision::Untouched };
    // SAFETY: the context is this program's own.
    let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    if netns_cookie != settings.host_netns_cookie {
        // SAFETY: a concurrent delete may hand the slot to another pod; user space deletes a pod only once it is released.
        let Some(pod) = (unsafe { PODS.get(netns_cookie) }) else { return Decision::Untouched };
        return decide_for(ctx, &Source { pod, cgroup_id: 0, stats_key: netns_cookie }, asked, port);
    }

    let flags = settings.flags;
    let source = if flags & settings_flags::HOST_PODS != 0 { host_pod() } else { None };
    let decision = match &source {
        Some(source) => decide_for(ctx, source, asked, port),
        None if flags & settings_flags::ONLY_PODS == 0 => return Decision::Untouched,
        None => Decision::Untouched,
    };
    match decision {
        // Untouched, but a pod's: without the tag `sock_ops` would take it for the node's own, whom inbound capture lets pass.
        Decision::Untouched if !tag_host_pod(ctx) => {
            count::event(counter::STORAGE_FULL);
            Decision::Refuse
        }
        decision => decision,
    }
}

/// Ends what an earlier connection of this socket left behind.
#[inline(always)]
fn forget(ctx: &SockAddrContext, state: &mut SocketState) {
    state.kind = socket_kind::NONE;
    // The entry normally goes when the earlier connection closes, which is always before the next connect.
    if state.derived != derived::NONE && state.derived != derived::ENDED {
        // SAFETY: the context is this program's own.
        let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
        flows::remove(state.derived, &state.key, cookie);
    }
    state.derived = derived::NONE;
}

#[inline(always)]
fn tag_host_pod(ctx: &SockAddrContext) -> bool {
    // SAFETY: as in `decide`.
    let Some(state) = (unsafe { SOCKETS.get_or_insert_ptr_mut(ctx, None).as_mut() }) else { return false };
    state.kind = socket_kind::HOST_POD;
    true
}

/// The captured pod to whose cgroup the connecting process belongs.
#[inline(always)]
fn host_pod() -> Option<Source<'static>> {
    let mut level = 0;
    while level <= limits::CGROUP_DEPTH_MAX {
        // SAFETY: a plain helper; zero when the process's cgroup is not that deep.
        let cgroup_id = unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) };
        if cgroup_id == 0 {
            return None;
        }
        // SAFETY: as for `PODS` in `decide`.
        if let Some(pod) = unsafe { HOST_PODS.get(cgroup_id) } {
            return Some(Source { pod, cgroup_id, stats_key: cgroup_id | STATS_CGROUP_BIT });
        }
        level += 1;
    }
    None
}

#[inline(always)]
fn decide_for(ctx: &SockAddrContext, source: &Source<'_>, asked: Addr, port: u16) -> Decision {
    let pod = source.pod;
    if pod.flags & pod_flags::OUTBOUND == 0 {
        return Decision::Untouched;
    }
    let verdict = verdict_of(asked, port);
    if verdict == verdict::PASS {
        return Decision::Untouched;
    }
    let ip_version = addr::ip_version(&asked);
    // A deny stands only while somebody keeps it true: it mostly says "no ready endpoint", and without an agent that is stale the
    // moment an endpoint comes back. Whoever must be denied in an outage too is guarded by fail mode `closed`, here or at its own end.
    if !agent::is_there(pod.netns_cookie, direction::OUTBOUND, ip_version) {
        if pod.flags & pod_flags::FAIL_CLOSED != 0 {
            // SAFETY: a field of the entry that `pod` hands over.
            count::pod(source.stats_key, |stats| unsafe { &raw mut (*stats).outbound_refused });
            return Decision::Refuse;
        }
        // SAFETY: as above.
        count::pod(source.stats_key, |stats| unsafe { &raw mut (*stats).outbound_direct });
        return Decision::Untouched;
    }
    if verdict == verdict::DENY {
        // SAFETY: as above.
        count::pod(source.stats_key, |stats| unsafe { &raw mut (*stats).outbound_denied });
        return Decision::Refuse;
    }
    // `PROXY`, and any verdict that these programs do not know: the proxy decides.
    redirect(ctx, source, asked, port)
}

#[inline(always)]
fn verdict_of(asked: Addr, port: u16) -> u32 {
    let mut key = DestKey { addr: asked, port, protocol: IPPROTO_TCP, pad: 0 };
    // SAFETY: not preallocated, so an entry that is deleted meanwhile stays readable until this program ends.
    if let Some(found) = unsafe { DESTINATIONS.get(key) } {
        return found.verdict;
    }
    key.port = 0;
    // SAFETY: as above.
    unsafe { DESTINATIONS.get(key) }.map_or(verdict::PASS, |found| found.verdict)
}

#[inline(always)]
fn redirect(ctx: &SockAddrContext, source: &Source<'_>, asked: Addr, port: u16) -> Decision {
    let own = if asked.is_v4() { source.pod.ipv4 } else { source.pod.ipv6 };
    if is_zero(&own) {
        count::event(counter::NO_ADDRESS);
        return Decision::Refuse;
    }
    // SAFETY: as in `decide`.
    let Some(state) = (unsafe { SOCKETS.get_or_insert_ptr_mut(ctx, None).as_mut() }) else {
        count::event(counter::STORAGE_FULL);
        return Decision::Refuse;
    };
    state.kind = socket_kind::CAPTURED;
    state.derived = derived::NONE;
    state.cgroup_id = source.cgroup_id;
    state.original = asked;
    state.original_port = port;

    let redirected = redirect_port::pick(ctx, &own, &asked, port);
    // SAFETY: as in `decide_for`.
    count::pod(source.stats_key, |stats| unsafe { &raw mut (*stats).outbound_captured });
    Decision::Redirect(own, redirected)
}

/// Whether it is no address at all.
#[inline(always)]
fn is_zero(addr: &Addr) -> bool {
    let words = &addr.words_be;
    words[0] | words[1] | words[2] | words[3] == 0
}
