//! Fields of a request that a client must not set, because whoever reads them believes that the mesh did.
//!
//! Servers that put fields into variables (CGI, WSGI, FastCGI) read `x_forwarded_for` and `x-forwarded-for` as one, so a name with
//! underscores goes if it stands for one that a proxy reads or writes, or for one that the request has as well.

use http::{HeaderMap, HeaderName};

/// Names that are the mesh's own.
const PREFIXES: [&str; 2] = ["weft-", "x-weft-"];
/// The one that clients set.
const DEADLINE: &str = "weft-deadline";
/// Who the client is, as proxies that end TLS tell it. weft proves that by other means, and servers trust it.
const CLIENT_CERT: &str = "x-forwarded-client-cert";
/// Names that proxies and servers act on: nobody who means them writes them with underscores.
const ACTED_ON: [&str; 13] = [
    "authorization",
    "connection",
    "content-length",
    "content-type",
    "cookie",
    "expect",
    "forwarded",
    "host",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-real-ip",
];
const FORWARDED_PREFIX: &str = "x-forwarded-";

/// Removes them; tells how many names that were.
pub(crate) fn strip(headers: &mut HeaderMap) -> u64 {
    let reserved: Vec<HeaderName> =
        headers.keys().filter(|name| is_reserved(name.as_str(), headers)).cloned().collect();
    for name in &reserved {
        headers.remove(name);
    }
    reserved.len() as u64
}

fn is_reserved(name: &str, headers: &HeaderMap) -> bool {
    // A deadline is anybody's to set (http::rules::deadline).
    if name == DEADLINE {
        return false;
    }
    if is_own(name) {
        return true;
    }
    if !name.contains('_') {
        return false;
    }
    let dashed = name.replace('_', "-");
    is_own(&dashed)
        || dashed.starts_with(FORWARDED_PREFIX)
        || ACTED_ON.contains(&dashed.as_str())
        || headers.contains_key(&dashed)
}

fn is_own(name: &str) -> bool {
    name == CLIENT_CERT || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_that_a_client_must_not_set_are_removed() {
        type Case<'a> = (&'a [&'a str], &'a [&'a str]);
        let table: [Case<'_>; 11] = [
            (&["host", "accept", "x-request-id"], &["host", "accept", "x-request-id"]),
            (&["weft-reason", "weft-source", "X-Weft-Identity", "weftish", "x-weft"], &["weftish", "x-weft"]),
            (&["weft-deadline"], &["weft-deadline"]),
            (&["weft_deadline"], &[]),
            (&["weft_source", "x_weft_identity", "x-weft_identity", "x_weft-identity"], &[]),
            (&["x-forwarded-client-cert", "x_forwarded_client_cert", "x-forwarded_client-cert"], &[]),
            // Told by whoever stands in front, and as true as that is.
            (&["x-forwarded-for", "forwarded", "x-real-ip"], &["x-forwarded-for", "forwarded", "x-real-ip"]),
            (&["x_forwarded_for", "x-forwarded_proto", "x_real_ip"], &[]),
            (&["content_length", "transfer_encoding", "content_type"], &[]),
            (&["api_key", "access_token"], &["api_key", "access_token"]),
            (&["x-user", "x_user", "x_user_id", "x-user-id", "x_user-id"], &["x-user", "x-user-id"]),
        ];
        for (names, expect) in table {
            let mut headers = HeaderMap::new();
            for name in names {
                headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), "1".parse().unwrap());
            }
            assert_eq!(strip(&mut headers), (names.len() - expect.len()) as u64, "{names:?}");
            let left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
            let mut expect: Vec<_> = expect.to_vec();
            let mut sorted = left.clone();
            sorted.sort_unstable();
            expect.sort_unstable();
            assert_eq!(sorted, expect, "{names:?}");
        }
    }
}
