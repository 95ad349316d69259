//! The roots that are trusted: read from PEM, checked before they are used, and told apart by a hash.

use std::{fmt, sync::Arc, time::SystemTime};

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use sha2::{Digest as _, Sha256};
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer as _,
};

use crate::{limits, svid, tls};

/// Why a bundle cannot be trusted with. The one before stays in force; another text has to come.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// More bytes or roots than we read.
    #[error("the bundle has {count} {what}, of at most {max}")]
    TooLarge {
        /// Of what.
        what: &'static str,
        /// How many.
        count: usize,
        /// Of how many.
        max: usize,
    },
    /// No certificate in it.
    #[error("the bundle has no certificate")]
    Empty,
    /// It is no PEM.
    #[error("the bundle is no PEM: {0}")]
    Pem(String),
    /// One of them is no root.
    #[error("certificate {number} of the bundle cannot be a root: {why}")]
    Root {
        /// Which, from 1.
        number: usize,
        /// What is wrong.
        why: CaError,
    },
}

/// Why a certificate cannot sign others, or not so that their chain would be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CaError {
    /// No certificate.
    #[error("its encoding is broken")]
    Garbage,
    /// Too many bytes.
    #[error("it has {0} bytes, of at most {max}", max = limits::CERTIFICATE_MAX)]
    TooLarge(usize),
    /// CA:TRUE is missing.
    #[error("it is not a certificate authority's (basic constraints)")]
    NotCa,
    /// Its key may not sign certificates.
    #[error("its key may not sign certificates (key usage)")]
    Usage,
    /// It constrains URIs: TLS libraries, rustls among them, refuse every certificate below it.
    #[error("it has name constraints for URIs, under which no certificate of a workload would be taken")]
    UriConstraints,
    /// Its extended key usage would forbid what is to be signed.
    #[error("it has an extended key usage that leaves out TLS servers or clients")]
    ExtendedUsage,
}

/// The roots that are trusted. Equal ones have equal hashes, in whatever order they were written.
pub struct Bundle {
    roots: Vec<CertificateDer<'static>>,
    store: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
    hash: [u8; 32],
}

impl Bundle {
    /// Reads roots from PEM. What is no certificate in it is passed over.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn from_pem(pem: &[u8]) -> Result<Self, BundleError> {
        if pem.len() > limits::BUNDLE_MAX {
            return Err(BundleError::TooLarge { what: "bytes", count: pem.len(), max: limits::BUNDLE_MAX });
        }
        let roots = CertificateDer::pem_slice_iter(pem)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| BundleError::Pem(error.to_string()))?;
        Self::from_der(roots)
    }

    /// Takes roots.
    ///
    /// # Errors
    /// The first thing that is wrong with them.
    pub fn from_der(mut roots: Vec<CertificateDer<'static>>) -> Result<Self, BundleError> {
        if roots.is_empty() {
            return Err(BundleError::Empty);
        }
        if roots.len() > limits::ROOTS_MAX {
            return Err(BundleError::TooLarge { what: "roots", count: roots.len(), max: limits::ROOTS_MAX });
        }
        let mut store = RootCertStore::empty();
        for (index, root) in roots.iter().enumerate() {
            let number = index + 1;
            check_ca(root).map_err(|why| BundleError::Root { number, why })?;
            store.add(root.clone()).map_err(|_| BundleError::Root { number, why: CaError::Garbage })?;
        }
        roots.sort_unstable_by(|a, b| a.as_ref().cmp(b.as_ref()));
        roots.dedup();
        let mut hasher = Sha256::new();
        for root in &roots {
            hasher.update(root);
        }
        let store = Arc::new(store);
        // No hints of roots: a client of ours has one certificate, and they would cost bytes of each handshake.
        let clients = WebPkiClientVerifier::builder_with_provider(store.clone(), tls::provider())
            .clear_root_hint_subjects()
            .build()
            .map_err(|_| BundleError::Empty)?;
        Ok(Self { roots, store, clients, hash: hasher.finalize().into() })
    }

    /// SHA-256 over the roots, in hex: the name by which an agent tells what it trusts.
    #[must_use]
    pub fn sha256(&self) -> String {
        svid::hex(&self.hash)
    }

    /// The roots, in the order of their bytes.
    #[must_use]
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The roots, as PEM.
    #[must_use]
    pub fn to_pem(&self) -> String {
        to_pem(&self.roots)
    }

    /// For others who verify with it: the authority's own connection, for one.
    #[must_use]
    pub fn store(&self) -> &Arc<RootCertStore> {
        &self.store
    }

    /// When the last of its roots ends.
    #[must_use]
    pub fn not_after(&self) -> Option<SystemTime> {
        self.roots
            .iter()
            .filter_map(|root| X509Certificate::from_der(root).ok())
            .map(|(_, root)| svid::when(root.validity().not_after.timestamp()))
            .max()
    }

    pub(crate) fn clients(&self) -> &Arc<dyn ClientCertVerifier> {
        &self.clients
    }

    pub(crate) fn hash(&self) -> &[u8; 32] {
        &self.hash
    }
}

impl PartialEq for Bundle {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
    }
}

impl Eq for Bundle {}

impl fmt::Debug for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bundle").field("roots", &self.roots.len()).field("sha256", &self.sha256()).finish()
    }
}

/// Certificates as PEM.
#[must_use]
pub fn to_pem(certificates: &[CertificateDer<'_>]) -> String {
    certificates
        .iter()
        .map(|certificate| {
            let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
            pem::encode_config(&pem::Pem::new("CERTIFICATE", certificate.as_ref()), config)
        })
        .collect()
}

/// Checks that a certificate may sign those of workloads, and that chains through it would be taken.
///
/// # Errors
/// The first thing that speaks against it.
pub(crate) fn check_ca(der: &[u8]) -> Result<(), CaError> {
    if der.len() > limits::CERTIFICATE_MAX {
        return Err(CaError::TooLarge(der.len()));
    }
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| CaError::Garbage)?;
    if !rest.is_empty() {
        return Err(CaError::Garbage);
    }
    // First, since it says most about what somebody has mistaken for an authority's certificate.
    let is_ca = |extension: &ParsedExtension<'_>| matches!(extension, ParsedExtension::BasicConstraints(it) if it.ca);
    if !certificate.extensions().iter().any(|extension| is_ca(extension.parsed_extension())) {
        return Err(CaError::NotCa);
    }
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::KeyUsage(usage) if !usage.key_cert_sign() => return Err(CaError::Usage),
            ParsedExtension::ExtendedKeyUsage(usage) if !(usage.any || usage.server_auth && usage.client_auth) => {
                return Err(CaError::ExtendedUsage);
            }
            ParsedExtension::NameConstraints(constraints) => {
                let subtrees = constraints.permitted_subtrees.iter().chain(&constraints.excluded_subtrees).flatten();
                if subtrees.into_iter().any(|subtree| matches!(subtree.base, GeneralName::URI(_))) {
                    return Err(CaError::UriConstraints);
                }
            }
            ParsedExtension::ParseError { .. } => return Err(CaError::Garbage),
            _ => {}
        }
    }
    Ok(())
}
