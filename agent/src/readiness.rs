//! Which of this node's pods other nodes are told to take mutual TLS: those that are captured, whose service account has a certificate
//! here, and that nobody holds back. What is told of a pod is taken back before the pod is let go of.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
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
    /// Somebody holds it back: it did not pass its probe.
    HeldBack,
}

impl Withheld {
    /// Every reason.
    pub const ALL: [Self; 3] = [Self::NoIdentity, Self::NoCertificate, Self::HeldBack];

    /// As a label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoIdentity => "no_identity",
            Self::NoCertificate => "no_certificate",
            Self::HeldBack => "held_back",
        }
    }
}

/// What is known of this node's pods, as far as publishing them goes.
#[derive(Default)]
pub struct Readiness {
    pods: Mutex<State>,
    certificates: OnceLock<HasCertificate>,
    /// Something must be taken back at once.
    urgent: Notify,
    published: watch::Sender<Arc<BTreeSet<WorkloadId>>>,
    late: AtomicU64,
}

#[derive(Default)]
struct State {
    captured: BTreeMap<WorkloadId, PublishedPod>,
    held_back: BTreeMap<WorkloadId, String>,
}

impl Readiness {
    /// Says who knows which service accounts have a certificate. Until then nothing is published. Said once.
    pub fn set_certificates(&self, has: HasCertificate) {
        // Whoever comes second is not believed.
        let _ = self.certificates.set(has);
    }

    /// A pod with its own addresses is captured.
    pub fn captured(&self, pod: PublishedPod) {
        self.state().captured.insert(pod.id.clone(), pod);
    }

    /// A pod is not captured any more, and nobody waits for other nodes to hear of it.
    pub fn gone(&self, id: &WorkloadId) {
        let mut state = self.state();
        state.captured.remove(id);
        state.held_back.remove(id);
    }

    /// A pod is not to be published, for a reason that is told to people.
    pub fn hold_back(&self, id: &WorkloadId, reason: &str) {
        self.state().held_back.insert(id.clone(), reason.to_owned());
        self.urgent.notify_one();
    }

    /// Takes that back.
    pub fn let_publish(&self, id: &WorkloadId) {
        self.state().held_back.remove(id);
    }

    /// Has pods taken back that are about to be let go of, and waits until they are, but no longer than `at_most`. Returns whether they are.
    pub async fn withdraw(&self, ids: &[WorkloadId], at_most: Duration) -> bool {
        for id in ids {
            self.gone(id);
        }
        let mut published = self.published.subscribe();
        if !ids.iter().any(|id| published.borrow().contains(id)) {
            return true;
        }
        self.urgent.notify_one();
        let done = published.wait_for(|published| !ids.iter().any(|id| published.contains(id)));
        let done = timeout(at_most, done).await.is_ok_and(|done| done.is_ok());
        if !done {
            let left = ids.iter().filter(|id| self.published.borrow().contains(*id)).count();
            self.late.fetch_add(left.try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
        }
        done
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
            Some((pod.clone(), why, state.held_back.get(id).cloned().unwrap_or_default()))
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
        state.held_back.contains_key(id).then_some(Withheld::HeldBack)
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
    fn a_pod_is_published_once_it_is_captured_and_certified_and_nobody_holds_it_back() {
        let readiness = Readiness::default();
        readiness.captured(pod("a", "web"));
        readiness.captured(pod("b", "db"));
        assert_eq!(ids(&readiness), [""; 0], "an agent without identities publishes nothing");
        assert_eq!(readiness.withheld()[0].1, Withheld::NoIdentity);
        readiness.set_certificates(Box::new(|account| &*account.name == "web"));
        assert_eq!(ids(&readiness), ["a"]);
        assert_eq!(readiness.withheld()[0].1, Withheld::NoCertificate);
        readiness.hold_back(&WorkloadId::new("a"), "the probe was reset");
        assert_eq!(ids(&readiness), [""; 0]);
        assert_eq!(readiness.withheld()[0].2, "the probe was reset");
        readiness.let_publish(&WorkloadId::new("a"));
        assert_eq!(ids(&readiness), ["a"]);
        readiness.gone(&WorkloadId::new("a"));
        assert_eq!((ids(&readiness).len(), readiness.withheld().len()), (0, 1));
    }

    #[tokio::test]
    async fn whoever_lets_go_of_a_pod_waits_until_it_is_taken_back_but_not_for_ever() {
        let readiness = Arc::new(Readiness::default());
        let at_most = Duration::from_millis(50);
        let a = [WorkloadId::new("a")];
        assert!(readiness.withdraw(&a, at_most).await, "what was never published needs no wait");
        readiness.set_published(a.iter().cloned().collect());
        let started = tokio::time::Instant::now();
        assert!(!readiness.withdraw(&a, at_most).await);
        assert!(started.elapsed() >= at_most);
        assert_eq!(readiness.late(), 1);
        let other = Arc::clone(&readiness);
        let publisher = tokio::spawn(async move {
            other.urgent().await;
            other.set_published(BTreeSet::new());
        });
        assert!(readiness.withdraw(&a, Duration::from_secs(60)).await);
        publisher.await.unwrap();
        assert_eq!(readiness.late(), 1);
    }
}
