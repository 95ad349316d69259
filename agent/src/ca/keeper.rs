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
    sync::watch,
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
    limits,
    metrics::CaMetrics,
    problem::{Complaint, Problem},
    refusal::Denied,
    reports::Reports,
    stored::{self, Published},
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

/// An issuer that was checked.
struct Loaded {
    signer: Arc<BuiltinSigner>,
    /// Of the Secret that it is from.
    digest: [u8; 32],
    /// When it was last seen to be the one in force.
    seen: Instant,
}

struct Server {
    config: Arc<ServerConfig>,
    /// Of the Secret of its issuer.
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
    pub(super) inventory: Arc<Inventory>,
    pub(super) reports: Arc<Reports>,
    /// Under which this replica tells what agents report.
    pub(super) replica: String,
    pub(super) metrics: CaMetrics,
}

impl Keeper {
    /// Looks every second. Never ends.
    pub(super) async fn run(self) {
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
            }
            complaint.note(outcome);
            self.metrics.pods.set(i64::try_from(self.inventory.pods()).unwrap_or(i64::MAX));
            self.tell(&mut told).await;
        }
    }

    async fn look(&self) -> Result<(), Problem> {
        let asked = Instant::now();
        let map: Option<ConfigMap> = self.api.get(&self.api.core("configmaps", Some(stored::BUNDLE))).await?;
        let map = map.ok_or_else(|| {
            Problem::new("no_bundle", format_args!("there is no ConfigMap {}/{}", self.api.namespace(), stored::BUNDLE))
        })?;
        let (published, bundle) = stored::published(&map)
            .map_err(|error| Problem::new("bad_bundle", format_args!("ConfigMap {}: {error}", stored::BUNDLE)))?;
        if self.keys.published().as_deref() != Some(&published) {
            self.keys.published.send_replace(Some(Arc::new(published)));
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
                let signer = Arc::new(BuiltinSigner::new(Arc::new(fresh), self.profile));
                *issuer = Some(Loaded { signer, digest, seen: asked });
                tracing::info!("certificates are signed with a new key from now on");
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(problem) => Err(problem),
        };
        if let Some(loaded) = issuer.as_mut()
            && loaded.signer.issuer().not_after() > now
            && (outcome.is_ok() || loaded.signer.issuer().check(bundle, &self.profile, now).is_ok())
        {
            loaded.seen = asked;
        }
        if let Some(loaded) = issuer.as_ref() {
            self.expires("issuer", loaded.signer.issuer().not_after());
        }
        if let Some(ends) = bundle.not_after() {
            self.expires("root", ends);
        }
        outcome
    }

    /// Gives the authority's own server a certificate, in time.
    fn serve(&self) -> Result<(), Problem> {
        let (signer, digest) = match lock(&self.keys.issuer).as_ref() {
            Some(loaded) => (loaded.signer.clone(), loaded.digest),
            None => return Ok(()),
        };
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
