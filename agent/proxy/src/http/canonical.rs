//! What a request must be before anything routes it, so that weft and the application read the same request. The one place for such
//! rules; whatever it lets through is forwarded as it came.

use http::{Method, Request, Uri, Version, header, uri::PathAndQuery};

use crate::{
    http::scan::Fault,
    reply::{LocalReply, Reason},
};

/// Checks a request, and gives the target to send upstream: the same path and query, byte for byte.
pub(crate) fn check<B>(request: &Request<B>, fault: Option<Fault>) -> Result<Uri, LocalReply> {
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
    let target = target(request)?;
    host(request)?;
    Ok(target)
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
        // HTTP/1.0 knows no Host.
        return if request.version() == Version::HTTP_10 {
            Ok(())
        } else {
            Err(LocalReply::new(Reason::HostMissing, "request has no Host"))
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
        check(&request.body(()).unwrap(), None).map(|uri| uri.to_string()).map_err(|reply| reply.reason)
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
