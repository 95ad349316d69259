//! BackendPolicies and FaultInjections of one Service. Of two BackendPolicies for the same port the one that names the port counts, then the
//! oldest, then the first by namespace and name; nothing is put together from two. Of FaultInjections likewise.

use std::{collections::BTreeMap, sync::Arc};

use weft_policy::{
    backend_policy::BackendPolicy,
    ir::{BackendIr, RouteIr},
    names::{ObjectRef, ServiceKey},
    rule::{Fault, Filters, RuleIr},
};

use super::{Findings, services};
use crate::{
    core::service::{Service, ServicePort},
    store::ObjectStore,
    weft::target::Target,
};

/// What holds for the endpoints of a port.
pub(super) fn of_port(store: &ObjectStore, service: &Service, port: &ServicePort) -> Arc<BackendPolicy> {
    let key = service.key();
    let policies = store.policies_of(&key);
    let naming = |wanted: Option<u16>| {
        let target = Target { service: key.clone(), port: wanted };
        policies.iter().find(|policy| policy.targets.contains(&target))
    };
    match naming(Some(port.port)).or_else(|| naming(None)) {
        Some(found) => Arc::clone(&found.policy),
        None => BackendPolicy::shared(services::balance(service).unwrap_or_default()),
    }
}

/// What goes wrong on purpose with requests to a Service.
pub(super) fn fault(store: &ObjectStore, key: &ServiceKey) -> Option<Arc<Fault>> {
    store.faults_of(key).first().map(|fault| Arc::clone(&fault.fault))
}

/// Puts a fault on whatever the routes of a Service say, and on what none of them takes. One that a rule names itself stays.
pub(super) fn with_fault(mut routes: Vec<RouteIr>, service: &Service, fault: &Arc<Fault>) -> Vec<RouteIr> {
    let own = Arc::new(RuleIr::forward(
        service.key().object(),
        vec![BackendIr::new(service.key(), 1, service.ports.iter().map(|port| (port.port, port.port)).collect())],
    ));
    let mut clients: Vec<Option<Arc<str>>> = routes.iter().map(|route| route.clients.clone()).collect();
    clients.push(None);
    clients.sort();
    clients.dedup();
    for clients in clients {
        for port in &service.ports {
            let last = |route: &RouteIr| route.clients == clients && route.matches.is_none() && route.is_for(port.port);
            if !routes.iter().any(last) {
                let (ports, clients) = (Some(vec![port.port]), clients.clone());
                routes.push(RouteIr { matches: None, ports, clients, requests_only: true, rule: Arc::clone(&own) });
            }
        }
    }
    // Routes that share a rule go on sharing it.
    let mut made: BTreeMap<*const RuleIr, Arc<RuleIr>> = BTreeMap::new();
    for route in &mut routes {
        let faulty = made.entry(Arc::as_ptr(&route.rule)).or_insert_with(|| {
            let mut rule = RuleIr::clone(&route.rule);
            let filters = rule.filters.get_or_insert_with(Box::<Filters>::default);
            filters.fault.get_or_insert_with(|| Arc::clone(fault));
            Arc::new(rule)
        });
        route.rule = Arc::clone(faulty);
    }
    routes
}

/// What is to be said of what is attached to a Service, whether that exists or not.
pub(super) fn findings(store: &ObjectStore, key: &ServiceKey, findings: &mut Findings) {
    let service = store.service(key);
    let mut taken: BTreeMap<Target, ObjectRef> = BTreeMap::new();
    for policy in store.policies_of(key) {
        let object = ObjectRef::new("BackendPolicy", &policy.meta.namespace, &policy.meta.name);
        about((&object, &policy.targets), (key, service), &mut taken, findings);
    }
    taken.clear();
    for fault in store.faults_of(key) {
        let object = ObjectRef::new("FaultInjection", &fault.meta.namespace, &fault.meta.name);
        about((&object, &fault.targets), (key, service), &mut taken, findings);
    }
}

fn about(
    (object, targets): (&ObjectRef, &[Target]),
    (key, service): (&ServiceKey, Option<&Service>),
    taken: &mut BTreeMap<Target, ObjectRef>,
    findings: &mut Findings,
) {
    for (index, target) in targets.iter().enumerate().filter(|(_, target)| target.service == *key) {
        let field = format!("spec.targetRefs[{index}]");
        let Some(service) = service else {
            let message = format!("Service {key} does not exist; nothing is changed by it");
            findings.error(object, "TargetNotFound", format!("{field}.name"), message);
            continue;
        };
        if let Some(port) = target.port.filter(|port| service.ports.iter().all(|own| own.port != *port)) {
            let message = format!("Service {key} has no TCP port {port}; nothing is changed by it");
            findings.error(object, "TargetNotFound", format!("{field}.port"), message);
            continue;
        }
        match taken.get(target) {
            None => drop(taken.insert(target.clone(), object.clone())),
            Some(winner) => {
                let message =
                    format!("{winner} says this of Service {key} too, and comes first; this one has no effect there");
                findings.error(object, "Conflicted", field, message);
            }
        }
    }
}
