//! The objects as they stand, indexed by what depends on what, so that a change touches only what it must.
//!
//! Sources of truth (a directory, API watches) feed events; the answer names the units to lower again. Marking happens before and
//! after each event, because what an object stops meaning matters as much as what it starts to mean.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use weft_policy::{
    few::Few,
    names::{ServiceAccountKey, ServiceKey, WorkloadId},
};

use crate::{
    core::{
        endpoint_slice::{EndpointSlice, SliceEndpoint},
        namespace::Namespace,
        pod::Pod,
        service::Service,
    },
    gateway::{reference_grant::ReferenceGrant, route::Route},
    object::{Kind, Object, ObjectKey},
    smi::{
        http_route_group::HttpRouteGroup, identity_binding::IdentityBinding, tcp_route::TcpRoute,
        traffic_split::TrafficSplit, traffic_target::TrafficTarget, udp_route::UdpRoute,
    },
    weft::{backend_policy::BackendPolicy, fault_injection::FaultInjection, node_workloads::NodeWorkloads},
};

mod access;
mod gateway;
mod index;
mod labels;
mod mentions;
mod peers;
mod policies;

use gateway::mark_parents;
use index::Index;
use mentions::{Mention, mentions};

/// Namespace and name.
pub(crate) type Name = (Arc<str>, Arc<str>);

/// One change of one object.
#[derive(Clone, Debug)]
pub enum ObjectEvent {
    /// The object is as given, whether it was there before or not.
    Apply(Object),
    /// The object is gone.
    Delete(ObjectKey),
}

/// The units that must be lowered again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dirty {
    /// Services, present or gone, with the routes whose root they are.
    pub services: BTreeSet<ServiceKey>,
    /// Endpoints of Service ports.
    pub endpoints: BTreeSet<(ServiceKey, u16)>,
    /// Pods.
    pub workloads: BTreeSet<WorkloadId>,
    /// Namespaces, for what is said about themselves, and what they say about their pods.
    pub namespaces: BTreeSet<Arc<str>>,
    /// Service accounts, for what TrafficTargets say about them as destinations.
    pub accounts: BTreeSet<ServiceAccountKey>,
    /// IdentityBindings, likewise, by namespace and name.
    pub bindings: BTreeSet<(Arc<str>, Arc<str>)>,
    /// TrafficTargets, for what is said about themselves, by namespace and name.
    pub targets: BTreeSet<(Arc<str>, Arc<str>)>,
    /// Pods that NodeWorkloads publish.
    pub peers: BTreeSet<WorkloadId>,
}

impl Dirty {
    /// Whether nothing is to be done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
            && self.endpoints.is_empty()
            && self.workloads.is_empty()
            && self.namespaces.is_empty()
            && self.accounts.is_empty()
            && self.bindings.is_empty()
            && self.targets.is_empty()
            && self.peers.is_empty()
    }
}

/// All objects.
#[derive(Clone, Debug, Default)]
pub struct ObjectStore {
    namespaces: BTreeMap<Arc<str>, Arc<Namespace>>,
    pods: BTreeMap<Name, Arc<Pod>>,
    services: BTreeMap<Name, Arc<Service>>,
    slices: BTreeMap<Name, Arc<EndpointSlice>>,
    splits: BTreeMap<Name, Arc<TrafficSplit>>,
    groups: BTreeMap<Name, Arc<HttpRouteGroup>>,
    tcp_routes: BTreeMap<Name, Arc<TcpRoute>>,
    udp_routes: BTreeMap<Name, Arc<UdpRoute>>,
    targets: BTreeMap<Name, Arc<TrafficTarget>>,
    bindings: BTreeMap<Name, Arc<IdentityBinding>>,
    http_routes: BTreeMap<Name, Arc<Route>>,
    grpc_routes: BTreeMap<Name, Arc<Route>>,
    grants: BTreeMap<Name, Arc<ReferenceGrant>>,
    node_workloads: BTreeMap<Arc<str>, Arc<NodeWorkloads>>,
    policies: BTreeMap<Name, Arc<BackendPolicy>>,
    faults: BTreeMap<Name, Arc<FaultInjection>>,
    index: Index,
    strict_by_default: bool,
}

impl ObjectStore {
    /// No objects yet; `strict_by_default` says whether namespaces in the mesh refuse plaintext that do not say themselves.
    #[must_use]
    pub fn new(strict_by_default: bool) -> Self {
        Self { strict_by_default, ..Self::default() }
    }

    /// Whether namespaces in the mesh refuse plaintext that do not say themselves.
    pub(crate) fn strict_by_default(&self) -> bool {
        self.strict_by_default
    }

    /// Takes changes in, in order, and says what they touch. A change that changes nothing touches nothing.
    pub fn apply(&mut self, events: impl IntoIterator<Item = ObjectEvent>) -> Dirty {
        let mut dirty = Dirty::default();
        for event in events {
            match event {
                ObjectEvent::Apply(object) => {
                    let key = object.key();
                    let old = self.get(&key);
                    if old.as_ref() == Some(&object) {
                        continue;
                    }
                    for one in old.iter().chain([&object]) {
                        self.mark(one, &mut dirty);
                    }
                    if let Some(old) = &old {
                        self.remove(old);
                    }
                    self.insert(&object);
                    for one in old.iter().chain([&object]) {
                        self.mark(one, &mut dirty);
                    }
                }
                ObjectEvent::Delete(key) => {
                    let Some(old) = self.get(&key) else { continue };
                    self.mark(&old, &mut dirty);
                    self.remove(&old);
                    self.mark(&old, &mut dirty);
                }
            }
        }
        dirty
    }

    /// Everything that there is to lower.
    #[must_use]
    pub fn all(&self) -> Dirty {
        let mut dirty = Dirty::default();
        dirty.namespaces.extend(self.namespaces.keys().cloned());
        dirty.workloads.extend(self.pods.values().map(|pod| pod.id()));
        for service in self.services.values() {
            dirty.services.insert(service.key());
            mark_endpoints(service, &mut dirty);
        }
        dirty.services.extend(self.splits.values().map(|split| split.root_key()));
        for route in self.http_routes.values().chain(self.grpc_routes.values()) {
            mark_parents(route, &mut dirty);
        }
        dirty.peers.extend(self.index.peers.ids().cloned());
        self.all_access(&mut dirty);
        self.all_policies(&mut dirty);
        dirty
    }

    /// An object by its key.
    #[must_use]
    pub fn get(&self, key: &ObjectKey) -> Option<Object> {
        let name = (key.namespace.clone(), key.name.clone());
        Some(match key.kind {
            Kind::Namespace => Object::Namespace(self.namespaces.get(&key.name)?.clone()),
            Kind::Pod => Object::Pod(self.pods.get(&name)?.clone()),
            Kind::Service => Object::Service(self.services.get(&name)?.clone()),
            Kind::EndpointSlice => Object::EndpointSlice(self.slices.get(&name)?.clone()),
            Kind::TrafficSplit => Object::TrafficSplit(self.splits.get(&name)?.clone()),
            Kind::HttpRouteGroup => Object::HttpRouteGroup(self.groups.get(&name)?.clone()),
            Kind::TcpRoute => Object::TcpRoute(self.tcp_routes.get(&name)?.clone()),
            Kind::UdpRoute => Object::UdpRoute(self.udp_routes.get(&name)?.clone()),
            Kind::TrafficTarget => Object::TrafficTarget(self.targets.get(&name)?.clone()),
            Kind::IdentityBinding => Object::IdentityBinding(self.bindings.get(&name)?.clone()),
            Kind::HttpRoute => Object::HttpRoute(self.http_routes.get(&name)?.clone()),
            Kind::GrpcRoute => Object::GrpcRoute(self.grpc_routes.get(&name)?.clone()),
            Kind::ReferenceGrant => Object::ReferenceGrant(self.grants.get(&name)?.clone()),
            Kind::NodeWorkloads => Object::NodeWorkloads(self.node_workloads.get(&key.name)?.clone()),
            Kind::BackendPolicy => Object::BackendPolicy(self.policies.get(&name)?.clone()),
            Kind::FaultInjection => Object::FaultInjection(self.faults.get(&name)?.clone()),
        })
    }

    /// How many objects of a kind there are.
    #[must_use]
    pub fn count(&self, kind: Kind) -> usize {
        match kind {
            Kind::Namespace => self.namespaces.len(),
            Kind::Pod => self.pods.len(),
            Kind::Service => self.services.len(),
            Kind::EndpointSlice => self.slices.len(),
            Kind::TrafficSplit => self.splits.len(),
            Kind::HttpRouteGroup => self.groups.len(),
            Kind::TcpRoute => self.tcp_routes.len(),
            Kind::UdpRoute => self.udp_routes.len(),
            Kind::TrafficTarget => self.targets.len(),
            Kind::IdentityBinding => self.bindings.len(),
            Kind::HttpRoute => self.http_routes.len(),
            Kind::GrpcRoute => self.grpc_routes.len(),
            Kind::ReferenceGrant => self.grants.len(),
            Kind::NodeWorkloads => self.node_workloads.len(),
            Kind::BackendPolicy => self.policies.len(),
            Kind::FaultInjection => self.faults.len(),
        }
    }

    fn insert(&mut self, object: &Object) {
        let meta = object.meta();
        let name = (meta.namespace.clone(), meta.name.clone());
        self.index.insert(object);
        match object {
            Object::Namespace(namespace) => drop(self.namespaces.insert(name.1, namespace.clone())),
            Object::Pod(pod) => drop(self.pods.insert(name, pod.clone())),
            Object::Service(service) => drop(self.services.insert(name, service.clone())),
            Object::EndpointSlice(slice) => drop(self.slices.insert(name, slice.clone())),
            Object::TrafficSplit(split) => drop(self.splits.insert(name, split.clone())),
            Object::HttpRouteGroup(group) => drop(self.groups.insert(name, group.clone())),
            Object::TcpRoute(route) => drop(self.tcp_routes.insert(name, route.clone())),
            Object::UdpRoute(route) => drop(self.udp_routes.insert(name, route.clone())),
            Object::TrafficTarget(target) => drop(self.targets.insert(name, target.clone())),
            Object::IdentityBinding(binding) => drop(self.bindings.insert(name, binding.clone())),
            Object::HttpRoute(route) => drop(self.http_routes.insert(name, route.clone())),
            Object::GrpcRoute(route) => drop(self.grpc_routes.insert(name, route.clone())),
            Object::ReferenceGrant(grant) => drop(self.grants.insert(name, grant.clone())),
            Object::NodeWorkloads(workloads) => drop(self.node_workloads.insert(name.1, workloads.clone())),
            Object::BackendPolicy(policy) => drop(self.policies.insert(name, policy.clone())),
            Object::FaultInjection(fault) => drop(self.faults.insert(name, fault.clone())),
        }
    }

    fn remove(&mut self, object: &Object) {
        let meta = object.meta();
        let name = (meta.namespace.clone(), meta.name.clone());
        self.index.remove(object);
        match object.kind() {
            Kind::Namespace => drop(self.namespaces.remove(&name.1)),
            Kind::Pod => drop(self.pods.remove(&name)),
            Kind::Service => drop(self.services.remove(&name)),
            Kind::EndpointSlice => drop(self.slices.remove(&name)),
            Kind::TrafficSplit => drop(self.splits.remove(&name)),
            Kind::HttpRouteGroup => drop(self.groups.remove(&name)),
            Kind::TcpRoute => drop(self.tcp_routes.remove(&name)),
            Kind::UdpRoute => drop(self.udp_routes.remove(&name)),
            Kind::TrafficTarget => drop(self.targets.remove(&name)),
            Kind::IdentityBinding => drop(self.bindings.remove(&name)),
            Kind::HttpRoute => drop(self.http_routes.remove(&name)),
            Kind::GrpcRoute => drop(self.grpc_routes.remove(&name)),
            Kind::ReferenceGrant => drop(self.grants.remove(&name)),
            Kind::NodeWorkloads => drop(self.node_workloads.remove(&name.1)),
            Kind::BackendPolicy => drop(self.policies.remove(&name)),
            Kind::FaultInjection => drop(self.faults.remove(&name)),
        }
    }
}

/// Marking: what depends on an object, as the store stands.
impl ObjectStore {
    fn mark(&self, object: &Object, dirty: &mut Dirty) {
        match object {
            Object::Namespace(namespace) => {
                dirty.namespaces.insert(namespace.meta.name.clone());
                dirty.workloads.extend(self.pods_in(&namespace.meta.name).map(|pod| pod.id()));
            }
            Object::Pod(pod) => self.mark_pod(pod, dirty),
            Object::Service(service) => {
                let key = service.key();
                dirty.services.extend(self.splits_with_backend(&key).map(|split| split.root_key()));
                self.mark_routes_to(&key, dirty);
                mark_endpoints(service, dirty);
                self.mark_selected(service, dirty);
                for slice in self.slices_of(&key) {
                    self.mark_mentioned(slice, dirty);
                }
                dirty.services.insert(key);
            }
            Object::EndpointSlice(slice) => self.mark_slice(slice, dirty),
            Object::TrafficSplit(split) => drop(dirty.services.insert(split.root_key())),
            Object::HttpRouteGroup(group) => {
                let name = (group.meta.namespace.clone(), group.meta.name.clone());
                dirty.services.extend(self.splits_with_group(&name).map(|split| split.root_key()));
                self.mark_targets(self.targets_with_group(&name), dirty);
            }
            Object::TcpRoute(route) => {
                let name = (route.meta.namespace.clone(), route.meta.name.clone());
                self.mark_targets(self.targets_with_tcp_route(&name), dirty);
            }
            Object::UdpRoute(route) => {
                let name = (route.meta.namespace.clone(), route.meta.name.clone());
                self.mark_targets(self.targets_with_udp_route(&name), dirty);
            }
            Object::TrafficTarget(target) => self.mark_target(target, dirty),
            Object::IdentityBinding(binding) => self.mark_binding(binding, dirty),
            Object::HttpRoute(route) | Object::GrpcRoute(route) => mark_parents(route, dirty),
            Object::ReferenceGrant(grant) => self.mark_granted(grant, dirty),
            Object::NodeWorkloads(workloads) => self.mark_node_workloads(workloads, dirty),
            Object::BackendPolicy(policy) => self.mark_policy(policy, dirty),
            Object::FaultInjection(fault) => Self::mark_fault(fault, dirty),
        }
    }

    fn mark_pod(&self, pod: &Pod, dirty: &mut Dirty) {
        dirty.workloads.insert(pod.id());
        self.mark_peer(pod.id(), dirty);
        self.mark_bindings_of(pod, dirty);
        for service in self.services_selecting(pod) {
            mark_endpoints(service, dirty);
        }
        for slice in self.slices_mentioning(pod) {
            if let Some(service) = slice.service.as_ref().and_then(|key| self.service(key)) {
                mark_endpoints(service, dirty);
            }
            // A pod document without a UID takes the place of the pod whose UID the slice gives beside its name.
            let named = slice
                .endpoints
                .iter()
                .filter_map(|endpoint| endpoint.pod.as_ref())
                .filter(|(name, _)| *name == pod.meta.name);
            for id in named.filter_map(|(_, uid)| uid.clone()).map(WorkloadId) {
                self.mark_peer(id.clone(), dirty);
                dirty.workloads.insert(id);
            }
        }
        // Who stands behind an address may depend on who else claims it.
        for ip in &pod.ips {
            dirty.workloads.extend(self.pods_with_ip(*ip).map(|pod| pod.id()));
            self.mark_published_at(*ip, dirty);
        }
    }

    fn mark_slice(&self, slice: &EndpointSlice, dirty: &mut Dirty) {
        self.mark_mentioned(slice, dirty);
        let Some(key) = &slice.service else { return };
        let Some(service) = self.service(key) else { return };
        mark_endpoints(service, dirty);
        // The first slice of a Service takes the place of its selector, and the last one gives it back.
        if self.slices_of(key).all(|other| other.meta.name == slice.meta.name) {
            self.mark_selected(service, dirty);
        }
    }

    fn mark_selected(&self, service: &Service, dirty: &mut Dirty) {
        dirty.workloads.extend(self.pods_selected_by(service).map(|pod| pod.id()));
    }

    fn mark_mentioned(&self, slice: &EndpointSlice, dirty: &mut Dirty) {
        for mention in Mention::of_slice(slice) {
            match mention {
                Mention::Ip(ip) => {
                    dirty.workloads.extend(self.pods_with_ip(ip).map(|pod| pod.id()));
                    self.mark_published_at(ip, dirty);
                }
                Mention::Name(namespace, name) => {
                    let name = (namespace.clone(), name.clone());
                    if let Some(pod) = self.pods.get(&name) {
                        self.mark_peer(pod.id(), dirty);
                        dirty.workloads.insert(pod.id());
                    }
                }
                // Most pods are those of other nodes, of which nothing is known and nothing is to be lowered.
                Mention::Id(id) => {
                    let id = WorkloadId(Arc::clone(id));
                    self.mark_peer(id.clone(), dirty);
                    if self.index.pods_by_id.contains_key(&id) {
                        dirty.workloads.insert(id);
                    }
                }
            }
        }
    }
}

fn mark_endpoints(service: &Service, dirty: &mut Dirty) {
    let key = service.key();
    dirty.endpoints.extend(service.ports.iter().map(|port| (key.clone(), port.port)));
}

/// Reading: what lowering asks for.
impl ObjectStore {
    pub(crate) fn namespace(&self, name: &Arc<str>) -> Option<&Namespace> {
        self.namespaces.get(name).map(|namespace| &**namespace)
    }

    pub(crate) fn service(&self, key: &ServiceKey) -> Option<&Service> {
        self.services.get(&(key.namespace.clone(), key.name.clone())).map(|service| &**service)
    }

    pub(crate) fn pod(&self, name: &Name) -> Option<&Pod> {
        self.pods.get(name).map(|pod| &**pod)
    }

    pub(crate) fn group(&self, namespace: &Arc<str>, name: &Arc<str>) -> Option<&HttpRouteGroup> {
        self.groups.get(&(namespace.clone(), name.clone())).map(|group| &**group)
    }

    /// The pods with a UID: one, unless two documents give the same; in the order of namespace and name.
    pub(crate) fn pods_with_id(&self, id: &WorkloadId) -> impl Iterator<Item = &Pod> {
        self.index.pods_by_id.get(id).into_iter().flatten().filter_map(|name| self.pod(name))
    }

    pub(crate) fn pods_with_ip(&self, ip: IpAddr) -> impl Iterator<Item = &Pod> {
        self.index.pods_by_ip.get(&ip).into_iter().flatten().filter_map(|name| self.pod(name))
    }

    pub(crate) fn pods_in(&self, namespace: &Arc<str>) -> impl Iterator<Item = &Pod> {
        in_namespace(&self.pods, namespace)
    }

    pub(crate) fn pods_selected_by<'a>(&'a self, service: &'a Service) -> impl Iterator<Item = &'a Pod> {
        // A Service without a selector selects nothing, however many pods there are.
        let names = self.index.pods_by_label.candidates(&service.meta.namespace, &service.selector);
        names.filter_map(|name| self.pod(name)).filter(|pod| service.selects(&pod.meta.labels))
    }

    pub(crate) fn services_selecting<'a>(&'a self, pod: &'a Pod) -> impl Iterator<Item = &'a Service> {
        let names = self.index.services_by_selector.candidates(&pod.meta.namespace, &pod.meta.labels);
        let services = names.into_iter().filter_map(|name| self.services.get(name)).map(|service| &**service);
        services.filter(|service| service.selects(&pod.meta.labels))
    }

    pub(crate) fn slices_of(&self, service: &ServiceKey) -> impl Iterator<Item = &EndpointSlice> {
        let names = self.index.slices_by_service.get(service).into_iter().flatten();
        names.filter_map(|name| self.slices.get(name)).map(|slice| &**slice)
    }

    /// Slices that name a pod, or have one of its addresses without naming a pod; each once.
    pub(crate) fn slices_mentioning<'a>(&'a self, pod: &'a Pod) -> impl Iterator<Item = &'a EndpointSlice> {
        let names = self.index.slices_by_mention.candidates(pod);
        let slices = names.into_iter().filter_map(|name| self.slices.get(name)).map(|slice| &**slice);
        slices.filter(|slice| mentions(slice, pod))
    }

    /// The node that an EndpointSlice names beside the UID of a pod: the first one by namespace and name of the slice.
    pub(crate) fn node_in_slices(&self, id: &WorkloadId) -> Option<(&EndpointSlice, &Arc<str>)> {
        let names = self.index.slices_by_mention.by_id(id);
        names.into_iter().filter_map(|name| self.slices.get(name)).find_map(|slice| {
            let of =
                |endpoint: &&SliceEndpoint| endpoint.pod.as_ref().is_some_and(|(_, uid)| uid.as_ref() == Some(&id.0));
            let node = slice.endpoints.iter().filter(of).find_map(|endpoint| endpoint.node.as_ref())?;
            Some((&**slice, node))
        })
    }

    pub(crate) fn splits_with_root(&self, service: &ServiceKey) -> impl Iterator<Item = &TrafficSplit> {
        self.splits_named(self.index.splits_by_root.get(service))
    }

    fn splits_with_backend(&self, service: &ServiceKey) -> impl Iterator<Item = &TrafficSplit> {
        self.splits_named(self.index.splits_by_backend.get(service))
    }

    fn splits_with_group(&self, group: &Name) -> impl Iterator<Item = &TrafficSplit> {
        self.splits_named(self.index.splits_by_group.get(group))
    }

    fn splits_named<'a>(&'a self, names: Option<&'a Few<Name>>) -> impl Iterator<Item = &'a TrafficSplit> {
        names.into_iter().flatten().filter_map(|name| self.splits.get(name)).map(|split| &**split)
    }
}

fn in_namespace<'a, T>(objects: &'a BTreeMap<Name, Arc<T>>, namespace: &Arc<str>) -> impl Iterator<Item = &'a T> {
    let namespace = Arc::clone(namespace);
    let from = (Arc::clone(&namespace), Arc::from(""));
    objects.range(from..).take_while(move |((of, _), _)| *of == namespace).map(|(_, object)| &**object)
}

#[cfg(test)]
mod tests;
