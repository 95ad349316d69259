//! Tells what a connection speaks by the first bytes of its client, or by a server that speaks first, without taking them from the
//! socket.

use std::io;

use bytes::Bytes;
use rustix::{io::Errno, net::RecvFlags};
use tokio::{io::Interest, net::TcpStream, time::timeout};

use crate::{
    limits::{DETECT_BYTES_MAX, TLS_RECORD_BYTES_MAX},
    metrics::Limit,
    worker::Worker,
};

/// What a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detected {
    /// An HTTP/1 request begins.
    Http1,
    /// The client's preface of HTTP/2 (RFC 9113 3.4).
    Http2,
    /// A `ClientHello` of TLS begins.
    Tls,
    /// Something else.
    Opaque,
    /// Nothing, on a port where the client must speak first.
    Silent,
    /// Nothing, and the client has shut down its side: nothing will come.
    Ended,
}

/// Methods of the IANA registry: where nobody declared HTTP, only these are taken for it, so that a protocol like SMTP stays opaque.
const METHODS: [&str; 40] = [
    "ACL",
    "BASELINE-CONTROL",
    "BIND",
    "CHECKIN",
    "CHECKOUT",
    "CONNECT",
    "COPY",
    "DELETE",
    "GET",
    "HEAD",
    "LABEL",
    "LINK",
    "LOCK",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MKREDIRECTREF",
    "MKWORKSPACE",
    "MOVE",
    "OPTIONS",
    "ORDERPATCH",
    "PATCH",
    "POST",
    "PROPFIND",
    "PROPPATCH",
    "PUT",
    "QUERY",
    "REBIND",
    "REPORT",
    "SEARCH",
    "TRACE",
    "UNBIND",
    "UNCHECKOUT",
    "UNLINK",
    "UNLOCK",
    "UPDATE",
    "UPDATEREDIRECTREF",
    "VERSION-CONTROL",
    "PURGE",
];

/// RFC 9113 3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a client's first bytes say so far; `None`: more are needed. `declared_http`: the port's author said that it is HTTP, so
/// that methods nobody has registered are taken for some too.
#[must_use]
pub fn classify(bytes: &[u8], declared_http: bool) -> Option<Detected> {
    if let Some(verdict) = tls(bytes) {
        return verdict;
    }
    // A server should skip line ends before a request (RFC 9112 2.2).
    let start = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n')).unwrap_or(bytes.len());
    if start > 0 && !declared_http {
        return Some(Detected::Opaque);
    }
    let bytes = &bytes[start..];
    if start == 0 && bytes.starts_with(PREFACE) {
        return Some(Detected::Http2);
    }
    if start == 0 && PREFACE.starts_with(bytes) {
        return None;
    }
    let Some(end) = bytes.iter().position(|byte| *byte == b' ') else {
        let may_become_one = if declared_http {
            bytes.iter().all(token)
        } else {
            METHODS.iter().any(|known| known.as_bytes().starts_with(bytes))
        };
        return if may_become_one { None } else { Some(Detected::Opaque) };
    };
    let (method, target) = (&bytes[..end], bytes.get(end + 1));
    let http = if declared_http {
        // `PRI` is the method of the HTTP/2 preface, and nothing of HTTP/1.
        !method.is_empty() && method != b"PRI" && method.iter().all(token)
    } else if METHODS.iter().any(|known| known.as_bytes() == method) {
        // Others have a GET too, inline Redis for instance, but not of a path.
        match target? {
            b'/' => true,
            b'*' => method == b"OPTIONS",
            other => {
                method == b"CONNECT" && (other.is_ascii_alphanumeric() || *other == b'[')
                    || matches!(other, b'h' | b'H')
            }
        }
    } else {
        false
    };
    Some(if http { Detected::Http1 } else { Detected::Opaque })
}

/// Whether a handshake record of TLS begins with a `ClientHello` (RFC 8446 5.1 and 4): content type, version, length, message type. The
/// outer `None`: no TLS.
fn tls(bytes: &[u8]) -> Option<Option<Detected>> {
    let [HANDSHAKE, rest @ ..] = bytes else { return None };
    Some(match rest {
        // The record's version is 3.1 for the sake of old servers, or 3.3; SSL 3.0 had 3.0.
        [] | [3] | [3, 0..=4] | [3, 0..=4, _] => None,
        [3, 0..=4, high, low, message @ ..] => {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            match message.first() {
                _ if length == 0 || length > TLS_RECORD_BYTES_MAX => Some(Detected::Opaque),
                None => None,
                Some(&CLIENT_HELLO) => Some(Detected::Tls),
                Some(_) => Some(Detected::Opaque),
            }
        }
        _ => Some(Detected::Opaque),
    })
}

/// Content type `handshake` (RFC 8446 5.1).
pub(crate) const HANDSHAKE: u8 = 22;
/// Handshake type `client_hello` (RFC 8446 4).
pub(crate) const CLIENT_HELLO: u8 = 1;

/// RFC 9110 5.6.2.
fn token(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte)
}

/// What a client's first bytes say. Where HTTP is declared they may take as long as a request's head may. Else the first of them may
/// come whenever they like, and only those that are missing to tell what it is are waited for a bounded while; then it is nothing
/// that weft knows.
///
/// May leave bytes in the socket that are not announced again: see [`take`].
///
/// # Errors
/// When the client's connection failed.
pub(crate) async fn client(stream: &TcpStream, declared_http: bool, worker: &Worker) -> io::Result<Detected> {
    let (patience, verdict, limit) = if declared_http {
        (worker.config.header_read_timeout, Detected::Silent, Limit::HeaderReadTimeout)
    } else {
        (worker.config.detect_timeout, Detected::Opaque, Limit::DetectTimeout)
    };
    let first = look(stream, declared_http);
    let first = if declared_http { timeout(patience, first).await } else { Ok(first.await) };
    let told = match first {
        Ok(Ok(None)) => {
            let rest = async {
                loop {
                    if let Some(verdict) = look(stream, declared_http).await? {
                        return Ok(verdict);
                    }
                }
            };
            timeout(patience, rest).await
        }
        Ok(Ok(Some(verdict))) => return Ok(verdict),
        Ok(Err(error)) => return Err(error),
        Err(elapsed) => Err(elapsed),
    };
    told.unwrap_or_else(|_| {
        worker.metrics.reached(limit);
        Ok(verdict)
    })
}

/// Waits for bytes, or the end, and looks at them. `None`: they are too few, and the next look waits for more.
async fn look(stream: &TcpStream, declared_http: bool) -> io::Result<Option<Detected>> {
    loop {
        let complete = stream.ready(Interest::READABLE).await?.is_read_closed();
        let mut too_few = false;
        let looked = stream.try_io(Interest::READABLE, || {
            let mut buffer = [0; DETECT_BYTES_MAX];
            let (_, read) = rustix::net::recv(stream, &mut buffer[..], RecvFlags::PEEK | RecvFlags::DONTWAIT)?;
            match classify(&buffer[..read], declared_http) {
                _ if read == 0 => Ok(Detected::Ended),
                Some(verdict) => Ok(verdict),
                // Nothing follows, or nothing that would be looked at. A side that has ended stays ready, so waiting would spin.
                None if complete || read == buffer.len() => Ok(Detected::Opaque),
                None => {
                    too_few = true;
                    // This clears the readiness, so that the next look waits for new bytes instead of spinning on the old ones.
                    Err(io::ErrorKind::WouldBlock.into())
                }
            }
        });
        match looked {
            Ok(verdict) => return Ok(Some(verdict)),
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            Err(_) if too_few => return Ok(None),
            // A socket may count as readable before anything has come.
            Err(_) => {}
        }
    }
}

/// Takes a client's bytes, if there are any, when something other than they has decided: a look at them may have cleared the
/// readiness, and nobody would be told of them again.
///
/// # Errors
/// When the client's connection failed.
pub(crate) fn take(stream: &TcpStream) -> io::Result<Bytes> {
    let mut buffer = [0; DETECT_BYTES_MAX];
    match rustix::net::recv(stream, &mut buffer[..], RecvFlags::DONTWAIT) {
        Ok((_, read)) => Ok(Bytes::copy_from_slice(&buffer[..read])),
        Err(Errno::AGAIN) => Ok(Bytes::new()),
        Err(error) => Err(error.into()),
    }
}

/// What a server did that nobody had asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unasked {
    /// It ended.
    Ended,
    /// It sent what begins like SETTINGS, which a server of HTTP/2 may send before it has heard of its client (RFC 9113 3.4). gRPC's do.
    Settings,
    /// It spoke, and it is no server of HTTP.
    Spoke,
}

/// Waits until a server speaks, or ends.
///
/// # Errors
/// When its connection failed.
pub(crate) async fn server(stream: &TcpStream) -> io::Result<Unasked> {
    stream
        .async_io(Interest::READABLE, || {
            let mut start = [0; FRAME_HEADER_BYTES];
            let (_, read) = rustix::net::recv(stream, &mut start[..], RecvFlags::PEEK | RecvFlags::DONTWAIT)?;
            Ok(unasked(&start[..read]))
        })
        .await
}

/// Length, type, flags, stream (RFC 9113 4.1).
const FRAME_HEADER_BYTES: usize = 9;
/// RFC 9113 6.5.
const SETTINGS: u8 = 4;
/// Identifier and value (RFC 9113 6.5.1).
const SETTING_BYTES: u8 = 6;

/// A first frame of settings is a header on stream 0 without flags, and fewer than 42 settings, of which there are not ten.
fn unasked(start: &[u8]) -> Unasked {
    match start {
        [] => Unasked::Ended,
        [0, 0, length, SETTINGS, rest @ ..]
            if length.is_multiple_of(SETTING_BYTES) && rest.iter().all(|byte| *byte == 0) =>
        {
            Unasked::Settings
        }
        _ => Unasked::Spoke,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn settings_are_told_from_other_greetings() {
        let table: [(&[u8], Unasked); 9] = [
            (b"", Unasked::Ended),
            (b"\0\0\x18\x04\0\0\0\0\0", Unasked::Settings),
            (b"\0\0\0\x04\0\0\0\0\0", Unasked::Settings),
            (b"\0\0\x06\x04", Unasked::Settings),
            // An acknowledgement, another stream, a length that no settings have, another frame.
            (b"\0\0\0\x04\x01\0\0\0\0", Unasked::Spoke),
            (b"\0\0\x06\x04\0\0\0\0\x01", Unasked::Spoke),
            (b"\0\0\x07\x04\0\0\0\0\0", Unasked::Spoke),
            (b"\0\0\x06\x07\0\0\0\0\0", Unasked::Spoke),
            // MariaDB's greeting.
            (b"\x5d\0\0\0\x0a5.5.", Unasked::Spoke),
        ];
        for (start, expect) in table {
            assert_eq!(unasked(start), expect, "{start:?}");
        }
    }

    /// (bytes, where it is to be detected, where HTTP is declared)
    type Row = (&'static [u8], Option<Detected>, Option<Detected>);

    const TABLE: [Row; 35] = {
        use Detected::{Http1, Http2, Opaque, Tls};
        [
            (b"G", None, None),
            (b"GET", None, None),
            (b"GET ", None, Some(Http1)),
            (b"GET /", Some(Http1), Some(Http1)),
            (b"OPTIONS * HTTP/1.1", Some(Http1), Some(Http1)),
            (b"CONNECT a.b:443 HTTP/1.1", Some(Http1), Some(Http1)),
            (b"GET http://a/ HTTP/1.1", Some(Http1), Some(Http1)),
            (b"VERSION-CONTROL /a", Some(Http1), Some(Http1)),
            (b"BREW /pot HTTP/1.1", Some(Opaque), Some(Http1)),
            (b"get key\r\n", Some(Opaque), Some(Http1)),
            (b"GET key\r\n", Some(Opaque), Some(Http1)),
            (b"PR", None, None),
            (b"PRI", None, None),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r", None, None),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Some(Http2), Some(Http2)),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0", Some(Http2), Some(Http2)),
            (b"PRI * HTTP/2.0\r\nHost: a\r\n", Some(Opaque), Some(Opaque)),
            (b"PRI / HTTP/1.1", Some(Opaque), Some(Opaque)),
            (b"\x16", None, None),
            (b"\x16\x03\x01\x02\x00", None, None),
            (b"\x16\x03\x01\x02\x00\x01", Some(Tls), Some(Tls)),
            (b"\x16\x03\x03\x00\x01\x01\x16\x03", Some(Tls), Some(Tls)),
            (b"\x16\x03\x01\x02\x00\x02", Some(Opaque), Some(Opaque)),
            (b"\x16\x03\x01\x00\x00\x01", Some(Opaque), Some(Opaque)),
            (b"\x16\x03\x01\x40\x01\x01", Some(Opaque), Some(Opaque)),
            (b"\x16\x03\x05", Some(Opaque), Some(Opaque)),
            (b"\x16\xfe\xff", Some(Opaque), Some(Opaque)),
            (b"\x17\x03\x03\x00\x20\x01", Some(Opaque), Some(Opaque)),
            (b"EHLO there\r\n", Some(Opaque), Some(Http1)),
            (b"\r\nGET / HTTP/1.1", Some(Opaque), Some(Http1)),
            (b"\r\n", Some(Opaque), None),
            (b"\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Some(Opaque), Some(Opaque)),
            (b"*1\r\n$4\r\nPING\r\n", Some(Opaque), Some(Opaque)),
            (b" GET / HTTP/1.1", Some(Opaque), Some(Opaque)),
            (b"CONNECT\naccept-version:1.2\n\n", Some(Opaque), Some(Opaque)),
        ]
    };

    #[test]
    fn first_bytes_tell_the_protocol() {
        for (bytes, detect, declared) in TABLE {
            let shown = String::from_utf8_lossy(bytes);
            assert_eq!(classify(bytes, false), detect, "{shown:?}");
            assert_eq!(classify(bytes, true), declared, "{shown:?} on a port declared HTTP");
        }
    }

    #[test]
    fn verdict_does_not_depend_on_where_the_bytes_are_cut() {
        for (bytes, _, _) in TABLE {
            for declared in [false, true] {
                let verdicts: Vec<_> = (1..=bytes.len()).filter_map(|end| classify(&bytes[..end], declared)).collect();
                assert!(
                    verdicts.windows(2).all(|two| two[0] == two[1]),
                    "{:?}: {verdicts:?}",
                    String::from_utf8_lossy(bytes)
                );
            }
        }
    }

    proptest! {
        #[test]
        fn verdict_on_anything_does_not_depend_on_the_cuts(
            head in prop::sample::select(TABLE.map(|(bytes, _, _)| bytes).to_vec()),
            keep in 0..40usize,
            tail in prop::collection::vec(any::<u8>(), 0..40),
            declared in any::<bool>(),
        ) {
            let bytes = [&head[..keep.min(head.len())], &tail].concat();
            let verdicts: Vec<_> = (1..=bytes.len()).filter_map(|end| classify(&bytes[..end], declared)).collect();
            prop_assert!(verdicts.windows(2).all(|two| two[0] == two[1]), "{:?}", verdicts);
        }
    }

    #[test]
    fn every_first_byte_sequence_of_a_known_protocol_fits_into_what_is_peeked_at() {
        for method in METHODS {
            assert!(method.len() + 2 < DETECT_BYTES_MAX, "{method}");
        }
        assert!(PREFACE.len() < DETECT_BYTES_MAX);
    }
}
