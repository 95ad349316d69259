//! The authority of a request: a name or address, and perhaps a port (RFC 9110 7.2). What no DNS name or address has is refused, so that
//! no two readers see different hosts in it.

use std::borrow::Cow;

/// Longest authority, bytes: a DNS name (RFC 1035 2.3.4), a colon and a port.
const AUTHORITY_BYTES_MAX: usize = 255 + 1 + 5;
/// Ports that need not be said (RFC 9110 4.2.1, 4.2.2).
const DEFAULT_PORTS: [&str; 2] = ["80", "443"];

/// Gives it as text if it is one.
pub(crate) fn check(authority: &[u8]) -> Result<&str, &'static str> {
    let Ok(text) = std::str::from_utf8(authority) else { return Err("Host is not text") };
    if text.is_empty() {
        return Err("Host is empty");
    }
    if text.len() > AUTHORITY_BYTES_MAX {
        return Err("Host is too long");
    }
    let (host, port) = split(text);
    let is_name =
        |host: &str| host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~'));
    let is_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && is_name(host),
    };
    if !is_host {
        return Err("Host is no host");
    }
    match port {
        Some(port) if port.parse::<u16>().is_err() || !port.bytes().all(|byte| byte.is_ascii_digit()) => {
            Err("Host has no port after its colon")
        }
        _ => Ok(text),
    }
}

/// The form in which it goes on: in lower case.
pub(crate) fn canonical(authority: &str) -> Cow<'_, str> {
    if authority.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(authority.to_ascii_lowercase())
    } else {
        Cow::Borrowed(authority)
    }
}

/// Whether two stand for the same host and port. A dot at the end and a port that need not be said make no difference.
pub(crate) fn is_same(one: &str, other: &str) -> bool {
    let ((host, port), (other_host, other_port)) = (split(one), split(other));
    let name = |host: &str| host.strip_suffix('.').unwrap_or(host).len();
    let is_default = |port: Option<&str>| port.is_none_or(|port| DEFAULT_PORTS.contains(&port));
    host[..name(host)].eq_ignore_ascii_case(&other_host[..name(other_host)])
        && (port == other_port
            || (is_default(port) && is_default(other_port) && (port.is_none() || other_port.is_none())))
}

/// Host and port; the colons of an IPv6 address are no port's.
pub(crate) fn split(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hosts_are_hosts() {
        for good in
            ["a", "A.b-c_d.", "web:80", "10.0.0.1:8080", "[::1]", "[fd00::1]:443", "xn--bcher-kva.example", "a:0"]
        {
            assert_eq!(check(good.as_bytes()), Ok(good));
        }
        let long = "a".repeat(300);
        let bad = [
            "", ":80", "a:", "a:x", "a:99999", "a:+1", "a:80:80", "u@a", "a,b", "a b", " a", "a/b", "a?b", "a#b",
            "a\\b", "a%2e", "a;b", "[::1", "::1", "[::g]", "[a]", "[::1]x", "\u{e9}", "a\t", &long,
        ];
        for bad in bad {
            assert!(check(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert!(check(b"a\xff").is_err());
    }

    #[test]
    fn same_hosts_are_told_from_others() {
        for (one, other, same) in [
            ("a", "A", true),
            ("a", "a.", true),
            ("a:80", "a", true),
            ("a", "a:443", true),
            ("a:80", "a:443", false),
            ("a:80", "a:81", false),
            ("a:8080", "A.:8080", true),
            ("a", "b", false),
            ("[::1]:80", "[::1]", true),
            ("[::1]", "[::2]", false),
        ] {
            assert_eq!(is_same(one, other), same, "{one} {other}");
            assert_eq!(is_same(other, one), same, "{other} {one}");
        }
        assert_eq!(canonical("WEB.Shop:80"), "web.shop:80");
    }
}
