//! Looks over the parser's shoulder. hyper follows RFC 9112 where a request has both `Content-Length` and `Transfer-Encoding`, and
//! drops what follows `#` in a target; both leave no trace in the request, and both are refused here. Nothing else depends on this:
//! bytes that it misjudges are still framed by hyper alone.

/// Longest line start that is kept: a field name and a number.
const LINE_KEPT_BYTES: usize = 64;

/// What was wrong with a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Both `Content-Length` and `Transfer-Encoding`.
    FramingConflict,
    /// A fragment in the request target.
    Fragment,
}

#[derive(Clone, Copy, Debug, Default)]
struct Head {
    /// Lines seen, without empty ones before the first.
    lines: usize,
    chunked: bool,
    length: Option<u64>,
    fault: Option<Fault>,
}

#[derive(Debug)]
enum State {
    Head(Head),
    /// Bytes of a body that are still to come.
    Body(u64),
    /// A chunked body, whose end is not looked for; its last bytes so far.
    Chunked([u8; 4]),
}

/// Follows one connection's bytes from the client.
#[derive(Debug)]
pub(crate) struct Scan {
    state: State,
    line: Vec<u8>,
    /// Heads that ended so far.
    heads: u64,
    fault: Option<(u64, Fault)>,
}

impl Default for Scan {
    fn default() -> Self {
        Self { state: State::Head(Head::default()), line: Vec::with_capacity(LINE_KEPT_BYTES), heads: 0, fault: None }
    }
}

impl Scan {
    /// The next bytes, in order.
    pub(crate) fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.fault.is_none() {
            match &mut self.state {
                State::Chunked(last) => {
                    for byte in &bytes[bytes.len().saturating_sub(last.len())..] {
                        last.rotate_left(1);
                        last[3] = *byte;
                    }
                    return;
                }
                State::Body(left) => {
                    let skip = usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
                    *left -= skip as u64;
                    bytes = &bytes[skip..];
                    if *left == 0 {
                        self.state = State::Head(Head::default());
                    }
                }
                State::Head(head) => {
                    let end = bytes.iter().position(|byte| *byte == b'\n');
                    let part = &bytes[..end.unwrap_or(bytes.len())];
                    if head.lines == 0 && part.contains(&b'#') {
                        head.fault = Some(Fault::Fragment);
                    }
                    let room = LINE_KEPT_BYTES - self.line.len();
                    self.line.extend_from_slice(&part[..room.min(part.len())]);
                    let Some(end) = end else { return };
                    bytes = &bytes[end + 1..];
                    let line = std::mem::take(&mut self.line);
                    self.line_ended(&line);
                    self.line = line;
                    self.line.clear();
                }
            }
        }
    }

    fn line_ended(&mut self, line: &[u8]) {
        let State::Head(head) = &mut self.state else { return };
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if !line.is_empty() {
            head.lines += 1;
            if head.lines > 1 {
                head.field(line);
            }
            return;
        }
        if head.lines == 0 {
            return;
        }
        let head = *head;
        self.heads += 1;
        let fault = if head.chunked && head.length.is_some() { Some(Fault::FramingConflict) } else { head.fault };
        self.fault = fault.map(|fault| (self.heads, fault));
        self.state = match head.length {
            _ if head.chunked => State::Chunked([0; 4]),
            Some(length) if length > 0 => State::Body(length),
            _ => State::Head(Head::default()),
        };
    }

    /// The connection is between two requests, so the next byte begins a head, unless one has begun already.
    pub(crate) fn between(&mut self) {
        if matches!(self.state, State::Chunked(_)) {
            self.state = State::Head(Head::default());
        }
    }

    /// Whether a body has begun whose end has surely not come: a chunked one ends with two line ends (RFC 9112 7.1).
    pub(crate) fn is_within_body(&self) -> bool {
        match &self.state {
            State::Head(_) => false,
            State::Body(left) => *left > 0,
            State::Chunked(last) => last != b"\r\n\r\n",
        }
    }

    /// What is wrong with the request that is the `number`-th of the connection, counted from one.
    pub(crate) fn fault(&self, number: u64) -> Option<Fault> {
        self.fault.and_then(|(at, fault)| (at == number).then_some(fault))
    }
}

impl Head {
    fn field(&mut self, line: &[u8]) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { return };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.chunked = true;
        } else if name.eq_ignore_ascii_case(b"content-length") {
            // What is no number is refused by the parser.
            let digits = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
            self.length = Some(digits.unwrap_or(0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(input: &[u8], chunk: usize) -> Vec<(u64, Fault)> {
        let mut scan = Scan::default();
        for part in input.chunks(chunk) {
            scan.feed(part);
        }
        (1..=8).filter_map(|number| scan.fault(number).map(|fault| (number, fault))).collect()
    }

    #[test]
    fn finds_both_framings_in_either_order_and_at_any_cut() {
        use Fault::{Fragment, FramingConflict};
        let table: [(&str, &[(u64, Fault)]); 9] = [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", &[]),
            ("POST / HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n", &[(1, FramingConflict)]),
            ("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\nCONTENT-LENGTH: 4\r\n\r\n", &[(1, FramingConflict)]),
            (
                "GET / HTTP/1.1\n\nPOST / HTTP/1.1\nContent-Length: 0\nTransfer-Encoding: chunked\n\n",
                &[(2, FramingConflict)],
            ),
            ("POST / HTTP/1.1\r\nContent-Length: 38\r\n\r\nContent-Length:0\nTransfer-Encoding:x\n\n", &[]),
            (
                "POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nabPOST / HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
                &[(2, FramingConflict)],
            ),
            ("\r\n\r\nGET /a#b HTTP/1.1\r\n\r\n", &[(1, Fragment)]),
            ("GET /a HTTP/1.1\r\nReferer: /a#b\r\n\r\n", &[]),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", &[]),
        ];
        for (input, expect) in table {
            for chunk in [1, 2, 3, 7, 64, 1024] {
                assert_eq!(faults(input.as_bytes(), chunk), expect, "{input:?} in pieces of {chunk}");
            }
        }
    }

    #[test]
    fn body_that_is_not_all_there_is_known() {
        let requests = [
            ("POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\n", "abcd"),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", "3\r\nabc\r\n0\r\n\r\n"),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", "0\r\nTrailer: a\r\n\r\n"),
        ];
        for (head, body) in requests {
            let request = [head, body].concat();
            for cut in 0..=request.len() {
                for chunk in [1, 3, 100] {
                    let mut scan = Scan::default();
                    request.as_bytes()[..cut].chunks(chunk).for_each(|part| scan.feed(part));
                    let within = (head.len()..request.len()).contains(&cut);
                    assert_eq!(scan.is_within_body(), within, "{request:?} after {cut} bytes");
                }
            }
        }
    }

    #[test]
    fn long_lines_do_not_grow_memory() {
        let mut scan = Scan::default();
        for _ in 0..10_000 {
            scan.feed(&[b'a'; 100]);
        }
        assert!(scan.line.capacity() <= 2 * LINE_KEPT_BYTES);
    }
}
