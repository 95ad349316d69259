//! Two bounds of what any proxy can do: one that only knows where messages end, and splits requests; and one that only copies bytes.
//! Both are a single epoll loop without a library. Read them as floors, not as proxies: they check nothing and limit little.

use std::{
    io::{self, ErrorKind, Read},
    net::{SocketAddr, TcpListener, TcpStream},
};

use crate::{
    limits, message,
    poll::{self, Poll},
    responder::send,
    split::Split,
};

const LISTENER: u64 = u64::MAX;

/// What is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// HTTP/1.1 requests, split one by one over pooled connections.
    Requests,
    /// Bytes; the split chooses once a connection.
    Bytes,
}

/// A connection of either side.
struct Leg {
    stream: TcpStream,
    /// `None`: the client's; else the backend's index.
    backend: Option<usize>,
    /// The other leg, while there is one.
    peer: Option<usize>,
    /// Of a request or a response, what came before its head was complete.
    partial: Vec<u8>,
    /// What the other side was slow to take, or a connection that is being made cannot take yet.
    unsent: Vec<u8>,
    connected: bool,
    /// Bytes of the response's body that are still to come.
    body_left: usize,
}

/// A proxy that never looks twice.
pub struct Relay {
    framing: Framing,
    backends: [SocketAddr; 2],
    poll: Poll,
    split: Split,
    /// A slot's generation is part of its token, so that an event of a connection that is gone meets no other.
    legs: Vec<(u32, Option<Leg>)>,
    free: Vec<usize>,
    /// Idle connections to each backend, the one used last on top.
    pools: [Vec<usize>; 2],
    buffer: Vec<u8>,
}

impl Relay {
    /// To two backends.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new(framing: Framing, backends: [SocketAddr; 2]) -> io::Result<Self> {
        Ok(Self {
            framing,
            backends,
            poll: Poll::new()?,
            split: Split::new(1),
            legs: Vec::new(),
            free: Vec::new(),
            pools: [Vec::new(), Vec::new()],
            buffer: vec![0; limits::READ_BYTES],
        })
    }

    /// Serves until the process ends.
    ///
    /// # Errors
    /// When the kernel refuses to wait or to accept.
    pub fn serve(&mut self, listener: &TcpListener) -> io::Result<()> {
        self.poll.watch_readable(listener, LISTENER)?;
        let mut events = Vec::new();
        loop {
            self.poll.wait(&mut events, None)?;
            for event in &events {
                let token = event.data.u64();
                if token == LISTENER {
                    while let Some(stream) = poll::accept(listener)? {
                        self.accept(stream)?;
                    }
                } else if let Some(index) = self.present(token)
                    && self.progress(index).is_err()
                {
                    self.close(index);
                }
            }
        }
    }

    fn accept(&mut self, stream: TcpStream) -> io::Result<()> {
        let client = self.insert(stream, None, true)?;
        if self.framing == Framing::Bytes {
            let backend = self.split.choose();
            match self.dial(backend) {
                Ok(server) => self.pair(client, server),
                Err(_) => self.close(client),
            }
        }
        Ok(())
    }

    fn dial(&mut self, backend: usize) -> io::Result<usize> {
        self.insert(poll::connect(self.backends[backend])?, Some(backend), false)
    }

    fn insert(&mut self, stream: TcpStream, backend: Option<usize>, connected: bool) -> io::Result<usize> {
        let index = self.free.pop().unwrap_or_else(|| {
            self.legs.push((0, None));
            self.legs.len() - 1
        });
        let slot = &mut self.legs[index];
        self.poll.watch_changes(&stream, u64::from(slot.0) << 32 | index as u64)?;
        let (partial, unsent) = (Vec::new(), Vec::new());
        slot.1 = Some(Leg { stream, backend, peer: None, partial, unsent, connected, body_left: 0 });
        Ok(index)
    }

    fn present(&self, token: u64) -> Option<usize> {
        let index = usize::try_from(token & u64::from(u32::MAX)).ok()?;
        let slot = self.legs.get(index)?;
        (u64::from(slot.0) == token >> 32 && slot.1.is_some()).then_some(index)
    }

    fn leg(&mut self, index: usize) -> io::Result<&mut Leg> {
        self.legs.get_mut(index).and_then(|slot| slot.1.as_mut()).ok_or_else(|| ErrorKind::NotConnected.into())
    }

    fn pair(&mut self, client: usize, server: usize) {
        for (one, other) in [(client, server), (server, client)] {
            if let Ok(leg) = self.leg(one) {
                leg.peer = Some(other);
            }
        }
    }

    /// Whatever a connection can do now; an error when it is over.
    fn progress(&mut self, index: usize) -> io::Result<()> {
        self.flush(index)?;
        loop {
            let mut buffer = std::mem::take(&mut self.buffer);
            let read = self.leg(index).and_then(|leg| leg.stream.read(&mut buffer));
            let done = match read {
                Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
                Ok(length) => self.carry(index, &buffer[..length]).map(|()| length < buffer.len()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(true),
                Err(error) => Err(error),
            };
            self.buffer = buffer;
            // A short read has emptied the socket; an end that came behind it is found by whoever uses the connection next.
            if done? {
                return Ok(());
            }
        }
    }

    fn flush(&mut self, index: usize) -> io::Result<()> {
        let leg = self.leg(index)?;
        if !leg.connected {
            if let Some(error) = leg.stream.take_error()? {
                return Err(error);
            }
            leg.connected = true;
        }
        if !leg.unsent.is_empty() {
            let sent = send(&mut leg.stream, &leg.unsent)?;
            leg.unsent.drain(..sent);
        }
        Ok(())
    }

    fn carry(&mut self, index: usize, bytes: &[u8]) -> io::Result<()> {
        match (self.framing, self.leg(index)?.backend) {
            (Framing::Bytes, _) => {
                let peer = self.leg(index)?.peer.ok_or(ErrorKind::NotConnected)?;
                self.send(peer, bytes)
            }
            (Framing::Requests, None) => {
                let leg = self.leg(index)?;
                leg.partial.extend_from_slice(bytes);
                if leg.partial.len() > limits::MESSAGE_BYTES_MAX {
                    return Err(ErrorKind::InvalidData.into());
                }
                self.ask(index)
            }
            (Framing::Requests, Some(_)) => self.answer(index, bytes),
        }
    }

    fn send(&mut self, index: usize, bytes: &[u8]) -> io::Result<()> {
        let leg = self.leg(index)?;
        let sent = if leg.connected && leg.unsent.is_empty() { send(&mut leg.stream, bytes)? } else { 0 };
        leg.unsent.extend_from_slice(&bytes[sent..]);
        Ok(())
    }

    /// Sends a client's next request to a backend, if it is complete and the one before has been answered.
    fn ask(&mut self, client: usize) -> io::Result<()> {
        let leg = self.leg(client)?;
        let Some(end) = message::head_end(&leg.partial).filter(|_| leg.peer.is_none()) else { return Ok(()) };
        let backend = self.split.choose();
        let server = match self.pools[backend].pop() {
            Some(server) => server,
            None => self.dial(backend)?,
        };
        self.pair(client, server);
        let mut partial = std::mem::take(&mut self.leg(client)?.partial);
        let sent = self.send(server, &partial[..end]);
        partial.drain(..end);
        self.leg(client)?.partial = partial;
        sent
    }

    /// Passes a response on; gives its connection back when it is whole.
    fn answer(&mut self, server: usize, bytes: &[u8]) -> io::Result<()> {
        let leg = self.leg(server)?;
        let client = leg.peer.ok_or(ErrorKind::InvalidData)?;
        if leg.body_left > 0 {
            leg.body_left = leg.body_left.checked_sub(bytes.len()).ok_or(ErrorKind::InvalidData)?;
            self.send(client, bytes)?;
        } else if leg.partial.is_empty() && message::head_end(bytes).is_some() {
            leg.body_left = body_left(bytes)?;
            self.send(client, bytes)?;
        } else {
            leg.partial.extend_from_slice(bytes);
            if message::head_end(&leg.partial).is_none() {
                return if leg.partial.len() > limits::MESSAGE_BYTES_MAX {
                    Err(ErrorKind::InvalidData.into())
                } else {
                    Ok(())
                };
            }
            leg.body_left = body_left(&leg.partial)?;
            let whole = std::mem::take(&mut leg.partial);
            self.send(client, &whole)?;
        }
        let leg = self.leg(server)?;
        if leg.body_left > 0 {
            return Ok(());
        }
        leg.peer = None;
        if let Some(backend) = leg.backend {
            self.pools[backend].push(server);
        }
        self.leg(client)?.peer = None;
        self.ask(client)
    }

    /// Ends a connection, and what depends on it.
    fn close(&mut self, index: usize) {
        let Some((generation, slot)) = self.legs.get_mut(index) else { return };
        let Some(leg) = slot.take() else { return };
        *generation = generation.wrapping_add(1);
        self.free.push(index);
        if let Some(backend) = leg.backend {
            self.pools[backend].retain(|pooled| *pooled != index);
        }
        if let Some(peer) = leg.peer {
            self.close(peer);
        }
    }
}

/// Bytes of the body that are not yet in `bytes`, which begin with the head.
fn body_left(bytes: &[u8]) -> io::Result<usize> {
    let end = message::head_end(bytes).ok_or(ErrorKind::InvalidData)?;
    let length = message::content_length(&bytes[..end]).ok_or(ErrorKind::InvalidData)?;
    (end + length).checked_sub(bytes.len()).ok_or_else(|| ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bounds_tests;

    fn start(framing: Framing) -> SocketAddr {
        let backends = bounds_tests::backends();
        let listener = poll::listen(([127, 0, 0, 1], 0).into()).expect("listens");
        let address = listener.local_addr().expect("address");
        std::thread::spawn(move || Relay::new(framing, backends).and_then(|mut relay| relay.serve(&listener)));
        address
    }

    #[test]
    fn requests_are_split_ninety_to_ten() {
        bounds_tests::splits_requests(start(Framing::Requests));
    }

    #[test]
    fn bytes_are_carried_and_a_connection_stays_with_its_backend() {
        bounds_tests::carries_bytes(start(Framing::Bytes));
    }

    #[test]
    fn a_request_in_pieces_is_carried() {
        bounds_tests::carries_pieces(start(Framing::Requests));
    }
}
