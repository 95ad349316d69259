//! Pods that come and go, and the end of everything.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use weft_policy::plan::AppProtocol;
use weft_proxy::{config::ProxyConfig, socket::PodListeners};

use crate::{
    mesh::{Mesh, local_pod, service, soon, until, vip},
    origin::{Named, Origin},
    wire::Wire,
};

async fn idle_busy_and_opaque(mesh: &Mesh, web: &Named, origin: &Origin) -> (Wire, (Wire, Wire), (Wire, Wire)) {
    mesh.serve(vip(1), service(AppProtocol::Http, &[web.address]));
    mesh.serve(vip(2), service(AppProtocol::Http, &[origin.address]));
    mesh.serve(vip(3), service(AppProtocol::Tcp, &[origin.address]));
    let mut idle = Wire::new(mesh.connect(vip(1)).await);
    assert_eq!(idle.get("/").await.text(), "v1");
    let mut busy = Wire::new(mesh.connect(vip(2)).await);
    busy.send("GET /slow HTTP/1.1\r\nHost: web\r\n\r\n").await;
    let mut busy_server = origin.accept().await;
    busy_server.head().await;
    let mut opaque = Wire::new(mesh.connect(vip(3)).await);
    let mut opaque_server = origin.accept().await;
    opaque.send("x").await;
    opaque_server.exactly(1).await;
    (idle, (busy, busy_server), (opaque, opaque_server))
}

#[tokio::test]
async fn drain_finishes_requests_and_leaves_opaque_connections_their_time() {
    let (mesh, web, origin) = (Mesh::start(), Named::start("v1").await, Origin::bind().await);
    let (mut idle, (mut busy, mut busy_server), (mut opaque, mut opaque_server)) =
        idle_busy_and_opaque(&mesh, &web, &origin).await;
    let mut never_used = Wire::new(mesh.connect(vip(1)).await);
    let proxy = mesh.proxy.as_ref().unwrap();
    let drain = proxy.drain(Duration::from_secs(20));
    let clients = async {
        idle.ended().await;
        busy_server.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone").await;
        let answer = busy.answer().await;
        assert_eq!((answer.text(), answer.head.field("connection")), ("done", Some("close")));
        busy.ended().await;
        opaque.send("still").await;
        assert_eq!(opaque_server.exactly(5).await, b"still");
        opaque_server.send("here").await;
        assert_eq!(opaque.exactly(4).await, b"here");
        drop((opaque, opaque_server));
        never_used.ended().await;
        drop((idle, busy, never_used));
    };
    let (report, ()) = soon(async { tokio::join!(drain, clients) }).await;
    assert_eq!((report.finished, report.closed, report.workers_lost), (4, 0, 0));
    assert!(tokio::net::TcpStream::connect(mesh.outbound).await.is_err(), "nothing listens any more");
}

#[tokio::test]
async fn client_that_has_just_connected_when_a_drain_begins_may_ask() {
    let (mesh, web) = (Mesh::start(), Named::start("v1").await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[web.address]));
    let mut idle = Wire::new(mesh.connect(vip(1)).await);
    idle.get("/").await;
    let mut new = Wire::new(mesh.connect(vip(1)).await);
    mesh.taken(&new.stream).await;
    let drain = mesh.proxy().drain(Duration::from_secs(20));
    let clients = async {
        // Then the drain has come to every connection.
        idle.ended().await;
        let answer = new.get("/").await;
        assert_eq!((answer.text(), answer.head.field("connection")), ("v1", Some("close")));
        drop((idle, new));
    };
    let (report, ()) = soon(async { tokio::join!(drain, clients) }).await;
    assert_eq!(report.closed, 0);
}

#[tokio::test]
async fn request_that_has_come_when_a_drain_begins_is_answered() {
    let (mesh, web) = (Mesh::start(), Named::start("v1").await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[web.address]));
    for used_before in [true, false] {
        let mesh = if used_before { &mesh } else { &Mesh::start() };
        mesh.serve(vip(1), service(AppProtocol::Http, &[web.address]));
        let mut client = Wire::new(mesh.connect(vip(1)).await);
        if used_before {
            client.get("/").await;
        }
        let hang = mesh.capture.hang.lock().unwrap();
        let other = std::net::TcpStream::connect(mesh.outbound).unwrap();
        // The worker hangs now or soon, and finds both the request and the drain when it goes on.
        client.stream.try_write(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n").unwrap();
        let drain = mesh.proxy().drain(Duration::from_secs(20));
        let going_on = async {
            drop(hang);
            let answer = client.answer().await;
            assert_eq!((answer.text(), answer.head.field("connection")), ("v1", Some("close")));
            drop((client, other));
        };
        let (report, ()) = soon(async { tokio::join!(drain, going_on) }).await;
        assert_eq!(report.closed, 0);
    }
}

#[tokio::test]
async fn drain_resets_what_is_left_at_the_deadline() {
    let (mesh, web, origin) = (Mesh::start(), Named::start("v1").await, Origin::bind().await);
    let (mut idle, (mut busy, mut busy_server), (mut opaque, mut opaque_server)) =
        idle_busy_and_opaque(&mesh, &web, &origin).await;
    let report = soon(mesh.proxy().drain(Duration::from_millis(200))).await;
    assert_eq!((report.finished, report.closed), (1, 2));
    idle.ended().await;
    busy.reset().await;
    busy_server.reset_or_end().await;
    opaque.reset().await;
    opaque_server.reset().await;
    assert!(mesh.proxy().flows(10).await.is_empty());
}

#[tokio::test]
async fn stop_accepting_loses_nothing_that_waits() {
    let config = ProxyConfig { downstream_connections_max: 1, ..ProxyConfig::default() };
    let (mesh, web) = (Mesh::with(&config), Named::start("v1").await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[web.address]));
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(Wire::new(mesh.connect(vip(1)).await));
    }
    soon(mesh.proxy().stop_accepting()).await;
    assert!(tokio::net::TcpStream::connect(mesh.outbound).await.is_err(), "nothing listens any more");
    for client in &mut clients {
        assert_eq!(client.get("/").await.text(), "v1");
    }
}

#[tokio::test]
async fn listener_that_somebody_else_holds_stays_open() {
    let (mesh, web) = (Mesh::start(), Named::start("v1").await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[web.address]));
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (address, successor) = (listener.local_addr().unwrap(), listener.try_clone().unwrap());
    mesh.proxy().add_pod(PodListeners { pod: local_pod("other-1"), outbound: vec![listener], inbound: Vec::new() });
    soon(mesh.proxy().stop_accepting()).await;
    let waiting = soon(tokio::net::TcpStream::connect(address)).await.unwrap();
    let (accepted, _) = successor.accept().unwrap();
    assert_eq!(accepted.peer_addr().unwrap(), waiting.local_addr().unwrap());
}

#[tokio::test]
async fn removed_pod_is_served_no_more_and_leaves_no_series() {
    let config = ProxyConfig { pod_removal_grace: Duration::from_millis(50), ..ProxyConfig::default() };
    let (mesh, web, origin) = (Mesh::with(&config), Named::start("v1").await, Origin::bind().await);
    let (mut idle, (mut busy, _busy_server), (mut opaque, mut opaque_server)) =
        idle_busy_and_opaque(&mesh, &web, &origin).await;
    until("requests are counted", || mesh.series("weft_requests_total") > 0).await;
    mesh.proxy().remove_pod(&mesh.pod.id);
    idle.ended().await;
    busy.reset().await;
    opaque.reset().await;
    opaque_server.reset().await;
    assert!(tokio::net::TcpStream::connect(mesh.outbound).await.is_err(), "nothing listens any more");
    drop((idle, busy, opaque));
    for family in
        ["weft_requests_total", "weft_request_duration_seconds", "weft_connections_open", "weft_connections_total"]
    {
        until(family, || mesh.series(family) == 0).await;
    }
    until("leases are given back", || mesh.capture.leases.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test]
async fn pods_of_one_workload_share_their_series() {
    let (mesh, web) = (Mesh::start(), Named::start("v1").await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[web.address]));
    let second = local_pod("client-2");
    mesh.proxy().add_pod(PodListeners { pod: Arc::clone(&second), outbound: Vec::new(), inbound: Vec::new() });
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    client.get("/").await;
    mesh.metric_becomes("weft_requests_total", &[("source_workload", "client")], 1.0).await;
    mesh.proxy().remove_pod(&second.id);
    client.get("/").await;
    mesh.metric_becomes("weft_requests_total", &[("source_workload", "client")], 2.0).await;
}

#[tokio::test]
async fn inbound_connection_reaches_the_application_as_it_is() {
    let mesh = Mesh::start();
    let pod = local_pod("web-1");
    // Where the kernel would bring any port of the pod to the listener, the test has two sockets on one port: the client is in the
    // wildcard listener's queue before the application binds its own address, and the dial then meets the application.
    let socket = |ip: Ipv4Addr, port| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_reuse_port(true).unwrap();
        socket.bind(&SocketAddr::from((ip, port)).into()).unwrap();
        socket.listen(64).unwrap();
        std::net::TcpListener::from(socket)
    };
    let listener = socket(Ipv4Addr::UNSPECIFIED, 0);
    let address = SocketAddr::from(([127, 0, 0, 7], listener.local_addr().unwrap().port()));
    let mut denied = Wire::new(soon(tokio::net::TcpStream::connect(address)).await.unwrap());
    let mut client = Wire::new(soon(tokio::net::TcpStream::connect(address)).await.unwrap());
    let application = socket(Ipv4Addr::new(127, 0, 0, 7), address.port());
    let one = |listener: &std::net::TcpListener| listener.accept().unwrap().0;
    // The first one meets a proxy that has no plan for the pod.
    let early = Mesh::start();
    let handed = listener.try_clone().unwrap();
    early.proxy().add_pod(PodListeners { pod: Arc::clone(&pod), outbound: Vec::new(), inbound: vec![handed] });
    denied.reset().await;
    client.reset().await;
    drop(early);
    drop(application);
    let mut client = Wire::new(soon(tokio::net::TcpStream::connect(address)).await.unwrap());
    let application = socket(Ipv4Addr::new(127, 0, 0, 7), address.port());
    mesh.allow_inbound(&pod.id);
    mesh.proxy().add_pod(PodListeners { pod: Arc::clone(&pod), outbound: Vec::new(), inbound: vec![listener] });
    let accepted = tokio::task::spawn_blocking(move || one(&application)).await.unwrap();
    accepted.set_nonblocking(true).unwrap();
    let mut server = Wire::new(tokio::net::TcpStream::from_std(accepted).unwrap());
    client.send("GET").await;
    assert_eq!(server.exactly(3).await, b"GET");
    server.send("ok").await;
    assert_eq!(client.exactly(2).await, b"ok");
    let row = mesh.proxy().flows(10).await.remove(0);
    assert_eq!(row.destination, format!("shop/web/web-1:{}", address.port()));
    assert_eq!(row.source, client.stream.local_addr().unwrap().to_string());
    mesh.metric_becomes("weft_tcp_sent_bytes_total", &[("direction", "inbound"), ("destination_service", "web")], 3.0)
        .await;
    server.kill();
    client.reset().await;
}

#[tokio::test]
async fn inbound_refusal_is_a_reset_and_the_listener_itself_is_no_destination() {
    let mesh = Mesh::start();
    let pod = local_pod("web-1");
    mesh.allow_inbound(&pod.id);
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let own = listener.local_addr().unwrap();
    mesh.proxy().add_pod(PodListeners { pod, outbound: Vec::new(), inbound: vec![listener] });
    match soon(tokio::net::TcpStream::connect(own)).await {
        Ok(stream) => Wire::new(stream).reset().await,
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
    assert_eq!(mesh.capture.dials.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn heartbeat_tells_a_worker_that_hangs_from_one_that_lives() {
    let mesh = Mesh::with(&ProxyConfig { workers: Some(2), ..ProxyConfig::default() });
    let age = || mesh.proxy().heartbeat_age();
    for _ in 0..2 {
        let before = age();
        until("a beat", || age() < before || age() < Duration::from_millis(20)).await;
        until("a pause", || age() > Duration::from_millis(100)).await;
    }
    {
        let _hang = mesh.capture.hang.lock().unwrap();
        let _client = std::net::TcpStream::connect(mesh.outbound).unwrap();
        let deadline = Instant::now() + crate::mesh::PATIENCE;
        while age() < 3 * weft_proxy::limits::TICK {
            assert!(Instant::now() < deadline, "a worker hangs, and the heartbeat does not show it");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    until("the worker lives again", || age() < weft_proxy::limits::TICK / 2).await;
}

#[tokio::test]
async fn flow_rows_tell_what_a_connection_is() {
    let (mesh, web, origin) = (Mesh::start(), Named::start("v1").await, Origin::bind().await);
    let _open = idle_busy_and_opaque(&mesh, &web, &origin).await;
    let rows = serde_json::to_value(mesh.proxy().flows(10).await).unwrap();
    assert_eq!(rows.as_array().unwrap().len(), 3);
    let of = |protocol: &str, requests: u64, destination: &str| {
        let row = rows
            .as_array()
            .unwrap()
            .iter()
            .find(|row| row["protocol"] == protocol && row["endpoint"] == destination)
            .unwrap();
        assert_eq!((&row["requests"], &row["direction"]), (&requests.into(), &"outbound".into()), "{row}");
        assert_eq!(
            (&row["source"], &row["destination"], &row["backend"]),
            (&"shop/client/client-1".into(), &"shop/web:80".into(), &"shop/web".into())
        );
        assert!(row["bytes_sent"].as_u64().unwrap() > 0 && row["age_ms"].is_u64() && row["bytes_received"].is_u64());
    };
    of("http", 1, &web.address.to_string());
    of("http", 1, &origin.address.to_string());
    of("tcp", 0, &origin.address.to_string());
}

#[tokio::test]
async fn dropping_the_proxy_resets_what_is_open() {
    let (mut mesh, web, origin) = (Mesh::start(), Named::start("v1").await, Origin::bind().await);
    let (mut idle, (mut busy, _busy_server), (mut opaque, mut opaque_server)) =
        idle_busy_and_opaque(&mesh, &web, &origin).await;
    let proxy = mesh.proxy.take();
    tokio::task::spawn_blocking(move || drop(proxy)).await.unwrap();
    opaque.reset().await;
    opaque_server.reset().await;
    busy.reset().await;
    idle.reset_or_end().await;
    assert_eq!(mesh.capture.leases.load(Ordering::SeqCst), 0);
}
