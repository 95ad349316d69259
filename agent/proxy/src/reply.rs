//! Answers that the mesh itself makes. Every one has a header `weft-reason` with a stable word and one line that says who and why.

use std::fmt;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

use weft_policy::rule::AbortHow;

use crate::{access::Denial, http::grpc};

/// The header that tells the mesh's own answers from an application's.
pub const REASON_HEADER: HeaderName = HeaderName::from_static("weft-reason");

/// Why the mesh answered by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// No backend of the split has a ready endpoint.
    NoEndpoints,
    /// Every backend of the split has weight zero or does not exist.
    SplitZero,
    /// Connecting failed, to every endpoint that was tried.
    ConnectFailed,
    /// The Service or pod of a live connection is gone.
    DestinationGone,
    /// The worker's bound on dials was met for longer than a connect may take.
    DialsExhausted,
    /// The upstream connection ended before a response.
    UpstreamReset,
    /// The upstream's response breaks the protocol.
    UpstreamProtocol,
    /// The destination's inbound policy denies it.
    Denied,
    /// The request cannot be parsed.
    MalformedRequest,
    /// The request's body cannot be parsed.
    MalformedBody,
    /// The client ended the connection before the end of the request's body.
    BodyIncomplete,
    /// No `Host`.
    HostMissing,
    /// Several `Host` fields, or one that cannot be read or is not the target's.
    HostInvalid,
    /// Both `Content-Length` and `Transfer-Encoding`.
    FramingConflict,
    /// A transfer coding other than one `chunked`.
    TransferCoding,
    /// The request target is none that a server takes.
    TargetInvalid,
    /// Servers read the request's path in different ways.
    PathAmbiguous,
    /// An `Expect` other than one `100-continue`.
    Expectation,
    /// `Connection` names a field that is not its to name.
    ConnectionInvalid,
    /// The request's head is too large.
    HeadTooLarge,
    /// The request's target is too long.
    TargetTooLong,
    /// The request's head took too long.
    HeadTimeout,
    /// `CONNECT`.
    ConnectMethod,
    /// All HTTP/2 connections to the endpoint are full of requests.
    StreamsExhausted,
    /// An upgrade, on a port that is declared to speak HTTP/2.
    UpgradeOverHttp2,
    /// A gRPC call, on a port that is declared to speak HTTP/1.1.
    GrpcOverHttp1,
    /// The destination takes mutual TLS only, and its agent does not.
    MtlsRequired,
    /// The destination takes mutual TLS, and the client's service account has no certificate.
    NoCertificate,
    /// Mutual TLS failed, with every endpoint that was tried.
    TlsFailed,
    /// The Service has routes, and none takes the request.
    NoRoute,
    /// The route's rule, or the backend that it chose, cannot be carried out.
    RuleInvalid,
    /// The route's rule sends the client elsewhere.
    Redirect,
    /// The route's rule answers a preflight (Fetch Standard, 3.2.2).
    CorsPreflight,
    /// The response was not over within the time that the route's rule gives a request.
    RequestTimeout,
    /// The same for one try.
    BackendTimeout,
    /// A fault that was asked for.
    FaultAbort,
    /// The response was not over within the time that its client gives.
    DeadlineExceeded,
}

impl Reason {
    pub(crate) const ALL: [Self; 37] = [
        Self::NoEndpoints,
        Self::SplitZero,
        Self::ConnectFailed,
        Self::DestinationGone,
        Self::DialsExhausted,
        Self::UpstreamReset,
        Self::UpstreamProtocol,
        Self::Denied,
        Self::MalformedRequest,
        Self::MalformedBody,
        Self::BodyIncomplete,
        Self::HostMissing,
        Self::HostInvalid,
        Self::FramingConflict,
        Self::TransferCoding,
        Self::TargetInvalid,
        Self::PathAmbiguous,
        Self::Expectation,
        Self::ConnectionInvalid,
        Self::HeadTooLarge,
        Self::TargetTooLong,
        Self::HeadTimeout,
        Self::ConnectMethod,
        Self::StreamsExhausted,
        Self::UpgradeOverHttp2,
        Self::GrpcOverHttp1,
        Self::MtlsRequired,
        Self::NoCertificate,
        Self::TlsFailed,
        Self::NoRoute,
        Self::RuleInvalid,
        Self::Redirect,
        Self::CorsPreflight,
        Self::RequestTimeout,
        Self::BackendTimeout,
        Self::FaultAbort,
        Self::DeadlineExceeded,
    ];

    /// The word in `weft-reason` and in metrics.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::NoEndpoints => "no_endpoints",
            Self::SplitZero => "split_zero",
            Self::ConnectFailed => "connect_failed",
            Self::DestinationGone => "destination_gone",
            Self::DialsExhausted => "dials_exhausted",
            Self::UpstreamReset => "upstream_reset",
            Self::UpstreamProtocol => "upstream_protocol",
            Self::Denied => "denied",
            Self::MalformedRequest => "malformed_request",
            Self::MalformedBody => "malformed_body",
            Self::BodyIncomplete => "body_incomplete",
            Self::HostMissing => "host_missing",
            Self::HostInvalid => "host_invalid",
            Self::FramingConflict => "framing_conflict",
            Self::TransferCoding => "transfer_coding",
            Self::TargetInvalid => "target_invalid",
            Self::PathAmbiguous => "path_ambiguous",
            Self::Expectation => "expectation",
            Self::ConnectionInvalid => "connection_invalid",
            Self::HeadTooLarge => "head_too_large",
            Self::TargetTooLong => "target_too_long",
            Self::HeadTimeout => "head_timeout",
            Self::ConnectMethod => "connect_method",
            Self::StreamsExhausted => "streams_exhausted",
            Self::UpgradeOverHttp2 => "upgrade_over_http2",
            Self::GrpcOverHttp1 => "grpc_over_http1",
            Self::MtlsRequired => "mtls_required",
            Self::NoCertificate => "no_certificate",
            Self::TlsFailed => "tls_failed",
            Self::NoRoute => "no_route",
            Self::RuleInvalid => "rule_invalid",
            Self::Redirect => "redirect",
            Self::CorsPreflight => "cors_preflight",
            Self::RequestTimeout => "request_timeout",
            Self::BackendTimeout => "backend_timeout",
            Self::FaultAbort => "fault_abort",
            Self::DeadlineExceeded => "deadline_exceeded",
        }
    }

    /// The one that an answer carries, if it is the mesh's own.
    pub(crate) fn said(fields: &HeaderMap) -> Option<Self> {
        let word = fields.get(REASON_HEADER)?;
        Self::ALL.into_iter().find(|reason| reason.word().as_bytes() == word.as_bytes())
    }

    /// The status that goes with it, unless a rule says which.
    #[must_use]
    pub fn status(self) -> StatusCode {
        match self {
            Self::NoEndpoints
            | Self::SplitZero
            | Self::ConnectFailed
            | Self::DestinationGone
            | Self::DialsExhausted
            | Self::StreamsExhausted
            | Self::MtlsRequired
            | Self::NoCertificate
            | Self::TlsFailed
            | Self::FaultAbort => StatusCode::SERVICE_UNAVAILABLE,
            Self::UpstreamReset | Self::UpstreamProtocol => StatusCode::BAD_GATEWAY,
            Self::Denied => StatusCode::FORBIDDEN,
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::RuleInvalid => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Redirect => StatusCode::FOUND,
            Self::CorsPreflight => StatusCode::NO_CONTENT,
            Self::RequestTimeout | Self::BackendTimeout | Self::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            Self::MalformedRequest
            | Self::MalformedBody
            | Self::BodyIncomplete
            | Self::HostMissing
            | Self::HostInvalid
            | Self::FramingConflict
            | Self::TargetInvalid
            | Self::PathAmbiguous
            | Self::ConnectionInvalid => StatusCode::BAD_REQUEST,
            Self::Expectation => StatusCode::EXPECTATION_FAILED,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::HeadTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::TransferCoding | Self::ConnectMethod | Self::UpgradeOverHttp2 | Self::GrpcOverHttp1 => {
                StatusCode::NOT_IMPLEMENTED
            }
        }
    }

    /// Whether the client's connection cannot be trusted after this: where its next request begins is not known.
    pub(crate) fn closes(self) -> bool {
        matches!(
            self,
            Self::MalformedRequest
                | Self::MalformedBody
                | Self::BodyIncomplete
                | Self::HostMissing
                | Self::HostInvalid
                | Self::FramingConflict
                | Self::TransferCoding
                | Self::TargetInvalid
                | Self::Expectation
                | Self::ConnectionInvalid
                | Self::HeadTooLarge
                | Self::TargetTooLong
                | Self::HeadTimeout
                | Self::ConnectMethod
        )
    }
}

/// An answer of the mesh's own.
#[derive(Debug)]
pub(crate) struct LocalReply {
    pub(crate) reason: Reason,
    /// What happened to what, as one line.
    pub(crate) detail: String,
    /// What was denied, where that is why.
    pub(crate) denial: Option<Box<Denial>>,
    /// What a rule says of it.
    terms: Option<Box<Terms>>,
}

/// What a rule says of an answer.
#[derive(Debug, Default)]
struct Terms {
    status: Option<StatusCode>,
    /// The status of a gRPC call.
    grpc: Option<u16>,
    /// It is no answer at all.
    reset: bool,
    fields: HeaderMap,
    /// It is no error: it has no body, and is one of HTTP whatever was asked.
    bare: bool,
}

impl LocalReply {
    pub(crate) fn new(reason: Reason, detail: impl fmt::Display) -> Self {
        Self { reason, detail: detail.to_string(), denial: None, terms: None }
    }

    /// That a destination does not take something.
    pub(crate) fn denied(denial: Box<Denial>) -> Self {
        Self { reason: Reason::Denied, detail: denial.to_string(), denial: Some(denial), terms: None }
    }

    /// An answer that is no error, and has no body.
    pub(crate) fn bare(reason: Reason, status: StatusCode, fields: HeaderMap, detail: impl fmt::Display) -> Self {
        let terms = Terms { status: Some(status), fields, bare: true, ..Terms::default() };
        Self { terms: Some(Box::new(terms)), ..Self::new(reason, detail) }
    }

    /// The end of a request that goes wrong on purpose.
    pub(crate) fn aborted(how: AbortHow, grpc: bool, detail: impl fmt::Display) -> Self {
        let mut terms = Terms::default();
        match how {
            AbortHow::Http(status) => {
                terms.status = StatusCode::from_u16(status).ok().filter(|status| !status.is_informational());
                // These have no content (RFC 9110 15.3.5, 15.4.5).
                terms.bare = matches!(status, 204 | 304);
            }
            AbortHow::Grpc(status) if grpc => terms.grpc = Some(status),
            AbortHow::Grpc(status) => terms.status = Some(grpc::http_for(status)),
            AbortHow::Reset => terms.reset = true,
        }
        Self { terms: Some(Box::new(terms)), ..Self::new(Reason::FaultAbort, detail) }
    }

    /// Whether the request is to end without an answer.
    pub(crate) fn is_reset(&self) -> bool {
        self.terms.as_ref().is_some_and(|terms| terms.reset)
    }

    /// The status that it has for a client of HTTP.
    pub(crate) fn status(&self) -> StatusCode {
        self.terms.as_ref().and_then(|terms| terms.status).unwrap_or_else(|| self.reason.status())
    }

    /// Fields that a rule adds.
    pub(crate) fn fields_mut(&mut self) -> &mut HeaderMap {
        &mut self.terms.get_or_insert_default().fields
    }

    /// The response; its body is given back beside it, because bodies have their own type.
    pub(crate) fn into_parts(self) -> (Response<()>, Bytes) {
        let mut response = Response::new(());
        *response.status_mut() = self.status();
        let bare = self.is_bare();
        let Terms { fields, .. } = self.terms.map(|terms| *terms).unwrap_or_default();
        *response.headers_mut() = fields;
        let headers = response.headers_mut();
        headers.insert(REASON_HEADER, HeaderValue::from_static(self.reason.word()));
        if bare {
            return (response, Bytes::new());
        }
        let body = Bytes::from(format!("weft: {}\n", self.detail));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if self.reason.closes() {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        (response, body)
    }
}

impl LocalReply {
    fn is_bare(&self) -> bool {
        self.terms.as_ref().is_some_and(|terms| terms.bare)
    }

    /// The same for a gRPC call, which reads its status from fields of its own.
    pub(crate) fn into_grpc(self) -> (Response<()>, Bytes) {
        if self.is_bare() {
            return self.into_parts();
        }
        let said = self.terms.as_ref().and_then(|terms| terms.grpc);
        let status = said.unwrap_or_else(|| match self.reason {
            Reason::RequestTimeout | Reason::BackendTimeout | Reason::DeadlineExceeded => grpc::DEADLINE_EXCEEDED,
            _ => grpc::status_for(self.status()),
        });
        let mut response = Response::new(());
        let Terms { fields, .. } = self.terms.map(|terms| *terms).unwrap_or_default();
        *response.headers_mut() = fields;
        response.headers_mut().insert(REASON_HEADER, HeaderValue::from_static(self.reason.word()));
        grpc::answer(&mut response, status, &format!("weft: {}", self.detail));
        if self.reason.closes() {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        (response, Bytes::new())
    }
}

/// The whole answer as it goes over the wire, for the few that are made where there is no request: the parser refused, or time ran out.
pub(crate) fn raw(reason: Reason, detail: &str) -> Bytes {
    let (status, word) = (reason.status(), reason.word());
    let length = "weft: \n".len() + detail.len();
    Bytes::from(format!(
        "HTTP/1.1 {status}\r\n{REASON_HEADER}: {word}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {length}\r\nconnection: close\r\n\r\nweft: {detail}\n"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_word_and_place() {
        let words: std::collections::HashSet<_> = Reason::ALL.iter().map(|reason| reason.word()).collect();
        assert_eq!(words.len(), Reason::ALL.len());
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index, "{reason:?} indexes another reason's counter");
            let no_error = matches!(reason, Reason::Redirect | Reason::CorsPreflight);
            assert!(no_error || reason.status().is_client_error() || reason.status().is_server_error());
        }
    }

    #[test]
    fn raw_reply_has_the_length_that_it_says() {
        let raw = raw(Reason::HeadTooLarge, "too much");
        let text = std::str::from_utf8(&raw).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 431 Request Header Fields Too Large\r\n"), "{head}");
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{head}");
    }
}
