//! Routes of Gateway API on one Service (GEP-1426): which of them hold at which port and for whose requests, and in which order.
//!
//! Routes of the Service's own namespace hold for all clients; those of another namespace for the clients of that namespace alone,
//! instead of the former. At one port GRPCRoutes come before HTTPRoutes, of which then none holds. TrafficSplits and routes exclude each
//! other at one port: the oldest object of both decides which of the two holds there. Requests that no rule takes are refused.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use weft_policy::{
    ir::{MatchIr, RouteIr},
    limits,
    names::{ObjectRef, ServiceKey},
    rule::{ActionIr, Refusal, RuleIr},
};

use super::Findings;
use crate::{
    core::service::Service,
    gateway::route::{Parent, Rank, Route, RouteKind},
    smi::traffic_split::TrafficSplit,
    store::ObjectStore,
};

mod rules;

/// A route that is for a Service, and the ports that its parents mean.
struct Attached<'a> {
    route: &'a Route,
    /// `None` for every client.
    clients: Option<Arc<str>>,
    /// Each with the parents that mean it.
    ports: BTreeMap<u16, Vec<&'a Parent>>,
}

/// Routes whose parent does not exist have no effect.
pub(super) fn without_root(store: &ObjectStore, root: &ServiceKey, findings: &mut Findings) {
    for route in [RouteKind::Grpc, RouteKind::Http].into_iter().flat_map(|kind| store.routes_of(kind, root)) {
        for parent in route.parents.iter().filter(|parent| parent.service == *root) {
            let message = format!("Service {root} does not exist; no request is routed");
            findings.error(&route.object(), "NoMatchingParent", at(parent), message);
        }
    }
}

/// What holds at a Service, given what its TrafficSplits say.
pub(super) fn with_routes(
    store: &ObjectStore,
    root: &Service,
    splits: Vec<RouteIr>,
    findings: &mut Findings,
) -> Vec<RouteIr> {
    let key = root.key();
    let mut attached: Vec<Attached<'_>> = [RouteKind::Grpc, RouteKind::Http]
        .into_iter()
        .flat_map(|kind| store.routes_of(kind, &key))
        .map(|route| attach(route, root, findings))
        .collect();
    if attached.is_empty() {
        return splits;
    }
    let mut routes = between_front_ends(store, root, splits, &mut attached, findings);
    between_kinds(&mut attached, findings);
    attached.retain(|one| !one.ports.is_empty());
    attached.sort_by(|a, b| (age(a.route)).cmp(&age(b.route)));
    let everyone: BTreeSet<Option<Arc<str>>> = attached.iter().map(|one| one.clients.clone()).collect();
    for clients in everyone {
        let of_clients = attached.iter().filter(|one| one.clients == clients);
        routes.extend(table(store, root, clients.as_ref(), of_clients, findings));
    }
    routes
}

fn at(parent: &Parent) -> String {
    format!("spec.parentRefs[{}]", parent.index)
}

/// The oldest comes first, and of those that are as old the first by namespace and name.
fn age(route: &Route) -> ((i64, &str, &str), RouteKind) {
    (route.meta.precedence(), route.kind)
}

fn attach<'a>(route: &'a Route, root: &Service, findings: &mut Findings) -> Attached<'a> {
    let key = root.key();
    let mut ports: BTreeMap<u16, Vec<&Parent>> = BTreeMap::new();
    for parent in route.parents.iter().filter(|parent| parent.service == key) {
        let meant = root.ports.iter().filter(|port| {
            parent.port.is_none_or(|number| number == port.port)
                && parent.section.as_ref().is_none_or(|name| *name == port.name)
        });
        let mut any = false;
        for port in meant {
            any = true;
            ports.entry(port.port).or_default().push(parent);
        }
        if !any {
            let which = match (parent.port, &parent.section) {
                (Some(port), _) => format!("TCP port {port}"),
                (None, Some(name)) => format!("TCP port named {name:?}"),
                (None, None) => "TCP port".to_owned(),
            };
            let message = format!("Service {key} has no {which}; no request is routed");
            findings.error(&route.object(), "NoMatchingParent", at(parent), message);
        }
    }
    let clients = (route.meta.namespace != root.meta.namespace).then(|| Arc::clone(&route.meta.namespace));
    Attached { route, clients, ports }
}

/// Takes a route from a port, and says why.
fn reject(one: &mut Attached<'_>, port: u16, winner: &str, findings: &mut Findings) {
    for parent in one.ports.remove(&port).into_iter().flatten() {
        let rest = one.ports.values().any(|parents| parents.iter().any(|other| other.index == parent.index));
        let message =
            format!("{winner} routes port {port} of Service {}; this one has no effect there", parent.service);
        let object = one.route.object();
        if rest {
            findings.warning(&object, "Conflicted", at(parent), message);
        } else {
            findings.error(&object, "Conflicted", at(parent), message);
        }
    }
}

/// TrafficSplits or routes for all clients: at each port one of the two. Answers what is left of the splits.
fn between_front_ends(
    store: &ObjectStore,
    root: &Service,
    splits: Vec<RouteIr>,
    attached: &mut [Attached<'_>],
    findings: &mut Findings,
) -> Vec<RouteIr> {
    let name = |split: &TrafficSplit| ObjectRef::new("TrafficSplit", &split.meta.namespace, &split.meta.name);
    let Some(split) = store.splits_with_root(&root.key()).min_by_key(|split| split.meta.precedence()) else {
        return splits;
    };
    let mut kept = Vec::new();
    let mut lost: BTreeMap<ObjectRef, Vec<u16>> = BTreeMap::new();
    for port in root.ports.iter().map(|port| port.port) {
        let here = attached.iter().filter(|one| one.clients.is_none() && one.ports.contains_key(&port));
        let oldest = here.map(|one| one.route).min_by_key(|route| age(route));
        match oldest {
            Some(route) if route.meta.precedence() < split.meta.precedence() => {
                lost.entry(route.object()).or_default().push(port);
            }
            other => {
                kept.push(port);
                if other.is_some() {
                    let winner = format!("{} is older and", name(split));
                    let here = attached.iter_mut().filter(|one| one.clients.is_none());
                    here.for_each(|one| reject(one, port, &winner, findings));
                }
            }
        }
    }
    for (winner, ports) in &lost {
        let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
        for split in store.splits_with_root(&root.key()) {
            let message = format!(
                "{winner} is older and routes port {} of Service {}; this one has no effect there",
                ports.join(", "),
                root.key()
            );
            if kept.is_empty() {
                findings.error(&name(split), "Conflicted", "spec.service", message);
            } else {
                findings.warning(&name(split), "Conflicted", "spec.service", message);
            }
        }
    }
    if lost.is_empty() {
        return splits;
    }
    if kept.is_empty() {
        return Vec::new();
    }
    splits.into_iter().map(|route| RouteIr { ports: Some(kept.clone()), ..route }).collect()
}

/// At one port, and for the same clients, GRPCRoutes or HTTPRoutes.
fn between_kinds(attached: &mut [Attached<'_>], findings: &mut Findings) {
    let mut taken: BTreeMap<(u16, Option<Arc<str>>), &Route> = BTreeMap::new();
    let grpc = attached.iter().filter(|one| one.route.kind == RouteKind::Grpc);
    for (one, port) in grpc.flat_map(|one| one.ports.keys().map(move |port| (one, *port))) {
        let first = taken.entry((port, one.clients.clone())).or_insert(one.route);
        if age(one.route) < age(first) {
            *first = one.route;
        }
    }
    for one in attached.iter_mut().filter(|one| one.route.kind == RouteKind::Http) {
        let ports: Vec<u16> = one.ports.keys().copied().collect();
        for port in ports {
            if let Some(winner) = taken.get(&(port, one.clients.clone())) {
                reject(one, port, &winner.object().to_string(), findings);
            }
        }
    }
}

/// The routes for the same clients, in order of precedence, with an end for what none of them takes.
fn table<'a>(
    store: &ObjectStore,
    root: &Service,
    clients: Option<&Arc<str>>,
    attached: impl Iterator<Item = &'a Attached<'a>>,
    findings: &mut Findings,
) -> Vec<RouteIr> {
    let mut found: Vec<(Rank, usize, RouteIr)> = Vec::new();
    let mut all_ports = BTreeSet::new();
    let mut left = limits::GATEWAY_MATCHES_PER_TABLE_MAX;
    let ports_of = |ports: &BTreeSet<u16>| {
        let all = root.ports.iter().all(|port| ports.contains(&port.port));
        (!all).then(|| ports.iter().copied().collect::<Vec<_>>())
    };
    for one in attached {
        let ports: BTreeSet<u16> = one.ports.keys().copied().collect();
        let origin = one.route.object();
        for (field, message) in &one.route.ignored {
            findings.warning(&origin, "UnsupportedValue", field, message);
        }
        let total: usize = one.route.rules.iter().map(|rule| rule.matches.len()).sum();
        if total > left {
            let message = format!(
                "Service {} has over {} matches with this route's, which has {total}; the last ones hold for no request",
                root.key(),
                limits::GATEWAY_MATCHES_PER_TABLE_MAX
            );
            findings.error(&origin, "TooManyMatches", "spec.rules", message);
        }
        for (index, rule) in one.route.rules.iter().enumerate() {
            let ir = Arc::new(rules::lower(store, (one.route, root), (index, rule), &ports, findings));
            for (place, one) in rule.matches.iter().enumerate().take(left) {
                let name = format!("rules[{index}].matches[{place}]");
                let ir = RouteIr {
                    matches: Some(vec![MatchIr {
                        origin: origin.clone(),
                        name: name.into(),
                        path: one.path.clone(),
                        methods: one.method.iter().cloned().collect(),
                        headers: one.headers.clone(),
                        query: one.query.clone(),
                    }]),
                    ports: ports_of(&ports),
                    clients: clients.cloned(),
                    requests_only: true,
                    rule: Arc::clone(&ir),
                };
                found.push((one.rank, found.len(), ir));
            }
            left = left.saturating_sub(rule.matches.len());
        }
        all_ports.extend(ports);
    }
    // Among those of the same rank the older route comes first, and in one route the first rule: as they were found.
    found.sort_by_key(|(rank, place, _)| (*rank, *place));
    let end = RuleIr {
        origin: root.key().object(),
        name: "".into(),
        action: ActionIr::Refuse(Refusal::NoRoute),
        filters: None,
        mirrors: Vec::new(),
    };
    let end = RouteIr {
        matches: None,
        ports: ports_of(&all_ports),
        clients: clients.cloned(),
        requests_only: true,
        rule: Arc::new(end),
    };
    found.into_iter().map(|(_, _, route)| route).chain([end]).collect()
}
