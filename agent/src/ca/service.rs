//! The calls of the protocol: who asks (checks 1 to 3), for whom (check 4), with what (check 5), and a line for each certificate (6).

use std::{pin::Pin, sync::Arc, time::SystemTime};

use futures_util::{Stream, future::join_all, stream};
use tonic::{Request, Response, Status};
use weft_identity::{
    Svid,
    authority::{Order, SignError},
    request,
    wire::{
        Bundle, Chain, Refusal, SignItem, SignRequest, SignResponse, SignResult, WatchBundleRequest,
        authority_server::Authority, sign_result::Outcome,
    },
};

use super::{
    callers::{Caller, Callers},
    keeper::{Keys, Signs},
    metrics::CaMetrics,
    refusal::{Denied, Refused},
    reports::Report,
    targets::Targets,
};

/// The authority, as agents see it.
#[derive(Clone)]
pub(super) struct Service {
    pub(super) callers: Arc<Callers>,
    pub(super) targets: Arc<Targets>,
    pub(super) keys: Arc<Keys>,
    pub(super) metrics: CaMetrics,
}

impl Service {
    async fn batch(&self, request: Request<SignRequest>) -> Result<SignResponse, Denied> {
        let (metadata, _, batch) = request.into_parts();
        let report = Report::new(&batch.bundle_sha256, batch.reissued_epoch);
        let caller = self.callers.identify(&metadata, batch.items.len(), report).await?;
        let signs = match batch.items.is_empty() {
            true => None,
            false => Some(self.keys.signs()?),
        };
        let one = |item| {
            let (caller, signs) = (&caller, signs.as_ref());
            async move {
                let Some(signs) = signs else { return SignResult::default() };
                SignResult { outcome: Some(self.answer(caller, signs, item).await) }
            }
        };
        let results = join_all(batch.items.iter().map(one)).await;
        let bundle_sha256 = self.keys.published().map(|published| published.sha256.clone()).unwrap_or_default();
        Ok(SignResponse { results, now_unix_ms: now_ms(), bundle_sha256 })
    }

    async fn answer(&self, caller: &Caller, signs: &Signs, item: &SignItem) -> Outcome {
        match self.certificate(caller, signs, item).await {
            Ok(chain) => {
                self.metrics.certificates.with_label_values(&[signs.signer.name()]).inc();
                Outcome::Chain(chain)
            }
            Err(refused) => {
                self.metrics.refusals.with_label_values(&[refused.code()]).inc();
                tracing::warn!(
                    target: "weft::audit", code = refused.code(), reason = %refused, agent = %caller.pod, node = %caller.node,
                    pod_uid = shown(&item.pod_uid), pod = shown(&item.pod_name), namespace = shown(&item.namespace),
                    account = shown(&item.service_account), "a certificate is refused"
                );
                let (code, words) = (refused.code().to_owned(), refused.to_string());
                Outcome::Refusal(Refusal { code, words, retryable: refused.is_retryable() })
            }
        }
    }

    async fn certificate(&self, caller: &Caller, signs: &Signs, item: &SignItem) -> Result<Chain, Refused> {
        let id = self.targets.identity(caller, item).await?;
        let request = request::check(&item.csr_der, &id).map_err(Refused::Request)?;
        let order = Order { id, request };
        let started = tokio::time::Instant::now();
        let signed = signs.signer.sign(&order).await;
        self.metrics.sign_seconds.observe(started.elapsed().as_secs_f64());
        let chain = signed?;
        // A signer elsewhere may answer anything: what we hand out, and say that we do, is what was ordered.
        let svid = chain.first().map(|leaf| Svid::from_der(leaf));
        let svid = match svid {
            Some(Ok(svid)) if svid.id == order.id => svid,
            Some(Ok(svid)) => return Err(SignError::BadAnswer(format!("it is {}'s", svid.id)).into()),
            Some(Err(error)) => return Err(SignError::BadAnswer(error.to_string()).into()),
            None => return Err(SignError::BadAnswer("there is no certificate".to_owned()).into()),
        };
        tracing::info!(
            target: "weft::audit", id = %svid.id, serial = svid.serial, not_after = unix(svid.not_after), agent = %caller.pod,
            agent_uid = %caller.uid, node = %caller.node, pod_uid = item.pod_uid, pod = item.pod_name,
            signer = signs.signer.name(), "a certificate is signed"
        );
        Ok(Chain { certificates: chain.iter().map(|certificate| certificate.to_vec()).collect() })
    }

    async fn follow(&self, request: Request<WatchBundleRequest>) -> Result<BundleStream, Denied> {
        let (metadata, _, asked) = request.into_parts();
        let report = Report::new(&asked.bundle_sha256, asked.reissued_epoch);
        let caller = self.callers.identify(&metadata, 0, report).await?;
        let watching = self.callers.watching(&caller)?;
        let (mut changes, domain) = (self.keys.follow(), self.keys.trust_domain().to_string());
        // The one in force is the first of what comes.
        changes.mark_changed();
        let bundles = stream::unfold((changes, watching), move |(mut changes, watching)| {
            let trust_domain = domain.clone();
            async move {
                loop {
                    // The authority ends when nobody publishes any more.
                    changes.changed().await.ok()?;
                    let published = changes.borrow_and_update().clone();
                    let Some(published) = published else { continue };
                    let bundle = Bundle {
                        roots_pem: published.pem.clone(),
                        sha256: published.sha256.clone(),
                        reissue_epoch: published.epoch,
                        trust_domain,
                        now_unix_ms: now_ms(),
                    };
                    return Some((Ok(bundle), (changes, watching)));
                }
            }
        });
        Ok(Box::pin(bundles))
    }

    fn denied(&self, denied: &Denied) -> Status {
        self.metrics.refusals.with_label_values(&[denied.code()]).inc();
        tracing::warn!(target: "weft::audit", code = denied.code(), reason = %denied, "a call is refused");
        denied.status()
    }
}

type BundleStream = Pin<Box<dyn Stream<Item = Result<Bundle, Status>> + Send>>;

#[tonic::async_trait]
impl Authority for Service {
    type WatchBundleStream = BundleStream;

    async fn sign(&self, request: Request<SignRequest>) -> Result<Response<SignResponse>, Status> {
        self.batch(request).await.map(Response::new).map_err(|denied| self.denied(&denied))
    }

    async fn watch_bundle(&self, request: Request<WatchBundleRequest>) -> Result<Response<BundleStream>, Status> {
        self.follow(request).await.map(Response::new).map_err(|denied| self.denied(&denied))
    }
}

/// What a caller says, as far as a log line holds it.
fn shown(text: &str) -> String {
    text.chars().take(256).collect()
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn unix(moment: SystemTime) -> u64 {
    moment.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}
