//! What sockets a namespace has, by sock_diag.

use std::{io, net::SocketAddr};

use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP, TCP_LISTEN, TCP_TIME_WAIT},
    inet::{ExtensionFlags, InetRequest, SocketId, StateFlags},
};
use weft_abi::DIAG_IFINDEX;

use super::netlink::{Family, Netlink};

/// "Any socket": the cookie that `INET_DIAG_NOCOOKIE` stands for.
const NO_COOKIE: [u8; 8] = [0xff; 8];

/// Asks one namespace about its sockets.
#[derive(Debug)]
pub(crate) struct Diag {
    netlink: Netlink,
    /// Whether a connection in TIME_WAIT may be followed by a new one at once: with timestamps the kernel tells their segments apart
    /// (RFC 6191). Without, a busy client would have no port left after 16,384 connections in a minute.
    time_wait_is_free: bool,
}

impl Diag {
    /// For the namespace that this thread is in.
    pub(crate) fn open() -> io::Result<Self> {
        let time_wait_is_free = super::sysctl::tcp_timestamps()?;
        Ok(Self { netlink: Netlink::open(Family::SockDiag)?, time_wait_is_free })
    }

    /// How many TCP connections are established, loopback left out.
    pub(crate) fn established(&mut self) -> io::Result<u32> {
        let mut count = 0_u32;
        for family in [AF_INET, AF_INET6] {
            let mut socket_id = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
            socket_id.cookie = NO_COOKIE;
            let request = InetRequest {
                family,
                protocol: IPPROTO_TCP,
                extensions: ExtensionFlags::empty(),
                states: StateFlags::ESTABLISHED,
                socket_id,
            };
            self.netlink.dump(SockDiagMessage::InetRequest(request), |message| {
                if let SockDiagMessage::InetResponse(response) = message
                    && !response.header.socket_id.destination_address.to_canonical().is_loopback()
                {
                    count = count.saturating_add(1);
                }
            })?;
        }
        Ok(count)
    }

    /// Whether a socket holds this connection, at either end: live, or in a TIME_WAIT that has to be waited for.
    pub(crate) fn is_taken(&mut self, one: SocketAddr, other: SocketAddr) -> io::Result<bool> {
        Ok(self.holds(one, other)? || self.holds(other, one)?)
    }

    fn holds(&mut self, local: SocketAddr, remote: SocketAddr) -> io::Result<bool> {
        let request = InetRequest {
            family: if local.is_ipv4() { AF_INET } else { AF_INET6 },
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::all(),
            socket_id: SocketId {
                source_port: local.port(),
                destination_port: remote.port(),
                source_address: local.ip(),
                destination_address: remote.ip(),
                // No such interface: sockets that are bound to none match all the same, and the pod's look-up program, which the
                // kernel asks for listeners, knows this number for the agent's curiosity.
                interface_id: DIAG_IFINDEX,
                cookie: NO_COOKIE,
            },
        };
        match self.netlink.ask(SockDiagMessage::InetRequest(request))? {
            Some(SockDiagMessage::InetResponse(response)) => Ok(match response.header.state {
                // A listener for the address is no connection.
                TCP_LISTEN => false,
                TCP_TIME_WAIT => !self.time_wait_is_free,
                _ => true,
            }),
            _ => Ok(false),
        }
    }
}
