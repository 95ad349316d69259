//! The port blocks that weft reserves inside a captured pod's namespace (`net.ipv4.ip_local_reserved_ports`), so that
//! the kernel never gives one to an application that did not ask for it by number.
//!
//! All lie outside Linux's default ephemeral range (32768 to 60999, ip-sysctl "ip_local_port_range").

/// First source port of the agent's transparent connections to an application, which carry the real client's address.
/// They must never equal a port that the client itself chose, so they lie below every default ephemeral range.
pub const TRANSPARENT_FIRST: u16 = 16_384;
/// Last port of that block: at most 16,384 connections at one time from one client address to one pod port.
pub const TRANSPARENT_LAST: u16 = 32_767;

/// First port of the redirect block: an outbound connection's port is rewritten to one of these, by hash of its
/// destination, because one single port exhausts the client's source ports at some 470 new connections a second.
pub const REDIRECT_FIRST: u16 = 61_000;
/// How many ports the redirect block has; a power of two.
pub const REDIRECT_COUNT: u16 = 1_024;

/// First source port of the reserved block for mutual TLS dials between nodes: from such a port the receiving agent waits for a ClientHello.
pub const TLS_DIAL_FIRST: u16 = 62_024;
/// Last port of that block.
pub const TLS_DIAL_LAST: u16 = 65_095;

/// Whether a port is of that block: then nobody but an agent may have the connection.
#[inline(always)]
#[must_use]
pub const fn is_tls_dial(port: u16) -> bool {
    port >= TLS_DIAL_FIRST && port <= TLS_DIAL_LAST
}

/// Port of the outbound listeners, on the loopback address; reached only through `sk_lookup`.
pub const LISTENER_OUTBOUND: u16 = 65_096;
/// Port of the inbound listeners, on the loopback address; reached only through `sk_lookup`.
pub const LISTENER_INBOUND: u16 = 65_097;

/// What is added to `net.ipv4.ip_local_reserved_ports`: the transparent block, and all from the redirect block to the listeners.
pub const RESERVED: [(u16, u16); 2] = [(TRANSPARENT_FIRST, TRANSPARENT_LAST), (REDIRECT_FIRST, LISTENER_INBOUND)];

/// The port of the redirect block for a destination: `address` is its four network-order words, `port` in host order.
/// A connection whose own source port is that very port would connect to itself; the caller then takes `attempt` 1.
#[inline(always)]
#[must_use]
pub const fn redirect_port(address: &[u32; 4], port: u16, attempt: u16) -> u16 {
    let mut hash = address[0] ^ address[1].rotate_left(8) ^ address[2].rotate_left(16) ^ u32::from_be(address[3]);
    hash ^= ((port as u32) << 16) | port as u32;
    // Fibonacci hashing (Knuth, TAOCP 6.4): the high bits are the well-mixed ones.
    let slot = (hash.wrapping_mul(0x9E37_79B1) >> 22) as u16;
    REDIRECT_FIRST + ((slot + attempt) & (REDIRECT_COUNT - 1))
}
