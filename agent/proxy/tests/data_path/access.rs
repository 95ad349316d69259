//! Who may reach what: each request and each connection is asked for, and what was let through once may end.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use weft_policy::{
    endpoints::{EndpointCell, EndpointSet},
    inbound::{Grant, InboundPlan, Stance},
    ir::{MatchIr, PathIr, ValueIr},
    matcher::RouteMatcher,
    names::{ObjectRef, ServiceAccountKey, WorkloadId},
    plan::AppProtocol,
};
use weft_proxy::{config::ProxyConfig, socket::PodListeners};

use crate::{
    mesh::{Mesh, endpoint, local_pod, plan, soon, split, vip},
    origin::{Named, Origin},
    peers2::{self, Client, named2},
    wire::Wire,
};

/// How soon a connection must end that policy does not let through any more.
const CUT_WITHIN: Duration = Duration::from_secs(1);

fn web() -> WorkloadId {
    WorkloadId::new("uid-web-1")
}

/// Endpoints with a pod behind them that is captured.
pub(crate) fn captured(
    mesh: &Mesh,
    workload: &WorkloadId,
    protocol: AppProtocol,
    address: SocketAddr,
) -> Arc<EndpointCell> {
    mesh.capture.captured.lock().unwrap().insert(workload.clone());
    let mut ready = endpoint(address);
    ready.workload = Some(workload.clone());
    Arc::new(EndpointCell::new(EndpointSet { ready: Box::new([ready]), protocol, ..EndpointSet::default() }))
}

/// A mesh with one Service whose only endpoint is captured and follows a plan.
fn with(protocol: AppProtocol, address: SocketAddr, inbound: InboundPlan) -> Mesh {
    let mesh = Mesh::with(&ProxyConfig { refusal_wait: Duration::from_secs(20), ..ProxyConfig::default() });
    let cell = captured(&mesh, &web(), protocol, address);
    mesh.serve(vip(1), plan(protocol, split("web", &[("web", 1, &cell)])));
    set(&mesh, inbound);
    mesh
}

fn set(mesh: &Mesh, inbound: InboundPlan) {
    mesh.publish(|snapshot| _ = snapshot.inbound.insert(web(), Arc::new(inbound)));
}

fn target(name: &str) -> ObjectRef {
    ObjectRef::new("TrafficTarget", "shop", name)
}

/// A TrafficTarget for the client's service account: (path, methods) of its requests; none for whatever is said.
pub(crate) fn grant(name: &str, requests: Option<&[(&str, &[&str])]>) -> Grant {
    let requests = requests.map(|requests| {
        let matches: Vec<_> = requests
            .iter()
            .map(|(path, methods)| MatchIr {
                path: Some(PathIr::Begins((*path).into())),
                methods: methods.iter().map(|method| (*method).into()).collect(),
                ..MatchIr::any(target(name), "m")
            })
            .collect();
        RouteMatcher::new(&[&matches]).0
    });
    Grant {
        origin: Arc::new(target(name)),
        accounts: Box::new([ServiceAccountKey::new("shop", "client-1")]),
        workloads: Box::default(),
        ports: None,
        udp_ports: None,
        requests,
    }
}

pub(crate) fn granting(grants: Vec<Grant>) -> InboundPlan {
    InboundPlan { selected_by: Arc::new([target("selects")]), grants: grants.into(), ..InboundPlan::default() }
}

fn nothing() -> InboundPlan {
    granting(Vec::new())
}

fn open() -> InboundPlan {
    InboundPlan::default()
}

fn denied(mesh: &Mesh, basis: &str) -> f64 {
    mesh.metric(
        "weft_denied_total",
        &[("destination_namespace", "shop"), ("destination_workload", "web"), ("basis", basis)],
    )
}

#[tokio::test]
async fn each_request_of_a_connection_is_asked_for() {
    let origin = Named::start("v1").await;
    let mesh = with(AppProtocol::Http, origin.address, granting(vec![grant("reads", Some(&[("/ok", &["GET"])]))]));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    for _ in 0..3 {
        assert_eq!(client.get("/ok/more?x").await.text(), "v1");
        for (method, path) in [("POST", "/ok"), ("GET", "/no"), ("GET", "/no/ok"), ("GET", "/?/ok")] {
            let request = format!("{method} {path} HTTP/1.1\r\nHost: web\r\nContent-Length: 0\r\n\r\n");
            let answer = client.ask(&request).await;
            assert_eq!((answer.head.status(), answer.head.reason()), (403, "denied"), "{method} {path}");
            assert!(answer.text().contains("not granted by TrafficTarget shop/selects"), "{}", answer.text());
        }
    }
    assert_eq!(origin.requests.load(Ordering::SeqCst), 3, "nothing that was denied got through");
    assert_eq!(mesh.metric("weft_local_replies_total", &[("reason", "denied")]), 12.0);
    assert_eq!(mesh.metric("weft_denied_total", &[("basis", "not_granted")]), 12.0);
}

#[tokio::test]
async fn each_request_of_http2_is_asked_for() {
    let origin = named2("v1").await;
    let mesh = with(AppProtocol::Http, origin.address, granting(vec![grant("reads", Some(&[("/ok", &["GET"])]))]));
    let client = Client::connect(&mesh, vip(1)).await;
    for _ in 0..3 {
        assert_eq!(client.get("/ok").await.text(), "v1");
        for answer in [client.get("/no").await, client.ask(peers2::post("/ok"), Some("body")).await] {
            assert_eq!((answer.head.status.as_u16(), answer.reason()), (403, "denied"));
        }
    }
    assert_eq!(origin.requests.load(Ordering::SeqCst), 3, "nothing that was denied got through");
}

#[tokio::test]
async fn host_can_be_matched_in_either_version() {
    let (one, two) = (Named::start("v1").await, named2("v2").await);
    let mut only = grant("host", None);
    let matches = [MatchIr {
        headers: vec![("host".into(), ValueIr::Search("^web$".into()))],
        ..MatchIr::any(target("host"), "m")
    }];
    only.requests = Some(RouteMatcher::new(&[&matches]).0);
    let mesh = with(AppProtocol::Http, one.address, granting(vec![only]));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    assert_eq!(client.get("/").await.head.status(), 200);
    let other = client.ask("GET / HTTP/1.1\r\nHost: other\r\n\r\n").await;
    assert_eq!((other.head.status(), other.head.reason()), (403, "denied"));
    let cell = captured(&mesh, &web(), AppProtocol::Http, two.address);
    mesh.serve(vip(2), plan(AppProtocol::Http, split("web", &[("web", 1, &cell)])));
    assert_eq!(Client::connect(&mesh, vip(2)).await.get("/").await.text(), "v2");
}

#[tokio::test]
async fn the_next_request_meets_the_policy_that_holds_then() {
    let origin = Named::start("v1").await;
    let mesh = with(AppProtocol::Detect, origin.address, open());
    inbound(&mesh);
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    for (inbound, status) in [
        (granting(vec![grant("all", None)]), 200),
        (nothing(), 403),
        (granting(vec![grant("gets", Some(&[(".*", &["GET"])]))]), 200),
        (granting(vec![grant("posts", Some(&[(".*", &["POST"])]))]), 403),
        (open(), 200),
        (InboundPlan { stance: Stance { deny: true, origin: None }, ..InboundPlan::default() }, 403),
    ] {
        set(&mesh, inbound);
        assert_eq!(client.get("/").await.head.status(), status);
    }
    assert_eq!((denied(&mesh, "not_granted"), denied(&mesh, "stance")), (2.0, 1.0));
}

#[tokio::test]
async fn a_connection_of_bytes_needs_a_grant_of_more_than_requests() {
    for protocol in [AppProtocol::Tcp, AppProtocol::Tls, AppProtocol::Detect, AppProtocol::Http] {
        let origin = Origin::bind().await;
        let mesh = with(protocol, origin.address, granting(vec![grant("gets", Some(&[(".*", &["GET"])]))]));
        inbound(&mesh);
        if matches!(protocol, AppProtocol::Tcp | AppProtocol::Tls) {
            // Nobody waits for what it has to say.
            mesh.connect_and_be_reset(vip(1)).await;
        } else {
            let mut client = Wire::new(mesh.connect(vip(1)).await);
            client.send("\x01bytes").await;
            client.reset().await;
            assert_eq!(client.read_so_far(), b"", "{protocol:?}");
        }
        assert_eq!((denied(&mesh, "not_http"), denied(&mesh, "not_granted")), (1.0, 0.0), "{protocol:?}");
        if protocol != AppProtocol::Detect {
            assert_eq!(mesh.capture.dials.load(Ordering::SeqCst), 0, "{protocol:?}");
        }
        set(&mesh, granting(vec![grant("all", None)]));
        let mut client = Wire::new(mesh.connect(vip(1)).await);
        client.send("\x01bytes").await;
        let mut server = origin.accept().await;
        if protocol == AppProtocol::Detect {
            // The first one was dialled, and got nothing.
            server.reset_or_end().await;
            assert_eq!(server.read_so_far(), b"");
            server = origin.accept().await;
        }
        assert_eq!(server.exactly(6).await, b"\x01bytes", "{protocol:?}");
    }
}

#[tokio::test]
async fn what_a_server_says_unasked_is_not_for_clients_that_may_only_ask() {
    let origin = Origin::bind().await;
    let mesh = with(AppProtocol::Detect, origin.address, granting(vec![grant("gets", Some(&[(".*", &["GET"])]))]));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    let mut server = origin.accept().await;
    server.send("220 a secret\r\n").await;
    client.send("EHLO me\r\n").await;
    client.reset().await;
    assert_eq!(client.read_so_far(), b"");
    assert_eq!(mesh.metric("weft_denied_total", &[("basis", "not_http")]), 1.0);
    // One that leaves without a word asked for nothing.
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    client.shutdown();
    client.ended().await;
    assert_eq!(mesh.metric("weft_denied_total", &[]), 1.0);
}

#[tokio::test]
async fn bytes_are_cut_off_within_a_second_when_they_are_denied() {
    for protocol in [AppProtocol::Tcp, AppProtocol::Detect] {
        let (origin, other) = (Origin::bind().await, Origin::bind().await);
        let mesh = with(protocol, origin.address, granting(vec![grant("all", None)]));
        inbound(&mesh);
        let uncaptured = crate::mesh::cell(&[other.address]);
        mesh.serve(vip(2), plan(protocol, split("other", &[("other", 1, &uncaptured)])));
        let (mut client, mut neighbour) =
            (Wire::new(mesh.connect(vip(1)).await), Wire::new(mesh.connect(vip(2)).await));
        client.send("\x01one").await;
        neighbour.send("\x01two").await;
        let (mut server, mut beside) = (origin.accept().await, other.accept().await);
        server.exactly(4).await;
        // Policy that still grants it, by another object, ends nothing.
        set(&mesh, granting(vec![grant("another", None)]));
        mesh.ticked().await;
        mesh.ticked().await;
        server.send("answer").await;
        assert_eq!(client.exactly(6).await, b"answer");
        set(&mesh, granting(vec![grant("gets", Some(&[(".*", &["GET"])]))]));
        let changed = Instant::now();
        client.reset().await;
        assert!(changed.elapsed() < CUT_WITHIN, "{protocol:?}: {:?}", changed.elapsed());
        server.reset_or_end().await;
        assert_eq!(mesh.metric("weft_connections_cut_total", &[("reason", "denied")]), 1.0);
        beside.exactly(4).await;
        beside.send("alive").await;
        assert_eq!(neighbour.exactly(5).await, b"alive");
    }
}

#[tokio::test]
async fn an_upgraded_connection_lives_as_long_as_its_request_would_be_granted() {
    const UPGRADE: &str = "GET /chat HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: abc\r\n\r\n";
    let origin = Origin::bind().await;
    let chat = |name| granting(vec![grant(name, Some(&[("/chat", &["GET"])]))]);
    let mesh = with(AppProtocol::Http, origin.address, chat("one"));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    client.send(UPGRADE).await;
    let mut server = origin.accept().await;
    server.head().await;
    server.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await;
    assert_eq!(client.head().await.status(), 101);
    set(&mesh, chat("two"));
    mesh.ticked().await;
    mesh.ticked().await;
    server.send("answer").await;
    assert_eq!(client.exactly(6).await, b"answer");
    set(&mesh, granting(vec![grant("other", Some(&[("/other", &["GET"])]))]));
    let changed = Instant::now();
    client.reset().await;
    assert!(changed.elapsed() < CUT_WITHIN, "{:?}", changed.elapsed());
    assert_eq!(mesh.metric("weft_connections_cut_total", &[("reason", "denied")]), 1.0);
}

#[tokio::test]
async fn a_request_under_way_is_finished_and_the_next_one_is_denied() {
    let origin = Origin::bind().await;
    let mesh = with(AppProtocol::Http, origin.address, open());
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    client.send("GET /long HTTP/1.1\r\nHost: web\r\n\r\n").await;
    let mut server = origin.accept().await;
    server.head().await;
    server.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab").await;
    let head = client.head().await;
    set(&mesh, nothing());
    mesh.ticked().await;
    mesh.ticked().await;
    server.send("cd").await;
    assert_eq!(client.body(head, false).await.text(), "abcd");
    assert_eq!(client.get("/next").await.head.status(), 403);
}

#[tokio::test]
async fn a_split_is_asked_for_at_the_endpoint_that_it_chose_alone() {
    let (mesh, v1, v2) = (Mesh::start(), Named::start("v1").await, Named::start("v2").await);
    let other = WorkloadId::new("uid-web-2");
    let one = captured(&mesh, &web(), AppProtocol::Http, v1.address);
    let two = captured(&mesh, &other, AppProtocol::Http, v2.address);
    mesh.serve(vip(1), plan(AppProtocol::Http, split("canary", &[("v1", 50, &one), ("v2", 50, &two)])));
    set(&mesh, granting(vec![grant("all", None)]));
    mesh.publish(|snapshot| _ = snapshot.inbound.insert(other, Arc::new(nothing())));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    let mut counts = [0, 0];
    for _ in 0..20 {
        let answer = client.get("/").await;
        counts[usize::from(answer.head.status() == 403)] += 1;
    }
    assert_eq!(counts, [10, 10], "nobody is sent elsewhere because of a denial");
    assert_eq!(v2.requests.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_pod_needs_no_grant_to_talk_to_itself() {
    let origin = Named::start("me").await;
    let mesh = Mesh::start();
    let me = mesh.pod.id.clone();
    let cell = captured(&mesh, &me, AppProtocol::Http, origin.address);
    mesh.serve(vip(1), plan(AppProtocol::Http, split("me", &[("me", 1, &cell)])));
    mesh.publish(|snapshot| _ = snapshot.inbound.insert(me, Arc::new(nothing())));
    assert_eq!(Wire::new(mesh.connect(vip(1)).await).get("/").await.text(), "me");
}

#[tokio::test]
async fn a_connection_from_before_its_endpoint_was_captured_is_asked_for_too() {
    let origin = Named::start("v1").await;
    let mesh = with(AppProtocol::Http, origin.address, nothing());
    mesh.capture.captured.lock().unwrap().clear();
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    assert_eq!(client.get("/").await.text(), "v1", "a pod that is not captured follows no policy here");
    mesh.capture.captured.lock().unwrap().insert(web());
    assert_eq!(client.get("/").await.head.status(), 403, "though its connection waits in the pool");
    assert_eq!(origin.requests.load(Ordering::SeqCst), 1);
}

/// A pod's inbound listener, on every address so that none is its own.
fn inbound(mesh: &Mesh) -> SocketAddr {
    let listener = std::net::TcpListener::bind((std::net::Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    mesh.proxy().add_pod(PodListeners { pod: local_pod("web-1"), outbound: Vec::new(), inbound: vec![listener] });
    SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, port))
}

#[tokio::test]
async fn a_stranger_is_told_in_the_words_that_it_speaks() {
    for (inbound_plan, basis) in [
        (granting(vec![grant("all", None)]), "unidentified"),
        (InboundPlan { stance: Stance { deny: true, origin: None }, ..InboundPlan::default() }, "stance"),
    ] {
        let mesh = Mesh::with(&ProxyConfig { refusal_wait: Duration::from_millis(100), ..ProxyConfig::default() });
        set(&mesh, inbound_plan);
        let at = inbound(&mesh);
        let connect = || async move { soon(tokio::net::TcpStream::connect(at)).await.unwrap() };
        let mut one = Wire::new(connect().await);
        let answer = one.get("/").await;
        assert_eq!((answer.head.status(), answer.head.reason()), (403, "denied"));
        assert!(!answer.text().contains("selects"), "a stranger learns no names: {}", answer.text());
        one.ended().await;
        let two = Client::over(connect().await, &h2::client::Builder::new()).await;
        let answer = two.get("/").await;
        assert_eq!((answer.head.status.as_u16(), answer.reason()), (403, "denied"));
        let mut call = peers2::post("/a.B/C");
        call.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        let two = Client::over(connect().await, &h2::client::Builder::new()).await;
        assert_eq!(two.ask(call, None).await.field("grpc-status"), Some("7"), "PERMISSION_DENIED");
        for words in ["\x01bytes", ""] {
            let mut client = Wire::new(connect().await);
            client.send(words).await;
            client.reset().await;
        }
        assert_eq!(mesh.capture.dials.load(Ordering::SeqCst), 0);
        assert_eq!(denied(&mesh, basis), 5.0);
    }
}
