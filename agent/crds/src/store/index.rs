//! Which objects name which.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use weft_policy::names::{ServiceKey, WorkloadId};

use super::Name;
use crate::{
    core::{endpoint_slice::EndpointSlice, pod::Pod},
    object::Object,
};

/// How an EndpointSlice may name a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mention {
    /// By its address.
    Ip(IpAddr),
    /// By namespace and name.
    Name(Name),
    /// By its UID.
    Id(WorkloadId),
}

impl Mention {
    /// Everything by which a pod may be named.
    pub(crate) fn of_pod(pod: &Pod) -> impl Iterator<Item = Self> + '_ {
        let name = (pod.meta.namespace.clone(), pod.meta.name.clone());
        pod.ips.iter().copied().map(Self::Ip).chain([Self::Name(name), Self::Id(pod.id())])
    }

    /// Every way in which a slice names pods.
    pub(crate) fn of_slice(slice: &EndpointSlice) -> impl Iterator<Item = Self> + '_ {
        slice.endpoints.iter().flat_map(|endpoint| {
            let pod = endpoint.pod.iter().flat_map(|(name, uid)| {
                let name = Self::Name((slice.meta.namespace.clone(), name.clone()));
                std::iter::once(name).chain(uid.clone().map(|uid| Self::Id(WorkloadId(uid))))
            });
            std::iter::once(Self::Ip(endpoint.ip)).chain(pod)
        })
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    pub(super) pods_by_id: BTreeMap<WorkloadId, BTreeSet<Name>>,
    pub(super) pods_by_ip: BTreeMap<IpAddr, BTreeSet<Name>>,
    pub(super) slices_by_service: BTreeMap<ServiceKey, BTreeSet<Name>>,
    pub(super) slices_by_mention: BTreeMap<Mention, BTreeSet<Name>>,
    pub(super) splits_by_root: BTreeMap<ServiceKey, BTreeSet<Name>>,
    pub(super) splits_by_backend: BTreeMap<ServiceKey, BTreeSet<Name>>,
    pub(super) splits_by_group: BTreeMap<Name, BTreeSet<Name>>,
}

impl Index {
    pub(super) fn insert(&mut self, object: &Object) {
        self.change(object, &Add);
    }

    pub(super) fn remove(&mut self, object: &Object) {
        self.change(object, &Remove);
    }

    fn change(&mut self, object: &Object, change: &impl Change) {
        let meta = object.meta();
        let name: Name = (meta.namespace.clone(), meta.name.clone());
        match object {
            Object::Namespace(_) | Object::Service(_) | Object::HttpRouteGroup(_) => {}
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
                for mention in Mention::of_slice(slice) {
                    change.make(&mut self.slices_by_mention, mention, &name);
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

trait Change {
    fn make<K: Ord>(&self, index: &mut BTreeMap<K, BTreeSet<Name>>, key: K, name: &Name);
}

struct Add;
struct Remove;

impl Change for Add {
    fn make<K: Ord>(&self, index: &mut BTreeMap<K, BTreeSet<Name>>, key: K, name: &Name) {
        index.entry(key).or_default().insert(name.clone());
    }
}

impl Change for Remove {
    fn make<K: Ord>(&self, index: &mut BTreeMap<K, BTreeSet<Name>>, key: K, name: &Name) {
        if let Some(names) = index.get_mut(&key) {
            names.remove(name);
            if names.is_empty() {
                index.remove(&key);
            }
        }
    }
}
