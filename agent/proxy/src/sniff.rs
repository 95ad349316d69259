//! Tells HTTP/1 from everything else by the client's first bytes, without taking them from the socket.

use std::io;

use bytes::Bytes;
use rustix::net::RecvFlags;
use tokio::{io::Interest, net::TcpStream, time::timeout};
use weft_policy::plan::AppProtocol;

use crate::{config::ProxyConfig, limits::DETECT_BYTES_MAX};

/// What a client's first bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sniffed {
    /// An HTTP/1 request begins.
    Http,
    /// Something else, or nothing yet where the server may speak first.
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

/// What a prefix says so far; `None`: more bytes are needed.
pub(crate) fn classify(bytes: &[u8], declared_http: bool) -> Option<Sniffed> {
    // A server should skip line ends before a request (RFC 9112 2.2).
    let start = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n')).unwrap_or(bytes.len());
    if start > 0 && !declared_http {
        return Some(Sniffed::Opaque);
    }
    let bytes = &bytes[start..];
    let Some(end) = bytes.iter().position(|byte| *byte == b' ') else {
        let may_become_one = if declared_http {
            bytes.iter().all(token)
        } else {
            METHODS.iter().any(|known| known.as_bytes().starts_with(bytes))
        };
        return if may_become_one { None } else { Some(Sniffed::Opaque) };
    };
    let (method, target) = (&bytes[..end], bytes.get(end + 1));
    let http = if declared_http {
        // `PRI` begins the HTTP/2 preface, and nothing of HTTP/1.
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
    Some(if http { Sniffed::Http } else { Sniffed::Opaque })
}

/// RFC 9110 5.6.2.
fn token(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte)
}

/// What the connection speaks, and bytes that had to be taken from the socket to find out.
///
/// # Errors
/// When the client's connection failed.
pub(crate) async fn sniff(
    stream: &TcpStream,
    protocol: AppProtocol,
    config: &ProxyConfig,
) -> io::Result<(Sniffed, Bytes)> {
    let declared_http = match protocol {
        AppProtocol::Tcp => return Ok((Sniffed::Opaque, Bytes::new())),
        AppProtocol::Http => true,
        AppProtocol::Detect => false,
    };
    let patience = if declared_http { config.header_read_timeout } else { config.detect_timeout };
    let silent = if declared_http { Sniffed::Silent } else { Sniffed::Opaque };
    // A socket may count as readable before anything has come, so only bytes, or the end, are an answer.
    let first = stream.async_io(Interest::READABLE, || look(stream));
    let Ok(first) = timeout(patience, first).await else { return Ok((silent, Bytes::new())) };
    let (bytes, read) = first?;
    if read == 0 {
        return Ok((if declared_http { Sniffed::Ended } else { Sniffed::Opaque }, Bytes::new()));
    }
    if let Some(verdict) = classify(&bytes[..read], declared_http) {
        return Ok((verdict, Bytes::new()));
    }
    let more = stream.async_io(Interest::READABLE, || {
        let (bytes, read) = look(stream)?;
        match classify(&bytes[..read], declared_http) {
            Some(verdict) => Ok(verdict),
            None if read == bytes.len() => Ok(Sniffed::Opaque),
            // This clears the readiness, so that the next look waits for new bytes instead of spinning on the old ones.
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    });
    match timeout(patience, more).await {
        Ok(verdict) => Ok((verdict?, Bytes::new())),
        Err(_) if declared_http => Ok((Sniffed::Silent, Bytes::new())),
        Err(_) => {
            // The readiness was cleared above, and no new one comes for bytes that are there already: they are taken here.
            let mut buffer = vec![0; DETECT_BYTES_MAX];
            let (_, read) = rustix::net::recv(stream, &mut buffer[..], RecvFlags::DONTWAIT)?;
            buffer.truncate(read);
            Ok((Sniffed::Opaque, buffer.into()))
        }
    }
}

fn look(stream: &TcpStream) -> io::Result<([u8; DETECT_BYTES_MAX], usize)> {
    let mut buffer = [0; DETECT_BYTES_MAX];
    let (_, read) = rustix::net::recv(stream, &mut buffer[..], RecvFlags::PEEK | RecvFlags::DONTWAIT)?;
    Ok((buffer, read))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_tell_the_protocol() {
        use Sniffed::{Http, Opaque};
        // (bytes, where it is to be detected, where HTTP is declared)
        let table: [(&[u8], Option<Sniffed>, Option<Sniffed>); 22] = [
            (b"G", None, None),
            (b"GET", None, None),
            (b"GET ", None, Some(Http)),
            (b"GET /", Some(Http), Some(Http)),
            (b"OPTIONS * HTTP/1.1", Some(Http), Some(Http)),
            (b"CONNECT a.b:443 HTTP/1.1", Some(Http), Some(Http)),
            (b"GET http://a/ HTTP/1.1", Some(Http), Some(Http)),
            (b"VERSION-CONTROL /a", Some(Http), Some(Http)),
            (b"BREW /pot HTTP/1.1", Some(Opaque), Some(Http)),
            (b"get key\r\n", Some(Opaque), Some(Http)),
            (b"GET key\r\n", Some(Opaque), Some(Http)),
            (b"PR", None, None),
            (b"PRI", Some(Opaque), None),
            (b"PRI * HTTP/2.0\r\n", Some(Opaque), Some(Opaque)),
            (b"\x16\x03\x01\x02\x00", Some(Opaque), Some(Opaque)),
            (b"\x16", Some(Opaque), Some(Opaque)),
            (b"EHLO there\r\n", Some(Opaque), Some(Http)),
            (b"\r\nGET / HTTP/1.1", Some(Opaque), Some(Http)),
            (b"\r\n", Some(Opaque), None),
            (b"*1\r\n$4\r\nPING\r\n", Some(Opaque), Some(Opaque)),
            (b" GET / HTTP/1.1", Some(Opaque), Some(Opaque)),
            (b"CONNECT\naccept-version:1.2\n\n", Some(Opaque), Some(Opaque)),
        ];
        for (bytes, detect, declared) in table {
            let shown = String::from_utf8_lossy(bytes);
            assert_eq!(classify(bytes, false), detect, "{shown:?}");
            assert_eq!(classify(bytes, true), declared, "{shown:?} on a port declared HTTP");
        }
    }

    #[test]
    fn every_method_fits_into_what_is_peeked_at() {
        for method in METHODS {
            assert!(method.len() + 2 < DETECT_BYTES_MAX, "{method}");
        }
    }
}
