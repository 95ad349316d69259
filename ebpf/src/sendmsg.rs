//! `cgroup/sendmsg4` and `sendmsg6`: datagrams of sockets that are not connected, each with its destination. Datagrams alone pass here.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use weft_abi::Addr;

use crate::{
    connect::{PROCEED, asked_port, refuse},
    udp,
};

/// IPv4 sockets, and IPv6 ones that send to mapped addresses.
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    // SAFETY: as in `connect::connect4`.
    let word = unsafe { core::ptr::read_volatile(&raw const (*ctx.sock_addr).user_ip4) };
    if udp::may_send(&ctx, &Addr::v4(word), asked_port(ctx.sock_addr)) { PROCEED } else { refuse() }
}

/// IPv6 sockets.
#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    // SAFETY: as in `connect::connect4`.
    let words_be = unsafe {
        [
            core::ptr::read_volatile(&raw const (*ctx.sock_addr).user_ip6[0]),
            core::ptr::read_volatile(&raw const (*ctx.sock_addr).user_ip6[1]),
            core::ptr::read_volatile(&raw const (*ctx.sock_addr).user_ip6[2]),
            core::ptr::read_volatile(&raw const (*ctx.sock_addr).user_ip6[3]),
        ]
    };
    if udp::may_send(&ctx, &Addr { words_be }, asked_port(ctx.sock_addr)) { PROCEED } else { refuse() }
}
