//! The agent's listening sockets inside a pod's namespace.

use std::{
    io,
    net::{SocketAddr, TcpListener},
};

use socket2::{Domain, Protocol, Socket, Type};
use weft_abi::{direction, ports};

use super::{convert, error::PodError, limits::LISTENER_BACKLOG, netns::Netns};

/// Listening sockets of one pod.
#[derive(Debug, Default)]
pub(crate) struct Listeners {
    /// For connections that the pod makes: (4 or 6, socket).
    pub(crate) outbound: Vec<(u32, TcpListener)>,
    /// For connections made to the pod.
    pub(crate) inbound: Vec<(u32, TcpListener)>,
}

impl Listeners {
    /// Makes them. IPv6 too where the kernel has it, even if the pod has no IPv6 address of its own: a link-local one reaches it.
    pub(crate) fn open(netns: &Netns, inbound: bool) -> Result<Self, PodError> {
        let mut listeners = Self::default();
        for ip_version in versions() {
            listeners.outbound.push((ip_version, listen(netns, ports::LISTENER_OUTBOUND, ip_version)?));
            if inbound {
                listeners.inbound.push((ip_version, listen(netns, ports::LISTENER_INBOUND, ip_version)?));
            }
        }
        Ok(listeners)
    }

    /// All of them with their key's parts: (direction, 4 or 6, socket).
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, u32, &TcpListener)> {
        let outbound = self.outbound.iter().map(|(version, socket)| (direction::OUTBOUND, *version, socket));
        let inbound = self.inbound.iter().map(|(version, socket)| (direction::INBOUND, *version, socket));
        outbound.chain(inbound)
    }

    /// Whether every listener is there that [`open`](Self::open) would make.
    pub(crate) fn complete(&self, inbound: bool) -> bool {
        let has = |listeners: &[(u32, TcpListener)]| {
            versions().all(|want| listeners.iter().any(|(version, _)| *version == want))
        };
        has(&self.outbound) && (!inbound || has(&self.inbound))
    }

    /// More descriptors for the same sockets.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        let again = |listeners: &[(u32, TcpListener)]| {
            listeners
                .iter()
                .map(|(version, socket)| Ok((*version, socket.try_clone()?)))
                .collect::<io::Result<Vec<_>>>()
        };
        Ok(Self { outbound: again(&self.outbound)?, inbound: again(&self.inbound)? })
    }
}

/// Whether the kernel has IPv6 at all.
pub(crate) fn has_ipv6() -> bool {
    Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP)).is_ok()
}

fn versions() -> impl Iterator<Item = u32> {
    std::iter::once(4).chain(has_ipv6().then_some(6))
}

fn listen(netns: &Netns, port: u16, ip_version: u32) -> Result<TcpListener, PodError> {
    let made = netns
        .enter(|| -> io::Result<TcpListener> {
            let domain = if ip_version == 4 { Domain::IPV4 } else { Domain::IPV6 };
            let socket = Socket::new(domain, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
            // What is accepted inherits it: an application that restarts can bind its port although connections to it still exist.
            socket.set_reuse_address(true)?;
            if ip_version == 6 {
                socket.set_only_v6(true)?;
                socket.set_freebind_v6(true)?;
            } else {
                // The pod's loopback interface may be down, or without addresses; nothing is ever sent to this one.
                socket.set_freebind_v4(true)?;
            }
            socket.bind(&SocketAddr::new(convert::loopback(ip_version), port).into())?;
            socket.listen(LISTENER_BACKLOG)?;
            Ok(socket.into())
        })
        .map_err(PodError::kernel("enter the pod's network namespace"))?;
    made.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => PodError::PortInUse { port, ip_version },
        _ => PodError::Kernel { action: "listen in the pod's network namespace", source },
    })
}
