//! Which objects name which.

use std::{collections::BTreeMap, net::IpAddr};

use weft_policy::{
    few::Few,
    names::{ServiceAccountKey, ServiceKey, WorkloadId},
};

use super::{
    Name,
    labels::{Labelled, Selectors},
    mentions::Mentions,
    peers::PeerIndex,
    policies::PolicyIndex,
};
use crate::{
    gateway::route::{Route, RouteKind},
    object::Object,
    smi::traffic_target::{self, Subject, TrafficTarget},
};

#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    pub(super) pods_by_id: BTreeMap<WorkloadId, Few<Name>>,
    pub(super) pods_by_ip: BTreeMap<IpAddr, Few<Name>>,
    pub(super) slices_by_service: BTreeMap<ServiceKey, Few<Name>>,
    pub(super) slices_by_mention: Mentions,
    pub(super) splits_by_root: BTreeMap<ServiceKey, Few<Name>>,
    pub(super) splits_by_backend: BTreeMap<ServiceKey, Few<Name>>,
    pub(super) splits_by_group: BTreeMap<Name, Few<Name>>,
    pub(super) pods_by_label: Labelled,
    pub(super) services_by_selector: Selectors,
    pub(super) access: AccessIndex,
    pub(super) peers: PeerIndex,
    pub(super) policies: PolicyIndex,
    pub(super) http_routes: RouteIndex,
    pub(super) grpc_routes: RouteIndex,
}

/// Routes of one kind, by the Services that they name.
#[derive(Clone, Debug, Default)]
pub(super) struct RouteIndex {
    pub(super) by_parent: BTreeMap<ServiceKey, Few<Name>>,
    pub(super) by_target: BTreeMap<ServiceKey, Few<Name>>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct AccessIndex {
    pub(super) targets_by_account: BTreeMap<ServiceAccountKey, Few<Name>>,
    pub(super) targets_by_destination_binding: BTreeMap<Name, Few<Name>>,
    pub(super) targets_by_source_binding: BTreeMap<Name, Few<Name>>,
    pub(super) targets_by_group: BTreeMap<Name, Few<Name>>,
    pub(super) targets_by_tcp_route: BTreeMap<Name, Few<Name>>,
    pub(super) targets_by_udp_route: BTreeMap<Name, Few<Name>>,
    pub(super) bindings_by_account: BTreeMap<ServiceAccountKey, Few<Name>>,
    pub(super) binding_selectors: Selectors,
}

impl Index {
    pub(super) fn insert(&mut self, object: &Object) {
        self.change(object, &Add);
        let name = name_of(object);
        match object {
            Object::Pod(pod) => self.pods_by_label.insert(&name, &pod.meta.labels),
            Object::Service(service) => self.services_by_selector.insert(&name, 0, &service.selector),
            Object::EndpointSlice(slice) => self.slices_by_mention.insert(&name, slice),
            Object::NodeWorkloads(workloads) => self.peers.insert(workloads),
            Object::IdentityBinding(binding) => {
                for (number, selector) in binding.selectors.iter().enumerate() {
                    self.access.binding_selectors.insert(&name, number, selector);
                }
            }
            _ => {}
        }
    }

    pub(super) fn remove(&mut self, object: &Object) {
        self.change(object, &Remove);
        let name = name_of(object);
        match object {
            Object::Pod(pod) => self.pods_by_label.remove(&name, &pod.meta.labels),
            Object::Service(_) => self.services_by_selector.remove(&name, 0),
            Object::EndpointSlice(slice) => self.slices_by_mention.remove(&name, slice),
            Object::NodeWorkloads(workloads) => self.peers.remove(workloads),
            Object::IdentityBinding(binding) => {
                for number in 0..binding.selectors.len() {
                    self.access.binding_selectors.remove(&name, number);
                }
            }
            _ => {}
        }
    }

    fn change(&mut self, object: &Object, change: &impl Change) {
        let name = name_of(object);
        match object {
            Object::Namespace(_)
            | Object::Service(_)
            | Object::HttpRouteGroup(_)
            | Object::TcpRoute(_)
            | Object::NodeWorkloads(_)
            | Object::ReferenceGrant(_)
            | Object::UdpRoute(_) => {}
            Object::BackendPolicy(policy) => {
                for target in &policy.targets {
                    change.make(&mut self.policies.policies, target.service.clone(), &name);
                }
            }
            Object::FaultInjection(fault) => {
                for target in &fault.targets {
                    change.make(&mut self.policies.faults, target.service.clone(), &name);
                }
            }
            Object::HttpRoute(route) | Object::GrpcRoute(route) => {
                self.routes_mut(route.kind).change(route, &name, change);
            }
            Object::TrafficTarget(target) => self.access.change_target(target, &name, change),
            Object::IdentityBinding(binding) => {
                for account in binding.accounts() {
                    change.make(&mut self.access.bindings_by_account, account, &name);
                }
            }
            Object::Pod(pod) => {
                change.make(&mut self.pods_by_id, pod.id(), &name);
                for ip in &pod.ips {
                    change.make(&mut self.pods_by_ip, *ip, &name);
                }
            }
            Object::EndpointSlice(slice) => {
                if let Some(service) = &slice.service {
                    change.make(&mut self.slices_by_service, service.clone(), &name);
                }
            }
            Object::TrafficSplit(split) => {
                change.make(&mut self.splits_by_root, split.root_key(), &name);
                for backend in &split.backends {
                    change.make(&mut self.splits_by_backend, split.sibling(&backend.service), &name);
                }
                for group in &split.groups {
                    change.make(&mut self.splits_by_group, (name.0.clone(), group.clone()), &name);
                }
            }
        }
    }
}

impl Index {
    pub(super) fn routes(&self, kind: RouteKind) -> &RouteIndex {
        match kind {
            RouteKind::Http => &self.http_routes,
            RouteKind::Grpc => &self.grpc_routes,
        }
    }

    fn routes_mut(&mut self, kind: RouteKind) -> &mut RouteIndex {
        match kind {
            RouteKind::Http => &mut self.http_routes,
            RouteKind::Grpc => &mut self.grpc_routes,
        }
    }
}

impl RouteIndex {
    fn change(&mut self, route: &Route, name: &Name, change: &impl Change) {
        for parent in &route.parents {
            change.make(&mut self.by_parent, parent.service.clone(), name);
        }
        for target in route.targets().filter(|target| target.is_service()) {
            change.make(&mut self.by_target, target.service.clone(), name);
        }
    }
}

impl AccessIndex {
    fn change_target(&mut self, target: &TrafficTarget, name: &Name, change: &impl Change) {
        match &target.destination {
            Subject::Account(account) => change.make(&mut self.targets_by_account, account.clone(), name),
            Subject::Binding(namespace, binding) => {
                let binding = (namespace.clone(), binding.clone());
                change.make(&mut self.targets_by_destination_binding, binding, name);
            }
        }
        let Ok(grant) = &target.grant else { return };
        for binding in grant.sources.iter().filter_map(Subject::binding) {
            change.make(&mut self.targets_by_source_binding, binding, name);
        }
        for rule in &grant.rules {
            let index = match rule.kind {
                traffic_target::RouteKind::Http => &mut self.targets_by_group,
                traffic_target::RouteKind::Tcp => &mut self.targets_by_tcp_route,
                traffic_target::RouteKind::Udp => &mut self.targets_by_udp_route,
            };
            change.make(index, (name.0.clone(), rule.name.clone()), name);
        }
    }
}

fn name_of(object: &Object) -> Name {
    let meta = object.meta();
    (meta.namespace.clone(), meta.name.clone())
}

trait Change {
    fn make<K: Ord>(&self, index: &mut BTreeMap<K, Few<Name>>, key: K, name: &Name);
}

struct Add;
struct Remove;

impl Change for Add {
    fn make<K: Ord>(&self, index: &mut BTreeMap<K, Few<Name>>, key: K, name: &Name) {
        index.entry(key).or_default().insert(name.clone());
    }
}

impl Change for Remove {
    fn make<K: Ord>(&self, index: &mut BTreeMap<K, Few<Name>>, key: K, name: &Name) {
        if let Some(names) = index.get_mut(&key) {
            names.remove(name);
            if names.is_empty() {
                index.remove(&key);
            }
        }
    }
}
