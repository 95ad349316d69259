//! Says on the objects themselves what became of them: conditions in their status, and Events. One agent of the cluster writes, the holder
//! of a Lease, and only what differs from what is there. Beside it each agent publishes its own pods (`publish`).
//!
//! Nothing else of weft writes to the API server.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use kube::Client;
use tokio::time::{Instant, MissedTickBehavior, interval};
use weft_crds::object::{Kind, ObjectKey};
use weft_policy::diagnostic::Diagnostic;

use crate::{limits, state::Shared, watch::kube::ledger::Note};

mod conditions;
mod events;
pub(crate) mod lease;
mod parents;
pub mod publish;
pub mod widened;
mod writer;

use conditions::Outcome;
use lease::Lease;
use writer::{WriteError, Writer};

/// Name of the Lease in the agent's own namespace.
const LEASE: &str = "weft-status";

/// Who writes, and where the Lease is.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The agent's own namespace.
    pub namespace: String,
    /// Tells this agent from every other one, also from one that runs on the same node before or after it.
    pub holder: String,
}

impl Identity {
    /// The agent on this node, in this namespace.
    #[must_use]
    pub fn new(namespace: &str, node: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            holder: format!("{node}_{}_{:08x}", std::process::id(), fastrand::u32(..)),
        }
    }
}

/// Keeps the status of objects as it should be.
pub struct Status {
    shared: Arc<Shared>,
    writer: Writer,
    lease: Lease,
    identity: Identity,
    /// What was looked at last, so that a round without news costs nothing.
    seen: Option<(u64, u64)>,
    /// What was written, until it is seen on the object.
    written: BTreeMap<ObjectKey, (Outcome, Instant)>,
    /// Kinds whose CRD has no status subresource: they get Events only.
    without_status: BTreeSet<Kind>,
    /// Why the last status was not written, once that was said.
    complaint: Option<String>,
    /// What was said by Events of objects without status.
    told: BTreeMap<ObjectKey, Outcome>,
}

impl Status {
    /// A writer that has written nothing.
    #[must_use]
    pub fn new(client: &Client, shared: Arc<Shared>, identity: Identity) -> Self {
        Self {
            shared,
            writer: Writer::new(client.clone(), &identity),
            lease: Lease::new(client.clone(), &identity, LEASE),
            identity,
            seen: None,
            written: BTreeMap::new(),
            without_status: BTreeSet::new(),
            complaint: None,
            told: BTreeMap::new(),
        }
    }

    /// Writes for as long as this agent holds the Lease, and waits for it otherwise. Never ends.
    pub async fn run(mut self) {
        let mut renew = interval(limits::LEASE_RENEW);
        renew.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut round = interval(limits::STATUS_ROUND);
        round.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                _ = renew.tick() => {
                    let held = self.lease.is_held();
                    self.lease.renew().await;
                    if self.lease.is_held() && !held {
                        tracing::info!(holder = self.identity.holder, "this agent writes the status of objects");
                        self.seen = None;
                    }
                }
                _ = round.tick() => if self.lease.is_held() {
                    self.tell_widened().await;
                    self.round().await;
                },
            }
        }
    }

    /// Looks at every object once, and writes what has to be written.
    async fn round(&mut self) {
        for (key, note, outcome) in self.due() {
            let kind = key.kind;
            let is_news = conditions::is_news(&note, &outcome);
            let news = outcome.clone();
            if self.without_status.contains(&kind) {
                if self.told.get(&key) != Some(&outcome) && self.tell(&key, &note, &outcome).await {
                    self.told.insert(key, outcome);
                }
                continue;
            }
            match self.writer.set_conditions(&note, &outcome).await {
                Ok(()) => {
                    self.complaint = None;
                    self.shared.sources.status_written();
                    self.written.insert(key.clone(), (outcome, Instant::now()));
                    if is_news {
                        self.tell(&key, &note, &news).await;
                    }
                }
                Err(WriteError::NoStatus) => {
                    tracing::warn!(
                        kind = kind.as_str(),
                        "the CRD of this kind has no status subresource; its objects get Events only"
                    );
                    self.without_status.insert(kind);
                    self.seen = None;
                }
                // The object changed meanwhile; the watch brings its new state, and this comes round again.
                Err(WriteError::Stale) => self.seen = None,
                Err(WriteError::Failed(error, asked)) => {
                    self.seen = None;
                    self.shared.sources.status_failed();
                    if self.complaint.as_ref() != Some(&error) {
                        tracing::warn!(object = %key, error, "status is not written; it is tried again");
                        self.complaint = Some(error);
                    }
                    let pause = asked.unwrap_or_default().clamp(limits::STATUS_PAUSE, limits::KUBE_BACKOFF_MAX);
                    return tokio::time::sleep(pause).await;
                }
            }
        }
    }

    /// Says of destinations that nothing guards any more that it is so. Other agents forget it, unless they get the Lease in time.
    async fn tell_widened(&self) {
        loop {
            let next = {
                let mut ledger = self.shared.sources.ledger.state();
                ledger.widenings.retain(|one| one.at.elapsed() < limits::WIDENING_TOLD_WITHIN);
                ledger.widenings.pop_front()
            };
            let Some(widening) = next else { return };
            match self.writer.event(&events::widened(&widening)).await {
                Ok(()) => self.shared.sources.status_written(),
                Err(error) => {
                    self.shared.sources.status_failed();
                    tracing::debug!(destination = %widening.widened.destination, %error, "an Event is not written");
                    return self.shared.sources.ledger.state().widenings.push_front(widening);
                }
            }
        }
    }

    async fn tell(&self, key: &ObjectKey, note: &Note, outcome: &Outcome) -> bool {
        match self.writer.event(&events::of(key, note, outcome)).await {
            Ok(()) => {
                self.shared.sources.status_written();
                true
            }
            Err(error) => {
                self.shared.sources.status_failed();
                tracing::debug!(object = %key, %error, "an Event is not written");
                false
            }
        }
    }

    /// The objects whose status is not what it should be, at most as many as one round may write.
    fn due(&mut self) -> Vec<(ObjectKey, Note, Outcome)> {
        let ledger = self.shared.sources.ledger.state();
        let now = (ledger.noted, self.shared.snapshots.generation().0);
        if !ledger.is_in_force() || self.seen == Some(now) {
            return Vec::new();
        }
        let mut findings: BTreeMap<(String, String, String), Vec<Diagnostic>> = BTreeMap::new();
        for finding in self.shared.compiler().diagnostics() {
            let object = &finding.object;
            let name = (object.kind.to_string(), object.namespace.to_string(), object.name.to_string());
            findings.entry(name).or_default().push(finding);
        }
        self.written.retain(|key, (_, at)| ledger.notes.contains_key(key) && at.elapsed() < limits::STATUS_ECHO);
        self.told.retain(|key, _| ledger.notes.contains_key(key));
        let mut due = Vec::new();
        for (key, note) in &ledger.notes {
            let name = (key.kind.as_str().to_owned(), key.namespace.to_string(), key.name.to_string());
            let outcome = Outcome::new(note, findings.get(&name).map_or(&[], Vec::as_slice));
            let is_there = conditions::is_written(note, &outcome)
                || self.written.get(key).is_some_and(|(written, _)| *written == outcome)
                || self.told.get(key) == Some(&outcome);
            if is_there {
                continue;
            }
            if due.len() == limits::STATUS_WRITES_PER_ROUND {
                return due;
            }
            due.push((key.clone(), note.clone(), outcome));
        }
        self.seen = Some(now);
        due
    }
}
