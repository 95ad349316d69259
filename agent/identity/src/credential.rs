//! What a service account proves itself with: certificate, key, and the roots that its peers are checked with. Immutable; a renewed
//! certificate or another bundle is another credential.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::{
    ClientConfig, Error, ServerConfig,
    client::Resumption,
    pki_types::{CertificateDer, UnixTime},
    server::NoServerSessionStorage,
    sign::{CertifiedKey, SingleCertAndKey},
    version::TLS13,
};
use sha2::{Digest as _, Sha256};
use weft_policy::names::ServiceAccountKey;
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};

use crate::{
    bundle::Bundle,
    key::{KeyError, PrivateKey},
    limits, refusal,
    spiffe::{SpiffeId, TrustDomain},
    svid::{Svid, SvidError},
    tls::{self, Alpn},
    verify::{self, Expect, Verifier},
};

/// Why a certificate that came for us is not taken. The one in use stays; asking again may bring a better one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// No certificate came.
    #[error("the chain is empty")]
    Empty,
    /// Too many, or too large.
    #[error("the chain has {count} {what}, of at most {max}")]
    TooLarge {
        /// Of what.
        what: &'static str,
        /// How many.
        count: usize,
        /// Of how many.
        max: usize,
    },
    /// It is none that a workload may have.
    #[error(transparent)]
    Svid(#[from] SvidError),
    /// It is somebody else's.
    #[error("it is {found}'s, where {expected} was asked for")]
    WrongIdentity {
        /// Who asked.
        expected: SpiffeId,
        /// Whose it is.
        found: SpiffeId,
    },
    /// It is for another key than ours.
    #[error("it is for another key than the one that it was asked for with")]
    WrongKey,
    /// It has ended.
    #[error("it has expired")]
    Expired,
    /// It begins later than now, and more than clocks may differ.
    #[error("it begins {0} s from now: the clock of this node or of the authority is wrong")]
    NotYetValid(u64),
    /// Its chain does not lead to a root that we trust, or not for both roles.
    #[error("its chain is not trusted: {0}")]
    Untrusted(String, &'static str),
    /// Our key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The library takes none of it.
    #[error("TLS cannot be set up with it: {0}")]
    Tls(String),
}

impl CredentialError {
    /// The reason in one word, for metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Empty => "no_certificate",
            Self::TooLarge { .. } => "too_large",
            Self::Svid(error) => error.reason(),
            Self::WrongIdentity { .. } => "wrong_identity",
            Self::WrongKey => "wrong_key",
            Self::Expired => "expired",
            Self::NotYetValid(_) => "not_yet_valid",
            Self::Untrusted(_, reason) => reason,
            Self::Key(_) => "bad_key",
            Self::Tls(_) => "other",
        }
    }
}

/// One service account's certificate, key, and the roots trusted with it.
pub struct Credential {
    svid: Svid,
    chain: Vec<CertificateDer<'static>>,
    bundle: Arc<Bundle>,
    epoch: u64,
    key: Arc<SingleCertAndKey>,
    server: Arc<ServerConfig>,
}

impl Credential {
    /// Checks what an authority has answered, and makes a credential of it: it is for this identity and this key, in force, and its
    /// chain leads to a root of the bundle for both roles.
    ///
    /// # Errors
    /// What speaks against it.
    pub fn new(
        expected: &SpiffeId,
        key: &PrivateKey,
        chain: Vec<CertificateDer<'static>>,
        bundle: Arc<Bundle>,
        now: SystemTime,
    ) -> Result<Arc<Self>, CredentialError> {
        let svid = check(expected, &key.public(), &chain, &bundle, now)?;
        let Some(leaf) = chain.first() else { return Err(CredentialError::Empty) };
        let epoch = epoch(leaf, &bundle);
        let certified = CertifiedKey::new(chain.clone(), key.signing()?);
        let key = Arc::new(SingleCertAndKey::from(certified));
        let server = server_config(&bundle, &svid.id.trust_domain, &key)
            .map_err(|error| CredentialError::Tls(error.to_string()))?;
        Ok(Arc::new(Self { svid, chain, bundle, epoch, key, server: Arc::new(server) }))
    }

    /// Whose it is.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.svid.id
    }

    /// The certificate.
    #[must_use]
    pub fn svid(&self) -> &Svid {
        &self.svid
    }

    /// The certificate and what leads to a root.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The roots.
    #[must_use]
    pub fn bundle(&self) -> &Arc<Bundle> {
        &self.bundle
    }

    /// A number for certificate and bundle together: connections of equal ones may be shared.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether half of its life is over: connections that were made with it are to be drained once there is a newer one.
    #[must_use]
    pub fn is_half_spent(&self, now: SystemTime) -> bool {
        now >= self.svid.half_life()
    }

    /// Whether it has ended.
    #[must_use]
    pub fn is_expired(&self, now: SystemTime) -> bool {
        now >= self.svid.not_after
    }

    /// Whether it begins so much later that a clock is wrong: peers whose clocks are as this one refuse it as not yet valid.
    #[must_use]
    pub fn is_ahead(&self, now: SystemTime) -> bool {
        self.svid.not_before.duration_since(now).is_ok_and(|ahead| ahead > limits::CLOCK_AHEAD_MAX)
    }

    /// For a server's side: TLS 1.3, a client's certificate of our trust domain, both protocols.
    #[must_use]
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }

    /// For a client's side: TLS 1.3, and a server that is exactly `expected`. Nothing is resumed: a session would outlive the check.
    #[must_use]
    pub fn client_config(&self, expected: &SpiffeId, alpn: Alpn) -> Arc<ClientConfig> {
        client_config(&self.bundle, expected, alpn, &self.key)
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").field("svid", &self.svid).field("bundle", &self.bundle).finish_non_exhaustive()
    }
}

/// See [`Credential::server_config`].
pub(crate) fn server_config(
    bundle: &Arc<Bundle>,
    domain: &TrustDomain,
    key: &Arc<SingleCertAndKey>,
) -> Result<ServerConfig, Error> {
    let verifier = Verifier { bundle: bundle.clone(), expect: Expect::Member(domain.clone()) };
    let mut config = ServerConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(key.clone());
    config.alpn_protocols = Alpn::ALL.map(|alpn| alpn.name().to_vec()).to_vec();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// See [`Credential::client_config`].
pub(crate) fn client_config(
    bundle: &Arc<Bundle>,
    expected: &SpiffeId,
    alpn: Alpn,
    key: &Arc<SingleCertAndKey>,
) -> Arc<ClientConfig> {
    let verifier = Verifier { bundle: bundle.clone(), expect: Expect::Exactly(expected.clone()) };
    let builder = ClientConfig::builder_with_provider(tls::provider()).with_protocol_versions(&[&TLS13]);
    // The provider is ours, and a server was set up with it before: see `Credential::new`.
    #[allow(clippy::expect_used)]
    let mut config = builder
        .expect("the provider has suites of TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(key.clone());
    config.alpn_protocols = vec![alpn.name().to_vec()];
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

/// Checks what was answered to a request: it is for this identity and this key, in force, and its chain leads to a root of the bundle
/// for both roles. Returns whose it is.
///
/// # Errors
/// What speaks against it.
pub(crate) fn check(
    expected: &SpiffeId,
    public_key: &[u8],
    chain: &[CertificateDer<'_>],
    bundle: &Bundle,
    now: SystemTime,
) -> Result<Svid, CredentialError> {
    let (leaf, intermediates) = split(chain)?;
    let svid = Svid::from_der(leaf)?;
    if svid.id != *expected {
        return Err(CredentialError::WrongIdentity { expected: expected.clone(), found: svid.id });
    }
    if !is_for(leaf, public_key) {
        return Err(CredentialError::WrongKey);
    }
    check_chain(bundle, &svid, leaf, intermediates, now)?;
    Ok(svid)
}

/// A chain's leaf and the rest, if it is none that peers would find too large.
pub(crate) fn split<'a, 'b>(
    chain: &'a [CertificateDer<'b>],
) -> Result<(&'a CertificateDer<'b>, &'a [CertificateDer<'b>]), CredentialError> {
    let Some((leaf, intermediates)) = chain.split_first() else { return Err(CredentialError::Empty) };
    if intermediates.len() > limits::INTERMEDIATES_MAX {
        let (count, max) = (chain.len(), limits::INTERMEDIATES_MAX + 1);
        return Err(CredentialError::TooLarge { what: "certificates", count, max });
    }
    let bytes = chain.iter().map(|certificate| certificate.len()).sum();
    if bytes > limits::CHAIN_MAX {
        return Err(CredentialError::TooLarge { what: "bytes", count: bytes, max: limits::CHAIN_MAX });
    }
    Ok((leaf, intermediates))
}

fn check_chain(
    bundle: &Bundle,
    svid: &Svid,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: SystemTime,
) -> Result<(), CredentialError> {
    if now >= svid.not_after {
        return Err(CredentialError::Expired);
    }
    let ahead = svid.not_before.duration_since(now).unwrap_or(Duration::ZERO);
    if ahead > limits::CLOCK_AHEAD_MAX {
        return Err(CredentialError::NotYetValid(ahead.as_secs()));
    }
    // A clock that is a little behind is no reason to go without a certificate.
    let at = UnixTime::since_unix_epoch(now.max(svid.not_before).duration_since(UNIX_EPOCH).unwrap_or_default());
    verify::server_chain(bundle, leaf, intermediates, at)
        .and_then(|()| verify::client_chain(bundle, leaf, intermediates, at))
        .map_err(|error| CredentialError::Untrusted(error.to_string(), refusal::of_tls(&error).word()))
}

/// Whether a certificate is for a key.
pub(crate) fn is_for(leaf: &[u8], public_key: &[u8]) -> bool {
    X509Certificate::from_der(leaf).is_ok_and(|(_, leaf)| leaf.public_key().raw == public_key)
}

/// The first bytes of a hash over certificate and bundle.
fn epoch(leaf: &[u8], bundle: &Bundle) -> u64 {
    let digest = Sha256::new().chain_update(leaf).chain_update(bundle.hash()).finalize();
    digest.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// The credentials of the pods of this node, as the data path asks for them.
pub trait Credentials: Send + Sync + 'static {
    /// The one of a service account. Takes no lock, and no more than some nanoseconds.
    fn of(&self, account: &ServiceAccountKey) -> Option<Arc<Credential>>;
    /// Moves whenever any answer of [`Credentials::of`] may have changed.
    fn changed(&self) -> tokio::sync::watch::Receiver<u64>;
    /// The trust domain of all of them.
    fn trust_domain(&self) -> &TrustDomain;
}
