//! Handshakes of real rustls on both sides, with every certificate that must not be taken.

#![allow(clippy::unwrap_used)]

use std::{
    io::{self, Read as _, Write as _},
    sync::Arc,
};

use rustls::{ClientConfig, ClientConnection, ConnectionCommon, ServerConfig, ServerConnection, SideData};
use weft_identity::{
    Alpn, Refusal, Svid,
    refusal::{By, Reason},
    testing::{Flaw, TestAuthority},
    tls,
};

type Outcome = Result<(Svid, Alpn), Refusal>;

/// Takes what one side has to say to the other.
fn pass<A: SideData, B: SideData>(from: &mut ConnectionCommon<A>, to: &mut ConnectionCommon<B>) -> io::Result<usize> {
    let mut bytes = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut bytes)?;
    }
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        to.read_tls(&mut rest)?;
        to.process_new_packets().map_err(io::Error::other)?;
    }
    Ok(bytes.len())
}

/// A whole handshake, without sockets: what the client and the server make of it.
fn shake(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> (Outcome, Outcome) {
    let mut client = ClientConnection::new(client, tls::server_name()).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    let (mut client_error, mut server_error) = (None, None);
    for _ in 0..10 {
        if server_error.is_none() {
            server_error = pass(&mut client, &mut server).err();
        }
        if client_error.is_none() {
            client_error = pass(&mut server, &mut client).err();
        }
    }
    let outcome = |error: Option<io::Error>, connection: &rustls::CommonState| match error {
        Some(error) => Err(weft_identity::refusal(&error)),
        None => tls::finished(connection),
    };
    (outcome(client_error, &client), outcome(server_error, &server))
}

#[test]
fn two_workloads_of_one_authority_know_each_other() {
    let authority = TestAuthority::new("cluster.local");
    let (client, server) = (authority.credential("shop", "web"), authority.credential("shop", "db"));
    for alpn in Alpn::ALL {
        let (at_client, at_server) = shake(client.client_config(server.id(), alpn), server.server_config());
        assert_eq!(at_client, Ok((server.svid().clone(), alpn)));
        assert_eq!(at_server, Ok((client.svid().clone(), alpn)));
    }
}

#[test]
fn a_server_with_a_bad_certificate_is_refused_with_its_reason() {
    let authority = TestAuthority::new("cluster.local");
    let (client, server) = (authority.credential("shop", "web"), authority.id("shop", "db"));
    for (flaw, reason) in Flaw::ALL {
        let shown = authority.flawed(flaw, &server).server_config(&authority.bundle, &authority.trust_domain);
        let (at_client, at_server) = shake(client.client_config(&server, Alpn::H2), shown);
        let refusal = at_client.expect_err(&format!("{flaw:?}"));
        assert_eq!((refusal.by, refusal.reason), (By::Us, reason), "{flaw:?}: {refusal}");
        assert_eq!(at_server.expect_err("the client says so").by, By::Peer, "{flaw:?}");
    }
}

#[test]
fn a_client_with_a_bad_certificate_is_refused_with_its_reason() {
    let authority = TestAuthority::new("cluster.local");
    let (client, server) = (authority.id("shop", "web"), authority.credential("shop", "db"));
    for (flaw, reason) in Flaw::ALL {
        let shown = authority.flawed(flaw, &client).client_config(&authority.bundle, server.id(), Alpn::Tcp);
        let (at_client, at_server) = shake(shown, server.server_config());
        if flaw == Flaw::WrongIdentity {
            // Whoever is of the trust domain may connect; what it may do is policy's to say.
            assert_ne!(at_server.expect("of the trust domain").0.id, client);
            continue;
        }
        let refusal = at_server.expect_err(&format!("{flaw:?}"));
        assert_eq!((refusal.by, refusal.reason), (By::Us, reason), "{flaw:?}: {refusal}");
        assert_eq!(at_client.expect_err("the server says so").by, By::Peer, "{flaw:?}");
    }
}

/// A client that shows no certificate, or speaks otherwise than ours do.
fn odd_client(
    authority: &TestAuthority,
    versions: &[&'static rustls::SupportedProtocolVersion],
    alpn: &[&[u8]],
) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(authority.bundle.store().clone())
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.enable_sni = false;
    Arc::new(config)
}

#[test]
fn a_client_that_speaks_otherwise_is_refused_with_its_reason() {
    let authority = TestAuthority::new("cluster.local");
    let server = authority.credential("shop", "db");
    let ours = Alpn::H2.name();
    for (versions, alpn, reason) in [
        (&[&rustls::version::TLS12], &[ours][..], Reason::ProtocolVersion),
        (&[&rustls::version::TLS13], &[b"h2"], Reason::Alpn),
        (&[&rustls::version::TLS13], &[b"http/1.1", b"istio"], Reason::Alpn),
    ] {
        let (at_client, at_server) = shake(odd_client(&authority, versions, alpn), server.server_config());
        let refusal = at_server.expect_err("not ours");
        assert_eq!((refusal.by, refusal.reason), (By::Us, reason), "{refusal}");
        let alert = at_client.expect_err("told so");
        assert_eq!((alert.by, alert.reason), (By::Peer, reason), "{alert}");
    }
}

/// Has none to show.
#[derive(Debug)]
struct NoCertificate;

impl rustls::client::ResolvesClientCert for NoCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    let authority = TestAuthority::new("cluster.local");
    let server = authority.credential("shop", "db");
    let client = authority.flawed(Flaw::Expired, &authority.id("shop", "web"));
    let mut config = ClientConfig::clone(&client.client_config(&authority.bundle, server.id(), Alpn::H2));
    config.client_auth_cert_resolver = Arc::new(NoCertificate);
    let (at_client, at_server) = shake(Arc::new(config), server.server_config());
    let refusal = at_server.expect_err("no certificate");
    assert_eq!((refusal.by, refusal.reason), (By::Us, Reason::NoCertificate), "{refusal}");
    let alert = at_client.expect_err("told so");
    assert_eq!((alert.by, alert.reason), (By::Peer, Reason::NoCertificate), "{alert}");
}

#[test]
fn a_peer_that_agrees_on_no_protocol_is_no_peer_of_ours() {
    let authority = TestAuthority::new("cluster.local");
    let (client, server) = (authority.credential("shop", "web"), authority.credential("shop", "db"));
    let mut silent = ServerConfig::clone(&server.server_config());
    silent.alpn_protocols.clear();
    let (at_client, _) = shake(client.client_config(server.id(), Alpn::Tcp), Arc::new(silent));
    let refusal = at_client.expect_err("no protocol");
    assert_eq!((refusal.by, refusal.reason), (By::Us, Reason::Alpn));
    let mut mute = ClientConfig::clone(&client.client_config(server.id(), Alpn::Tcp));
    mute.alpn_protocols.clear();
    let (_, at_server) = shake(Arc::new(mute), server.server_config());
    assert_eq!(at_server.expect_err("no protocol").reason, Reason::Alpn);
}

#[test]
fn garbage_and_half_a_handshake_are_told_apart() {
    let authority = TestAuthority::new("cluster.local");
    let server = authority.credential("shop", "db");
    let hellos: [&[u8]; 4] =
        [b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[0x80, 0x2e, 1, 0, 2], &[0xff; 600]];
    for bytes in hellos {
        let mut connection = ServerConnection::new(server.server_config()).unwrap();
        connection.read_tls(&mut &bytes[..]).unwrap();
        let error = connection.process_new_packets().map_err(io::Error::other).expect_err("no TLS");
        let refusal = weft_identity::refusal(&error);
        assert_eq!((refusal.by, refusal.reason), (By::Us, Reason::Garbage), "{bytes:?}: {refusal}");
    }
    let end = weft_identity::refusal(&io::Error::from(io::ErrorKind::UnexpectedEof));
    assert_eq!((end.by, end.reason), (By::Link, Reason::Closed));
}

#[test]
fn nothing_is_resumed() {
    let authority = TestAuthority::new("cluster.local");
    let (client, server) = (authority.credential("shop", "web"), authority.credential("shop", "db"));
    let config = client.client_config(server.id(), Alpn::H2);
    for _ in 0..3 {
        let mut at_client = ClientConnection::new(config.clone(), tls::server_name()).unwrap();
        let mut at_server = ServerConnection::new(server.server_config()).unwrap();
        for _ in 0..10 {
            pass(&mut at_client, &mut at_server).unwrap();
            pass(&mut at_server, &mut at_client).unwrap();
        }
        assert_ne!(at_client.handshake_kind(), Some(rustls::HandshakeKind::Resumed));
        assert_eq!(at_client.tls13_tickets_received(), 0);
    }
}

#[test]
fn bytes_pass_both_ways() {
    let authority = TestAuthority::new("cluster.local");
    let (client, server) = (authority.credential("shop", "web"), authority.credential("shop", "db"));
    let mut client = ClientConnection::new(client.client_config(server.id(), Alpn::Tcp), tls::server_name()).unwrap();
    let mut server = ServerConnection::new(server.server_config()).unwrap();
    client.writer().write_all(b"hello").unwrap();
    for _ in 0..10 {
        pass(&mut client, &mut server).unwrap();
        pass(&mut server, &mut client).unwrap();
    }
    let mut got = [0; 5];
    server.reader().read_exact(&mut got).unwrap();
    assert_eq!(&got, b"hello");
    assert_eq!(
        client.negotiated_key_exchange_group().map(|group| group.name()),
        Some(rustls::NamedGroup::X25519MLKEM768)
    );
}
