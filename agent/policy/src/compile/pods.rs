//! What the pods' own addresses stand for.

use std::{cmp::Reverse, collections::BTreeMap, net::IpAddr, sync::Arc};

use crate::{
    diagnostic::{Diagnostic, Severity},
    few::Few,
    ir::{MeshIr, PeerIr, ServiceIr, WorkloadIr, WorkloadState},
    names::{ObjectRef, ServiceKey, WorkloadId},
    plan::{AppProtocol, OutboundPlan, PodPlan, PodPort},
};

/// Which pods claim an address, and which serve a Service.
#[derive(Debug, Default)]
pub(super) struct Pods {
    by_ip: BTreeMap<IpAddr, Few<WorkloadId>>,
    by_service: BTreeMap<ServiceKey, Few<WorkloadId>>,
}

/// The addresses that a pod stands behind: none if they are its node's, or if it has ended and they may be another pod's.
pub(super) fn claimed_ips(workload: &WorkloadIr) -> impl Iterator<Item = IpAddr> + '_ {
    let none = workload.host_network || workload.state == WorkloadState::Ended;
    workload.ips.iter().copied().filter(move |_| !none)
}

impl Pods {
    pub(super) fn insert(&mut self, workload: &WorkloadIr) {
        for ip in claimed_ips(workload) {
            self.by_ip.entry(ip).or_default().insert(workload.id.clone());
        }
        for (service, _, _) in &workload.serves {
            self.by_service.entry(service.clone()).or_default().insert(workload.id.clone());
        }
    }

    pub(super) fn remove(&mut self, workload: &WorkloadIr) {
        for ip in claimed_ips(workload) {
            forget(&mut self.by_ip, &ip, &workload.id);
        }
        for (service, _, _) in &workload.serves {
            forget(&mut self.by_service, service, &workload.id);
        }
    }

    /// The pods that serve a Service.
    pub(super) fn serving(&self, service: &ServiceKey) -> impl Iterator<Item = WorkloadId> + '_ {
        self.by_service.get(service).into_iter().flatten().cloned()
    }

    /// The pod that an address stands for: a ready one before one that is not, then the lowest UID.
    pub(super) fn owner<'a>(&self, ip: IpAddr, ir: &'a MeshIr) -> Option<&'a Arc<WorkloadIr>> {
        let claims = self.by_ip.get(&ip)?.iter().filter_map(|id| ir.workloads.get(id));
        claims.max_by_key(|workload| (workload.state, Reverse(&workload.id)))
    }

    /// The pods that claim an address in vain.
    pub(super) fn conflicts<'a>(&'a self, ir: &'a MeshIr) -> impl Iterator<Item = Diagnostic> + 'a {
        self.by_ip.iter().filter(|(_, claims)| claims.len() > 1).flat_map(move |(ip, claims)| {
            let owner = self.owner(*ip, ir);
            claims.iter().filter_map(move |id| {
                let (owner, loser) = (owner?, ir.workloads.get(id)?);
                (owner.id != loser.id).then(|| Diagnostic {
                    object: ObjectRef::new("Pod", &loser.namespace, &loser.name),
                    severity: Severity::Error,
                    code: "DuplicatePodIP",
                    field: "status.podIPs".into(),
                    message: format!("{ip} is the address of Pod {}/{} too, which has it", owner.namespace, owner.name),
                })
            })
        })
    }
}

pub(super) fn forget<K: Ord>(index: &mut BTreeMap<K, Few<WorkloadId>>, key: &K, id: &WorkloadId) {
    if let Some(ids) = index.get_mut(key) {
        ids.remove(id);
        if ids.is_empty() {
            index.remove(key);
        }
    }
}

/// The pod behind an address, as its own document or another node's agent has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Behind<'a> {
    id: &'a WorkloadId,
    node: &'a Arc<str>,
    serves: &'a [(ServiceKey, u16, u16)],
}

impl<'a> From<&'a WorkloadIr> for Behind<'a> {
    fn from(workload: &'a WorkloadIr) -> Self {
        Self { id: &workload.id, node: &workload.node, serves: &workload.serves }
    }
}

impl<'a> From<&'a PeerIr> for Behind<'a> {
    fn from(peer: &'a PeerIr) -> Self {
        Self { id: &peer.peer.workload, node: &peer.peer.node, serves: &peer.serves }
    }
}

/// The plan of one address of a pod.
pub(super) fn plan<'a>(
    pod: Behind<'_>,
    address: IpAddr,
    service_of: impl Fn(&ServiceKey) -> Option<(&'a Arc<ServiceIr>, &'a [Arc<OutboundPlan>])>,
) -> PodPlan {
    let mut ports: Vec<(&ServiceKey, PodPort)> = pod
        .serves
        .iter()
        .filter_map(|(key, port, target_port)| {
            let (service, plans) = service_of(key)?;
            let plan = plans.iter().find(|plan| plan.port == *port)?;
            let headless = service.headless.then(|| Arc::clone(plan));
            Some((key, PodPort { target_port: *target_port, protocol: plan.protocol, headless }))
        })
        .collect();
    // The first entry of a port says what it speaks: a Service that says so before one that leaves it open.
    ports.sort_by_key(|(key, port)| (port.target_port, port.protocol == AppProtocol::Detect, *key));
    PodPlan {
        workload: pod.id.clone(),
        node: (!pod.node.is_empty()).then(|| Arc::clone(pod.node)),
        address,
        ports: ports.into_iter().map(|(_, port)| port).collect(),
    }
}

/// Whether a plan would change nothing.
pub(super) fn same(a: &PodPlan, b: &PodPlan) -> bool {
    a.workload == b.workload
        && a.node == b.node
        && a.address == b.address
        && a.ports.len() == b.ports.len()
        && a.ports.iter().zip(&b.ports).all(|(a, b)| {
            let headless = match (&a.headless, &b.headless) {
                (Some(a), Some(b)) => Arc::ptr_eq(a, b),
                (None, None) => true,
                _ => false,
            };
            a.target_port == b.target_port && a.protocol == b.protocol && headless
        })
}
