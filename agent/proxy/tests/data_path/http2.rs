//! HTTP/2 end to end: requests on one connection are each other's neighbours and nothing more.

use std::{sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Version};
use weft_policy::plan::AppProtocol;
use weft_proxy::{config::ProxyConfig, flows::FlowProtocol, limits};

use crate::{
    bounds,
    mesh::{Mesh, cell, plan, service, soon, split, until, vip},
    origin::{Named, Origin, refusing},
    peers2::{self, Client, END_HEADERS, END_STREAM, Raw, Server, block, frame, get, get_frame, kind, named2, post},
    wire::Wire,
};

#[tokio::test]
async fn split_is_made_per_request_on_one_connection() {
    let (mesh, v1, v2) = (Mesh::start(), named2("v1").await, named2("v2").await);
    let (one, two) = (cell(&[v1.address]), cell(&[v2.address]));
    mesh.serve(vip(1), plan(AppProtocol::Http, split("canary", &[("v1", 90, &one), ("v2", 10, &two)])));
    let client = Client::connect(&mesh, vip(1)).await;
    let mut counts = [0, 0];
    for _ in 0..500 {
        counts[usize::from(client.get("/").await.text() == "v2")] += 1;
    }
    assert_eq!(counts, [450, 50]);
    mesh.metric_becomes("weft_requests_total", &[("backend", "v1"), ("status_class", "2xx")], 450.0).await;
    assert_eq!((v1.connections.load(Ordering::SeqCst), v2.connections.load(Ordering::SeqCst)), (1, 1));
    let row = mesh.proxy().flows(10).await.remove(0);
    assert_eq!((row.protocol, row.requests), (FlowProtocol::Http2, 500));
    assert!(row.bytes_sent > 5000 && row.bytes_received > 5000, "{row:?}");
}

#[tokio::test]
async fn many_requests_at_once_share_one_connection_and_one_dial() {
    let (mesh, web) = (Mesh::start(), named2("v1").await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[web.address]));
    let client = Client::connect(&mesh, vip(1)).await;
    let asked: Vec<_> = (0..limits::H2_STREAMS_MAX).map(|n| client.ask(post(&format!("/{n}")), Some("body"))).collect();
    for (n, answer) in futures(asked).await.into_iter().enumerate() {
        assert_eq!((answer.text(), answer.field("x-target").unwrap()), ("body", format!("http://web/{n}").as_str()));
    }
    assert_eq!((web.connections.load(Ordering::SeqCst), mesh.capture.dials.load(Ordering::SeqCst)), (1, 1));
    // Another client of the same pod shares it, too.
    assert_eq!(Client::connect(&mesh, vip(1)).await.get("/").await.text(), "v1");
    assert_eq!(web.connections.load(Ordering::SeqCst), 1);
    mesh.metric_becomes("weft_request_bytes_total", &[], 400.0).await;
}

/// All of them at once.
async fn futures<T>(each: Vec<impl Future<Output = T>>) -> Vec<T> {
    let mut each: Vec<_> = each.into_iter().map(|one| (Box::pin(one), None)).collect();
    std::future::poll_fn(|cx| {
        for (one, done) in &mut each {
            if done.is_none()
                && let std::task::Poll::Ready(outcome) = one.as_mut().poll(cx)
            {
                *done = Some(outcome);
            }
        }
        if each.iter().all(|(_, done)| done.is_some()) { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    each.into_iter().filter_map(|(_, done)| done).collect()
}

#[tokio::test]
async fn full_connection_is_joined_by_another_one() {
    let (mesh, origin) = (Mesh::start(), Origin::bind().await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[origin.address]));
    let client = Client::connect(&mesh, vip(1)).await;
    let mut pending = Vec::new();
    let (mut servers, mut calls) = (Vec::new(), Vec::new());
    for n in 0..6 {
        pending.push(client.begin(get("/"), true).await.0);
        if n % 2 == 0 {
            // A server that takes two at a time.
            let mut builder = h2::server::Builder::new();
            builder.max_concurrent_streams(2);
            servers.push(Server::over(origin.accept().await, &builder).await);
        }
        calls.push(servers.last_mut().unwrap().call().await);
    }
    assert_eq!(mesh.capture.dials.load(Ordering::SeqCst), 3);
    for (_, respond) in &mut calls {
        respond.send_response(http::Response::new(()), true).unwrap();
    }
    for mut server in servers {
        tokio::spawn(async move { while server.connection.accept().await.is_some() {} });
    }
    for response in pending {
        assert_eq!(peers2::answer(response).await.head.status, 200);
    }
}

#[tokio::test]
async fn requests_that_two_readers_could_read_differently_are_refused() {
    let (mesh, web) = (Mesh::start(), Named::start("v1").await);
    mesh.serve(vip(1), service(AppProtocol::Http1, &[web.address]));
    let (get, http, web_, root) = ((":method", "GET"), (":scheme", "http"), (":authority", "web"), (":path", "/"));
    type Case<'a> = (&'a [(&'a str, &'a str)], Result<(u16, &'a str), u32>);
    let table: [Case<'_>; 13] = [
        (&[get, http, web_, root], Ok((200, ""))),
        (&[get, http, root, ("host", "web")], Ok((200, ""))),
        (&[get, http, web_, root, ("host", "other")], Ok((400, "host_invalid"))),
        (&[get, http, root], Ok((400, "host_missing"))),
        (&[get, http, (":authority", "u@web"), root], Ok((400, "target_invalid"))),
        (&[get, (":scheme", "ftp"), web_, root], Ok((400, "target_invalid"))),
        (&[get, http, web_, root, ("x", " padded")], Ok((400, "malformed_request"))),
        (&[(":method", "CONNECT"), web_], Ok((501, "connect_method"))),
        (&[get, http, web_, (":path", "*")], Ok((400, "target_invalid"))),
        // What hyper refuses itself: PROTOCOL_ERROR.
        (&[get, http, web_, root, ("connection", "close")], Err(1)),
        (&[get, http, web_, root, ("transfer-encoding", "chunked")], Err(1)),
        (&[get, http, web_, root, ("te", "gzip")], Err(1)),
        (&[get, http, web_], Err(1)),
    ];
    for (fields, expect) in table {
        let mut client = Raw::connect(&mesh, vip(1), &[]).await;
        client.send(frame(kind::HEADERS, END_STREAM | END_HEADERS, 1, &block(fields))).await;
        let answer = loop {
            let frame = client.next().await;
            assert_ne!(frame.kind, kind::GOAWAY, "{fields:?} {:?}", frame.go_away());
            if matches!(frame.kind, kind::HEADERS | kind::RST_STREAM) {
                break frame;
            }
        };
        match expect {
            Err(code) => assert_eq!(answer.reset(), code, "{fields:?}"),
            Ok((status, reason)) => {
                assert_eq!(answer.kind, kind::HEADERS, "{fields:?}");
                // The same over crate h2's decoder is seen elsewhere; the reason's counter tells which it was.
                until(reason, || {
                    reason.is_empty() || mesh.metric("weft_local_replies_total", &[("reason", reason)]) >= 1.0
                })
                .await;
                let _ = status;
            }
        }
        // The connection is none the worse for it.
        client.send(get_frame(3)).await;
        assert_eq!(client.next_of(kind::HEADERS).await.stream, 3, "{fields:?}");
    }
    assert_eq!(mesh.metric("weft_local_replies_total", &[]), 7.0);
    // A name in capitals ends the whole connection.
    let mut client = Raw::connect(&mesh, vip(1), &[]).await;
    let fields = block(&[get, http, web_, root, ("X-Upper", "1")]);
    client.send(frame(kind::HEADERS, END_STREAM | END_HEADERS, 1, &fields)).await;
    assert_eq!(client.last_word().await.1, 1);
}

#[tokio::test]
async fn answers_of_the_mesh_say_who_and_why() {
    let mesh = Mesh::start();
    let (dead, _held) = refusing();
    mesh.serve(vip(1), service(AppProtocol::Http, &[]));
    mesh.serve(vip(2), service(AppProtocol::Http, &[dead]));
    for (at, reason) in [(vip(1), "no_endpoints"), (vip(2), "connect_failed")] {
        let client = Client::connect(&mesh, at).await;
        for _ in 0..2 {
            let answer = client.get("/").await;
            assert_eq!((answer.head.status.as_u16(), answer.reason()), (503, reason));
            assert!(answer.text().starts_with("weft: ") && answer.field("connection").is_none(), "{answer:?}");
            // Whoever asks for a head gets no body.
            let head = Request::head("http://web/").body(()).unwrap();
            let answer = client.ask(head, None).await;
            assert_eq!((answer.head.status.as_u16(), answer.reason(), answer.text()), (503, reason, ""));
        }
    }
}

#[tokio::test]
async fn server_that_does_not_speak_http2_is_named() {
    let mesh = Mesh::start();
    let origin = Origin::bind().await;
    for (said, expect) in [
        (&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], "it answers with HTTP/1"),
        (b"220 ready\r\n", "its first bytes are no SETTINGS frame"),
        (b"", "it ends the connection without a SETTINGS frame"),
    ] {
        mesh.serve(vip(2), service(AppProtocol::Http2, &[origin.address]));
        let client = Client::connect(&mesh, vip(2)).await;
        let (response, _) = client.begin(get("/"), true).await;
        let mut server = origin.accept().await;
        server.send(said).await;
        server.shutdown();
        let answer = peers2::answer(response).await;
        assert_eq!((answer.head.status.as_u16(), answer.reason()), (502, "upstream_protocol"));
        assert!(answer.text().contains(expect), "{}", answer.text());
    }
    // hyper's own server of HTTP/1 closes without a word.
    let old = Named::start("v1").await;
    mesh.serve(vip(1), service(AppProtocol::Http2, &[old.address]));
    let answer = Client::connect(&mesh, vip(1)).await.get("/").await;
    assert_eq!((answer.head.status.as_u16(), answer.reason()), (502, "upstream_protocol"));
    assert_eq!(old.requests.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn silent_server_is_not_waited_for() {
    let config = ProxyConfig { connect_timeout: Duration::from_millis(100), ..ProxyConfig::default() };
    let (mesh, origin) = (Mesh::with(&config), Origin::bind().await);
    mesh.serve(vip(1), service(AppProtocol::Http2, &[origin.address]));
    let answer = Client::connect(&mesh, vip(1)).await.get("/").await;
    assert_eq!((answer.head.status.as_u16(), answer.reason()), (502, "upstream_protocol"));
    assert!(answer.text().contains("it does not send its SETTINGS"), "{}", answer.text());
}

#[tokio::test]
async fn streams_above_the_limit_are_refused_and_counted() {
    let (mesh, origin) = (Mesh::start(), Origin::bind().await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[origin.address]));
    let mut client = Raw::connect(&mesh, vip(1), &[]).await;
    let most = limits::H2_STREAMS_MAX;
    let streams: Vec<u8> = (0..=most).flat_map(|n| get_frame(2 * n + 1)).collect();
    client.send(streams).await;
    let reset = client.next_of(kind::RST_STREAM).await;
    // REFUSED_STREAM: the client may try again.
    assert_eq!((reset.stream, reset.reset()), (2 * most + 1, 7));
    until("it is counted", || mesh.metric("weft_limit_reached_total", &[("limit", "h2_streams")]) == 1.0).await;
}

#[tokio::test]
async fn reader_that_stops_holds_the_sender_and_not_the_memory() {
    let config = ProxyConfig { h2_pool_idle_timeout: Duration::from_millis(100), ..ProxyConfig::default() };
    for protocol in [AppProtocol::Http1, AppProtocol::Http2] {
        let (mesh, origin) = (Mesh::with(&config), Origin::bind().await);
        mesh.serve(vip(1), service(protocol, &[origin.address]));
        let client = Client::connect(&mesh, vip(1)).await;
        let (response, _) = client.begin(get("/"), true).await;
        let wire = origin.accept().await;
        let total: usize = 48 << 20;
        let (taken, feeding) = if protocol == AppProtocol::Http1 {
            let mut server = wire;
            server.head().await;
            server.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {total}\r\n\r\n")).await;
            let sent = bounds::fill(&server.stream, total).await;
            let feeding = tokio::spawn(async move {
                server.send(vec![b'x'; total - sent]).await;
                drop(server);
            });
            (sent, feeding)
        } else {
            let mut server = Server::over(wire, &h2::server::Builder::new()).await;
            let (_, mut respond) = server.call().await;
            let mut stream = respond.send_response(http::Response::new(()), false).unwrap();
            stream.reserve_capacity(total);
            // What the mesh lets through is one window, and what it passed on.
            let mut sent = 0;
            while let Ok(Some(Ok(capacity))) = tokio::time::timeout(
                Duration::from_millis(300),
                server.during(std::future::poll_fn(|cx| stream.poll_capacity(cx))),
            )
            .await
            {
                stream.send_data(Bytes::from(vec![b'x'; capacity]), false).unwrap();
                sent += capacity;
                assert!(sent < total);
            }
            let feeding = tokio::spawn(async move {
                stream.send_data(Bytes::from(vec![b'x'; total - sent]), true).unwrap();
                while server.connection.accept().await.is_some() {}
            });
            (sent, feeding)
        };
        assert!(taken < 32 << 20, "{taken} bytes were taken from a sender whose receiver does not read");
        let answer = peers2::answer(response).await;
        assert_eq!(answer.body.len(), total, "{protocol:?}");
        drop(client);
        feeding.await.unwrap();
    }
}

#[tokio::test]
async fn client_that_resets_ends_the_request_upstream_at_once() {
    let (mesh, origin) = (Mesh::start(), Origin::bind().await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[origin.address]));
    let client = Client::connect(&mesh, vip(1)).await;
    // Before the response, within it, and within the request's body.
    let (response, mut stream) = client.begin(post("/"), false).await;
    let mut server = Server::over(origin.accept().await, &h2::server::Builder::new()).await;
    let (_, mut respond) = server.call().await;
    stream.send_reset(h2::Reason::CANCEL);
    let reason = server.during(std::future::poll_fn(|cx| respond.poll_reset(cx))).await.unwrap();
    assert_eq!(reason, h2::Reason::CANCEL);
    drop((response, stream));
    let (response, mut stream) = client.begin(get("/"), true).await;
    let (_, mut respond) = server.call().await;
    let mut sending = respond.send_response(http::Response::new(()), false).unwrap();
    sending.send_data(Bytes::from_static(b"abc"), false).unwrap();
    let mut body = server.during(response).await.unwrap().into_body();
    assert_eq!(server.during(peers2::part(&mut body)).await.unwrap().unwrap(), "abc");
    stream.send_reset(h2::Reason::CANCEL);
    let reason = server.during(std::future::poll_fn(|cx| sending.poll_reset(cx))).await.unwrap();
    assert_eq!(reason, h2::Reason::CANCEL);
    // The connections are both as good as new.
    let (response, _) = client.begin(get("/"), true).await;
    let (_, mut respond) = server.call().await;
    respond.send_response(http::Response::new(()), true).unwrap();
    assert_eq!(server.during(response).await.unwrap().status(), 200);
    assert_eq!(mesh.capture.dials.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn reset_of_a_response_reaches_the_client_with_its_code() {
    let (mesh, origin) = (Mesh::start(), Origin::bind().await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[origin.address]));
    let client = Client::connect(&mesh, vip(1)).await;
    let mut server: Option<Server> = None;
    // NO_ERROR within a response would look like its end.
    for (code, expect) in [
        (h2::Reason::CANCEL, h2::Reason::CANCEL),
        (h2::Reason::ENHANCE_YOUR_CALM, h2::Reason::ENHANCE_YOUR_CALM),
        (h2::Reason::NO_ERROR, h2::Reason::INTERNAL_ERROR),
    ] {
        let (response, _) = client.begin(get("/"), true).await;
        if server.is_none() {
            server = Some(Server::over(origin.accept().await, &h2::server::Builder::new()).await);
        }
        let server = server.as_mut().unwrap();
        let (_, mut respond) = server.call().await;
        let mut sending = respond.send_response(http::Response::new(()), false).unwrap();
        sending.send_data(Bytes::from_static(b"abc"), false).unwrap();
        let mut body = server.during(response).await.unwrap().into_body();
        assert_eq!(server.during(peers2::part(&mut body)).await.unwrap().unwrap(), "abc");
        sending.send_reset(code);
        let error = server.during(peers2::part(&mut body)).await.unwrap().unwrap_err();
        assert_eq!(error.reason(), Some(expect), "{code:?}");
    }
}

#[tokio::test]
async fn response_that_breaks_off_never_looks_whole() {
    let (mesh, origin) = (Mesh::start(), Origin::bind().await);
    mesh.serve(vip(1), service(AppProtocol::Http1, &[origin.address]));
    let client = Client::connect(&mesh, vip(1)).await;
    for response in [
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    ] {
        let (answer, _) = client.begin(get("/"), true).await;
        let mut server = origin.accept().await;
        server.head().await;
        server.send(response).await;
        let mut body = soon(answer).await.unwrap().into_body();
        assert_eq!(peers2::part(&mut body).await.unwrap().unwrap(), "abc");
        drop(server);
        let error = peers2::part(&mut body).await.unwrap().unwrap_err();
        assert!(error.is_reset() && error.is_remote(), "{error}");
    }
    // HTTP/1 to HTTP/2: the connection is reset.
    mesh.serve(vip(2), service(AppProtocol::Http2, &[origin.address]));
    let mut client = Wire::new(mesh.connect(vip(2)).await);
    client.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
    let mut server = Server::over(origin.accept().await, &h2::server::Builder::new()).await;
    let (_, mut respond) = server.call().await;
    let mut sending = respond.send_response(http::Response::new(()), false).unwrap();
    sending.send_data(Bytes::from_static(b"abc"), false).unwrap();
    server.during(client.head()).await;
    assert_eq!(server.during(client.chunk()).await, b"abc");
    sending.send_reset(h2::Reason::NO_ERROR);
    server.during(client.reset()).await;
}

#[tokio::test]
async fn nothing_is_left_when_everybody_has_gone() {
    let config = ProxyConfig { h2_pool_idle_timeout: Duration::from_millis(100), ..ProxyConfig::default() };
    let (mesh, web) = (Mesh::with(&config), named2("v1").await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[web.address]));
    for _ in 0..5 {
        let client = Client::connect(&mesh, vip(1)).await;
        assert_eq!(client.ask(post("/"), Some("x")).await.text(), "x");
    }
    until("no upstream connection is left", || mesh.capture.leases.load(Ordering::SeqCst) == 0).await;
    let all_gone = async {
        while !mesh.proxy().flows(10).await.is_empty() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), all_gone).await.expect("no flow is left");
}

#[tokio::test]
async fn endpoint_that_leaves_gets_no_more_requests_and_finishes_those_it_has() {
    let (mesh, origin, v2) = (Mesh::start(), Origin::bind().await, named2("v2").await);
    let web = cell(&[origin.address]);
    mesh.serve(vip(1), plan(AppProtocol::Http, split("web", &[("web", 1, &web)])));
    let client = Client::connect(&mesh, vip(1)).await;
    let (response, _) = client.begin(get("/"), true).await;
    let mut server = Server::over(origin.accept().await, &h2::server::Builder::new()).await;
    let (_, mut respond) = server.call().await;
    web.store(weft_policy::endpoints::EndpointSet {
        ready: Box::new([crate::mesh::endpoint(v2.address)]),
        ..weft_policy::endpoints::EndpointSet::default()
    });
    assert_eq!(server.during(client.get("/")).await.text(), "v2");
    for _ in 0..2 {
        server.during(mesh.ticked()).await;
    }
    respond.send_response(http::Response::new(()), true).unwrap();
    assert_eq!(server.during(response).await.unwrap().status(), 200);
    // And then its connection ends.
    assert!(soon(server.connection.accept()).await.is_none());
}

#[tokio::test]
async fn head_and_options_of_everything_go_through() {
    let (mesh, web) = (Mesh::start(), named2("v1").await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[web.address]));
    let client = Client::connect(&mesh, vip(1)).await;
    let head = Request::builder().method(Method::HEAD).version(Version::HTTP_2).uri("http://web/").body(()).unwrap();
    let answer = client.ask(head, None).await;
    assert_eq!((answer.head.status.as_u16(), answer.text(), answer.field("content-length")), (200, "", Some("2")));
}
