//! What becomes of requests that two parsers can read in two ways, byte for byte on both sides: refused with a reason, or forwarded in
//! one form. The tables hold what hyper and crate `h2` refuse by themselves and what they let through, so that a new version of either
//! shows here (docs/decisions/0010).

use std::sync::{Arc, Mutex};

use tokio::io::AsyncWriteExt;
use weft_policy::plan::AppProtocol;

use crate::{
    mesh::{Mesh, service, soon, until, vip},
    origin::Origin,
    peers2::{END_HEADERS, END_STREAM, Raw, block, frame, get_frame, kind},
    raw::{Reader, Seen},
    wire::Wire,
};

/// A server that notes the first line, `Host`, and body of whatever reaches it, and answers.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<String>>>);

impl Recorder {
    async fn start(mesh: &Mesh, protocol: AppProtocol) -> Self {
        let (origin, recorder) = (Origin::bind().await, Self::default());
        mesh.serve(vip(1), service(protocol, &[origin.address]));
        let running = recorder.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = origin.listener.accept().await {
                let recorder = running.clone();
                tokio::spawn(async move {
                    let mut reader = Reader::new(stream);
                    while let Seen::Whole(request) = reader.request().await {
                        let host = request.field("host").unwrap_or("-").to_owned();
                        recorder.0.lock().unwrap().push(format!("{} {host} {:?}", request.first, request.text()));
                        reader.stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.ok();
                    }
                });
            }
        });
        recorder
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

/// What a table says of a case.
enum Expect<'a> {
    /// These reach the server, each as its first line, host and body.
    Passes(&'a [&'a str]),
    /// Status and reason of the answer. Nothing reaches the server.
    Refused(u16, &'a str),
}
use Expect::{Passes, Refused};

/// A request that is only told from the one before by its framing.
const BEHIND: &str = "GET /behind HTTP/1.1\r\nHost: web\r\n\r\n";

#[tokio::test]
async fn requests_of_http1_reach_the_server_in_one_reading_or_not_at_all() {
    let mesh = Mesh::start();
    let server = Recorder::start(&mesh, AppProtocol::Http).await;
    let behind = "GET /behind HTTP/1.1 web \"\"";
    let table: &[(&str, Expect<'_>)] = &[
        // What hyper refuses by itself.
        (
            "POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
            Refused(400, "malformed_request"),
        ),
        (
            "POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
            Refused(400, "malformed_request"),
        ),
        (
            "POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
            Refused(400, "malformed_request"),
        ),
        (
            "POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
            Refused(400, "malformed_request"),
        ),
        (
            "POST / HTTP/1.0\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            Refused(400, "malformed_request"),
        ),
        ("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: +4\r\n\r\nabcd", Refused(400, "malformed_request")),
        ("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 4, 4\r\n\r\nabcd", Refused(400, "malformed_request")),
        (
            "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd",
            Refused(400, "malformed_request"),
        ),
        ("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 0x4\r\n\r\nabcd", Refused(400, "malformed_request")),
        ("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: -1\r\n\r\n", Refused(400, "malformed_request")),
        (
            "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 18446744073709551617\r\n\r\na",
            Refused(400, "malformed_request"),
        ),
        ("GET / HTTP/1.1\r\nHost: web\r\nX: a\rb\r\n\r\n", Refused(400, "malformed_request")),
        ("GET / HTTP/1.1\r\nHost: web\r\nX: a\0b\r\n\r\n", Refused(400, "malformed_request")),
        ("GET / HTTP/1.1\r\nHost: web\r\nX: a\r\n b\r\n\r\n", Refused(400, "malformed_request")),
        ("GET / HTTP/1.1\r\n Host: web\r\n\r\n", Refused(400, "malformed_request")),
        ("GET / HTTP/1.1\r\nHost: web\r\nX y: a\r\n\r\n", Refused(400, "malformed_request")),
        ("GET / HTTP/1.1\r\nHost: web\r\n: a\r\n\r\n", Refused(400, "malformed_request")),
        ("GET  / HTTP/1.1\r\nHost: web\r\n\r\n", Refused(400, "malformed_request")),
        ("GET /a b HTTP/1.1\r\nHost: web\r\n\r\n", Refused(400, "malformed_request")),
        ("GET / HTTP/1.2\r\nHost: web\r\n\r\n", Refused(400, "malformed_request")),
        ("GET / HTTP/2.0\r\nHost: web\r\n\r\n", Refused(400, "malformed_request")),
        (
            "POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n1\na\r\n0\r\n\r\n",
            Refused(400, "malformed_body"),
        ),
        (
            "POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n1;x\ny\r\na\r\n0\r\n\r\n",
            Refused(400, "malformed_body"),
        ),
        (
            "POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab0\r\n\r\n",
            Refused(400, "malformed_body"),
        ),
        (
            "POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000000\r\na",
            Refused(400, "malformed_body"),
        ),
        (
            "POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\na\r\n0\r\n\r\n",
            Refused(400, "malformed_body"),
        ),
        // What hyper lets through and weft does not.
        (
            "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            Refused(400, "framing_conflict"),
        ),
        (
            "POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
            Refused(400, "framing_conflict"),
        ),
        (
            "POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            Refused(501, "transfer_coding"),
        ),
        (
            "POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            Refused(501, "transfer_coding"),
        ),
        ("GET / HTTP/1.1\r\n\r\n", Refused(400, "host_missing")),
        ("GET / HTTP/1.1\r\nHost: web\r\nHost: web\r\n\r\n", Refused(400, "host_invalid")),
        ("GET / HTTP/1.1\r\nHost: web\r\nHost: other\r\n\r\n", Refused(400, "host_invalid")),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", Refused(400, "host_invalid")),
        ("GET / HTTP/1.1\r\nHost: web, other\r\n\r\n", Refused(400, "host_invalid")),
        ("GET / HTTP/1.1\r\nHost: web@other\r\n\r\n", Refused(400, "host_invalid")),
        ("GET / HTTP/1.1\r\nHost: web/other\r\n\r\n", Refused(400, "host_invalid")),
        ("GET / HTTP/1.1\r\nHost: web:x\r\n\r\n", Refused(400, "host_invalid")),
        ("GET / HTTP/1.0\r\nHost: web\r\nHost: web\r\n\r\n", Refused(400, "host_invalid")),
        ("GET http://other/ HTTP/1.1\r\nHost: web\r\n\r\n", Refused(400, "host_invalid")),
        ("GET http://u@web/ HTTP/1.1\r\nHost: web\r\n\r\n", Refused(400, "target_invalid")),
        ("GET ftp://web/ HTTP/1.1\r\nHost: web\r\n\r\n", Refused(400, "target_invalid")),
        ("GET web:80 HTTP/1.1\r\nHost: web\r\n\r\n", Refused(400, "target_invalid")),
        ("GET * HTTP/1.1\r\nHost: web\r\n\r\n", Refused(400, "target_invalid")),
        ("GET /a#b HTTP/1.1\r\nHost: web\r\n\r\n", Refused(400, "target_invalid")),
        ("CONNECT web:80 HTTP/1.1\r\nHost: web:80\r\n\r\n", Refused(501, "connect_method")),
        (
            "PUT / HTTP/1.1\r\nHost: web\r\nExpect: x 100-continue\r\nContent-Length: 1\r\n\r\na",
            Refused(417, "expectation"),
        ),
        (
            "PUT / HTTP/1.1\r\nHost: web\r\nExpect: 100-continue\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\na",
            Refused(417, "expectation"),
        ),
        ("GET / HTTP/1.1\r\nHost: web\r\nConnection: Content-Length, Host\r\n\r\n", Refused(400, "connection_invalid")),
        // What has one reading, and goes on in one form.
        ("GET / HTTP/1.1\nHost: web\n\n", Passes(&["GET / HTTP/1.1 web \"\"", behind])),
        ("\r\n\r\nGET / HTTP/1.1\r\nHost: web\r\n\r\n", Passes(&["GET / HTTP/1.1 web \"\"", behind])),
        ("GET / HTTP/1.1\r\nHost: WEB:80\r\n\r\n", Passes(&["GET / HTTP/1.1 web:80 \"\"", behind])),
        ("GET http://web./x HTTP/1.1\r\nHost: web\r\n\r\n", Passes(&["GET /x HTTP/1.1 web. \"\"", behind])),
        ("GET http://web?x HTTP/1.1\r\nHost: web\r\n\r\n", Passes(&["GET /?x HTTP/1.1 web \"\"", behind])),
        ("OPTIONS * HTTP/1.1\r\nHost: web\r\n\r\n", Passes(&["OPTIONS * HTTP/1.1 web \"\"", behind])),
        // hyper makes one of two that say the same.
        (
            "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nabcd",
            Passes(&["POST / HTTP/1.1 web \"abcd\"", behind]),
        ),
        (
            "GET /a HTTP/1.1\r\nHost: web\r\nContent-Length: 3\r\n\r\nabc",
            Passes(&["GET /a HTTP/1.1 web \"abc\"", behind]),
        ),
        (
            "GET /a HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: Chunked\r\n\r\n3;x=\"y\"\r\nabc\r\n0;z\r\nX: y\r\n\r\n",
            Passes(&["GET /a HTTP/1.1 web \"abc\"", behind]),
        ),
        ("GET /a;x=1/b HTTP/1.1\r\nHost: web\r\n\r\n", Passes(&["GET /a;x=1/b HTTP/1.1 web \"\"", behind])),
        (
            "GET /a/../b//c/./%64?q=//../%2f%00 HTTP/1.1\r\nHost: web\r\n\r\n",
            Passes(&["GET /b/c/d?q=//../%2f%00 HTTP/1.1 web \"\"", behind]),
        ),
        ("GET /../../etc HTTP/1.1\r\nHost: web\r\n\r\n", Passes(&["GET /etc HTTP/1.1 web \"\"", behind])),
        (
            "GET /x HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: HTTP/2.0\r\n\r\n",
            Passes(&["GET /x HTTP/1.1 web \"\"", behind]),
        ),
    ];
    let mut wrong = Vec::new();
    for (number, (request, expect)) in table.iter().enumerate() {
        let mut client = Wire::new(mesh.connect(vip(1)).await);
        // Named, so that one that comes late is not taken for another's.
        let behind = BEHIND.replace("behind", &format!("behind-{number}"));
        client.send([request.as_bytes(), behind.as_bytes()].concat()).await;
        match expect {
            Refused(status, reason) => {
                let answer = client.answer().await;
                if (answer.head.status(), answer.head.reason()) != (*status, *reason) {
                    wrong.push(format!("{request:?}: {:?} {:?}", answer.head, server.take()));
                    continue;
                }
                // Nobody knows where the next request would begin.
                client.ended().await;
                let seen = server.take();
                if !seen.is_empty() {
                    wrong.push(format!("{number} {request:?}: {seen:?}"));
                }
            }
            Passes(expect) => {
                let first = client.answer().await;
                if first.text() != "ok" {
                    wrong.push(format!("{request:?}: {:?}", first.head));
                    continue;
                }
                for _ in 1..expect.len() {
                    assert_eq!(client.answer().await.text(), "ok", "{request:?}");
                }
                let seen: Vec<_> =
                    server.take().iter().map(|seen| seen.replace(&format!("behind-{number}"), "behind")).collect();
                if seen != *expect {
                    wrong.push(format!("{request:?}: {seen:?}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn ambiguous_paths_are_refused_and_the_connection_goes_on() {
    let mesh = Mesh::start();
    let server = Recorder::start(&mesh, AppProtocol::Http).await;
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    for path in [
        "/a%2Fb",
        "/a%2f..%2fb",
        "/a%5Cb",
        "/a\\b",
        "/%00",
        "/a%0d%0aX:y",
        "/%zz",
        "/%",
        "/%u002f",
        "/%c0%af",
        "/a/..;/b",
        "/a/%2e%2e;x/b",
        "/;/a",
    ] {
        let answer = client.get(path).await;
        assert_eq!((answer.head.status(), answer.head.reason()), (400, "path_ambiguous"), "{path}");
        assert_eq!(answer.head.field("connection"), None, "{path}");
        assert_eq!(client.get("/next").await.text(), "ok", "{path}");
        assert_eq!(server.take(), ["GET /next HTTP/1.1 web \"\""], "{path}");
    }
    // Its length, too, is weft's to bound.
    let answer = client.get(&format!("/{}", "a".repeat(weft_proxy::limits::TARGET_BYTES_MAX))).await;
    assert_eq!((answer.head.status(), answer.head.reason()), (414, "target_too_long"));
    assert_eq!(mesh.metric("weft_limit_reached_total", &[("limit", "target_bytes")]), 1.0);
    assert_eq!(server.take(), Vec::<String>::new());
}

#[tokio::test]
async fn fields_that_only_the_mesh_may_set_do_not_reach_the_server() {
    let (mesh, origin) = (Mesh::start(), Origin::bind().await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[origin.address]));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    client
        .send(
            "POST / HTTP/1.1\r\nHost: web\r\nX-Forwarded-Client-Cert: By=me\r\nx_forwarded_client_cert: By=me\r\nWeft-Source: root\r\nX-Weft_Identity: root\r\n\
             X_Forwarded_For: 1.1.1.1\r\nX-Forwarded-For: 2.2.2.2\r\nContent_Length: 9\r\nX_User: root\r\nX-User: guest\r\nApi_Key: k\r\n\
             Transfer-Encoding: chunked\r\nTrailer: X-Sum, Cookie\r\n\r\n1\r\na\r\n0\r\nX-Sum: 1\r\nCookie: admin=1\r\nWeft-Source: root\r\n\r\n",
        )
        .await;
    let mut server = origin.accept().await;
    let head = server.head().await;
    let names: Vec<_> = head.fields.keys().map(String::as_str).collect();
    assert_eq!(names, ["api_key", "host", "trailer", "transfer-encoding", "x-forwarded-for", "x-user"]);
    assert_eq!((head.field("x-forwarded-for"), head.field("x-user")), (Some("2.2.2.2"), Some("guest")));
    while !server.chunk().await.is_empty() {}
    let trailers: Vec<_> = server.trailers().await.into_keys().collect();
    assert_eq!(trailers, ["x-sum"]);
    assert_eq!(mesh.metric("weft_request_fields_removed_total", &[]), 7.0);
}

/// What is sent behind an `Upgrade` waits until the server has agreed (CVE-2026-2833).
#[tokio::test]
async fn bytes_behind_an_upgrade_are_a_request_unless_the_server_agrees() {
    let (mesh, origin) = (Mesh::start(), Origin::bind().await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[origin.address]));
    let upgrade = "GET /chat HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let hidden = "GET /a%2fb HTTP/1.1\r\nHost: web\r\n\r\n";
    for (status, agreed) in [("101 Switching Protocols", true), ("200 OK", false), ("426 Upgrade Required", false)] {
        let mut client = Wire::new(mesh.connect(vip(1)).await);
        client.send([upgrade, hidden].concat()).await;
        let mut server = origin.accept().await;
        server.head().await;
        assert_eq!(server.read_so_far(), b"", "{status}");
        let fields = if agreed { "Connection: Upgrade\r\nUpgrade: websocket" } else { "Content-Length: 0" };
        server.send(format!("HTTP/1.1 {status}\r\n{fields}\r\n\r\n")).await;
        assert_eq!(client.head().await.status().to_string(), status[..3]);
        if agreed {
            assert_eq!(server.exactly(hidden.len()).await, hidden.as_bytes());
        } else {
            let answer = client.answer().await;
            assert_eq!((answer.head.status(), answer.head.reason()), (400, "path_ambiguous"), "{status}");
        }
    }
}

/// What became of a request of HTTP/2.
#[derive(Debug, PartialEq, Eq)]
enum Fate<'a> {
    /// It reached the server like this.
    Passes(&'a str),
    /// weft answered, with this reason.
    Answered(&'a str),
    /// crate `h2` refused it: the stream ends with this code.
    Reset(u32),
    /// And the whole connection.
    Ended(u32),
}

#[tokio::test]
async fn requests_of_http2_reach_a_server_of_http1_in_one_reading_or_not_at_all() {
    const PROTOCOL_ERROR: u32 = 1;
    let mesh = Mesh::start();
    let server = Recorder::start(&mesh, AppProtocol::Http1).await;
    let (get, http, web, root) = ((":method", "GET"), (":scheme", "http"), (":authority", "web"), (":path", "/"));
    let path = |path| vec![get, http, web, (":path", path)];
    let with = |name, value| vec![get, http, web, root, (name, value)];
    let table: Vec<(Vec<(&str, &str)>, Fate<'_>)> = vec![
        // What crate h2 refuses by itself.
        (with("x", "a\r\nb: c"), Fate::Ended(PROTOCOL_ERROR)),
        (with("x", "a\nb"), Fate::Ended(PROTOCOL_ERROR)),
        (with("x", "a\0b"), Fate::Ended(PROTOCOL_ERROR)),
        (with("X", "a"), Fate::Ended(PROTOCOL_ERROR)),
        (with("x y", "a"), Fate::Ended(PROTOCOL_ERROR)),
        (with("x:y", "a"), Fate::Ended(PROTOCOL_ERROR)),
        (with("connection", "close"), Fate::Reset(PROTOCOL_ERROR)),
        (with("transfer-encoding", "chunked"), Fate::Reset(PROTOCOL_ERROR)),
        (with("te", "chunked"), Fate::Reset(PROTOCOL_ERROR)),
        (with("upgrade", "websocket"), Fate::Reset(PROTOCOL_ERROR)),
        (path("/a b"), Fate::Reset(PROTOCOL_ERROR)),
        (path("a"), Fate::Reset(PROTOCOL_ERROR)),
        (path(""), Fate::Reset(PROTOCOL_ERROR)),
        (path("/a\r\nX: y"), Fate::Reset(PROTOCOL_ERROR)),
        (vec![(":method", "GET / HTTP/1.1\r\nX: y"), http, web, root], Fate::Ended(PROTOCOL_ERROR)),
        (vec![(":method", "GE T"), http, web, root], Fate::Ended(PROTOCOL_ERROR)),
        (vec![get, http, (":authority", "web\r\nx: y"), root], Fate::Reset(PROTOCOL_ERROR)),
        (vec![get, get, http, web, root], Fate::Reset(PROTOCOL_ERROR)),
        (vec![get, http, web, root, ("content-length", "1")], Fate::Reset(PROTOCOL_ERROR)),
        // What it lets through and weft does not.
        (with("host", "other"), Fate::Answered("host_invalid")),
        (vec![get, http, web, root, ("host", "web"), ("host", "web")], Fate::Answered("host_invalid")),
        (vec![get, http, (":authority", "u@web"), root], Fate::Answered("target_invalid")),
        (vec![get, http, (":authority", "web;x"), root], Fate::Answered("host_invalid")),
        (vec![get, http, root], Fate::Answered("host_missing")),
        (vec![get, (":scheme", "gopher"), web, root], Fate::Answered("target_invalid")),
        (vec![(":method", "CONNECT"), web], Fate::Answered("connect_method")),
        (vec![(":method", "CONNECT")], Fate::Answered("connect_method")),
        (with("x", " a"), Fate::Answered("malformed_request")),
        (with("x", "a\t"), Fate::Answered("malformed_request")),
        (with("expect", "x"), Fate::Answered("expectation")),
        (path("/a%2fb"), Fate::Answered("path_ambiguous")),
        (path("/a\\b"), Fate::Answered("path_ambiguous")),
        (path("/a/..;/b"), Fate::Answered("path_ambiguous")),
        (path("/%00"), Fate::Answered("path_ambiguous")),
        (path("/\u{e9}"), Fate::Answered("path_ambiguous")),
        // What has one reading.
        (with("host", "WEB"), Fate::Passes("GET / HTTP/1.1 web \"\"")),
        (with("host", "web:80"), Fate::Passes("GET / HTTP/1.1 web \"\"")),
        (vec![get, http, root, ("host", "web")], Fate::Passes("GET / HTTP/1.1 web \"\"")),
        (with("x", "\u{e9}"), Fate::Passes("GET / HTTP/1.1 web \"\"")),
        (with("x_y", "a"), Fate::Passes("GET / HTTP/1.1 web \"\"")),
        (with("content-length", "0"), Fate::Passes("GET / HTTP/1.1 web \"\"")),
        (path("/a/../b//%63?d=%2f"), Fate::Passes("GET /b/c?d=%2f HTTP/1.1 web \"\"")),
        // Crate http drops it without a trace: what is left is what is routed, authorized and forwarded.
        (path("/a#b"), Fate::Passes("GET /a HTTP/1.1 web \"\"")),
    ];
    let answers = || mesh.metric("weft_local_replies_total", &[]);
    let mut wrong = Vec::new();
    for (fields, expect) in table {
        let before = answers();
        let mut client = Raw::connect(&mesh, vip(1), &[]).await;
        client.send(frame(kind::HEADERS, END_STREAM | END_HEADERS, 1, &block(&fields))).await;
        let end = loop {
            let frame = client.next().await;
            if matches!(frame.kind, kind::HEADERS | kind::RST_STREAM | kind::GOAWAY) {
                break frame;
            }
        };
        let seen = server.take();
        let counted = |reason: &str| mesh.metric("weft_local_replies_total", &[("reason", reason)]);
        let fate = match end.kind {
            kind::RST_STREAM => Fate::Reset(end.reset()),
            kind::GOAWAY => Fate::Ended(end.go_away().1),
            _ if answers() > before => match expect {
                Fate::Answered(reason) if counted(reason) >= 1.0 => Fate::Answered(reason),
                _ => Fate::Answered("another reason"),
            },
            _ => Fate::Passes(seen.first().map_or("", String::as_str)),
        };
        if fate != expect || seen.len() != usize::from(matches!(expect, Fate::Passes(_))) {
            wrong.push(format!("{fields:?}: {fate:?} {seen:?}"));
        }
        if !matches!(fate, Fate::Ended(_)) {
            // The connection is none the worse for it.
            client.send(get_frame(3)).await;
            assert_eq!(client.next_of(kind::HEADERS).await.stream, 3, "{fields:?}");
            until("the request behind it", || server.take().len() == 1).await;
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The length that a client says and the bytes that it sends: the server gets neither more nor less than one request.
#[tokio::test]
async fn body_of_http2_is_as_long_as_it_says_or_fails() {
    let mesh = Mesh::start();
    let server = Recorder::start(&mesh, AppProtocol::Http1).await;
    let head = |length| {
        block(&[
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "web"),
            (":path", "/"),
            ("content-length", length),
        ])
    };
    for (length, body, whole) in [("3", "abc", true), ("2", "abc", false), ("4", "abc", false), ("0", BEHIND, false)] {
        let mut client = Raw::connect(&mesh, vip(1), &[]).await;
        client.send(frame(kind::HEADERS, END_HEADERS, 1, &head(length))).await;
        client.send(frame(kind::DATA, END_STREAM, 1, body.as_bytes())).await;
        loop {
            let frame = soon(client.next()).await;
            if frame.stream == 1 && matches!(frame.kind, kind::HEADERS | kind::RST_STREAM) {
                assert_eq!(frame.kind == kind::HEADERS, whole, "{length} {body:?}");
                break;
            }
        }
        client.send(get_frame(3)).await;
        assert_eq!(client.next_of(kind::HEADERS).await.stream, 3);
        let seen = server.take();
        let (post, get) = (format!("POST / HTTP/1.1 web {body:?}"), "GET / HTTP/1.1 web \"\"".to_owned());
        let empty = "POST / HTTP/1.1 web \"\"".to_owned();
        let possible = match length {
            _ if whole => vec![vec![post, get]],
            // A head that says that nothing follows is a whole request, and may be with the server before more comes.
            "0" => vec![vec![get.clone()], vec![empty, get]],
            _ => vec![vec![get]],
        };
        assert!(possible.contains(&seen), "{length} {body:?}: {seen:?}");
    }
}
