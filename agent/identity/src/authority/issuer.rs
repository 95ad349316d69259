//! The key that signs workloads: made by a root of ours, or brought by a user. What would break later is refused when it is loaded.

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rcgen::SubjectPublicKeyInfo;
use rustls::pki_types::{CertificateDer, UnixTime, pem::PemObject as _};
use weft_policy::names::ServiceAccountKey;
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};
use zeroize::Zeroizing;

use crate::{
    authority::profile::Profile,
    bundle::{self, Bundle, CaError},
    key::{KeyError, PrivateKey},
    limits,
    spiffe::{SpiffeId, TrustDomain},
    svid, verify,
};

/// Why a key and its certificate cannot sign workloads. What signed before stays in force; somebody has to bring another.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IssuerError {
    /// More bytes than we read.
    #[error("the chain has {0} bytes, of at most {max}", max = limits::BUNDLE_MAX)]
    TooLarge(usize),
    /// No PEM, or nothing in it.
    #[error("the chain is no PEM: {0}")]
    Pem(String),
    /// More certificates than peers would take.
    #[error("the chain has {0} certificates, of at most {max}", max = limits::INTERMEDIATES_MAX)]
    LongChain(usize),
    /// One of them may not sign.
    #[error("it cannot sign workloads: {0}")]
    Ca(#[from] CaError),
    /// One above allows fewer below it than there are.
    #[error("certificate {0} of the chain allows fewer authorities below it than there are (pathLen)")]
    PathLen(usize),
    /// The key is none.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The key is another certificate's.
    #[error("the key is not the certificate's")]
    WrongKey,
    /// It has ended.
    #[error("it has expired")]
    Expired,
    /// It has not begun.
    #[error("it is not valid yet")]
    NotYetValid,
    /// It ends before the certificates would that it signs.
    #[error("it ends in {remaining} s; certificates of workloads live for {ttl} s")]
    TooShort {
        /// Seconds.
        remaining: u64,
        /// Seconds.
        ttl: u64,
    },
    /// A certificate that it signed would not be taken.
    #[error("what it signs is not trusted with the bundle: {0}")]
    Untrusted(String),
    /// The library refused to sign.
    #[error("it could not sign: {0}")]
    Sign(String),
}

impl IssuerError {
    /// The reason in one word, for metrics and conditions.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TooLarge(_) | Self::LongChain(_) => "too_large",
            Self::Pem(_) => "bad_encoding",
            Self::Ca(CaError::UriConstraints) => "uri_constraints",
            Self::Ca(CaError::NotCa) => "not_ca",
            Self::Ca(CaError::Garbage) => "bad_encoding",
            Self::Ca(CaError::TooLarge(_)) => "too_large",
            Self::Ca(CaError::Usage | CaError::ExtendedUsage) => "bad_usage",
            Self::PathLen(_) => "path_length",
            Self::Key(_) => "bad_key",
            Self::WrongKey => "wrong_key",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::TooShort { .. } => "too_short",
            Self::Untrusted(_) => "untrusted",
            Self::Sign(_) => "sign",
        }
    }
}

/// A key that signs workloads, and its chain: its own certificate first, then what leads to a root, without the root.
pub struct Issuer {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKey,
    not_after: SystemTime,
}

impl Issuer {
    /// An issuer out of a Secret, checked against the roots that agents trust, and against the life of what it is to sign.
    ///
    /// # Errors
    /// The first thing that would break.
    pub fn from_pem(
        chain: &[u8],
        key: &[u8],
        bundle: &Bundle,
        profile: &Profile,
        now: SystemTime,
    ) -> Result<Self, IssuerError> {
        if chain.len() > limits::BUNDLE_MAX {
            return Err(IssuerError::TooLarge(chain.len()));
        }
        let mut chain = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| IssuerError::Pem(error.to_string()))?;
        // Users put their root at the end of the chain; peers have it already.
        while chain.len() > 1 && chain.last().is_some_and(|last| bundle.roots().contains(last)) {
            chain.pop();
        }
        let issuer = Self::assemble(chain, PrivateKey::from_pem(key)?)?;
        issuer.check(bundle, profile, now)?;
        Ok(issuer)
    }

    pub(crate) fn assemble(chain: Vec<CertificateDer<'static>>, key: PrivateKey) -> Result<Self, IssuerError> {
        let Some(first) = chain.first() else { return Err(IssuerError::Pem("there is no certificate".to_owned())) };
        if chain.len() > limits::INTERMEDIATES_MAX {
            return Err(IssuerError::LongChain(chain.len()));
        }
        for certificate in &chain {
            bundle::check_ca(certificate)?;
        }
        let (_, parsed) = X509Certificate::from_der(first).map_err(|_| IssuerError::Ca(CaError::Garbage))?;
        if parsed.public_key().raw != key.public() {
            return Err(IssuerError::WrongKey);
        }
        let ends = |certificate: &CertificateDer<'_>| {
            let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
            Some(svid::when(parsed.validity().not_after.timestamp()))
        };
        let not_after = chain.iter().filter_map(ends).min().unwrap_or(UNIX_EPOCH);
        Ok(Self { chain, key, not_after })
    }

    /// Whether what it signs now would be taken by everybody who trusts this bundle, for as long as it lives.
    ///
    /// # Errors
    /// The first thing that would break.
    pub fn check(&self, bundle: &Bundle, profile: &Profile, now: SystemTime) -> Result<(), IssuerError> {
        for (below, certificate) in self.chain.iter().enumerate() {
            let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| IssuerError::Ca(CaError::Garbage))?;
            let allowed = parsed.basic_constraints().ok().flatten().and_then(|c| c.value.path_len_constraint);
            if allowed.is_some_and(|allowed| (allowed as usize) < below) {
                return Err(IssuerError::PathLen(below + 1));
            }
            if now < svid::when(parsed.validity().not_before.timestamp()) {
                return Err(IssuerError::NotYetValid);
            }
        }
        let remaining = self.not_after.duration_since(now).map_err(|_| IssuerError::Expired)?;
        if remaining.is_zero() {
            return Err(IssuerError::Expired);
        }
        if remaining <= profile.ttl() {
            return Err(IssuerError::TooShort { remaining: remaining.as_secs(), ttl: profile.ttl().as_secs() });
        }
        self.try_out(bundle, profile, now)
    }

    /// Signs a certificate for nobody and verifies it as a peer would: names, signatures and constraints of the whole chain.
    fn try_out(&self, bundle: &Bundle, profile: &Profile, now: SystemTime) -> Result<(), IssuerError> {
        let nobody = TrustDomain::new("invalid")
            .and_then(|domain| SpiffeId::new(domain, ServiceAccountKey::new("nobody", "nobody")))
            .map_err(|error| IssuerError::Sign(error.to_string()))?;
        let chain = self.sign(&nobody, &PrivateKey::generate()?.public(), profile, now)?;
        let (leaf, intermediates) = chain.split_first().ok_or(IssuerError::WrongKey)?;
        let at = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default());
        verify::server_chain(bundle, leaf, intermediates, at)
            .and_then(|()| verify::client_chain(bundle, leaf, intermediates, at))
            .map_err(|error| IssuerError::Untrusted(error.to_string()))
    }

    /// Signs a workload's certificate. The answer has everything that a peer needs besides the root.
    ///
    /// # Errors
    /// [`IssuerError::Expired`], or the library refused.
    pub fn sign(
        &self,
        id: &SpiffeId,
        public_key: &[u8],
        profile: &Profile,
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, IssuerError> {
        if now >= self.not_after {
            return Err(IssuerError::Expired);
        }
        let sign = || {
            let public_key = SubjectPublicKeyInfo::from_der(public_key)?;
            let issuer = rcgen::Issuer::from_ca_cert_der(self.certificate(), self.key.pair())?;
            profile.workload(id, now, self.not_after)?.signed_by(&public_key, &issuer)
        };
        let leaf = sign().map_err(|error: rcgen::Error| IssuerError::Sign(error.to_string()))?;
        Ok(std::iter::once(leaf.der().clone()).chain(self.chain.iter().cloned()).collect())
    }

    /// Signs the certificate of the authority's own server: names of DNS, for servers only.
    ///
    /// # Errors
    /// [`IssuerError::Expired`], or the library refused.
    pub fn sign_server(
        &self,
        names: &[String],
        key: &PrivateKey,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, IssuerError> {
        if now >= self.not_after {
            return Err(IssuerError::Expired);
        }
        let sign = || {
            let issuer = rcgen::Issuer::from_ca_cert_der(self.certificate(), self.key.pair())?;
            Profile::unchecked(ttl).server(names, now, self.not_after)?.signed_by(key.pair(), &issuer)
        };
        let leaf = sign().map_err(|error: rcgen::Error| IssuerError::Sign(error.to_string()))?;
        Ok(std::iter::once(leaf.der().clone()).chain(self.chain.iter().cloned()).collect())
    }

    /// Its own certificate.
    fn certificate(&self) -> &CertificateDer<'static> {
        // `assemble` takes no chain without one.
        &self.chain[0]
    }

    /// When it, or the first of those above it, ends.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Its chain, for a Secret.
    #[must_use]
    pub fn chain_pem(&self) -> String {
        bundle::to_pem(&self.chain)
    }

    /// Its key, for a Secret.
    #[must_use]
    pub fn key_pem(&self) -> Zeroizing<String> {
        self.key.to_pem()
    }
}

impl fmt::Debug for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issuer").field("chain", &self.chain.len()).field("not_after", &self.not_after).finish()
    }
}
