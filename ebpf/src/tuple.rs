//! What an `sk_lookup` program is asked about.

use aya_ebpf::programs::SkLookupContext;
use weft_abi::Addr;

/// Address family of IPv4 sockets (socket(2)).
const AF_INET: u32 = 2;

/// A connection, or a datagram, as the side sees it that it arrives at.
pub struct Tuple {
    /// IANA protocol number.
    pub protocol: u32,
    /// Index of the interface that it came in by.
    pub ifindex: u32,
    /// The accepting side's address.
    pub local: Addr,
    /// The sending side's address.
    pub remote: Addr,
    /// The accepting side's port, host byte order.
    pub local_port: u16,
    /// The sending side's port, host byte order.
    pub remote_port: u16,
}

/// Reads it.
#[inline(always)]
pub fn of(ctx: &SkLookupContext) -> Tuple {
    let lookup = ctx.lookup;
    // SAFETY: the verifier checks every access. All are read before any is chosen: see `sock_ops::accepting_side`.
    let (protocol, ifindex, family, local4, remote4, local6, remote6, local_port, remote_port) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*lookup).protocol),
            core::ptr::read_volatile(&raw const (*lookup).ingress_ifindex),
            core::ptr::read_volatile(&raw const (*lookup).family),
            core::ptr::read_volatile(&raw const (*lookup).local_ip4),
            core::ptr::read_volatile(&raw const (*lookup).remote_ip4),
            [
                core::ptr::read_volatile(&raw const (*lookup).local_ip6[0]),
                core::ptr::read_volatile(&raw const (*lookup).local_ip6[1]),
                core::ptr::read_volatile(&raw const (*lookup).local_ip6[2]),
                core::ptr::read_volatile(&raw const (*lookup).local_ip6[3]),
            ],
            [
                core::ptr::read_volatile(&raw const (*lookup).remote_ip6[0]),
                core::ptr::read_volatile(&raw const (*lookup).remote_ip6[1]),
                core::ptr::read_volatile(&raw const (*lookup).remote_ip6[2]),
                core::ptr::read_volatile(&raw const (*lookup).remote_ip6[3]),
            ],
            core::ptr::read_volatile(&raw const (*lookup).local_port) as u16,
            u16::from_be(core::ptr::read_volatile(&raw const (*lookup).remote_port)),
        )
    };
    let (local, remote) = if family == AF_INET {
        (Addr::v4(local4), Addr::v4(remote4))
    } else {
        (Addr { words_be: local6 }, Addr { words_be: remote6 })
    };
    Tuple { protocol, ifindex, local, remote, local_port, remote_port }
}

/// Whether both are the same. Word by word: a slice comparison becomes a call to `memcmp`, which there is none of.
#[inline(always)]
pub fn same(left: &Addr, right: &Addr) -> bool {
    let (left, right) = (&left.words_be, &right.words_be);
    left[0] == right[0] && left[1] == right[1] && left[2] == right[2] && left[3] == right[3]
}
