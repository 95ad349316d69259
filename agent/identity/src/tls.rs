//! What TLS between nodes has besides certificates: its protocol names, its algorithms, and what a finished handshake says.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, OnceLock},
};

use rustls::{
    ClientConfig, CommonState, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName},
    version::TLS13,
};

use crate::{
    key::PrivateKey,
    refusal::{By, Reason, Refusal},
    svid::Svid,
};

/// What a connection between nodes carries (RFC 7301).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Alpn {
    /// Requests, multiplexed by HTTP/2.
    H2,
    /// The bytes of one connection.
    Tcp,
}

impl Alpn {
    /// Both.
    pub const ALL: [Self; 2] = [Self::H2, Self::Tcp];

    /// The protocol's name.
    #[must_use]
    pub fn name(self) -> &'static [u8] {
        match self {
            Self::H2 => b"weft-h2/1",
            Self::Tcp => b"weft-tcp/1",
        }
    }

    /// What was agreed on, where it is ours.
    #[must_use]
    pub fn of(negotiated: Option<&[u8]>) -> Option<Self> {
        Self::ALL.into_iter().find(|alpn| negotiated == Some(alpn.name()))
    }
}

/// Whether a protocol that a ClientHello offers is one of ours: it tells our handshakes from an application's own.
#[must_use]
pub fn is_weft(protocol: &[u8]) -> bool {
    Alpn::of(Some(protocol)).is_some()
}

/// The name to give rustls for a server: none is sent, and none is looked at.
#[must_use]
pub fn server_name() -> ServerName<'static> {
    ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into())
}

/// Whose certificate a finished handshake has shown.
#[must_use]
pub fn peer(connection: &CommonState) -> Option<Svid> {
    Svid::from_der(connection.peer_certificates()?.first()?).ok()
}

/// What a handshake has come to: who is there, and what is spoken. Both sides call it before they use the connection, since TLS
/// itself lets a peer answer with no protocol at all.
///
/// # Errors
/// The peer has shown no certificate, or agreed on no protocol of ours.
pub fn finished(connection: &CommonState) -> Result<(Svid, Alpn), Refusal> {
    let svid =
        peer(connection).ok_or_else(|| Refusal::new(By::Us, Reason::NoCertificate, "no certificate was shown"))?;
    let alpn = Alpn::of(connection.alpn_protocol())
        .ok_or_else(|| Refusal::new(By::Us, Reason::Alpn, "none of weft's protocols was agreed on"))?;
    Ok((svid, alpn))
}

/// For a client of the authority's own server: TLS 1.3, a chain to one of these roots, and the name that was asked for.
///
/// # Errors
/// The library refuses what it was set up with before; said rather than panicked over.
pub fn authority_client(roots: Arc<RootCertStore>) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// For the authority's own server: TLS 1.3 and HTTP/2. Who asks is told by a token, not by a certificate.
///
/// # Errors
/// The key is not the certificate's, or the library takes none of it.
pub fn authority_server(chain: Vec<CertificateDer<'static>>, key: &PrivateKey) -> Result<ServerConfig, rustls::Error> {
    let key = PrivatePkcs8KeyDer::from(key.to_pkcs8().to_vec());
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, key.into())?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// Algorithms, all of aws-lc. AES-128 comes first: it is as safe here as AES-256, and cheaper for every byte. The hybrid of X25519 and
/// ML-KEM-768 keeps what is recorded today from being read once there are quantum computers; X25519 is for peers without it.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER
        .get_or_init(|| {
            let suites = [
                aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
                aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
                aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
            ];
            let groups =
                [aws_lc_rs::kx_group::X25519MLKEM768, aws_lc_rs::kx_group::X25519, aws_lc_rs::kx_group::SECP256R1];
            let (cipher_suites, kx_groups) = (suites.to_vec(), groups.to_vec());
            Arc::new(CryptoProvider { cipher_suites, kx_groups, ..aws_lc_rs::default_provider() })
        })
        .clone()
}
