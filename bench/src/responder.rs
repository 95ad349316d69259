//! The backend: answers every request with the same bytes, without looking at more than where it ends.

use std::{
    collections::HashMap,
    io::{self, ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
};

use crate::{
    limits, message,
    poll::{self, Poll},
};

const LISTENER: u64 = 0;

/// A connection, and what of a request has come so far.
struct Connection {
    stream: TcpStream,
    head: Vec<u8>,
    /// What the client was slow to take.
    unsent: Vec<u8>,
}

/// Serves until the process ends. `name` is the letter that fills its responses.
///
/// # Errors
/// When the kernel refuses to wait or to accept.
pub fn serve(listener: &TcpListener, name: u8) -> io::Result<()> {
    let response = message::response(name);
    let poll = Poll::new()?;
    poll.watch_readable(listener, LISTENER)?;
    let mut connections = HashMap::new();
    let mut next_token = LISTENER + 1;
    let mut events = Vec::new();
    let mut buffer = vec![0; limits::READ_BYTES];
    loop {
        poll.wait(&mut events, None)?;
        for event in &events {
            let token = event.data.u64();
            if token == LISTENER {
                while let Some(stream) = poll::accept(listener)? {
                    poll.watch_changes(&stream, next_token)?;
                    connections.insert(next_token, Connection { stream, head: Vec::new(), unsent: Vec::new() });
                    next_token += 1;
                }
            } else if let Some(connection) = connections.get_mut(&token)
                && connection.answer(&response, &mut buffer).is_err()
            {
                connections.remove(&token);
            }
        }
    }
}

impl Connection {
    /// Answers all that has come; an error when the connection is over.
    fn answer(&mut self, response: &[u8], buffer: &mut [u8]) -> io::Result<()> {
        loop {
            if !self.unsent.is_empty() {
                let sent = send(&mut self.stream, &self.unsent)?;
                self.unsent.drain(..sent);
            }
            let length = match self.stream.read(buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            self.head.extend_from_slice(&buffer[..length]);
            while let Some(end) = message::head_end(&self.head) {
                self.head.drain(..end);
                let sent = if self.unsent.is_empty() { send(&mut self.stream, response)? } else { 0 };
                self.unsent.extend_from_slice(&response[sent..]);
            }
            if self.head.len() > limits::MESSAGE_BYTES_MAX || self.unsent.len() > limits::MESSAGE_BYTES_MAX {
                return Err(ErrorKind::InvalidData.into());
            }
            // Less than there is room for: nothing is left, and another read would only say so. An end that came with the data is
            // told by the next write.
            if length < buffer.len() {
                return Ok(());
            }
        }
    }
}

/// Writes what the kernel takes.
pub(crate) fn send(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
    let mut sent = 0;
    while sent < bytes.len() {
        match stream.write(&bytes[sent..]) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(length) => sent += length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(sent)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> TcpStream {
        let listener = poll::listen(([127, 0, 0, 1], 0).into()).expect("listens");
        let address = listener.local_addr().expect("address");
        std::thread::spawn(move || serve(&listener, b'a'));
        TcpStream::connect(address).expect("connects")
    }

    #[test]
    fn requests_in_pieces_and_in_rows_are_each_answered() {
        let mut client = start();
        let response = message::response(b'a');
        let mut answer = vec![0; response.len()];
        for piece in message::REQUEST.chunks(10) {
            client.write_all(piece).expect("sent");
        }
        client.read_exact(&mut answer).expect("answered");
        assert_eq!(answer, response);

        client.write_all(&[message::REQUEST, message::REQUEST].concat()).expect("sent");
        let mut answers = vec![0; 2 * response.len()];
        client.read_exact(&mut answers).expect("answered");
        assert_eq!(answers, [&response[..], &response[..]].concat());
    }

    #[test]
    fn an_endless_head_ends_the_connection() {
        let mut client = start();
        // The write fails once the responder has closed; the read tells it in any case.
        client.write_all(&vec![b'x'; 2 * limits::MESSAGE_BYTES_MAX]).ok();
        let mut rest = Vec::new();
        assert!(client.read_to_end(&mut rest).is_err() || rest.is_empty());
    }
}
