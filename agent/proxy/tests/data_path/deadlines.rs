//! Requests whose clients say how long they wait.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use http::Request;
use weft_policy::{
    plan::AppProtocol,
    rule::{Filters, Timeouts},
};

use crate::{
    mesh::{Mesh, service, vip},
    origin::{Named, Origin},
    peers2::{Client, named2},
    rules::{filtered, web},
    wire::Wire,
};

fn call(timeout: &str) -> Request<()> {
    Request::post("http://web/a.B/C")
        .header("content-type", "application/grpc")
        .header("grpc-timeout", timeout)
        .body(())
        .unwrap()
}

fn get(deadline: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: web\r\nweft-deadline: {deadline}\r\n\r\n")
}

/// Milliseconds of a field as the mesh writes it.
fn millis(field: Option<&str>) -> u64 {
    field.unwrap().trim_end_matches('m').parse().unwrap()
}

#[tokio::test]
async fn endpoint_is_told_what_is_left() {
    let (mesh, server, server2) = (Mesh::start(), Named::start("v1").await, named2("v1").await);
    mesh.serve(vip(1), service(AppProtocol::Http1, &[server.address]));
    mesh.serve(vip(2), service(AppProtocol::Http2, &[server2.address]));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    let left = millis(client.ask(get("60000")).await.head.field("got-weft-deadline"));
    assert!((30_000..=60_000).contains(&left), "{left}");
    let client2 = Client::connect(&mesh, vip(2)).await;
    let answer = client2.ask(call("1M"), None).await;
    assert!((30_000..=60_000).contains(&millis(answer.field("got-grpc-timeout"))), "{:?}", answer.head);
    assert_eq!(answer.field("got-weft-deadline"), None, "what was not said is not told");
    // A rule that gives less.
    let timeouts = Timeouts { request: Some(Duration::from_secs(40)), backend_request: None };
    let filters = Filters { timeouts, ..Filters::default() };
    mesh.serve(vip(1), filtered(AppProtocol::Http1, &web(AppProtocol::Http1, &[server.address]), filters));
    let left = millis(client.ask(get("60000")).await.head.field("got-weft-deadline"));
    assert!(left <= 40_000, "{left}");
    // What cannot be read goes through as it is, and says nothing.
    for nonsense in ["soon", "-1", ""] {
        assert_eq!(client.ask(get(nonsense)).await.head.field("got-weft-deadline"), Some(nonsense));
    }
}

#[tokio::test]
async fn what_is_late_already_is_sent_to_nobody() {
    let (mesh, server) = (Mesh::start(), named2("v1").await);
    mesh.serve(vip(1), service(AppProtocol::Http2, &[server.address]));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    let answer = client.ask(get("0")).await;
    assert_eq!((answer.head.status(), answer.head.reason()), (504, "deadline_exceeded"));
    let client = Client::connect(&mesh, vip(1)).await;
    for timeout in ["0m", "1n"] {
        let answer = client.ask(call(timeout), None).await;
        assert_eq!((answer.field("grpc-status"), answer.reason()), (Some("4"), "deadline_exceeded"));
    }
    assert_eq!(server.requests.load(Ordering::SeqCst), 0);
    assert_eq!(mesh.metric("weft_limit_reached_total", &[("limit", "deadline")]), 3.0);
}

#[tokio::test]
async fn nobody_waits_for_longer_than_the_client() {
    let (mesh, origin) = (Mesh::start(), Origin::bind().await);
    mesh.serve(vip(1), service(AppProtocol::Http1, &[origin.address]));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    let begun = Instant::now();
    client.send(get("2000")).await;
    let mut server = origin.accept().await;
    server.head().await;
    assert_eq!(client.answer().await.head.reason(), "deadline_exceeded");
    assert!(begun.elapsed() >= Duration::from_secs(2));
    server.reset_or_end().await;
}
