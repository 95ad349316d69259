//! `cgroup/getpeername4` and `getpeername6`: a captured socket's peer is whom it asked for, not the agent.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use weft_abi::{SocketState, socket_kind};

use crate::cgroup_maps::SOCKETS;

/// The only answer that these hooks may give.
const PROCEED: i32 = 1;

#[inline(always)]
fn captured(ctx: &SockAddrContext) -> Option<&'static SocketState> {
    // SAFETY: null or the socket's storage, which lives while the application holds the socket.
    unsafe { SOCKETS.get_ptr_mut(ctx).as_ref() }.filter(|state| state.kind == socket_kind::CAPTURED)
}

/// IPv4 sockets.
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    if let Some(state) = captured(&ctx) {
        // SAFETY: both fields are writable in this hook; volatile, so that LLVM does not merge the stores.
        unsafe {
            core::ptr::write_volatile(&raw mut (*ctx.sock_addr).user_ip4, state.original.words_be[3]);
            core::ptr::write_volatile(&raw mut (*ctx.sock_addr).user_port, u32::from(state.original_port.to_be()));
        }
    }
    PROCEED
}

/// IPv6 sockets; a mapped address is kept in its mapped form.
#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    if let Some(state) = captured(&ctx) {
        // SAFETY: as above.
        unsafe {
            core::ptr::write_volatile(&raw mut (*ctx.sock_addr).user_ip6[0], state.original.words_be[0]);
            core::ptr::write_volatile(&raw mut (*ctx.sock_addr).user_ip6[1], state.original.words_be[1]);
            core::ptr::write_volatile(&raw mut (*ctx.sock_addr).user_ip6[2], state.original.words_be[2]);
            core::ptr::write_volatile(&raw mut (*ctx.sock_addr).user_ip6[3], state.original.words_be[3]);
            core::ptr::write_volatile(&raw mut (*ctx.sock_addr).user_port, u32::from(state.original_port.to_be()));
        }
    }
    PROCEED
}
