//! Who asks: checks 1 to 3. A bearer token that the API server confirms for our audience, of the agents' service account, bound to a pod
//! that runs as an agent; its node is what it may ask for.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use sha2::{Digest as _, Sha256};
use tokio::{sync::Semaphore, time::Instant};
use tonic::metadata::MetadataMap;
use weft_crds::core::pod::Pod;
use weft_policy::names::ServiceAccountKey;

use super::{
    api::Api,
    limits,
    metrics::CaMetrics,
    rate::Bucket,
    refusal::Denied,
    reports::{Report, Reports},
};
use crate::watch::kube::inventory::{Inventory, read_pod};

const TOKEN_REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
/// What a bound token says of itself (kubernetes.io, "Managing Service Accounts", bound service account tokens).
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// An agent that may ask, for the pods of its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Caller {
    /// UID of its pod.
    pub(super) uid: Arc<str>,
    /// Name of its pod.
    pub(super) pod: Arc<str>,
    /// Its node.
    pub(super) node: Arc<str>,
}

/// What a token that was confirmed says.
#[derive(Clone, Debug)]
struct Bound {
    pod: Arc<str>,
    uid: Arc<str>,
    /// API servers before 1.32 do not say it.
    node: Option<Arc<str>>,
}

/// Tells who asks.
pub(super) struct Callers {
    api: Api,
    inventory: Arc<Inventory>,
    account: ServiceAccountKey,
    audience: String,
    known: Mutex<Known>,
    reviewing: Semaphore,
    metrics: CaMetrics,
    pub(super) reports: Arc<Reports>,
}

struct Known {
    tokens: HashMap<[u8; 32], (Bound, Instant)>,
    rates: HashMap<Arc<str>, Bucket>,
    watches: HashMap<Arc<str>, usize>,
    reviews: Bucket,
}

/// One watch of the bundle; counted while it lives.
pub(super) struct Watching {
    callers: Arc<Callers>,
    uid: Arc<str>,
}

impl Callers {
    pub(super) fn new(
        api: Api,
        inventory: Arc<Inventory>,
        (account, audience): (ServiceAccountKey, String),
        reports: Arc<Reports>,
        metrics: CaMetrics,
    ) -> Arc<Self> {
        let reviews = Bucket::new(limits::REVIEWS_BURST, limits::REVIEWS_PER_SECOND);
        let known = Known { tokens: HashMap::new(), rates: HashMap::new(), watches: HashMap::new(), reviews };
        Arc::new(Self {
            api,
            inventory,
            account,
            audience,
            known: Mutex::new(known),
            reviewing: Semaphore::new(limits::REVIEWS_MAX),
            metrics,
            reports,
        })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who sends this, for so many certificates; and notes what it reports.
    pub(super) async fn identify(
        &self,
        metadata: &MetadataMap,
        items: usize,
        report: Report,
    ) -> Result<Caller, Denied> {
        if items > weft_identity::limits::BATCH_MAX {
            return Err(Denied::BatchTooLarge(items));
        }
        let token = bearer(metadata).ok_or(Denied::NoToken)?;
        let bound = self.bound(token).await?;
        if !self.known().may_have(&bound.uid, items) {
            return Err(Denied::RateLimited);
        }
        let caller = self.agent(bound).await?;
        self.reports.note(&caller.uid, report);
        Ok(caller)
    }

    /// Check 2: what the API server says of the token, asked again after some minutes.
    async fn bound(&self, token: &str) -> Result<Bound, Denied> {
        let hash: [u8; 32] = Sha256::digest(token).into();
        {
            let mut known = self.known();
            if let Some((bound, until)) = known.tokens.get(&hash)
                && Instant::now() < *until
            {
                return Ok(bound.clone());
            }
            known.tokens.remove(&hash);
            if !known.reviews.take(1) {
                return Err(Denied::Busy);
            }
        }
        let reviewed = {
            let _slot = self.reviewing.acquire().await;
            self.review(token).await
        };
        self.metrics.token_reviews.with_label_values(&[reviewed.as_ref().map_or_else(Denied::code, |_| "ok")]).inc();
        let bound = reviewed?;
        let mut known = self.known();
        if known.tokens.len() >= limits::TOKENS_MAX {
            let now = Instant::now();
            known.tokens.retain(|_, (_, until)| now < *until);
        }
        if known.tokens.len() < limits::TOKENS_MAX {
            known.tokens.insert(hash, (bound.clone(), Instant::now() + limits::TOKEN_CACHE));
        }
        Ok(bound)
    }

    async fn review(&self, token: &str) -> Result<Bound, Denied> {
        let spec = TokenReviewSpec { audiences: Some(vec![self.audience.clone()]), token: Some(token.to_owned()) };
        let question = TokenReview { spec, ..TokenReview::default() };
        let answer =
            self.api.ask(TOKEN_REVIEWS, &question).await.map_err(|failure| Denied::ApiServer(failure.message))?;
        let status = answer.status.unwrap_or_default();
        if status.authenticated != Some(true) {
            return Err(Denied::BadToken(status.error.unwrap_or_else(|| "it is not authenticated".to_owned())));
        }
        // An authenticator that knows nothing of audiences confirms tokens that are meant for others, and leaves this empty.
        if !status.audiences.unwrap_or_default().contains(&self.audience) {
            return Err(Denied::WrongAudience { expected: self.audience.clone() });
        }
        let UserInfo { username, extra, .. } = status.user.unwrap_or_default();
        let username = username.unwrap_or_default();
        let expected = format!("system:serviceaccount:{}:{}", self.account.namespace, self.account.name);
        if username != expected {
            return Err(Denied::NotAnAgent { expected, found: username });
        }
        let extra = extra.unwrap_or_default();
        let (pod, uid) = one(&extra, POD_NAME).zip(one(&extra, POD_UID)).ok_or(Denied::Unbound)?;
        Ok(Bound { pod: pod.into(), uid: uid.into(), node: one(&extra, NODE_NAME).map(Into::into) })
    }

    /// Check 3: the pod that the token is bound to runs, as an agent, on the node that the token says.
    async fn agent(&self, bound: Bound) -> Result<Caller, Denied> {
        let pod = match self.inventory.pod(&bound.uid).filter(|pod| !pod.node.is_empty()) {
            Some(pod) => pod,
            None => self.look_up(&bound).await?,
        };
        let name = || format!("{}/{}", self.account.namespace, bound.pod);
        if pod.meta.uid.as_ref() != Some(&bound.uid) || pod.ended || pod.node.is_empty() {
            return Err(Denied::AgentGone(name()));
        }
        if pod.meta.deleting {
            return Err(Denied::AgentStops(name()));
        }
        if pod.meta.namespace != self.account.namespace || pod.service_account != self.account.name {
            return Err(Denied::AgentAccount(name()));
        }
        match &bound.node {
            Some(node) if *node != pod.node => {
                Err(Denied::AgentNode { token: node.to_string(), pod: pod.node.to_string() })
            }
            _ => Ok(Caller { uid: bound.uid, pod: bound.pod, node: pod.node.clone() }),
        }
    }

    /// The watch may be behind: the API server is asked once.
    async fn look_up(&self, bound: &Bound) -> Result<Arc<Pod>, Denied> {
        let gone = || Denied::AgentGone(format!("{}/{}", self.account.namespace, bound.pod));
        let path = super::targets::pod_path(&self.account.namespace, &bound.pod).ok_or_else(gone)?;
        let answer = self.api.get(&path).await.map_err(|failure| Denied::ApiServer(failure.message))?;
        answer.as_ref().and_then(read_pod).ok_or_else(gone)
    }

    /// Counts a watch of the bundle, if the agent has not too many.
    pub(super) fn watching(self: &Arc<Self>, caller: &Caller) -> Result<Watching, Denied> {
        let mut known = self.known();
        let count = known.watches.entry(caller.uid.clone()).or_default();
        if *count >= limits::WATCHES_PER_AGENT_MAX {
            return Err(Denied::TooManyWatches);
        }
        *count += 1;
        Ok(Watching { callers: Arc::clone(self), uid: caller.uid.clone() })
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let mut known = self.callers.known();
        if let Some(count) = known.watches.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                known.watches.remove(&self.uid);
            }
        }
    }
}

impl Known {
    fn may_have(&mut self, uid: &Arc<str>, items: usize) -> bool {
        if self.rates.len() >= limits::AGENTS_MAX && !self.rates.contains_key(uid) {
            // Whoever has a full bucket again need not be remembered; only confirmed agents get here.
            self.rates.retain(|_, bucket| !bucket.is_full());
        }
        let bucket = self.rates.entry(uid.clone());
        // A report costs as much as one certificate.
        bucket.or_insert_with(|| Bucket::new(limits::ITEMS_BURST, limits::ITEMS_PER_SECOND)).take(items.max(1))
    }
}

fn bearer(metadata: &MetadataMap) -> Option<&str> {
    let token = metadata.get("authorization")?.to_str().ok()?.strip_prefix("Bearer ")?;
    (!token.is_empty() && token.len() <= limits::TOKEN_MAX).then_some(token)
}

/// The only value of an extra field; several would leave open which one holds.
fn one<'a>(extra: &'a BTreeMap<String, Vec<String>>, key: &str) -> Option<&'a str> {
    match extra.get(key)?.as_slice() {
        [value] if !value.is_empty() => Some(value),
        _ => None,
    }
}
