//! VirtualService: each HTTP route becomes a TrafficSplit, its matches an HTTPRouteGroup.

use serde_json::{Map, Value, json};

use super::{
    World,
    fields::{Object, Refusals},
    manifest, matches,
};
use crate::decode;

const SPLIT: &str = "split.smi-spec.io/v1alpha4";
const SPECS: &str = "specs.smi-spec.io/v1alpha4";

const REASONS: [(&str, &str); 3] = [
    ("exportTo", "a TrafficSplit holds for every client; take it away if that is meant"),
    ("tls", "a TrafficSplit does not look at server names"),
    ("tcp", "must be a list"),
];

const ROUTE_REASONS: [(&str, &str); 15] = [
    ("corsPolicy", "SMI has no CORS"),
    ("delegate", "SMI has no delegates: write the routes here"),
    ("directResponse", "SMI has no answers of its own; weft will take them from Gateway API in a later version"),
    ("fault", "SMI has no faults; weft will have FaultInjection in a later version"),
    ("headers", "SMI does not change headers; weft will take that from Gateway API in a later version"),
    ("mirror", "SMI has no mirroring; weft will take it from Gateway API in a later version"),
    ("mirrorPercent", "SMI has no mirroring"),
    ("mirrorPercentage", "SMI has no mirroring"),
    ("mirror_percent", "SMI has no mirroring"),
    ("mirrors", "SMI has no mirroring; weft will take it from Gateway API in a later version"),
    ("redirect", "SMI has no redirects; weft will take them from Gateway API in a later version"),
    ("retries", "SMI has no retries; weft will take them from Gateway API in a later version"),
    ("rewrite", "SMI does not rewrite; weft will take that from Gateway API in a later version"),
    ("timeout", "SMI has no timeouts; weft will take them from Gateway API in a later version"),
    ("websocketUpgrade", "is always on: take it away"),
];

pub(super) fn convert(object: &Object<'_>, world: &World<'_>, refusals: &mut Refusals) -> Vec<Value> {
    let Some(spec) = object.spec(refusals) else {
        refusals.refuse("spec", "must be given");
        return Vec::new();
    };
    refusals.only(spec, "spec", &["hosts", "gateways", "http", "tcp"], &REASONS);
    if spec.get("exportTo").is_some_and(|to| *to == json!(["*"])) {
        refusals.refused.retain(|(field, _)| field != "spec.exportTo");
    }
    for (at, gateway) in refusals.strings(spec, "gateways", "spec") {
        if gateway != "mesh" {
            refusals.refuse(
                at,
                "SMI routes traffic inside the mesh only; weft will take Gateway API's Gateway in a later version",
            );
        }
    }
    let mut roots = Vec::new();
    for (at, host) in refusals.strings(spec, "hosts", "spec") {
        match own_service(host, &object.namespace) {
            Ok(root) => roots.push(root),
            Err(why) => refusals.refuse(at, why),
        }
    }
    if roots.is_empty() && refusals.refused.is_empty() {
        refusals.refuse("spec.hosts", "must name a Service");
    }
    roots.sort();
    roots.dedup();
    let routes = refusals.maps(spec, "http", "spec");
    let tcp = refusals.maps(spec, "tcp", "spec");
    let mut out = Vec::new();
    for root in &roots {
        let name = if roots.len() == 1 { object.name.clone() } else { format!("{}-{root}", object.name) };
        let mut vs = Routes { object, world, root, name, out: &mut out };
        vs.http(&routes, refusals);
        vs.tcp(&tcp, !routes.is_empty(), refusals);
    }
    // Two roots complain of the same fields.
    let mut seen = std::collections::BTreeSet::new();
    refusals.refused.retain(|one| seen.insert(one.clone()));
    out
}

/// The routes of one root Service.
struct Routes<'a, 'b> {
    object: &'a Object<'a>,
    world: &'a World<'a>,
    root: &'a str,
    name: String,
    out: &'b mut Vec<Value>,
}

impl Routes<'_, '_> {
    fn http(&mut self, routes: &[(String, &Map<String, Value>)], refusals: &mut Refusals) {
        let (mut number, mut caught_all) = (0, false);
        for (at, route) in routes {
            refusals.only(route, at, &["name", "match", "route"], &ROUTE_REASONS);
            if caught_all {
                refusals.refuse(
                    at.clone(),
                    "an earlier route takes every request, so this one is never reached: take it away",
                );
                continue;
            }
            number += 1;
            let suffix = if routes.len() == 1 { String::new() } else { format!("-{number:02}") };
            let name = format!("{}{suffix}", self.name);
            let (group, everything) = matches_of(route, at, refusals);
            caught_all = everything;
            let Some(backends) = self.backends(route, at, refusals) else { continue };
            let own = backends.len() == 1 && backends[0]["service"] == self.root;
            if everything && own {
                refusals.note(
                    at.clone(),
                    format!("Service {} takes its own traffic without an object: none is needed", self.root),
                );
                continue;
            }
            let mut split =
                Map::from_iter([("service".to_owned(), json!(self.root)), ("backends".to_owned(), json!(backends))]);
            if !everything {
                let mut spec = Map::new();
                spec.insert("matches".into(), Value::Array(group));
                self.out.push(manifest(SPECS, "HTTPRouteGroup", &self.object.namespace, &name, spec));
                split.insert("matches".into(), json!([{"kind": "HTTPRouteGroup", "name": name}]));
            }
            self.out.push(manifest(SPLIT, "TrafficSplit", &self.object.namespace, &name, split));
        }
        if number > 0 && !caught_all {
            refusals.note(
                "spec.http",
                format!(
                    "requests that no route takes are answered 404 by Istio; with SMI they go to Service {}'s own pods",
                    self.root
                ),
            );
        }
        if number - i32::from(caught_all) > 1 {
            refusals.note(
                "spec.http",
                "the first route that matches counts in Istio; SMI tries the oldest TrafficSplit first, then by name: these are \
                 named so that their order holds if they are created together",
            );
        }
    }

    fn tcp(&mut self, routes: &[(String, &Map<String, Value>)], http: bool, refusals: &mut Refusals) {
        for (index, (at, route)) in routes.iter().enumerate() {
            let reasons = [("match", "a TrafficSplit holds for every port and client of its root")];
            refusals.only(route, at, &["route"], &reasons);
            if http || index > 0 {
                refusals.refuse(at.clone(), "SMI has one split for all that is not told apart by requests");
                continue;
            }
            let Some(backends) = self.backends(route, at, refusals) else { continue };
            let spec =
                Map::from_iter([("service".to_owned(), json!(self.root)), ("backends".to_owned(), json!(backends))]);
            self.out.push(manifest(SPLIT, "TrafficSplit", &self.object.namespace, &self.name, spec));
        }
    }

    fn backends(&mut self, route: &Map<String, Value>, at: &str, refusals: &mut Refusals) -> Option<Vec<Value>> {
        let destinations = refusals.maps(route, "route", at);
        if destinations.is_empty() {
            refusals.refuse(format!("{at}.route"), "must have at least one destination");
            return None;
        }
        let alone = destinations.len() == 1;
        let mut backends: Vec<Value> = Vec::new();
        for (at, one) in &destinations {
            let reasons =
                [("headers", "SMI does not change headers; weft will take that from Gateway API in a later version")];
            refusals.only(one, at, &["destination", "weight"], &reasons);
            let weight = match one.get("weight") {
                None => Some(if alone { 100 } else { 0 }),
                Some(weight) => weight.as_u64(),
            };
            let Some(weight) = weight else {
                refusals.refuse(format!("{at}.weight"), "must be a whole number that is not negative");
                continue;
            };
            let Some(Value::Object(destination)) = one.get("destination") else {
                refusals.refuse(format!("{at}.destination"), "must be given, as a map");
                continue;
            };
            if let Some(service) = self.backend(destination, &format!("{at}.destination"), refusals) {
                backends.push(json!({"service": service, "weight": weight}));
            }
        }
        (backends.len() == destinations.len()).then_some(backends)
    }

    fn backend(&mut self, destination: &Map<String, Value>, at: &str, refusals: &mut Refusals) -> Option<String> {
        refusals.only(destination, at, &["host", "subset", "port"], &[]);
        let host = destination.get("host").and_then(Value::as_str).unwrap_or_default();
        let service = match own_service(host, &self.object.namespace) {
            Ok(service) => service,
            Err(why) => {
                refusals.refuse(format!("{at}.host"), why);
                return None;
            }
        };
        if let Some(port) = destination.get("port") {
            self.port(port, &service, &format!("{at}.port"), refusals);
        }
        match destination.get("subset") {
            None => Some(service),
            Some(Value::String(subset)) => self.subset(&service, subset, &format!("{at}.subset"), refusals),
            Some(_) => {
                refusals.refuse(format!("{at}.subset"), "must be a string");
                None
            }
        }
    }

    /// A backend takes the port of the root that the client asked for. A port that is named is the same only if there is no other.
    fn port(&self, port: &Value, service: &str, at: &str, refusals: &mut Refusals) {
        let number = port.get("number").and_then(Value::as_u64);
        let Some(number) = number else {
            refusals.refuse(at, "must have a number");
            return;
        };
        for one in [service, self.root] {
            let document = self.world.services.get(&(self.object.namespace.clone(), one.to_owned()));
            let ports = document.and_then(|document| document.pointer("/spec/ports")).and_then(Value::as_array);
            let only = ports.is_some_and(
                |ports| matches!(ports.as_slice(), [only] if only.get("port").and_then(Value::as_u64) == Some(number)),
            );
            if !only {
                refusals.refuse(
                    at,
                    format!(
                        "a TrafficSplit keeps the port that the client asked for; take it away, or give Service {}/{one} among the \
                         files to show that {number} is its only one",
                        self.object.namespace
                    ),
                );
                return;
            }
        }
    }

    /// The Service that stands for a subset: SMI's backends are Services.
    fn subset(&mut self, service: &str, subset: &str, at: &str, refusals: &mut Refusals) -> Option<String> {
        let namespace = &self.object.namespace;
        let Some(known) = self.world.subsets.get(&(namespace.clone(), service.to_owned(), subset.to_owned())) else {
            refusals.refuse(
                at,
                format!("no DestinationRule for {namespace}/{service} among the files has subset {subset:?}"),
            );
            return None;
        };
        if let Some(why) = known.refused {
            refusals.refuse(at, format!("subset {subset:?} cannot be carried: {why}"));
            return None;
        }
        let name = format!("{service}-{subset}").to_ascii_lowercase();
        if !decode::is_label(&name) {
            refusals.refuse(at, format!("{name:?}, the Service that would stand for it, is no valid name"));
            return None;
        }
        let Some(original) = self.world.services.get(&(namespace.clone(), service.to_owned())) else {
            refusals.refuse(
                at,
                format!(
                    "SMI's backends are Services: give Service {namespace}/{service} among the files, so that {name} can be made \
                     with its selector and ports and the subset's labels"
                ),
            );
            return None;
        };
        if self.world.services.contains_key(&(namespace.clone(), name.clone())) {
            refusals.note(at, format!("Service {namespace}/{name} is there already, and is taken for the subset"));
            return Some(name);
        }
        let Some(Value::Object(selector)) = original.pointer("/spec/selector").filter(|selector| selector.is_object())
        else {
            refusals.refuse(at, format!("Service {namespace}/{service} has no selector to add the subset's labels to"));
            return None;
        };
        let mut selector = selector.clone();
        for (key, value) in &known.labels {
            if selector.get(key).is_some_and(|own| own != value.as_str()) {
                refusals.refuse(at, format!("label {key} of the subset contradicts the selector of Service {service}"));
                return None;
            }
            selector.insert(key.clone(), json!(value));
        }
        let mut ports = original.pointer("/spec/ports").cloned().unwrap_or_else(|| json!([]));
        for port in ports.as_array_mut().into_iter().flatten() {
            // One of its own will be given to it.
            port.as_object_mut().map(|port| port.remove("nodePort"));
        }
        let spec = Map::from_iter([("selector".to_owned(), Value::Object(selector)), ("ports".to_owned(), ports)]);
        self.out.push(manifest("v1", "Service", namespace, &name, spec));
        Some(name)
    }
}

/// The matches of a route, and whether it takes every request.
fn matches_of(route: &Map<String, Value>, at: &str, refusals: &mut Refusals) -> (Vec<Value>, bool) {
    let ones = refusals.maps(route, "match", at);
    let before = refusals.refused.len();
    let mut group = Vec::new();
    for (index, (at, one)) in ones.iter().enumerate() {
        let given = one.get("name").and_then(Value::as_str).filter(|name| !name.is_empty());
        let name = given.map_or_else(|| format!("match-{}", index + 1), |name| format!("{name}-{}", index + 1));
        match matches::convert(one, at, name, refusals) {
            Some(one) => group.push(one),
            // Takes everything, unless what it asked for is refused.
            None if refusals.refused.len() == before => return (Vec::new(), true),
            None => {}
        }
    }
    (group, ones.is_empty() && !route.contains_key("match"))
}

/// The Service that a host names, if it is one of the object's own namespace.
pub(super) fn own_service(host: &str, namespace: &str) -> Result<String, String> {
    let mut labels = host.splitn(3, '.');
    let (name, other, rest) = (labels.next().unwrap_or_default(), labels.next(), labels.next());
    let service = rest.is_none_or(|rest| rest == "svc" || rest.starts_with("svc."));
    if host.is_empty() || host.contains('*') || !service || !decode::is_label(name) {
        return Err(format!("{host:?} is no Service of the cluster; SMI splits the traffic of Services only"));
    }
    match other {
        Some(other) if other != namespace => {
            Err(format!("{host:?} is of namespace {other}; a TrafficSplit reaches only its own, {namespace}"))
        }
        _ => Ok(name.to_owned()),
    }
}
