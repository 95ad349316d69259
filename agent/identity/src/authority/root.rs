//! A root: made once, kept apart, and used to sign issuers.

use std::{fmt, time::SystemTime};

use rcgen::BasicConstraints;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};
use zeroize::Zeroizing;

use crate::{
    authority::{
        issuer::{Issuer, IssuerError},
        profile,
    },
    bundle,
    key::PrivateKey,
    limits, svid,
};

/// A root that we made, with its key.
pub struct Root {
    certificate: CertificateDer<'static>,
    key: PrivateKey,
}

impl Root {
    /// A new root. Its name has some bytes of its key in it, so that two roots are never taken for each other.
    ///
    /// # Errors
    /// [`IssuerError::Key`] or [`IssuerError::Sign`]: the library refused.
    pub fn generate(now: SystemTime) -> Result<Self, IssuerError> {
        let key = PrivateKey::generate()?;
        let name = format!("weft root {}", short_hash(&key));
        let params = profile::authority(&name, BasicConstraints::Unconstrained, now, now + limits::ROOT_LIFE)
            .and_then(|params| params.self_signed(key.pair()));
        let certificate = params.map_err(|error| IssuerError::Sign(error.to_string()))?.der().clone();
        Ok(Self { certificate, key })
    }

    /// A root out of a Secret.
    ///
    /// # Errors
    /// It cannot sign: the first thing that speaks against it.
    pub fn from_pem(certificate: &[u8], key: &[u8], now: SystemTime) -> Result<Self, IssuerError> {
        if certificate.len() > limits::BUNDLE_MAX {
            return Err(IssuerError::TooLarge(certificate.len()));
        }
        let certificate =
            CertificateDer::from_pem_slice(certificate).map_err(|error| IssuerError::Pem(error.to_string()))?;
        bundle::check_ca(&certificate)?;
        let key = PrivateKey::from_pem(key)?;
        {
            let (_, parsed) =
                X509Certificate::from_der(&certificate).map_err(|_| IssuerError::Ca(bundle::CaError::Garbage))?;
            if parsed.public_key().raw != key.public() {
                return Err(IssuerError::WrongKey);
            }
            if now >= svid::when(parsed.validity().not_after.timestamp()) {
                return Err(IssuerError::Expired);
            }
        }
        Ok(Self { certificate, key })
    }

    /// A new issuer below it, which may sign workloads and nothing else.
    ///
    /// # Errors
    /// The library refused.
    pub fn issuer(&self, now: SystemTime) -> Result<Issuer, IssuerError> {
        let key = PrivateKey::generate()?;
        let name = format!("weft issuer {}", short_hash(&key));
        let ends = (now + limits::ISSUER_LIFE).min(self.not_after());
        let sign = || {
            let mut params = profile::authority(&name, BasicConstraints::Constrained(0), now, ends)?;
            params.use_authority_key_identifier_extension = true;
            let root = rcgen::Issuer::from_ca_cert_der(&self.certificate, self.key.pair())?;
            params.signed_by(key.pair(), &root)
        };
        let certificate = sign().map_err(|error: rcgen::Error| IssuerError::Sign(error.to_string()))?;
        Issuer::assemble(vec![certificate.der().clone()], key)
    }

    /// When it ends.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        X509Certificate::from_der(&self.certificate)
            .map_or(SystemTime::UNIX_EPOCH, |(_, root)| svid::when(root.validity().not_after.timestamp()))
    }

    /// The certificate.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The certificate, for a Secret and the bundle.
    #[must_use]
    pub fn certificate_pem(&self) -> String {
        bundle::to_pem(std::slice::from_ref(&self.certificate))
    }

    /// The key, for a Secret.
    #[must_use]
    pub fn key_pem(&self) -> Zeroizing<String> {
        self.key.to_pem()
    }
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Root(..)")
    }
}

/// Eight hex digits that tell keys apart.
fn short_hash(key: &PrivateKey) -> String {
    use sha2::{Digest as _, Sha256};
    svid::hex(Sha256::digest(key.public()).get(..4).unwrap_or_default())
}
