//! Everything that crossed a link, packet by packet, and the byte streams that the packets of TCP connections make.

use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use socket2::{Domain, Protocol, Socket, Type};

use crate::{limits, namespace::Namespace};

/// "All protocols" for a packet socket (packet(7)), network byte order.
const ETH_P_ALL: i32 = 0x0003_u16.to_be() as i32;
/// How long the thread waits for a packet before it looks whether it is to end.
const WAIT: Duration = Duration::from_millis(50);
/// Largest packet: segmentation is left to the receiver on a veth pair, so one packet can be a whole IP datagram.
const PACKET_BYTES_MAX: usize = 128 * 1024;

const ETHERNET_BYTES: usize = 14;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const IPV6_HEADER_BYTES: usize = 40;
const TCP: u8 = 6;
const TCP_SYN: u8 = 2;

/// A recording that runs.
#[derive(Debug)]
pub struct Recording {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Vec<Vec<u8>>>>>,
}

/// What was recorded.
#[derive(Debug)]
pub struct Recorded {
    packets: Vec<Vec<u8>>,
    streams: BTreeMap<(SocketAddr, SocketAddr), Vec<Stream>>,
}

/// One direction of a TCP connection.
#[derive(Clone, Debug)]
pub struct Stream {
    /// Sequence number of the first byte, or of the first that was seen if the connection is older than the recording.
    first: u32,
    /// Sequence number of the SYN.
    syn: Option<u32>,
    /// What was sent, by its distance from the first byte.
    segments: BTreeMap<i32, Vec<u8>>,
}

impl Recording {
    /// Records every packet in a namespace in which nothing happens but what crosses the link.
    pub(super) fn start(switch: &Namespace) -> Result<Self> {
        let socket = switch.run(|| {
            Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(ETH_P_ALL)))
                .context("cannot open a packet socket")
        })?;
        set_socket_recv_buffer_size_force(&socket, limits::RECORDING_QUEUE_BYTES)?;
        socket.set_read_timeout(Some(WAIT))?;
        let ended = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&ended);
        let thread = std::thread::spawn(move || record(&socket, &until));
        Ok(Self { ended, thread: Some(thread) })
    }

    /// Ends it. What was sent before this call is in it.
    ///
    /// # Errors
    /// When there was more than fits.
    pub fn stop(mut self) -> Result<Recorded> {
        let packets = self.finish().context("it was stopped already")??;
        Ok(Recorded::new(packets))
    }

    fn finish(&mut self) -> Option<Result<Vec<Vec<u8>>>> {
        self.ended.store(true, Ordering::Relaxed);
        let ended = self.thread.take()?.join();
        Some(ended.unwrap_or_else(|_| Err(anyhow!("the recording thread panicked"))))
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        drop(self.finish());
    }
}

fn record(mut socket: &Socket, ended: &AtomicBool) -> Result<Vec<Vec<u8>>> {
    let mut packets: Vec<Vec<u8>> = Vec::new();
    let mut total = 0;
    let mut buffer = vec![0; PACKET_BYTES_MAX];
    loop {
        let last = ended.load(Ordering::Relaxed);
        match socket.read(&mut buffer) {
            Ok(length) => {
                total += length;
                ensure!(total <= limits::RECORDING_BYTES_MAX, "more than {} bytes", limits::RECORDING_BYTES_MAX);
                packets.push(buffer[..length].to_vec());
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if last {
                    return Ok(packets);
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => bail!("cannot record: {error}"),
        }
    }
}

impl Recorded {
    fn new(packets: Vec<Vec<u8>>) -> Self {
        let mut streams: BTreeMap<(SocketAddr, SocketAddr), Vec<Stream>> = BTreeMap::new();
        for segment in packets.iter().filter_map(|packet| Segment::parse(packet)) {
            let streams = streams.entry((segment.from, segment.to)).or_default();
            match streams.last_mut() {
                Some(stream) if !segment.begins || stream.syn == Some(segment.sequence) => stream.add(&segment),
                // Another connection between the same two ports, or the first.
                _ => streams.push(Stream::begin(&segment)),
            }
        }
        Self { packets, streams }
    }

    /// How many packets there are. One that crossed the link is there once for each place of the switch that it came by.
    #[must_use]
    pub fn packets(&self) -> usize {
        self.packets.len()
    }

    /// Both ends of every direction of every TCP connection, and what was sent.
    pub fn streams(&self) -> impl Iterator<Item = (SocketAddr, SocketAddr, &Stream)> {
        self.streams.iter().flat_map(|((from, to), streams)| streams.iter().map(|stream| (*from, *to, stream)))
    }

    /// Whether these bytes are in a packet, or in what one side of a connection sent, across packets.
    #[must_use]
    pub fn contains(&self, bytes: &[u8]) -> bool {
        let in_packets = || self.packets.iter().any(|packet| find(packet, bytes));
        let in_streams = || self.streams().any(|(_, _, stream)| stream.pieces().iter().any(|piece| find(piece, bytes)));
        in_packets() || in_streams()
    }

    /// Holes in what connections sent: bytes that came later than others and are not there. A recording that lost packets has some, and so
    /// has a connection that ended while the link lost packets.
    #[must_use]
    pub fn holes(&self) -> usize {
        self.streams().map(|(_, _, stream)| stream.pieces().len().saturating_sub(1)).sum()
    }
}

fn find(within: &[u8], bytes: &[u8]) -> bool {
    within.windows(bytes.len().max(1)).any(|window| window == bytes)
}

impl Stream {
    fn begin(segment: &Segment<'_>) -> Self {
        let syn = segment.begins.then_some(segment.sequence);
        let first = segment.sequence.wrapping_add(u32::from(segment.begins));
        let mut stream = Self { first, syn, segments: BTreeMap::new() };
        stream.add(segment);
        stream
    }

    fn add(&mut self, segment: &Segment<'_>) {
        let begin = segment.sequence.wrapping_add(u32::from(segment.begins));
        // Sequence numbers wrap; a connection of a test sends less than half of what they can count.
        let offset = begin.wrapping_sub(self.first).cast_signed();
        let known = self.segments.entry(offset).or_default();
        if segment.payload.len() > known.len() {
            *known = segment.payload.to_vec();
        }
    }

    /// What was sent, in pieces that nothing is missing in.
    #[must_use]
    pub fn pieces(&self) -> Vec<Vec<u8>> {
        let mut pieces: Vec<Vec<u8>> = Vec::new();
        let mut end = i64::MIN;
        for (offset, bytes) in self.segments.iter().filter(|(_, bytes)| !bytes.is_empty()) {
            let offset = i64::from(*offset);
            let length = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
            match pieces.last_mut() {
                Some(piece) if offset <= end => {
                    let known = usize::try_from(end - offset).unwrap_or(usize::MAX);
                    piece.extend_from_slice(bytes.get(known..).unwrap_or_default());
                }
                _ => pieces.push(bytes.clone()),
            }
            end = end.max(offset.saturating_add(length));
        }
        pieces
    }
}

/// A segment of TCP, without its headers.
#[derive(Debug, PartialEq, Eq)]
struct Segment<'a> {
    from: SocketAddr,
    to: SocketAddr,
    sequence: u32,
    /// Has a SYN.
    begins: bool,
    payload: &'a [u8],
}

impl<'a> Segment<'a> {
    /// Of an Ethernet packet; nothing of what is no TCP, or is cut short.
    fn parse(packet: &'a [u8]) -> Option<Self> {
        let (ethernet, ip) = packet.split_at_checked(ETHERNET_BYTES)?;
        let (from, to, tcp) = match word(ethernet, ETHERNET_BYTES - 2)? {
            ETHERTYPE_IPV4 => {
                let header = usize::from(ip.first()? & 0xf) * 4;
                let datagram = ip.get(..usize::from(word(ip, 2)?))?;
                let address = |at: usize| Some(IpAddr::from(Ipv4Addr::from(*datagram.get(at..)?.first_chunk::<4>()?)));
                (*datagram.get(9)? == TCP).then_some((address(12)?, address(16)?, datagram.get(header..)?))?
            }
            ETHERTYPE_IPV6 => {
                let length = usize::from(word(ip, 4)?);
                let address = |at: usize| Some(IpAddr::from(Ipv6Addr::from(*ip.get(at..)?.first_chunk::<16>()?)));
                let body = ip.get(IPV6_HEADER_BYTES..IPV6_HEADER_BYTES + length)?;
                (*ip.get(6)? == TCP).then_some((address(8)?, address(24)?, body))?
            }
            _ => return None,
        };
        let sequence = u32::from_be_bytes(*tcp.get(4..)?.first_chunk()?);
        let header = usize::from(tcp.get(12)? >> 4) * 4;
        Some(Self {
            from: SocketAddr::new(from, word(tcp, 0)?),
            to: SocketAddr::new(to, word(tcp, 2)?),
            sequence,
            begins: tcp.get(13)? & TCP_SYN != 0,
            payload: tcp.get(header..)?,
        })
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An Ethernet packet with a TCP segment from 10.0.0.1:1000 to 10.0.0.2:80.
    fn packet(sequence: u32, syn: bool, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 12];
        packet.extend(ETHERTYPE_IPV4.to_be_bytes());
        let length = u16::try_from(40 + payload.len()).expect("short");
        packet.extend([0x45, 0]);
        packet.extend(length.to_be_bytes());
        packet.extend([0, 0, 0, 0, 64, TCP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        packet.extend([1000_u16.to_be_bytes(), 80_u16.to_be_bytes()].concat());
        packet.extend(sequence.to_be_bytes());
        packet.extend([0, 0, 0, 0, 0x50, if syn { TCP_SYN } else { 0 }, 0, 0, 0, 0, 0, 0]);
        packet.extend(payload);
        // As short ones are filled up on a wire.
        packet.resize(packet.len().max(60), b'?');
        packet
    }

    #[test]
    fn what_was_sent_is_put_together_across_packets_in_any_order_and_once() {
        let first = u32::MAX - 3;
        let packets = vec![
            packet(first, true, b""),
            packet(first.wrapping_add(7), false, b"secret"),
            packet(first.wrapping_add(1), false, b"a top "),
            packet(first.wrapping_add(1), false, b"a top sec"),
            packet(first.wrapping_add(7), false, b"secret"),
        ];
        let recorded = Recorded::new(packets);
        let streams: Vec<_> = recorded.streams().collect();
        assert_eq!(streams.len(), 1);
        assert_eq!(streams[0].0, "10.0.0.1:1000".parse().expect("address"));
        assert_eq!(streams[0].2.pieces(), [b"a top secret"]);
        assert!(recorded.contains(b"top secret") && !recorded.contains(b"secret?"));
        assert_eq!((recorded.holes(), recorded.packets()), (0, 5));
    }

    #[test]
    fn a_hole_is_told_and_nothing_is_found_across_it() {
        let packets = vec![packet(0, true, b""), packet(1, false, b"plan"), packet(6, false, b"ted")];
        let recorded = Recorded::new(packets);
        assert_eq!(recorded.holes(), 1);
        assert!(!recorded.contains(b"planted"));
        assert!(recorded.contains(b"ted"));
    }

    #[test]
    fn a_port_that_is_used_again_begins_another_stream() {
        let packets = vec![
            packet(100, true, b""),
            packet(101, false, b"one"),
            packet(100, true, b""),
            packet(7, true, b""),
            packet(8, false, b"two"),
        ];
        let recorded = Recorded::new(packets);
        let sent: Vec<_> = recorded.streams().map(|(_, _, stream)| stream.pieces().concat()).collect();
        assert_eq!(sent, [b"one", b"two"]);
    }

    #[test]
    fn what_is_cut_short_is_no_segment() {
        let whole = packet(1, false, b"payload that is long enough not to be filled up");
        for length in 0..whole.len() {
            assert_eq!(Segment::parse(&whole[..length]), None, "{length} bytes");
        }
        assert!(Segment::parse(&whole).is_some());
    }
}
