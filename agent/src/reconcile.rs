//! From changed objects to plans in force. The only place that publishes snapshots, and the one that owns their order:
//! nothing is redirected to a proxy that lacks its plans, and nothing loses its plans while it is redirected.

use std::{collections::HashSet, os::fd::AsRawFd, path::PathBuf, sync::Arc};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use weft_abi::{DestKey, DestVerdict, verdict};
use weft_crds::{
    lower::{self, lower},
    store::ObjectStore,
    weft::node_workloads::PublishedPod,
};
use weft_policy::{
    compile::{CaptureAddr, Compiled, Reach},
    ir::{FailMode, WorkloadIr, WorkloadState},
    names::{ServiceAccountKey, WorkloadId},
};
use weft_proxy::socket::PodListeners;

use crate::{
    capture::{PodAttachment, convert::dest_key, handover::HandedListener},
    cni::{
        protocol::Answer,
        sandboxes::{Announced, Sandboxes},
        server::Announcement,
    },
    identity::book::PodRef,
    limits,
    locate::Locate,
    older::Older,
    pods::{Entry, PodState, pod_specs},
    readiness::Withdrawn,
    state::Shared,
    status::widened::{self, Widened},
    telemetry::Chain,
    udp::Udp,
    watch::{Change, SourceProblem},
};

/// Turns changes into plans, and keeps pods captured.
pub struct Reconciler {
    shared: Arc<Shared>,
    store: ObjectStore,
    /// Listeners that another agent handed over, until their pods are captured.
    handed: Vec<HandedListener>,
    /// What the CNI plugin announced.
    sandboxes: Sandboxes,
    older: Older,
    udp: Udp,
    /// Pods that live on without weft, and when what was carried through their namespaces has ended.
    leaving: Vec<(WorkloadId, Instant)>,
}

impl Reconciler {
    /// A reconciler with nothing in its store.
    #[must_use]
    pub fn new(shared: Arc<Shared>, handed: Vec<HandedListener>) -> Self {
        let sandboxes = Sandboxes::new(&shared.node);
        let store = ObjectStore::new(shared.mtls.is_strict());
        let (older, udp, leaving) = (Older::default(), Udp::default(), Vec::new());
        Self { shared, store, handed, sandboxes, older, udp, leaving }
    }

    /// Applies the first change, which is everything that the source has.
    pub async fn start(&mut self, change: Change) {
        self.apply(change).await;
        // Listeners of pods that this agent does not want: with the last descriptor gone, those pods are direct again.
        self.handed.clear();
        let mut capture = self.shared.capture();
        let known: HashSet<DestKey> =
            self.shared.compiler().reach().map(|(addr, _)| dest_key(addr.ip, addr.port)).collect();
        let cleared = capture.retain_destinations(&known).and_then(|()| capture.release_unclaimed());
        match cleared {
            Ok(0) => {}
            Ok(pods) => tracing::info!(pods, "pods of an earlier agent are released"),
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "leftovers of an earlier agent could not all be removed");
            }
        }
    }

    /// Follows changes until their sender is gone, and captures the sandboxes that the CNI plugin announces.
    pub async fn run(mut self, mut changes: mpsc::Receiver<Change>, mut announced: mpsc::Receiver<Announcement>) {
        let mut retry = tokio::time::interval(limits::POD_RETRY);
        retry.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut sandboxes = tokio::time::interval(limits::SANDBOX_LOOK);
        sandboxes.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                change = changes.recv() => match change {
                    Some(change) => self.apply(change).await,
                    None => return,
                },
                Some(announcement) = announced.recv() => self.capture_announced(announcement),
                _ = retry.tick() => self.retry_pods(),
                _ = sandboxes.tick() => {
                    self.follow_sandboxes();
                    self.finish_leaving();
                }
            }
            self.answer_plugins();
        }
    }

    async fn apply(&mut self, change: Change) {
        self.put_in_force(change).await;
        self.shared.sources.ledger.applied();
    }

    async fn put_in_force(&mut self, change: Change) {
        let known = std::mem::replace(&mut *self.shared.problems(), Arc::clone(&change.problems));
        if !Arc::ptr_eq(&known, &change.problems) {
            let known: HashSet<&SourceProblem> = known.iter().collect();
            for problem in change.problems.iter().filter(|problem| !known.contains(problem)) {
                tracing::warn!(
                    file = problem.file,
                    document = problem.document,
                    line = problem.line,
                    object = problem.object,
                    field = problem.field,
                    problem = problem.message,
                    "object is not used as written"
                );
            }
        }
        if change.events.is_empty() {
            return;
        }
        let dirty = self.store.apply(change.events);
        if dirty.is_empty() {
            return;
        }
        let delta = lower(&self.store, &dirty);
        let found = delta.diagnostics.values().chain(delta.access_diagnostics.values());
        for diagnostic in found.flatten().flat_map(|list| list.iter()) {
            tracing::warn!(object = %diagnostic.object, code = diagnostic.code, field = diagnostic.field, problem = diagnostic.message, "object does not work as written");
        }
        let placed = self.sandboxes.place(&delta.workloads);
        let pods = self.shared.pods().change(placed.iter().map(|(id, workload)| (id, workload)));
        let leave = self.withdraw(&pods.release, &placed).await;
        let deselected = widened::deselected(self.shared.compiler().ir(), &delta);
        let Compiled { snapshot, reach, closed } = self.shared.compiler().apply(delta);
        self.tell_widened(deselected);

        for id in &pods.release {
            if leave.contains(id) && !pods.attach.contains(id) {
                self.let_go(id);
            } else {
                self.release(id);
            }
        }
        let (gone, kept): (Vec<_>, Vec<_>) = reach.into_iter().partition(|(_, reach)| reach.is_none());
        self.set_destinations(&gone);
        let generation = snapshot.generation;
        let (closed, opened) = if closed.is_empty() && pods.attach.is_empty() {
            Default::default()
        } else {
            let denies = |id: &WorkloadId| snapshot.inbound.get(id).is_some_and(|plan| plan.is_closed());
            self.shared.pods().denying(denies)
        };
        // Before the plans that deny are in force, and after they are not any more: an agent that dies in between leaves nothing open.
        for id in &closed {
            self.set_fail_mode(id);
        }
        self.shared.snapshots.publish(snapshot);
        self.set_destinations(&kept);
        self.attach_all(&pods.attach);
        for id in pods.fail_mode.iter().chain(&opened) {
            self.set_fail_mode(id);
        }
        self.udp.follow(&self.shared);
        self.older.follow(&self.shared);
        tracing::info!(generation = generation.0, "plans are in force");
    }

    /// Has pods taken back that other nodes take for ready, and that live on without weft; these it returns. Nobody talks to those that are
    /// gone.
    async fn withdraw(
        &self,
        released: &[WorkloadId],
        changed: &[(WorkloadId, Option<Arc<WorkloadIr>>)],
    ) -> Vec<WorkloadId> {
        let lives = |id: &&WorkloadId| {
            let workload =
                changed.iter().find(|(changed, _)| changed == *id).and_then(|(_, workload)| workload.as_ref());
            workload.is_some_and(|workload| workload.state != WorkloadState::Ended)
        };
        let ids: Vec<WorkloadId> = released.iter().filter(lives).cloned().collect();
        for id in &ids {
            if let Err(error) = self.shared.capture().start_leaving(id) {
                tracing::warn!(pod = %id, error = %Chain(&error), "connections to a pod that leaves the mesh are captured until it has left");
            }
        }
        match self.shared.readiness.withdraw(&ids, limits::PUBLISH_WITHDRAW_MAX).await {
            Withdrawn::Unpublished => {}
            Withdrawn::Written => sleep(limits::PUBLISH_SEEN).await,
            Withdrawn::Late => tracing::warn!(
                pods = ids.len(),
                "pods leave the mesh before it is certain that other nodes know; connections of those that do not are reset"
            ),
        }
        ids
    }

    /// Pods that took only what was granted take everything now: that is told, as it may not have been meant.
    fn tell_widened(&self, deselected: Vec<Widened>) {
        let widened = widened::open(deselected, &self.shared.compiler());
        for Widened { destination, targets } in &widened {
            let last = targets.last().map(ToString::to_string).unwrap_or_default();
            tracing::warn!(%destination, last, "no TrafficTarget selects this destination any more; its pods take everything");
        }
        for _ in 0..self.shared.sources.ledger.widened(widened) {
            self.shared.sources.status_failed();
        }
    }

    fn set_destinations(&self, reach: &[(CaptureAddr, Option<Reach>)]) {
        let entries = reach.iter().map(|(addr, reach)| {
            let verdict = reach.map(|reach| match reach {
                Reach::Proxy => verdict::PROXY,
                Reach::Refuse => verdict::DENY,
            });
            (dest_key(addr.ip, addr.port), verdict.map(|verdict| DestVerdict { verdict, pad: 0 }))
        });
        if let Err(error) = self.shared.capture().set_destinations(entries) {
            tracing::error!(error = %Chain(&error), "not every destination could be written; those left out go direct");
        }
    }

    /// Captures pods. None of their connections is accepted before all are captured: one that was carried to a pod which still waits
    /// for its own turn would meet that pod's fail mode. Until then connections wait in the accept queues.
    fn attach_all(&mut self, ids: &[WorkloadId]) {
        let listeners: Vec<PodListeners> = ids.iter().filter_map(|id| self.attach(id)).collect();
        // A pod that was waited for may take datagrams as soon as its first process runs.
        self.udp.follow(&self.shared);
        for listeners in listeners {
            self.shared.proxy.add_pod(listeners);
        }
        for id in ids {
            self.publish(id);
        }
    }

    /// Lets other nodes be told of a pod that is captured. One that shares its node's addresses cannot be told apart by them.
    fn publish(&self, id: &WorkloadId) {
        let pods = self.shared.pods();
        let Some(Entry { workload, state: PodState::Captured { .. }, .. }) = pods.entry(id) else { return };
        if workload.host_network {
            return;
        }
        let mut ips = workload.ips.clone();
        ips.sort_unstable();
        self.shared.readiness.captured(PublishedPod {
            id: id.clone(),
            name: Arc::clone(&workload.name),
            account: ServiceAccountKey {
                namespace: Arc::clone(&workload.namespace),
                name: Arc::clone(&workload.service_account),
            },
            ips: ips.into(),
        });
    }

    fn attach(&mut self, id: &WorkloadId) -> Option<PodListeners> {
        // One that comes back.
        self.leaving.retain(|(leaving, _)| leaving != id);
        let (workload, fail_mode) =
            self.shared.pods().entry(id).map(|entry| (Arc::clone(&entry.workload), entry.fail_mode()))?;
        let announced = self.sandboxes.netns(id);
        let path = announced.as_ref().map(|netns| PathBuf::from(format!("/proc/self/fd/{}", netns.as_raw_fd())));
        let specs = pod_specs(&workload, fail_mode, &self.shared.locate, path.as_deref());
        let attached = specs.map_err(|error| error.to_string()).and_then(|specs| {
            let mut first_error = None;
            for spec in &specs {
                let attempt = self.shared.capture().attach_pod(spec, &mut self.handed);
                match attempt {
                    Ok(attached) => {
                        if spec.netns == path {
                            self.shared.capture().forget_place(id);
                        }
                        return Ok(attached);
                    }
                    Err(error) => first_error = first_error.or_else(|| Some(Chain(&error).to_string())),
                }
            }
            Err(first_error.unwrap_or_default())
        });
        match attached {
            Ok(PodAttachment { listeners, connections_before, .. }) => {
                self.shared.pods().set(id, PodState::Captured { connections_before });
                self.sandboxes.captured(id);
                tracing::info!(namespace = %workload.namespace, pod = %workload.name, connections_before, "pod is captured");
                if let Some(identity) = &self.shared.identity {
                    identity.use_account(PodRef::new(id, &workload));
                }
                Some(listeners)
            }
            Err(reason) => {
                if self.shared.pods().set(id, PodState::Failed { reason: reason.clone() }) {
                    tracing::warn!(namespace = %workload.namespace, pod = %workload.name, reason, "pod is not captured");
                }
                None
            }
        }
    }

    /// Tells the kernel a pod's fail mode. A failure does not hold plans back, which deny while the agent lives; it is tried again.
    fn set_fail_mode(&self, id: &WorkloadId) {
        let Some(fail_mode) = self.shared.pods().entry(id).map(Entry::fail_mode) else { return };
        let written = self.shared.capture().set_fail_closed(id, fail_mode == FailMode::Closed);
        let error = written.err().map(|error| Chain(&error).to_string());
        if self.shared.pods().set_fail_mode_error(id, error.clone()) {
            match error {
                Some(error) => tracing::error!(pod = %id, error, "fail mode stays as it was, and is tried again"),
                None => tracing::info!(pod = %id, "fail mode is in force at last"),
            }
        }
    }

    /// Releases a pod that lives on: who is being served through the agent is served to the end.
    fn let_go(&mut self, id: &WorkloadId) {
        self.shared.readiness.gone(id);
        if let Err(error) = self.shared.capture().let_go(id) {
            tracing::warn!(pod = %id, error = %Chain(&error), "pod was released only in part");
        }
        self.shared.proxy.let_go(id);
        if let Some(identity) = &self.shared.identity {
            identity.release(id);
        }
        self.leaving.push((id.clone(), Instant::now() + limits::POD_LEAVES_IN));
        tracing::info!(pod = %id, "pod is released");
    }

    fn finish_leaving(&mut self) {
        let now = Instant::now();
        for (id, _) in self.leaving.extract_if(.., |(_, at)| *at <= now) {
            if let Err(error) = self.shared.capture().finish_leaving(&id) {
                tracing::warn!(pod = %id, error = %Chain(&error), "pod was released only in part");
            }
        }
    }

    fn release(&self, id: &WorkloadId) {
        self.shared.readiness.gone(id);
        // Capture first: from then on the kernel hands the proxy nothing more of this pod.
        if let Err(error) = self.shared.capture().release_pod(id) {
            tracing::warn!(pod = %id, error = %Chain(&error), "pod was released only in part");
        }
        self.shared.proxy.remove_pod(id);
        if let Some(identity) = &self.shared.identity {
            identity.release(id);
        }
        tracing::info!(pod = %id, "pod is released");
    }

    /// Captures a sandbox in which nothing runs yet, if its pod has been seen; otherwise that is done as soon as it is.
    fn capture_announced(&mut self, announcement: Announcement) {
        let meshed = lower::namespace_is_meshed(&self.store, &announcement.question.namespace);
        let Announced::Pod(id) = self.sandboxes.announce(announcement, meshed) else { return };
        let (Some(pod), Some(netns)) = (self.sandboxes.pod(&id), self.sandboxes.netns(&id)) else { return };
        let changes = self.shared.pods().change([(&id, &Some(pod))]);
        for id in &changes.release {
            self.release(id);
        }
        let snapshot = self.shared.snapshots.load();
        let denies = |id: &WorkloadId| snapshot.inbound.get(id).is_some_and(|plan| plan.is_closed());
        let (closed, opened) = self.shared.pods().denying(denies);
        for id in closed.iter().chain(&opened) {
            self.set_fail_mode(id);
        }
        let is_captured = || self.shared.pods().entry(&id).is_some_and(|entry| entry.state.is_captured());
        if changes.attach.is_empty() && is_captured() {
            let path = PathBuf::from(format!("/proc/self/fd/{}", netns.as_raw_fd()));
            if self.shared.capture().found_at(&id, &path) {
                self.shared.capture().forget_place(&id);
                self.sandboxes.captured(&id);
                return;
            }
            // Another sandbox with the same addresses.
            self.release(&id);
        }
        self.attach_all(&[id]);
    }

    /// Tells the plugins that wait what became of their sandboxes.
    fn answer_plugins(&mut self) {
        let pods = self.shared.pods();
        self.sandboxes.answer(|id| match &pods.entry(id)?.state {
            PodState::Captured { .. } => Some(Answer::Captured),
            PodState::Failed { reason } => Some(Answer::NotCaptured { reason: reason.clone() }),
            PodState::Waiting => None,
        });
    }

    /// Captures pods anew whose sandbox was made anew under the same name and UID.
    fn follow_sandboxes(&mut self) {
        let mut replaced = self.shared.capture().replaced_pods();
        if matches!(self.shared.locate, Locate::Host(_)) {
            // Paths are those of processes, which come and go while the namespace stays.
            replaced.extend(self.shared.capture().lost_pods());
            replaced.retain(|id| self.is_elsewhere(id));
        }
        for id in &replaced {
            tracing::info!(pod = %id, "pod has another network namespace than the one that is captured");
            self.release(id);
        }
        self.attach_all(&replaced);
        self.udp.follow(&self.shared);
        self.older.follow(&self.shared);
    }

    /// Whether a captured pod runs in other namespaces than the one that is captured. One that runs nowhere is left as it is.
    fn is_elsewhere(&self, id: &WorkloadId) -> bool {
        let Some(workload) = self.shared.pods().entry(id).map(|entry| Arc::clone(&entry.workload)) else {
            return false;
        };
        let Ok(place) = self.shared.locate.find(&workload) else { return false };
        let mut capture = self.shared.capture();
        !place.netns.iter().any(|path| capture.found_at(id, path))
    }

    /// Tries again what could not be done: capturing pods, and telling the kernel their fail modes.
    fn retry_pods(&mut self) {
        let fail_modes = self.shared.pods().fail_mode_failed();
        for id in &fail_modes {
            self.set_fail_mode(id);
        }
        let failed = self.shared.pods().failed();
        self.attach_all(&failed);
    }
}
