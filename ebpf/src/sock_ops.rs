//! `sock_ops`: publishes a connection's tuple when it is complete and before the SYN leaves, and takes it back when the socket closes.
//!
//! Here a connection cannot be stopped any more. What could not be published shows in the socket's storage (the agent checks its own
//! sockets) or is reset where it arrives.

use aya_ebpf::{
    EbpfContext,
    bindings::{
        BPF_SK_STORAGE_GET_F_CREATE, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB,
        BPF_TCP_CLOSE, BPF_TCP_CLOSING, BPF_TCP_FIN_WAIT1, BPF_TCP_FIN_WAIT2, BPF_TCP_TIME_WAIT, bpf_sock,
    },
    helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie, generated::bpf_sk_storage_get},
    macros::sock_ops,
    programs::SockOpsContext,
};
use weft_abi::{Addr, FlowKey, FlowOwner, NODE_NETNS, OriginalDst, SocketState, counter, derived, socket_kind};

use crate::{
    cgroup_maps::SOCKETS,
    count, flows,
    maps::{LOCAL_ADDRS, SETTINGS},
};

/// Address family of IPv4 sockets (socket(2)).
const AF_INET: u32 = 2;

/// Attached to the root of the cgroup hierarchy, so that it sees the node's own sockets too.
#[sock_ops]
pub fn socket_events(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(&ctx),
        BPF_SOCK_OPS_STATE_CB => changing(&ctx),
        _ => {}
    }
    1
}

/// The socket's storage, made if `flags` say so.
#[inline(always)]
fn storage(ctx: &SockOpsContext, flags: u32) -> Option<&'static mut SocketState> {
    // SAFETY: the helper wants a socket that was checked for null, and returns null or storage that lives as long as the socket.
    unsafe {
        let socket: *mut bpf_sock = (*ctx.ops).__bindgen_anon_2.sk;
        if socket.is_null() {
            return None;
        }
        let map = (&raw const SOCKETS).cast_mut().cast();
        bpf_sk_storage_get(map, socket.cast(), core::ptr::null_mut(), u64::from(flags)).cast::<SocketState>().as_mut()
    }
}

/// The connection as its accepting side will see it, without the namespace.
#[inline(always)]
fn accepting_side(ctx: &SockOpsContext) -> FlowKey {
    let ops = ctx.ops;
    // SAFETY: the verifier checks every access. All are read before any is chosen: a choice between context fields becomes a
    // computed context pointer, which the verifier refuses.
    let (family, local4, remote4, local6, remote6, local_port, remote_port) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*ops).family),
            core::ptr::read_volatile(&raw const (*ops).local_ip4),
            core::ptr::read_volatile(&raw const (*ops).remote_ip4),
            [
                core::ptr::read_volatile(&raw const (*ops).local_ip6[0]),
                core::ptr::read_volatile(&raw const (*ops).local_ip6[1]),
                core::ptr::read_volatile(&raw const (*ops).local_ip6[2]),
                core::ptr::read_volatile(&raw const (*ops).local_ip6[3]),
            ],
            [
                core::ptr::read_volatile(&raw const (*ops).remote_ip6[0]),
                core::ptr::read_volatile(&raw const (*ops).remote_ip6[1]),
                core::ptr::read_volatile(&raw const (*ops).remote_ip6[2]),
                core::ptr::read_volatile(&raw const (*ops).remote_ip6[3]),
            ],
            core::ptr::read_volatile(&raw const (*ops).local_port),
            core::ptr::read_volatile(&raw const (*ops).remote_port),
        )
    };
    let (mine, theirs) = if family == AF_INET {
        (Addr::v4(local4), Addr::v4(remote4))
    } else {
        (Addr { words_be: local6 }, Addr { words_be: remote6 })
    };
    FlowKey {
        netns_cookie: 0,
        local: theirs,
        remote: mine,
        // The local port is in host byte order, the remote one in network byte order, widened.
        local_port: u32::from_be(remote_port) as u16,
        remote_port: local_port as u16,
        pad: 0,
    }
}

#[inline(always)]
fn connecting(ctx: &SockOpsContext) {
    match storage(ctx, 0) {
        Some(state) if state.kind == socket_kind::CAPTURED => captured(ctx, state),
        Some(state) if state.kind == socket_kind::AGENT => agents_own(ctx, state),
        Some(state) if state.kind == socket_kind::HOST_POD => {}
        Some(_) | None => nodes_own(ctx),
    }
}

#[inline(always)]
fn captured(ctx: &SockOpsContext, state: &mut SocketState) {
    let mut key = accepting_side(ctx);
    // SAFETY (both): the context is this program's own.
    key.netns_cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    let original = OriginalDst {
        addr: state.original,
        socket_cookie: unsafe { bpf_get_socket_cookie(ctx.as_ptr()) },
        cgroup_id: state.cgroup_id,
        port: state.original_port,
        closed: 0,
        pad: [0; 2],
    };
    if watch(ctx) && flows::add_captured(&key, &original) {
        state.key = key;
        state.derived = derived::CAPTURED;
    }
}

#[inline(always)]
fn agents_own(ctx: &SockOpsContext, state: &mut SocketState) {
    if state.bypass_netns == 0 {
        return;
    }
    let mut key = accepting_side(ctx);
    key.netns_cookie = state.bypass_netns;
    // SAFETY: the context is this program's own.
    let owner = FlowOwner { socket_cookie: unsafe { bpf_get_socket_cookie(ctx.as_ptr()) } };
    state.derived = derived::NONE;
    if watch(ctx) && flows::add_bypass(&key, &owner) {
        state.key = key;
        state.derived = derived::BYPASS;
    }
}

/// A socket that no connect program tagged: the node's own, if it is of the host's namespace. Only flows to captured pods matter.
#[inline(always)]
fn nodes_own(ctx: &SockOpsContext) {
    let Some(settings) = SETTINGS.get(0) else { return };
    // SAFETY: the context is this program's own.
    if unsafe { bpf_get_netns_cookie(ctx.as_ptr()) } != settings.host_netns_cookie {
        return;
    }
    let mut key = accepting_side(ctx);
    // SAFETY: only asks whether it is there.
    if unsafe { LOCAL_ADDRS.get(key.local) }.is_none() {
        return;
    }
    key.netns_cookie = NODE_NETNS;
    let Some(state) = storage(ctx, BPF_SK_STORAGE_GET_F_CREATE) else {
        count::event(counter::STORAGE_FULL);
        return;
    };
    // SAFETY: as above.
    let owner = FlowOwner { socket_cookie: unsafe { bpf_get_socket_cookie(ctx.as_ptr()) } };
    state.derived = derived::NONE;
    if watch(ctx) && flows::add_node_flow(&key, &owner) {
        state.key = key;
        state.derived = derived::NODE_FLOW;
    }
}

/// Asks to be called when the socket's state changes. Comes before an entry is written: without it the entry would stay for ever.
#[inline(always)]
fn watch(ctx: &SockOpsContext) -> bool {
    ctx.set_cb_flags((ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG) as i32).is_ok()
}

#[inline(always)]
fn changing(ctx: &SockOpsContext) {
    // SAFETY: this operation passes the old and the new state in its arguments.
    let (from, to) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*ctx.ops).__bindgen_anon_1.args[0]),
            core::ptr::read_volatile(&raw const (*ctx.ops).__bindgen_anon_1.args[1]),
        )
    };
    if to != BPF_TCP_CLOSE {
        return;
    }
    let Some(state) = storage(ctx, 0) else { return };
    if state.derived == derived::NONE || state.derived == derived::ENDED {
        return;
    }
    // SAFETY: the context is this program's own.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    // Sent everything, then closed: all of it may still wait in the accept queue, and the agent must learn where it was to go.
    let orderly =
        from == BPF_TCP_FIN_WAIT1 || from == BPF_TCP_FIN_WAIT2 || from == BPF_TCP_CLOSING || from == BPF_TCP_TIME_WAIT;
    let key = state.key;
    if state.derived == derived::CAPTURED && orderly {
        flows::mark_closed(&key, cookie);
    } else {
        flows::remove(state.derived, &key, cookie);
    }
    state.derived = derived::ENDED;
}
