//! Which certificates this node needs, and when each is asked for. Pure: time comes in, what to do comes out.
//!
//! Two clocks: certificates end by the wall clock, and waiting is done by one that never jumps. When the two disagree about how much time
//! has passed, the wall clock was set, and everything that waits is thought over again.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use weft_identity::{Credential, key::PrivateKey};
use weft_policy::{
    ir::WorkloadIr,
    names::{ServiceAccountKey, WorkloadId},
};

use crate::limits;

/// Now, by both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// What certificates are dated by.
    pub wall: SystemTime,
    /// Since some moment of this process; never jumps.
    pub steady: Duration,
}

/// A pod that needs the certificate of its service account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRef {
    /// Its UID.
    pub id: WorkloadId,
    /// Its name.
    pub name: Arc<str>,
    /// Its service account, and by that its namespace.
    pub account: ServiceAccountKey,
}

impl PodRef {
    /// A pod, and whom it runs as.
    #[must_use]
    pub fn new(id: &WorkloadId, workload: &WorkloadIr) -> Self {
        let account =
            ServiceAccountKey { namespace: workload.namespace.clone(), name: workload.service_account.clone() };
        Self { id: id.clone(), name: workload.name.clone(), account }
    }
}

/// Why a certificate could not be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// One word, for metrics.
    pub reason: String,
    /// For people.
    pub words: String,
}

/// A credential, and what it takes to make it anew with other roots.
#[derive(Clone)]
pub struct Held {
    /// What is used.
    pub credential: Arc<Credential>,
    /// Its key.
    pub key: Arc<PrivateKey>,
    /// The authority's epoch at which it was asked for.
    pub epoch: u64,
}

/// What is known of one service account.
#[derive(Default)]
pub struct Entry {
    /// Pods that run as it.
    pods: BTreeMap<WorkloadId, PodRef>,
    /// What it has.
    pub held: Option<Held>,
    /// When it is renewed, by the wall clock.
    pub renew_at: Option<SystemTime>,
    /// When the authority is asked next, by the steady clock.
    due: Duration,
    asking: bool,
    failures: u32,
    /// Why asking failed last, until it succeeds.
    pub problem: Option<Problem>,
    idle_since: Option<Duration>,
    /// It has had one in this process.
    had: bool,
}

/// What to do now.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// By how much the wall clock was set, seconds; forward is positive.
    pub jumped: Option<i64>,
    /// Accounts whose credential is no more: it has ended, or nobody uses it.
    pub dropped: Vec<ServiceAccountKey>,
    /// Of these, the ones that pods still need.
    pub expired: Vec<ServiceAccountKey>,
    /// What to ask for, each by one of its pods.
    pub ask: Vec<PodRef>,
}

/// Everything that is needed, and when.
#[derive(Default)]
pub struct Book {
    entries: BTreeMap<ServiceAccountKey, Entry>,
    last: Option<Moment>,
    /// The authority's epoch: what was asked for before it is to be asked for again.
    epoch: u64,
}

impl Book {
    /// All accounts.
    pub fn iter(&self) -> impl Iterator<Item = (&ServiceAccountKey, &Entry)> {
        self.entries.iter()
    }

    /// A pod runs as an account. Returns whether that is news.
    pub fn use_account(&mut self, pod: PodRef, now: Moment) -> bool {
        let entry = self.entries.entry(pod.account.clone()).or_default();
        entry.idle_since = None;
        if entry.pods.is_empty() && entry.held.is_none() {
            entry.due = now.steady;
        }
        entry.pods.insert(pod.id.clone(), pod).is_none()
    }

    /// A pod is gone.
    pub fn release(&mut self, id: &WorkloadId, now: Moment) {
        for entry in self.entries.values_mut() {
            if entry.pods.remove(id).is_some() && entry.pods.is_empty() {
                entry.idle_since = Some(now.steady);
            }
        }
    }

    /// What there is to do now; at most `room` accounts are asked for.
    pub fn step(&mut self, now: Moment, room: usize) -> Step {
        let mut step = Step { jumped: self.jump(now), ..Step::default() };
        if step.jumped.is_some() {
            for entry in self.entries.values_mut() {
                entry.reschedule(now);
            }
        }
        for (account, entry) in &mut self.entries {
            if entry.held.as_ref().is_some_and(|held| held.credential.is_expired(now.wall)) {
                entry.held = None;
                entry.renew_at = None;
                step.dropped.push(account.clone());
                if !entry.pods.is_empty() {
                    step.expired.push(account.clone());
                    // Nothing is left to wait for.
                    entry.due = entry.due.min(now.steady);
                }
            }
        }
        let unused = |entry: &Entry| {
            entry.idle_since.is_some_and(|since| now.steady.saturating_sub(since) >= limits::IDENTITY_IDLE)
        };
        let gone: Vec<_> =
            self.entries.iter().filter(|(_, entry)| unused(entry)).map(|(account, _)| account.clone()).collect();
        for account in gone {
            self.entries.remove(&account);
            step.dropped.push(account);
        }
        for entry in self.entries.values_mut().filter(|entry| entry.is_due(now)).take(room) {
            // Another one each time: the authority may not know of the first any more.
            let turn = entry.failures as usize % entry.pods.len().max(1);
            if let Some(pod) = entry.pods.values().nth(turn) {
                entry.asking = true;
                step.ask.push(pod.clone());
            }
        }
        step
    }

    /// How long there is nothing to do, at most [`limits::IDENTITY_CLOCK_LOOK`].
    pub fn idle(&self, now: Moment) -> Duration {
        let due = self.entries.values().filter_map(|entry| {
            let asked = (!entry.asking && !entry.pods.is_empty()).then_some(entry.due);
            let ends = entry.held.as_ref().map(|held| {
                let left = held.credential.svid().not_after.duration_since(now.wall).unwrap_or_default();
                now.steady + left
            });
            let forgotten = entry.idle_since.map(|since| since + limits::IDENTITY_IDLE);
            [asked, ends, forgotten].into_iter().flatten().min()
        });
        due.min()
            .map_or(limits::IDENTITY_CLOCK_LOOK, |due| due.saturating_sub(now.steady))
            .min(limits::IDENTITY_CLOCK_LOOK)
    }

    /// A credential came for an account. `jitter` is from 0 to 1. Returns whether anybody still wants it.
    pub fn took(&mut self, account: &ServiceAccountKey, held: Held, jitter: f64, now: Moment) -> bool {
        let Some(entry) = self.entries.get_mut(account) else { return false };
        entry.asking = false;
        entry.failures = 0;
        entry.problem = None;
        let renew_at = renewal(&held.credential, jitter);
        // What was asked for before the epoch rose is asked for again.
        let is_old = held.epoch < self.epoch;
        entry.held = Some(held);
        entry.had = true;
        entry.renew_at = Some(renew_at);
        entry.reschedule(now);
        if is_old {
            entry.due = now.steady;
        }
        true
    }

    /// Asking for an account failed; what it has stays. `jitter` is from 0 to 1.
    pub fn failed(&mut self, account: &ServiceAccountKey, problem: Problem, jitter: f64, now: Moment) {
        let Some(entry) = self.entries.get_mut(account) else { return };
        entry.asking = false;
        entry.due = now.steady + pause(entry.failures, jitter);
        entry.failures = entry.failures.saturating_add(1);
        entry.problem = Some(problem);
    }

    /// The same certificate is used with other roots.
    pub fn replaced(&mut self, account: &ServiceAccountKey, credential: Arc<Credential>) {
        if let Some(held) = self.entries.get_mut(account).and_then(|entry| entry.held.as_mut()) {
            held.credential = credential;
        }
    }

    /// An account's certificate is to be asked for at once.
    pub fn hurry(&mut self, account: &ServiceAccountKey, problem: Problem, now: Moment) {
        if let Some(entry) = self.entries.get_mut(account) {
            entry.problem = Some(problem);
            entry.due = now.steady;
        }
    }

    /// The authority's epoch rose: everything is to be asked for again, spread over [`limits::IDENTITY_REISSUE_SPREAD`]. `jitter` gives
    /// numbers from 0 to 1.
    pub fn reissue(&mut self, epoch: u64, mut jitter: impl FnMut() -> f64, now: Moment) {
        if epoch <= self.epoch {
            return;
        }
        self.epoch = epoch;
        // What an agent before this one kept may have been asked for since.
        for entry in
            self.entries.values_mut().filter(|entry| entry.held.as_ref().is_some_and(|held| held.epoch < epoch))
        {
            entry.due = entry.due.min(now.steady + limits::IDENTITY_REISSUE_SPREAD.mul_f64(jitter()));
        }
    }

    /// The epoch for which certificates are asked for now.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The highest epoch for which everything that is held was asked for.
    pub fn reissued(&self) -> u64 {
        self.entries.values().filter_map(|entry| entry.held.as_ref()).map(|held| held.epoch).min().unwrap_or(self.epoch)
    }

    fn jump(&mut self, now: Moment) -> Option<i64> {
        let last = self.last.replace(now)?;
        let steady = now.steady.saturating_sub(last.steady);
        // What the wall clock should say now.
        let expected = last.wall.checked_add(steady)?;
        let (seconds, forward) = match now.wall.duration_since(expected) {
            Ok(ahead) => (ahead, true),
            Err(behind) => (behind.duration(), false),
        };
        if seconds < limits::IDENTITY_CLOCK_JUMP {
            return None;
        }
        let seconds = i64::try_from(seconds.as_secs()).unwrap_or(i64::MAX);
        Some(if forward { seconds } else { -seconds })
    }
}

impl Entry {
    fn is_due(&self, now: Moment) -> bool {
        !self.asking && !self.pods.is_empty() && self.due <= now.steady
    }

    /// From the wall clock's moment to the steady one's. One that waits after a failure goes on waiting.
    fn reschedule(&mut self, now: Moment) {
        if let (Some(renew_at), 0) = (self.renew_at, self.failures) {
            // One of the future is refused by all whose clocks are as this one. Either the authority's is, too, and gives one of now; or
            // what it gives is refused with that reason, and so somebody is told which clock is wrong.
            let is_ahead = self.held.as_ref().is_some_and(|held| held.credential.is_ahead(now.wall));
            let left = renew_at.duration_since(now.wall).unwrap_or_default();
            self.due = now.steady + if is_ahead { Duration::ZERO } else { left };
        }
    }

    /// How long until the authority is asked, by the steady clock.
    pub fn asks_in(&self, now: Moment) -> Duration {
        self.due.saturating_sub(now.steady)
    }

    /// Whether it has had one, in this process.
    #[must_use]
    pub fn was_held(&self) -> bool {
        self.had
    }

    /// How many pods run as it.
    pub fn pods(&self) -> usize {
        self.pods.len()
    }
}

/// When a certificate is renewed: half of its life, give or take [`limits::IDENTITY_JITTER`] of that.
fn renewal(credential: &Credential, jitter: f64) -> SystemTime {
    let svid = credential.svid();
    let half = svid.half_life().duration_since(svid.not_before).unwrap_or_default();
    svid.not_before + half.mul_f64(1.0 + limits::IDENTITY_JITTER * (2.0 * jitter.clamp(0.0, 1.0) - 1.0))
}

/// How long to wait after a failure that `failures` others preceded.
pub(super) fn pause(failures: u32, jitter: f64) -> Duration {
    let doubled = limits::IDENTITY_BACKOFF_FIRST.saturating_mul(1 << failures.min(16));
    let spread = 1.0 + limits::IDENTITY_BACKOFF_JITTER * (2.0 * jitter.clamp(0.0, 1.0) - 1.0);
    doubled.min(limits::IDENTITY_BACKOFF_MAX).mul_f64(spread)
}

#[cfg(test)]
mod tests;
