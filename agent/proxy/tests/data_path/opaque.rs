//! Connections that weft does not look into.

use std::sync::atomic::Ordering;

use weft_policy::{
    names::WorkloadId,
    plan::{AppProtocol, PodPlan, PodPort},
};

use crate::{
    mesh::{Mesh, cell, plan, service, split, until, vip},
    origin::{Origin, refusing},
    wire::Wire,
};

async fn pair() -> (Mesh, Wire, Wire) {
    let (mesh, origin) = (Mesh::start(), Origin::bind().await);
    mesh.serve(vip(1), service(AppProtocol::Tcp, &[origin.address]));
    let client = Wire::new(mesh.connect(vip(1)).await);
    let server = origin.accept().await;
    (mesh, client, server)
}

#[tokio::test]
async fn bytes_go_both_ways_and_are_counted() {
    let (mesh, mut client, mut server) = pair().await;
    client.send("ping").await;
    assert_eq!(server.exactly(4).await, b"ping");
    server.send("pong!").await;
    assert_eq!(client.exactly(5).await, b"pong!");
    let labels = [("direction", "outbound"), ("destination_service", "web"), ("backend", "web")];
    // While it is open: a connection may live for days.
    mesh.metric_becomes("weft_tcp_sent_bytes_total", &labels, 4.0).await;
    mesh.metric_becomes("weft_tcp_received_bytes_total", &labels, 5.0).await;
    assert_eq!(mesh.metric("weft_connections_open", &labels), 1.0);
    drop(client);
    server.ended().await;
    drop(server);
    mesh.metric_becomes("weft_connections_open", &labels, 0.0).await;
    assert_eq!(mesh.metric("weft_connections_total", &labels), 1.0);
    assert_eq!(mesh.capture.leases.load(Ordering::SeqCst), 0);
    assert_eq!(mesh.capture.started.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn server_may_speak_first() {
    let (_mesh, mut client, mut server) = pair().await;
    server.send("220 hello\r\n").await;
    assert_eq!(client.exactly(11).await, b"220 hello\r\n");
}

#[tokio::test]
async fn half_close_of_the_client_leaves_the_other_direction_open() {
    let (_mesh, mut client, mut server) = pair().await;
    client.send("request").await;
    client.shutdown();
    assert_eq!(server.exactly(7).await, b"request");
    server.ended().await;
    for _ in 0..3 {
        server.send("answer").await;
        assert_eq!(client.exactly(6).await, b"answer");
    }
    drop(server);
    client.ended().await;
}

#[tokio::test]
async fn half_close_of_the_server_leaves_the_other_direction_open() {
    let (_mesh, mut client, mut server) = pair().await;
    server.send("all").await;
    server.shutdown();
    assert_eq!(client.exactly(3).await, b"all");
    client.ended().await;
    for _ in 0..3 {
        client.send("more").await;
        assert_eq!(server.exactly(4).await, b"more");
    }
    drop(client);
    server.ended().await;
}

#[tokio::test]
async fn reset_of_the_client_reaches_the_server() {
    let (_mesh, mut client, mut server) = pair().await;
    client.send("x").await;
    server.exactly(1).await;
    client.kill();
    server.reset().await;
}

#[tokio::test]
async fn reset_of_the_server_reaches_the_client() {
    let (_mesh, mut client, mut server) = pair().await;
    server.send("x").await;
    client.exactly(1).await;
    server.kill();
    client.reset().await;
}

#[tokio::test]
async fn reset_after_a_half_close_reaches_the_other_side() {
    let (_mesh, client, mut server) = pair().await;
    client.shutdown();
    server.ended().await;
    client.kill();
    // Nothing is read from the client any more; its reset shows all the same.
    server.stream.ready(tokio::io::Interest::ERROR).await.unwrap();
    server.stream.take_error().unwrap().expect("should have been reset");
}

#[tokio::test]
async fn reset_reaches_a_side_that_does_not_read() {
    let (_mesh, client, server) = pair().await;
    crate::bounds::fill(&client.stream, usize::MAX).await;
    client.kill();
    crate::mesh::soon(server.stream.ready(tokio::io::Interest::ERROR)).await.unwrap();
}

#[tokio::test]
async fn reader_that_stops_holds_the_sender() {
    let (mesh, client, server) = pair().await;
    for (from, to) in [(&client.stream, &server.stream), (&server.stream, &client.stream)] {
        let sent = crate::bounds::fill(from, usize::MAX).await;
        assert!(sent < 64 << 20, "{sent}");
        assert_eq!(crate::bounds::read(to, sent).await, sent);
    }
    assert_eq!(mesh.metric("weft_connections_reset_total", &[]), 0.0);
}

#[tokio::test]
async fn endpoint_that_refuses_is_passed_over() {
    let (mesh, origin) = (Mesh::start(), Origin::bind().await);
    let (dead, _held) = refusing();
    mesh.serve(vip(1), service(AppProtocol::Tcp, &[dead, origin.address]));
    for _ in 0..4 {
        let mut client = Wire::new(mesh.connect(vip(1)).await);
        client.send("x").await;
        assert_eq!(origin.accept().await.exactly(1).await, b"x");
    }
    assert!(mesh.metric("weft_dials_total", &[("result", "refused")]) >= 1.0);
    assert_eq!(mesh.metric("weft_dials_total", &[("result", "connected")]), 4.0);
}

#[tokio::test]
async fn nothing_to_connect_to_is_a_reset_before_any_byte() {
    let mesh = Mesh::start();
    let (dead, _held) = refusing();
    mesh.serve(vip(1), service(AppProtocol::Tcp, &[]));
    mesh.serve(vip(2), service(AppProtocol::Tcp, &[dead]));
    mesh.serve(vip(3), plan(AppProtocol::Tcp, split("canary", &[("web", 0, &cell(&[dead]))])));
    for (n, reason) in [(1, "no_endpoints"), (2, "connect_failed"), (3, "split_zero")] {
        mesh.connect_and_be_reset(vip(n)).await;
        assert_eq!(mesh.metric("weft_local_replies_total", &[("reason", reason)]), 1.0, "{reason}");
    }
}

#[tokio::test]
async fn tries_are_bounded() {
    let mesh = Mesh::start();
    let dead: Vec<_> = (0..8).map(|_| refusing()).collect();
    let addresses: Vec<_> = dead.iter().map(|(address, _)| *address).collect();
    mesh.serve(vip(1), service(AppProtocol::Tcp, &addresses));
    mesh.connect_and_be_reset(vip(1)).await;
    assert_eq!(mesh.capture.dials.load(Ordering::SeqCst), weft_proxy::limits::CONNECT_TRIES_MAX);
    assert_eq!(mesh.metric("weft_limit_reached_total", &[("limit", "connect_tries")]), 1.0);
}

#[tokio::test]
async fn split_of_connections_follows_the_weights() {
    let (mesh, v1, v2) = (Mesh::start(), Origin::bind().await, Origin::bind().await);
    let (one, two) = (cell(&[v1.address]), cell(&[v2.address]));
    mesh.serve(vip(1), plan(AppProtocol::Tcp, split("canary", &[("v1", 75, &one), ("v2", 25, &two)])));
    let mut clients = Vec::new();
    for _ in 0..40 {
        clients.push(mesh.connect(vip(1)).await);
    }
    for (origin, share) in [(&v1, 30), (&v2, 10)] {
        for _ in 0..share {
            clients.push(origin.accept().await.stream);
        }
    }
}

#[tokio::test]
async fn destination_that_no_plan_knows_is_dialled_as_it_is() {
    let (mesh, origin) = (Mesh::start(), Origin::bind().await);
    let mut client = Wire::new(mesh.connect(origin.address).await);
    client.send("GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let mut server = origin.accept().await;
    assert_eq!(server.exactly(27).await, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", "not looked into");
}

#[tokio::test]
async fn pod_address_leads_to_that_pod() {
    let (mesh, origin) = (Mesh::start(), Origin::bind().await);
    let workload = WorkloadId::new("uid-db-0");
    let port = PodPort { target_port: origin.address.port(), protocol: AppProtocol::Tcp, headless: None };
    mesh.serve_pod(PodPlan { workload, node: None, address: origin.address.ip(), ports: Box::new([port]) });
    let mut client = Wire::new(mesh.connect(origin.address).await);
    client.send("x").await;
    assert_eq!(origin.accept().await.exactly(1).await, b"x");
}

#[tokio::test]
async fn connection_that_was_never_captured_is_reset() {
    let mesh = Mesh::start();
    if let Ok(stranger) = tokio::net::TcpStream::connect(mesh.outbound).await {
        Wire::new(stranger).reset().await;
    }
    until("the reset is counted", || mesh.metric("weft_connections_reset_total", &[]) == 1.0).await;
}
