//! Reads a `ClientHello` of TLS (RFC 8446 4.1.2, RFC 5246 7.4.1.2) as it passes, for the server's name (RFC 6066 3) and the protocols
//! that the client offers (RFC 7301). Nothing is answered or held back, and what is not understood has no name. With encrypted
//! `ClientHello` (ECH) the name is the outer one.

use crate::{
    detect::{CLIENT_HELLO, HANDSHAKE},
    limits::{HELLO_ALPN_BYTES_MAX, HELLO_BYTES_MAX, TLS_RECORD_BYTES_MAX},
};

/// What a client says of itself before anything is encrypted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// The server that it asks for, in lower case; none if it does not say so, twice, or with something that is no DNS name.
    pub server_name: Option<Box<str>>,
    /// The protocols that it offers, its favourite first. What is not ASCII is escaped.
    pub alpn: Vec<Box<str>>,
}

/// How far the reading is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// More bytes are needed.
    More,
    /// All of it was there.
    Done(Hello),
    /// This is none, or a broken one.
    Invalid,
    /// It is longer than [`HELLO_BYTES_MAX`].
    TooLong,
}

/// Puts a `ClientHello` together from records and from pieces of them, however they are cut.
#[derive(Debug, Default)]
pub struct Reader {
    header: [u8; RECORD_HEADER_BYTES],
    /// Bytes of the header that have come.
    header_have: usize,
    /// Bytes of the current record that are still to come.
    record_left: usize,
    /// The handshake message so far. Stays empty where all comes at once.
    message: Vec<u8>,
}

/// Type, version, length (RFC 8446 5.1).
const RECORD_HEADER_BYTES: usize = 5;
/// Type, length (RFC 8446 4).
const MESSAGE_HEADER_BYTES: usize = 4;
/// RFC 6066 3.
const SERVER_NAME: u16 = 0;
/// RFC 7301 3.1.
const ALPN: u16 = 16;

impl Reader {
    /// Takes the next bytes of the stream. Not to be called again once it has given anything but [`Progress::More`].
    pub fn feed(&mut self, mut bytes: &[u8]) -> Progress {
        if self.header_have == 0
            && self.record_left == 0
            && self.message.is_empty()
            && let Some(message) = in_one_piece(bytes)
        {
            return parse(message).map_or(Progress::Invalid, Progress::Done);
        }
        while !bytes.is_empty() {
            if self.record_left == 0 {
                let count = bytes.len().min(RECORD_HEADER_BYTES - self.header_have);
                let (piece, rest) = bytes.split_at(count);
                self.header[self.header_have..][..count].copy_from_slice(piece);
                (self.header_have, bytes) = (self.header_have + count, rest);
                if self.header_have == RECORD_HEADER_BYTES {
                    let Some(length) = record_length(self.header) else { return Progress::Invalid };
                    (self.header_have, self.record_left) = (0, length);
                }
                continue;
            }
            let (piece, rest) = bytes.split_at(bytes.len().min(self.record_left));
            if self.message.len() + piece.len() > MESSAGE_HEADER_BYTES + HELLO_BYTES_MAX {
                return Progress::TooLong;
            }
            self.message.extend_from_slice(piece);
            (self.record_left, bytes) = (self.record_left - piece.len(), rest);
            match message(&self.message) {
                Message::Whole(body) => return parse(body).map_or(Progress::Invalid, Progress::Done),
                Message::Partial => {}
                Message::TooLong => return Progress::TooLong,
                Message::Other => return Progress::Invalid,
            }
        }
        Progress::More
    }
}

/// The length of a handshake record, never 0 (RFC 8446 5.1).
fn record_length(header: [u8; RECORD_HEADER_BYTES]) -> Option<usize> {
    let [HANDSHAKE, 3, 0..=4, high, low] = header else { return None };
    let length = usize::from(u16::from_be_bytes([high, low]));
    (1..=TLS_RECORD_BYTES_MAX).contains(&length).then_some(length)
}

/// The message, if one record holds it and all of that is here.
fn in_one_piece(bytes: &[u8]) -> Option<&[u8]> {
    let (header, rest) = bytes.split_first_chunk()?;
    match message(rest.get(..record_length(*header)?)?) {
        Message::Whole(body) => Some(body),
        _ => None,
    }
}

enum Message<'a> {
    Whole(&'a [u8]),
    Partial,
    TooLong,
    Other,
}

fn message(bytes: &[u8]) -> Message<'_> {
    match bytes {
        [] | [CLIENT_HELLO] | [CLIENT_HELLO, _] | [CLIENT_HELLO, _, _] => Message::Partial,
        [CLIENT_HELLO, a, b, c, body @ ..] => {
            let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
            if length > HELLO_BYTES_MAX {
                return Message::TooLong;
            }
            body.get(..length).map_or(Message::Partial, Message::Whole)
        }
        _ => Message::Other,
    }
}

fn parse(body: &[u8]) -> Option<Hello> {
    let mut rest = Input(body);
    let [3, _] = rest.take(2)? else { return None };
    let (_random, session) = (rest.take(32)?, rest.short()?);
    let (suites, compressions) = (rest.long()?, rest.short()?);
    if session.len() > 32 || suites.is_empty() || suites.len() % 2 != 0 || compressions.is_empty() {
        return None;
    }
    let mut hello = Hello::default();
    if rest.0.is_empty() {
        // TLS 1.2 may come without extensions.
        return Some(hello);
    }
    let mut extensions = Input(rest.long()?);
    if !rest.0.is_empty() {
        return None;
    }
    let (mut names, mut offers) = (0, 0);
    while !extensions.0.is_empty() {
        let (kind, data) = (extensions.number()?, extensions.long()?);
        match kind {
            SERVER_NAME => {
                names += 1;
                hello.server_name = server_name(data)?;
            }
            ALPN => {
                offers += 1;
                hello.alpn = alpn(data)?;
            }
            _ => {}
        }
    }
    // An extension that comes twice (against RFC 8446 4.2) may mean one thing to us and another to the server.
    if names > 1 || offers > 1 {
        return None;
    }
    Some(hello)
}

fn server_name(data: &[u8]) -> Option<Option<Box<str>>> {
    let mut rest = Input(data);
    let mut list = Input(rest.long()?);
    if !rest.0.is_empty() {
        return None;
    }
    let (mut name, mut count) = (None, 0);
    while !list.0.is_empty() {
        let (kind, value) = (list.byte()?, list.long()?);
        if kind == 0 {
            name = dns_name(value);
            count += 1;
        }
    }
    Some(name.filter(|_| count == 1))
}

fn alpn(data: &[u8]) -> Option<Vec<Box<str>>> {
    let mut rest = Input(data);
    let mut list = Input(rest.long()?);
    if !rest.0.is_empty() {
        return None;
    }
    let (mut names, mut bytes) = (Vec::new(), 0);
    while !list.0.is_empty() {
        let name = list.short()?;
        // GREASE (RFC 8701) offers what nobody speaks.
        let grease = matches!(name, [a, b] if a == b && a & 0x0f == 0x0a);
        bytes += name.len();
        if !name.is_empty() && !grease && bytes <= HELLO_ALPN_BYTES_MAX {
            names.push(name.escape_ascii().to_string().into());
        }
    }
    Some(names)
}

/// A host name as RFC 6066 3 wants it: ASCII, no address, no dot at its end. Underscores are taken, because clusters have them.
fn dns_name(bytes: &[u8]) -> Option<Box<str>> {
    let label = |label: &[u8]| {
        (1..=63).contains(&label.len())
            && label.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
            && !label.starts_with(b"-")
            && !label.ends_with(b"-")
    };
    let last = bytes.rsplit(|byte| *byte == b'.').next()?;
    let valid =
        bytes.len() <= 253 && bytes.split(|byte| *byte == b'.').all(label) && !last.iter().all(u8::is_ascii_digit);
    valid.then(|| std::str::from_utf8(bytes).ok().map(|name| name.to_ascii_lowercase().into_boxed_str()))?
}

/// What is left to read. Each method takes from the front, or gives `None` if there is not enough.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn number(&mut self) -> Option<u16> {
        self.take(2)?.try_into().ok().map(u16::from_be_bytes)
    }

    /// A vector with a length of one byte (RFC 8446 3.4).
    fn short(&mut self) -> Option<&'a [u8]> {
        let count = self.byte()?;
        self.take(count.into())
    }

    /// A vector with a length of two bytes.
    fn long(&mut self) -> Option<&'a [u8]> {
        let count = self.number()?;
        self.take(count.into())
    }
}

#[cfg(test)]
mod tests;
