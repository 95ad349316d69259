//! Reads along with HTTP/2 frames as they pass (RFC 9113 4.1): what hyper does not tell of them, weft has to see for itself. Nothing
//! is held back or changed, and bytes that this misjudges are still framed by hyper alone.

/// Length of a frame's header, bytes.
const HEADER_BYTES: usize = 9;
/// What the client sends before its first frame (RFC 9113 3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Most bytes of a payload that are kept: an error code and its explanation, or ten settings.
const PAYLOAD_KEPT_BYTES: usize = 64;

/// Types of frames (RFC 9113 6).
pub(crate) mod kind {
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const RST_STREAM: u8 = 3;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const GOAWAY: u8 = 7;
    pub(crate) const CONTINUATION: u8 = 9;
}

/// Error codes (RFC 9113 7).
pub(crate) mod code {
    pub(crate) const NO_ERROR: u32 = 0;
    pub(crate) const INTERNAL_ERROR: u32 = 2;
    pub(crate) const REFUSED_STREAM: u32 = 7;
    pub(crate) const ENHANCE_YOUR_CALM: u32 = 11;
}

const END_STREAM: u8 = 0x1;
const ACK: u8 = 0x1;
const END_HEADERS: u8 = 0x4;

/// A frame that has passed, or has begun to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) kind: u8,
    flags: u8,
    pub(crate) stream: u32,
    /// Of the payload, bytes.
    pub(crate) length: u32,
    /// The beginning of the payload, of frames whose payload matters here.
    pub(crate) payload: &'a [u8],
}

impl Frame<'_> {
    /// Whether it is the last of its stream in this direction.
    pub(crate) fn ends_stream(&self) -> bool {
        matches!(self.kind, kind::DATA | kind::HEADERS) && self.flags & END_STREAM != 0
    }

    /// Whether no continuation of its header block follows.
    pub(crate) fn ends_headers(&self) -> bool {
        self.flags & END_HEADERS != 0
    }

    /// Whether it only acknowledges settings.
    pub(crate) fn is_ack(&self) -> bool {
        self.flags & ACK != 0
    }

    /// Why a stream or the connection ends.
    pub(crate) fn error_code(&self) -> Option<u32> {
        let at = match self.kind {
            kind::RST_STREAM => 0,
            kind::GOAWAY => 4,
            _ => return None,
        };
        number(self.payload.get(at..at + 4)?)
    }

    /// What a GOAWAY says in words.
    pub(crate) fn words(&self) -> &[u8] {
        if self.kind == kind::GOAWAY { self.payload.get(8..).unwrap_or_default() } else { &[] }
    }

    /// The value of a setting, if the frame has it; the last one if several times (RFC 9113 6.5.3).
    pub(crate) fn setting(&self, id: u16) -> Option<u32> {
        if self.kind != kind::SETTINGS || self.is_ack() {
            return None;
        }
        let found = self.payload.chunks_exact(6).rfind(|setting| setting[..2] == id.to_be_bytes())?;
        number(&found[2..])
    }
}

fn number(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_be_bytes)
}

/// Follows the frames of one direction.
#[derive(Debug)]
pub(crate) struct Frames {
    /// Bytes before the first frame that are still to come.
    before: usize,
    header: [u8; HEADER_BYTES],
    /// How much of the header there is.
    have: usize,
    /// How much of the payload is still to come.
    left: u32,
    payload: [u8; PAYLOAD_KEPT_BYTES],
    kept: usize,
}

impl Frames {
    /// What a client sends.
    pub(crate) fn of_client() -> Self {
        Self { before: PREFACE.len(), ..Self::of_server() }
    }

    /// What a server sends.
    pub(crate) fn of_server() -> Self {
        Self { before: 0, header: [0; HEADER_BYTES], have: 0, left: 0, payload: [0; PAYLOAD_KEPT_BYTES], kept: 0 }
    }

    /// Whether the last byte was the last of a frame, so that another one may follow.
    pub(crate) fn is_between(&self) -> bool {
        self.before == 0 && self.have == 0 && self.left == 0
    }

    /// The next bytes, in order; `seen` is told of each frame once, at its header, or at its end if its payload matters, and how many
    /// of these bytes have passed by then.
    pub(crate) fn feed(&mut self, bytes: &[u8], mut seen: impl FnMut(Frame<'_>, usize)) {
        let given = bytes.len();
        let mut bytes = bytes;
        let skipped = self.before.min(bytes.len());
        self.before -= skipped;
        bytes = &bytes[skipped..];
        while !bytes.is_empty() {
            if self.have < HEADER_BYTES {
                let part = (HEADER_BYTES - self.have).min(bytes.len());
                self.header[self.have..self.have + part].copy_from_slice(&bytes[..part]);
                self.have += part;
                bytes = &bytes[part..];
                if self.have < HEADER_BYTES {
                    return;
                }
                self.left = u32::from_be_bytes([0, self.header[0], self.header[1], self.header[2]]);
                self.kept = 0;
                if !self.keeps() {
                    seen(self.frame(), given - bytes.len());
                }
            }
            let part = (self.left as usize).min(bytes.len());
            if self.keeps() {
                let kept = part.min(PAYLOAD_KEPT_BYTES - self.kept);
                self.payload[self.kept..self.kept + kept].copy_from_slice(&bytes[..kept]);
                self.kept += kept;
            }
            self.left -= part as u32;
            bytes = &bytes[part..];
            if self.left == 0 {
                if self.keeps() {
                    seen(self.frame(), given - bytes.len());
                }
                self.have = 0;
            }
        }
    }

    fn keeps(&self) -> bool {
        matches!(self.header[3], kind::RST_STREAM | kind::SETTINGS | kind::GOAWAY)
    }

    fn frame(&self) -> Frame<'_> {
        let [a, b, c, kind, flags, stream @ ..] = self.header;
        Frame {
            kind,
            flags,
            // The first bit is reserved.
            stream: u32::from_be_bytes(stream) & (u32::MAX >> 1),
            length: u32::from_be_bytes([0, a, b, c]),
            payload: &self.payload[..self.kept],
        }
    }
}

/// A whole GOAWAY frame, for where hyper cannot be asked for one.
pub(crate) fn go_away(last_stream: u32, code: u32, words: &str) -> Vec<u8> {
    let length = 8 + words.len();
    let mut frame = Vec::with_capacity(HEADER_BYTES + length);
    frame.extend_from_slice(&(length as u32).to_be_bytes()[1..]);
    frame.extend_from_slice(&[kind::GOAWAY, 0, 0, 0, 0, 0]);
    frame.extend_from_slice(&last_stream.to_be_bytes());
    frame.extend_from_slice(&code.to_be_bytes());
    frame.extend_from_slice(words.as_bytes());
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    fn seen(frames: &mut Frames, bytes: &[u8], chunk: usize) -> Vec<String> {
        let mut seen = Vec::new();
        for part in bytes.chunks(chunk) {
            frames.feed(part, |frame, _| {
                let end = if frame.ends_stream() { " end" } else { "" };
                let code = frame.error_code().map(|code| format!(" code {code}")).unwrap_or_default();
                let streams = frame.setting(3).map(|most| format!(" streams {most}")).unwrap_or_default();
                seen.push(format!("{} on {} of {}{end}{code}{streams}", frame.kind, frame.stream, frame.length));
            });
        }
        seen
    }

    #[test]
    fn sees_every_frame_once_at_any_cut() {
        let bytes = [
            PREFACE.to_vec(),
            frame(kind::SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255, 0, 3, 0, 0, 0, 100, 0, 3, 0, 0, 0, 7]),
            frame(kind::SETTINGS, ACK, 0, &[]),
            frame(kind::HEADERS, END_STREAM | END_HEADERS, 1, b"block"),
            frame(kind::DATA, 0, 0x8000_0003, &[0; 300]),
            frame(kind::DATA, END_STREAM, 3, &[]),
            frame(kind::RST_STREAM, 0, 5, &8_u32.to_be_bytes()),
            go_away(7, code::ENHANCE_YOUR_CALM, &"x".repeat(100)),
            frame(0x77, 0xff, 9, b"unknown"),
        ]
        .concat();
        let expect = [
            "4 on 0 of 18 streams 7",
            "4 on 0 of 0",
            "1 on 1 of 5 end",
            "0 on 3 of 300",
            "0 on 3 of 0 end",
            "3 on 5 of 4 code 8",
            "7 on 0 of 108 code 11",
            "119 on 9 of 7",
        ];
        for chunk in [1, 2, 7, 9, 10, 64, 10_000] {
            let mut frames = Frames::of_client();
            assert_eq!(seen(&mut frames, &bytes, chunk), expect, "in pieces of {chunk}");
            assert!(frames.is_between());
            frames.feed(&[0], |_, _| {});
            assert!(!frames.is_between());
        }
    }

    #[test]
    fn any_bytes_are_followed_without_a_panic() {
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..200 {
            let mut frames = Frames::of_server();
            for _ in 0..50 {
                let bytes: Vec<u8> = (0..random.usize(..200)).map(|_| random.u8(..)).collect();
                frames.feed(&bytes, |frame, _| _ = (frame.error_code(), frame.setting(3), frame.words().len()));
            }
        }
    }
}
