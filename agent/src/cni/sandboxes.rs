//! Sandboxes that the plugin announced, until the API server says the same of their pods.
//!
//! When the plugin asks, the Pod object may not have been seen, has no address in its status yet, and no process of it runs. So the pod
//! is captured in the namespace and with the addresses that the plugin gives, and these hold until its status has some of its own.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Instant,
};

use tokio::sync::oneshot;
use weft_policy::{ir::WorkloadIr, names::WorkloadId};

use super::{
    protocol::{Answer, Question},
    server::Announcement,
};
use crate::limits;

/// This node's pods and the sandboxes that were announced.
#[derive(Debug)]
pub struct Sandboxes {
    node: Arc<str>,
    pods: BTreeMap<WorkloadId, Arc<WorkloadIr>>,
    announced: Vec<Sandbox>,
}

#[derive(Debug)]
struct Sandbox {
    question: Question,
    /// The pod, once it has been seen.
    id: Option<WorkloadId>,
    /// What its status said before the sandbox was made: addresses of an earlier one. Whatever it says next is newer.
    stale: Vec<IpAddr>,
    /// Until it is captured.
    netns: Option<OwnedFd>,
    answer: Option<oneshot::Sender<Answer>>,
    since: Instant,
}

/// What is to be done about an announced sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Announced {
    /// It is to be captured: nothing else is waited for.
    Pod(WorkloadId),
    /// Its pod has not been seen yet.
    Unseen,
    /// Nothing: it was answered.
    Answered,
}

impl Sandboxes {
    /// None yet.
    #[must_use]
    pub fn new(node: &str) -> Self {
        Self { node: node.into(), pods: BTreeMap::new(), announced: Vec::new() }
    }

    /// Takes changed workloads in (`None`: gone), and gives them back with the addresses that their sandboxes have.
    pub fn place<'a>(
        &mut self,
        changed: impl IntoIterator<Item = (&'a WorkloadId, &'a Option<Arc<WorkloadIr>>)>,
    ) -> Vec<(WorkloadId, Option<Arc<WorkloadIr>>)> {
        let node = Arc::clone(&self.node);
        let mut placed = Vec::new();
        for (id, workload) in changed {
            match workload.as_ref().filter(|workload| workload.node == node) {
                Some(workload) => {
                    self.pods.insert(id.clone(), Arc::clone(workload));
                    for sandbox in &mut self.announced {
                        if sandbox.id.is_none() && is_meant(&sandbox.question, workload) {
                            sandbox.id = Some(id.clone());
                        }
                    }
                    placed.push((id.clone(), Some(self.placed(workload))));
                }
                None => {
                    self.pods.remove(id);
                    self.announced.retain(|sandbox| sandbox.id.as_ref() != Some(id));
                    placed.push((id.clone(), workload.clone()));
                }
            }
        }
        placed
    }

    /// A pod with the addresses of its sandbox, unless its status has newer ones.
    fn placed(&mut self, workload: &Arc<WorkloadIr>) -> Arc<WorkloadIr> {
        let of_pod = |sandbox: &Sandbox| sandbox.id.as_ref() == Some(&workload.id);
        let Some(sandbox) = self.announced.iter().find(|sandbox| of_pod(sandbox)) else { return Arc::clone(workload) };
        if workload.ips == sandbox.stale {
            return Arc::new(WorkloadIr { ips: sandbox.question.ips.clone(), ..(**workload).clone() });
        }
        let waits = |sandbox: &Sandbox| sandbox.answer.as_ref().is_some_and(|plugin| !plugin.is_closed());
        self.announced.retain(|sandbox| !of_pod(sandbox) || waits(sandbox));
        Arc::clone(workload)
    }

    /// A new sandbox. `namespace_is_meshed`: as far as that is known.
    pub fn announce(&mut self, announcement: Announcement, namespace_is_meshed: Option<bool>) -> Announced {
        let Announcement { question, netns, answer } = announcement;
        self.forget_old();
        let known = match &question.uid {
            Some(uid) => self.pods.get(&WorkloadId::new(uid)),
            None => self.pods.values().find(|workload| is_meant(&question, workload)),
        };
        let not_meshed = known.map_or(namespace_is_meshed == Some(false), |pod| !pod.meshed || pod.host_network);
        // Who does not wait any more is told nothing.
        if not_meshed {
            let _ = answer.send(Answer::NotMeshed);
            return Announced::Answered;
        }
        let (id, stale) = (known.map(|pod| pod.id.clone()), known.map(|pod| pod.ips.clone()).unwrap_or_default());
        // An earlier sandbox of the same pod has failed.
        self.announced.retain(|sandbox| {
            (&sandbox.question.namespace, &sandbox.question.name) != (&question.namespace, &question.name)
        });
        if self.announced.len() >= limits::CNI_SANDBOXES_MAX {
            let reason = format!("{} sandboxes wait for their pods already", self.announced.len());
            let _ = answer.send(Answer::NotCaptured { reason });
            return Announced::Answered;
        }
        let (netns, answer) = (Some(netns), Some(answer));
        self.announced.push(Sandbox { question, id: id.clone(), stale, netns, answer, since: Instant::now() });
        id.map_or(Announced::Unseen, Announced::Pod)
    }

    /// A pod of this node as it was placed last.
    #[must_use]
    pub fn pod(&mut self, id: &WorkloadId) -> Option<Arc<WorkloadIr>> {
        let workload = self.pods.get(id).cloned()?;
        Some(self.placed(&workload))
    }

    /// The namespace that was announced for a pod which is not captured yet.
    #[must_use]
    pub fn netns(&self, id: &WorkloadId) -> Option<OwnedFd> {
        let sandbox = self.announced.iter().find(|sandbox| sandbox.id.as_ref() == Some(id))?;
        sandbox.netns.as_ref()?.as_fd().try_clone_to_owned().ok()
    }

    /// The pod's processes, or its status, tell from now on where it is.
    pub fn captured(&mut self, id: &WorkloadId) {
        for sandbox in self.announced.iter_mut().filter(|sandbox| sandbox.id.as_ref() == Some(id)) {
            sandbox.netns = None;
        }
    }

    /// Answers the plugins for whose pods `state` has an answer.
    pub fn answer(&mut self, state: impl Fn(&WorkloadId) -> Option<Answer>) {
        for sandbox in &mut self.announced {
            let Some(id) = &sandbox.id else { continue };
            let is_meshed = self.pods.get(id).is_some_and(|pod| pod.meshed && !pod.host_network);
            let answer = if is_meshed { state(id) } else { Some(Answer::NotMeshed) };
            if let Some(answer) = answer
                && let Some(plugin) = sandbox.answer.take()
            {
                let _ = plugin.send(answer);
            }
        }
    }

    /// Sandboxes whose pods nobody has seen: they were given up.
    fn forget_old(&mut self) {
        self.announced.retain(|sandbox| sandbox.id.is_some() || sandbox.since.elapsed() < limits::CNI_SANDBOX_KEEP);
    }
}

fn is_meant(question: &Question, workload: &WorkloadIr) -> bool {
    match &question.uid {
        Some(uid) => *uid == *workload.id.0,
        // One that has addresses may be an earlier pod of the same name.
        None => {
            *question.namespace == *workload.namespace && *question.name == *workload.name && workload.ips.is_empty()
        }
    }
}

#[cfg(test)]
mod tests;
