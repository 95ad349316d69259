//! Telling HTTP from the rest by what comes first.

use std::time::Duration;

use weft_policy::plan::AppProtocol;
use weft_proxy::config::ProxyConfig;

use crate::{
    mesh::{Mesh, service, vip},
    origin::{Named, Origin},
    wire::Wire,
};

async fn mesh_for(protocol: AppProtocol, config: &ProxyConfig) -> (Mesh, Origin) {
    let (mesh, origin) = (Mesh::with(config), Origin::bind().await);
    mesh.serve(vip(1), service(protocol, &[origin.address]));
    (mesh, origin)
}

/// So long that a test that depended on it would fail.
fn patient() -> ProxyConfig {
    ProxyConfig { detect_timeout: Duration::from_secs(600), ..ProxyConfig::default() }
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
}

#[tokio::test]
async fn what_is_not_http_1_is_carried_as_bytes() {
    for protocol in [AppProtocol::Detect, AppProtocol::Http] {
        for first in [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], b"\x16\x03\x01\x02\x00\x01", b"*1\r\n$4\r\nPING\r\n"] {
            let (mesh, origin) = mesh_for(protocol, &patient()).await;
            let mut client = Wire::new(mesh.connect(vip(1)).await);
            client.send(first).await;
            let mut server = origin.accept().await;
            assert_eq!(server.exactly(first.len()).await, first, "{protocol:?}");
            server.send("whatever").await;
            assert_eq!(client.exactly(8).await, b"whatever");
        }
    }
}

#[tokio::test]
async fn server_that_speaks_first_is_heard_after_the_wait() {
    let (mesh, origin) = mesh_for(
        AppProtocol::Detect,
        &ProxyConfig { detect_timeout: Duration::from_millis(10), ..ProxyConfig::default() },
    )
    .await;
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    let mut server = origin.accept().await;
    server.send("220 ready\r\n").await;
    assert_eq!(client.exactly(11).await, b"220 ready\r\n");
    client.send("EHLO x\r\n").await;
    assert_eq!(server.exactly(8).await, b"EHLO x\r\n");
}

#[tokio::test]
async fn beginning_of_a_method_that_never_ends_is_carried_as_bytes() {
    let (mesh, origin) = mesh_for(
        AppProtocol::Detect,
        &ProxyConfig { detect_timeout: Duration::from_millis(50), ..ProxyConfig::default() },
    )
    .await;
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    client.send("GE").await;
    let mut server = origin.accept().await;
    assert_eq!(server.exactly(2).await, b"GE");
    client.send("T").await;
    assert_eq!(server.exactly(1).await, b"T");
    server.send("ok").await;
    assert_eq!(client.exactly(2).await, b"ok");
}

#[tokio::test]
async fn client_that_says_nothing_and_leaves_is_carried_as_that() {
    let (mesh, origin) = mesh_for(AppProtocol::Detect, &patient()).await;
    let client = Wire::new(mesh.connect(vip(1)).await);
    client.shutdown();
    origin.accept().await.ended().await;
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
async fn client_that_never_asks_on_an_http_port_is_let_go() {
    let config = ProxyConfig { header_read_timeout: Duration::from_millis(20), ..ProxyConfig::default() };
    let (mesh, _origin) = mesh_for(AppProtocol::Http, &config).await;
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    client.ended().await;
    assert_eq!(mesh.metric("weft_limit_reached_total", &[("limit", "header_read_timeout")]), 1.0);
}
