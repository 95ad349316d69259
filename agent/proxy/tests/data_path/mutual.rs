//! Mutual TLS between two nodes: what arrives, as whom, and on which connections.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use weft_policy::{
    inbound::{Grant, InboundPlan},
    ir::{MatchIr, PathIr},
    matcher::RouteMatcher,
    names::{ObjectRef, ServiceAccountKey},
    plan::AppProtocol,
};
use weft_proxy::{Encryption, config::ProxyConfig};

use crate::{
    mesh::{Mesh, soon, until, vip},
    nodes::Nodes,
    peers2::{self, Client},
    wire::Wire,
};

const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client-1";
const SERVER: &str = "spiffe://cluster.local/ns/shop/sa/web-1";

fn handshakes(mesh: &Mesh, side: &str) -> f64 {
    mesh.metric("weft_tls_handshakes_total", &[("side", side), ("result", "ok")])
}

/// What TrafficTargets give the client: requests for paths that begin with `/ok`, or everything.
fn granting(account: &str, requests: bool) -> InboundPlan {
    let origin = ObjectRef::new("TrafficTarget", "shop", "reads");
    let matches = [MatchIr { path: Some(PathIr::Begins("/ok".into())), ..MatchIr::any(origin.clone(), "m") }];
    let grant = Grant {
        origin: Arc::new(origin.clone()),
        accounts: Box::new([ServiceAccountKey::new("shop", account)]),
        workloads: Box::default(),
        ports: None,
        udp_ports: None,
        requests: requests.then(|| RouteMatcher::new(&[&matches]).0),
    };
    InboundPlan { selected_by: Arc::new([origin]), grants: Box::new([grant]), ..InboundPlan::default() }
}

#[tokio::test]
async fn requests_of_http1_arrive_as_they_were_and_share_one_connection() {
    let mut nodes = Nodes::new(AppProtocol::Http);
    let application = nodes.application();
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(nodes.connect().await);
    }
    for round in 0..3 {
        for client in &mut clients {
            let answer = client
                .ask(&format!(
                    "POST /ok/{round}?q HTTP/1.1\r\nHost: web\r\nX-Mine: 1\r\nWeft-Http-Version: 2\r\n\
                     X-Forwarded-Client-Cert: URI={CLIENT}-forged\r\nContent-Length: 4\r\n\r\nbody"
                ))
                .await;
            assert_eq!((answer.head.status(), answer.text()), (200, "body"));
            let got = |name: &str| answer.head.field(&format!("got-{name}")).map(str::to_owned);
            assert_eq!(answer.head.field("x-target"), Some(format!("/ok/{round}?q").as_str()));
            assert_eq!((got("x-mine").as_deref(), got("host").as_deref()), (Some("1"), Some("web")));
            assert_eq!(got("x-forwarded-client-cert"), Some(format!("By={SERVER};URI={CLIENT}")));
            assert_eq!((got("weft-http-version"), got("te"), got("connection")), (None, None, None));
        }
    }
    assert_eq!(application.requests.load(Ordering::SeqCst), 9);
    assert_eq!((handshakes(&nodes.client, "client"), handshakes(&nodes.server, "server")), (1.0, 1.0));
    let flows = nodes.server.proxy().flows(10).await;
    assert_eq!((flows.len(), flows[0].encryption), (1, Some(Encryption::MutualTls)));
    assert_eq!(flows[0].peer_identity.as_deref(), Some(CLIENT));
    assert!(nodes.client.proxy().flows(10).await.iter().all(|flow| flow.encryption == Some(Encryption::MutualTls)));
    let edge = [("destination_service", "web"), ("encryption", "mutual_tls")];
    assert_eq!(nodes.client.metric("weft_upstream_connections_total", &edge), 1.0);
    let inbound = [("direction", "inbound"), ("source_workload", "client-1"), ("destination_service", "web")];
    nodes.server.metric_becomes("weft_requests_total", &inbound, 9.0).await;
}

#[tokio::test]
async fn requests_of_http2_arrive_in_http2_with_their_trailers() {
    let mut nodes = Nodes::new(AppProtocol::Detect);
    let client = Client::connect(&nodes.client, vip(1)).await;
    let asking = tokio::spawn(async move { client.ask(peers2::post("/ok"), Some("hello")).await });
    let mut server = peers2::Server::over(nodes.accept().await, &h2::server::Builder::new()).await;
    let (request, mut respond) = server.call().await;
    assert_eq!((request.version(), request.uri().path()), (http::Version::HTTP_2, "/ok"));
    assert_eq!(request.headers()["x-forwarded-client-cert"], format!("By={SERVER};URI={CLIENT}"));
    let mut send = respond.send_response(http::Response::new(()), false).unwrap();
    send.send_data(bytes::Bytes::from_static(b"there"), false).unwrap();
    let mut trailers = http::HeaderMap::new();
    trailers.insert("x-sum", http::HeaderValue::from_static("5"));
    send.send_trailers(trailers).unwrap();
    let answer = server.during(asking).await.unwrap();
    assert_eq!(answer.text(), "there");
    assert_eq!(answer.trailers.unwrap()["x-sum"], "5");
}

#[tokio::test]
async fn bytes_arrive_both_ways_with_their_ends() {
    for protocol in [AppProtocol::Tcp, AppProtocol::Detect] {
        let mut nodes = Nodes::new(protocol);
        let mut client = nodes.connect().await;
        client.send("\0client first").await;
        let mut server = nodes.accept().await;
        assert_eq!(server.exactly(13).await, b"\0client first");
        let big = vec![7; 3 << 20];
        let sent = big.clone();
        let sending = tokio::spawn(async move {
            server.send(&sent).await;
            server
        });
        assert_eq!(client.exactly(big.len()).await, big);
        let mut server = soon(sending).await.unwrap();
        client.send("last words").await;
        client.shutdown();
        assert_eq!(server.rest().await, b"last words");
        server.send("and mine").await;
        let flows = nodes.client.proxy().flows(10).await;
        assert_eq!(flows[0].peer_identity.as_deref(), Some(SERVER));
        drop(server);
        assert_eq!(client.rest().await, b"and mine");
        until("leases are given back", || nodes.client.capture.leases.load(Ordering::SeqCst) == 0).await;
    }
}

#[tokio::test]
async fn a_reset_stays_a_reset_on_either_side() {
    for by_server in [true, false] {
        let mut nodes = Nodes::new(AppProtocol::Tcp);
        let mut client = nodes.connect().await;
        client.send("x").await;
        let mut server = nodes.accept().await;
        assert_eq!(server.exactly(1).await, b"x");
        let (killed, mut other) = if by_server { (server, client) } else { (client, server) };
        killed.kill();
        other.reset().await;
    }
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard() {
    for protocol in [AppProtocol::Tcp, AppProtocol::Detect] {
        let mut nodes = Nodes::new(protocol);
        for _ in 0..3 {
            let mut client = nodes.connect().await;
            let mut server = nodes.accept().await;
            server.send("220 hello\r\n").await;
            assert_eq!(client.exactly(11).await, b"220 hello\r\n");
            client.send("GET /not-http").await;
            assert_eq!(server.exactly(13).await, b"GET /not-http");
        }
    }
}

#[tokio::test]
async fn a_client_of_http_that_is_slow_to_speak_is_served_as_one() {
    let mut nodes = Nodes::new(AppProtocol::Detect);
    let mut client = nodes.connect().await;
    // The other agent has begun to carry bytes, because a server might have spoken first.
    drop(nodes.accept().await);
    let mut client2 = nodes.connect().await;
    let silent = nodes.accept().await;
    client2.send("GET /late HTTP/1.1\r\nHost: web\r\n\r\n").await;
    let mut server = nodes.accept().await;
    assert_eq!(server.head().await.first, "GET /late HTTP/1.1");
    server.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(client2.head().await.status(), 200);
    drop(silent);
    client.ended().await;
}

#[tokio::test]
async fn each_request_is_asked_for_by_the_identity_that_was_proved() {
    let mut nodes = Nodes::new(AppProtocol::Http);
    let application = nodes.application();
    nodes.allow(granting("client-1", true));
    let mut client = nodes.connect().await;
    for _ in 0..2 {
        assert_eq!(client.get("/ok").await.head.status(), 200);
        let answer = client.get("/no").await;
        assert_eq!((answer.head.status(), answer.head.reason()), (403, "denied"));
        assert!(answer.text().contains("TrafficTarget shop/reads"), "{}", answer.text());
    }
    nodes.allow(granting("somebody-else", false));
    assert_eq!(client.get("/ok").await.head.status(), 403);
    assert_eq!(application.requests.load(Ordering::SeqCst), 2);
    assert_eq!(nodes.server.metric("weft_denied_total", &[("basis", "not_granted")]), 3.0);
}

#[tokio::test]
async fn bytes_are_asked_for_by_the_identity_that_was_proved() {
    let mut nodes = Nodes::new(AppProtocol::Tcp);
    nodes.allow(granting("client-1", false));
    let mut client = nodes.connect().await;
    client.send("x").await;
    let mut server = nodes.accept().await;
    assert_eq!(server.exactly(1).await, b"x");
    // What was let through once ends when it is not any more.
    nodes.allow(granting("somebody-else", false));
    client.reset().await;
    server.reset().await;
    for (account, requests) in [("somebody-else", false), ("client-1", true)] {
        nodes.allow(granting(account, requests));
        let mut client = nodes.connect().await;
        client.send("x").await;
        client.reset().await;
        assert!(nodes.nothing_arrived());
    }
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_on_new_connections_and_the_old_ones_end_in_order() {
    let mut nodes = Nodes::new(AppProtocol::Http);
    let application = nodes.application();
    let mut client = nodes.connect().await;
    assert_eq!(client.get("/1").await.head.status(), 200);
    nodes.renew_client();
    assert_eq!(client.get("/2").await.head.status(), 200);
    assert_eq!(handshakes(&nodes.client, "client"), 2.0);
    until("the old one has ended", || nodes.server.metric("weft_connections_open", &[("direction", "inbound")]) == 1.0)
        .await;
    assert_eq!(application.requests.load(Ordering::SeqCst), 2);
    // The server's own: it asks its clients to come again.
    let renewed = nodes.authority.credential("shop", "web-1");
    nodes.server_credentials.put(&renewed);
    until("it ends", || nodes.server.metric("weft_connections_open", &[("direction", "inbound")]) == 0.0).await;
    assert_eq!(client.get("/3").await.head.status(), 200);
    assert_eq!(handshakes(&nodes.client, "client"), 3.0);
}

#[tokio::test]
async fn a_connection_ends_with_the_certificate_that_it_was_made_with() {
    const LIFE: Duration = Duration::from_secs(3);
    for of_client in [true, false] {
        let mut nodes = Nodes::new(AppProtocol::Tcp);
        let (credentials, account) =
            if of_client { (&nodes.client_credentials, "client-1") } else { (&nodes.server_credentials, "web-1") };
        credentials.put(&nodes.authority.credential_for("shop", account, LIFE));
        let mut client = nodes.connect().await;
        client.send("x").await;
        let mut server = nodes.accept().await;
        assert_eq!(server.exactly(1).await, b"x");
        client.reset().await;
        server.reset().await;
        let cut = |mesh: &Mesh| mesh.metric("weft_connections_cut_total", &[("reason", "certificate")]);
        assert!(cut(&nodes.client) + cut(&nodes.server) >= 1.0);
    }
}

#[tokio::test]
async fn an_agents_connection_is_known_whatever_port_it_comes_from() {
    let mut nodes = Nodes::new(AppProtocol::Http);
    nodes.server.capture.tls_ports.store(false, Ordering::SeqCst);
    nodes.allow(granting("client-1", false));
    let application = nodes.application();
    let mut client = nodes.connect().await;
    assert_eq!(client.get("/").await.head.status(), 200);
    assert_eq!((application.requests.load(Ordering::SeqCst), handshakes(&nodes.server, "server")), (1, 1.0));
}

#[tokio::test]
async fn strangers_are_served_as_before_and_what_they_send_is_not_touched() {
    let mut nodes = Nodes::new(AppProtocol::Tcp);
    nodes.server.capture.tls_ports.store(false, Ordering::SeqCst);
    // A TLS client of the application's own; one that says nothing; one that says something else; one byte at a time.
    let own_tls = b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00rest";
    for words in [&own_tls[..], b"GET / HTTP/1.1\r\n\r\n", b"\x16", b"\x16\x03\x01x"] {
        let mut client = Wire::new(soon(tokio::net::TcpStream::connect(nodes.address)).await.unwrap());
        let mut server = nodes.accept().await;
        for byte in words {
            client.send([*byte]).await;
        }
        client.shutdown();
        assert_eq!(server.rest().await, words);
    }
    let mut client = Wire::new(soon(tokio::net::TcpStream::connect(nodes.address)).await.unwrap());
    let mut server = nodes.accept().await;
    server.send("hello").await;
    assert_eq!(client.exactly(5).await, b"hello");
}

#[tokio::test]
async fn many_requests_at_a_time_are_all_answered() {
    let config = ProxyConfig { workers: Some(2), ..ProxyConfig::default() };
    let mut nodes = Nodes::with(AppProtocol::Http, &config);
    let application = nodes.application();
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(nodes.connect().await);
    }
    let asking: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            tokio::spawn(async move {
                for number in 0..20 {
                    assert_eq!(client.get(&format!("/{number}")).await.head.status(), 200);
                }
            })
        })
        .collect();
    for asked in asking {
        soon(asked).await.unwrap();
    }
    assert_eq!(application.requests.load(Ordering::SeqCst), 400);
}

const UPGRADE: &str =
    "GET /chat HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: abc\r\n\r\n";

#[tokio::test]
async fn an_upgraded_connection_carries_bytes_between_nodes() {
    let mut nodes = Nodes::new(AppProtocol::Http);
    let mut client = nodes.connect().await;
    client.send(UPGRADE).await;
    let mut server = nodes.accept().await;
    let asked = server.head().await;
    assert_eq!(asked.first, "GET /chat HTTP/1.1");
    assert_eq!((asked.field("connection"), asked.field("upgrade")), (Some("upgrade"), Some("websocket")));
    assert_eq!((asked.field("sec-websocket-key"), asked.field("weft-method")), (Some("abc"), None));
    server
        .send(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Accept: x\r\n\r\nwelcome",
        )
        .await;
    let answer = client.head().await;
    assert_eq!(
        (answer.status(), answer.field("upgrade"), answer.field("connection")),
        (101, Some("WebSocket"), Some("upgrade"))
    );
    assert_eq!((answer.field("sec-websocket-accept"), answer.field("weft-protocol")), (Some("x"), None));
    assert_eq!(client.exactly(7).await, b"welcome");
    for n in 0..10 {
        let text = format!("HTTP/1.1 400 frame {n:03}");
        client.send(&text).await;
        assert_eq!(server.exactly(text.len()).await, text.as_bytes());
        server.send(&text).await;
        assert_eq!(client.exactly(text.len()).await, text.as_bytes());
    }
    // Requests of others share the connection meanwhile.
    let mut another = nodes.connect().await;
    another.send("GET /plain HTTP/1.1\r\nHost: web\r\n\r\n").await;
    let mut plain = nodes.accept().await;
    plain.head().await;
    plain.send("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(another.head().await.status(), 204);
    assert_eq!(handshakes(&nodes.client, "client"), 1.0);
    client.shutdown();
    server.ended().await;
    server.send("last words").await;
    assert_eq!(client.exactly(10).await, b"last words");
    drop(server);
    client.ended().await;
}

#[tokio::test]
async fn an_upgrade_that_is_refused_or_denied_is_a_plain_answer() {
    let mut nodes = Nodes::new(AppProtocol::Http);
    let mut client = nodes.connect().await;
    client.send(UPGRADE).await;
    let mut server = nodes.accept().await;
    server.head().await;
    server.send("HTTP/1.1 426 Upgrade Required\r\nUpgrade: other\r\nContent-Length: 2\r\n\r\nno").await;
    let answer = client.answer().await;
    assert_eq!((answer.head.status(), answer.text()), (426, "no"));
    // A server may pass an upgrade over.
    for answers in ["HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nplain", "HTTP/1.1 204 No Content\r\n\r\n"] {
        client.send(UPGRADE).await;
        server.head().await;
        server.send(answers).await;
        let answer = client.answer().await;
        assert_eq!(answer.head.status(), if answers.contains("200") { 200 } else { 204 }, "{answers}");
        assert_eq!(answer.text(), if answers.contains("200") { "plain" } else { "" });
        assert_eq!(answer.head.field("weft-status"), None);
    }
    nodes.allow(granting("client-1", true));
    client.send(UPGRADE).await;
    let answer = client.answer().await;
    assert_eq!((answer.head.status(), answer.head.reason()), (403, "denied"));
    // One that was let through ends when it is not any more.
    nodes.allow(granting("client-1", false));
    client.send(UPGRADE).await;
    // On the connection that the application had for the first one.
    server.head().await;
    server.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await;
    assert_eq!(client.head().await.status(), 101);
    nodes.allow(granting("somebody-else", false));
    client.reset_or_end().await;
    server.reset().await;
}
