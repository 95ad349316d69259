//! Between HTTP/1.1 and HTTP/2, where client and server differ.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use weft_policy::plan::AppProtocol;

use crate::{
    mesh::{Mesh, service, soon, vip},
    origin::Origin,
    peers2::{self, Client, Server, get, post},
    wire::Wire,
};

/// A client of HTTP/1.1 and a server of HTTP/2.
async fn one_to_two() -> (Mesh, Wire, Origin) {
    let (mesh, origin) = (Mesh::start(), Origin::bind().await);
    mesh.serve(vip(1), service(AppProtocol::Http2, &[origin.address]));
    let client = Wire::new(mesh.connect(vip(1)).await);
    (mesh, client, origin)
}

/// A client of HTTP/2 and a server of HTTP/1.1.
async fn two_to_one() -> (Mesh, Client, Origin) {
    let (mesh, origin) = (Mesh::start(), Origin::bind().await);
    mesh.serve(vip(1), service(AppProtocol::Http1, &[origin.address]));
    let client = Client::connect(&mesh, vip(1)).await;
    (mesh, client, origin)
}

#[tokio::test]
async fn heads_of_http1_become_heads_of_http2() {
    let (_mesh, mut client, origin) = one_to_two().await;
    type Case<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], &'a [&'a str]);
    let table: [Case<'_>; 6] = [
        ("GET /a?b=c HTTP/1.1\r\nHost: web:8080\r\nX: 1\r\n", "http://web:8080/a?b=c", &[("x", "1")], &["host"]),
        ("GET http://web/a HTTP/1.1\r\nHost: web\r\n", "http://web/a", &[], &["host"]),
        (
            "GET / HTTP/1.1\r\nHost: web\r\nConnection: keep-alive, x-hop\r\nKeep-Alive: 5\r\nX-Hop: 1\r\nProxy-Connection: x\r\n",
            "http://web/",
            &[],
            &["connection", "keep-alive", "x-hop", "proxy-connection"],
        ),
        (
            "GET / HTTP/1.1\r\nHost: web\r\nTE: trailers, gzip\r\nConnection: te\r\n",
            "http://web/",
            &[("te", "trailers")],
            &["connection"],
        ),
        ("GET / HTTP/1.1\r\nHost: web\r\nTE: gzip\r\n", "http://web/", &[], &["te"]),
        (
            "GET / HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n",
            "http://web/",
            &[],
            &["upgrade", "connection"],
        ),
    ];
    let mut server: Option<Server> = None;
    for (head, target, there, gone) in table {
        client.send(format!("{head}\r\n")).await;
        if server.is_none() {
            server = Some(Server::over(origin.accept().await, &h2::server::Builder::new()).await);
        }
        let server = server.as_mut().unwrap();
        let (request, mut respond) = server.call().await;
        assert_eq!(request.uri().to_string(), target, "{head}");
        for (name, value) in there {
            assert_eq!(request.headers()[*name], *value, "{head}");
        }
        for name in gone {
            assert!(!request.headers().contains_key(*name), "{head}: {name}");
        }
        assert!(request.body().is_end_stream(), "{head}");
        let response = Response::builder().status(201).header("x", "1").body(()).unwrap();
        respond.send_response(response, true).unwrap();
        let answer = server.during(client.answer()).await;
        assert_eq!((answer.head.first.as_str(), answer.head.field("x")), ("HTTP/1.1 201 Created", Some("1")));
        assert_eq!(answer.head.field("content-length"), Some("0"));
    }
}

#[tokio::test]
async fn heads_of_http2_become_heads_of_http1() {
    let (_mesh, client, origin) = two_to_one().await;
    let request = Request::get("http://web:8080/a?b=c")
        .header("te", "trailers")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("x", "1")
        .header("x", "2")
        .body(())
        .unwrap();
    let (response, _) = client.begin(request, true).await;
    let mut server = origin.accept().await;
    let head = server.head().await;
    assert_eq!((head.first.as_str(), head.field("host")), ("GET /a?b=c HTTP/1.1", Some("web:8080")));
    assert_eq!((head.field("te"), head.field("connection")), (Some("trailers"), Some("te")));
    // RFC 9113 8.2.3.
    assert_eq!(head.fields["cookie"], ["a=1; b=2"]);
    assert_eq!(head.fields["x"], ["1", "2"]);
    assert!(!head.fields.contains_key("transfer-encoding") && !head.fields.contains_key("content-length"));
    server
        .send("HTTP/1.1 200 Fine\r\nConnection: keep-alive, x-hop\r\nKeep-Alive: 5\r\nX-Hop: 1\r\nContent-Length: 2\r\nX: 1\r\n\r\nok")
        .await;
    let answer = peers2::answer(response).await;
    assert_eq!((answer.text(), answer.field("x"), answer.field("content-length")), ("ok", Some("1"), Some("2")));
    for gone in ["connection", "keep-alive", "x-hop", "transfer-encoding"] {
        assert_eq!(answer.field(gone), None);
    }
}

#[tokio::test]
async fn bodies_keep_their_length_and_their_trailers() {
    let (_mesh, mut client, origin) = one_to_two().await;
    client.send("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\n\r\nhello").await;
    let mut server = Server::over(origin.accept().await, &h2::server::Builder::new()).await;
    let (request, mut respond) = server.call().await;
    assert_eq!(request.headers()["content-length"], "5");
    let mut body = request.into_body();
    assert_eq!(server.during(peers2::read(&mut body)).await.unwrap(), b"hello");
    let mut stream =
        respond.send_response(Response::builder().header("content-length", "2").body(()).unwrap(), false).unwrap();
    stream.send_data(Bytes::from_static(b"ok"), true).unwrap();
    let answer = server.during(client.answer()).await;
    assert_eq!((answer.text(), answer.head.field("content-length")), ("ok", Some("2")));
    // In pieces, with trailers both ways.
    client.send("POST / HTTP/1.1\r\nHost: web\r\nTE: trailers\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 1\r\nHost: evil\r\n\r\n").await;
    let (request, mut respond) = server.call().await;
    let mut body = request.into_body();
    assert_eq!(server.during(peers2::read(&mut body)).await.unwrap(), b"abc");
    let trailers = server.during(body.trailers()).await.unwrap().unwrap();
    assert_eq!((&trailers["x-sum"], trailers.contains_key("host")), (&HeaderValue::from_static("1"), false));
    let response = Response::builder().header("trailer", "x-sum").body(()).unwrap();
    let mut stream = respond.send_response(response, false).unwrap();
    stream.send_data(Bytes::from_static(b"ABC"), false).unwrap();
    stream.send_trailers(HeaderMap::from_iter([("x-sum".parse().unwrap(), HeaderValue::from_static("2"))])).unwrap();
    let answer = server.during(client.answer()).await;
    assert_eq!((answer.text(), &answer.trailers["x-sum"][..]), ("ABC", &["2".to_owned()][..]));
}

#[tokio::test]
async fn bodies_of_http2_are_chunked_unless_their_length_is_known() {
    let (_mesh, client, origin) = two_to_one().await;
    let (response, mut stream) = client.begin(post("/"), false).await;
    let mut server = origin.accept().await;
    assert_eq!(server.head().await.field("transfer-encoding"), Some("chunked"));
    stream.send_data(Bytes::from_static(b"abc"), false).unwrap();
    assert_eq!(server.chunk().await, b"abc");
    stream.send_data(Bytes::from_static(b"def"), true).unwrap();
    assert_eq!(server.chunk().await, b"def");
    assert_eq!(server.chunk().await, b"");
    server.trailers().await;
    server
        .send("HTTP/1.1 200 OK\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nABC\r\n0\r\nX-Sum: 2\r\nContent-Length: 9\r\n\r\n")
        .await;
    let answer = peers2::answer(response).await;
    let trailers = answer.trailers.as_ref().unwrap();
    assert_eq!((answer.text(), &trailers["x-sum"], trailers.len()), ("ABC", &HeaderValue::from_static("2"), 1));
    let sized = Request::post("http://web/").header("content-length", "5").body(()).unwrap();
    let (response, mut stream) = client.begin(sized, false).await;
    let head = server.head().await;
    assert_eq!((head.field("content-length"), head.field("transfer-encoding")), (Some("5"), None));
    stream.send_data(Bytes::from_static(b"hello"), true).unwrap();
    assert_eq!(server.exactly(5).await, b"hello");
    server.send("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(peers2::answer(response).await.head.status, 204);
    // A body that is not as long as it says ends the request, and never looks whole.
    let short = Request::post("http://web/").header("content-length", "5").body(()).unwrap();
    let (response, mut stream) = client.begin(short, false).await;
    server.head().await;
    stream.send_data(Bytes::from_static(b"hel"), true).unwrap();
    server.reset_or_end().await;
    assert!(soon(response).await.is_err());
}

#[tokio::test]
async fn responses_without_bodies_have_none_in_either_version() {
    let (_mesh, client, origin) = two_to_one().await;
    let mut wire: Option<Wire> = None;
    for (method, response, length) in [
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", Some("5")),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n", None),
        ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", Some("5")),
    ] {
        let request = Request::builder().method(method).uri("http://web/").body(()).unwrap();
        let (answer, _) = client.begin(request, true).await;
        if wire.is_none() {
            wire = Some(origin.accept().await);
        }
        let server = wire.as_mut().unwrap();
        server.head().await;
        server.send(response).await;
        let answer = soon(answer).await.unwrap();
        assert!(answer.body().is_end_stream(), "{response:?}");
        assert_eq!(answer.headers().get("content-length").map(|value| value.to_str().unwrap()), length, "{response:?}");
    }
    let (_mesh, mut client, origin) = one_to_two().await;
    let mut server: Option<Server> = None;
    for (method, status, length) in [("HEAD", 200, Some("5")), ("GET", 204, None), ("GET", 304, None)] {
        client.send(format!("{method} / HTTP/1.1\r\nHost: web\r\n\r\n")).await;
        if server.is_none() {
            server = Some(Server::over(origin.accept().await, &h2::server::Builder::new()).await);
        }
        let server = server.as_mut().unwrap();
        let (_, mut respond) = server.call().await;
        let mut response = Response::builder().status(status);
        // hyper leaves it away from a 304, where it is optional (RFC 9110 15.4.5).
        if let Some(length) = length.or((status == 304).then_some("5")) {
            response = response.header("content-length", length);
        }
        respond.send_response(response.body(()).unwrap(), true).unwrap();
        let head = server.during(client.head()).await;
        assert_eq!((head.status(), head.field("content-length")), (status, length), "{method} {status}");
        assert_eq!(head.field("transfer-encoding"), None, "{method} {status}");
        assert!(client.read_so_far().is_empty());
    }
}

#[tokio::test]
async fn what_cannot_be_translated_is_refused_by_name() {
    let (mesh, mut client, origin) = one_to_two().await;
    for (request, status, reason) in [
        ("GET / HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 501, "upgrade_over_http2"),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", 400, "host_invalid"),
    ] {
        let answer = client.ask(request).await;
        assert_eq!((answer.head.status(), answer.head.reason()), (status, reason), "{}", answer.text());
    }
    assert_eq!(mesh.capture.dials.load(std::sync::atomic::Ordering::SeqCst), 0);
    drop(origin);
    let (_mesh, client, origin) = two_to_one().await;
    let (response, _) = client.begin(get("/"), true).await;
    let mut server = origin.accept().await;
    server.head().await;
    server.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n").await;
    let answer = peers2::answer(response).await;
    assert_eq!((answer.head.status.as_u16(), answer.reason()), (502, "upstream_protocol"));
}

#[tokio::test]
async fn expectations_hold_nothing_up() {
    let (_mesh, mut client, origin) = one_to_two().await;
    client.send("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n").await;
    let mut server = Server::over(origin.accept().await, &h2::server::Builder::new()).await;
    let (request, mut respond) = server.call().await;
    assert_eq!(server.during(client.head()).await.status(), 100);
    client.send("hello").await;
    let mut body = request.into_body();
    assert_eq!(server.during(peers2::read(&mut body)).await.unwrap(), b"hello");
    respond.send_response(Response::new(()), true).unwrap();
    assert_eq!(server.during(client.answer()).await.head.status(), 200);
    // The other way round the server says when.
    let (_mesh, client, origin) = two_to_one().await;
    let request =
        Request::post("http://web/").header("content-length", "5").header("expect", "100-continue").body(()).unwrap();
    let (response, mut stream) = client.begin(request, false).await;
    stream.send_data(Bytes::from_static(b"hello"), true).unwrap();
    let mut server = origin.accept().await;
    assert_eq!(server.head().await.field("expect"), Some("100-continue"));
    server.send("HTTP/1.1 100 Continue\r\n\r\n").await;
    assert_eq!(server.exactly(5).await, b"hello");
    server.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(peers2::answer(response).await.head.status, 200);
}
