//! Which port of the redirect block a connection goes to: by hash of its destination, unless its own port stands against it.
//!
//! A socket that was bound before it connects can share its port with others (SO_REUSEPORT, SO_REUSEADDR). Those have different
//! destinations, but two of these may have the same redirect port; the kernel would then refuse the second as the same connection.

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_F_CURRENT_NETNS, BPF_TCP_LISTEN, bpf_sock_tuple},
    helpers::{bpf_sk_release, bpf_skc_lookup_tcp},
    programs::SockAddrContext,
};
use weft_abi::{Addr, limits, ports};

/// The port for a connection of this socket to `asked`; `own` is the address that it will be redirected to.
#[inline(always)]
pub fn pick(ctx: &SockAddrContext, own: &Addr, asked: &Addr, port: u16) -> u16 {
    let first = ports::redirect_port(&asked.words_be, port, 0);
    // SAFETY: the context's socket is never null in this hook, and its fields are readable; all are read before any is chosen.
    let (bound_port, bound4, bound6) = unsafe {
        let socket = (*ctx.sock_addr).__bindgen_anon_1.sk;
        (
            core::ptr::read_volatile(&raw const (*socket).src_port) as u16,
            core::ptr::read_volatile(&raw const (*socket).src_ip4),
            [
                core::ptr::read_volatile(&raw const (*socket).src_ip6[0]),
                core::ptr::read_volatile(&raw const (*socket).src_ip6[1]),
                core::ptr::read_volatile(&raw const (*socket).src_ip6[2]),
                core::ptr::read_volatile(&raw const (*socket).src_ip6[3]),
            ],
        )
    };
    // The kernel picks the port later, and one that is free.
    if bound_port == 0 {
        return first;
    }
    let bound = if asked.is_v4() { Addr::v4(bound4) } else { Addr { words_be: bound6 } };
    let unspecified = if asked.is_v4() { bound4 == 0 } else { bound6[0] | bound6[1] | bound6[2] | bound6[3] == 0 };
    let from = if unspecified { own } else { &bound };
    let mut attempt = 0;
    while attempt < limits::REDIRECT_TRIES_MAX {
        let candidate = ports::redirect_port(&asked.words_be, port, attempt);
        // To its own port it would connect to itself.
        if candidate != bound_port && !is_taken(ctx, from, bound_port, own, candidate) {
            return candidate;
        }
        attempt += 1;
    }
    // The kernel says EADDRNOTAVAIL.
    first
}

/// Whether some socket of the pod's has this connection already, or has it in TIME_WAIT.
#[inline(always)]
fn is_taken(ctx: &SockAddrContext, from: &Addr, from_port: u16, to: &Addr, to_port: u16) -> bool {
    // As a packet to that socket has them: the source is the far end.
    // SAFETY: the tuple is plain data, and every byte that the helper reads of it is written here; the length tells the helper the
    // family. What it returns is null or a socket with a reference, whose state is readable.
    unsafe {
        let mut tuple: bpf_sock_tuple = core::mem::zeroed();
        let length = if to.is_v4() {
            tuple.__bindgen_anon_1.ipv4.saddr = to.words_be[3];
            tuple.__bindgen_anon_1.ipv4.daddr = from.words_be[3];
            tuple.__bindgen_anon_1.ipv4.sport = to_port.to_be();
            tuple.__bindgen_anon_1.ipv4.dport = from_port.to_be();
            size_of_val(&tuple.__bindgen_anon_1.ipv4)
        } else {
            tuple.__bindgen_anon_1.ipv6.saddr = to.words_be;
            tuple.__bindgen_anon_1.ipv6.daddr = from.words_be;
            tuple.__bindgen_anon_1.ipv6.sport = to_port.to_be();
            tuple.__bindgen_anon_1.ipv6.dport = from_port.to_be();
            size_of_val(&tuple.__bindgen_anon_1.ipv6)
        };
        let socket =
            bpf_skc_lookup_tcp(ctx.as_ptr(), &raw mut tuple, length as u32, BPF_F_CURRENT_NETNS as i64 as u64, 0);
        if socket.is_null() {
            return false;
        }
        // A listener on the port is no connection.
        let state = core::ptr::read_volatile(&raw const (*socket).state);
        bpf_sk_release(socket.cast());
        state != BPF_TCP_LISTEN
    }
}
