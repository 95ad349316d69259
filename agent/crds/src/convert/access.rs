//! AuthorizationPolicy to TrafficTarget. Never in part: a policy of which something is left out could let more through.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::{
    World,
    fields::{Object, Refusals, literal},
    manifest,
};
use crate::smi::http_route_group::METHODS;

const ACCESS: &str = "access.smi-spec.io/v1alpha4";
const SPECS: &str = "specs.smi-spec.io/v1alpha4";
/// The namespace whose policies hold for all of Istio's mesh, by default.
pub(super) const ISTIO_ROOT_NAMESPACE: &str = "istio-system";

const SOURCE_REASONS: [(&str, &str); 12] = [
    ("ipBlocks", "SMI knows sources by service account, never by address"),
    ("namespaces", "SMI has no whole namespaces as sources: name the service accounts"),
    ("notIpBlocks", "SMI only grants: it has no exceptions"),
    ("notNamespaces", "SMI only grants: it has no exceptions"),
    ("notPrincipals", "SMI only grants: it has no exceptions"),
    ("notRemoteIpBlocks", "SMI only grants: it has no exceptions"),
    ("notRequestPrincipals", "SMI only grants: it has no exceptions"),
    ("notServiceAccounts", "SMI only grants: it has no exceptions"),
    ("remoteIpBlocks", "SMI knows sources by service account, never by address"),
    ("requestPrincipals", "weft does not check tokens"),
    ("principals", "must be a list"),
    ("serviceAccounts", "must be a list"),
];

const OPERATION_REASONS: [(&str, &str); 5] = [
    ("hosts", "an SMI rule does not look at the authority"),
    ("notHosts", "SMI only grants: it has no exceptions"),
    ("notMethods", "SMI only grants: it has no exceptions"),
    ("notPaths", "SMI only grants: it has no exceptions"),
    ("notPorts", "SMI only grants: it has no exceptions"),
];

/// Whether a policy takes away what others grant: anything but ALLOW and AUDIT.
pub(super) fn forbids(document: &Value) -> bool {
    document.pointer("/spec/action").is_some_and(|action| *action != "ALLOW" && *action != "AUDIT")
}

pub(super) fn convert(object: &Object<'_>, world: &World<'_>, refusals: &mut Refusals) -> Vec<Value> {
    let empty = Map::new();
    let spec = object.spec(refusals).unwrap_or(&empty);
    if !refusals.refused.is_empty() {
        return Vec::new();
    }
    let reasons = [
        ("targetRefs", "name pods by selector: weft has no gateways and no waypoints"),
        ("provider", "weft asks nobody else"),
    ];
    refusals.only(spec, "spec", &["selector", "action", "rules"], &reasons);
    match spec.get("action") {
        None => {}
        Some(Value::String(action)) if action == "ALLOW" => {}
        Some(action) => {
            refusals.refuse("spec.action", format!("{action} cannot be carried: SMI only grants"));
            return Vec::new();
        }
    }
    let forbidding =
        world.denying.iter().find(|(namespace, _)| *namespace == object.namespace || namespace == ISTIO_ROOT_NAMESPACE);
    if let Some((namespace, name)) = forbidding {
        refusals.refuse(
            "",
            format!(
                "AuthorizationPolicy {namespace}/{name} forbids something and cannot be carried: without it this one would let more \
                 through than now"
            ),
        );
        return Vec::new();
    }
    let selector = selector(spec, refusals);
    let rules = refusals.maps(spec, "rules", "spec");
    let Some(labels) = selector else {
        return whole_namespace(object, &rules, refusals);
    };
    if rules.is_empty() {
        refusals.refuse(
            "spec.rules",
            "grants nothing to anybody; SMI denies what any TrafficTarget selects, but a TrafficTarget must grant something",
        );
        return Vec::new();
    }
    let mut out = Vec::new();
    let schemes = json!({"podLabelSelector": {"matchLabels": labels}});
    let spec = Map::from_iter([("schemes".to_owned(), schemes)]);
    out.push(manifest(ACCESS, "IdentityBinding", &object.namespace, &object.name, spec));
    let mut number = 0;
    for (at, rule) in &rules {
        refusals.only(rule, at, &["from", "to"], &[("when", "SMI has no further conditions")]);
        let sources = sources(object, rule, at, refusals);
        let operations = refusals.maps(rule, "to", at);
        let anything = Map::new();
        let operations: Vec<(String, &Map<String, Value>)> =
            if rule.contains_key("to") { operations } else { vec![(at.clone(), &anything)] };
        for (at, to) in operations {
            number += 1;
            let name = format!("{}-{number:02}", object.name);
            refusals.only(to, &at, &["operation"], &[]);
            let operation = match to.get("operation") {
                None => Some(&anything),
                Some(Value::Object(operation)) => Some(operation),
                Some(_) => None,
            };
            let Some(operation) = operation else {
                refusals.refuse(format!("{at}.operation"), "must be a map");
                continue;
            };
            let rules = self::rules(object, &name, operation, &format!("{at}.operation"), (&mut out, refusals));
            let spec = Map::from_iter([
                ("destination".to_owned(), json!({"kind": "IdentityBinding", "name": object.name})),
                ("sources".to_owned(), json!(sources)),
                ("rules".to_owned(), json!(rules)),
            ]);
            out.push(manifest(ACCESS, "TrafficTarget", &object.namespace, &name, spec));
        }
    }
    out
}

/// A policy for every pod of its namespace. SMI has no such destination; weft has a stance for a namespace.
fn whole_namespace(
    object: &Object<'_>,
    rules: &[(String, &Map<String, Value>)],
    refusals: &mut Refusals,
) -> Vec<Value> {
    if object.namespace == ISTIO_ROOT_NAMESPACE {
        refusals.refuse("spec", "holds for every namespace: start weft's agents with --default-stance instead");
        return Vec::new();
    }
    if !rules.is_empty() {
        refusals.refuse("spec.selector", "must be given: SMI has no destination that is a whole namespace");
        return Vec::new();
    }
    if !refusals.refused.is_empty() {
        return Vec::new();
    }
    vec![json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": object.namespace, "labels": {"weft.dev/default": "deny"}},
    })]
}

/// The labels of the pods that are meant; `None` for every pod.
fn selector(spec: &Map<String, Value>, refusals: &mut Refusals) -> Option<Map<String, Value>> {
    let labels = match spec.get("selector")? {
        Value::Object(selector) => {
            refusals.only(selector, "spec.selector", &["matchLabels"], &[]);
            match selector.get("matchLabels") {
                None => return None,
                Some(Value::Object(labels)) if labels.values().all(Value::is_string) => labels,
                Some(_) => {
                    refusals.refuse("spec.selector.matchLabels", "must be a map of strings");
                    return None;
                }
            }
        }
        _ => {
            refusals.refuse("spec.selector", "must be a map");
            return None;
        }
    };
    (!labels.is_empty()).then(|| labels.clone())
}

fn sources(object: &Object<'_>, rule: &Map<String, Value>, at: &str, refusals: &mut Refusals) -> Vec<Value> {
    if !rule.contains_key("from") {
        refusals.refuse(at, "grants to everybody; SMI grants to service accounts only: give from");
    }
    let mut accounts = BTreeSet::new();
    for (at, from) in refusals.maps(rule, "from", at) {
        refusals.only(from, &at, &["source"], &[]);
        let Some(Value::Object(source)) = from.get("source") else {
            refusals.refuse(format!("{at}.source"), "must be given, as a map");
            continue;
        };
        let at = format!("{at}.source");
        refusals.only(source, &at, &["principals", "serviceAccounts"], &SOURCE_REASONS);
        if source.contains_key("principals") && source.contains_key("serviceAccounts") {
            refusals.refuse(at.clone(), "principals and serviceAccounts together mean that both must hold: give one");
        }
        let before = accounts.len();
        for (at, principal) in refusals.strings(source, "principals", &at) {
            let parts: Vec<&str> = principal.split('/').collect();
            match parts.as_slice() {
                [domain, "ns", namespace, "sa", name]
                    if !principal.contains('*') && !domain.is_empty() && named(namespace) && named(name) =>
                {
                    accounts.insert(((*namespace).to_owned(), (*name).to_owned()));
                }
                _ => refusals.refuse(
                    at,
                    format!("{principal:?} is not of the form cluster.local/ns/NAMESPACE/sa/ACCOUNT; SMI has no patterns for sources"),
                ),
            }
        }
        for (at, account) in refusals.strings(source, "serviceAccounts", &at) {
            let (namespace, name) = account.split_once('/').unwrap_or((&object.namespace, account));
            if named(namespace) && named(name) {
                accounts.insert((namespace.to_owned(), name.to_owned()));
            } else {
                refusals.refuse(at, format!("{account:?} is no service account"));
            }
        }
        if accounts.len() == before && refusals.refused.is_empty() {
            refusals.refuse(at, "names no service account: SMI grants to service accounts only");
        }
    }
    accounts
        .into_iter()
        .map(|(namespace, name)| json!({"kind": "ServiceAccount", "namespace": namespace, "name": name}))
        .collect()
}

fn named(text: &str) -> bool {
    crate::decode::is_subdomain(text)
}

/// Rules of a TrafficTarget for one operation: ports, and requests.
fn rules(
    object: &Object<'_>,
    name: &str,
    operation: &Map<String, Value>,
    at: &str,
    (out, refusals): (&mut Vec<Value>, &mut Refusals),
) -> Vec<Value> {
    refusals.only(operation, at, &["ports", "methods", "paths"], &OPERATION_REASONS);
    let mut ports = BTreeSet::new();
    for (at, port) in refusals.strings(operation, "ports", at) {
        match port.parse::<u16>() {
            Ok(port) if port > 0 => {
                ports.insert(port);
            }
            _ => refusals.refuse(at, format!("{port:?} is no port")),
        }
    }
    let mut methods = Vec::new();
    for (at, method) in refusals.strings(operation, "methods", at) {
        if METHODS.contains(&method) {
            methods.push(method);
        } else {
            refusals.refuse(at, format!("{method:?} is no method that SMI knows ({})", METHODS.join(", ")));
        }
    }
    let mut patterns = Vec::new();
    for (at, path) in refusals.strings(operation, "paths", at) {
        match path_regex(path) {
            Some(regex) => patterns.push(regex),
            None => refusals.refuse(at, format!("{path:?} has a template, or a star at both ends")),
        }
    }
    for list in ["ports", "methods", "paths"] {
        if operation.get(list).and_then(Value::as_array).is_some_and(Vec::is_empty) {
            refusals.refuse(
                format!("{at}.{list}"),
                "must not be empty: it would grant everything here and nothing in Istio",
            );
        }
    }
    let mut rules = Vec::new();
    let requests = !methods.is_empty() || !patterns.is_empty();
    if !ports.is_empty() || !requests {
        let spec = Map::from_iter([("matches".to_owned(), json!({"ports": ports}))]);
        out.push(manifest(SPECS, "TCPRoute", &object.namespace, name, spec));
        rules.push(json!({"kind": "TCPRoute", "name": name}));
    }
    if requests {
        let methods = if methods.is_empty() { vec!["*"] } else { methods };
        let patterns = if patterns.is_empty() { vec!["/".to_owned()] } else { patterns };
        let matches: Vec<Value> = patterns
            .iter()
            .enumerate()
            .map(|(index, regex)| json!({"name": format!("match-{}", index + 1), "pathRegex": regex, "methods": methods}))
            .collect();
        let spec = Map::from_iter([("matches".to_owned(), json!(matches))]);
        out.push(manifest(SPECS, "HTTPRouteGroup", &object.namespace, name, spec));
        rules.push(json!({"kind": "HTTPRouteGroup", "name": name}));
    }
    rules
}

/// Istio's paths: exact, `prefix*`, `*suffix`, or `*`. A star elsewhere is a star.
fn path_regex(path: &str) -> Option<String> {
    if path.contains('{') {
        return None;
    }
    match (path.strip_prefix('*'), path.strip_suffix('*')) {
        (Some(""), _) => Some("/".to_owned()),
        (Some(suffix), None) => Some(format!(".*{}$", literal(suffix))),
        (None, Some(prefix)) => Some(literal(prefix)),
        (None, None) => Some(format!("{}$", literal(path))),
        (Some(_), Some(_)) => None,
    }
}
