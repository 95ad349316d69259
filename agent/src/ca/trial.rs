//! The certificate of the authority's own server where cert-manager signs. It is also the proof of what the issuer signs: roots that do
//! not lead to it are not published, and it is not shown to agents before they trust it.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::SystemTime,
};

use rustls::{ServerConfig, pki_types::CertificateDer};
use tokio::{task::JoinHandle, time::Instant};
use weft_identity::{
    Bundle,
    authority::{SignError, answer},
    key::PrivateKey,
    request, tls,
};

use super::{cert_manager::CertManager, limits, problem::Problem};

/// What cert-manager has signed last for this replica's own server.
pub(super) struct Shown {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) config: Arc<ServerConfig>,
    pub(super) ends: SystemTime,
    renew_at: SystemTime,
}

/// As the leader of this replica sees it.
#[derive(Default)]
pub(super) struct Proof {
    latest: Mutex<Option<Arc<Shown>>>,
    again: AtomicBool,
}

impl Proof {
    pub(super) fn latest(&self) -> Option<Arc<Shown>> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether what the issuer signs is trusted with these roots; `None` as long as it has signed nothing. Where it is not, it is asked
    /// again: it may have changed meanwhile.
    pub(super) fn leads_to(&self, bundle: &Bundle) -> Option<Result<(), SignError>> {
        let shown = self.latest()?;
        let trusted = answer::trusted(&shown.chain, bundle, SystemTime::now());
        if trusted.is_err() {
            self.again.store(true, Ordering::Relaxed);
        }
        Some(trusted)
    }
}

/// Sees to it that there is one.
pub(super) struct Trial {
    pub(super) orders: Arc<CertManager>,
    pub(super) proof: Arc<Proof>,
    names: Vec<String>,
    running: Option<JoinHandle<Result<Shown, SignError>>>,
    /// Not before then the next is ordered.
    not_before: Option<Instant>,
    outcome: Result<(), Problem>,
}

impl Trial {
    pub(super) fn new(orders: Arc<CertManager>, proof: Arc<Proof>, names: Vec<String>) -> Self {
        Self { orders, proof, names, running: None, not_before: None, outcome: Ok(()) }
    }

    /// Goes on, without waiting for anybody: orders a certificate where one is due, and takes up one that has come. How it went last.
    pub(super) async fn step(&mut self) -> Result<(), Problem> {
        if self.running.as_ref().is_some_and(JoinHandle::is_finished)
            && let Some(running) = self.running.take()
        {
            let answered = running.await.unwrap_or_else(|_| Err(SignError::Unavailable("stops".to_owned())));
            self.not_before = Some(Instant::now() + limits::CERT_MANAGER_RETRY);
            self.outcome = match answered {
                Ok(shown) => {
                    tracing::info!(issuer = self.orders.described(), "the authority's own certificate is signed");
                    *self.proof.latest.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(shown));
                    self.proof.again.store(false, Ordering::Relaxed);
                    Ok(())
                }
                Err(error) => {
                    let message = format_args!("the authority's own certificate: {error}");
                    Err(Problem::new(error.reason(), message))
                }
            };
        }
        let now = SystemTime::now();
        let is_due =
            self.proof.latest().is_none_or(|shown| now >= shown.renew_at) || self.proof.again.load(Ordering::Relaxed);
        if is_due && self.running.is_none() && self.not_before.is_none_or(|then| Instant::now() >= then) {
            self.running = Some(tokio::spawn(order(Arc::clone(&self.orders), self.names.clone())));
        }
        self.outcome.clone()
    }
}

async fn order(orders: Arc<CertManager>, names: Vec<String>) -> Result<Shown, SignError> {
    let cannot = |error: &dyn std::fmt::Display| SignError::BadAnswer(error.to_string());
    let key = PrivateKey::generate().map_err(|error| cannot(&error))?;
    let csr = request::create_server(&names, &key).map_err(|error| cannot(&error))?;
    let chain = orders.order(csr, limits::SERVER_TTL, &["digital signature", "server auth"]).await?;
    let now = SystemTime::now();
    let ends = answer::server(&names, &key.public(), &chain, limits::SERVER_TTL, now)?;
    let config = Arc::new(tls::authority_server(chain.clone(), &key).map_err(|error| cannot(&error))?);
    let renew_at = now + ends.duration_since(now).unwrap_or_default() / 2;
    Ok(Shown { chain, config, ends, renew_at })
}
