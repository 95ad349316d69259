//! The one form of a request's path (RFC 3986 6.2.2). It is what routes and grants match and what goes to the endpoint, so that no
//! reading of the path that was sent can lead elsewhere than the one that was authorized. A path that servers read in different ways
//! even in this form is refused.

use std::fmt;

/// Why a path is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ambiguity {
    /// A byte that no path may hold: a space, a control character, beyond ASCII, or `#`.
    Byte(u8),
    /// `\`, which some servers read as `/`.
    Backslash,
    /// `%` that two hexadecimal digits do not follow.
    Escape,
    /// An encoded `/` or `\`: some servers decode it before they split the path, others after.
    EncodedSeparator(u8),
    /// An encoded control character: it ends strings and lines in the hands of some servers.
    EncodedControl(u8),
    /// A character encoded in more bytes than it needs, which some decoders read all the same (RFC 3629 3).
    Overlong,
    /// Parameters (`;x`) of an empty or dot segment: a server that takes parameters away reads `/..;/` as `/../`.
    Parameters,
    /// It does not begin with `/`.
    NotRooted,
}

impl fmt::Display for Ambiguity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Byte(b'#') => f.write_str("path has a fragment"),
            Self::Byte(byte) => write!(f, "path has a byte that no path may hold, 0x{byte:02x}"),
            Self::Backslash => f.write_str("path has a backslash, which some servers read as a slash"),
            Self::Escape => f.write_str("path has a `%` without two hexadecimal digits"),
            Self::EncodedSeparator(byte) => {
                write!(f, "path has %{byte:02X}, which some servers read as a separator and others do not")
            }
            Self::EncodedControl(byte) => write!(f, "path has the control character %{byte:02X}"),
            Self::Overlong => f.write_str("path has a character in an overlong encoding"),
            Self::Parameters => f.write_str("path has parameters on an empty or dot segment"),
            Self::NotRooted => f.write_str("path does not begin with a slash"),
        }
    }
}

/// The canonical form of a path; `None` if that is how it came. Idempotent.
///
/// # Errors
/// When servers would read it in different ways.
pub fn canonical(path: &str) -> Result<Option<String>, Ambiguity> {
    if scan(path.as_bytes())? {
        return Ok(None);
    }
    let decoded = decode(path);
    let mut segments: Vec<&str> = Vec::new();
    let mut ends_with_slash = true;
    for segment in decoded.split('/') {
        ends_with_slash = matches!(segment, "" | "." | "..");
        match segment {
            "" | "." => {}
            // Above the root there is the root (RFC 3986 5.2.4).
            ".." => _ = segments.pop(),
            _ if has_odd_parameters(segment) => return Err(Ambiguity::Parameters),
            _ => segments.push(segment),
        }
    }
    let mut canonical = String::with_capacity(decoded.len());
    for segment in &segments {
        canonical.push('/');
        canonical.push_str(segment);
    }
    if ends_with_slash || segments.is_empty() {
        canonical.push('/');
    }
    Ok(Some(canonical))
}

/// Refuses what can be seen byte by byte; tells whether the path is in its canonical form already.
fn scan(path: &[u8]) -> Result<bool, Ambiguity> {
    if path.first() != Some(&b'/') {
        return Err(Ambiguity::NotRooted);
    }
    let (mut canonical, mut segment, mut at) = (true, 1, 1);
    let mut lead = 0;
    while let Some(&byte) = path.get(at) {
        let so_far = &path[segment..at];
        let previous = std::mem::take(&mut lead);
        match byte {
            b'/' => {
                canonical &= !is_empty_or_dots(so_far);
                segment = at + 1;
            }
            b';' if is_empty_or_dots(so_far) => return Err(Ambiguity::Parameters),
            b'\\' => return Err(Ambiguity::Backslash),
            b'%' => {
                let escape = path.get(at + 1..at + 3).ok_or(Ambiguity::Escape)?;
                let value = value(escape).ok_or(Ambiguity::Escape)?;
                match value {
                    b'/' | b'\\' => return Err(Ambiguity::EncodedSeparator(value)),
                    0..0x20 | 0x7f => return Err(Ambiguity::EncodedControl(value)),
                    b';' if is_empty_or_dots(so_far) => return Err(Ambiguity::Parameters),
                    _ if is_overlong(previous, value) => return Err(Ambiguity::Overlong),
                    _ => {}
                }
                lead = value;
                canonical &= !is_unreserved(value) && !escape.iter().any(u8::is_ascii_lowercase);
                at += 2;
            }
            0..=b' ' | b'#' | 0x7f.. => return Err(Ambiguity::Byte(byte)),
            _ => {}
        }
        at += 1;
    }
    let last = &path[segment..];
    Ok(canonical && (last.is_empty() || !is_empty_or_dots(last)))
}

/// Decodes what never needed encoding, and writes other escapes in capitals. The path was scanned.
fn decode(path: &str) -> String {
    let mut decoded = String::with_capacity(path.len());
    let mut rest = path;
    while let Some((before, after)) = rest.split_once('%') {
        decoded.push_str(before);
        let (escape, beyond) = after.split_at_checked(2).unwrap_or((after, ""));
        match value(escape.as_bytes()) {
            Some(value) if is_unreserved(value) => decoded.push(char::from(value)),
            _ => {
                decoded.push('%');
                decoded.extend(escape.chars().map(|digit| digit.to_ascii_uppercase()));
            }
        }
        rest = beyond;
    }
    decoded.push_str(rest);
    decoded
}

/// Of a decoded segment.
fn has_odd_parameters(segment: &str) -> bool {
    let name = segment.split(';').next().unwrap_or(segment);
    let name = name.split("%3B").next().unwrap_or(name);
    name.len() < segment.len() && is_empty_or_dots(name.as_bytes())
}

fn is_empty_or_dots(segment: &[u8]) -> bool {
    matches!(segment, b"" | b"." | b"..")
}

/// RFC 3986 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// Whether two escapes in a row begin a sequence of UTF-8 that is longer than its character needs.
fn is_overlong(lead: u8, next: u8) -> bool {
    match lead {
        0xc0 | 0xc1 => (0x80..0xc0).contains(&next),
        0xe0 => (0x80..0xa0).contains(&next),
        0xf0 => (0x80..0x90).contains(&next),
        _ => false,
    }
}

fn value(escape: &[u8]) -> Option<u8> {
    let digit = |at: usize| char::from(*escape.get(at)?).to_digit(16);
    u8::try_from(digit(0)? * 16 + digit(1)?).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_have_one_form() {
        let table = [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a/b/", "/a/b/"),
            ("//", "/"),
            ("//a///b//", "/a/b/"),
            ("/./a/./b/.", "/a/b/"),
            ("/a/../b", "/b"),
            ("/a/b/..", "/a/"),
            ("/a/..", "/"),
            ("/../../a", "/a"),
            ("/..", "/"),
            ("/a//../b", "/b"),
            ("/a/.../b", "/a/.../b"),
            ("/a/..b/.c", "/a/..b/.c"),
            ("/%61%2d%2E%5f%7e%41%30", "/a-._~A0"),
            ("/a/%2e%2E/b", "/b"),
            ("/a/.%2e/b", "/b"),
            ("/a/%2e/b", "/a/b"),
            ("/%c3%a9", "/%C3%A9"),
            ("/%E9/%c0x", "/%E9/%C0x"),
            // Decoded once, and not again.
            ("/%2561", "/%2561"),
            ("/%252e%252e/", "/%252e%252e/"),
            ("/%25%32%66", "/%252f"),
            ("/a%20b+c%2B%3a:@!$&'()*,=", "/a%20b+c%2B%3A:@!$&'()*,="),
            ("/a;x=1/b;y", "/a;x=1/b;y"),
            ("/a%3bx=1", "/a%3Bx=1"),
            ("/a;/../b", "/b"),
            ("/a;..", "/a;.."),
            ("/{id}|\"<>^`", "/{id}|\"<>^`"),
            ("/%3f%23", "/%3F%23"),
        ];
        for (path, expect) in table {
            let found = canonical(path).unwrap();
            assert_eq!(found.as_deref().unwrap_or(path), expect, "{path}");
            assert_eq!(found.is_none(), path == expect, "{path} is copied for nothing");
            assert_eq!(canonical(expect), Ok(None), "{path} has a form that is not the last");
        }
    }

    #[test]
    fn paths_that_servers_read_differently_are_refused() {
        let table = [
            ("", Ambiguity::NotRooted),
            ("a", Ambiguity::NotRooted),
            ("%2fa", Ambiguity::NotRooted),
            ("/a\\b", Ambiguity::Backslash),
            ("/a#b", Ambiguity::Byte(b'#')),
            ("/a b", Ambiguity::Byte(b' ')),
            ("/a\u{7f}", Ambiguity::Byte(0x7f)),
            ("/\u{e9}", Ambiguity::Byte(0xc3)),
            ("/a%2fb", Ambiguity::EncodedSeparator(b'/')),
            ("/a%2F..%2Fb", Ambiguity::EncodedSeparator(b'/')),
            ("/a%5cb", Ambiguity::EncodedSeparator(b'\\')),
            ("/a%00", Ambiguity::EncodedControl(0)),
            ("/a%0d%0aHost:%20b", Ambiguity::EncodedControl(b'\r')),
            ("/%7F", Ambiguity::EncodedControl(0x7f)),
            ("/%", Ambiguity::Escape),
            ("/%4", Ambiguity::Escape),
            ("/%4g", Ambiguity::Escape),
            ("/%u002f", Ambiguity::Escape),
            ("/%%32%66", Ambiguity::Escape),
            ("/%+1", Ambiguity::Escape),
            ("/%c0%af", Ambiguity::Overlong),
            ("/%E0%80%AF", Ambiguity::Overlong),
            ("/%f0%80%80%af", Ambiguity::Overlong),
            ("/a/..;/b", Ambiguity::Parameters),
            ("/a/..;x=1/b", Ambiguity::Parameters),
            ("/a/%2e%2e;/b", Ambiguity::Parameters),
            ("/a/..%3b/b", Ambiguity::Parameters),
            ("/a/.%2e%3Bx/b", Ambiguity::Parameters),
            ("/;/a", Ambiguity::Parameters),
            ("/.;x", Ambiguity::Parameters),
        ];
        for (path, expect) in table {
            assert_eq!(canonical(path), Err(expect), "{path}");
        }
    }

    /// What a server does that decodes each segment and walks from directory to directory.
    fn walked(path: &str) -> Vec<Vec<u8>> {
        let mut place = Vec::new();
        for segment in path.split('/') {
            let (mut bytes, mut decoded) = (segment.bytes(), Vec::new());
            while let Some(byte) = bytes.next() {
                decoded.push(if byte == b'%' {
                    let digits = [bytes.next().unwrap(), bytes.next().unwrap()];
                    u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
                } else {
                    byte
                });
            }
            match decoded.as_slice() {
                b"" | b"." => {}
                b".." => _ = place.pop(),
                _ => place.push(decoded),
            }
        }
        place
    }

    proptest! {
        #[test]
        fn canonical_path_leads_where_the_path_led(
            path in "(/|//|/\\.|/\\.\\.|/%2[eEfF]|%2[eE]|%[0-9a-fA-F]{2}|[a-c.;%]|%25){0,12}"
        ) {
            let path = format!("/{path}");
            if let Ok(found) = canonical(&path) {
                let found = found.unwrap_or_else(|| path.clone());
                prop_assert_eq!(walked(&path), walked(&found));
                prop_assert_eq!(canonical(&found), Ok(None));
                prop_assert!(found.starts_with('/') && !found.contains("//"));
                prop_assert!(found.split('/').all(|segment| segment != "." && segment != ".."));
            }
        }

        #[test]
        fn any_path_is_read_without_a_panic(path in ".{0,40}") {
            _ = canonical(&path);
        }
    }
}
