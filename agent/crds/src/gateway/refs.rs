//! References: to the parents of a route, and to who answers.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;
use weft_policy::names::ServiceKey;

use super::{
    GROUP, filters,
    route::{Parent, RouteBackend, Target},
};
use crate::{
    decode::{self, FieldError, Problems},
    limits,
};

/// `spec.parentRefs[]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct ParentDocument {
    group: Option<String>,
    kind: Option<String>,
    namespace: Option<String>,
    name: String,
    section_name: Option<String>,
    port: Option<i64>,
}

/// A reference to who answers, or who gets copies.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct TargetDocument {
    group: Option<String>,
    kind: Option<String>,
    namespace: Option<String>,
    name: String,
    port: Option<i64>,
}

/// `spec.rules[].backendRefs[]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct BackendDocument {
    group: Option<String>,
    kind: Option<String>,
    namespace: Option<String>,
    name: String,
    port: Option<i64>,
    weight: Option<i64>,
    filters: Option<Vec<Value>>,
}

/// The Services among the parents of a route in `namespace`.
pub(super) fn parents(documents: Vec<ParentDocument>, namespace: &Arc<str>, problems: &mut Problems) -> Vec<Parent> {
    if documents.len() > limits::GATEWAY_PARENTS_MAX {
        let message = format!("{} parents are over the limit of {}", documents.len(), limits::GATEWAY_PARENTS_MAX);
        problems.push(FieldError::new("spec.parentRefs", message));
    }
    let mut parents = Vec::new();
    for (index, one) in documents.into_iter().take(limits::GATEWAY_PARENTS_MAX).enumerate() {
        let at = format!("spec.parentRefs[{index}]");
        let group = one.group.as_deref().unwrap_or(GROUP);
        let kind = one.kind.as_deref().unwrap_or("Gateway");
        if kind == "Service" && group == GROUP {
            let message =
                "has no kind Service: write group: \"\", as Gateway API takes its own group where none is given";
            problems.push(FieldError::new(format!("{at}.group"), message));
        }
        if kind != "Service" || !is_core(group) {
            continue;
        }
        let service = service(one.namespace, one.name, namespace, &at, problems);
        let port = one.port.and_then(|port| port_of(port, &format!("{at}.port"), problems));
        let section = one.section_name.map(Into::into);
        let same = |other: &Parent| other.service == service && other.port == port && other.section == section;
        if parents.iter().any(same) {
            problems.push(FieldError::new(at, format!("Service {service} is a parent already, with the same port")));
            continue;
        }
        parents.push(Parent { index, service, port, section });
    }
    parents
}

/// Those who answer.
pub(super) fn backends(
    documents: Vec<BackendDocument>,
    namespace: &Arc<str>,
    at: &str,
    problems: &mut Problems,
) -> Vec<RouteBackend> {
    let field = format!("{at}.backendRefs");
    if documents.len() > limits::GATEWAY_BACKENDS_MAX {
        let message = format!("{} backends are over the limit of {}", documents.len(), limits::GATEWAY_BACKENDS_MAX);
        problems.push(FieldError::new(field.clone(), message));
    }
    let documents = documents.into_iter().take(limits::GATEWAY_BACKENDS_MAX).enumerate();
    let backend = |(index, one): (usize, BackendDocument)| {
        let BackendDocument { group, kind, namespace: of, name, port, weight, filters } = one;
        let at = format!("{field}[{index}]");
        let weight = weight.unwrap_or(1);
        let known = u64::try_from(weight).ok().filter(|weight| *weight <= limits::GATEWAY_WEIGHT_MAX);
        if known.is_none() {
            let message = format!("{weight} is no weight: it must be 0 to {}", limits::GATEWAY_WEIGHT_MAX);
            problems.push(FieldError::new(format!("{at}.weight"), message));
        }
        let target = TargetDocument { group, kind, namespace: of, name, port };
        let target = self::target(target, namespace, &at, problems);
        let headers = filters::of_backend(&filters.unwrap_or_default(), &format!("backendRefs[{index}]"));
        RouteBackend { target, weight: known.unwrap_or(0), headers }
    };
    documents.map(backend).collect()
}

/// What a reference names, from an object in `namespace`.
pub(super) fn target(one: TargetDocument, namespace: &Arc<str>, at: &str, problems: &mut Problems) -> Target {
    let group = one.group.unwrap_or_default();
    let group = if is_core(&group) { String::new() } else { group };
    let kind = one.kind.unwrap_or_else(|| "Service".to_owned());
    let port = one.port.and_then(|number| port_of(number, &format!("{at}.port"), problems));
    if one.port.is_none() && group.is_empty() && kind == "Service" {
        problems.push(FieldError::new(format!("{at}.port"), "must be given for a Service"));
    }
    let service = service(one.namespace, one.name, namespace, at, problems);
    Target { group: group.into(), kind: kind.into(), service, port }
}

/// The core group goes by two names here.
fn is_core(group: &str) -> bool {
    group.is_empty() || group == "core"
}

fn service(namespace: Option<String>, name: String, own: &Arc<str>, at: &str, problems: &mut Problems) -> ServiceKey {
    if !decode::is_subdomain(&name) {
        let message = format!("{} is no valid name (RFC 1123)", decode::quoted(&name));
        problems.push(FieldError::new(format!("{at}.name"), message));
    }
    if let Some(namespace) = namespace.as_ref().filter(|namespace| !decode::is_label(namespace)) {
        let message = format!("{} is no valid name (RFC 1123 label)", decode::quoted(namespace));
        problems.push(FieldError::new(format!("{at}.namespace"), message));
    }
    ServiceKey { namespace: namespace.map_or_else(|| Arc::clone(own), Into::into), name: name.into() }
}

pub(super) fn port_of(number: i64, field: &str, problems: &mut Problems) -> Option<u16> {
    let port = u16::try_from(number).ok().filter(|port| *port > 0);
    if port.is_none() {
        problems.push(FieldError::new(field, format!("{number} is no port: it must be 1 to 65535")));
    }
    port
}
