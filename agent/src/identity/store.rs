//! What the rest of the agent sees of identities: who has one, and what becomes of it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Instant, SystemTime},
};

use arc_swap::ArcSwap;
use tokio::sync::{Notify, watch};
use weft_identity::{Credential, Credentials, TrustDomain};
use weft_policy::names::{ServiceAccountKey, WorkloadId};

use super::{
    authority::Trust,
    book::{Book, Moment, PodRef},
};
use crate::admin::api;

/// The credentials of this node's pods.
pub struct Store {
    trust_domain: TrustDomain,
    authority: String,
    start: Instant,
    live: ArcSwap<HashMap<ServiceAccountKey, Arc<Credential>>>,
    changed: watch::Sender<u64>,
    book: Mutex<Book>,
    trust: Mutex<Trust>,
    /// Somebody needs an account that nobody needed before.
    pub(super) wanted: Notify,
}

impl Store {
    /// Nobody has anything yet.
    #[must_use]
    pub fn new(trust_domain: TrustDomain, authority: String) -> Arc<Self> {
        Arc::new(Self {
            trust_domain,
            authority,
            start: Instant::now(),
            live: ArcSwap::default(),
            changed: watch::Sender::new(0),
            book: Mutex::default(),
            trust: Mutex::default(),
            wanted: Notify::new(),
        })
    }

    /// A pod of this node needs the identity of its service account. Asked for as long as the pod is used.
    pub fn use_account(&self, pod: PodRef) {
        if self.book().use_account(pod, self.now()) {
            self.wanted.notify_one();
        }
    }

    /// A pod does not need its identity any more.
    pub fn release(&self, id: &WorkloadId) {
        self.book().release(id, self.now());
    }

    /// Now.
    #[must_use]
    pub fn now(&self) -> Moment {
        Moment { wall: SystemTime::now(), steady: self.start.elapsed() }
    }

    pub(super) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn trust(&self) -> MutexGuard<'_, Trust> {
        self.trust.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the data path what the book holds now.
    pub(super) fn publish(&self) {
        let live: HashMap<_, _> = self
            .book()
            .iter()
            .filter_map(|(account, entry)| Some((account.clone(), entry.held.as_ref()?.credential.clone())))
            .collect();
        self.live.store(Arc::new(live));
        self.changed.send_modify(|version| *version += 1);
    }

    /// What `weft status` says of it.
    #[must_use]
    pub fn summary(&self) -> String {
        let (accounts, without) = {
            let book = self.book();
            (book.iter().count(), book.iter().filter(|(_, entry)| entry.held.is_none()).count())
        };
        let problem =
            self.trust().problem.as_ref().map(|problem| format!(", no news of the roots ({})", problem.reason));
        format!(
            "spiffe://{}, certificates for {} of {accounts} service accounts{}",
            self.trust_domain,
            accounts - without,
            problem.unwrap_or_default()
        )
    }

    /// `GET /identity`.
    #[must_use]
    pub fn view(&self) -> api::Identity {
        let (now, trust) = (self.now(), self.trust().clone());
        let book = self.book();
        let accounts = book.iter().map(|(account, entry)| {
            let svid = entry.held.as_ref().map(|held| held.credential.svid());
            api::IdentityRow {
                namespace: account.namespace.to_string(),
                service_account: account.name.to_string(),
                spiffe_id: self.trust_domain.account(account).map(|id| id.to_string()).unwrap_or_default(),
                pods: entry.pods(),
                serial: svid.map(|svid| svid.serial.clone()),
                expires_in_s: svid.map(|svid| seconds_until(svid.not_after, now.wall)),
                asks_in_s: entry.asks_in(now).as_secs(),
                problem: entry.problem.as_ref().map(|problem| format!("{}: {}", problem.reason, problem.words)),
            }
        });
        api::Identity {
            authority: Some(self.authority.clone()),
            trust_domain: self.trust_domain.to_string(),
            bundle_sha256: trust.bundle.as_ref().map(|bundle| bundle.sha256()),
            roots: trust.bundle.as_ref().map_or(0, |bundle| bundle.roots().len()),
            problem: trust.problem.map(|problem| format!("{}: {}", problem.reason, problem.words)),
            accounts: accounts.collect(),
        }
    }
}

/// Negative once it is over.
fn seconds_until(moment: SystemTime, now: SystemTime) -> i64 {
    let seconds = |duration: std::time::Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    moment.duration_since(now).map_or_else(|over| -seconds(over.duration()), seconds)
}

impl Credentials for Store {
    fn of(&self, account: &ServiceAccountKey) -> Option<Arc<Credential>> {
        self.live.load().get(account).cloned()
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }
}
