//! What a workload's certificate must be (X509-SVID), checked on its bytes before anything else looks at it. Whether it is *trusted*
//! is another question, which the chain and the roots answer.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY},
    prelude::FromDer as _,
};

use crate::{
    limits,
    spiffe::{SpiffeError, SpiffeId},
};

/// The tag of a URI among a certificate's names (RFC 5280, 4.2.1.6).
const URI_TAG: u32 = 6;

/// A workload's certificate: what we read out of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Svid {
    /// Whose it is.
    pub id: SpiffeId,
    /// Serial number, lower case hex.
    pub serial: String,
    /// When it begins.
    pub not_before: SystemTime,
    /// When it ends. Connections end with it too.
    pub not_after: SystemTime,
}

/// Why a certificate is none that a workload may have. Certificates are the peer's, so none of these is worth trying again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SvidError {
    /// More bytes than we read.
    #[error("the {what} has {bytes} bytes, of at most {max}")]
    TooLarge {
        /// Of what.
        what: &'static str,
        /// How many.
        bytes: usize,
        /// Of how many.
        max: usize,
    },
    /// No certificate at all.
    #[error("it is no X.509 certificate: {0}")]
    Garbage(&'static str),
    /// Nothing says whose it is.
    #[error("it has no URI among its names")]
    NoUri,
    /// It says so more than once (X509-SVID 2: exactly one).
    #[error("it has {0} URIs among its names; an identity is exactly one")]
    TwoUris(usize),
    /// What it says is no identity.
    #[error("its URI is no SPIFFE ID: {0}")]
    BadId(SpiffeError),
    /// It may sign others: not one that a workload has.
    #[error("it is a certificate authority's")]
    IsCa,
    /// Key usage or extended key usage are not those of TLS with both roles.
    #[error("its usage is not a workload's: {0}")]
    BadUsage(&'static str),
    /// Not a P-256 key.
    #[error("its key is not of P-256")]
    BadKey,
    /// It ends before it begins.
    #[error("it ends before it begins")]
    BadValidity,
}

impl SvidError {
    /// The reason in one word, for metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "too_large",
            Self::Garbage(_) => "bad_encoding",
            Self::NoUri => "no_uri",
            Self::TwoUris(_) => "two_uris",
            Self::BadId(SpiffeError::TooLong(_)) => "too_large",
            Self::BadId(_) => "bad_spiffe_id",
            Self::IsCa => "is_ca",
            Self::BadUsage(_) => "bad_usage",
            Self::BadKey => "bad_key",
            Self::BadValidity => "bad_validity",
        }
    }
}

impl Svid {
    /// Reads a workload's certificate.
    ///
    /// # Errors
    /// What keeps it from being one.
    pub fn from_der(leaf: &[u8]) -> Result<Self, SvidError> {
        if leaf.len() > limits::CERTIFICATE_MAX {
            let (bytes, max) = (leaf.len(), limits::CERTIFICATE_MAX);
            return Err(SvidError::TooLarge { what: "certificate", bytes, max });
        }
        let (rest, certificate) =
            X509Certificate::from_der(leaf).map_err(|_| SvidError::Garbage("its encoding is broken"))?;
        if !rest.is_empty() {
            return Err(SvidError::Garbage("something follows it"));
        }
        let extensions = Extensions::read(&certificate)?;
        extensions.check_usage()?;
        check_key(&certificate)?;
        let serial = certificate.raw_serial();
        if serial.len() > limits::SERIAL_MAX + 1 {
            let (bytes, max) = (serial.len(), limits::SERIAL_MAX);
            return Err(SvidError::TooLarge { what: "serial number", bytes, max });
        }
        let validity = certificate.validity();
        let (not_before, not_after) = (when(validity.not_before.timestamp()), when(validity.not_after.timestamp()));
        if not_after <= not_before {
            return Err(SvidError::BadValidity);
        }
        Ok(Self { id: extensions.id()?, serial: hex(serial), not_before, not_after })
    }

    /// The moment at which half of its life is over.
    #[must_use]
    pub fn half_life(&self) -> SystemTime {
        self.not_before + self.not_after.duration_since(self.not_before).unwrap_or(Duration::ZERO) / 2
    }
}

/// The extensions that say what a certificate is for. Each may be there once (RFC 5280, 4.2).
#[derive(Default)]
struct Extensions<'a> {
    is_ca: bool,
    digital_signature: bool,
    signs_others: bool,
    server_auth: bool,
    client_auth: bool,
    names: &'a [GeneralName<'a>],
}

impl<'a> Extensions<'a> {
    fn read(certificate: &'a X509Certificate<'a>) -> Result<Self, SvidError> {
        let mut found = Self::default();
        let mut seen = Vec::new();
        for extension in certificate.extensions() {
            if seen.contains(&&extension.oid) {
                return Err(SvidError::Garbage("an extension is there twice"));
            }
            seen.push(&extension.oid);
            match extension.parsed_extension() {
                ParsedExtension::BasicConstraints(constraints) => found.is_ca = constraints.ca,
                ParsedExtension::KeyUsage(usage) => {
                    found.digital_signature = usage.digital_signature();
                    found.signs_others = usage.key_cert_sign() || usage.crl_sign();
                }
                ParsedExtension::ExtendedKeyUsage(usage) => {
                    (found.server_auth, found.client_auth) = (usage.server_auth, usage.client_auth);
                }
                ParsedExtension::SubjectAlternativeName(names) => found.names = &names.general_names,
                ParsedExtension::ParseError { .. } => return Err(SvidError::Garbage("an extension is broken")),
                _ => {}
            }
        }
        Ok(found)
    }

    fn check_usage(&self) -> Result<(), SvidError> {
        if self.is_ca {
            return Err(SvidError::IsCa);
        }
        if self.signs_others {
            return Err(SvidError::BadUsage("its key may sign certificates"));
        }
        if !self.digital_signature {
            return Err(SvidError::BadUsage("its key may not sign handshakes"));
        }
        if !(self.server_auth && self.client_auth) {
            return Err(SvidError::BadUsage("it is not for servers and clients both"));
        }
        Ok(())
    }

    /// The one URI, as an identity. Names of other kinds say nothing to us, as X509-SVID wants.
    fn id(&self) -> Result<SpiffeId, SvidError> {
        let uris = || {
            self.names.iter().filter_map(|name| match name {
                GeneralName::URI(uri) => Some(Some(*uri)),
                // Not ASCII: still a URI, and still counted.
                GeneralName::Invalid(tag, _) if tag.0 == URI_TAG => Some(None),
                _ => None,
            })
        };
        match uris().count() {
            0 => return Err(SvidError::NoUri),
            1 => {}
            several => return Err(SvidError::TwoUris(several)),
        }
        let uri = uris().next().flatten().ok_or(SvidError::Garbage("its URI is not ASCII"))?;
        uri.parse().map_err(SvidError::BadId)
    }
}

/// Only P-256 keys: what we make, and what a CertificateVerify of TLS 1.3 costs little with.
fn check_key(certificate: &X509Certificate<'_>) -> Result<(), SvidError> {
    if is_p256(certificate.public_key()) { Ok(()) } else { Err(SvidError::BadKey) }
}

/// Whether a public key is of P-256, not compressed.
pub(crate) fn is_p256(key: &x509_parser::x509::SubjectPublicKeyInfo<'_>) -> bool {
    let curve = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    key.algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY
        && curve.is_some_and(|curve| curve == OID_EC_P256)
        && key.subject_public_key.data.len() == 65
        && key.subject_public_key.data.first() == Some(&4)
}

/// A moment from seconds since 1970; those before it are 1970.
pub(crate) fn when(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// Lower case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
