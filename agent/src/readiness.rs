//! Which of this node's pods other nodes are told to take mutual TLS: those that are captured, whose service account has a certificate
//! here, and that have proved that they take it. What is told of a pod is taken back before the pod is let go of.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::timeout,
};
use weft_crds::weft::node_workloads::PublishedPod;
use weft_policy::names::{ServiceAccountKey, WorkloadId};

/// Whether a service account has a certificate that is valid now.
pub type HasCertificate = Box<dyn Fn(&ServiceAccountKey) -> bool + Send + Sync>;

/// Why a captured pod is not published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Withheld {
    /// This agent has no identities at all.
    NoIdentity,
    /// Its service account has no certificate yet, or not any more.
    NoCertificate,
    /// It has not proved yet that it takes mutual TLS.
    Unproved,
}

impl Withheld {
    /// Every reason.
    pub const ALL: [Self; 3] = [Self::NoIdentity, Self::NoCertificate, Self::Unproved];

    /// Whether it is likely to pass by itself soon after a start.
    #[must_use]
    pub fn may_pass(self) -> bool {
        matches!(self, Self::NoCertificate | Self::Unproved)
    }

    /// As a label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoIdentity => "no_identity",
            Self::NoCertificate => "no_certificate",
            Self::Unproved => "unproved",
        }
    }
}

/// What became of taking pods back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Withdrawn {
    /// None of them was published.
    Unpublished,
    /// They are not published any more, and other nodes are about to hear of it.
    Written,
    /// Some may still be published.
    Late,
}

/// What is known of this node's pods, as far as publishing them goes.
#[derive(Default)]
pub struct Readiness {
    pods: Mutex<State>,
    certificates: OnceLock<HasCertificate>,
    /// Whether each pod has to prove itself first.
    proof: AtomicBool,
    /// A pod was captured.
    news: Notify,
    /// Something must be taken back at once.
    urgent: Notify,
    published: watch::Sender<Arc<BTreeSet<WorkloadId>>>,
    late: AtomicU64,
}

#[derive(Default)]
struct State {
    captured: BTreeMap<WorkloadId, PublishedPod>,
    /// Why each of them has not proved itself; in words, if it was tried.
    unproved: BTreeMap<WorkloadId, String>,
}

impl Readiness {
    /// Says who knows which service accounts have a certificate. Until then nothing is published. Said once.
    pub fn set_certificates(&self, has: HasCertificate) {
        // Whoever comes second is not believed.
        let _ = self.certificates.set(has);
    }

    /// From now on a pod is published only after [`proved`](Self::proved).
    pub fn require_proof(&self) {
        self.proof.store(true, Ordering::Relaxed);
        let mut state = self.state();
        let captured: Vec<_> = state.captured.keys().cloned().collect();
        state.unproved.extend(captured.into_iter().map(|id| (id, String::new())));
    }

    /// A pod with its own addresses is captured.
    pub fn captured(&self, pod: PublishedPod) {
        let mut state = self.state();
        let is_new = state.captured.insert(pod.id.clone(), pod.clone()).is_none_or(|before| before != pod);
        if is_new && self.proof.load(Ordering::Relaxed) {
            state.unproved.insert(pod.id, String::new());
            self.news.notify_one();
        }
    }

    /// Until a pod was captured that has not proved itself.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    /// The pods that have a certificate to prove themselves with, and have not done so.
    #[must_use]
    pub fn unproved(&self) -> Vec<PublishedPod> {
        let state = self.state();
        let has = |account| self.certificates.get().is_some_and(|has_certificate| has_certificate(account));
        let unproved = state.unproved.keys().filter_map(|id| state.captured.get(id));
        unproved.filter(|pod| has(&pod.account)).cloned().collect()
    }

    /// A pod has taken mutual TLS, or why it has not. Tells whether that is news.
    pub fn proved(&self, pod: &PublishedPod, outcome: Result<(), String>) -> bool {
        let mut state = self.state();
        // It may be another one by now.
        if state.captured.get(&pod.id) != Some(pod) {
            return false;
        }
        match outcome {
            Ok(()) => state.unproved.remove(&pod.id).is_some(),
            Err(reason) => state.unproved.insert(pod.id.clone(), reason.clone()).is_some_and(|before| before != reason),
        }
    }

    /// A pod is not captured any more, and nobody waits for other nodes to hear of it.
    pub fn gone(&self, id: &WorkloadId) {
        let mut state = self.state();
        state.captured.remove(id);
        state.unproved.remove(id);
    }

    /// Has pods taken back that are about to be let go of, and waits until they are, but no longer than `at_most`.
    pub async fn withdraw(&self, ids: &[WorkloadId], at_most: Duration) -> Withdrawn {
        for id in ids {
            self.gone(id);
        }
        let mut published = self.published.subscribe();
        if !ids.iter().any(|id| published.borrow().contains(id)) {
            return Withdrawn::Unpublished;
        }
        self.urgent.notify_one();
        let done = published.wait_for(|published| !ids.iter().any(|id| published.contains(id)));
        let done = timeout(at_most, done).await.is_ok_and(|done| done.is_ok());
        if !done {
            let left = ids.iter().filter(|id| self.published.borrow().contains(*id)).count();
            self.late.fetch_add(left.try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
            return Withdrawn::Late;
        }
        Withdrawn::Written
    }

    /// The pods to publish, by their UIDs.
    #[must_use]
    pub fn wanted(&self) -> BTreeMap<WorkloadId, PublishedPod> {
        let state = self.state();
        let wanted = state.captured.iter().filter(|(id, pod)| self.withheld_by(&state, id, pod).is_none());
        wanted.map(|(id, pod)| (id.clone(), pod.clone())).collect()
    }

    /// The captured pods that are not to be published, why, and in words where there are any.
    #[must_use]
    pub fn withheld(&self) -> Vec<(PublishedPod, Withheld, String)> {
        let state = self.state();
        let withheld = state.captured.iter().filter_map(|(id, pod)| {
            let why = self.withheld_by(&state, id, pod)?;
            Some((pod.clone(), why, state.unproved.get(id).cloned().unwrap_or_default()))
        });
        withheld.collect()
    }

    /// Pods that were let go of while they were still published.
    #[must_use]
    pub fn late(&self) -> u64 {
        self.late.load(Ordering::Relaxed)
    }

    /// What other nodes are told, as far as this one knows.
    #[must_use]
    pub fn published(&self) -> Arc<BTreeSet<WorkloadId>> {
        Arc::clone(&self.published.borrow())
    }

    /// These pods are published now.
    pub(crate) fn set_published(&self, ids: BTreeSet<WorkloadId>) {
        self.published.send_if_modified(|published| {
            let news = **published != ids;
            if news {
                *published = Arc::new(ids);
            }
            news
        });
    }

    /// Until something must be taken back at once.
    pub(crate) async fn urgent(&self) {
        self.urgent.notified().await;
    }

    fn withheld_by(&self, state: &State, id: &WorkloadId, pod: &PublishedPod) -> Option<Withheld> {
        let Some(has_certificate) = self.certificates.get() else { return Some(Withheld::NoIdentity) };
        if !has_certificate(&pod.account) {
            return Some(Withheld::NoCertificate);
        }
        state.unproved.contains_key(id).then_some(Withheld::Unproved)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(id: &str, account: &str) -> PublishedPod {
        PublishedPod {
            id: WorkloadId::new(id),
            name: id.into(),
            account: ServiceAccountKey::new("shop", account),
            ips: ["10.0.0.1".parse().unwrap()].into(),
        }
    }

    fn ids(readiness: &Readiness) -> Vec<String> {
        readiness.wanted().keys().map(ToString::to_string).collect()
    }

    #[test]
    fn a_pod_is_published_once_it_is_captured_and_certified() {
        let readiness = Readiness::default();
        readiness.captured(pod("a", "web"));
        readiness.captured(pod("b", "db"));
        assert_eq!(ids(&readiness), [""; 0], "an agent without identities publishes nothing");
        assert_eq!(readiness.withheld()[0].1, Withheld::NoIdentity);
        readiness.set_certificates(Box::new(|account| &*account.name == "web"));
        assert_eq!(ids(&readiness), ["a"]);
        assert_eq!(readiness.withheld()[0].1, Withheld::NoCertificate);
        readiness.gone(&WorkloadId::new("a"));
        assert_eq!((ids(&readiness).len(), readiness.withheld().len()), (0, 1));
    }

    #[test]
    fn where_proof_is_required_a_pod_is_published_once_it_has_proved_itself() {
        let readiness = Readiness::default();
        readiness.set_certificates(Box::new(|account| &*account.name == "web"));
        let (a, b) = (pod("a", "web"), pod("b", "db"));
        readiness.captured(a.clone());
        readiness.require_proof();
        readiness.captured(b);
        assert_eq!(
            (ids(&readiness), readiness.unproved()),
            (Vec::new(), vec![a.clone()]),
            "b has nothing to prove it with"
        );
        assert!(readiness.proved(&a, Err("reset".to_owned())));
        assert!(!readiness.proved(&a, Err("reset".to_owned())), "that is no news");
        assert_eq!((readiness.withheld()[0].1, readiness.withheld()[0].2.as_str()), (Withheld::Unproved, "reset"));
        assert!(readiness.proved(&a, Ok(())));
        assert_eq!(ids(&readiness), ["a"]);
        // The same again is no news, another address is.
        readiness.captured(a.clone());
        assert_eq!(ids(&readiness), ["a"]);
        let moved = PublishedPod { ips: ["10.0.0.2".parse().unwrap()].into(), ..a.clone() };
        readiness.captured(moved);
        assert_eq!(ids(&readiness), [""; 0]);
        assert!(!readiness.proved(&a, Ok(())), "what was proved of the other one counts for nothing");
    }

    #[tokio::test]
    async fn whoever_lets_go_of_a_pod_waits_until_it_is_taken_back_but_not_for_ever() {
        let readiness = Arc::new(Readiness::default());
        let at_most = Duration::from_millis(50);
        let a = [WorkloadId::new("a")];
        let withdrawn = readiness.withdraw(&a, at_most).await;
        assert_eq!(withdrawn, Withdrawn::Unpublished, "what was never published needs no wait");
        readiness.set_published(a.iter().cloned().collect());
        let started = tokio::time::Instant::now();
        assert_eq!(readiness.withdraw(&a, at_most).await, Withdrawn::Late);
        assert!(started.elapsed() >= at_most);
        assert_eq!(readiness.late(), 1);
        let other = Arc::clone(&readiness);
        let publisher = tokio::spawn(async move {
            other.urgent().await;
            other.set_published(BTreeSet::new());
        });
        assert_eq!(readiness.withdraw(&a, Duration::from_secs(60)).await, Withdrawn::Written);
        publisher.await.unwrap();
        assert_eq!(readiness.late(), 1);
    }
}
