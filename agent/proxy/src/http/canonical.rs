//! What a request must be before anything routes or authorizes it, so that weft and the application read the same request. The one
//! place for such rules. What can be read in one way only is made canonical, and is forwarded like that; what cannot is refused
//! (docs/decisions/0010).

use http::{
    HeaderMap, HeaderValue, Method, Request, Uri, Version, header,
    uri::{Authority, PathAndQuery, Scheme},
};

use weft_policy::path;

use crate::{
    http::{host, reserved, scan::Fault},
    limits,
    reply::{LocalReply, Reason},
};

/// What a request is for, once it is checked. Its authority is in `Host` in every version.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// The path in its canonical form, and the query byte for byte.
    pub(crate) path: Uri,
    /// The scheme and authority of HTTP/2.
    pub(crate) origin: Option<(Scheme, Authority)>,
    /// Names of fields that were taken out because they are the mesh's to set.
    pub(crate) removed: u64,
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
    framing(request.headers())?;
    expectation(request)?;
    let path = target(request)?;
    authority(request)?;
    let origin = if request.version() == Version::HTTP_2 { Some(http2(request)?) } else { None };
    let removed = reserved::strip(request.headers_mut());
    Ok(Target { path, origin, removed })
}

/// What HTTP/2 leaves to its users: values without spaces around them, a scheme, one authority, one `Cookie`.
fn http2<B>(request: &mut Request<B>) -> Result<(Scheme, Authority), LocalReply> {
    let padded = |value: &HeaderValue| {
        let value = value.as_bytes();
        [value.first(), value.last()].into_iter().flatten().any(|byte| matches!(byte, b' ' | b'\t'))
    };
    // RFC 9113 8.2.1. Upstream, HTTP/1 would take these away.
    if request.headers().values().any(padded) {
        return Err(LocalReply::new(Reason::MalformedRequest, "a field's value begins or ends with a space"));
    }
    // Without an authority there is no place for a scheme.
    let scheme = request.uri().scheme().cloned().unwrap_or(Scheme::HTTP);
    // Clients should send an authority, but an intermediary that had none to begin with may send `Host` alone (RFC 9113 8.3.1). It is
    // there in both cases by now.
    let authority = request.headers().get(header::HOST).and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let authority = authority.ok_or_else(|| LocalReply::new(Reason::HostInvalid, "Host is no authority"))?;
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

/// One framing, said once.
fn framing(headers: &HeaderMap) -> Result<(), LocalReply> {
    if headers.get_all(header::CONTENT_LENGTH).iter().nth(1).is_some() {
        return Err(LocalReply::new(Reason::FramingConflict, "request has several Content-Length fields"));
    }
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(()),
        (Some(one), None) if one.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") => Ok(()),
        _ => {
            Err(LocalReply::new(Reason::TransferCoding, "the only transfer coding that is understood is one `chunked`"))
        }
    }
}

/// `100-continue` and nothing else (RFC 9110 10.1.1): whoever reads another expectation differently waits for a body that does not come,
/// or takes it for the next request.
fn expectation<B>(request: &mut Request<B>) -> Result<(), LocalReply> {
    // HTTP/1.0 knows none: they are ignored (RFC 9110 10.1.1), and nobody behind weft is to read one.
    if request.version() == Version::HTTP_10 {
        request.headers_mut().remove(header::EXPECT);
        return Ok(());
    }
    let mut expectations = request.headers().get_all(header::EXPECT).iter();
    match (expectations.next(), expectations.next()) {
        (None, _) => Ok(()),
        (Some(one), None) if one.as_bytes().eq_ignore_ascii_case(b"100-continue") => Ok(()),
        _ => Err(LocalReply::new(Reason::Expectation, "the only expectation that is understood is one `100-continue`")),
    }
}

/// Path and query. HTTP/2 has them in a field of their own; in HTTP/1 the scheme and the authority of the absolute form go.
fn target<B>(request: &Request<B>) -> Result<Uri, LocalReply> {
    let uri = request.uri();
    let invalid = |what: &str| LocalReply::new(Reason::TargetInvalid, what);
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err(invalid("request target has user information"));
    }
    if uri.scheme().is_some_and(|scheme| *scheme != Scheme::HTTP && *scheme != Scheme::HTTPS) {
        return Err(invalid("scheme is neither http nor https"));
    }
    match uri.path_and_query() {
        Some(target) if target.as_str() == "*" => {
            if request.method() == Method::OPTIONS {
                Ok(Uri::from(target.clone()))
            } else {
                Err(invalid("request target `*` is for OPTIONS"))
            }
        }
        Some(target) => canonical(target).map(Uri::from),
        // `http://host` stands for its root (RFC 9110 4.2.3).
        None if uri.scheme().is_some() => Ok(Uri::from(PathAndQuery::from_static("/"))),
        None => Err(invalid("request target is an authority")),
    }
}

fn canonical(target: &PathAndQuery) -> Result<PathAndQuery, LocalReply> {
    if target.as_str().len() > limits::TARGET_BYTES_MAX {
        return Err(LocalReply::new(
            Reason::TargetTooLong,
            format_args!("path and query are longer than {} bytes", limits::TARGET_BYTES_MAX),
        ));
    }
    let refused = |why: path::Ambiguity| LocalReply::new(Reason::PathAmbiguous, why);
    let path = match path::canonical(target.path()).map_err(refused)? {
        Some(path) => path,
        // `http://host?query` has an empty path, which stands for the root as well.
        None if target.as_str().starts_with('?') => "/".to_owned(),
        // Crate http shows an empty path as the root, but forwards it as nothing (`http://host#fragment`).
        None if target.as_str() == "/" => return Ok(PathAndQuery::from_static("/")),
        None => return Ok(target.clone()),
    };
    let whole = match target.query() {
        Some(query) => format!("{path}?{query}"),
        None => path,
    };
    PathAndQuery::try_from(whole)
        .map_err(|error| LocalReply::new(Reason::TargetInvalid, format_args!("request target: {error}")))
}

/// A target with another path, which a rule has made: in the same form as one that came like that. The query stays.
pub(crate) fn rewritten(path: &str, query: Option<&str>) -> Result<Uri, LocalReply> {
    let invalid = |why: &dyn std::fmt::Display| {
        LocalReply::new(Reason::RuleInvalid, format_args!("the path that a rule makes of this request's: {why}"))
    };
    if path.contains('?') {
        return Err(invalid(&"path has a query"));
    }
    let path = path::canonical(path).map_err(|why| invalid(&why))?.unwrap_or_else(|| path.to_owned());
    let whole = match query {
        Some(query) => format!("{path}?{query}"),
        None => path,
    };
    if whole.len() > limits::TARGET_BYTES_MAX {
        return Err(LocalReply::new(
            Reason::TargetTooLong,
            format_args!("path and query that a rule makes are longer than {} bytes", limits::TARGET_BYTES_MAX),
        ));
    }
    PathAndQuery::try_from(whole).map(Uri::from).map_err(|error| invalid(&error))
}

/// One authority, in one form, in `Host`.
fn authority<B>(request: &mut Request<B>) -> Result<(), LocalReply> {
    let invalid = |why: &str| LocalReply::new(Reason::HostInvalid, why);
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (host, another) = (hosts.next(), hosts.next());
    if another.is_some() {
        return Err(invalid("request has several Host fields"));
    }
    let of_target = request.uri().authority().map(Authority::as_str);
    if let Some(authority) = of_target {
        host::check(authority.as_bytes()).map_err(invalid)?;
    }
    let version = request.version();
    let canonical = match (host, of_target) {
        (Some(host), of_target) => {
            let host = host::check(host.as_bytes()).map_err(invalid)?;
            if of_target.is_some_and(|authority| !host::is_same(authority, host)) {
                return Err(invalid("Host is not the host of the request target"));
            }
            // The target's own goes first where there are two (RFC 9112 3.2.2, RFC 9113 8.3.1).
            host::canonical(of_target.unwrap_or(host))
        }
        // HTTP/2 has no `Host`, and HTTP/1.0 knows none.
        (None, Some(authority)) if version != Version::HTTP_11 => host::canonical(authority),
        (None, _) if version == Version::HTTP_10 => return Ok(()),
        (None, _) if version == Version::HTTP_2 => {
            return Err(LocalReply::new(Reason::HostMissing, "request has no authority"));
        }
        (None, _) => return Err(LocalReply::new(Reason::HostMissing, "request has no Host")),
    };
    if host.is_none_or(|host| host.as_bytes() != canonical.as_bytes()) {
        let canonical = HeaderValue::from_str(&canonical).map_err(|_| invalid("Host is not text"))?;
        request.headers_mut().insert(header::HOST, canonical);
    }
    Ok(())
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
        let table: [Case<'_>; 16] = [
            ("http://a/x?y", &[], Ok("http a /x?y a ")),
            ("http://a/x", &[("host", "A")], Ok("http a /x a ")),
            ("http://WEB:80/x", &[("host", "web.")], Ok("http web:80 /x web:80 ")),
            ("http://a;b/x", &[], Err(Reason::HostInvalid)),
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
        let table: [Case<'_>; 26] = [
            ("GET", "/a//b/../%2e?x=%00&y=//../", &host, Ok("/a/?x=%00&y=//../")),
            ("GET", "/a%2Fb", &host, Err(Reason::PathAmbiguous)),
            ("GET", "http://a?x", &host, Ok("/?x")),
            ("GET", "http://a#x", &host, Ok("/")),
            ("GET", "http://a//x", &host, Ok("/x")),
            ("GET", "ftp://a/", &host, Err(Reason::TargetInvalid)),
            ("GET", "http://a:80/x", &host, Ok("/x")),
            ("GET", "http://a:81/x", &host, Err(Reason::HostInvalid)),
            ("GET", "/", &[("host", "")], Err(Reason::HostInvalid)),
            ("PUT", "/", &[("host", "a"), ("expect", "100-Continue")], Ok("/")),
            ("PUT", "/", &[("host", "a"), ("expect", "100-continue, x")], Err(Reason::Expectation)),
            (
                "PUT",
                "/",
                &[("host", "a"), ("content-length", "1"), ("content-length", "1")],
                Err(Reason::FramingConflict),
            ),
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
