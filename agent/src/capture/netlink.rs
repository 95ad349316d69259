//! A netlink socket that asks and waits for the answer. It speaks to the namespace in which it was made, from any thread.

use std::{io, os::fd::OwnedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with, sockopt,
};

use super::limits::{NETLINK_BUFFER_BYTES, NETLINK_TIMEOUT};

/// Which part of the kernel to speak to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Family {
    /// Addresses, routes, rules.
    Route,
    /// Sockets.
    SockDiag,
}

/// A netlink socket.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: OwnedFd,
    buffer: Vec<u8>,
    sequence: u32,
}

impl Netlink {
    /// Opens one in the namespace that this thread is in.
    pub(crate) fn open(family: Family) -> io::Result<Self> {
        let protocol = match family {
            // NETLINK_ROUTE is protocol 0, the default.
            Family::Route => None,
            Family::SockDiag => Some(netlink::SOCK_DIAG),
        };
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(NETLINK_TIMEOUT))?;
        Ok(Self { socket, buffer: vec![0; NETLINK_BUFFER_BYTES], sequence: 0 })
    }

    /// Has something changed, and waits until it is.
    pub(crate) fn change<T>(&mut self, message: T, flags: u16) -> io::Result<()>
    where
        T: NetlinkSerializable + NetlinkDeserializable,
    {
        self.exchange(message, NLM_F_REQUEST | NLM_F_ACK | flags, |_| {})
    }

    /// Asks for everything there is.
    pub(crate) fn dump<T>(&mut self, message: T, each: impl FnMut(T)) -> io::Result<()>
    where
        T: NetlinkSerializable + NetlinkDeserializable,
    {
        self.exchange(message, NLM_F_REQUEST | NLM_F_DUMP, each)
    }

    /// Asks for one thing.
    pub(crate) fn ask<T>(&mut self, message: T) -> io::Result<Option<T>>
    where
        T: NetlinkSerializable + NetlinkDeserializable,
    {
        let mut answer = None;
        // With an acknowledgement behind the answer, both endings look alike.
        match self.exchange(message, NLM_F_REQUEST | NLM_F_ACK, |found| answer = Some(found)) {
            Ok(()) => Ok(answer),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn exchange<T>(&mut self, message: T, flags: u16, mut each: impl FnMut(T)) -> io::Result<()>
    where
        T: NetlinkSerializable + NetlinkDeserializable,
    {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        packet.finalize();
        let mut request = vec![0; packet.buffer_len()];
        packet.serialize(&mut request);
        send(&self.socket, &request, SendFlags::empty())?;
        loop {
            let (received, _) = recv(&self.socket, &mut self.buffer[..], RecvFlags::empty())?;
            let mut rest = &self.buffer[..received];
            while !rest.is_empty() {
                let answer = NetlinkMessage::<T>::deserialize(rest).map_err(io::Error::other)?;
                let length = (answer.header.length as usize).next_multiple_of(4);
                rest = rest.get(length..).unwrap_or_default();
                // What a timed-out exchange left behind.
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::InnerMessage(found) => each(found),
                    NetlinkPayload::Error(error) => {
                        return error
                            .code
                            .map_or(Ok(()), |code| Err(io::Error::from_raw_os_error(code.get().wrapping_neg())));
                    }
                    NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::Overrun(_) => return Err(io::Error::other("the kernel lost its answer")),
                    _ => {}
                }
            }
        }
    }
}
