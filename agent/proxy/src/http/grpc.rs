//! What is particular to gRPC (grpc/doc/PROTOCOL-HTTP2.md): how its calls are recognised, and how its statuses and those of HTTP
//! stand for each other.

use std::fmt::Write;

use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Whether a message is one of gRPC. gRPC-Web, which looks alike, is plain HTTP with its status in the body.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    let Some(kind) = headers.get(header::CONTENT_TYPE) else { return false };
    let Some(rest) = kind.as_bytes().strip_prefix(b"application/grpc") else { return false };
    matches!(rest.first(), None | Some(b'+' | b';' | b' '))
}

/// That a call took longer than it may (grpc/doc/statuscodes.md).
pub(crate) const DEADLINE_EXCEEDED: u16 = 4;

/// The gRPC status for an answer of the mesh (grpc/doc/http-grpc-status-mapping.md).
pub(crate) fn status_for(status: StatusCode) -> u16 {
    match status.as_u16() {
        400 | 417 | 431 => 13,
        401 => 16,
        403 => 7,
        404 | 501 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// The HTTP status whose class says what a gRPC status says: whether the call went well, or whose fault it was. `None` if there is
/// none. The numbers are those of grpc-gateway.
pub(crate) fn stands_for(fields: &HeaderMap) -> Option<StatusCode> {
    let status = fields.get(GRPC_STATUS)?;
    Some(match status.as_bytes() {
        b"0" => StatusCode::OK,
        // Cancelled, invalid argument, not found, already exists, permission denied, resource exhausted, failed precondition,
        // aborted, out of range, unauthenticated.
        b"1" | b"3" | b"5" | b"6" | b"7" | b"8" | b"9" | b"10" | b"11" | b"16" => StatusCode::BAD_REQUEST,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    })
}

/// The HTTP status that says what a gRPC status says, for those who do not read that one (google.rpc.Code).
pub(crate) fn http_for(status: u16) -> StatusCode {
    match status {
        0 => StatusCode::OK,
        3 | 9 | 11 => StatusCode::BAD_REQUEST,
        4 => StatusCode::GATEWAY_TIMEOUT,
        5 => StatusCode::NOT_FOUND,
        6 | 10 => StatusCode::CONFLICT,
        7 => StatusCode::FORBIDDEN,
        8 => StatusCode::TOO_MANY_REQUESTS,
        12 => StatusCode::NOT_IMPLEMENTED,
        14 => StatusCode::SERVICE_UNAVAILABLE,
        16 => StatusCode::UNAUTHORIZED,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Makes an answer of the mesh one of gRPC: a trailers-only response, which has no body.
pub(crate) fn answer(response: &mut Response<()>, status: u16, detail: &str) {
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    say(headers, status, detail);
}

/// Trailers that end a response which has begun.
pub(crate) fn trailers(status: u16, detail: &str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    say(&mut trailers, status, detail);
    trailers
}

fn say(fields: &mut HeaderMap, status: u16, detail: &str) {
    fields.insert(GRPC_STATUS, HeaderValue::from(status));
    if let Ok(message) = HeaderValue::from_str(&percent_encoded(detail)) {
        fields.insert(GRPC_MESSAGE, message);
    }
}

/// Bytes other than printable ASCII, and the percent sign, are percent-encoded.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'%' => encoded.push_str("%25"),
            b' '..=b'~' => encoded.push(byte as char),
            _ => _ = write!(encoded, "%{byte:02X}"),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_told_from_what_looks_alike() {
        for (kind, expect) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc; charset=utf-8", true),
            ("application/grpc-web", false),
            ("application/grpc-web+proto", false),
            ("application/json", false),
        ] {
            let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(kind))]);
            assert_eq!(is_grpc(&headers), expect, "{kind}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }

    #[test]
    fn every_reason_has_a_grpc_status() {
        use crate::reply::Reason;
        for reason in Reason::ALL {
            if matches!(reason, Reason::Redirect | Reason::CorsPreflight) {
                // Answers of HTTP to whoever asks.
                continue;
            }
            let expect = match reason.status().as_u16() {
                400 | 417 | 431 => 13,
                403 => 7,
                404 | 501 => 12,
                502..=504 => 14,
                // A head that is too slow or too long has no call to answer.
                408 | 414 => 2,
                500 => 2,
                other => panic!("{reason:?} has status {other}"),
            };
            assert_eq!(status_for(reason.status()), expect, "{reason:?}");
        }
    }

    #[test]
    fn messages_are_percent_encoded() {
        assert_eq!(percent_encoded("50% of shop/wéb\n"), "50%25 of shop/w%C3%A9b%0A");
    }

    #[test]
    fn statuses_of_calls_have_a_class() {
        for (status, expect) in [("0", 200), ("5", 400), ("14", 500), ("13", 500), ("99", 500)] {
            let fields = HeaderMap::from_iter([(GRPC_STATUS, HeaderValue::from_static(status))]);
            assert_eq!(stands_for(&fields).unwrap(), expect);
        }
        assert_eq!(stands_for(&HeaderMap::new()), None);
    }
}
