//! From a document to objects. Everything that can be wrong with an object by itself is found here, as an admission check would:
//! with the object's name, the field, and what is wrong with it. An object with a problem is not used at all.

use k8s_openapi::{
    api::{core::v1 as core, discovery::v1 as discovery},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde_json::Value;

use crate::{
    core::{endpoint_slice::EndpointSlice, namespace::Namespace, pod::Pod, service::Service},
    decode::{self, FieldError, Problems},
    gateway::{
        reference_grant::ReferenceGrant,
        route::{Route, RouteKind},
    },
    limits,
    object::{Kind, Object, ObjectKey},
    smi::{
        http_route_group::HttpRouteGroup, identity_binding::IdentityBinding, tcp_route::TcpRoute,
        traffic_split::TrafficSplit, traffic_target::TrafficTarget, udp_route::UdpRoute,
    },
    weft::{backend_policy::BackendPolicy, fault_injection::FaultInjection, node_workloads::NodeWorkloads},
};

mod kinds;

use kinds::Recognised;

/// What a document holds: several objects if it is a List.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parsed {
    /// Objects, each with the value that it was parsed from.
    pub objects: Vec<(Object, Value)>,
    /// What cannot be used, and why; at most one for each object.
    pub errors: Vec<ParseError>,
    /// Objects that weft has no use for: `Deployment shop/web`.
    pub ignored: Vec<String>,
}

/// Why an object cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{object}{}{field}: {message}", if field.is_empty() { "" } else { ", " })]
pub struct ParseError {
    /// Its key, if it is of a kind that weft reads and has a name.
    pub key: Option<ObjectKey>,
    /// The object as far as it could be read: `TrafficSplit shop/canary`.
    pub object: String,
    /// Path of the field, `spec.backends[1].weight`; empty for the object as a whole.
    pub field: String,
    /// What is wrong with it. Further fields that are wrong too are named here.
    pub message: String,
    /// The same by field, the first one included.
    pub fields: Box<FieldProblems>,
}

/// Fields and what is wrong with each, in the order in which they were found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldProblems(pub Vec<(String, String)>);

impl FieldProblems {
    fn new(problems: &[FieldError], path: &str) -> Self {
        Self(problems.iter().map(|one| (format!("{path}{}", one.field), one.message.clone())).collect())
    }
}

/// Reads a document. Never fails as a whole: each object of a List stands for itself.
#[must_use]
pub fn parse(document: &Value) -> Parsed {
    let mut parsed = Parsed::default();
    add(document, "", 0, &mut parsed);
    parsed
}

/// Reads one object of a kind that is known from where it was asked for: items of an API server's lists do not repeat theirs.
///
/// # Errors
/// When it cannot be used; the error says why.
pub fn parse_as(kind: Kind, version: &str, document: &Value) -> Result<Object, ParseError> {
    object(kind, version, document).map_err(|problems| {
        let fields = Box::new(FieldProblems::new(&problems, ""));
        let (field, message) = summed(problems, "");
        let key = key(kind, document);
        let object = key.as_ref().map_or_else(|| kind.as_str().to_owned(), ToString::to_string);
        ParseError { key, object, field, message, fields }
    })
}

/// The first field, and what is wrong with it and all others.
fn summed(problems: Problems, path: &str) -> (String, String) {
    let mut problems = problems.into_iter();
    let first = problems.next().unwrap_or_else(|| FieldError::new("", "cannot be used"));
    let mut message = first.message;
    for problem in problems {
        message.push_str(&format!("; {path}{}: {}", problem.field, problem.message));
    }
    (first.field, decode::shortened(message, limits::OBJECT_MESSAGE_BYTES_MAX))
}

fn add(document: &Value, path: &str, depth: usize, parsed: &mut Parsed) {
    if document.is_null() {
        return;
    }
    let error = |field: &str, message: String| ParseError {
        key: None,
        object: decode::shortened(describe(document), limits::MESSAGE_BYTES_MAX),
        field: format!("{path}{field}"),
        fields: Box::new(FieldProblems(vec![(format!("{path}{field}"), message.clone())])),
        message,
    };
    let api_version = document.get("apiVersion").and_then(Value::as_str);
    let kind = document.get("kind").and_then(Value::as_str);
    let (Some(api_version), Some(kind)) = (api_version, kind) else {
        let message = if document.is_object() {
            "must be given, as a string"
        } else {
            "a document must be a map with apiVersion and kind"
        };
        let field = if !document.is_object() {
            ""
        } else if kind.is_none() {
            "kind"
        } else {
            "apiVersion"
        };
        parsed.errors.push(error(field, message.to_owned()));
        return;
    };
    if kind.ends_with("List") && document.get("items").is_some() {
        let Some(items) = document.get("items").and_then(Value::as_array) else {
            parsed.errors.push(error("items", "must be an array".to_owned()));
            return;
        };
        if depth == limits::LIST_DEPTH_MAX {
            parsed.errors.push(error("items", format!("Lists may be nested {depth} deep")));
            return;
        }
        for (index, item) in items.iter().enumerate() {
            add(item, &format!("{path}items[{index}]."), depth + 1, parsed);
        }
        return;
    }
    match kinds::recognise(api_version, kind, document) {
        Recognised::Read(kind, version) => match object(kind, version, document) {
            Ok(object) => parsed.objects.push((object, document.clone())),
            Err(problems) => {
                let fields = Box::new(FieldProblems::new(&problems, path));
                let (field, message) = summed(problems, path);
                parsed.errors.push(ParseError { key: key(kind, document), fields, ..error(&field, message) });
            }
        },
        Recognised::Ignored => parsed.ignored.push(describe(document)),
        Recognised::Refused(field, message) => parsed.errors.push(error(field, message)),
    }
}

/// The object as far as it can be named.
fn describe(document: &Value) -> String {
    let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
    let kind = text(document.get("kind"));
    let kind = if kind.is_empty() { "document".to_owned() } else { kind };
    let meta = document.get("metadata");
    let (namespace, name) =
        (text(meta.and_then(|meta| meta.get("namespace"))), text(meta.and_then(|meta| meta.get("name"))));
    match (namespace.as_str(), name.as_str()) {
        (_, "") => kind,
        ("", name) if kind == "Namespace" => format!("{kind} {name}"),
        ("", name) => format!("{kind} default/{name}"),
        (namespace, name) => format!("{kind} {namespace}/{name}"),
    }
}

fn key(kind: Kind, document: &Value) -> Option<ObjectKey> {
    let meta = document.get("metadata")?;
    let name = meta.get("name")?.as_str().filter(|name| !name.is_empty())?;
    let namespace = meta.get("namespace").and_then(Value::as_str).filter(|namespace| !namespace.is_empty());
    let namespace = if kind.namespaced() { namespace.unwrap_or("default") } else { "" };
    Some(ObjectKey::new(kind, namespace, name))
}

fn object(kind: Kind, version: &str, document: &Value) -> Result<Object, Problems> {
    let mut problems = Problems::new();
    metadata(kind, document, &mut problems);
    if !problems.is_empty() {
        return Err(problems);
    }
    let one = |error| vec![error];
    let object = match kind {
        Kind::Namespace => {
            Object::Namespace(Namespace::from(decode::decode::<core::Namespace>(document).map_err(one)?).into())
        }
        Kind::Pod => Object::Pod(Pod::new(decode::decode::<core::Pod>(document).map_err(one)?, &mut problems).into()),
        Kind::Service => {
            Object::Service(Service::new(decode::decode::<core::Service>(document).map_err(one)?, &mut problems).into())
        }
        Kind::EndpointSlice => {
            let slice = decode::decode::<discovery::EndpointSlice>(document).map_err(one)?;
            Object::EndpointSlice(EndpointSlice::new(slice, &mut problems).into())
        }
        Kind::TrafficSplit => {
            let split = TrafficSplit::new(version, object_meta(document)?, document, &mut problems);
            Object::TrafficSplit(split.map_err(one)?.into())
        }
        Kind::HttpRouteGroup => {
            let group = HttpRouteGroup::new(object_meta(document)?, document, &mut problems);
            Object::HttpRouteGroup(group.map_err(one)?.into())
        }
        Kind::TcpRoute => {
            let route = TcpRoute::new(object_meta(document)?, document, &mut problems);
            Object::TcpRoute(route.map_err(one)?.into())
        }
        Kind::UdpRoute => {
            let route = UdpRoute::new(object_meta(document)?, document, &mut problems);
            Object::UdpRoute(route.map_err(one)?.into())
        }
        Kind::TrafficTarget => Object::TrafficTarget(TrafficTarget::new(object_meta(document)?, document)?.into()),
        Kind::IdentityBinding => {
            let binding = IdentityBinding::new(object_meta(document)?, document, &mut problems);
            Object::IdentityBinding(binding.map_err(one)?.into())
        }
        // What a Gateway's routes say is the business of whoever runs that.
        Kind::HttpRoute if !kinds::routes_a_service(document) => {
            Object::HttpRoute(Route::of_others(RouteKind::Http, object_meta(document)?).into())
        }
        Kind::GrpcRoute if !kinds::routes_a_service(document) => {
            Object::GrpcRoute(Route::of_others(RouteKind::Grpc, object_meta(document)?).into())
        }
        Kind::HttpRoute => {
            let route = Route::http(object_meta(document)?, document, &mut problems);
            Object::HttpRoute(route.map_err(one)?.into())
        }
        Kind::GrpcRoute => {
            let route = Route::grpc(object_meta(document)?, document, &mut problems);
            Object::GrpcRoute(route.map_err(one)?.into())
        }
        Kind::ReferenceGrant => {
            let grant = ReferenceGrant::new(object_meta(document)?, document, &mut problems);
            Object::ReferenceGrant(grant.map_err(one)?.into())
        }
        Kind::NodeWorkloads => {
            let workloads = NodeWorkloads::new(object_meta(document)?, document, &mut problems);
            Object::NodeWorkloads(workloads.map_err(one)?.into())
        }
        Kind::BackendPolicy => {
            let policy = BackendPolicy::new(object_meta(document)?, document, &mut problems);
            Object::BackendPolicy(policy.map_err(one)?.into())
        }
        Kind::FaultInjection => {
            let fault = FaultInjection::new(object_meta(document)?, document, &mut problems);
            Object::FaultInjection(fault.map_err(one)?.into())
        }
    };
    if problems.is_empty() { Ok(object) } else { Err(problems) }
}

fn object_meta(document: &Value) -> Result<ObjectMeta, Problems> {
    decode::decode::<ObjectMeta>(document.get("metadata").unwrap_or(&Value::Null))
        .map_err(|error| vec![FieldError::new(format!("metadata.{}", error.field), error.message)])
}

/// Names, before anything else: without them nothing else can be told about an object.
fn metadata(kind: Kind, document: &Value, problems: &mut Problems) {
    let text = |field: &str| document.get("metadata").and_then(|meta| meta.get(field)).filter(|value| !value.is_null());
    let label = matches!(kind, Kind::Namespace | Kind::Service);
    match text("name") {
        None => problems.push(FieldError::new("metadata.name", "must be given")),
        Some(Value::String(name)) if if label { decode::is_label(name) } else { decode::is_subdomain(name) } => {}
        Some(name) => {
            let form = if label { "label" } else { "subdomain" };
            problems.push(FieldError::new("metadata.name", format!("{name} is no valid name (RFC 1123 {form})")));
        }
    }
    match text("namespace") {
        None => {}
        Some(Value::String(name)) if name.is_empty() || decode::is_label(name) => {}
        Some(name) => {
            problems.push(FieldError::new("metadata.namespace", format!("{name} is no valid name (RFC 1123 label)")));
        }
    }
}

#[cfg(test)]
mod tests;
