//! What happens to a request that a route takes: where it goes, and what is done to it on the way.
//!
//! A front end says it as a [`RuleIr`]; a plan holds it as a [`Rule`], which adds the live endpoints.

use std::{fmt, sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue, StatusCode};
use serde::{Serialize, Serializer};

use crate::{
    ir::BackendIr,
    names::{ObjectRef, ServiceAccountKey},
    split::{Backend, Split},
};

/// What happens to a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleIr {
    /// The object that says so: an HTTPRoute, a TrafficSplit, the Service itself.
    pub origin: ObjectRef,
    /// Which of its rules, as its author knows it: the rule's name or place (`rules[0]`). Empty where the object has only one.
    pub name: Arc<str>,
    /// Where it goes.
    pub action: ActionIr,
    /// What is done to it; `None` for nothing.
    pub filters: Option<Box<Filters>>,
    /// Who gets a copy.
    pub mirrors: Vec<MirrorIr>,
}

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum ActionIr {
    /// To one of these.
    Forward {
        /// Those that take a share, in the order of the object.
        backends: Vec<BackendIr>,
        /// Whether a backend's share is its own even while it has no ready endpoint (Gateway API), instead of the others' (SMI).
        keeps_shares: bool,
    },
    /// Back to the client, which is sent elsewhere.
    Redirect(Redirect),
    /// Back to the client, with an error.
    Refuse(Refusal),
}

/// A Service that gets copies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MirrorIr {
    /// The Service; its weight means nothing.
    pub backend: BackendIr,
    /// Of how many requests.
    pub share: Fraction,
}

/// Why a rule answers requests with an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Refusal {
    /// The Service has routes, and none of them takes the request: 404.
    NoRoute,
    /// The rule cannot be carried out, for this reason: 500.
    Invalid(Arc<str>),
}

/// What is done to a request and its response.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Filters {
    /// To the request's fields.
    pub request: HeaderEdits,
    /// To the response's fields.
    pub response: HeaderEdits,
    /// To the request's `Host` and path.
    pub rewrite: Rewrite,
    /// To requests of scripts of other origins.
    pub cors: Option<Arc<Cors>>,
    /// How long it may take.
    pub timeouts: Timeouts,
    /// Whether it is tried again.
    pub retry: Option<Arc<Retry>>,
    /// What goes wrong on purpose.
    pub fault: Option<Arc<Fault>>,
}

/// Changes of the fields of a message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HeaderEdits {
    /// In place of all of the same name.
    pub set: Vec<Field>,
    /// Beside those of the same name.
    pub add: Vec<Field>,
    /// Taken out.
    #[serde(serialize_with = "names")]
    pub remove: Vec<HeaderName>,
}

/// Changes of the fields of one backend's share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BackendHeaders {
    /// To the request's fields, after those of its rule.
    pub request: HeaderEdits,
    /// To the response's fields, before those of its rule.
    pub response: HeaderEdits,
}

/// A field of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Name.
    pub name: HeaderName,
    /// Value.
    pub value: HeaderValue,
}

/// Where a client is sent (RFC 9110 15.4). What is not given stays as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Redirect {
    /// Scheme.
    pub scheme: Option<Arc<str>>,
    /// Host.
    pub host: Option<Arc<str>>,
    /// Port; the scheme's own if `scheme` is given and this is not.
    pub port: Option<u16>,
    /// Path.
    pub path: Option<PathChange>,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// Changes of what a request is for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rewrite {
    /// New `Host`.
    pub host: Option<Arc<str>>,
    /// New path.
    pub path: Option<PathChange>,
}

/// A new path; the query stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum PathChange {
    /// This one.
    Full(Arc<str>),
    /// This one in place of the prefix that the route matched.
    Prefix(Arc<str>),
}

/// How long things may take; `None` for as long as they want.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Timeouts {
    /// From the request's head to the end of its response (GEP-1742 `request`), retries included.
    pub request: Option<Duration>,
    /// Each try, from when it is sent to the response's end (`backendRequest`).
    pub backend_request: Option<Duration>,
}

/// When a request is tried again (GEP-1731).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Retry {
    /// Statuses of a response after which it is.
    pub codes: Vec<u16>,
    /// How often at most, the first time not counted.
    pub attempts: u32,
    /// Shortest pause before the first; each further one is twice as long, with jitter.
    pub backoff: Duration,
}

/// A part of all requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Fraction {
    /// At most the denominator.
    pub numerator: u32,
    /// Not zero.
    pub denominator: u32,
}

/// What scripts of other origins may do (Fetch Standard, 3.2).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cors {
    /// Origins, `scheme://host[:port]`; a host may begin with `*.`; `*` for any.
    pub origins: Vec<Arc<str>>,
    /// Whether credentials may be sent.
    pub credentials: bool,
    /// Methods; `*` for any.
    pub methods: Vec<Arc<str>>,
    /// Fields of requests; `*` for any.
    pub headers: Vec<Arc<str>>,
    /// Fields of responses that a script may see; `*` for all.
    pub expose: Vec<Arc<str>>,
    /// How long an answer to a preflight holds.
    pub max_age: Duration,
}

/// What goes wrong on purpose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The object that asks for it.
    pub origin: ObjectRef,
    /// Only for clients with these service accounts (`namespace/name`); empty for all.
    pub sources: Vec<ServiceAccountKey>,
    /// A pause before anything else.
    pub delay: Option<Delay>,
    /// An end instead of an answer.
    pub abort: Option<Abort>,
}

/// A pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Delay {
    /// At least.
    pub fixed: Duration,
    /// And at most so much more, uniformly.
    pub jitter: Duration,
    /// Of how many requests.
    pub share: Fraction,
}

/// An end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Abort {
    /// How.
    pub how: AbortHow,
    /// Of how many requests.
    pub share: Fraction,
}

/// How a request is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum AbortHow {
    /// A response with this status.
    Http(u16),
    /// A gRPC response with this status.
    Grpc(u16),
    /// The connection or stream is reset.
    Reset,
}

/// What a plan does with a request.
#[derive(Debug)]
pub struct Rule {
    /// As it was said.
    pub ir: Arc<RuleIr>,
    /// Where it goes.
    pub action: Action,
    /// Who gets a copy, in the order of [`RuleIr::mirrors`].
    pub mirrors: Box<[Backend]>,
}

/// Where a request goes.
#[derive(Clone, Debug)]
pub enum Action {
    /// To a backend.
    Forward(Arc<Split>),
    /// Back to the client, which is sent elsewhere.
    Redirect(Redirect),
    /// Back to the client, with an error.
    Refuse(Refusal),
}

impl RuleIr {
    /// One that only chooses a backend.
    #[must_use]
    pub fn forward(origin: ObjectRef, backends: Vec<BackendIr>) -> Self {
        let action = ActionIr::Forward { backends, keeps_shares: false };
        Self { origin, name: "".into(), action, filters: None, mirrors: Vec::new() }
    }

    /// Those that take a share; none if it answers by itself.
    #[must_use]
    pub fn backends(&self) -> &[BackendIr] {
        match &self.action {
            ActionIr::Forward { backends, .. } => backends,
            ActionIr::Redirect(_) | ActionIr::Refuse(_) => &[],
        }
    }
}

impl Rule {
    /// Whether it does nothing but choose a backend.
    #[must_use]
    pub fn only_chooses(&self) -> bool {
        self.ir.filters.is_none() && self.mirrors.is_empty()
    }

    /// The split that it chooses from, if it forwards.
    #[must_use]
    pub fn split(&self) -> Option<&Arc<Split>> {
        match &self.action {
            Action::Forward(split) => Some(split),
            Action::Redirect(_) | Action::Refuse(_) => None,
        }
    }

    /// The object and its rule, for people: `HTTPRoute shop/web, rules[0]`.
    #[must_use]
    pub fn name(&self) -> String {
        if self.ir.name.is_empty() {
            self.ir.origin.to_string()
        } else {
            format!("{}, {}", self.ir.origin, self.ir.name)
        }
    }
}

impl Fraction {
    /// All of them.
    pub const ALL: Self = Self { numerator: 1, denominator: 1 };

    /// Whether `random`, uniform over all 32-bit numbers, falls into it.
    #[must_use]
    pub fn takes(self, random: u32) -> bool {
        u64::from(random) * u64::from(self.denominator) < u64::from(self.numerator) << 32
    }
}

/// Fields that no rule changes: they frame a message, concern one connection, or are the mesh's own. `Host` is changed by a rewrite.
const PROTECTED: [&str; 12] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-forwarded-client-cert",
];

/// Whether a rule may not change a field; an edit of it has no effect.
#[must_use]
pub fn is_protected(name: &HeaderName) -> bool {
    let name = name.as_str();
    name.starts_with("weft-") || name.starts_with("x-weft-") || PROTECTED.contains(&name)
}

impl HeaderEdits {
    /// Whether nothing is changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }
}

impl Refusal {
    /// The status that says it.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::Invalid(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl Serialize for Field {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.name.as_str(), String::from_utf8_lossy(self.value.as_bytes())).serialize(serializer)
    }
}

fn names<S: Serializer>(names: &[HeaderName], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(names.iter().map(HeaderName::as_str))
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRoute => f.write_str("no rule of its routes takes this request"),
            Self::Invalid(why) => f.write_str(why),
        }
    }
}
