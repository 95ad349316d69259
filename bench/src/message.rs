//! As much of HTTP/1.1 as the bench needs to tell messages apart: where a head ends, and how long the body is.

use memchr::memmem;

use crate::limits;

/// The request that is asked again and again.
pub const REQUEST: &[u8] =
    b"GET /bench HTTP/1.1\r\nHost: web.bench.svc.cluster.local\r\nUser-Agent: weft-bench\r\nAccept: */*\r\n\r\n";

/// The end of the head, past its empty line.
#[must_use]
pub fn head_end(bytes: &[u8]) -> Option<usize> {
    memmem::find(bytes, b"\r\n\r\n").map(|at| at + 4)
}

/// The length that the head declares.
#[must_use]
pub fn content_length(head: &[u8]) -> Option<usize> {
    const NAME: &[u8] = b"content-length:";
    let mut rest = head;
    while let Some(at) = memchr::memchr(b'\n', rest) {
        rest = &rest[at + 1..];
        if rest.len() > NAME.len() && rest[..NAME.len()].eq_ignore_ascii_case(NAME) {
            let value = &rest[NAME.len()..];
            let value = &value[..memchr::memchr(b'\r', value)?];
            return std::str::from_utf8(value).ok()?.trim().parse().ok();
        }
    }
    None
}

/// The status of a response.
#[must_use]
pub fn status(head: &[u8]) -> Option<u16> {
    std::str::from_utf8(head.get(9..12)?).ok()?.parse().ok()
}

/// A response of the backend called `name`; its body is that letter, [`limits::BODY_BYTES`] times.
#[must_use]
pub fn response(name: u8) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 200 OK\r\nServer: bench\r\nContent-Type: application/octet-stream\r\nContent-Length: {}\r\n\r\n",
        limits::BODY_BYTES
    );
    let mut response = head.into_bytes();
    response.resize(response.len() + limits::BODY_BYTES, name);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_end_at_their_empty_line() {
        for (bytes, end) in [
            (&b""[..], None),
            (b"GET / HTTP/1.1\r\n", None),
            (b"GET / HTTP/1.1\r\n\r", None),
            (b"GET / HTTP/1.1\r\n\r\n", Some(18)),
            (b"GET / HTTP/1.1\r\n\r\nGET", Some(18)),
        ] {
            assert_eq!(head_end(bytes), end, "{}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn lengths_are_found_in_any_case_and_only_as_a_name() {
        for (head, length) in [
            (&b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n"[..], Some(7)),
            (b"HTTP/1.1 200 OK\r\na: b\r\ncontent-length:1024\r\nc: d\r\n\r\n", Some(1024)),
            (b"HTTP/1.1 200 OK\r\nx-content-length: 7\r\n\r\n", None),
            (b"HTTP/1.1 200 OK\r\ncontent-length: seven\r\n\r\n", None),
            (b"HTTP/1.1 200 OK\r\n\r\n", None),
        ] {
            assert_eq!(content_length(head), length, "{}", String::from_utf8_lossy(head));
        }
    }

    #[test]
    fn a_response_says_what_it_holds() {
        let response = response(b'a');
        let end = head_end(&response).expect("a head");
        assert_eq!(content_length(&response[..end]), Some(limits::BODY_BYTES));
        assert_eq!(status(&response[..end]), Some(200));
        assert_eq!(response.len(), end + limits::BODY_BYTES);
        assert!(response[end..].iter().all(|byte| *byte == b'a'));
    }
}
