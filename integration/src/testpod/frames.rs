//! Frames of HTTP/2, written byte by byte: no library would send what these are for.

/// RFC 9113 3.4.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// RFC 9113 6.1.
pub const DATA: u8 = 0;
/// RFC 9113 6.2.
pub const HEADERS: u8 = 1;
/// RFC 9113 6.3.
pub const PRIORITY: u8 = 2;
/// RFC 9113 6.4.
pub const RST_STREAM: u8 = 3;
/// RFC 9113 6.5.
pub const SETTINGS: u8 = 4;
/// RFC 9113 6.7.
pub const PING: u8 = 6;
/// RFC 9113 6.8.
pub const GOAWAY: u8 = 7;
/// RFC 9113 6.9.
pub const WINDOW_UPDATE: u8 = 8;
/// RFC 9113 6.10.
pub const CONTINUATION: u8 = 9;
/// Flag of DATA and HEADERS.
pub const END_STREAM: u8 = 1;
/// Flag of SETTINGS and PING.
pub const ACK: u8 = 1;
/// Flag of HEADERS and CONTINUATION.
pub const END_HEADERS: u8 = 4;
/// RFC 9113 6.5.2.
pub const INITIAL_WINDOW_SIZE: u16 = 4;
/// Error code CANCEL (RFC 9113 7).
pub const CANCEL: u32 = 8;
/// Bytes before a frame's payload.
pub const HEADER_BYTES: usize = 9;

/// A frame.
#[must_use]
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = header(u32::try_from(payload.len()).unwrap_or(u32::MAX), kind, flags, stream).to_vec();
    frame.extend(payload);
    frame
}

/// What comes before a payload, whatever its length really is.
#[must_use]
pub fn header(length: u32, kind: u8, flags: u8, stream: u32) -> [u8; HEADER_BYTES] {
    let (length, stream) = (length.to_be_bytes(), stream.to_be_bytes());
    [length[1], length[2], length[3], kind, flags, stream[0], stream[1], stream[2], stream[3]]
}

/// One setting.
#[must_use]
pub fn setting(name: u16, value: u32) -> Vec<u8> {
    [&name.to_be_bytes()[..], &value.to_be_bytes()].concat()
}

/// The four pseudo-header fields of a request (RFC 7541 6.1 and 6.2.2), with indices of the static table.
#[must_use]
pub fn request(method: Method, path: &str, authority: &str) -> Vec<u8> {
    let mut block = vec![if method == Method::Get { 0x82 } else { 0x83 }, 0x86];
    block.push(0x04);
    string(&mut block, path);
    block.push(0x01);
    string(&mut block, authority);
    block
}

/// Methods that have an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// `GET`.
    Get,
    /// `POST`.
    Post,
}

/// A field that is put into the dynamic table (RFC 7541 6.2.1).
#[must_use]
pub fn indexed_field(name: &str, value: &str) -> Vec<u8> {
    let mut block = vec![0x40];
    string(&mut block, name);
    string(&mut block, value);
    block
}

/// A field that is not (RFC 7541 6.2.2).
#[must_use]
pub fn field(name: &str, value: &str) -> Vec<u8> {
    let mut block = vec![0x00];
    string(&mut block, name);
    string(&mut block, value);
    block
}

/// The newest field of the dynamic table (RFC 7541 6.1).
pub const NEWEST_FIELD: u8 = 0x80 | 62;

/// A string without Huffman coding (RFC 7541 5.2).
fn string(block: &mut Vec<u8>, text: &str) {
    const PREFIX_MAX: usize = 127;
    if text.len() < PREFIX_MAX {
        block.push(u8::try_from(text.len()).unwrap_or_default());
    } else {
        block.push(127);
        let mut rest = text.len() - PREFIX_MAX;
        while rest >= 128 {
            block.push(u8::try_from(rest % 128).unwrap_or_default() | 0x80);
            rest /= 128;
        }
        block.push(u8::try_from(rest).unwrap_or_default());
    }
    block.extend(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_and_fields_are_laid_out_as_the_rfc_says() {
        assert_eq!(frame(PING, ACK, 0, b"12345678"), b"\x00\x00\x08\x06\x01\x00\x00\x00\x0012345678");
        assert_eq!(setting(INITIAL_WINDOW_SIZE, 1), [0, 4, 0, 0, 0, 1]);
        assert_eq!(field("a", "bc"), b"\x00\x01a\x02bc");
        // RFC 7541 C.1.2: 1337 with a prefix of five bits ends like 1306 does here.
        assert_eq!(field("a", &"x".repeat(127 + 1306))[3..6], [127, 0x9a, 0x0a]);
    }
}
