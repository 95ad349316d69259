//! Who may send datagrams to which ports of this node's pods, for the kernel's maps. The verdict is `InboundPlan::udp`'s.
//!
//! A port is guarded if its pod takes datagrams there as the pod, a Service or a UDPRoute says, and policy denies by default what is meant for
//! the pod. All other ports are left alone: answers to sockets that are not connected arrive at ports that nobody has declared.

use std::{collections::BTreeSet, sync::Arc};

use weft_policy::{
    inbound::{InboundPlan, Source, Verdict},
    ir::WorkloadIr,
    names::{Generation, ServiceAccountKey, WorkloadId},
};

use crate::{
    capture::GuardedPort,
    pods::{PodState, Pods},
    state::Shared,
    telemetry::Chain,
};

/// Pods, and which capture of each it was.
type Captures = Vec<(WorkloadId, Option<u64>)>;

/// Keeps the maps as plans have it.
#[derive(Debug, Default)]
pub struct Udp {
    /// What the maps were made from.
    seen: Option<(Generation, Captures)>,
    error: Option<String>,
}

impl Udp {
    /// Brings the maps up to date. To be called after each change, and every now and then.
    pub fn follow(&mut self, shared: &Shared) {
        let snapshot = shared.snapshots.load();
        let captured = captured(&shared.pods());
        let mut capture = shared.capture();
        let from: Captures = captured.iter().map(|(id, _)| (id.clone(), capture.inbound_capture(id))).collect();
        let from = (snapshot.generation, from);
        if self.seen.as_ref() == Some(&from) {
            return;
        }
        let plan = |id: &WorkloadId| snapshot.inbound.get(id).map(Arc::as_ref);
        let error = capture.set_udp(&guarded(&captured, plan)).err().map(|error| Chain(&error).to_string());
        if let Some(error) = error.as_ref().filter(|error| self.error.as_ref() != Some(error)) {
            tracing::error!(
                error,
                "not every rule about UDP is in force; a grant that is missing denies, and it is tried again"
            );
        }
        self.seen = error.is_none().then_some(from);
        self.error = error;
    }
}

fn captured(pods: &Pods) -> Vec<(WorkloadId, Arc<WorkloadIr>)> {
    let captured = pods.iter().filter(|(_, entry)| matches!(entry.state, PodState::Captured { .. }));
    captured
        .filter(|(_, entry)| !entry.workload.host_network)
        .map(|(id, entry)| (id.clone(), Arc::clone(&entry.workload)))
        .collect()
}

/// The guarded ports of all pods, with those pods that may send to each.
fn guarded<'a>(
    pods: &[(WorkloadId, Arc<WorkloadIr>)],
    plan: impl Fn(&WorkloadId) -> Option<&'a InboundPlan>,
) -> Vec<GuardedPort> {
    let sources: Vec<(&WorkloadId, ServiceAccountKey)> = pods
        .iter()
        .map(|(id, pod)| {
            (id, ServiceAccountKey { namespace: Arc::clone(&pod.namespace), name: Arc::clone(&pod.service_account) })
        })
        .collect();
    let mut guarded = Vec::new();
    for (id, pod) in pods {
        let Some(plan) = plan(id).filter(|plan| plan.is_closed()) else { continue };
        let granted = plan.grants.iter().flat_map(|grant| grant.udp_ports.iter().flatten());
        let ports: BTreeSet<u16> = pod.udp_ports.iter().chain(granted).copied().collect();
        for port in ports {
            let allowed = |(id, account): &&(&WorkloadId, ServiceAccountKey)| {
                matches!(plan.udp(Some(Source { account, workload: Some(id) }), port), Verdict::Allow(_))
            };
            let granted = sources.iter().filter(allowed).map(|(id, _)| (*id).clone()).collect();
            guarded.push(GuardedPort { destination: id.clone(), port, granted });
        }
    }
    guarded
}
