//! Handshakes of real rustls on both sides, with every certificate that must not be taken.

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
    assert_ne!(Reason::ALL.len(), 0);
}
