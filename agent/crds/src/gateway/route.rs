//! HTTPRoute and GRPCRoute: what requests to a Service they take, and what happens to those.

use std::{fmt, sync::Arc};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use weft_policy::{
    ir::{PathIr, ValueIr},
    names::{ObjectRef, ServiceKey},
    rule::{BackendHeaders, Filters, Fraction, Redirect},
};

use crate::object::{Kind, Meta};

/// A route of either kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Metadata.
    pub meta: Meta,
    /// Which kind.
    pub kind: RouteKind,
    /// The Services among its parents; others are not for a mesh.
    pub parents: Vec<Parent>,
    /// What it does, in its order.
    pub rules: Vec<RouteRule>,
    /// What it says beside that, to no effect: field and message.
    pub ignored: Vec<(String, String)>,
}

/// The kinds of routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteKind {
    /// GRPCRoute. It comes before HTTPRoute at one port of one Service (GEP-1426).
    Grpc,
    /// HTTPRoute.
    Http,
}

/// A Service that a route is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent {
    /// Place in `spec.parentRefs`.
    pub index: usize,
    /// The Service.
    pub service: ServiceKey,
    /// Only this port of it.
    pub port: Option<u16>,
    /// Only the port of this name.
    pub section: Option<Arc<str>>,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteRule {
    /// `spec.rules[].name`.
    pub name: Option<Arc<str>>,
    /// Any of these must hold; never empty.
    pub matches: Vec<RouteMatch>,
    /// What is done to requests, or why that cannot be done.
    pub filters: Result<RuleFilters, BadFilter>,
    /// Who answers.
    pub backends: Vec<RouteBackend>,
}

/// One condition on requests: all that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteMatch {
    /// Path; `None` for any.
    pub path: Option<PathIr>,
    /// Method; `None` for any.
    pub method: Option<Arc<str>>,
    /// Lower-case names of headers, and what they must be.
    pub headers: Vec<(Arc<str>, ValueIr)>,
    /// Names of query parameters, and what they must be.
    pub query: Vec<(Arc<str>, ValueIr)>,
    /// Its place among others by what the specification ranks them by; lower comes first.
    pub rank: Rank,
}

/// What matches are ranked by, before the age of their routes. Each number is such that lower comes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// An exact path comes before a regex, and that before a prefix. The specification leaves the place of a regex open.
    pub kind: u8,
    /// Characters of the path or the gRPC service, from many to few.
    pub characters: std::cmp::Reverse<usize>,
    /// One for a method; characters of a gRPC method.
    pub method: std::cmp::Reverse<usize>,
    /// Headers.
    pub headers: std::cmp::Reverse<usize>,
    /// Query parameters.
    pub query: std::cmp::Reverse<usize>,
}

/// What a rule does to its requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleFilters {
    /// All that happens on the way.
    pub filters: Filters,
    /// Instead of a backend.
    pub redirect: Option<Redirect>,
    /// Who gets copies.
    pub mirrors: Vec<Mirror>,
    /// Filters that are objects of their own.
    pub extensions: Vec<Extension>,
    /// What is changed of what was asked for: field (inside the rule) and message.
    pub notes: Vec<(String, String)>,
}

/// A filter that cannot be carried out. Its rule, or its backend, answers with an error instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadFilter {
    /// Inside the rule: `filters[0].urlRewrite.path`.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// Reason, as conditions have it.
    pub reason: &'static str,
}

/// A Service that gets copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// Inside the rule: `filters[0].requestMirror.backendRef`.
    pub field: String,
    /// Which.
    pub target: Target,
    /// Of how many requests.
    pub share: Fraction,
}

/// A filter that is an object of its own, in the route's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    /// Inside the rule: `filters[0].extensionRef`.
    pub field: String,
    /// API group.
    pub group: Arc<str>,
    /// Kind.
    pub kind: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

/// Who answers a share of the requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteBackend {
    /// Who.
    pub target: Target,
    /// Share, relative to the others'.
    pub weight: u64,
    /// What is changed in its share only, or why that cannot be done.
    pub headers: Result<Option<Arc<BackendHeaders>>, BadFilter>,
}

/// What a reference names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// API group; empty for the core group.
    pub group: Arc<str>,
    /// Kind.
    pub kind: Arc<str>,
    /// Namespace and name.
    pub service: ServiceKey,
    /// Port; always given for a Service.
    pub port: Option<u16>,
}

impl RouteKind {
    /// As a kind of object.
    #[must_use]
    pub fn kind(self) -> Kind {
        match self {
            Self::Grpc => Kind::GrpcRoute,
            Self::Http => Kind::HttpRoute,
        }
    }
}

impl Route {
    /// One that is not for a mesh.
    pub(crate) fn of_others(kind: RouteKind, meta: ObjectMeta) -> Self {
        let meta = Meta::new(kind.kind(), meta);
        Self { meta, kind, parents: Vec::new(), rules: Vec::new(), ignored: Vec::new() }
    }

    /// The reference that findings carry.
    #[must_use]
    pub fn object(&self) -> ObjectRef {
        ObjectRef::new(self.kind.kind().as_str(), &self.meta.namespace, &self.meta.name)
    }

    /// Every Service that a rule names, to answer or to get copies, whether it may or not.
    pub fn targets(&self) -> impl Iterator<Item = &Target> {
        self.rules.iter().flat_map(|rule| {
            let mirrors = mirrors_of(rule).iter().map(|mirror| &mirror.target);
            rule.backends.iter().map(|backend| &backend.target).chain(mirrors)
        })
    }
}

fn mirrors_of(rule: &RouteRule) -> &[Mirror] {
    rule.filters.as_ref().map_or(&[], |filters| &filters.mirrors)
}

impl Target {
    /// Whether it is a Service of Kubernetes.
    #[must_use]
    pub fn is_service(&self) -> bool {
        self.group.is_empty() && &*self.kind == "Service"
    }
}

impl BadFilter {
    pub(crate) fn new(field: impl Into<String>, reason: &'static str, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into(), reason }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{} {}:{port}", self.kind, self.service),
            None => write!(f, "{} {}", self.kind, self.service),
        }
    }
}
