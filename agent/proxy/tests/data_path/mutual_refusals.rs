//! Mutual TLS that comes to nothing: whose certificate is not taken, who does not speak it, and where it is missing. No byte of any of
//! them reaches an application.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{io::AsyncReadExt, net::TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use weft_identity::{
    Alpn,
    testing::{Flaw, TestAuthority},
    tls,
};
use weft_policy::{
    inbound::{InboundPlan, Mtls},
    names::{ObjectRef, ServiceAccountKey},
    plan::AppProtocol,
};
use weft_proxy::config::ProxyConfig;

use crate::{
    mesh::{Mesh, soon, vip},
    nodes::{Nodes, web},
    origin::Origin,
    wire::Wire,
};

fn quick() -> ProxyConfig {
    ProxyConfig {
        tls_handshake_timeout: Duration::from_millis(300),
        refusal_wait: Duration::from_millis(300),
        ..ProxyConfig::default()
    }
}

fn refused(mesh: &Mesh, side: &str, result: &str) -> f64 {
    mesh.metric("weft_tls_handshakes_total", &[("side", side), ("result", result)])
}

#[tokio::test]
async fn every_bad_certificate_of_a_client_is_refused_with_its_own_reason() {
    let mut nodes = Nodes::new(AppProtocol::Tcp);
    let expected = nodes.authority.id("shop", "web-1");
    for (flaw, reason) in Flaw::ALL {
        // A server takes any identity of its trust domain; what it may do is policy's to say.
        if flaw == Flaw::WrongIdentity {
            continue;
        }
        let presented = nodes.authority.flawed(flaw, &nodes.authority.id("shop", "client-1"));
        let config = presented.client_config(&nodes.authority.bundle, &expected, Alpn::Tcp);
        let before = refused(&nodes.server, "server", reason.word());
        let stream = soon(TcpStream::connect(nodes.address)).await.unwrap();
        // In TLS 1.3 a client learns with its first read that its certificate was not taken.
        if let Ok(mut stream) = soon(TlsConnector::from(config).connect(tls::server_name(), stream)).await {
            assert!(soon(stream.read_u8()).await.is_err(), "{flaw:?}");
        }
        crate::mesh::until(&format!("{flaw:?} is {}", reason.word()), || {
            refused(&nodes.server, "server", reason.word()) == before + 1.0
        })
        .await;
        assert!(nodes.nothing_arrived(), "{flaw:?}");
    }
}

#[tokio::test]
async fn every_bad_certificate_of_a_server_is_refused_before_a_byte_is_said() {
    for (flaw, reason) in Flaw::ALL {
        let nodes = Nodes::new(AppProtocol::Http);
        let presented = nodes.authority.flawed(flaw, &nodes.authority.id("shop", "web-1"));
        let config = presented.server_config(&nodes.authority.bundle, &nodes.authority.trust_domain);
        let origin = impostor(&nodes).await;
        let accepting = tokio::spawn(async move {
            let stream = origin.accept().await.stream;
            match TlsAcceptor::from(config).accept(stream).await {
                Ok(mut stream) => stream.read_u8().await.is_ok(),
                Err(_) => false,
            }
        });
        let answer = nodes.connect().await.get("/secret").await;
        assert_eq!((answer.head.status(), answer.head.reason()), (503, "tls_failed"), "{flaw:?}: {}", answer.text());
        assert_eq!(refused(&nodes.client, "client", reason.word()), 1.0, "{flaw:?}: {}", answer.text());
        assert!(!soon(accepting).await.unwrap(), "{flaw:?}: something was said");
    }
}

/// Lets the published address lead to a socket of the test's.
async fn impostor(nodes: &Nodes) -> Origin {
    let origin = Origin::bind().await;
    let mut ready = crate::mesh::endpoint(origin.address);
    ready.workload = Some(web());
    let set = weft_policy::endpoints::EndpointSet {
        ready: Box::new([ready]),
        protocol: AppProtocol::Http,
        ..Default::default()
    };
    let cell = Arc::new(weft_policy::endpoints::EndpointCell::new(set));
    let plan = crate::mesh::plan(AppProtocol::Http, crate::mesh::split("web", &[("web", 1, &cell)]));
    nodes.client.serve(vip(1), plan);
    let peer = weft_policy::peer::Peer {
        workload: web(),
        account: ServiceAccountKey::new("shop", "web-1"),
        node: "node-b".into(),
        addresses: Box::new([origin.address.ip()]),
        namespace: "shop".into(),
        name: "web-1".into(),
    };
    nodes.client.publish(|snapshot| _ = snapshot.peers.insert(web(), Arc::new(peer)));
    origin
}

#[tokio::test]
async fn a_good_certificate_of_another_pod_is_not_the_servers() {
    let mut nodes = Nodes::new(AppProtocol::Http);
    nodes.publish("another");
    let answer = nodes.connect().await.get("/secret").await;
    assert_eq!((answer.head.status(), answer.head.reason()), (503, "tls_failed"));
    assert_eq!(refused(&nodes.client, "client", "wrong_identity"), 1.0);
    assert!(nodes.nothing_arrived());
}

#[tokio::test]
async fn who_does_not_speak_mutual_tls_gets_nothing_from_its_ports() {
    let mut nodes = Nodes::with(AppProtocol::Tcp, &quick());
    let cases: [(&[u8], &str); 5] = [
        (b"GET / HTTP/1.1\r\nHost: web\r\n\r\n", "garbage"),
        (b"\0\0\0\0\0\0\0\0\0\0\0\0", "garbage"),
        (b"", "timeout"),
        (b"\x16", "timeout"),
        (b"\x16\x03\x01\x01\x00\x01\x00", "timeout"),
    ];
    for (words, reason) in cases {
        let before = refused(&nodes.server, "server", reason);
        let mut client = Wire::new(soon(TcpStream::connect(nodes.address)).await.unwrap());
        client.send(words).await;
        client.reset_or_end().await;
        crate::mesh::until(&format!("{words:?} is {reason}"), || {
            refused(&nodes.server, "server", reason) == before + 1.0
        })
        .await;
        assert!(nodes.nothing_arrived());
    }
    // One that leaves in the middle.
    let mut client = Wire::new(soon(TcpStream::connect(nodes.address)).await.unwrap());
    client.send(b"\x16\x03\x01\x01\x00\x01").await;
    drop(client);
    crate::mesh::until("it is closed", || refused(&nodes.server, "server", "closed") == 1.0).await;
}

#[tokio::test]
async fn a_handshake_that_drips_ends_in_time() {
    let mut nodes = Nodes::with(AppProtocol::Tcp, &quick());
    let stream = soon(TcpStream::connect(nodes.address)).await.unwrap();
    let mut client = Wire::new(stream);
    let begin = tokio::time::Instant::now();
    for byte in b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".iter().cycle() {
        if !client.try_send(&[*byte]).await {
            break;
        }
        assert!(begin.elapsed() < crate::mesh::PATIENCE, "it goes on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(refused(&nodes.server, "server", "timeout"), 1.0);
    assert!(nodes.nothing_arrived());
}

#[tokio::test]
async fn a_pod_without_a_certificate_takes_no_handshake_and_begins_none() {
    let mut nodes = Nodes::with(AppProtocol::Http, &quick());
    nodes.server_credentials.remove(&ServiceAccountKey::new("shop", "web-1"));
    let answer = nodes.connect().await.get("/").await;
    assert_eq!((answer.head.status(), answer.head.reason()), (503, "tls_failed"));
    assert_eq!(refused(&nodes.server, "server", "no_credential"), 1.0);
    nodes.client_credentials.remove(&ServiceAccountKey::new("shop", "client-1"));
    // It comes while the request waits for it.
    let mut client = nodes.connect().await;
    client.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
    nodes.server_credentials.put(&nodes.authority.credential("shop", "web-1"));
    nodes.client_credentials.put(&nodes.authority.credential("shop", "client-1"));
    let mut server = nodes.accept().await;
    server.head().await;
    server.send("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(client.head().await.status(), 204);
}

#[tokio::test]
async fn a_published_destination_is_never_spoken_to_in_the_clear() {
    // The agent there is gone, and what answers is the application itself.
    let nodes = Nodes::with(AppProtocol::Http, &quick());
    let origin = impostor(&nodes).await;
    let taking = tokio::spawn(async move {
        let mut server = origin.accept().await;
        server.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        server.so_far().await
    });
    let answer = nodes.connect().await.get("/secret").await;
    assert_eq!((answer.head.status(), answer.head.reason()), (503, "tls_failed"));
    let heard = soon(taking).await.unwrap();
    assert!(!heard.windows(6).any(|window| window == b"secret"), "{:?}", String::from_utf8_lossy(&heard));
}

#[tokio::test]
async fn a_namespace_that_takes_mutual_tls_only_is_not_asked_in_the_clear() {
    let mut nodes = Nodes::new(AppProtocol::Http);
    let object = ObjectRef::new("Namespace", "", "shop");
    nodes.client.publish(|snapshot| {
        snapshot.peers.remove(&web());
        snapshot.strict.insert("shop".into(), object);
    });
    let answer = nodes.connect().await.get("/").await;
    assert_eq!((answer.head.status(), answer.head.reason()), (503, "mtls_required"));
    assert!(answer.text().contains("Namespace shop"), "{}", answer.text());
    assert!(nodes.nothing_arrived());
}

#[tokio::test]
async fn a_strict_pod_refuses_who_shows_no_certificate_and_says_so() {
    let mut nodes = Nodes::with(AppProtocol::Http, &quick());
    nodes.server.capture.tls_ports.store(false, Ordering::SeqCst);
    let strict = Mtls::Strict(ObjectRef::new("Namespace", "", "shop"));
    nodes.allow(InboundPlan { mtls: strict, ..InboundPlan::default() });
    let mut stranger = Wire::new(soon(TcpStream::connect(nodes.address)).await.unwrap());
    let answer = stranger.get("/").await;
    assert_eq!((answer.head.status(), answer.head.reason()), (403, "denied"));
    let mut stranger = Wire::new(soon(TcpStream::connect(nodes.address)).await.unwrap());
    stranger.send("\0").await;
    stranger.reset().await;
    assert_eq!(nodes.server.metric("weft_denied_total", &[("basis", "plaintext")]), 2.0);
    assert!(nodes.nothing_arrived());
    let application = nodes.application();
    assert_eq!(nodes.connect().await.get("/").await.head.status(), 200);
    assert_eq!(application.requests.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn authorities_that_do_not_know_each_other_connect_nobody() {
    let mut nodes = Nodes::new(AppProtocol::Http);
    let foreign = TestAuthority::new("cluster.local");
    nodes.client_credentials.put(&foreign.credential("shop", "client-1"));
    let answer = nodes.connect().await.get("/").await;
    assert_eq!((answer.head.status(), answer.head.reason()), (503, "tls_failed"));
    assert_eq!(refused(&nodes.client, "client", "unknown_issuer"), 1.0);
    assert!(nodes.nothing_arrived());
}
