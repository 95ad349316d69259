//! Fields that concern one connection only and never go through (RFC 9110 7.6.1). hyper frames each side anew.

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{
        AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, COOKIE, EXPECT, HOST,
        PROXY_AUTHORIZATION, RANGE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
    },
};

use crate::http::reserved;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
/// Goes with an upgrade to cleartext HTTP/2 (RFC 7540 3.2.1), which never goes through.
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// A field that `Connection` may not name, because everybody needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Nominated(pub(crate) &'static str);

/// Each element of a comma-separated list field, over all its lines.
pub(crate) fn elements<'map>(headers: &'map HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'map [u8]> {
    headers
        .get_all(name)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|element| !element.is_empty())
}

fn has(headers: &HeaderMap, name: &HeaderName, element: &[u8]) -> bool {
    elements(headers, name).any(|other| other.eq_ignore_ascii_case(element))
}

/// Removes what `Connection` names, and `Connection` itself.
fn strip_nominated(headers: &mut HeaderMap) -> Result<(), Nominated> {
    if !headers.contains_key(CONNECTION) {
        return Ok(());
    }
    let nominated: Vec<HeaderName> =
        elements(headers, &CONNECTION).filter_map(|name| HeaderName::from_bytes(name).ok()).collect();
    for name in nominated {
        // Taking these away would make another request of it.
        for (needed, word) in [(HOST, "host"), (CONTENT_LENGTH, "content-length"), (AUTHORIZATION, "authorization")] {
            if name == needed {
                return Err(Nominated(word));
            }
        }
        // What is upgraded to, and whether trailers are understood, is decided below; trailers need their announcement.
        if name != UPGRADE && name != TE && name != TRAILER {
            headers.remove(name);
        }
    }
    headers.remove(CONNECTION);
    Ok(())
}

fn strip_always(headers: &mut HeaderMap) {
    headers.remove(KEEP_ALIVE);
    headers.remove(PROXY_CONNECTION);
    headers.remove(TRANSFER_ENCODING);
}

/// Whether a protocol of `Upgrade` is a version of HTTP (`h2c`, `HTTP/2.0`), in TLS (`TLS/1.2`, RFC 2817) or without.
fn is_http(protocol: &[u8]) -> bool {
    let name = protocol.split(|byte| *byte == b'/').next().unwrap_or(protocol);
    [&b"h2"[..], b"h2c", b"h3", b"http", b"tls"].iter().any(|http| name.eq_ignore_ascii_case(http))
}

/// Makes a request's fields those of the upstream connection. Tells whether it asks for an upgrade that goes through.
pub(crate) fn request(headers: &mut HeaderMap) -> Result<bool, Nominated> {
    let upgrade = headers.contains_key(UPGRADE)
        && has(headers, &CONNECTION, b"upgrade")
        // It would carry requests past everything that looks at requests; a server may ignore an upgrade, so this one does.
        && !elements(headers, &UPGRADE).any(is_http);
    let trailers = headers.contains_key(TE) && has(headers, &TE, b"trailers");
    strip_nominated(headers)?;
    strip_always(headers);
    headers.remove(TE);
    headers.remove(HTTP2_SETTINGS);
    if !upgrade {
        headers.remove(UPGRADE);
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.append(CONNECTION, HeaderValue::from_static("te"));
    }
    if upgrade {
        headers.append(CONNECTION, HeaderValue::from_static("upgrade"));
    }
    Ok(upgrade)
}

/// Makes a response's fields those of the downstream connection.
pub(crate) fn response(headers: &mut HeaderMap, status: http::StatusCode) -> Result<(), Nominated> {
    strip_nominated(headers)?;
    strip_always(headers);
    headers.remove(TE);
    // Both say what to switch to: one does it, the other one asks for it.
    if matches!(status, http::StatusCode::SWITCHING_PROTOCOLS | http::StatusCode::UPGRADE_REQUIRED)
        && headers.contains_key(UPGRADE)
    {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    } else {
        headers.remove(UPGRADE);
    }
    Ok(())
}

/// Removes from a trailer section what must not be there (RFC 9110 6.5.1): framing, routing, and what concerns one connection only.
pub(crate) fn trailers(trailers: &mut HeaderMap) {
    strip_always(trailers);
    for name in [CONNECTION, UPGRADE, TE, TRAILER, HOST, CONTENT_LENGTH] {
        trailers.remove(name);
    }
}

/// The same of a request, with what says who asks and how the content is to be read: some servers put trailers into the head, which was
/// authorized without them.
pub(crate) fn request_trailers(fields: &mut HeaderMap) {
    trailers(fields);
    for name in
        [AUTHORIZATION, PROXY_AUTHORIZATION, COOKIE, EXPECT, RANGE, CONTENT_RANGE, CONTENT_TYPE, CONTENT_ENCODING]
    {
        fields.remove(name);
    }
    reserved::strip(fields);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| {
                (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
            })
            .collect()
    }

    fn shown(headers: &HeaderMap) -> Vec<String> {
        let mut fields: Vec<_> =
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        fields.sort();
        fields
    }

    #[test]
    fn hop_by_hop_fields_of_requests_do_not_go_through() {
        type Case<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str], bool);
        let table: [Case<'_>; 12] = [
            (&[("host", "a"), ("x", "1")], &["host: a", "x: 1"], false),
            (&[("connection", "close, x-secret"), ("x-secret", "1"), ("x", "1")], &["x: 1"], false),
            (&[("connection", "keep-alive"), ("keep-alive", "timeout=5"), ("proxy-connection", "x")], &[], false),
            (&[("te", "gzip, trailers"), ("connection", "te")], &["connection: te", "te: trailers"], false),
            (&[("te", "gzip")], &[], false),
            (
                &[("connection", "Upgrade"), ("upgrade", "websocket")],
                &["connection: upgrade", "upgrade: websocket"],
                true,
            ),
            (&[("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c"), ("http2-settings", "AAA")], &[], false),
            (&[("connection", "Upgrade"), ("upgrade", "H2C, websocket"), ("http2-settings", "AAA")], &[], false),
            (&[("connection", "upgrade"), ("upgrade", "HTTP/2.0")], &[], false),
            (&[("connection", "upgrade"), ("upgrade", "TLS/1.2, HTTP/1.1")], &[], false),
            (
                &[("connection", "upgrade"), ("upgrade", "SPDY/3.1")],
                &["connection: upgrade", "upgrade: SPDY/3.1"],
                true,
            ),
            // Without `Connection` it is about somebody else's connection.
            (&[("upgrade", "websocket")], &[], false),
        ];
        for (fields, expect, upgrade) in table {
            let mut headers = map(fields);
            assert_eq!(request(&mut headers), Ok(upgrade), "{fields:?}");
            assert_eq!(shown(&headers), expect, "{fields:?}");
        }
        assert_eq!(request(&mut map(&[("connection", "close, Host"), ("host", "a")])), Err(Nominated("host")));
    }

    #[test]
    fn upgrade_of_a_response_goes_through_where_it_means_something() {
        use http::StatusCode;
        for (status, expect) in [
            (StatusCode::SWITCHING_PROTOCOLS, &["connection: upgrade", "upgrade: websocket"][..]),
            (StatusCode::UPGRADE_REQUIRED, &["connection: upgrade", "upgrade: websocket"]),
            (StatusCode::OK, &[]),
        ] {
            let mut headers = map(&[("connection", "upgrade"), ("upgrade", "websocket")]);
            response(&mut headers, status).unwrap();
            assert_eq!(shown(&headers), expect, "{status}");
        }
    }

    #[test]
    fn trailers_add_nothing_to_the_head_that_was_authorized() {
        let mut trailers = map(&[
            ("x-checksum", "1"),
            ("grpc-status", "0"),
            ("authorization", "Bearer x"),
            ("cookie", "a=b"),
            ("content_length", "3"),
            ("weft-source", "x"),
            ("host", "b"),
            ("transfer-encoding", "chunked"),
            ("content-type", "text/plain"),
        ]);
        request_trailers(&mut trailers);
        assert_eq!(shown(&trailers), ["grpc-status: 0", "x-checksum: 1"]);
    }
}
