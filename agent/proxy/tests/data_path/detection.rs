//! Telling what a connection speaks by what comes first, from whichever side.

use std::{
    net::SocketAddr,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use weft_policy::{
    ir::{MatchIr, PathIr},
    matcher::RouteMatcher,
    names::ObjectRef,
    plan::{AppProtocol, OutboundPlan, Route, RouteTable},
};
use weft_proxy::{config::ProxyConfig, flows::FlowProtocol, limits};

use crate::{
    mesh::{Mesh, cell, plan, rule, service, soon, split, until, vip},
    origin::{Named, Origin, refusing},
    wire::Wire,
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

async fn mesh_for(protocol: AppProtocol, config: &ProxyConfig) -> (Mesh, Origin) {
    let (mesh, origin) = (Mesh::with(config), Origin::bind().await);
    mesh.serve(vip(1), service(protocol, &[origin.address]));
    (mesh, origin)
}

/// So long that a test that depended on it would fail.
fn patient() -> ProxyConfig {
    let forever = Duration::from_secs(600);
    ProxyConfig { detect_timeout: forever, learnt_wait: forever, refusal_wait: forever, ..ProxyConfig::default() }
}

/// Teaches the worker that clients of the first Service speak HTTP.
async fn teach_http(mesh: &Mesh, origin: &Origin) {
    for _ in 0..limits::LEARNT_STREAK_MIN {
        let mut client = Wire::new(mesh.connect(vip(1)).await);
        client.send("GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").await;
        let mut server = origin.accept().await;
        server.head().await;
        server.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
        client.answer().await;
    }
}

fn detections(mesh: &Mesh, protocol: &str, first: &str) -> f64 {
    mesh.metric("weft_detection_seconds", &[("protocol", protocol), ("first", first)])
}

async fn only_flow(mesh: &Mesh) -> weft_proxy::flows::FlowRow {
    mesh.proxy().flows(10).await.remove(0)
}

#[tokio::test]
async fn http_is_recognised_even_byte_by_byte() {
    let (mesh, web) = (Mesh::with(&patient()), Named::start("v1").await);
    mesh.serve(vip(1), service(AppProtocol::Detect, &[web.address]));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    for byte in b"DELETE /a HTTP/1.1\r\nHost: web\r\n\r\n" {
        client.send([*byte]).await;
        tokio::task::yield_now().await;
    }
    let answer = client.answer().await;
    assert_eq!((answer.head.status(), answer.head.field("x-target")), (200, Some("/a")));
    mesh.metric_becomes("weft_requests_total", &[], 1.0).await;
    mesh.metric_becomes("weft_detection_seconds", &[("protocol", "http"), ("first", "client")], 1.0).await;
}

#[tokio::test]
async fn http_is_recognised_wherever_its_first_bytes_are_cut() {
    let (mesh, web) = (Mesh::with(&patient()), Named::start("v1").await);
    mesh.serve(vip(1), service(AppProtocol::Detect, &[web.address]));
    mesh.serve(vip(2), service(AppProtocol::Http, &[web.address]));
    let request = b"GET /a HTTP/1.1\r\nHost: web\r\n\r\n";
    for n in [1, 2] {
        for cut in 1..8 {
            let mut client = Wire::new(mesh.connect(vip(n)).await);
            client.send(&request[..cut]).await;
            looked_at(&mesh).await;
            client.send(&request[cut..]).await;
            assert_eq!(client.answer().await.text(), "v1", "cut after {cut}");
        }
    }
}

/// Gives the worker turns in which it looks at its sockets: it has a flow of the client, and has answered since.
async fn looked_at(mesh: &Mesh) {
    until("it was accepted", || mesh.capture.destinations.lock().unwrap().is_empty()).await;
    for _ in 0..4 {
        mesh.proxy().flows(1).await;
    }
}

#[tokio::test]
async fn what_is_not_http_is_carried_as_bytes() {
    for protocol in [AppProtocol::Detect, AppProtocol::Http, AppProtocol::Http1, AppProtocol::Http2] {
        for first in [&b"\x16\x03\x01\x02\x00\x01"[..], b"*1\r\n$4\r\nPING\r\n"] {
            let (mesh, origin) = mesh_for(protocol, &patient()).await;
            let mut client = Wire::new(mesh.connect(vip(1)).await);
            client.send(first).await;
            let mut server = origin.accept().await;
            assert_eq!(server.exactly(first.len()).await, first, "{protocol:?}");
            server.send("whatever").await;
            assert_eq!(client.exactly(8).await, b"whatever");
            let is = if first[0] == 0x16 { FlowProtocol::Tls } else { FlowProtocol::Tcp };
            assert_eq!(only_flow(&mesh).await.protocol, is);
        }
    }
}

#[tokio::test]
async fn bytes_of_any_protocol_arrive_whole_wherever_they_are_cut() {
    let first = b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00";
    let (mesh, origin) = mesh_for(AppProtocol::Detect, &patient()).await;
    mesh.serve(vip(2), service(AppProtocol::Http, &[origin.address]));
    for n in [1, 2] {
        for cut in 1..first.len() {
            let mut client = Wire::new(mesh.connect(vip(n)).await);
            client.send(&first[..cut]).await;
            looked_at(&mesh).await;
            client.send(&first[cut..]).await;
            client.shutdown();
            let mut server = origin.accept().await;
            assert_eq!(server.exactly(first.len()).await, first, "cut after {cut}");
            server.ended().await;
        }
    }
}

#[tokio::test]
async fn server_that_speaks_first_is_heard_while_its_client_is_silent() {
    // No timer of detection could end this, so the order of events is all that is needed.
    let (mesh, origin) = mesh_for(AppProtocol::Detect, &patient()).await;
    for _ in 0..2 * limits::LEARNT_STREAK_MIN {
        let mut client = Wire::new(mesh.connect(vip(1)).await);
        let mut server = origin.accept().await;
        server.send("220 ready\r\n").await;
        assert_eq!(client.exactly(11).await, b"220 ready\r\n");
        client.send("GET / HTTP/1.1\r\n").await;
        assert_eq!(server.exactly(16).await, b"GET / HTTP/1.1\r\n", "what follows is not looked into");
    }
    mesh.metric_becomes("weft_detection_seconds", &[("first", "server")], f64::from(2 * limits::LEARNT_STREAK_MIN))
        .await;
}

#[tokio::test]
async fn server_that_speaks_first_gets_what_its_client_had_begun_to_say() {
    let (mesh, origin) = mesh_for(AppProtocol::Detect, &patient()).await;
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    client.send("GE").await;
    let mut server = origin.accept().await;
    looked_at(&mesh).await;
    server.send("hello").await;
    assert_eq!(client.exactly(5).await, b"hello");
    assert_eq!(server.exactly(2).await, b"GE");
    client.send("T").await;
    assert_eq!(server.exactly(1).await, b"T");
    until("two bytes and one are counted", || mesh.metric("weft_tcp_sent_bytes_total", &[]) == 3.0).await;
}

#[tokio::test]
async fn server_that_ends_or_fails_first_does_the_same_to_its_client() {
    let (mesh, origin) = mesh_for(AppProtocol::Detect, &patient()).await;
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    let mut server = origin.accept().await;
    server.shutdown();
    client.ended().await;
    client.send("GET / HTTP/1.1\r\n").await;
    assert_eq!(server.exactly(16).await, b"GET / HTTP/1.1\r\n");
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    let server = origin.accept().await;
    // A reset within the connect itself would be a refusal.
    mesh.metric_becomes("weft_dials_total", &[("result", "connected")], 2.0).await;
    server.kill();
    client.reset().await;
    assert_eq!((detections(&mesh, "tcp", "server"), detections(&mesh, "tcp", "client")), (0.0, 0.0));
}

#[tokio::test]
async fn client_that_fails_first_resets_its_server() {
    let (mesh, origin) = mesh_for(AppProtocol::Detect, &patient()).await;
    let client = Wire::new(mesh.connect(vip(1)).await);
    let mut server = origin.accept().await;
    client.kill();
    server.reset().await;
    until("nothing is left", || mesh.capture.leases.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test]
async fn silence_of_both_sides_is_left_alone() {
    let (mesh, origin) = mesh_for(AppProtocol::Detect, &ProxyConfig::default()).await;
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    let mut server = origin.accept().await;
    mesh.ticked().await;
    assert_eq!(only_flow(&mesh).await.protocol, FlowProtocol::Detecting);
    client.send("*1\r\n").await;
    assert_eq!(server.exactly(4).await, b"*1\r\n");
}

#[tokio::test]
async fn beginning_of_a_method_that_never_ends_is_carried_as_bytes() {
    let short = ProxyConfig { detect_timeout: Duration::from_millis(50), ..patient() };
    let (mesh, origin) = mesh_for(AppProtocol::Detect, &short).await;
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    client.send("GE").await;
    let mut server = origin.accept().await;
    assert_eq!(server.exactly(2).await, b"GE");
    client.send("T").await;
    assert_eq!(server.exactly(1).await, b"T");
    server.send("ok").await;
    assert_eq!(client.exactly(2).await, b"ok");
    assert_eq!(mesh.metric("weft_limit_reached_total", &[("limit", "detect_timeout")]), 1.0);
}

#[tokio::test]
async fn client_that_ends_within_a_method_is_carried_as_that() {
    for protocol in [AppProtocol::Detect, AppProtocol::Http] {
        let (mesh, origin) = mesh_for(protocol, &patient()).await;
        let mut client = Wire::new(mesh.connect(vip(1)).await);
        client.send("GE").await;
        client.shutdown();
        let mut server = origin.accept().await;
        assert_eq!(server.exactly(2).await, b"GE");
        server.ended().await;
        server.send("what?").await;
        assert_eq!(client.exactly(5).await, b"what?");
    }
}

#[tokio::test]
async fn client_that_says_nothing_and_leaves_is_carried_as_that() {
    let (mesh, origin) = mesh_for(AppProtocol::Detect, &patient()).await;
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    client.shutdown();
    let mut server = origin.accept().await;
    server.ended().await;
    server.send("still").await;
    assert_eq!(client.exactly(5).await, b"still", "only one side was shut down");
    assert!(mesh.proxy().learnt().await.is_empty(), "nothing was learnt from it");
}

#[tokio::test]
async fn declared_tcp_is_not_looked_at() {
    let (mesh, origin) = mesh_for(AppProtocol::Tcp, &patient()).await;
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    let mut server = origin.accept().await;
    client.send("GET / HTTP/1.1\r\n").await;
    assert_eq!(server.exactly(16).await, b"GET / HTTP/1.1\r\n");
}

#[tokio::test]
async fn declared_http_is_not_dialled_before_its_client_speaks() {
    let (mesh, _origin) = mesh_for(AppProtocol::Http, &patient()).await;
    let _client = mesh.connect(vip(1)).await;
    until("it was accepted", || mesh.capture.destinations.lock().unwrap().is_empty()).await;
    mesh.ticked().await;
    assert_eq!(mesh.capture.dials.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn client_that_never_asks_on_an_http_port_is_let_go() {
    let config = ProxyConfig { header_read_timeout: Duration::from_millis(20), ..ProxyConfig::default() };
    let (mesh, _origin) = mesh_for(AppProtocol::Http, &config).await;
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    client.ended().await;
    assert_eq!(mesh.metric("weft_limit_reached_total", &[("limit", "header_read_timeout")]), 1.0);
}

#[tokio::test]
async fn client_of_http_is_told_why_nothing_can_be_reached_and_others_are_reset() {
    let mesh = Mesh::with(&patient());
    let (dead, _held) = refusing();
    mesh.serve(vip(1), service(AppProtocol::Detect, &[dead]));
    mesh.serve(vip(2), service(AppProtocol::Detect, &[]));
    mesh.serve(vip(3), plan(AppProtocol::Detect, split("canary", &[("web", 0, &cell(&[dead]))])));
    for (n, reason) in [(1, "connect_failed"), (2, "no_endpoints"), (3, "split_zero")] {
        let mut client = Wire::new(mesh.connect(vip(n)).await);
        let answer = client.get("/").await;
        assert_eq!((answer.head.status(), answer.head.reason()), (503, reason));
        let mut client = Wire::new(mesh.connect(vip(n)).await);
        client.send("*1\r\n$4\r\nPING\r\n").await;
        client.reset().await;
        assert_eq!(client.read_so_far(), b"");
    }
}

#[tokio::test]
async fn client_that_waits_for_a_server_that_cannot_be_reached_is_reset() {
    let mesh = Mesh::with(&ProxyConfig { refusal_wait: Duration::from_millis(20), ..patient() });
    let (dead, _held) = refusing();
    mesh.serve(vip(1), service(AppProtocol::Detect, &[dead]));
    mesh.connect_and_be_reset(vip(1)).await;
    assert_eq!(mesh.metric("weft_limit_reached_total", &[("limit", "refusal_wait")]), 1.0);
    assert_eq!(mesh.metric("weft_local_replies_total", &[("reason", "connect_failed")]), 1.0);
}

#[tokio::test]
async fn endpoint_that_denies_is_not_dialled() {
    let (mesh, origin) = (Mesh::with(&patient()), Origin::bind().await);
    let mut denying = crate::mesh::endpoint(origin.address);
    denying.workload = Some(weft_policy::names::WorkloadId::new("uid-web-1"));
    mesh.capture.captured.lock().unwrap().insert(denying.workload.clone().unwrap());
    let set = weft_policy::endpoints::EndpointSet { ready: Box::new([denying]), ..Default::default() };
    let denying = std::sync::Arc::new(weft_policy::endpoints::EndpointCell::new(set));
    mesh.serve(vip(1), plan(AppProtocol::Detect, split("web", &[("web", 1, &denying)])));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    let answer = client.get("/").await;
    assert_eq!((answer.head.status(), answer.head.reason()), (403, "denied"));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    client.send("hello\n").await;
    client.reset().await;
    assert_eq!(mesh.capture.dials.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn port_where_http_was_learnt_is_not_dialled_before_its_client_speaks() {
    let (mesh, origin) = mesh_for(AppProtocol::Detect, &patient()).await;
    teach_http(&mesh, &origin).await;
    let dialled = mesh.capture.dials.load(Ordering::SeqCst);
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    until("it was accepted", || mesh.capture.destinations.lock().unwrap().is_empty()).await;
    mesh.ticked().await;
    assert_eq!(mesh.capture.dials.load(Ordering::SeqCst), dialled);
    // Whatever it says then, it is what it is.
    client.send("*1\r\n").await;
    assert_eq!(origin.accept().await.exactly(4).await, b"*1\r\n");
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    let mut server = origin.accept().await;
    server.send("one odd client was enough: dialled at once").await;
    client.exactly(42).await;
}

#[tokio::test]
async fn wrong_memory_delays_one_server_that_speaks_first_once() {
    let wait = Duration::from_millis(200);
    let (mesh, origin) = mesh_for(AppProtocol::Detect, &ProxyConfig { learnt_wait: wait, ..patient() }).await;
    teach_http(&mesh, &origin).await;
    for (n, delayed) in [(1.0, true), (1.0, false), (1.0, false)] {
        let began = Instant::now();
        let mut client = Wire::new(mesh.connect(vip(1)).await);
        let mut server = origin.accept().await;
        assert!(!delayed || began.elapsed() >= wait);
        server.send("220 ready\r\n").await;
        client.exactly(11).await;
        assert_eq!(mesh.metric("weft_limit_reached_total", &[("limit", "learnt_wait")]), n);
    }
}

#[tokio::test]
async fn one_odd_client_teaches_nothing() {
    let (mesh, origin) = mesh_for(AppProtocol::Detect, &patient()).await;
    for _ in 0..3 {
        let mut odd = Wire::new(mesh.connect(vip(1)).await);
        odd.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
        origin.accept().await.head().await;
        // With a wait of ten minutes it would never be heard.
        let mut client = Wire::new(mesh.connect(vip(1)).await);
        let mut server = origin.accept().await;
        server.send("220 ready\r\n").await;
        client.exactly(11).await;
    }
}

#[tokio::test]
async fn what_was_seen_is_shown_by_port() {
    let (mesh, origin) = mesh_for(AppProtocol::Detect, &patient()).await;
    teach_http(&mesh, &origin).await;
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    client.send("\x16\x03\x01\x00\x05\x01").await;
    origin.accept().await.exactly(6).await;
    let rows = mesh.proxy().learnt().await;
    use weft_proxy::learnt::{LearntKey, LearntRow, Seen};
    let key = LearntKey::Service(weft_policy::names::ServiceKey::new("shop", "web"), 80);
    let seen = vec![(Seen::Http, u64::from(limits::LEARNT_STREAK_MIN)), (Seen::Tls, 1)];
    assert_eq!(rows, [LearntRow { key, seen }]);
}

#[tokio::test]
async fn ports_beyond_the_bound_are_dialled_at_once() {
    let (mesh, origin) = mesh_for(AppProtocol::Detect, &ProxyConfig { learnt_ports_max: 0, ..patient() }).await;
    for _ in 0..=limits::LEARNT_STREAK_MIN {
        let mut client = Wire::new(mesh.connect(vip(1)).await);
        let mut server = origin.accept().await;
        client.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
        server.head().await;
        server.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
        client.answer().await;
    }
    let reached = mesh.metric("weft_limit_reached_total", &[("limit", "learnt_ports")]);
    assert_eq!(reached, f64::from(limits::LEARNT_STREAK_MIN + 1));
}

#[tokio::test]
async fn shares_of_a_split_are_exact_when_every_request_has_its_own_connection() {
    for (weights, shares) in [([50, 50], [5, 5]), ([90, 10], [9, 1])] {
        let (mesh, one, two) = (Mesh::with(&patient()), Named::start("v1").await, Named::start("v2").await);
        let cells: [_; 2] = [one.address, two.address].map(|address: SocketAddr| cell(&[address]));
        let backends = [("v1", weights[0], &cells[0]), ("v2", weights[1], &cells[1])];
        mesh.serve(vip(1), plan(AppProtocol::Detect, split("canary", &backends)));
        for _ in 0..10 {
            let mut client = Wire::new(mesh.connect(vip(1)).await);
            client.get("/").await;
        }
        let served = [&one, &two].map(|server| server.requests.load(Ordering::SeqCst));
        assert_eq!(served, shares, "{weights:?}");
        let dialled = [&one, &two].map(|server| server.connections.load(Ordering::SeqCst));
        assert!(dialled[0] <= shares[0] && dialled[1] <= shares[1], "a dial was in vain: {dialled:?}");
    }
}

#[tokio::test]
async fn shares_stay_exact_where_first_requests_go_elsewhere_than_was_dialled() {
    let servers = [Named::start("v1").await, Named::start("v2").await, Named::start("admin").await];
    let [one, two, admin] = &servers;
    let mesh = Mesh::with(&ProxyConfig { learnt_ports_max: 0, ..patient() });
    let cells = [one.address, two.address, admin.address].map(|address: SocketAddr| cell(&[address]));
    let origin = ObjectRef::new("HTTPRouteGroup", "shop", "admin");
    let matched = MatchIr { path: Some(PathIr::Begins("/admin".into())), ..MatchIr::any(origin, "admin") };
    let plain = plan(AppProtocol::Detect, split("canary", &[("v1", 50, &cells[0]), ("v2", 50, &cells[1])]));
    let plain = std::sync::Arc::into_inner(plain).unwrap();
    mesh.serve(
        vip(1),
        std::sync::Arc::new(OutboundPlan {
            routes: RouteTable {
                matcher: RouteMatcher::new(&[&[matched]]).0,
                matched: Box::new([Route { rule: rule(&split("admin", &[("admin", 1, &cells[2])])), prefix: None }]),
                ..plain.routes
            },
            ..plain
        }),
    );
    for _ in 0..10 {
        for path in ["/admin", "/"] {
            Wire::new(mesh.connect(vip(1)).await).get(path).await;
        }
    }
    let served = [one, two, admin].map(|server| server.requests.load(Ordering::SeqCst));
    assert_eq!(served, [5, 5, 10]);
}

#[tokio::test]
async fn drain_leaves_a_silent_connection_its_time_and_answers_what_it_asks() {
    let (mesh, web) = (Mesh::with(&patient()), Named::start("v1").await);
    mesh.serve(vip(1), service(AppProtocol::Detect, &[web.address]));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    let mut silent = Wire::new(mesh.connect(vip(1)).await);
    until("both are dialled", || web.connections.load(Ordering::SeqCst) == 2).await;
    let drain = mesh.proxy().drain(Duration::from_secs(2));
    let talk = async {
        until("nothing is accepted any more", || std::net::TcpStream::connect(mesh.outbound).is_err()).await;
        let answer = client.get("/").await;
        assert_eq!((answer.text(), answer.head.field("connection")), ("v1", Some("close")));
        client.ended().await;
        drop(client);
        silent.ended().await;
    };
    let (report, ()) = soon(async { tokio::join!(drain, talk) }).await;
    assert_eq!((report.finished, report.closed), (1, 1));
}

#[tokio::test]
async fn preface_of_http_2_is_recognised_wherever_it_is_cut() {
    for protocol in [AppProtocol::Detect, AppProtocol::Http] {
        let (mesh, _origin) = mesh_for(protocol, &patient()).await;
        for cut in [1, 3, 4, 16, PREFACE.len() - 1] {
            let mut client = Wire::new(mesh.connect(vip(1)).await);
            client.send(&PREFACE[..cut]).await;
            looked_at(&mesh).await;
            client.send(&PREFACE[cut..]).await;
            client.send(b"\0\0\0\x04\0\0\0\0\0").await;
            // The mesh answers with its own SETTINGS.
            assert_eq!(client.exactly(9).await[3..5], [4, 0]);
        }
        if protocol == AppProtocol::Detect {
            mesh.metric_becomes("weft_detection_seconds", &[("protocol", "http2"), ("first", "client")], 5.0).await;
        }
    }
}

/// gRPC's servers send their settings as soon as they have accepted.
#[tokio::test]
async fn server_of_http_2_that_speaks_first_is_still_one_of_http_2() {
    const SETTINGS: &[u8] = b"\0\0\x06\x04\0\0\0\0\0\0\x04\0\0\xff\xff";
    let (mesh, origin) = mesh_for(AppProtocol::Detect, &ProxyConfig::default()).await;
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    let mut server = origin.accept().await;
    server.send(SETTINGS).await;
    // Long enough for the mesh to have seen them, which shows nowhere.
    mesh.ticked().await;
    client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
    // The mesh answers for itself: settings of its own, not those of the server.
    assert_ne!(client.exactly(SETTINGS.len()).await, SETTINGS);
    assert_eq!(only_flow(&mesh).await.protocol, FlowProtocol::Http2);
    // Whoever waits for such bytes without being a client of HTTP/2 gets them.
    let mut other = Wire::new(mesh.connect(vip(1)).await);
    other.send(b"x").await;
    let mut server = origin.accept().await;
    server.send(SETTINGS).await;
    assert_eq!(other.exactly(SETTINGS.len()).await, SETTINGS);
}
