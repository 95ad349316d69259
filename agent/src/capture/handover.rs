//! Hand-over: a new agent takes the listening sockets, accept queues and all, from the one that runs.
//!
//! Over a Unix stream socket. The old agent sends its listeners in batches and an end; the new one takes the pods over and says done;
//! only then does the old one stop accepting. Whatever goes wrong before, the old agent goes on as if nothing had been. Blocking:
//! meant for a thread of its own.

use std::{
    io::{self, IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    net::TcpListener,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg, sockopt,
};
use serde::{Deserialize, Serialize};
use weft_policy::names::WorkloadId;

use super::limits::{HANDOVER_BATCH_MAX, HANDOVER_MESSAGE_BYTES_MAX, HANDOVER_SOCKETS_MAX, HANDOVER_TIMEOUT};

/// First word of every message.
const MAGIC: u32 = u32::from_le_bytes(*b"wfth");
/// Of the messages; an agent that speaks another one is not taken over from.
const VERSION: u16 = 1;
/// Magic, version, kind, length of the body, number of descriptors.
const HEADER_BYTES: usize = 16;

/// A listening socket on its way from one agent to the next.
#[derive(Debug)]
pub struct HandedListener {
    /// The pod, or one of those that share its namespace.
    pub workload: WorkloadId,
    /// Cookie of the namespace in which it listens.
    pub netns_cookie: u64,
    /// One of `weft_abi::direction`.
    pub direction: u32,
    /// 4 or 6.
    pub ip_version: u32,
    /// The socket.
    pub socket: TcpListener,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    workload: String,
    netns_cookie: u64,
    direction: u32,
    ip_version: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A batch of listeners.
    Listeners = 1,
    /// There are no more.
    End = 2,
    /// The new agent has taken over.
    Done = 3,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    kind: Kind,
    body_bytes: usize,
    descriptors: usize,
}

/// Gives the listeners to the agent at the other end, and waits until it has taken over.
///
/// # Errors
/// When the other end goes away, breaks the protocol or takes too long: it has not taken over then.
pub fn serve(mut stream: &UnixStream, listeners: &[HandedListener]) -> io::Result<()> {
    set_timeouts(stream)?;
    for batch in listeners.chunks(HANDOVER_BATCH_MAX) {
        let entries: Vec<Entry> = batch
            .iter()
            .map(|listener| Entry {
                workload: listener.workload.to_string(),
                netns_cookie: listener.netns_cookie,
                direction: listener.direction,
                ip_version: listener.ip_version,
            })
            .collect();
        let descriptors: Vec<BorrowedFd<'_>> = batch.iter().map(|listener| listener.socket.as_fd()).collect();
        send_message(stream, Kind::Listeners, &serde_json::to_vec(&entries)?, &descriptors)?;
    }
    send_message(stream, Kind::End, &[], &[])?;
    stream.flush()?;
    match receive_message(stream)?.0 {
        Kind::Done => Ok(()),
        other => Err(bad(format!("expected done, and got {other:?}"))),
    }
}

/// Listeners that were received, while the old agent waits.
#[derive(Debug)]
pub struct Handover {
    /// What was received.
    pub listeners: Vec<HandedListener>,
    stream: UnixStream,
}

impl Handover {
    /// Tells the old agent to stop accepting. To be called once the pods are taken over.
    ///
    /// # Errors
    /// When the old agent is gone; it then accepts nothing either.
    pub fn done(self) -> io::Result<()> {
        send_message(&self.stream, Kind::Done, &[], &[])
    }
}

/// Takes the listeners from the agent at the other end.
///
/// # Errors
/// When the other end goes away, breaks the protocol or takes too long.
pub fn receive(stream: UnixStream) -> io::Result<Handover> {
    set_timeouts(&stream)?;
    let mut listeners = Vec::new();
    loop {
        let (kind, body, descriptors) = receive_message(&stream)?;
        match kind {
            Kind::End => return Ok(Handover { listeners, stream }),
            Kind::Done => return Err(bad("got done before the end")),
            Kind::Listeners => {}
        }
        let entries: Vec<Entry> = serde_json::from_slice(&body)?;
        if entries.len() != descriptors.len() {
            return Err(bad(format!("{} listeners came with {} descriptors", entries.len(), descriptors.len())));
        }
        if listeners.len() + entries.len() > HANDOVER_SOCKETS_MAX {
            return Err(bad(format!("more than {HANDOVER_SOCKETS_MAX} listeners")));
        }
        for (entry, descriptor) in entries.into_iter().zip(descriptors) {
            if !sockopt::socket_acceptconn(&descriptor)? {
                return Err(bad(format!("a descriptor of pod {} does not listen", entry.workload)));
            }
            listeners.push(HandedListener {
                workload: WorkloadId::new(&entry.workload),
                netns_cookie: entry.netns_cookie,
                direction: entry.direction,
                ip_version: entry.ip_version,
                socket: TcpListener::from(descriptor),
            });
        }
    }
}

fn set_timeouts(stream: &UnixStream) -> io::Result<()> {
    stream.set_read_timeout(Some(HANDOVER_TIMEOUT))?;
    stream.set_write_timeout(Some(HANDOVER_TIMEOUT))
}

fn bad(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("hand-over: {what}"))
}

impl Header {
    fn encode(self) -> io::Result<[u8; HEADER_BYTES]> {
        let mut bytes = [0; HEADER_BYTES];
        let length = u32::try_from(self.body_bytes).map_err(io::Error::other)?;
        let descriptors = u32::try_from(self.descriptors).map_err(io::Error::other)?;
        bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
        bytes[6..8].copy_from_slice(&(self.kind as u16).to_le_bytes());
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        bytes[12..16].copy_from_slice(&descriptors.to_le_bytes());
        Ok(bytes)
    }

    fn decode(bytes: &[u8; HEADER_BYTES]) -> io::Result<Self> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        if word(0) != MAGIC {
            return Err(bad("the other end does not speak this protocol"));
        }
        if half(4) != VERSION {
            return Err(bad(format!("the other end speaks version {}, and this agent version {VERSION}", half(4))));
        }
        let kind = match half(6) {
            1 => Kind::Listeners,
            2 => Kind::End,
            3 => Kind::Done,
            other => return Err(bad(format!("unknown message {other}"))),
        };
        let header = Self { kind, body_bytes: word(8) as usize, descriptors: word(12) as usize };
        if header.body_bytes > HANDOVER_MESSAGE_BYTES_MAX || header.descriptors > HANDOVER_BATCH_MAX {
            return Err(bad("a message is larger than its limit"));
        }
        Ok(header)
    }
}

fn send_message(mut stream: &UnixStream, kind: Kind, body: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let header = Header { kind, body_bytes: body.len(), descriptors: descriptors.len() }.encode()?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(HANDOVER_BATCH_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(bad(format!("more than {HANDOVER_BATCH_MAX} descriptors in one message")));
    }
    // The descriptors travel with the first byte.
    let sent = sendmsg(stream, &[IoSlice::new(&header)], &mut control, SendFlags::NOSIGNAL)?;
    stream.write_all(&header[sent..])?;
    stream.write_all(body)
}

fn receive_message(mut stream: &UnixStream) -> io::Result<(Kind, Vec<u8>, Vec<OwnedFd>)> {
    let mut header = [0; HEADER_BYTES];
    let mut descriptors = Vec::new();
    let mut filled = 0;
    while filled < HEADER_BYTES {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(HANDOVER_BATCH_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received =
            recvmsg(stream, &mut [IoSliceMut::new(&mut header[filled..])], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                descriptors.extend(received);
            }
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(bad("descriptors were lost: too many at once, or too many open files"));
        }
        if received.bytes == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "hand-over: the other agent went away"));
        }
        filled += received.bytes;
    }
    let header = Header::decode(&header)?;
    if header.descriptors != descriptors.len() {
        return Err(bad(format!("{} descriptors were announced and {} came", header.descriptors, descriptors.len())));
    }
    let mut body = vec![0; header.body_bytes];
    stream.read_exact(&mut body)?;
    Ok((header.kind, body, descriptors))
}

#[cfg(test)]
mod tests {
    use std::{net::TcpStream, thread};

    use super::*;

    fn listeners(count: u64) -> Vec<HandedListener> {
        (0..count)
            .map(|index| HandedListener {
                workload: WorkloadId::new(&format!("pod-{index}")),
                netns_cookie: index,
                direction: weft_abi::direction::INBOUND,
                ip_version: 4,
                socket: TcpListener::bind("127.0.0.1:0").expect("listener"),
            })
            .collect()
    }

    #[test]
    fn every_listener_arrives_with_its_queue_and_the_old_agent_waits_for_done() {
        // More than one batch.
        let offered = listeners(150);
        let addresses: Vec<_> = offered.iter().map(|listener| listener.socket.local_addr().expect("address")).collect();
        let waiting = TcpStream::connect(addresses[70]).expect("queued before the hand-over");
        let (old, new) = UnixStream::pair().expect("pair");
        let server = thread::spawn(move || serve(&old, &offered));

        let handover = receive(new).expect("received");
        assert_eq!(handover.listeners.len(), 150);
        for (index, listener) in (0..).zip(&handover.listeners) {
            assert_eq!(listener.workload, WorkloadId::new(&format!("pod-{index}")));
            assert_eq!((listener.netns_cookie, listener.direction, listener.ip_version), (index, 1, 4));
            assert_eq!(
                listener.socket.local_addr().expect("address"),
                addresses[usize::try_from(index).expect("small")]
            );
        }
        assert!(!server.is_finished(), "the old agent must wait for done");
        let (accepted, _) = handover.listeners[70].socket.accept().expect("accepted by the new agent");
        assert_eq!(accepted.peer_addr().expect("peer"), waiting.local_addr().expect("local"));
        handover.done().expect("done sent");
        server.join().expect("server").expect("done received");
    }

    #[test]
    fn an_agent_without_pods_hands_nothing_over() {
        let (old, new) = UnixStream::pair().expect("pair");
        let server = thread::spawn(move || serve(&old, &[]));
        let handover = receive(new).expect("received");
        assert!(handover.listeners.is_empty());
        handover.done().expect("done sent");
        server.join().expect("server").expect("done received");
    }

    #[test]
    fn a_new_agent_that_dies_leaves_the_old_one_in_charge() {
        let (old, new) = UnixStream::pair().expect("pair");
        let server = thread::spawn(move || serve(&old, &listeners(3)));
        drop(receive(new).expect("received"));
        let error = server.join().expect("server").expect_err("nobody took over");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn what_is_not_this_protocol_is_refused() {
        for (bytes, said) in [
            (*b"GET / HTTP/1.1\r\n", "does not speak this protocol"),
            (
                Header { kind: Kind::End, body_bytes: HANDOVER_MESSAGE_BYTES_MAX + 1, descriptors: 0 }
                    .encode()
                    .expect("header"),
                "larger than its limit",
            ),
            (Header { kind: Kind::End, body_bytes: 0, descriptors: 1 }.encode().expect("header"), "were announced"),
            (Header { kind: Kind::Done, body_bytes: 0, descriptors: 0 }.encode().expect("header"), "before the end"),
        ] {
            let (mut old, new) = UnixStream::pair().expect("pair");
            old.write_all(&bytes).expect("written");
            let error = receive(new).expect_err("refused");
            assert!(error.to_string().contains(said), "{error}");
        }
        let mut other = Header { kind: Kind::End, body_bytes: 0, descriptors: 0 }.encode().expect("header");
        other[4] = 9;
        assert!(Header::decode(&other).expect_err("refused").to_string().contains("version 9"));
        other[4] = 1;
        other[6] = 7;
        assert!(Header::decode(&other).expect_err("refused").to_string().contains("unknown message 7"));
    }

    #[test]
    fn a_descriptor_that_does_not_listen_is_refused() {
        let (old, new) = UnixStream::pair().expect("pair");
        let server = thread::spawn(move || -> io::Result<()> {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            let connected = TcpStream::connect(listener.local_addr()?)?;
            let entry = Entry { workload: "pod".to_owned(), netns_cookie: 1, direction: 0, ip_version: 4 };
            send_message(&old, Kind::Listeners, &serde_json::to_vec(&[entry])?, &[connected.as_fd()])
        });
        let error = receive(new).expect_err("refused");
        assert!(error.to_string().contains("does not listen"), "{error}");
        server.join().expect("server").expect("sent");
    }
}
