//! TrafficTarget, access.smi-spec.io v1alpha1 to v1alpha3 and the draft of v1alpha4.
//!
//! A target whose destination can be read is never refused as a whole: it goes on denying everybody else, and what is wrong with the
//! rest of it makes it grant nothing. So a typing error in an object that restricts access does not open what it protects.
//!
//! Every shape is read in every version, because an API server that does not convert serves what was written under any of them.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;
use weft_policy::{limits, names::ServiceAccountKey};

use super::shape::{self, Body};
use crate::{
    decode::{self, FieldError, Problems},
    object::{Kind, Meta},
    store::Name,
};

/// Who may say what to whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrafficTarget {
    /// Metadata.
    pub meta: Meta,
    /// To whom: in the target's own namespace.
    pub destination: Subject,
    /// What it gives, or else what is wrong with it, and then it gives nothing.
    pub grant: Result<TargetGrant, Vec<TargetProblem>>,
    /// What comes before the name of a field: `spec.`, or nothing where there is no spec.
    pub prefix: &'static str,
}

/// What a target gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetGrant {
    /// By whom.
    pub sources: Vec<Subject>,
    /// The port of the destination, where it says so itself (v1alpha1, v1alpha2).
    pub port: Option<u16>,
    /// What.
    pub rules: Vec<TargetRule>,
    /// How the list of rules is called: `rules`, or `specs` in v1alpha1.
    pub rules_field: &'static str,
}

/// What is wrong with one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetProblem {
    /// Path of the field.
    pub field: String,
    /// What is wrong.
    pub message: String,
}

/// A source or destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// `kind: ServiceAccount`.
    Account(ServiceAccountKey),
    /// `kind: IdentityBinding`, by namespace and name.
    Binding(Arc<str>, Arc<str>),
}

impl Subject {
    /// The service account, if it is one.
    #[must_use]
    pub fn account(&self) -> Option<&ServiceAccountKey> {
        match self {
            Self::Account(account) => Some(account),
            Self::Binding(..) => None,
        }
    }

    /// Namespace and name of the binding, if it is one.
    #[must_use]
    pub fn binding(&self) -> Option<Name> {
        match self {
            Self::Account(_) => None,
            Self::Binding(namespace, name) => Some((namespace.clone(), name.clone())),
        }
    }
}

/// One rule: a route in the target's own namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetRule {
    /// Kind of the route.
    pub kind: RouteKind,
    /// Its name.
    pub name: Arc<str>,
    /// The matches of an HTTPRouteGroup that are meant; `None` for all of them.
    pub matches: Option<Vec<Arc<str>>>,
}

/// What a rule may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteKind {
    /// HTTPRouteGroup.
    Http,
    /// TCPRoute.
    Tcp,
    /// UDPRoute.
    Udp,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Spec {
    #[serde(rename = "destination")]
    _destination: IgnoredAny,
    sources: Option<Vec<SubjectDocument>>,
    rules: Option<Vec<RuleDocument>>,
    specs: Option<Vec<RuleDocument>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct SubjectDocument {
    kind: String,
    name: String,
    namespace: Option<String>,
    group: Option<String>,
    api_group: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DestinationDocument {
    #[serde(rename = "kind")]
    _kind: IgnoredAny,
    #[serde(rename = "name")]
    _name: IgnoredAny,
    #[serde(rename = "namespace")]
    _namespace: Option<IgnoredAny>,
    #[serde(rename = "group")]
    _group: Option<IgnoredAny>,
    #[serde(rename = "apiGroup")]
    _api_group: Option<IgnoredAny>,
    port: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RuleDocument {
    kind: String,
    name: String,
    matches: Option<Vec<String>>,
    api_group: Option<String>,
}

impl TrafficTarget {
    /// Reads one.
    pub(crate) fn new(meta: ObjectMeta, document: &Value) -> Result<Self, Problems> {
        let meta = Meta::new(Kind::TrafficTarget, meta);
        let body = Body::of(document).map_err(|error| vec![error])?;
        let destination = destination(&body, &meta.namespace)?;
        let mut problems = Problems::new();
        let grant = match grant(&body, &meta.namespace, &mut problems) {
            Ok(grant) if problems.is_empty() => Ok(grant),
            Ok(_) => Err(problems),
            Err(error) => Err(vec![error]),
        };
        let told = |one: FieldError| TargetProblem { field: one.field, message: one.message };
        let grant = grant.map_err(|problems| problems.into_iter().map(told).collect());
        Ok(Self { meta, destination, grant, prefix: body.prefix })
    }
}

/// The destination by itself, whatever else is said of it.
fn destination(body: &Body<'_>, namespace: &Arc<str>) -> Result<Subject, Problems> {
    let at = format!("{}destination", body.prefix);
    let mut problems = Problems::new();
    let Some(value) = body.get("destination") else {
        return Err(vec![FieldError::new(at, "must be given: without it nothing is granted or denied")]);
    };
    let text = |field: &str, problems: &mut Problems| match value.get(field) {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(text.clone()),
        Some(other) => {
            problems.push(FieldError::new(format!("{at}.{field}"), format!("{other} must be a string")));
            None
        }
    };
    let document = SubjectDocument {
        kind: text("kind", &mut problems).unwrap_or_default(),
        name: text("name", &mut problems).unwrap_or_default(),
        namespace: text("namespace", &mut problems),
        group: text("group", &mut problems),
        api_group: text("apiGroup", &mut problems),
    };
    let subject = subject(&document, namespace, &at, &mut problems);
    if let Some(other) = document.namespace.filter(|other| !other.is_empty() && **other != **namespace) {
        let message = format!("{other:?} is another namespace: a TrafficTarget protects only its own, {namespace:?}");
        problems.push(FieldError::new(format!("{at}.namespace"), message));
    }
    match subject {
        Some(subject) if problems.is_empty() => Ok(subject),
        _ => Err(problems),
    }
}

/// Everything else.
fn grant(body: &Body<'_>, namespace: &Arc<str>, problems: &mut Problems) -> Result<TargetGrant, FieldError> {
    let prefix = body.prefix;
    let spec: Spec = body.decode()?;
    let at = format!("{prefix}destination");
    let DestinationDocument { port, .. } =
        decode::decode(body.get("destination").unwrap_or(&Value::Null)).map_err(|error| within(&at, error))?;
    let port = port.and_then(|port| shape::port(&port, &format!("{at}.port"), problems));
    let sources = spec.sources.unwrap_or_default();
    let (rules_field, rules) = match (spec.rules, spec.specs) {
        (Some(_), Some(_)) => {
            return Err(FieldError::new(format!("{prefix}specs"), "is what rules was called before: give one of them"));
        }
        (Some(rules), None) => ("rules", rules),
        (None, Some(specs)) => ("specs", specs),
        (None, None) => ("rules", Vec::new()),
    };
    for (field, count, max) in
        [("sources", sources.len(), limits::ACCESS_SOURCES_MAX), (rules_field, rules.len(), limits::ACCESS_RULES_MAX)]
    {
        let message = if count == 0 {
            format!("must have at least one of its {field}")
        } else if count > max {
            format!("{count} are over the limit of {max}")
        } else {
            continue;
        };
        return Err(FieldError::new(format!("{prefix}{field}"), message));
    }
    let sources = sources
        .iter()
        .enumerate()
        .filter_map(|(index, one)| subject(one, namespace, &format!("{prefix}sources[{index}]"), problems));
    let sources = sources.collect();
    let rules = rules
        .into_iter()
        .enumerate()
        .filter_map(|(index, one)| rule(one, &format!("{prefix}{rules_field}[{index}]"), problems));
    Ok(TargetGrant { sources, port, rules: rules.collect(), rules_field })
}

fn within(at: &str, error: FieldError) -> FieldError {
    let field = if error.field.is_empty() { at.to_owned() } else { format!("{at}.{}", error.field) };
    FieldError::new(field, error.message)
}

fn subject(document: &SubjectDocument, own: &Arc<str>, at: &str, problems: &mut Problems) -> Option<Subject> {
    let before = problems.len();
    let group = match document.kind.as_str() {
        "ServiceAccount" => "",
        "IdentityBinding" => Kind::IdentityBinding.group(),
        kind => {
            let message = if kind.is_empty() {
                "must be given, as ServiceAccount or IdentityBinding".to_owned()
            } else {
                format!("{kind:?} is neither ServiceAccount nor IdentityBinding")
            };
            problems.push(FieldError::new(format!("{at}.kind"), message));
            return None;
        }
    };
    for (field, given) in [("group", &document.group), ("apiGroup", &document.api_group)] {
        if let Some(given) = given.as_ref().filter(|given| !given.is_empty() && given.split('/').next() != Some(group))
        {
            let message = format!("{given:?} is not the group of {}, which is {group:?}", document.kind);
            problems.push(FieldError::new(format!("{at}.{field}"), message));
        }
    }
    if !decode::is_subdomain(&document.name) {
        let message = format!("{:?} is no valid name (RFC 1123 subdomain)", document.name);
        problems.push(FieldError::new(format!("{at}.name"), message));
    }
    let namespace = document.namespace.as_deref().filter(|namespace| !namespace.is_empty());
    if let Some(namespace) = namespace.filter(|namespace| !decode::is_label(namespace)) {
        let message = format!("{namespace:?} is no valid name (RFC 1123 label)");
        problems.push(FieldError::new(format!("{at}.namespace"), message));
    }
    if problems.len() > before {
        return None;
    }
    let namespace = namespace.map_or_else(|| Arc::clone(own), Into::into);
    let name: Arc<str> = document.name.as_str().into();
    Some(if group.is_empty() {
        Subject::Account(ServiceAccountKey { namespace, name })
    } else {
        Subject::Binding(namespace, name)
    })
}

fn rule(document: RuleDocument, at: &str, problems: &mut Problems) -> Option<TargetRule> {
    let before = problems.len();
    let kind = match document.kind.as_str() {
        "HTTPRouteGroup" => RouteKind::Http,
        "TCPRoute" => RouteKind::Tcp,
        "UDPRoute" => RouteKind::Udp,
        kind => {
            let message = format!("{kind:?} is none of HTTPRouteGroup, TCPRoute, UDPRoute");
            problems.push(FieldError::new(format!("{at}.kind"), message));
            return None;
        }
    };
    let group = Kind::HttpRouteGroup.group();
    if let Some(given) = document.api_group.filter(|given| given.split('/').next() != Some(group)) {
        let message = format!("{given:?} is not the group of {}, which is {group}", document.kind);
        problems.push(FieldError::new(format!("{at}.apiGroup"), message));
    }
    if !decode::is_subdomain(&document.name) {
        let message = format!("{:?} is no valid name (RFC 1123 subdomain)", document.name);
        problems.push(FieldError::new(format!("{at}.name"), message));
    }
    if kind != RouteKind::Http && document.matches.as_ref().is_some_and(|matches| !matches.is_empty()) {
        let message = format!("{} has no matches by name: leave it out, and give ports in the route", document.kind);
        problems.push(FieldError::new(format!("{at}.matches"), message));
    }
    let matches = document.matches.filter(|_| kind == RouteKind::Http);
    let matches = matches.map(|matches| matches.into_iter().map(Into::into).collect());
    (problems.len() == before).then(|| TargetRule { kind, name: document.name.into(), matches })
}
