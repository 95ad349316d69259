//! Endpoints of Service ports: from EndpointSlices where a Service has any, else from its selector and the pods, as a cluster's
//! endpoint controller would.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::SocketAddr,
};

use weft_policy::{
    endpoints::{Endpoint, EndpointSet},
    names::{ServiceKey, WorkloadId},
};

use super::{policies, services};
use crate::{
    core::{
        endpoint_slice::{EndpointSlice, SliceEndpoint},
        pod::Pod,
        service::{Family, Service, ServicePort, TargetPort},
    },
    store::ObjectStore,
};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Condition {
    Ready,
    Draining,
    Neither,
}

/// The endpoints of a port; `None` if the Service has no such port.
pub(super) fn of_port(store: &ObjectStore, key: &ServiceKey, port: u16) -> Option<EndpointSet> {
    let service = store.service(key)?;
    let port = service.ports.iter().find(|one| one.port == port)?;
    let mut found = Found::default();
    let mut slices = store.slices_of(key).peekable();
    if slices.peek().is_some() {
        for slice in slices {
            for (endpoint, condition) in of_slice(store, slice, port) {
                found.add(endpoint, condition);
            }
        }
    } else {
        for pod in store.pods_selected_by(service) {
            let condition = condition(service, pod);
            for address in of_pod(service, port, pod) {
                let node = (!pod.node.is_empty()).then(|| pod.node.clone());
                found.add(Endpoint { address, workload: Some(pod.id()), node }, condition);
            }
        }
    }
    let policy = policies::of_port(store, service, port);
    Some(EndpointSet { protocol: services::protocol(port), policy, ..found.finish() })
}

/// The Service ports that a pod stands behind, ready or not: (Service, Service port, target port), in order.
pub(super) fn served_by(store: &ObjectStore, pod: &Pod) -> Vec<(ServiceKey, u16, u16)> {
    let mut serves = BTreeSet::new();
    for service in store.services_selecting(pod) {
        let key = service.key();
        if store.slices_of(&key).next().is_some() {
            continue;
        }
        for port in &service.ports {
            serves.extend(of_pod(service, port, pod).map(|address| (key.clone(), port.port, address.port())));
        }
    }
    let id = pod.id();
    for slice in store.slices_mentioning(pod) {
        let Some(service) = slice.service.as_ref().and_then(|key| store.service(key)) else { continue };
        for port in &service.ports {
            let own = of_slice(store, slice, port).filter(|(endpoint, _)| endpoint.workload.as_ref() == Some(&id));
            serves.extend(own.map(|(endpoint, _)| (service.key(), port.port, endpoint.address.port())));
        }
    }
    serves.into_iter().collect()
}

/// The UDP ports that a pod is said to take datagrams at, by itself or by the Services that select it: ascending.
pub(super) fn udp_ports(store: &ObjectStore, pod: &Pod) -> Vec<u16> {
    let mut ports: BTreeSet<u16> = pod.udp_ports.iter().copied().collect();
    let targets = store.services_selecting(pod).flat_map(|service| &service.udp_targets);
    ports.extend(targets.filter_map(|target| match target {
        TargetPort::Number(number) => Some(*number),
        // A container's port of that name is among them already.
        TargetPort::Name(_) => None,
    }));
    ports.into_iter().collect()
}

fn of_slice<'a>(
    store: &'a ObjectStore,
    slice: &'a EndpointSlice,
    port: &ServicePort,
) -> impl Iterator<Item = (Endpoint, Condition)> + 'a {
    let target = slice.ports.iter().find(|(name, _)| *name == port.name).map(|(_, target)| *target);
    target.into_iter().flat_map(move |target| {
        slice.endpoints.iter().map(move |endpoint| {
            let condition = match (endpoint.ready, endpoint.draining) {
                (true, _) => Condition::Ready,
                (false, true) => Condition::Draining,
                (false, false) => Condition::Neither,
            };
            let address = SocketAddr::new(endpoint.ip, target);
            (Endpoint { address, workload: workload(store, slice, endpoint), node: endpoint.node.clone() }, condition)
        })
    })
}

/// The pod behind an endpoint of a slice: by UID, by name, or by its address if only one pod has that, or is published with it where none has.
fn workload(store: &ObjectStore, slice: &EndpointSlice, endpoint: &SliceEndpoint) -> Option<WorkloadId> {
    let Some((name, uid)) = &endpoint.pod else {
        let mut pods = store.pods_with_ip(endpoint.ip).filter(|pod| !pod.host_network && !pod.ended);
        let Some(first) = pods.next() else { return store.published_at(endpoint.ip).cloned() };
        return pods.next().is_none().then(|| first.id());
    };
    let named = store.pod(&(slice.meta.namespace.clone(), name.clone()));
    match uid {
        // A pod document without a UID cannot be what a slice's UID means, but by its name. Else the UID says it all, even if the
        // pod is unknown here, as those of other nodes may be.
        Some(uid) => Some(named.filter(|pod| pod.meta.uid.is_none()).map_or_else(|| WorkloadId(uid.clone()), Pod::id)),
        None => named.map(Pod::id),
    }
}

fn condition(service: &Service, pod: &Pod) -> Condition {
    if service.publish_not_ready || (pod.ready && !pod.meta.deleting) {
        Condition::Ready
    } else if pod.ready {
        Condition::Draining
    } else {
        Condition::Neither
    }
}

/// The addresses at which a selected pod serves a port: none once it has ended, or if it lacks the named port.
fn of_pod<'a>(service: &'a Service, port: &ServicePort, pod: &'a Pod) -> impl Iterator<Item = SocketAddr> + 'a {
    let target = match &port.target {
        TargetPort::Number(number) => Some(*number),
        TargetPort::Name(name) => pod.named_ports.iter().find(|(own, _)| own == name).map(|(_, number)| *number),
    };
    let target = target.filter(|_| !pod.ended);
    let wanted = |family: Family| service.families.is_empty() || service.families.contains(&family);
    let ips = pod.ips.iter().filter(move |ip| wanted(Family::from(**ip)));
    target.into_iter().flat_map(move |target| ips.clone().map(move |ip| SocketAddr::new(*ip, target)))
}

/// Endpoints by address, each once: slices may repeat an endpoint while it moves between them, and two documents may give one
/// address. The better condition wins, then the lower UID.
#[derive(Default)]
struct Found {
    by_address: BTreeMap<SocketAddr, (Condition, Endpoint)>,
}

impl Found {
    fn add(&mut self, endpoint: Endpoint, condition: Condition) {
        match self.by_address.entry(endpoint.address) {
            Entry::Vacant(entry) => drop(entry.insert((condition, endpoint))),
            Entry::Occupied(mut entry) => {
                if (condition, &endpoint) < (entry.get().0, &entry.get().1) {
                    entry.insert((condition, endpoint));
                }
            }
        }
    }

    fn finish(self) -> EndpointSet {
        let (mut ready, mut draining) = (Vec::new(), Vec::new());
        for (condition, endpoint) in self.by_address.into_values() {
            match condition {
                Condition::Ready => ready.push(endpoint),
                Condition::Draining => draining.push(endpoint),
                Condition::Neither => {}
            }
        }
        EndpointSet { ready: ready.into(), draining: draining.into(), ..EndpointSet::default() }
    }
}
