//! What agents tell each other about a request, beside the request itself. Only what came with a proved identity is read, and it never
//! reaches an application.

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

/// The version of HTTP that the application is to be spoken to in: a client's own, unless its port says otherwise.
const VERSION: HeaderName = HeaderName::from_static("weft-http-version");
/// The method of a request that asks for another protocol: between agents it is CONNECT.
const METHOD: HeaderName = HeaderName::from_static("weft-method");
/// The protocol that the application has switched to.
const PROTOCOL: HeaderName = HeaderName::from_static("weft-protocol");
/// The status of an application that has not switched protocols: to a CONNECT any success would say that it has (RFC 9110 9.3.6).
const STATUS: HeaderName = HeaderName::from_static("weft-status");
/// Who the client is, for applications (Envoy's `x-forwarded-client-cert`).
const CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// Says which version the application speaks.
pub(crate) fn set_version(headers: &mut HeaderMap, http2: bool) {
    headers.insert(VERSION, HeaderValue::from_static(if http2 { "2" } else { "1" }));
}

/// Whether the application is to be spoken to in HTTP/2. Without a word it is what the agents speak.
pub(crate) fn is_http2(headers: &HeaderMap) -> bool {
    headers.get(VERSION).is_none_or(|version| version != "1")
}

/// Tells the application who its client is.
pub(crate) fn set_client_cert(headers: &mut HeaderMap, client: &HeaderValue) {
    headers.insert(CLIENT_CERT, client.clone());
}

/// Says which method a client used.
pub(crate) fn set_method(headers: &mut HeaderMap, method: &Method) {
    if let Ok(method) = HeaderValue::from_str(method.as_str()) {
        headers.insert(METHOD, method);
    }
}

/// The method that a client used; that of nearly all upgrades, if nothing is said.
pub(crate) fn method(headers: &HeaderMap) -> Method {
    headers.get(METHOD).and_then(|method| Method::from_bytes(method.as_bytes()).ok()).unwrap_or(Method::GET)
}

/// Says what an application has switched to.
pub(crate) fn set_protocol(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(PROTOCOL, protocol);
}

/// What an application has switched to.
pub(crate) fn take_protocol(headers: &mut HeaderMap) -> Option<HeaderValue> {
    headers.remove(PROTOCOL)
}

/// Says which status an application has given.
pub(crate) fn set_status(headers: &mut HeaderMap, status: StatusCode) {
    headers.insert(STATUS, HeaderValue::from(status.as_u16()));
}

/// The status that an application has given, where that was not the answer's own.
pub(crate) fn take_status(headers: &mut HeaderMap) -> Option<StatusCode> {
    StatusCode::from_bytes(headers.remove(STATUS)?.as_bytes()).ok()
}
