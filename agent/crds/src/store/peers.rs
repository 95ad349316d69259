//! Marking and reading what NodeWorkloads publish.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use weft_policy::{few::Few, names::WorkloadId};

use super::{Dirty, ObjectStore, mark_endpoints};
use crate::weft::node_workloads::{NodeWorkloads, PublishedPod};

/// Which NodeWorkloads publish which pods, and at which addresses.
#[derive(Clone, Debug, Default)]
pub(super) struct PeerIndex {
    by_id: BTreeMap<WorkloadId, Few<Arc<str>>>,
    by_ip: BTreeMap<IpAddr, Few<(WorkloadId, Arc<str>)>>,
}

impl PeerIndex {
    pub(super) fn insert(&mut self, workloads: &NodeWorkloads) {
        let name = &workloads.meta.name;
        for pod in &workloads.pods {
            self.by_id.entry(pod.id.clone()).or_default().insert(Arc::clone(name));
            for ip in &pod.ips {
                self.by_ip.entry(*ip).or_default().insert((pod.id.clone(), Arc::clone(name)));
            }
        }
    }

    pub(super) fn remove(&mut self, workloads: &NodeWorkloads) {
        let name = &workloads.meta.name;
        for pod in &workloads.pods {
            if let Some(names) = self.by_id.get_mut(&pod.id) {
                names.remove(name);
                if names.is_empty() {
                    self.by_id.remove(&pod.id);
                }
            }
            for ip in &pod.ips {
                let Some(claims) = self.by_ip.get_mut(ip) else { continue };
                claims.remove(&(pod.id.clone(), Arc::clone(name)));
                if claims.is_empty() {
                    self.by_ip.remove(ip);
                }
            }
        }
    }

    /// Every pod that is published.
    pub(super) fn ids(&self) -> impl Iterator<Item = &WorkloadId> {
        self.by_id.keys()
    }

    pub(super) fn contains(&self, id: &WorkloadId) -> bool {
        self.by_id.contains_key(id)
    }

    pub(super) fn with_ip(&self, ip: IpAddr) -> impl Iterator<Item = &WorkloadId> {
        self.by_ip.get(&ip).into_iter().flatten().map(|(id, _)| id)
    }
}

impl ObjectStore {
    /// The pods of an object, and what is made of endpoints that give nothing but one of their addresses.
    pub(super) fn mark_node_workloads(&self, workloads: &NodeWorkloads, dirty: &mut Dirty) {
        for pod in workloads.pods_as_documents() {
            dirty.peers.insert(pod.id());
            for ip in &pod.ips {
                self.mark_published_at(*ip, dirty);
            }
            for slice in self.slices_mentioning(&pod) {
                if let Some(service) = slice.service.as_ref().and_then(|key| self.service(key)) {
                    mark_endpoints(service, dirty);
                }
            }
        }
    }

    /// Published pods with an address: which pod it means depends on all of them. What such a pod serves is part of its own document
    /// too, if that is known.
    pub(super) fn mark_published_at(&self, ip: IpAddr, dirty: &mut Dirty) {
        for id in self.index.peers.with_ip(ip) {
            dirty.peers.insert(id.clone());
            if self.index.pods_by_id.contains_key(id) {
                dirty.workloads.insert(id.clone());
            }
        }
    }

    pub(super) fn mark_peer(&self, id: WorkloadId, dirty: &mut Dirty) {
        if self.index.peers.contains(&id) {
            dirty.peers.insert(id);
        }
    }
}

/// Reading: what lowering asks for.
impl ObjectStore {
    /// What is said of a pod, in the order in which it counts.
    pub(crate) fn publications(&self, id: &WorkloadId) -> Vec<(&NodeWorkloads, &PublishedPod)> {
        let names = self.index.peers.by_id.get(id).into_iter().flatten();
        let objects = names.filter_map(|name| self.node_workloads.get(name)).map(|workloads| &**workloads);
        let mut found: Vec<_> = objects.filter_map(|workloads| Some((workloads, workloads.pod(id)?))).collect();
        found.sort_by(|(a, _), (b, _)| a.meta.precedence().cmp(&b.meta.precedence()));
        found
    }

    /// The pod that is published at an address; of several the one with the lowest UID.
    pub(crate) fn published_at(&self, ip: IpAddr) -> Option<&WorkloadId> {
        self.index.peers.with_ip(ip).next()
    }
}
