//! What a replica signs with: read from the API server every second, checked, and used for only so long without having been seen there.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use rustls::ServerConfig;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, MissedTickBehavior, interval},
};
use weft_identity::{
    Bundle, TrustDomain,
    authority::{BuiltinSigner, Issuer, Profile, Signer},
    key::PrivateKey,
    tls,
};

use super::{
    api::Api,
    cert_manager::Elsewhere,
    limits,
    metrics::CaMetrics,
    problem::{Complaint, Problem},
    refusal::Denied,
    reports::Reports,
    stored::{self, Published},
    trial::Trial,
};
use crate::watch::kube::inventory::Inventory;

/// What is in force on this replica.
pub(super) struct Keys {
    trust_domain: TrustDomain,
    published: watch::Sender<Option<Arc<Published>>>,
    issuer: Mutex<Option<Loaded>>,
    server: Mutex<Option<Server>>,
    seen_within: Duration,
}

/// An issuer that was checked, or somebody else who signs.
struct Loaded {
    signer: Arc<dyn Signer>,
    /// Our own issuer; `None` where somebody else signs.
    own: Option<Arc<BuiltinSigner>>,
    /// Of the Secret that it is from; or of the roots, with somebody else.
    digest: [u8; 32],
    /// When it was last seen to be the one in force.
    seen: Instant,
}

struct Server {
    config: Arc<ServerConfig>,
    /// Of the Secret of its issuer, or of itself.
    digest: [u8; 32],
    renew_at: SystemTime,
}

/// Who signs now.
#[derive(Clone)]
pub(super) struct Signs {
    pub(super) signer: Arc<dyn Signer>,
}

impl Keys {
    pub(super) fn new(trust_domain: TrustDomain, takeover: Duration) -> Arc<Self> {
        Arc::new(Self {
            trust_domain,
            published: watch::Sender::new(None),
            issuer: Mutex::new(None),
            server: Mutex::new(None),
            seen_within: limits::ISSUER_SEEN_WITHIN.min(takeover / 2),
        })
    }

    pub(super) fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The bundle, once there is one.
    pub(super) fn published(&self) -> Option<Arc<Published>> {
        self.published.borrow().clone()
    }

    /// The bundle and every change of it.
    pub(super) fn follow(&self) -> watch::Receiver<Option<Arc<Published>>> {
        self.published.subscribe()
    }

    /// What signs, if it is known to be in force.
    pub(super) fn signs(&self) -> Result<Signs, Denied> {
        let issuer = lock(&self.issuer);
        let Some(loaded) = issuer.as_ref() else {
            return Err(Denied::NotReady("it has no key yet".to_owned()));
        };
        if loaded.seen.elapsed() > self.seen_within {
            let seen = loaded.seen.elapsed().as_secs();
            return Err(Denied::NotReady(format!("whether its key is in force was last seen {seen} s ago")));
        }
        Ok(Signs { signer: loaded.signer.clone() })
    }

    /// How the authority's own server shows itself.
    pub(super) fn server(&self) -> Option<Arc<ServerConfig>> {
        lock(&self.server).as_ref().map(|server| server.config.clone())
    }

    /// Whether agents can be served.
    pub(super) fn is_ready(&self) -> bool {
        self.signs().is_ok() && self.server().is_some() && self.published.borrow().is_some()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps [`Keys`] as the API server has them.
pub(super) struct Keeper {
    pub(super) api: Api,
    pub(super) keys: Arc<Keys>,
    pub(super) profile: Profile,
    /// Names of the authority's own server.
    pub(super) names: Vec<String>,
    /// Where somebody else signs: how their certificate for that server is had.
    pub(super) trial: Option<Trial>,
    /// Tells the leader that something is to be looked at.
    pub(super) changed: Arc<Notify>,
    pub(super) inventory: Arc<Inventory>,
    pub(super) reports: Arc<Reports>,
    /// Under which this replica tells what agents report.
    pub(super) replica: String,
    pub(super) metrics: CaMetrics,
}

impl Keeper {
    /// Looks every second. Never ends.
    pub(super) async fn run(mut self) {
        let mut complaint = Complaint::new("keys", self.metrics.clone());
        let mut told = String::new();
        let mut looks = interval(limits::LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            let outcome = self.look().await;
            if outcome.is_ok() {
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                self.metrics.looked.set(now.as_secs_f64());
            } else {
                self.changed.notify_one();
            }
            complaint.note(outcome);
            self.metrics.pods.set(i64::try_from(self.inventory.pods()).unwrap_or(i64::MAX));
            self.tell(&mut told).await;
        }
    }

    async fn look(&mut self) -> Result<(), Problem> {
        let tried = match self.trial.as_mut() {
            Some(trial) => trial.step().await,
            None => Ok(()),
        };
        let asked = Instant::now();
        let map: Option<ConfigMap> = self.api.get(&self.api.core("configmaps", Some(stored::BUNDLE))).await?;
        let Some(map) = map else {
            let (namespace, name) = (self.api.namespace(), stored::BUNDLE);
            let none = Problem::new("no_bundle", format_args!("there is no ConfigMap {namespace}/{name}"));
            return tried.and(Err(none));
        };
        let (published, bundle) = stored::published(&map)
            .map_err(|error| Problem::new("bad_bundle", format_args!("ConfigMap {}: {error}", stored::BUNDLE)))?;
        if self.keys.published().as_deref() != Some(&published) {
            self.keys.published.send_replace(Some(Arc::new(published)));
            self.changed.notify_one();
        }
        if let Some(trial) = &self.trial {
            let served = self.take_up(trial, bundle, asked);
            return tried.and(served);
        }
        let secret: Option<Secret> = self.api.get(&self.api.core("secrets", Some(stored::ISSUER))).await?;
        let secret = secret.ok_or_else(|| {
            Problem::new("no_issuer", format_args!("there is no Secret {}/{}", self.api.namespace(), stored::ISSUER))
        })?;
        let loaded = self.load(&secret, &bundle, asked);
        let serves = self.serve();
        loaded.and(serves)
    }

    /// Takes the issuer of a Secret, if it is good; otherwise the one before stays, as long as it is.
    fn load(&self, secret: &Secret, bundle: &Bundle, asked: Instant) -> Result<(), Problem> {
        let now = SystemTime::now();
        let bad = |error: &dyn std::fmt::Display, reason| {
            Problem::new(reason, format_args!("Secret {}: {error}", stored::ISSUER))
        };
        let value = |key| stored::value(secret, stored::ISSUER, key).map_err(|error| Problem::new("no_key", error));
        let read = || {
            let (chain, key) = (value(stored::CERTIFICATE)?, value(stored::KEY)?);
            let digest = Sha256::new().chain_update(chain).chain_update(bundle.sha256()).chain_update(key).finalize();
            Ok::<_, Problem>((<[u8; 32]>::from(digest), chain, key))
        };
        let mut issuer = lock(&self.keys.issuer);
        let fresh = match read() {
            Ok((digest, ..)) if issuer.as_ref().is_some_and(|loaded| loaded.digest == digest) => Ok(None),
            Ok((digest, chain, key)) => Issuer::from_pem(chain, key, bundle, &self.profile, now)
                .map(|issuer| Some((digest, issuer)))
                .map_err(|error| bad(&error, error.reason())),
            Err(problem) => Err(problem),
        };
        let outcome = match fresh {
            Ok(Some((digest, fresh))) => {
                let own = Arc::new(BuiltinSigner::new(Arc::new(fresh), self.profile));
                *issuer = Some(Loaded { signer: own.clone(), own: Some(own), digest, seen: asked });
                self.changed.notify_one();
                tracing::info!("certificates are signed with a new key from now on");
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(problem) => Err(problem),
        };
        if let Some(loaded) = issuer.as_mut()
            && let Some(own) = loaded.own.as_ref().map(|own| own.issuer())
        {
            if own.not_after() > now && (outcome.is_ok() || own.check(bundle, &self.profile, now).is_ok()) {
                loaded.seen = asked;
            }
            self.expires("issuer", own.not_after());
        }
        if let Some(ends) = bundle.not_after() {
            self.expires("root", ends);
        }
        outcome
    }

    /// Gives the authority's own server a certificate, in time.
    fn serve(&self) -> Result<(), Problem> {
        let own = lock(&self.keys.issuer).as_ref().and_then(|loaded| Some((loaded.own.clone()?, loaded.digest)));
        let Some((signer, digest)) = own else { return Ok(()) };
        let now = SystemTime::now();
        if lock(&self.keys.server).as_ref().is_some_and(|server| server.digest == digest && now < server.renew_at) {
            return Ok(());
        }
        let cannot = |error: &dyn std::fmt::Display| {
            Problem::new("server", format_args!("the authority's own certificate: {error}"))
        };
        let key = PrivateKey::generate().map_err(|error| cannot(&error))?;
        let chain =
            signer.issuer().sign_server(&self.names, &key, limits::SERVER_TTL, now).map_err(|error| cannot(&error))?;
        let config = tls::authority_server(chain, &key).map_err(|error| cannot(&error))?;
        let ends = signer.issuer().not_after().min(now + limits::SERVER_TTL);
        self.expires("server", ends);
        let renew_at = now + ends.duration_since(now).unwrap_or_default() / 2;
        *lock(&self.keys.server) = Some(Server { config: Arc::new(config), digest, renew_at });
        Ok(())
    }

    /// Takes up who signs elsewhere, with the roots in force, and what the authority's own server shows.
    fn take_up(&self, trial: &Trial, bundle: Bundle, asked: Instant) -> Result<(), Problem> {
        if let Some(ends) = bundle.not_after() {
            self.expires("root", ends);
        }
        let served = self.show(trial, &bundle);
        let digest = <[u8; 32]>::from(Sha256::digest(bundle.sha256()));
        let mut issuer = lock(&self.keys.issuer);
        match issuer.as_mut() {
            Some(loaded) if loaded.digest == digest => loaded.seen = asked,
            _ => {
                let (orders, life) = (Arc::clone(&trial.orders), self.profile.ttl());
                tracing::info!(issuer = orders.described(), "certificates are signed elsewhere from now on");
                let signer = Arc::new(Elsewhere { orders, bundle, life });
                *issuer = Some(Loaded { signer, own: None, digest, seen: asked });
            }
        }
        served
    }

    /// Shows agents the certificate that has come last, once those who have these roots trust it; and the one before until then.
    fn show(&self, trial: &Trial, bundle: &Bundle) -> Result<(), Problem> {
        let Some(shown) = trial.proof.latest() else { return Ok(()) };
        let leaf = shown.chain.first().map_or(&[][..], |leaf| leaf.as_ref());
        let digest = <[u8; 32]>::from(Sha256::digest(leaf));
        if let Some(Err(error)) = trial.proof.leads_to(bundle) {
            return Err(Problem::new("untrusted", format_args!("the authority's own certificate: {error}")));
        }
        let mut server = lock(&self.keys.server);
        if server.as_ref().is_none_or(|server| server.digest != digest) {
            self.expires("server", shown.ends);
            *server = Some(Server { config: shown.config.clone(), digest, renew_at: shown.ends });
        }
        Ok(())
    }

    fn expires(&self, certificate: &str, at: SystemTime) {
        let at = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        self.metrics.expiry.with_label_values(&[certificate]).set(at);
    }

    /// Tells the leader what agents have reported here, while a root is rotated.
    async fn tell(&self, told: &mut String) {
        if !self.keys.published().is_some_and(|published| published.rotates) {
            told.clear();
            return;
        }
        self.reports.retain(|uid| self.inventory.pod(uid).is_some());
        let text = self.reports.write();
        if text == *told {
            return;
        }
        let patch = json!({"data": {&self.replica: text}});
        // The leader makes it; if it has not yet, the next look comes soon.
        if self.api.merge(&self.api.core("configmaps", Some(stored::REPORTS)), &patch).await.is_ok() {
            *told = text;
        }
    }
}
