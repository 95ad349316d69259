//! Why a connection or a request goes where it goes, and whether it may: asked of the very plans that carry traffic.
//!
//! Nothing is decided here. Routes are found by the matcher, shares by the split, verdicts by the inbound plan; this only says what
//! each of them answered, and for every TrafficTarget that selects the destination why it grants or does not.

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde::{Deserialize, Serialize};

use crate::{
    compile::Compiler,
    diagnostic::Diagnostic,
    names::{ObjectRef, ServiceAccountKey, ServiceKey},
    path,
    plan::AppProtocol,
};

mod access;
mod resolve;
mod route;

pub use access::Outcome;

/// What somebody wants to know.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Question {
    /// Who asks: `namespace/pod`, `sa:namespace/account`, or `outside`.
    pub source: String,
    /// What for: `namespace/service`, `service.namespace`, a pod, `IP:port`; a port behind a colon.
    pub destination: String,
    /// Namespace of names that have none.
    pub namespace: String,
    /// The request; `None` for the connection alone.
    pub request: Option<RequestQuestion>,
    /// Datagrams instead of a connection.
    #[serde(default)]
    pub udp: bool,
}

/// The request that somebody wants to know about.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RequestQuestion {
    /// Method.
    pub method: String,
    /// Path, with or without a query.
    pub path: String,
    /// Names and values.
    pub headers: Vec<(String, String)>,
}

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuestionError {
    /// The source is none that is known.
    #[error("source {0:?}: {1}")]
    Source(String, String),
    /// The destination is none that is known.
    #[error("destination {0:?}: {1}")]
    Destination(String, String),
    /// The request is none.
    #[error("request: {0}")]
    Request(String),
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// What it all comes to.
    pub outcome: Outcome,
    /// The same in a sentence.
    pub summary: String,
    /// Who asks.
    pub source: SourceAnswer,
    /// What is asked for.
    pub destination: DestinationAnswer,
    /// The rule that takes it; `None` for a pod's own address.
    pub route: Option<RouteAnswer>,
    /// Where it may go, and what is said there.
    pub backends: Vec<BackendAnswer>,
    /// What else matters.
    pub notes: Vec<String>,
    /// Findings about the objects that are named here.
    pub findings: Vec<FindingAnswer>,
}

/// Something that the author of a named object should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FindingAnswer {
    /// The object.
    pub object: ObjectRef,
    /// Path of the field; empty for the whole object.
    pub field: String,
    /// Stable word.
    pub code: String,
    /// What is wrong, and what is done about it.
    pub message: String,
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceAnswer {
    /// For people: `pod shop/client, service account shop/client`.
    pub text: String,
    /// The service account, if the source has one.
    pub account: Option<ServiceAccountKey>,
    /// Node of the pod.
    pub node: Option<String>,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DestinationAnswer {
    /// The Service, or the pod.
    pub object: ObjectRef,
    /// Its port.
    pub port: u16,
    /// What the port speaks.
    pub protocol: AppProtocol,
    /// Whether datagrams are asked for.
    #[serde(default)]
    pub udp: bool,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteAnswer {
    /// The TrafficSplit or route, or the Service itself.
    pub origin: ObjectRef,
    /// Which of its rules; empty where it has only one.
    #[serde(default)]
    pub rule: String,
    /// What it does beside forwarding, one thing each.
    #[serde(default)]
    pub does: Vec<String>,
    /// Its conditions.
    pub matches: String,
    /// Rules that come before it and did not match.
    pub passed_over: Vec<PassedOver>,
}

/// A rule that did not match.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassedOver {
    /// The TrafficSplit or route.
    pub origin: ObjectRef,
    /// Which of its rules; empty where it has only one.
    #[serde(default)]
    pub rule: String,
    /// Its conditions.
    pub matches: String,
}

/// A Service that takes a share; for a pod's own address the pod itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackendAnswer {
    /// The Service; `None` for a pod's own address.
    pub service: Option<ServiceKey>,
    /// The Service port.
    pub port: u16,
    /// Weight as compiled.
    pub weight: u64,
    /// Share of the traffic now, percent.
    pub share_percent: f64,
    /// Endpoints that take new connections.
    pub endpoints: Vec<EndpointAnswer>,
}

/// One endpoint, and the verdict on its inbound side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointAnswer {
    /// Where.
    pub address: String,
    /// `namespace/pod`, if known.
    pub pod: Option<String>,
    /// Its service account, if known.
    pub account: Option<ServiceAccountKey>,
    /// What is decided here.
    pub outcome: Outcome,
    /// Why, with the object behind it.
    pub basis: String,
    /// Each TrafficTarget that selects the pod.
    pub targets: Vec<TargetAnswer>,
}

/// What one TrafficTarget says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetAnswer {
    /// The TrafficTarget.
    pub origin: ObjectRef,
    /// Whether it grants this.
    pub grants: bool,
    /// Why, or what is missing.
    pub why: String,
}

/// A request that is well-formed.
pub(crate) struct Request {
    method: Method,
    /// In the form in which rules see it.
    path: String,
    query: Option<String>,
    headers: HeaderMap,
    /// Whether that is another form than the one that was given.
    changed: bool,
}

impl Request {
    fn new(question: &RequestQuestion) -> Result<Self, QuestionError> {
        let error = |message: String| QuestionError::Request(message);
        let method = Method::from_bytes(question.method.as_bytes())
            .map_err(|_| error(format!("{:?} is no method", question.method)))?;
        if method == Method::CONNECT {
            return Err(error("CONNECT is refused as a bad request, whoever asks".to_owned()));
        }
        // As the proxy does it before anything looks at a request.
        let (given, query) = match question.path.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (&*question.path, None),
        };
        let canonical = path::canonical(given)
            .map_err(|why| error(format!("{given:?} is refused as a bad request, whoever asks: {why}")))?;
        let changed = canonical.is_some();
        let path = canonical.unwrap_or_else(|| given.to_owned());
        let mut headers = HeaderMap::new();
        for (name, value) in &question.headers {
            let header = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| error(format!("{name:?} is no name of a header")))?;
            let value = HeaderValue::from_str(value)
                .map_err(|_| error(format!("the value of header {name:?} is none that HTTP allows")))?;
            headers.append(header, value);
        }
        Ok(Self { method, path, query, headers, changed })
    }
}

/// Answers from the plans that a compiler holds. A path is read as the proxy reads it.
///
/// # Errors
/// When the question names something that is not known, or asks for no request that could exist.
pub fn explain(compiler: &Compiler, question: &Question) -> Result<Answer, QuestionError> {
    let source = resolve::source(compiler.ir(), question)?;
    let destination = resolve::destination(compiler, question)?;
    let request = question.request.as_ref().map(Request::new).transpose()?;
    if question.udp {
        if request.is_some() {
            return Err(QuestionError::Request("datagrams carry no requests".to_owned()));
        }
        if matches!(destination, resolve::Target::Service(_)) {
            let why = "datagrams are decided at pods, not at Services: give POD:PORT, or the pod's IP:PORT";
            return Err(QuestionError::Destination(question.destination.clone(), why.to_owned()));
        }
    }
    let mut notes = Vec::new();
    if let Some(request) = request.as_ref().filter(|request| request.changed) {
        notes.push(format!("rules and the server see the path {}", request.path));
    }
    let carried = destination.protocol() != AppProtocol::Tcp && destination.protocol() != AppProtocol::Tls;
    if request.is_some() && !carried {
        notes.push(format!(
            "port {} is declared to be {}: weft does not look into it, and no request is seen",
            destination.port(),
            destination.protocol().as_str()
        ));
    }
    let strict = &compiler.snapshot().strict;
    if let Some(object) = source.namespace().and_then(|namespace| strict.get(namespace))
        && strict.get(destination.namespace()).is_none()
    {
        notes.push(format!(
            "{object} takes mutual TLS only, which is about what its own pods take: what they send is encrypted if the destination takes that"
        ));
    }
    let request = request.filter(|_| carried);
    let (route, backends) = route::follow(&destination, &source, request.as_ref(), &mut notes);
    let asked =
        access::Asked { compiler, source: &source, request: request.as_ref(), opaque: !carried, udp: question.udp };
    let backends: Vec<BackendAnswer> = backends.into_iter().map(|backend| asked.backend(backend, &mut notes)).collect();
    let (outcome, summary) = access::sum(&backends);
    let mut named: Vec<&ObjectRef> = route.iter().map(|route| &route.origin).collect();
    let endpoints = backends.iter().flat_map(|backend| &backend.endpoints);
    named.extend(endpoints.flat_map(|endpoint| endpoint.targets.iter().map(|target| &target.origin)));
    let findings = compiler.diagnostics().into_iter().filter(|finding| named.contains(&&finding.object));
    let findings = findings.map(|Diagnostic { object, code, field, message, .. }| FindingAnswer {
        object,
        field,
        code: code.to_owned(),
        message,
    });
    let findings = findings.collect();
    notes.dedup();
    Ok(Answer {
        outcome,
        summary,
        source: source.answer(),
        destination: DestinationAnswer { udp: question.udp, ..destination.answer() },
        route,
        backends,
        notes,
        findings,
    })
}
