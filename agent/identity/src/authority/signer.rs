//! Who signs: our own issuer, or somebody else's. All of them stand behind the same checks of who may have what.

use std::{pin::Pin, sync::Arc, time::SystemTime};

use arc_swap::ArcSwap;
use rustls::pki_types::CertificateDer;

use crate::{
    authority::{
        issuer::{Issuer, IssuerError},
        profile::Profile,
    },
    request::CheckedRequest,
    spiffe::SpiffeId,
};

/// One certificate to sign. Whether this identity may be had was decided before.
#[derive(Clone, Debug)]
pub struct Order {
    /// Whose it is to be.
    pub id: SpiffeId,
    /// What was asked with.
    pub request: CheckedRequest,
}

/// Why nothing was signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// Our own issuer could not.
    #[error(transparent)]
    Issuer(#[from] IssuerError),
    /// The signer cannot be reached, or takes too long.
    #[error("the signer {0}")]
    Unavailable(String),
    /// The signer says no.
    #[error("the signer refused: {0}")]
    Refused(String),
    /// The signer's answer is none that a workload could use.
    #[error("the signer's answer is unusable: {0}")]
    BadAnswer(String),
}

impl SignError {
    /// The reason in one word, for metrics and refusals.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Issuer(_) => "issuer",
            Self::Unavailable(_) => "signer_unavailable",
            Self::Refused(_) => "signer_refused",
            Self::BadAnswer(_) => "signer_bad_answer",
        }
    }

    /// Whether the same order may succeed later without anybody's doing.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}

/// What a signer answers, later: the workload's certificate first, then what leads to a root.
pub type Signing<'a> = Pin<Box<dyn Future<Output = Result<Vec<CertificateDer<'static>>, SignError>> + Send + 'a>>;

/// Who signs.
pub trait Signer: Send + Sync + 'static {
    /// Signs one certificate.
    fn sign<'a>(&'a self, order: &'a Order) -> Signing<'a>;
    /// Its name, for logs and metrics.
    fn name(&self) -> &'static str;
}

/// Our own issuer. It can be replaced while it signs.
pub struct BuiltinSigner {
    issuer: ArcSwap<Issuer>,
    profile: Profile,
}

impl BuiltinSigner {
    /// Signs with an issuer that was checked.
    #[must_use]
    pub fn new(issuer: Arc<Issuer>, profile: Profile) -> Self {
        Self { issuer: ArcSwap::new(issuer), profile }
    }

    /// Signs with another one from now on.
    pub fn replace(&self, issuer: Arc<Issuer>) {
        self.issuer.store(issuer);
    }

    /// The one that signs now.
    #[must_use]
    pub fn issuer(&self) -> Arc<Issuer> {
        self.issuer.load_full()
    }

    /// What it signs.
    #[must_use]
    pub fn profile(&self) -> Profile {
        self.profile
    }
}

impl Signer for BuiltinSigner {
    fn sign<'a>(&'a self, order: &'a Order) -> Signing<'a> {
        Box::pin(async move {
            let issuer = self.issuer.load_full();
            Ok(issuer.sign(&order.id, &order.request.public_key, &self.profile, SystemTime::now())?)
        })
    }

    fn name(&self) -> &'static str {
        "builtin"
    }
}
