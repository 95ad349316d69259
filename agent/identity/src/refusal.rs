//! Why a handshake has failed: a word for metrics, a sentence for people, and which side has refused.

use std::{fmt, io};

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible};

use crate::{svid::SvidError, verify::PeerError};

/// Who has ended the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum By {
    /// We refused the peer.
    Us,
    /// The peer refused us, and said so by an alert.
    Peer,
    /// Nobody has refused anybody: the connection broke.
    Link,
}

impl By {
    /// All of them, for metrics that are made beforehand.
    pub const ALL: [Self; 3] = [Self::Us, Self::Peer, Self::Link];

    /// A word for metrics.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Us => "us",
            Self::Peer => "peer",
            Self::Link => "link",
        }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $word:literal,)*) => {
        /// Why.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            /// All of them, for metrics that are made beforehand.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// A word for metrics.
            #[must_use]
            pub fn word(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }
        }
    };
}

reasons! {
    /// The certificate, or one of its chain, has ended.
    Expired = "expired",
    /// It has not begun: one of the clocks is wrong.
    NotYetValid = "not_yet_valid",
    /// No root that is trusted has signed it.
    UnknownIssuer = "unknown_issuer",
    /// Nobody but its own key has signed it.
    SelfSigned = "self_signed",
    /// It is another's than the one expected.
    WrongIdentity = "wrong_identity",
    /// It is of another trust domain.
    WrongTrustDomain = "wrong_trust_domain",
    /// None was shown.
    NoCertificate = "no_certificate",
    /// Its usage is not a workload's.
    BadUsage = "bad_usage",
    /// It is an authority's.
    IsCa = "is_ca",
    /// Nothing in it says whose it is.
    NoUri = "no_uri",
    /// It says so more than once.
    TwoUris = "two_uris",
    /// What it says is no SPIFFE ID of ours.
    BadSpiffeId = "bad_spiffe_id",
    /// It, or something of it, has too many bytes.
    TooLarge = "too_large",
    /// Its key is not of P-256.
    BadKey = "bad_key",
    /// It ends before it begins.
    BadValidity = "bad_validity",
    /// It cannot be read.
    BadEncoding = "bad_encoding",
    /// Something else about the certificate; the words say what.
    BadCertificate = "bad_certificate",
    /// A signature is wrong: of the chain, or of the handshake.
    BadSignature = "bad_signature",
    /// Not TLS 1.3.
    ProtocolVersion = "protocol_version",
    /// No protocol of ours was offered or agreed on.
    Alpn = "alpn",
    /// No algorithms in common.
    Algorithms = "algorithms",
    /// The connection ended before the handshake did.
    Closed = "closed",
    /// The handshake took too long.
    Timeout = "timeout",
    /// What came is no TLS.
    Garbage = "garbage",
    /// What came is TLS, and breaks its rules.
    Protocol = "protocol",
    /// Anything else.
    Other = "other",
}

/// Why a handshake has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Who has ended it.
    pub by: By,
    /// Why.
    pub reason: Reason,
    words: String,
}

impl Refusal {
    pub(crate) fn new(by: By, reason: Reason, words: impl Into<String>) -> Self {
        Self { by, reason, words: words.into() }
    }

    /// For a handshake that took longer than it may; only the one who waits knows.
    #[must_use]
    pub fn timeout() -> Self {
        Self::new(By::Link, Reason::Timeout, "the handshake took too long")
    }

    /// The reason as a word for metrics.
    #[must_use]
    pub fn word(&self) -> &'static str {
        self.reason.word()
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.by {
            By::Us => write!(f, "the peer was refused: {}", self.words),
            By::Peer => write!(f, "the peer refused: {}", self.words),
            By::Link => f.write_str(&self.words),
        }
    }
}

impl std::error::Error for Refusal {}

/// Why a handshake, or the first read after it (where a server tells a client of TLS 1.3 that it takes no certificate of it), failed.
#[must_use]
pub fn refusal(error: &io::Error) -> Refusal {
    // Some wrap one I/O error into another.
    let mut inner = error.get_ref();
    while let Some(error) = inner {
        if let Some(error) = error.downcast_ref::<Error>() {
            return of_tls(error);
        }
        inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    }
    let reason = match error.kind() {
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::NotConnected => Reason::Closed,
        io::ErrorKind::TimedOut => Reason::Timeout,
        _ => Reason::Other,
    };
    Refusal::new(By::Link, reason, format!("the connection ended during the handshake: {error}"))
}

/// Why, of an error of rustls'.
#[must_use]
pub fn of_tls(error: &Error) -> Refusal {
    let reason = match error {
        Error::AlertReceived(alert) => return Refusal::new(By::Peer, of_alert(*alert), format!("alert {alert:?}")),
        Error::InvalidCertificate(certificate) => of_certificate(certificate),
        Error::NoCertificatesPresented => Reason::NoCertificate,
        Error::NoApplicationProtocol => Reason::Alpn,
        Error::PeerIncompatible(
            PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled,
        )
        | Error::InvalidMessage(InvalidMessage::UnknownProtocolVersion) => Reason::ProtocolVersion,
        Error::PeerIncompatible(_) => Reason::Algorithms,
        Error::InvalidMessage(InvalidMessage::CertificatePayloadTooLarge)
        | Error::InvalidMessage(InvalidMessage::HandshakePayloadTooLarge) => Reason::TooLarge,
        Error::InvalidMessage(_) | Error::PeerSentOversizedRecord => Reason::Garbage,
        Error::PeerMisbehaved(_)
        | Error::InappropriateMessage { .. }
        | Error::InappropriateHandshakeMessage { .. }
        | Error::DecryptError => Reason::Protocol,
        _ => Reason::Other,
    };
    let words = match error {
        Error::InvalidCertificate(CertificateError::Other(other)) => other.0.to_string(),
        error => error.to_string(),
    };
    Refusal::new(By::Us, reason, words)
}

fn of_certificate(error: &CertificateError) -> Reason {
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => Reason::Expired,
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Reason::NotYetValid,
        CertificateError::UnknownIssuer => Reason::UnknownIssuer,
        CertificateError::BadSignature => Reason::BadSignature,
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => Reason::BadUsage,
        CertificateError::BadEncoding => Reason::BadEncoding,
        CertificateError::Other(other) => match other.0.downcast_ref::<PeerError>() {
            Some(PeerError::Svid(error)) => of_svid(error),
            Some(PeerError::LongChain(_)) => Reason::TooLarge,
            Some(PeerError::SelfSigned) => Reason::SelfSigned,
            Some(PeerError::WrongTrustDomain { .. }) => Reason::WrongTrustDomain,
            Some(PeerError::WrongIdentity { .. }) => Reason::WrongIdentity,
            None => Reason::BadCertificate,
        },
        _ => Reason::BadCertificate,
    }
}

fn of_svid(error: &SvidError) -> Reason {
    let word = error.reason();
    Reason::ALL.iter().copied().find(|reason| reason.word() == word).unwrap_or(Reason::BadCertificate)
}

/// What a peer says by its alert (RFC 8446, 6.2).
fn of_alert(alert: AlertDescription) -> Reason {
    match alert {
        AlertDescription::CertificateExpired => Reason::Expired,
        AlertDescription::UnknownCA => Reason::UnknownIssuer,
        AlertDescription::CertificateRequired | AlertDescription::NoCertificate => Reason::NoCertificate,
        AlertDescription::BadCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::CertificateRevoked
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::AccessDenied => Reason::BadCertificate,
        AlertDescription::DecryptError => Reason::BadSignature,
        AlertDescription::ProtocolVersion => Reason::ProtocolVersion,
        AlertDescription::NoApplicationProtocol => Reason::Alpn,
        AlertDescription::HandshakeFailure | AlertDescription::InsufficientSecurity => Reason::Algorithms,
        AlertDescription::CloseNotify | AlertDescription::UserCanceled => Reason::Closed,
        AlertDescription::DecodeError
        | AlertDescription::UnexpectedMessage
        | AlertDescription::IllegalParameter
        | AlertDescription::MissingExtension => Reason::Protocol,
        _ => Reason::Other,
    }
}
