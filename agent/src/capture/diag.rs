//! What sockets a namespace has, by sock_diag, and ending one.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsRawFd, BorrowedFd},
};

use netlink_packet_core::{
    DecodeError, Emitable, NLA_TYPE_MASK, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable, Nla, NlasIterator,
};
use netlink_packet_sock_diag::{
    SOCK_DIAG_BY_FAMILY, SockDiagDestroy, SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP, TCP_LISTEN, TCP_TIME_WAIT},
    inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags},
};
use weft_abi::{DIAG_IFINDEX, SocketState, socket_kind};

use super::netlink::{Family, Netlink};

/// "Any socket": the cookie that `INET_DIAG_NOCOOKIE` stands for.
const NO_COOKIE: [u8; 8] = [0xff; 8];

// linux/inet_diag.h and linux/sock_diag.h: a request that names maps of socket storage, and an answer that has what is in them.
const REQ_SK_BPF_STORAGES: u16 = 2;
const REQ_MAP_FD: u16 = 1;
const SK_BPF_STORAGES: u16 = 20;
const STORAGE_MAP_VALUE: u16 = 3;
/// Length of an attribute's header, and of one that holds a descriptor (netlink(7), `struct nlattr`).
const ATTRIBUTE_HEADER_BYTES: usize = 4;
const MAP_FD_BYTES: usize = ATTRIBUTE_HEADER_BYTES + 4;

/// A TCP socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TcpSocket {
    /// One of `netlink_packet_sock_diag::constants::TCP_*`.
    pub(crate) state: u8,
    /// Its own end.
    pub(crate) local: SocketAddr,
    /// The other end.
    pub(crate) peer: SocketAddr,
    /// Whether a process holds it: one that is only being closed by the kernel, or not accepted yet, is nobody's.
    pub(crate) held: bool,
    /// Whether the agent's storage says that it is the agent's own.
    pub(crate) agents_own: bool,
    family: u8,
    id: SocketId,
}

/// The maps of socket storage by which the agent's own sockets are known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tags<'a> {
    /// `SOCKETS`: those that it dialled.
    pub(crate) sockets: BorrowedFd<'a>,
    /// `ACCEPTED`: those that it accepted.
    pub(crate) accepted: BorrowedFd<'a>,
}

/// What became of a socket that was to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Destroyed {
    /// It was reset.
    Done,
    /// It was not there any more.
    Gone,
    /// This kernel ends no sockets (it is built without CONFIG_INET_DIAG_DESTROY).
    Unsupported,
}

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
            self.netlink.dump(SockDiagMessage::InetRequest(all(family, StateFlags::ESTABLISHED)), |message| {
                if let SockDiagMessage::InetResponse(response) = message
                    && !response.header.socket_id.destination_address.to_canonical().is_loopback()
                {
                    count = count.saturating_add(1);
                }
            })?;
        }
        Ok(count)
    }

    /// All TCP sockets in these states, IPv4 as IPv4 whatever the socket.
    pub(crate) fn tcp(
        &mut self,
        states: &StateFlags,
        tags: Option<Tags<'_>>,
        mut each: impl FnMut(TcpSocket),
    ) -> io::Result<()> {
        let maps: Vec<i32> =
            tags.iter().flat_map(|tags| [tags.sockets.as_raw_fd(), tags.accepted.as_raw_fd()]).collect();
        for family in [AF_INET, AF_INET6] {
            let request = all(family, states.clone());
            self.netlink.dump(TcpDump::Ask { request, maps: maps.clone() }, |message| {
                if let TcpDump::Found(response) = message {
                    each(TcpSocket::from(&*response));
                }
            })?;
        }
        Ok(())
    }

    /// Resets a connection, both ways: the application gets ECONNABORTED, and its peer a reset.
    pub(crate) fn destroy(&mut self, socket: &TcpSocket) -> io::Result<Destroyed> {
        let mut socket_id = socket.id.clone();
        if socket_id.interface_id == 0 {
            // See `holds`.
            socket_id.interface_id = DIAG_IFINDEX;
        }
        let request = InetRequest {
            family: socket.family,
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::all(),
            socket_id,
        };
        match self.netlink.change(SockDiagDestroy::new(SockDiagMessage::InetRequest(request)), 0) {
            Ok(()) => Ok(Destroyed::Done),
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOENT | libc::ESTALE) => Ok(Destroyed::Gone),
                Some(libc::EOPNOTSUPP) => Ok(Destroyed::Unsupported),
                _ => Err(error),
            },
        }
    }

    /// Whether a socket holds this connection, at either end: live, or in a TIME_WAIT that has to be waited for.
    pub(crate) fn is_taken(&mut self, one: SocketAddr, other: SocketAddr) -> io::Result<bool> {
        Ok(self.holds(one, other)? || self.holds(other, one)?)
    }

    /// Whether a socket has this connection, from `local` to `remote`; a TIME_WAIT that may be reused is none.
    pub(crate) fn holds(&mut self, local: SocketAddr, remote: SocketAddr) -> io::Result<bool> {
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

fn all(family: u8, states: StateFlags) -> InetRequest {
    let mut socket_id = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
    socket_id.cookie = NO_COOKIE;
    InetRequest { family, protocol: IPPROTO_TCP, extensions: ExtensionFlags::empty(), states, socket_id }
}

/// A dump of TCP sockets with what the agent's maps say of each.
#[derive(Debug)]
enum TcpDump {
    Ask { request: InetRequest, maps: Vec<i32> },
    Found(Box<InetResponse>),
}

impl NetlinkSerializable for TcpDump {
    fn message_type(&self) -> u16 {
        SOCK_DIAG_BY_FAMILY
    }

    fn buffer_len(&self) -> usize {
        match self {
            Self::Ask { request, maps } if maps.is_empty() => request.buffer_len(),
            Self::Ask { request, maps } => request.buffer_len() + ATTRIBUTE_HEADER_BYTES + maps.len() * MAP_FD_BYTES,
            Self::Found(_) => 0,
        }
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let Self::Ask { request, maps } = self else { return };
        let (head, rest) = buffer.split_at_mut(request.buffer_len());
        request.emit(head);
        if rest.is_empty() {
            return;
        }
        let (head, rest) = rest.split_at_mut(ATTRIBUTE_HEADER_BYTES);
        attribute(head, REQ_SK_BPF_STORAGES, ATTRIBUTE_HEADER_BYTES + maps.len() * MAP_FD_BYTES);
        for (part, map) in rest.chunks_exact_mut(MAP_FD_BYTES).zip(maps) {
            attribute(part, REQ_MAP_FD, MAP_FD_BYTES);
            part[ATTRIBUTE_HEADER_BYTES..].copy_from_slice(&map.to_ne_bytes());
        }
    }
}

impl NetlinkDeserializable for TcpDump {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Self::Error> {
        match SockDiagMessage::deserialize(header, payload)? {
            SockDiagMessage::InetResponse(response) => Ok(Self::Found(response)),
            _ => Err("not about a socket of the internet families".into()),
        }
    }
}

impl From<TcpDump> for netlink_packet_core::NetlinkPayload<TcpDump> {
    fn from(message: TcpDump) -> Self {
        Self::InnerMessage(message)
    }
}

/// Writes an attribute's header; lengths here are a few bytes.
fn attribute(buffer: &mut [u8], kind: u16, length: usize) {
    buffer[..2].copy_from_slice(&u16::try_from(length).unwrap_or(u16::MAX).to_ne_bytes());
    buffer[2..ATTRIBUTE_HEADER_BYTES].copy_from_slice(&kind.to_ne_bytes());
}

impl From<&InetResponse> for TcpSocket {
    fn from(response: &InetResponse) -> Self {
        let header = &response.header;
        let id = &header.socket_id;
        Self {
            state: header.state,
            local: SocketAddr::new(id.source_address.to_canonical(), id.source_port),
            peer: SocketAddr::new(id.destination_address.to_canonical(), id.destination_port),
            held: header.inode != 0,
            agents_own: is_agents_own(response),
            family: header.family,
            id: id.clone(),
        }
    }
}

/// Whether the storage of either map says so. The two are told apart by the length of what they hold.
fn is_agents_own(response: &InetResponse) -> bool {
    // The kernel flags it as nested, and the library keeps flags where it does not know an attribute.
    let storages = response.nlas.iter().filter(|nla| nla.kind() & NLA_TYPE_MASK == SK_BPF_STORAGES);
    storages.into_iter().any(|nla| {
        let mut bytes = vec![0; nla.value_len()];
        nla.emit_value(&mut bytes);
        let maps = NlasIterator::new(&bytes[..]).flatten();
        maps.into_iter().any(|map| {
            NlasIterator::new(map.value()).flatten().any(|part| {
                let value = part.value();
                part.kind() == STORAGE_MAP_VALUE
                    && match value.len() {
                        4 => value != [0; 4],
                        length if length == size_of::<SocketState>() => {
                            bytemuck::pod_read_unaligned::<SocketState>(value).kind == socket_kind::AGENT
                        }
                        _ => false,
                    }
            })
        })
    })
}
