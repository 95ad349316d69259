//! One request at a time: what goes through, what is refused, and how.

use std::sync::atomic::Ordering;

use weft_policy::plan::AppProtocol;

use crate::{
    mesh::{Mesh, service, vip},
    origin::{Named, Origin, refusing},
    wire::Wire,
};

#[tokio::test]
async fn request_reaches_the_service_and_its_answer_comes_back() {
    let (mesh, web) = (Mesh::start(), Named::start("v1").await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[web.address]));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    let answer = client.get("/a/b;v=1/%C3%A9?x=1&y=%00").await;
    assert_eq!((answer.head.status(), answer.text()), (200, "v1"));
    assert_eq!(
        answer.head.field("x-target"),
        Some("/a/b;v=1/%C3%A9?x=1&y=%00"),
        "a target in its canonical form goes through byte for byte"
    );
    assert_eq!(answer.head.field("got-host"), Some("web"));
    assert_eq!(answer.head.reason(), "", "not the mesh's own answer");
    for added in ["got-via", "got-x-forwarded-for", "got-connection", "got-forwarded"] {
        assert_eq!(answer.head.field(added), None, "{added}");
    }
    mesh.metric_becomes(
        "weft_requests_total",
        &[
            ("source_namespace", "shop"),
            ("source_workload", "client"),
            ("destination_service", "web"),
            ("backend", "web"),
            ("status_class", "2xx"),
        ],
        1.0,
    )
    .await;
    mesh.metric_becomes("weft_response_bytes_total", &[], 2.0).await;
}

#[tokio::test]
async fn connections_are_reused_on_both_sides() {
    let (mesh, web) = (Mesh::start(), Named::start("v1").await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[web.address]));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    for _ in 0..20 {
        assert_eq!(client.get("/").await.text(), "v1");
    }
    let mut other = Wire::new(mesh.connect(vip(1)).await);
    assert_eq!(other.get("/").await.text(), "v1");
    assert_eq!(web.connections.load(Ordering::SeqCst), 1);
    assert_eq!(web.requests.load(Ordering::SeqCst), 21);
}

#[tokio::test]
async fn head_no_content_and_not_modified_have_no_body() {
    let (mesh, origin) = (Mesh::start(), Origin::bind().await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[origin.address]));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    let mut server = None;
    let table = [
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n", 200, Some("12345")),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n", 204, None),
        ("GET", "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n", 304, None),
        ("HEAD", "HTTP/1.1 404 Not Here\r\nTransfer-Encoding: chunked\r\n\r\n", 404, None),
    ];
    for (method, response, status, length) in table {
        client.send(format!("{method} / HTTP/1.1\r\nHost: web\r\n\r\n")).await;
        let server = match &mut server {
            Some(server) => server,
            none => none.insert(origin.accept().await),
        };
        assert!(server.head().await.first.starts_with(method));
        server.send(response).await;
        let answer = client.head().await;
        assert_eq!((answer.status(), answer.field("content-length")), (status, length), "{response:?}");
    }
    assert_eq!(client.read_so_far(), b"");
}

#[tokio::test]
async fn status_line_goes_through_as_it_is() {
    let (mesh, origin) = (Mesh::start(), Origin::bind().await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[origin.address]));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    client.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
    let mut server = origin.accept().await;
    server.head().await;
    server.send("HTTP/1.1 599 Quite Odd\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(client.head().await.first, "HTTP/1.1 599 Quite Odd");
}

#[tokio::test]
async fn hop_by_hop_fields_stop_at_the_mesh_in_both_directions() {
    let (mesh, origin) = (Mesh::start(), Origin::bind().await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[origin.address]));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    client
        .send("GET / HTTP/1.1\r\nHost: web\r\nConnection: keep-alive, X-Secret\r\nX-Secret: 1\r\nKeep-Alive: timeout=5\r\nTE: gzip\r\nX-Kept: 1\r\n\r\n")
        .await;
    let mut server = origin.accept().await;
    let got = server.head().await;
    let names: Vec<_> = got.fields.keys().map(String::as_str).collect();
    assert_eq!(names, ["host", "x-kept"]);
    server
        .send("HTTP/1.1 200 OK\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nX-Kept: 1\r\nContent-Length: 0\r\n\r\n")
        .await;
    let answer = client.head().await;
    let names: Vec<_> = answer.fields.keys().map(String::as_str).collect();
    assert_eq!(names, ["content-length", "date", "x-kept"]);
}

#[tokio::test]
async fn http_1_0_clients_are_served() {
    let (mesh, web) = (Mesh::start(), Named::start("v1").await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[web.address]));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    let answer = client.ask("GET /old HTTP/1.0\r\n\r\n").await;
    assert_eq!((answer.head.status(), answer.text()), (200, "v1"));
    assert!(answer.head.first.starts_with("HTTP/1.0 "), "{}", answer.head.first);
    assert_eq!(answer.head.field("got-host"), Some(vip(1).to_string().as_str()));
    client.ended().await;
    let mut kept = Wire::new(mesh.connect(vip(1)).await);
    for _ in 0..2 {
        let answer = kept.ask("GET /old HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await;
        assert_eq!(answer.head.field("connection"), Some("keep-alive"));
    }
}

#[tokio::test]
async fn http_1_0_client_gets_a_chunked_answer_up_to_the_end() {
    let (mesh, origin) = (Mesh::start(), Origin::bind().await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[origin.address]));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    client.send("GET / HTTP/1.0\r\n\r\n").await;
    let mut server = origin.accept().await;
    server.head().await;
    server.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n").await;
    let head = client.head().await;
    assert_eq!(head.field("transfer-encoding"), None);
    assert_eq!(client.rest().await, b"abc");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let (mesh, web) = (Mesh::start(), Named::start("v1").await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[web.address]));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    let one = |path: &str, body: &str| {
        format!("POST {path} HTTP/1.1\r\nHost: web\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    client.send([one("/1", "one"), one("/2", ""), one("/3", "three")].concat()).await;
    for (path, body) in [("/1", "one"), ("/2", "v1"), ("/3", "three")] {
        let answer = client.answer().await;
        assert_eq!((answer.head.field("x-target"), answer.text()), (Some(path), body));
    }
}

#[tokio::test]
async fn malformed_requests_are_refused_with_a_reason_and_never_reach_the_server() {
    let (mesh, web) = (Mesh::start(), Named::start("v1").await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[web.address]));
    let many_fields: String = (0..101).map(|n| format!("x-{n}: 1\r\n")).collect();
    let table = [
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), 400, "host_missing"),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".to_owned(), 400, "host_invalid"),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n".to_owned(), 400, "host_invalid"),
        ("GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 400, "host_invalid"),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
            400,
            "framing_conflict",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n".to_owned(),
            400,
            "framing_conflict",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
                .to_owned(),
            501,
            "transfer_coding",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n".to_owned(),
            501,
            "transfer_coding",
        ),
        ("GET /#f HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 400, "target_invalid"),
        ("GET * HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 400, "target_invalid"),
        ("GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 400, "target_invalid"),
        ("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n".to_owned(), 501, "connect_method"),
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: host\r\n\r\n".to_owned(), 400, "connection_invalid"),
        ("GET / HTTP/1.1\r\nHost: a\r\nbad header\r\n\r\n".to_owned(), 400, "malformed_request"),
        ("GET / HTTP/1.1\r\nHost: a\r\nx : 1\r\n\r\n".to_owned(), 400, "malformed_request"),
        ("GET / HTTP/3.7\r\nHost: a\r\n\r\n".to_owned(), 400, "malformed_request"),
        (format!("GET / HTTP/1.1\r\nHost: a\r\n{many_fields}\r\n"), 431, "head_too_large"),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nx: {}\r\n\r\n", "a".repeat(70_000)), 431, "head_too_large"),
        (format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(200_000)), 431, "head_too_large"),
    ];
    for (request, status, reason) in table {
        let shown = &request[..request.len().min(80)];
        let mut client = Wire::new(mesh.connect(vip(1)).await);
        let answer = client.ask(&request).await;
        assert_eq!((answer.head.status(), answer.head.reason()), (status, reason), "{shown:?}");
        assert!(answer.text().starts_with("weft: ") && answer.text().ends_with('\n'), "{shown:?}: {:?}", answer.text());
        assert_eq!(answer.head.field("connection"), Some("close"), "{shown:?}");
        client.ended().await;
        assert!(mesh.metric("weft_local_replies_total", &[("reason", reason)]) >= 1.0, "{shown:?}");
    }
    assert_eq!(web.requests.load(Ordering::SeqCst), 0);
    assert_eq!(mesh.metric("weft_limit_reached_total", &[("limit", "head_bytes")]), 3.0);
}

#[tokio::test]
async fn a_body_that_looks_like_an_error_answer_is_only_a_body() {
    let (mesh, origin) = (Mesh::start(), Origin::bind().await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[origin.address]));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    client.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
    let mut server = origin.accept().await;
    server.head().await;
    let fake = "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
    server.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 2 * fake.len())).await;
    let head = client.head().await;
    for _ in 0..2 {
        server.send(fake).await;
        assert_eq!(client.exactly(fake.len()).await, fake.as_bytes());
    }
    assert_eq!(head.reason(), "");
}

#[tokio::test]
async fn broken_chunks_of_a_request_are_refused() {
    let (mesh, origin) = (Mesh::start(), Origin::bind().await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[origin.address]));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    let answer =
        client.ask("POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n").await;
    assert_eq!((answer.head.status(), answer.head.reason()), (400, "malformed_body"));
}

#[tokio::test]
async fn answers_of_the_mesh_say_who_and_why() {
    let mesh = Mesh::start();
    let (dead, _held) = refusing();
    mesh.serve(vip(1), service(AppProtocol::Http, &[]));
    mesh.serve(vip(2), service(AppProtocol::Http, &[dead]));
    let zero = crate::mesh::split("canary", &[("web", 0, &crate::mesh::cell(&[dead]))]);
    mesh.serve(vip(3), crate::mesh::plan(AppProtocol::Http, zero));
    let table = [
        (vip(1), "no_endpoints", "weft: no backend of TrafficSplit shop/web has a ready endpoint\n".to_owned()),
        (
            vip(2),
            "connect_failed",
            format!(
                "weft: backend shop/web of TrafficSplit shop/web cannot be reached: {dead} refused the connection\n"
            ),
        ),
        (
            vip(3),
            "split_zero",
            "weft: every backend of TrafficSplit shop/canary has weight zero or does not exist\n".to_owned(),
        ),
    ];
    for (at, reason, text) in table {
        let mut client = Wire::new(mesh.connect(at).await);
        // The client's connection is none the worse for it.
        for _ in 0..2 {
            let answer = client.get("/").await;
            assert_eq!((answer.head.status(), answer.head.reason(), answer.text()), (503, reason, text.as_str()));
        }
    }
    mesh.metric_becomes("weft_requests_total", &[("destination_service", "web"), ("status_class", "5xx")], 6.0).await;
}

#[tokio::test]
async fn broken_responses_are_told_from_ended_connections() {
    let (mesh, origin) = (Mesh::start(), Origin::bind().await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[origin.address]));
    let table = [
        ("", "upstream_reset"),
        ("HTTP/1.1 200 OK\r\nConte", "upstream_reset"),
        ("NOT HTTP\r\n\r\n", "upstream_protocol"),
        ("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "upstream_protocol"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "upstream_protocol"),
        ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "upstream_protocol"),
    ];
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    for (response, reason) in table {
        client.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
        let mut server = origin.accept().await;
        server.head().await;
        server.send(response).await;
        server.shutdown();
        let answer = client.answer().await;
        assert_eq!((answer.head.status(), answer.head.reason()), (502, reason), "{response:?}: {}", answer.text());
    }
}

#[tokio::test]
async fn response_with_two_framings_goes_on_with_one() {
    let (mesh, origin) = (Mesh::start(), Origin::bind().await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[origin.address]));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    for (response, chunked) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", true),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\nConnection: close\r\n\r\nhello", false),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello", false),
    ] {
        client.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
        let mut server = origin.accept().await;
        server.head().await;
        server.send(response).await;
        let answer = client.answer().await;
        assert_eq!(answer.text(), "hello");
        assert_eq!(answer.head.field("transfer-encoding").is_some(), chunked);
        assert_eq!(answer.head.field("content-length"), if chunked { None } else { Some("5") });
    }
}
