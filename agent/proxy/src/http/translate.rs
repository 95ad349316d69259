//! Between HTTP/1.1 and HTTP/2 (RFC 9110 7.6, RFC 9113 8). What a message means stays; how it is framed is hyper's on each side.

use http::{
    HeaderMap, HeaderValue, Uri, Version,
    header::{CONNECTION, EXPECT, HOST, TRANSFER_ENCODING, UPGRADE},
    request,
    uri::{self, Authority, Scheme},
};
use http_body::Body;

use crate::reply::{LocalReply, Reason};

/// Makes a request one of HTTP/1.1. Its target is a path, and its authority is in `Host` already.
pub(crate) fn to_http1<B: Body>(parts: &mut request::Parts, body: &B) {
    parts.version = Version::HTTP_11;
    let sized = body.is_end_stream() || body.size_hint().exact().is_some();
    if sized {
        parts.headers.remove(TRANSFER_ENCODING);
    } else {
        // Said explicitly, because hyper sends no body with a GET otherwise.
        parts.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

/// The authority that a request has in HTTP/2: its own if it came in it, else its `Host` (RFC 9113 8.3.1).
pub(crate) fn origin(
    headers: &HeaderMap,
    origin: Option<(Scheme, Authority)>,
) -> Result<(Scheme, Authority), LocalReply> {
    let host = || headers.get(HOST).and_then(|host| Authority::try_from(host.as_bytes()).ok());
    origin
        .or_else(|| Some((Scheme::HTTP, host()?)))
        .ok_or_else(|| LocalReply::new(Reason::HostInvalid, "Host is no authority, which HTTP/2 needs"))
}

/// Makes a request one of HTTP/2: the authority takes the place of `Host`, and nothing is said about a connection (RFC 9113 8.2.2).
pub(crate) fn to_http2(parts: &mut request::Parts, (scheme, authority): (Scheme, Authority)) -> Result<(), LocalReply> {
    let headers = &mut parts.headers;
    headers.remove(HOST);
    headers.remove(CONNECTION);
    headers.remove(UPGRADE);
    // There if it was to be sent in HTTP/1 before.
    headers.remove(TRANSFER_ENCODING);
    // Nothing waits for an answer to it: HTTP/2 lets a server refuse a body at any time (RFC 9113 8.1).
    headers.remove(EXPECT);
    let mut target = uri::Parts::default();
    target.scheme = Some(scheme);
    target.authority = Some(authority);
    target.path_and_query = parts.uri.path_and_query().cloned();
    parts.uri = Uri::from_parts(target)
        .map_err(|error| LocalReply::new(Reason::TargetInvalid, format_args!("request target: {error}")))?;
    parts.version = Version::HTTP_2;
    Ok(())
}

/// Removes from a response of HTTP/1.1 what means nothing in HTTP/2.
pub(crate) fn response_to_http2(headers: &mut HeaderMap) {
    headers.remove(UPGRADE);
    headers.remove(CONNECTION);
}
