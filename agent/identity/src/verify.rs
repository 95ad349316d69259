//! Verification of peers, the same for both roles: what the certificate is ([`Svid`]), then its chain, then whose it is.

use std::{fmt, sync::Arc};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        ParsedCertificate,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};

use crate::{
    bundle::Bundle,
    limits,
    spiffe::{SpiffeId, TrustDomain},
    svid::{Svid, SvidError},
    tls,
};

/// What is wrong with a peer's certificate and has no word of rustls' own.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PeerError {
    #[error(transparent)]
    Svid(#[from] SvidError),
    #[error("{0} certificates came with it, of at most {max}", max = limits::INTERMEDIATES_MAX)]
    LongChain(usize),
    #[error("nobody has signed it but its own key")]
    SelfSigned,
    #[error("it is {found}'s, of another trust domain than {expected}")]
    WrongTrustDomain { expected: TrustDomain, found: SpiffeId },
    #[error("it is {found}'s, where {expected} was expected")]
    WrongIdentity { expected: SpiffeId, found: SpiffeId },
}

impl From<PeerError> for Error {
    fn from(error: PeerError) -> Self {
        Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
    }
}

/// Whom we expect.
#[derive(Clone, Debug)]
pub(crate) enum Expect {
    /// A client: anybody of our trust domain. Policy decides over the rest.
    Member(TrustDomain),
    /// A server: exactly this one, before a byte is sent to it.
    Exactly(SpiffeId),
}

/// Verifies peers with one bundle.
pub(crate) struct Verifier {
    pub(crate) bundle: Arc<Bundle>,
    pub(crate) expect: Expect,
}

impl Verifier {
    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        chain: impl FnOnce() -> Result<(), Error>,
    ) -> Result<(), Error> {
        if intermediates.len() > limits::INTERMEDIATES_MAX {
            return Err(PeerError::LongChain(intermediates.len()).into());
        }
        let svid = Svid::from_der(leaf).map_err(PeerError::Svid)?;
        chain().map_err(|error| match error {
            Error::InvalidCertificate(CertificateError::UnknownIssuer) if is_self_signed(leaf) => {
                PeerError::SelfSigned.into()
            }
            error => error,
        })?;
        self.expect.check(svid.id).map_err(Into::into)
    }
}

impl Expect {
    fn check(&self, found: SpiffeId) -> Result<(), PeerError> {
        let domain = match self {
            Self::Member(domain) => domain,
            Self::Exactly(expected) => &expected.trust_domain,
        };
        if found.trust_domain != *domain {
            return Err(PeerError::WrongTrustDomain { expected: domain.clone(), found });
        }
        match self {
            Self::Exactly(expected) if *expected != found => {
                Err(PeerError::WrongIdentity { expected: expected.clone(), found })
            }
            _ => Ok(()),
        }
    }
}

/// Whether a certificate names itself as its issuer. Only asked where nobody known has signed it.
fn is_self_signed(leaf: &[u8]) -> bool {
    X509Certificate::from_der(leaf).is_ok_and(|(_, leaf)| leaf.issuer().as_raw() == leaf.subject().as_raw())
}

/// Checks the chain of a server's certificate.
pub(crate) fn server_chain(
    bundle: &Bundle,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<(), Error> {
    let parsed = ParsedCertificate::try_from(leaf)?;
    let algorithms = tls::provider().signature_verification_algorithms.all;
    verify_server_cert_signed_by_trust_anchor(&parsed, bundle.store(), intermediates, now, algorithms)
}

/// Checks the chain of a client's certificate.
pub(crate) fn client_chain(
    bundle: &Bundle,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<(), Error> {
    bundle.clients().verify_client_cert(leaf, intermediates, now).map(|_| ())
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("bundle", &self.bundle).field("expect", &self.expect).finish()
    }
}

impl ServerCertVerifier for Verifier {
    /// The server's name is none that we asked for by name: only the identity counts.
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(leaf, intermediates, || server_chain(&self.bundle, leaf, intermediates, now))?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.bundle.clients().verify_tls12_signature(message, leaf, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.bundle.clients().verify_tls13_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.bundle.clients().supported_verify_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(leaf, intermediates, || client_chain(&self.bundle, leaf, intermediates, now))?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.bundle.clients().verify_tls12_signature(message, leaf, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.bundle.clients().verify_tls13_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.bundle.clients().supported_verify_schemes()
    }
}
