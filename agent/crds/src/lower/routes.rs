//! TrafficSplits on one root Service.
//!
//! Where the specification leaves something open, the rule is: splits with matches come before the one without, each kind oldest
//! first, then by namespace and name; of those without matches only the first counts. What no split takes goes to the root
//! Service's own endpoints. A backend takes part in a port of the root if it has a port of the same number or, failing that, of
//! the same name. Backends are not split further, even if they are roots themselves.

use weft_policy::{
    ir::{BackendIr, MatchIr, RouteIr},
    limits,
    names::{ObjectRef, ServiceKey},
};

use super::{Findings, access};
use crate::{
    core::service::Service,
    smi::traffic_split::{SplitBackend, TrafficSplit},
    store::ObjectStore,
};

/// Splits whose root does not exist have no effect.
pub(super) fn without_root(store: &ObjectStore, root: &ServiceKey, findings: &mut Findings) {
    for split in store.splits_with_root(root) {
        let message = format!("Service {root} does not exist; nothing is split");
        findings.error(&object(split), "RootNotFound", "spec.service", message);
    }
}

pub(super) fn of_root(store: &ObjectStore, root: &Service, findings: &mut Findings) -> Vec<RouteIr> {
    let mut splits: Vec<&TrafficSplit> = store.splits_with_root(&root.key()).collect();
    splits.sort_by_key(|split| split.meta.precedence());
    let (matched, wildcard): (Vec<_>, Vec<_>) = splits.into_iter().partition(|split| !split.groups.is_empty());
    for (index, split) in matched.iter().enumerate().skip(limits::ROUTES_PER_SERVICE_MAX) {
        let message = format!(
            "Service {} has {} splits with matches before this one, as many as it may have; this one has no effect",
            root.key(),
            index
        );
        findings.error(&object(split), "TooManySplits", "spec.service", message);
    }
    for loser in wildcard.iter().skip(1) {
        let winner = object(wildcard[0]);
        let message = format!(
            "{winner} splits Service {} without matches too, and comes first; this one has no effect",
            root.key()
        );
        findings.error(&object(loser), "Conflicted", "spec.service", message);
    }
    let matched = matched.into_iter().take(limits::ROUTES_PER_SERVICE_MAX);
    matched.chain(wildcard.into_iter().take(1)).map(|split| route(store, root, split, findings)).collect()
}

fn object(split: &TrafficSplit) -> ObjectRef {
    ObjectRef::new("TrafficSplit", &split.meta.namespace, &split.meta.name)
}

fn route(store: &ObjectStore, root: &Service, split: &TrafficSplit, findings: &mut Findings) -> RouteIr {
    let origin = object(split);
    let mut backends = Vec::new();
    for (index, backend) in split.backends.iter().enumerate() {
        backends.extend(self::backend(store, root, (split, &origin), (index, backend), findings));
    }
    let matches = (!split.groups.is_empty()).then(|| matches(store, split, &origin, findings));
    RouteIr::split(origin, matches, backends)
}

fn backend(
    store: &ObjectStore,
    root: &Service,
    (split, origin): (&TrafficSplit, &ObjectRef),
    (index, backend): (usize, &SplitBackend),
    findings: &mut Findings,
) -> Option<BackendIr> {
    let field = format!("spec.backends[{index}].service");
    let key = split.sibling(&backend.service);
    let Some(service) = store.service(&key) else {
        let message = format!("Service {key} does not exist; its share goes to the other backends");
        findings.error(origin, "BackendNotFound", field, message);
        return None;
    };
    if key == root.key() {
        let message = format!("Service {key} is the root itself; its share goes to its own endpoints");
        findings.warning(origin, "BackendIsRoot", field.clone(), message);
    }
    let mut ports = Vec::new();
    let mut missing = Vec::new();
    for port in &root.ports {
        let same_number = service.ports.iter().find(|own| own.port == port.port);
        let same_name = || service.ports.iter().find(|own| !port.name.is_empty() && own.name == port.name);
        match same_number.or_else(same_name) {
            Some(own) => ports.push((port.port, own.port)),
            None if port.name.is_empty() => missing.push(port.port.to_string()),
            None => missing.push(format!("{} ({})", port.port, port.name)),
        }
    }
    if !missing.is_empty() {
        let missing = missing.join(", ");
        let message = format!(
            "Service {key} has no port that matches port {missing} of Service {}; it gets no traffic of it",
            root.key()
        );
        if ports.is_empty() {
            findings.error(origin, "BackendPortMismatch", field, message);
        } else {
            findings.warning(origin, "BackendPortMismatch", field, message);
        }
    }
    Some(BackendIr::new(key, backend.weight, ports))
}

fn matches(store: &ObjectStore, split: &TrafficSplit, origin: &ObjectRef, findings: &mut Findings) -> Vec<MatchIr> {
    let mut matches = Vec::new();
    for (index, name) in split.groups.iter().enumerate() {
        if split.groups[..index].contains(name) {
            continue;
        }
        let field = format!("spec.matches[{index}].name");
        let Some(group) = store.group(&split.meta.namespace, name) else {
            let message =
                format!("HTTPRouteGroup {}/{name} does not exist; no request matches it", split.meta.namespace);
            findings.error(origin, "RouteGroupNotFound", field, message);
            continue;
        };
        let group_ref = ObjectRef::new("HTTPRouteGroup", &group.meta.namespace, &group.meta.name);
        matches.extend(group.matches.iter().map(|one| access::match_ir(&group_ref, one)));
    }
    if matches.len() > limits::MATCHES_PER_ROUTE_MAX {
        let message = format!(
            "the groups have {} matches together, over the limit of {}; the last ones match nothing",
            matches.len(),
            limits::MATCHES_PER_ROUTE_MAX
        );
        findings.error(origin, "TooManyMatches", "spec.matches", message);
        matches.truncate(limits::MATCHES_PER_ROUTE_MAX);
    }
    matches
}
