//! Pods that take mutual TLS, as NodeWorkloads publish them.
//!
//! Who is believed decides only which connections fail: whoever connects to a published pod demands the certificate that was published,
//! and a wrong claim leads to a certificate that is not there. But a claim that counts for nothing leaves a pod in plaintext: so where
//! nothing tells who is right, the oldest claim counts, and it is never none.

use std::sync::Arc;

use weft_policy::{
    ir::PeerIr,
    names::{ObjectRef, WorkloadId},
    peer::Peer,
};

use super::{Findings, endpoints};
use crate::{
    store::ObjectStore,
    weft::node_workloads::{NodeWorkloads, PublishedPod},
};

/// What counts of all that is published of a pod; `None` if nothing does.
pub(super) fn peer(store: &ObjectStore, id: &WorkloadId, findings: &mut Findings) -> Option<PeerIr> {
    let truth = Truth::of(store, id);
    let mut counts: Option<(&NodeWorkloads, &PublishedPod)> = None;
    for (workloads, pod) in store.publications(id) {
        let of = workloads.pods.iter().position(|one| one.id == *id).unwrap_or_default();
        if let Some(message) = truth.contradiction(workloads, pod) {
            findings.error(&object(workloads), "PodMismatch", format!("spec.pods[{of}]"), message);
            continue;
        }
        let Some((first, said)) = counts else {
            counts = Some((workloads, pod));
            continue;
        };
        // A pod that moves from one shard to another is in both for a moment.
        if said != pod || first.node != workloads.node {
            let message = format!(
                "pod {}/{} is published by {} of node {} too, which is older and counts",
                pod.account.namespace, pod.name, first.meta.name, first.node
            );
            findings.error(&object(workloads), "DuplicateUID", format!("spec.pods[{of}].uid"), message);
        }
    }
    let (workloads, pod) = counts?;
    Some(PeerIr {
        origin: object(workloads),
        serves: endpoints::served_by(store, &pod.as_document(&workloads.node)),
        peer: Arc::new(Peer {
            workload: id.clone(),
            account: pod.account.clone(),
            node: Arc::clone(&workloads.node),
            addresses: pod.ips.clone(),
            namespace: Arc::clone(&pod.account.namespace),
            name: Arc::clone(&pod.name),
        }),
    })
}

fn object(workloads: &NodeWorkloads) -> ObjectRef {
    ObjectRef::new("NodeWorkloads", "", &workloads.meta.name)
}

/// What others than its node's agent say of a pod.
#[derive(Default)]
struct Truth<'a> {
    node: Option<&'a Arc<str>>,
    /// Who says so.
    by: String,
    account: Option<&'a Arc<str>>,
}

impl<'a> Truth<'a> {
    fn of(store: &'a ObjectStore, id: &WorkloadId) -> Self {
        if let Some(pod) = store.pods_with_id(id).next().filter(|pod| !pod.node.is_empty()) {
            let by = format!("Pod {}/{}", pod.meta.namespace, pod.meta.name);
            return Self { node: Some(&pod.node), by, account: Some(&pod.service_account) };
        }
        let Some((slice, node)) = store.node_in_slices(id) else { return Self::default() };
        let by = format!("EndpointSlice {}/{}", slice.meta.namespace, slice.meta.name);
        Self { node: Some(node), by, account: None }
    }

    fn contradiction(&self, workloads: &NodeWorkloads, pod: &PublishedPod) -> Option<String> {
        let node = self.node?;
        let (namespace, name, by) = (&pod.account.namespace, &pod.name, &self.by);
        if workloads.node != *node {
            let of = &workloads.node;
            return Some(format!(
                "{by} says that pod {namespace}/{name} is on node {node}: what is published of it by node {of} is not used"
            ));
        }
        let account = self.account.filter(|account| **account != pod.account.name)?;
        Some(format!("{by} has service account {account}, and {} is published: it is not used", pod.account.name))
    }
}
