//! What a request must be before anything routes it, so that weft and the application read the same request. The one place for such
//! rules; whatever it lets through is forwarded as it came.

use http::{
    HeaderMap, HeaderValue, Method, Request, Uri, Version, header,
    uri::{Authority, PathAndQuery, Scheme},
};

use crate::{
    http::scan::Fault,
    reply::{LocalReply, Reason},
};

/// What a request is for, once it is checked. Its authority is in `Host` in every version.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// The path and query, byte for byte.
    pub(crate) path: Uri,
    /// The scheme and authority of HTTP/2, as they came.
    pub(crate) origin: Option<(Scheme, Authority)>,
}

/// Checks a request, makes it canonical, and gives its target.
pub(crate) fn check<B>(request: &mut Request<B>, fault: Option<Fault>) -> Result<Target, LocalReply> {
    match fault {
        Some(Fault::FramingConflict) => {
            return Err(LocalReply::new(
                Reason::FramingConflict,
                "request has both Content-Length and Transfer-Encoding",
            ));
        }
        Some(Fault::Fragment) => return Err(LocalReply::new(Reason::TargetInvalid, "request target has a fragment")),
        None => {}
    }
    if request.method() == Method::CONNECT {
        return Err(LocalReply::new(
            Reason::ConnectMethod,
            "CONNECT is not for a server that the mesh stands in front of",
        ));
    }
    codings(request)?;
    let path = target(request)?;
    host(request)?;
    let origin = if request.version() == Version::HTTP_2 { Some(http2(request)?) } else { None };
    Ok(Target { path, origin })
}

/// What HTTP/2 leaves to its users: values without spaces around them, a scheme that is HTTP's, one authority, one `Cookie`.
fn http2<B>(request: &mut Request<B>) -> Result<(Scheme, Authority), LocalReply> {
    let padded = |value: &HeaderValue| {
        let value = value.as_bytes();
        [value.first(), value.last()].into_iter().flatten().any(|byte| matches!(byte, b' ' | b'\t'))
    };
    // RFC 9113 8.2.1. Upstream, HTTP/1 would take these away.
    if request.headers().values().any(padded) {
        return Err(LocalReply::new(Reason::MalformedRequest, "a field's value begins or ends with a space"));
    }
    let scheme = match request.uri().scheme() {
        // Without an authority there is no place for it.
        None => Scheme::HTTP,
        Some(scheme) if *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS => scheme.clone(),
        Some(_) => return Err(LocalReply::new(Reason::TargetInvalid, "scheme is neither http nor https")),
    };
    let authority = match (request.uri().authority().cloned(), request.headers().get(header::HOST)) {
        (Some(authority), Some(_)) => authority,
        (Some(authority), None) => {
            if let Ok(host) = HeaderValue::from_str(authority.as_str()) {
                request.headers_mut().insert(header::HOST, host);
            }
            authority
        }
        // Clients should not, but an intermediary that had no authority to begin with may (RFC 9113 8.3.1).
        (None, host) => host
            .and_then(|host| Authority::try_from(host.as_bytes()).ok())
            .ok_or_else(|| LocalReply::new(Reason::HostInvalid, "Host is no authority"))?,
    };
    join_cookies(request.headers_mut());
    Ok((scheme, authority))
}

/// HTTP/2 may send a cookie in pieces (RFC 9113 8.2.3); routes and servers look for one.
fn join_cookies(headers: &mut HeaderMap) {
    let mut pieces = headers.get_all(header::COOKIE).iter();
    if pieces.next().is_none() || pieces.next().is_none() {
        return;
    }
    let whole: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(whole) = HeaderValue::from_bytes(&whole.join(&b"; "[..])) {
        headers.insert(header::COOKIE, whole);
    }
}

fn codings<B>(request: &Request<B>) -> Result<(), LocalReply> {
    let mut codings = request.headers().get_all(header::TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(()),
        (Some(one), None) if one.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") => Ok(()),
        _ => {
            Err(LocalReply::new(Reason::TransferCoding, "the only transfer coding that is understood is one `chunked`"))
        }
    }
}

fn target<B>(request: &Request<B>) -> Result<Uri, LocalReply> {
    let uri = request.uri();
    let invalid = |what: &str| LocalReply::new(Reason::TargetInvalid, what);
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err(invalid("request target has user information"));
    }
    match uri.path_and_query() {
        Some(path) if path.as_str() == "*" && request.method() != Method::OPTIONS => {
            Err(invalid("request target `*` is for OPTIONS"))
        }
        Some(path) => Ok(Uri::from(path.clone())),
        // `http://host` stands for its root (RFC 9110 4.2.3).
        None if uri.scheme().is_some() => Ok(Uri::from(PathAndQuery::from_static("/"))),
        None => Err(invalid("request target is an authority")),
    }
}

fn host<B>(request: &Request<B>) -> Result<(), LocalReply> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (host, another) = (hosts.next(), hosts.next());
    if another.is_some() {
        return Err(LocalReply::new(Reason::HostInvalid, "request has several Host fields"));
    }
    let Some(host) = host else {
        return match request.version() {
            // HTTP/1.0 knows no Host.
            Version::HTTP_10 => Ok(()),
            Version::HTTP_2 if request.uri().authority().is_some() => Ok(()),
            Version::HTTP_2 => Err(LocalReply::new(Reason::HostMissing, "request has no authority")),
            _ => Err(LocalReply::new(Reason::HostMissing, "request has no Host")),
        };
    };
    let Ok(host) = host.to_str() else {
        return Err(LocalReply::new(Reason::HostInvalid, "Host is not text"));
    };
    if host.contains(|c: char| c.is_ascii_whitespace() || matches!(c, ',' | '/' | '?' | '#' | '@' | '\\')) {
        return Err(LocalReply::new(Reason::HostInvalid, "Host is no host"));
    }
    match request.uri().authority() {
        Some(authority) if !authority.as_str().eq_ignore_ascii_case(host) => {
            Err(LocalReply::new(Reason::HostInvalid, "Host is not the host of the request target"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(method: &str, target: &str, fields: &[(&str, &str)]) -> Result<String, Reason> {
        let mut request = Request::builder().method(method).uri(target);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        check(&mut request.body(()).unwrap(), None).map(|target| target.path.to_string()).map_err(|reply| reply.reason)
    }

    fn checked2(target: &str, fields: &[(&str, &str)]) -> Result<String, Reason> {
        let mut request = Request::builder().version(Version::HTTP_2).uri(target);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let mut request = request.body(()).unwrap();
        let target = check(&mut request, None).map_err(|reply| reply.reason)?;
        let (scheme, authority) = target.origin.unwrap();
        let field = |name| request.headers().get(name).map_or("", |value: &HeaderValue| value.to_str().unwrap());
        Ok(format!("{scheme} {authority} {} {} {}", target.path, field(header::HOST), field(header::COOKIE)))
    }

    #[test]
    fn requests_of_http2_have_one_authority_and_one_cookie() {
        type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], Result<&'a str, Reason>);
        let table: [Case<'_>; 14] = [
            ("http://a/x?y", &[], Ok("http a /x?y a ")),
            ("http://a/x", &[("host", "A")], Ok("http a /x A ")),
            ("https://a:8080/", &[], Ok("https a:8080 / a:8080 ")),
            ("http://a/x", &[("host", "b")], Err(Reason::HostInvalid)),
            ("http://a/x", &[("host", "a"), ("host", "a")], Err(Reason::HostInvalid)),
            ("http://u@a/x", &[], Err(Reason::TargetInvalid)),
            ("/x", &[("host", "a")], Ok("http a /x a ")),
            ("/x", &[("host", "a b")], Err(Reason::HostInvalid)),
            ("/x", &[], Err(Reason::HostMissing)),
            ("ftp://a/x", &[], Err(Reason::TargetInvalid)),
            ("http://a/", &[("x", "b ")], Err(Reason::MalformedRequest)),
            ("http://a/", &[("x", "\tb")], Err(Reason::MalformedRequest)),
            ("http://a/", &[("x", ""), ("y", "a b")], Ok("http a / a ")),
            ("http://a/", &[("cookie", "a=1"), ("cookie", "b=2")], Ok("http a / a a=1; b=2")),
        ];
        for (target, fields, expect) in table {
            assert_eq!(checked2(target, fields), expect.map(str::to_owned), "{target} {fields:?}");
        }
    }

    #[test]
    fn requests_that_two_readers_could_read_differently_are_refused() {
        let host = [("host", "a")];
        type Case<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], Result<&'a str, Reason>);
        let table: [Case<'_>; 15] = [
            ("GET", "/a//b/../%2e?x=%00&y", &host, Ok("/a//b/../%2e?x=%00&y")),
            ("OPTIONS", "*", &host, Ok("*")),
            ("GET", "*", &host, Err(Reason::TargetInvalid)),
            ("GET", "http://a/x?y", &host, Ok("/x?y")),
            ("GET", "http://A/x", &host, Ok("/x")),
            ("GET", "http://b/x", &host, Err(Reason::HostInvalid)),
            ("GET", "http://u:p@a/x", &host, Err(Reason::TargetInvalid)),
            ("GET", "a:80", &host, Err(Reason::TargetInvalid)),
            ("CONNECT", "a:80", &host, Err(Reason::ConnectMethod)),
            ("GET", "/", &[], Err(Reason::HostMissing)),
            ("GET", "/", &[("host", "a"), ("host", "a")], Err(Reason::HostInvalid)),
            ("GET", "/", &[("host", "a, b")], Err(Reason::HostInvalid)),
            ("POST", "/", &[("host", "a"), ("transfer-encoding", "Chunked")], Ok("/")),
            ("POST", "/", &[("host", "a"), ("transfer-encoding", "gzip, chunked")], Err(Reason::TransferCoding)),
            (
                "POST",
                "/",
                &[("host", "a"), ("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
                Err(Reason::TransferCoding),
            ),
        ];
        for (method, target, fields, expect) in table {
            assert_eq!(checked(method, target, fields), expect.map(str::to_owned), "{method} {target} {fields:?}");
        }
    }
}
