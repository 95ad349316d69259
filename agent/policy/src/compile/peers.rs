//! Pods of other nodes, as the agents there publish them: destinations by their addresses, and what takes mutual TLS.

use std::{cmp::Reverse, collections::BTreeMap, net::IpAddr, sync::Arc};

use crate::{
    diagnostic::{Diagnostic, Severity},
    few::Few,
    ir::{MeshIr, PeerIr, WorkloadIr},
    names::{ServiceKey, WorkloadId},
};

use super::pods::{Pods, forget};

/// Which published pods claim an address, and which serve a Service.
#[derive(Debug, Default)]
pub(super) struct Peers {
    by_ip: BTreeMap<IpAddr, Few<WorkloadId>>,
    by_service: BTreeMap<ServiceKey, Few<WorkloadId>>,
}

impl Peers {
    pub(super) fn insert(&mut self, peer: &PeerIr) {
        let id = &peer.peer.workload;
        for ip in &peer.peer.addresses {
            self.by_ip.entry(*ip).or_default().insert(id.clone());
        }
        for (service, _, _) in &peer.serves {
            self.by_service.entry(service.clone()).or_default().insert(id.clone());
        }
    }

    pub(super) fn remove(&mut self, peer: &PeerIr) {
        let id = &peer.peer.workload;
        for ip in &peer.peer.addresses {
            forget(&mut self.by_ip, ip, id);
        }
        for (service, _, _) in &peer.serves {
            forget(&mut self.by_service, service, id);
        }
    }

    /// The addresses of the published pods that serve a Service.
    pub(super) fn addresses_serving<'a>(
        &'a self,
        service: &ServiceKey,
        ir: &'a MeshIr,
    ) -> impl Iterator<Item = IpAddr> + 'a {
        let ids = self.by_service.get(service).into_iter().flatten();
        ids.filter_map(|id| ir.peers.get(id)).flat_map(|peer| peer.peer.addresses.iter().copied())
    }

    /// The published pod that an address stands for: one that serves a Service before one that nothing else knows of, as an address may
    /// be another pod's already when its publication goes; then the lowest UID.
    pub(super) fn owner<'a>(&self, ip: IpAddr, ir: &'a MeshIr) -> Option<&'a Arc<PeerIr>> {
        let claims = self.by_ip.get(&ip)?.iter().filter_map(|id| ir.peers.get(id));
        claims.max_by_key(|peer| (!peer.serves.is_empty(), Reverse(&peer.peer.workload)))
    }

    /// The published pods that claim an address in vain.
    pub(super) fn conflicts<'a>(&'a self, pods: &'a Pods, ir: &'a MeshIr) -> impl Iterator<Item = Diagnostic> + 'a {
        self.by_ip.iter().flat_map(move |(ip, claims)| {
            let published = || self.owner(*ip, ir).map(|owner| Owner::of_peer(owner));
            let owner = pods.owner(*ip, ir).map(|pod| Owner::of_pod(pod)).or_else(published);
            claims.iter().filter_map(move |id| {
                let (owner, loser) = (owner?, ir.peers.get(id)?);
                (*owner.id != loser.peer.workload).then(|| Diagnostic {
                    object: loser.origin.clone(),
                    severity: Severity::Error,
                    code: "DuplicatePodIP",
                    field: "spec.pods.ips".into(),
                    message: format!(
                        "{ip} of pod {}/{} is the address of pod {}/{} on node {} too, which has it",
                        loser.peer.namespace, loser.peer.name, owner.namespace, owner.name, owner.node
                    ),
                })
            })
        })
    }
}

/// The pod that has an address.
#[derive(Clone, Copy)]
struct Owner<'a> {
    id: &'a WorkloadId,
    namespace: &'a str,
    name: &'a str,
    node: &'a str,
}

impl<'a> Owner<'a> {
    fn of_pod(pod: &'a WorkloadIr) -> Self {
        Self { id: &pod.id, namespace: &pod.namespace, name: &pod.name, node: &pod.node }
    }

    fn of_peer(peer: &'a PeerIr) -> Self {
        let peer = &peer.peer;
        Self { id: &peer.workload, namespace: &peer.namespace, name: &peer.name, node: &peer.node }
    }
}
