//! What is bounded, and what happens at the bound.

use std::{io, time::Duration};

use tokio::net::TcpStream;
use weft_policy::plan::AppProtocol;
use weft_proxy::config::ProxyConfig;

use crate::{
    mesh::{Mesh, service, soon, until, vip},
    origin::{Named, Origin},
    wire::Wire,
};

/// How long a full pipe must stay full before it counts as full: buffers between the ends move on in the meantime.
const SETTLED: Duration = Duration::from_millis(300);

/// Writes until nothing more is taken, or `most` bytes; returns how many were taken.
pub(crate) async fn fill(stream: &TcpStream, most: usize) -> usize {
    let chunk = vec![b'x'; 256 << 10];
    let mut sent = 0;
    while sent < most {
        match stream.try_write(&chunk[..chunk.len().min(most - sent)]) {
            Ok(count) => sent += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if tokio::time::timeout(SETTLED, stream.writable()).await.is_err() {
                    break;
                }
            }
            Err(error) => panic!("{error}"),
        }
        assert!(sent < 1 << 30, "nothing holds the sender");
    }
    sent
}

/// Reads so many bytes.
pub(crate) async fn read(stream: &TcpStream, count: usize) -> usize {
    let mut buffer = vec![0; 1 << 20];
    let mut read = 0;
    while read < count {
        soon(stream.readable()).await.unwrap();
        match stream.try_read(&mut buffer) {
            Ok(0) => break,
            Ok(size) => read += size,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => panic!("{error}"),
        }
    }
    read
}

#[tokio::test]
async fn connections_above_the_bound_wait_in_the_queue() {
    let config = ProxyConfig { downstream_connections_max: 2, ..ProxyConfig::default() };
    let (mesh, web) = (Mesh::with(&config), Named::start("v1").await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[web.address]));
    let mut first = Wire::new(mesh.connect(vip(1)).await);
    let mut second = Wire::new(mesh.connect(vip(1)).await);
    assert_eq!(first.get("/").await.text(), "v1");
    assert_eq!(second.get("/").await.text(), "v1");
    let mut third = Wire::new(mesh.connect(vip(1)).await);
    third.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
    until("the bound is counted", || {
        mesh.metric("weft_limit_reached_total", &[("limit", "downstream_connections")]) >= 1.0
    })
    .await;
    assert_eq!(mesh.proxy().flows(10).await.len(), 2);
    drop(first);
    assert_eq!(third.answer().await.text(), "v1");
}

#[tokio::test]
async fn dials_above_the_bound_wait_and_then_fail_with_a_reason() {
    let config = ProxyConfig { dials_max: 0, connect_timeout: Duration::from_millis(50), ..ProxyConfig::default() };
    let (mesh, web) = (Mesh::with(&config), Named::start("v1").await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[web.address]));
    let answer = Wire::new(mesh.connect(vip(1)).await).get("/").await;
    assert_eq!((answer.head.status(), answer.head.reason()), (503, "dials_exhausted"));
    assert_eq!(mesh.metric("weft_limit_reached_total", &[("limit", "dials")]), 1.0);
}

#[tokio::test]
async fn endpoint_that_does_not_answer_is_passed_over_after_the_connect_timeout() {
    let config = ProxyConfig { connect_timeout: Duration::from_millis(200), ..ProxyConfig::default() };
    let (mesh, web) = (Mesh::with(&config), Named::start("v1").await);
    // A listener whose queue is full drops what more comes.
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    full.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    full.listen(0).unwrap();
    let silent = full.local_addr().unwrap().as_socket().unwrap();
    let mut queued = Vec::new();
    while let Ok(stream) = std::net::TcpStream::connect_timeout(&silent, Duration::from_millis(200)) {
        queued.push(stream);
        assert!(queued.len() < 64);
    }
    mesh.serve(vip(1), service(AppProtocol::Http, &[silent, web.address]));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    for _ in 0..4 {
        assert_eq!(client.get("/").await.text(), "v1");
    }
    assert!(mesh.metric("weft_dials_total", &[("result", "timed_out")]) >= 1.0);
}

#[tokio::test]
async fn slow_head_is_ended_with_a_reason() {
    let header_read_timeout = Duration::from_millis(20);
    let config = ProxyConfig { workers: Some(1), header_read_timeout, ..ProxyConfig::default() };
    let (mesh, web) = (Mesh::with(&config), Named::start("v1").await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[web.address]));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    assert_eq!(client.get("/").await.text(), "v1");
    // Idle is no reason; half a head is. Whoever takes too long is found by the sweep of a tick, so two must have gone by.
    for _ in 0..2 {
        mesh.ticked().await;
    }
    assert_eq!(client.get("/").await.text(), "v1");
    let answer = client.ask("GET / HTTP/1.1\r\nHo").await;
    assert_eq!((answer.head.status(), answer.head.reason()), (408, "head_timeout"));
    client.ended().await;
}

#[tokio::test]
async fn idle_client_is_let_go_after_a_long_while() {
    let config = ProxyConfig { downstream_idle_timeout: Duration::from_millis(20), ..ProxyConfig::default() };
    let (mesh, web) = (Mesh::with(&config), Named::start("v1").await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[web.address]));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    assert_eq!(client.get("/").await.text(), "v1");
    client.ended().await;
    assert_eq!(mesh.metric("weft_limit_reached_total", &[("limit", "downstream_idle_timeout")]), 1.0);
}

#[tokio::test]
async fn unused_upstream_connections_are_few_and_short_lived() {
    let config = ProxyConfig {
        pool_idle_per_key_max: 1,
        pool_idle_timeout: Duration::from_millis(100),
        ..ProxyConfig::default()
    };
    let (mesh, origin) = (Mesh::with(&config), Origin::bind().await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[origin.address]));
    let (mut clients, mut servers) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let mut client = Wire::new(mesh.connect(vip(1)).await);
        client.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
        let mut server = origin.accept().await;
        server.head().await;
        clients.push(client);
        servers.push(server);
    }
    for (client, server) in clients.iter_mut().zip(&mut servers) {
        server.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        client.answer().await;
    }
    // The second does not fit, the first is not used again.
    for server in &mut servers {
        server.ended().await;
    }
    assert_eq!(mesh.metric("weft_limit_reached_total", &[("limit", "pool_idle_per_key")]), 1.0);
}

#[tokio::test]
async fn rows_of_flows_are_bounded() {
    let (mesh, web) = (Mesh::start(), Named::start("v1").await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[web.address]));
    let mut clients = Vec::new();
    for _ in 0..5 {
        let mut client = Wire::new(mesh.connect(vip(1)).await);
        client.get("/").await;
        clients.push(client);
    }
    assert_eq!(mesh.proxy().flows(3).await.len(), 3);
    assert_eq!(mesh.metric("weft_limit_reached_total", &[("limit", "flow_rows")]), 1.0);
    assert_eq!(mesh.proxy().flows(5).await.len(), 5);
}
