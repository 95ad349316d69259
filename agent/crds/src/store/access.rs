//! Marking and reading what access control depends on.

use std::sync::Arc;

use weft_policy::{
    few::Few,
    names::{ServiceAccountKey, WorkloadId},
};

use super::{Dirty, Name, ObjectStore};
use crate::{
    core::pod::Pod,
    smi::{
        http_route_group::HttpRouteGroup,
        identity_binding::IdentityBinding,
        tcp_route::TcpRoute,
        traffic_target::{Subject, TrafficTarget},
        udp_route::UdpRoute,
    },
};

impl ObjectStore {
    /// A target, and the destinations whose grants it is part of.
    pub(super) fn mark_target(&self, target: &TrafficTarget, dirty: &mut Dirty) {
        dirty.targets.insert((target.meta.namespace.clone(), target.meta.name.clone()));
        match &target.destination {
            Subject::Account(account) => drop(dirty.accounts.insert(account.clone())),
            Subject::Binding(namespace, name) => {
                let name = (namespace.clone(), name.clone());
                dirty.accounts.extend(self.binding(&name).into_iter().flat_map(IdentityBinding::accounts));
                dirty.bindings.insert(name);
            }
        }
    }

    pub(super) fn mark_targets(&self, names: impl IntoIterator<Item = Name>, dirty: &mut Dirty) {
        for name in names {
            if let Some(target) = self.target(&name) {
                self.mark_target(target, dirty);
            }
        }
    }

    /// Targets that name a binding, as source or as destination.
    pub(super) fn mark_binding(&self, binding: &IdentityBinding, dirty: &mut Dirty) {
        let name = (binding.meta.namespace.clone(), binding.meta.name.clone());
        dirty.accounts.extend(binding.accounts());
        let index = &self.index.access;
        for names in [&index.targets_by_destination_binding, &index.targets_by_source_binding] {
            self.mark_targets(names.get(&name).into_iter().flatten().cloned(), dirty);
        }
        dirty.bindings.insert(name);
    }

    /// Bindings that mean a pod, or one with the same UID, and targets that have them as sources.
    pub(super) fn mark_bindings_of(&self, pod: &Pod, dirty: &mut Dirty) {
        let id = pod.id();
        for pod in self.pods_with_id(&id).chain([pod]) {
            for binding in self.bindings_selecting(pod) {
                let name = (binding.meta.namespace.clone(), binding.meta.name.clone());
                let targets = self.index.access.targets_by_source_binding.get(&name);
                self.mark_targets(targets.into_iter().flatten().cloned(), dirty);
                dirty.bindings.insert(name);
            }
        }
    }
}

/// Reading: what lowering asks for.
impl ObjectStore {
    pub(crate) fn target(&self, name: &Name) -> Option<&TrafficTarget> {
        self.targets.get(name).map(|target| &**target)
    }

    pub(crate) fn binding(&self, name: &Name) -> Option<&IdentityBinding> {
        self.bindings.get(name).map(|binding| &**binding)
    }

    pub(crate) fn http_group(&self, name: &Name) -> Option<&HttpRouteGroup> {
        self.groups.get(name).map(|group| &**group)
    }

    pub(crate) fn tcp_route(&self, name: &Name) -> Option<&TcpRoute> {
        self.tcp_routes.get(name).map(|route| &**route)
    }

    pub(crate) fn udp_route(&self, name: &Name) -> Option<&UdpRoute> {
        self.udp_routes.get(name).map(|route| &**route)
    }

    /// Targets whose destination is a service account, by its name or by that of a binding that means it.
    pub(crate) fn targets_of_account(&self, account: &ServiceAccountKey) -> impl Iterator<Item = &TrafficTarget> {
        let index = &self.index.access;
        let direct = index.targets_by_account.get(account).into_iter().flatten();
        let bindings = index.bindings_by_account.get(account).into_iter().flatten();
        let through = bindings.filter_map(|binding| index.targets_by_destination_binding.get(binding)).flatten();
        direct.chain(through).filter_map(|name| self.target(name))
    }

    /// Targets whose destination is a binding.
    pub(crate) fn targets_of_binding(&self, binding: &Name) -> impl Iterator<Item = &TrafficTarget> {
        let names = self.index.access.targets_by_destination_binding.get(binding).into_iter().flatten();
        names.filter_map(|name| self.target(name))
    }

    /// The pods that a binding means by their labels, ascending; of those that share a UID only the one that counts.
    pub(crate) fn pods_of_binding(&self, binding: &IdentityBinding) -> Vec<WorkloadId> {
        let mut ids: Vec<WorkloadId> = Vec::new();
        for selector in &binding.selectors {
            let pods = self.index.pods_by_label.candidates(&binding.meta.namespace, selector);
            let pods = pods.filter_map(|name| self.pod(name)).filter(|pod| binding.selects(&pod.meta.labels));
            let counts = |pod: &&Pod| {
                let first = self.pods_with_id(&pod.id()).next();
                first.is_some_and(|first| {
                    (&first.meta.namespace, &first.meta.name) == (&pod.meta.namespace, &pod.meta.name)
                })
            };
            ids.extend(pods.filter(counts).map(Pod::id));
        }
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    fn bindings_selecting(&self, pod: &Pod) -> Vec<&IdentityBinding> {
        let names = self.index.access.binding_selectors.candidates(&pod.meta.namespace, &pod.meta.labels);
        let bindings = names.into_iter().filter_map(|name| self.binding(name));
        bindings.filter(|binding| binding.selects(&pod.meta.labels)).collect()
    }

    pub(super) fn all_access(&self, dirty: &mut Dirty) {
        for target in self.targets.values() {
            self.mark_target(target, dirty);
        }
    }

    pub(super) fn targets_with_group(&self, name: &Name) -> Vec<Name> {
        listed(self.index.access.targets_by_group.get(name))
    }

    pub(super) fn targets_with_tcp_route(&self, name: &Name) -> Vec<Name> {
        listed(self.index.access.targets_by_tcp_route.get(name))
    }

    pub(super) fn targets_with_udp_route(&self, name: &Name) -> Vec<Name> {
        listed(self.index.access.targets_by_udp_route.get(name))
    }
}

fn listed(names: Option<&Few<Name>>) -> Vec<Name> {
    names.into_iter().flatten().map(|(namespace, name)| (Arc::clone(namespace), Arc::clone(name))).collect()
}
