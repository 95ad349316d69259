//! Bodies while they are under way: nothing is held back, nothing grows, nothing that broke looks whole.

use std::time::Duration;

use weft_policy::plan::AppProtocol;
use weft_proxy::config::ProxyConfig;

use crate::{
    mesh::{Mesh, service, vip},
    origin::Origin,
    wire::Wire,
};

async fn pair() -> (Mesh, Origin, Wire) {
    with(&ProxyConfig::default()).await
}

async fn with(config: &ProxyConfig) -> (Mesh, Origin, Wire) {
    let (mesh, origin) = (Mesh::with(config), Origin::bind().await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[origin.address]));
    let client = Wire::new(mesh.connect(vip(1)).await);
    (mesh, origin, client)
}

#[tokio::test]
async fn response_chunks_arrive_before_the_next_is_sent() {
    let (_mesh, origin, mut client) = pair().await;
    client.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
    let mut server = origin.accept().await;
    server.head().await;
    server.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    assert_eq!(client.head().await.field("transfer-encoding"), Some("chunked"));
    for n in 0..5 {
        let text = format!("event {n}\n");
        server.send(format!("{:x}\r\n{text}\r\n", text.len())).await;
        assert_eq!(client.chunk().await, text.as_bytes());
    }
    server.send("0\r\n\r\n").await;
    assert_eq!(client.chunk().await, b"");
}

#[tokio::test]
async fn request_chunks_arrive_before_the_next_is_sent() {
    let (_mesh, origin, mut client) = pair().await;
    client.send("POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    let mut server = origin.accept().await;
    assert_eq!(server.head().await.field("transfer-encoding"), Some("chunked"));
    for n in 0..5 {
        let text = format!("part {n}\n");
        client.send(format!("{:x}\r\n{text}\r\n", text.len())).await;
        assert_eq!(server.chunk().await, text.as_bytes());
    }
    client.send("0\r\n\r\n").await;
    assert_eq!(server.chunk().await, b"");
    server.trailers().await;
    server.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(client.answer().await.head.status(), 200);
}

#[tokio::test]
async fn request_and_response_may_flow_at_the_same_time() {
    let (_mesh, origin, mut client) = pair().await;
    client.send("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 6\r\n\r\nabc").await;
    let mut server = origin.accept().await;
    server.head().await;
    assert_eq!(server.exactly(3).await, b"abc");
    server.send("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nABC").await;
    client.head().await;
    assert_eq!(client.exactly(3).await, b"ABC");
    client.send("def").await;
    assert_eq!(server.exactly(3).await, b"def");
    server.send("DEF").await;
    assert_eq!(client.exactly(3).await, b"DEF");
    // Both sides are as good as new.
    client.send("GET /next HTTP/1.1\r\nHost: web\r\n\r\n").await;
    assert_eq!(server.head().await.first, "GET /next HTTP/1.1");
}

#[tokio::test]
async fn get_with_a_chunked_body_keeps_it() {
    let (_mesh, origin, mut client) = pair().await;
    client.send("GET / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n").await;
    let mut server = origin.accept().await;
    server.head().await;
    assert_eq!(server.chunk().await, b"abc");
}

#[tokio::test]
async fn trailers_go_through_in_both_directions() {
    let (_mesh, origin, mut client) = pair().await;
    let request = "POST / HTTP/1.1\r\nHost: web\r\nTE: trailers\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n";
    client.send(request).await;
    let mut server = origin.accept().await;
    let head = server.head().await;
    assert_eq!(
        (head.field("te"), head.field("connection"), head.field("trailer")),
        (Some("trailers"), Some("te"), Some("x-sum"))
    );
    assert_eq!(server.chunk().await, b"abc");
    assert_eq!(server.chunk().await, b"");
    assert_eq!(server.trailers().await["x-sum"], ["1"]);
    server
        .send(
            "HTTP/1.1 200 OK\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nABC\r\n0\r\nx-sum: 2\r\n\r\n",
        )
        .await;
    let answer = client.answer().await;
    assert_eq!((answer.text(), &answer.trailers["x-sum"][..]), ("ABC", &["2".to_owned()][..]));
}

#[tokio::test]
async fn body_waits_until_the_server_says_continue() {
    let (mesh, origin, mut client) =
        with(&ProxyConfig { continue_timeout: Duration::from_secs(600), ..ProxyConfig::default() }).await;
    client.send("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n").await;
    let mut server = origin.accept().await;
    assert_eq!(server.head().await.field("expect"), Some("100-continue"));
    server.send("HTTP/1.1 100 Continue\r\n\r\n").await;
    assert_eq!(client.head().await.first, "HTTP/1.1 100 Continue");
    client.send("hello").await;
    assert_eq!(server.exactly(5).await, b"hello");
    server.send("HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n").await;
    let answer = client.answer().await;
    assert_eq!((answer.head.status(), answer.head.field("connection")), (201, None));
    // And once more on the same two connections.
    client.send("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n").await;
    server.head().await;
    server.send("HTTP/1.1 100 Continue\r\n\r\n").await;
    assert_eq!(client.head().await.status(), 100);
    assert_eq!(mesh.metric("weft_limit_reached_total", &[("limit", "continue_timeout")]), 0.0);
}

#[tokio::test]
async fn refused_body_is_never_asked_for() {
    let (_mesh, origin, mut client) =
        with(&ProxyConfig { continue_timeout: Duration::from_secs(600), ..ProxyConfig::default() }).await;
    client.send("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n").await;
    let mut server = origin.accept().await;
    server.head().await;
    server.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nno\n").await;
    let answer = client.answer().await;
    assert_eq!((answer.head.status(), answer.text(), answer.head.field("connection")), (413, "no\n", Some("close")));
    client.ended().await;
    // The server's connection cannot be used again either: it may still wait for the body.
    assert!(server.stream.readable().await.is_ok());
    server.reset_or_end().await;
}

#[tokio::test]
async fn silent_server_gets_the_body_after_a_while() {
    let (mesh, origin, mut client) =
        with(&ProxyConfig { continue_timeout: Duration::from_millis(20), ..ProxyConfig::default() }).await;
    client.send("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n").await;
    let mut server = origin.accept().await;
    server.head().await;
    assert_eq!(client.head().await.status(), 100);
    client.send("hello").await;
    assert_eq!(server.exactly(5).await, b"hello");
    assert_eq!(mesh.metric("weft_limit_reached_total", &[("limit", "continue_timeout")]), 1.0);
}

#[tokio::test]
async fn client_that_does_not_wait_for_continue_is_served() {
    let (_mesh, origin, mut client) = pair().await;
    client.send("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello").await;
    let mut server = origin.accept().await;
    server.head().await;
    server.send("HTTP/1.1 100 Continue\r\n\r\n").await;
    assert_eq!(server.exactly(5).await, b"hello");
    server.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let head = client.head().await;
    let last = if head.status() == 100 { client.head().await } else { head };
    assert_eq!(last.status(), 200);
}

#[tokio::test]
async fn response_that_breaks_off_never_looks_whole() {
    for response in [
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    ] {
        for request in ["GET / HTTP/1.1\r\nHost: web\r\n\r\n", "GET / HTTP/1.0\r\n\r\n"] {
            let (mesh, origin, mut client) = pair().await;
            client.send(request).await;
            let mut server = origin.accept().await;
            server.head().await;
            server.send(response).await;
            client.head().await;
            while !client.read_so_far().windows(3).any(|window| window == b"abc") {
                assert!(client.more().await);
            }
            drop(server);
            client.reset().await;
            assert_eq!(mesh.metric("weft_connections_reset_total", &[]), 1.0, "{response:?} {request:?}");
        }
    }
}

#[tokio::test]
async fn server_that_is_killed_in_the_middle_never_looks_whole() {
    let (_mesh, origin, mut client) = pair().await;
    client.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
    let mut server = origin.accept().await;
    server.head().await;
    // Close-delimited: only a reset tells that it is not all.
    server.send("HTTP/1.1 200 OK\r\n\r\nabc").await;
    client.head().await;
    assert_eq!(client.chunk().await, b"abc");
    server.kill();
    client.reset().await;
}

#[tokio::test]
async fn client_that_goes_away_ends_the_request_upstream() {
    let (mesh, origin, mut client) = pair().await;
    client.send("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 10\r\n\r\nabc").await;
    let mut server = origin.accept().await;
    server.head().await;
    assert_eq!(server.exactly(3).await, b"abc");
    client.kill();
    server.reset_or_end().await;
    mesh.metric_becomes("weft_requests_total", &[("status_class", "canceled")], 1.0).await;
}

#[tokio::test]
async fn half_closed_client_gets_its_answer() {
    let (_mesh, origin, mut client) = pair().await;
    client.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
    client.shutdown();
    let mut server = origin.accept().await;
    server.head().await;
    server.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").await;
    assert_eq!(client.answer().await.text(), "hello");
    client.ended().await;
}

#[tokio::test]
async fn half_closed_client_does_not_wait_for_ever() {
    let (mesh, origin, mut client) =
        with(&ProxyConfig { half_closed_grace: Duration::from_millis(10), ..ProxyConfig::default() }).await;
    client.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
    let mut server = origin.accept().await;
    server.head().await;
    client.shutdown();
    client.reset().await;
    server.reset_or_end().await;
    assert_eq!(mesh.metric("weft_limit_reached_total", &[("limit", "half_closed_grace")]), 1.0);
}

#[tokio::test]
async fn reader_that_stops_holds_the_sender_and_not_the_memory() {
    let (mesh, origin, mut client) = pair().await;
    client.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
    let mut server = origin.accept().await;
    server.head().await;
    let total: usize = 256 << 20;
    server.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {total}\r\n\r\n")).await;
    client.head().await;
    let sent = crate::bounds::fill(&server.stream, total).await;
    // What the kernel's four buffers hold is not the mesh's; what the mesh holds is a few buffers of 64 KiB.
    assert!(sent < 64 << 20, "{sent} bytes were taken from a sender whose receiver does not read");
    let left = total - sent;
    let feeding = tokio::spawn(async move {
        let chunk = vec![b'x'; 1 << 20];
        let mut left = left;
        while left > 0 {
            let size = left.min(chunk.len());
            server.send(&chunk[..size]).await;
            left -= size;
        }
        server
    });
    let mut read = client.read_so_far().len();
    let mut buffer = vec![0; 1 << 20];
    while read < total {
        let count = crate::mesh::soon(tokio::io::AsyncReadExt::read(&mut client.stream, &mut buffer)).await.unwrap();
        assert!(count > 0);
        read += count;
    }
    assert_eq!(read, total);
    feeding.await.unwrap();
    mesh.metric_becomes("weft_response_bytes_total", &[], total as f64).await;
}
