//! Requests that are tried again as their rules ask.

use std::{
    collections::VecDeque,
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use weft_policy::{
    endpoints::EndpointSet,
    names::{ObjectRef, ServiceKey},
    plan::AppProtocol,
    rule::{Filters, Retry, Timeouts},
    split::{Backend, Split},
};
use weft_proxy::config::ProxyConfig;

use crate::{
    mesh::{Mesh, PATIENCE, endpoint, speaking, vip},
    nodes::{self, Nodes},
    origin::{Named, Origin, refusing},
    peers2::{self, Client},
    rules::{filtered, web},
    wire::Wire,
};

fn retry(codes: &[u16], attempts: u32) -> Filters {
    let retry = Retry { codes: codes.to_vec(), attempts, backoff: Duration::from_millis(1) };
    Filters { retry: Some(Arc::new(retry)), ..Filters::default() }
}

/// A server that answers with these statuses, one after the other, and with 200 once they are used up; it says what it got.
struct Scripted {
    address: SocketAddr,
    got: Arc<Mutex<Vec<Bytes>>>,
}

impl Scripted {
    async fn start(protocol: AppProtocol, statuses: &[u16]) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (address, got) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<Bytes>>>::default());
        let statuses: Arc<Mutex<VecDeque<u16>>> = Arc::new(Mutex::new(statuses.iter().copied().collect()));
        let seen = Arc::clone(&got);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                let (statuses, seen) = (Arc::clone(&statuses), Arc::clone(&seen));
                let service = service_fn(move |request: Request<Incoming>| {
                    let (statuses, seen) = (Arc::clone(&statuses), Arc::clone(&seen));
                    async move {
                        // A client that takes its body back has not sent a request.
                        let Ok(body) = request.into_body().collect().await else {
                            return Ok(Response::new(Full::default()));
                        };
                        seen.lock().unwrap().push(body.to_bytes());
                        let status = statuses.lock().unwrap().pop_front().unwrap_or(200);
                        Ok::<_, Infallible>(
                            Response::builder()
                                .status(status)
                                .body(Full::new(Bytes::from(status.to_string())))
                                .unwrap(),
                        )
                    }
                });
                let io = TokioIo::new(stream);
                tokio::spawn(async move {
                    // Clients that go away are no failure of the server.
                    if protocol == AppProtocol::Http2 {
                        _ = http2::Builder::new(TokioExecutor::new()).serve_connection(io, service).await;
                    } else {
                        _ = http1::Builder::new().serve_connection(io, service).await;
                    }
                });
            }
        });
        Self { address, got }
    }

    fn count(&self) -> usize {
        self.got.lock().unwrap().len()
    }
}

fn skipped(mesh: &Mesh, reason: &str) -> f64 {
    mesh.metric("weft_retry_skipped_total", &[("reason", reason)])
}

#[tokio::test]
async fn answers_with_a_status_that_the_rule_names_are_not_the_last_ones() {
    for protocol in [AppProtocol::Http1, AppProtocol::Http2] {
        let (mesh, server) = (Mesh::start(), Scripted::start(protocol, &[503, 500, 404, 503, 503, 503]).await);
        mesh.serve(vip(1), filtered(protocol, &web(protocol, &[server.address]), retry(&[500, 503], 2)));
        let mut client = Wire::new(mesh.connect(vip(1)).await);
        let post = "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 4\r\n\r\nbody";
        // After two retries what is not named is the answer, as it is.
        assert_eq!(client.ask(post).await.text(), "404");
        assert_eq!(mesh.metric("weft_retries_total", &[("cause", "status")]), 2.0);
        // And so is the last one that may be.
        let answer = client.ask(post).await;
        assert_eq!((answer.head.status(), answer.head.reason(), answer.text()), (503, "", "503"));
        assert_eq!((skipped(&mesh, "attempts"), server.count()), (1.0, 6));
        assert_eq!(client.ask(post).await.text(), "200");
        assert!(server.got.lock().unwrap().iter().all(|got| got == "body"), "each time with its body");
        mesh.metric_becomes("weft_requests_total", &[], 3.0).await;
    }
}

#[tokio::test]
async fn body_of_a_request_of_http2_is_sent_again_as_it_was() {
    for protocol in [AppProtocol::Http1, AppProtocol::Http2] {
        let (mesh, server) = (Mesh::start(), Scripted::start(protocol, &[503, 503]).await);
        mesh.serve(vip(1), filtered(protocol, &web(protocol, &[server.address]), retry(&[503], 2)));
        let client = Client::connect(&mesh, vip(1)).await;
        let (response, mut stream) = client.begin(peers2::post("/"), false).await;
        for part in ["one ", "two ", "three"] {
            stream.send_data(Bytes::from_static(part.as_bytes()), part == "three").unwrap();
        }
        assert_eq!(peers2::answer(response).await.text(), "200");
        assert_eq!(*server.got.lock().unwrap(), ["one two three"; 3]);
    }
}

#[tokio::test]
async fn backends_that_crash_cost_no_request() {
    let (mesh, good, crashing) = (Mesh::start(), Named::start("v1").await, Origin::bind().await);
    let (dead, _held) = refusing();
    let to = web(AppProtocol::Http1, &[dead, crashing.address, good.address]);
    mesh.serve(vip(1), filtered(AppProtocol::Http1, &to, retry(&[], 2)));
    let crashes = tokio::spawn(async move {
        loop {
            let mut server = crashing.accept().await;
            server.head().await;
            server.kill();
        }
    });
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    let answered = {
        let mut answered = 0;
        for _ in 0..100 {
            answered += usize::from(client.get("/").await.text() == "v1");
        }
        answered
    };
    println!("{answered} of 100 answered");
    assert_eq!(answered, 100);
    assert!(mesh.metric("weft_retries_total", &[("cause", "reset")]) >= 25.0);
    crashes.abort();
}

#[tokio::test]
async fn what_may_have_had_its_effect_goes_again_only_if_the_rule_says_so() {
    for (codes, status, requests) in [(&[][..], 502, 1), (&[502][..], 200, 2)] {
        let (mesh, origin) = (Mesh::start(), Origin::bind().await);
        let to = web(AppProtocol::Http1, &[origin.address]);
        mesh.serve(vip(1), filtered(AppProtocol::Http1, &to, retry(codes, 3)));
        let mut client = Wire::new(mesh.connect(vip(1)).await);
        client.send("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 4\r\n\r\nbody").await;
        for n in 1..=requests {
            let mut server = origin.accept().await;
            server.head().await;
            assert_eq!(server.exactly(4).await, b"body");
            if n < requests || status == 502 {
                server.kill();
            } else {
                server.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
            }
        }
        assert_eq!(client.answer().await.head.status(), status);
        assert_eq!(skipped(&mesh, "method"), f64::from(u8::from(codes.is_empty())));
    }
}

#[tokio::test]
async fn longer_bodies_than_are_kept_are_sent_once() {
    let (mesh, server) = (Mesh::start(), Scripted::start(AppProtocol::Http1, &[503, 503]).await);
    let to = web(AppProtocol::Http1, &[server.address]);
    mesh.serve(vip(1), filtered(AppProtocol::Http1, &to, retry(&[503], 3)));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    for (length, status) in [(64 * 1024 + 1, 503), (64 * 1024, 200)] {
        let body = "x".repeat(length);
        let answer = client.ask(format!("PUT / HTTP/1.1\r\nHost: web\r\nContent-Length: {length}\r\n\r\n{body}")).await;
        assert_eq!(answer.head.status(), status, "{length}");
    }
    assert_eq!(skipped(&mesh, "body"), 1.0);
    assert_eq!(mesh.metric("weft_limit_reached_total", &[("limit", "replay_bytes")]), 1.0);
    assert_eq!(server.got.lock().unwrap().iter().map(Bytes::len).collect::<Vec<_>>(), [65_537, 65_536, 65_536]);
}

#[tokio::test]
async fn retries_are_bounded_by_a_budget() {
    let (mesh, server) = (Mesh::start(), Scripted::start(AppProtocol::Http1, &[503; 5000]).await);
    let to = web(AppProtocol::Http1, &[server.address]);
    let at_once = Retry { codes: vec![503], attempts: 10, backoff: Duration::ZERO };
    let filters = Filters { retry: Some(Arc::new(at_once)), ..Filters::default() };
    mesh.serve(vip(1), filtered(AppProtocol::Http1, &to, filters));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    let begun = Instant::now();
    for _ in 0..100 {
        assert_eq!(client.get("/").await.head.status(), 503);
    }
    let (retries, windows) =
        (mesh.metric("weft_retries_total", &[]), (begun.elapsed().as_secs_f64() / 10.0).floor() + 1.0);
    println!("{retries} retries of 100 requests");
    assert!(retries >= 100.0 && retries <= 120.0 * windows, "{retries} in {windows} times ten seconds");
    assert!(skipped(&mesh, "budget") > 0.0);
}

/// A split whose only backend has no endpoint, and keeps its share all the same.
fn empty() -> Arc<Split> {
    let backend = Backend::new(ServiceKey::new("shop", "web"), 80, 1, speaking(AppProtocol::Http1, &[]));
    Arc::new(Split::new(ObjectRef::new("HTTPRoute", "shop", "web"), Box::new([backend])).keeping_shares())
}

#[tokio::test]
async fn request_waits_for_an_endpoint_within_its_time() {
    let patient = ProxyConfig { endpoint_wait: PATIENCE, ..ProxyConfig::default() };
    let (mesh, server, to) = (Mesh::with(&patient), Named::start("v1").await, empty());
    mesh.serve(vip(1), filtered(AppProtocol::Http1, &to, retry(&[], 1)));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    client.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
    crate::mesh::until("the request is there", || mesh.capture.destinations.lock().unwrap().is_empty()).await;
    to.backends[0].endpoints.store(EndpointSet {
        ready: Box::new([endpoint(server.address)]),
        protocol: AppProtocol::Http1,
        ..EndpointSet::default()
    });
    assert_eq!(client.answer().await.text(), "v1");
    assert_eq!(mesh.metric("weft_retries_total", &[]), 0.0, "nothing was tried before");

    let to = empty();
    let timeouts = Timeouts { request: Some(Duration::from_millis(100)), backend_request: None };
    mesh.serve(vip(2), filtered(AppProtocol::Http1, &to, Filters { timeouts, ..retry(&[], 1) }));
    let answer = Wire::new(mesh.connect(vip(2)).await).get("/").await;
    assert!(["no_endpoints", "request_timeout"].contains(&answer.head.reason()), "{:?}", answer.head);

    let mesh = Mesh::with(&ProxyConfig { endpoint_wait: Duration::from_millis(50), ..ProxyConfig::default() });
    mesh.serve(vip(1), filtered(AppProtocol::Http1, &to, retry(&[], 1)));
    let answer = Wire::new(mesh.connect(vip(1)).await).get("/").await;
    assert_eq!((answer.head.status(), answer.head.reason()), (503, "no_endpoints"));
    assert_eq!(mesh.metric("weft_limit_reached_total", &[("limit", "endpoint_wait")]), 1.0);
}

#[tokio::test]
async fn endpoint_that_hangs_is_left_for_another_one() {
    let (mesh, good, hanging) = (Mesh::start(), Named::start("v1").await, Origin::bind().await);
    let to = web(AppProtocol::Http1, &[hanging.address, good.address]);
    let timeouts = Timeouts { request: None, backend_request: Some(Duration::from_secs(1)) };
    mesh.serve(vip(1), filtered(AppProtocol::Http1, &to, Filters { timeouts, ..retry(&[], 4) }));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    for _ in 0..4 {
        assert_eq!(client.get("/").await.text(), "v1");
    }
    assert!(mesh.metric("weft_retries_total", &[("cause", "timeout")]) >= 1.0);
    assert!(good.requests.load(Ordering::SeqCst) >= 4);
}

#[tokio::test]
async fn client_that_waits_for_continue_is_asked_once_for_its_body() {
    let config = ProxyConfig { continue_timeout: Duration::from_secs(600), ..ProxyConfig::default() };
    let (mesh, origin) = (Mesh::with(&config), Origin::bind().await);
    let to = web(AppProtocol::Http1, &[origin.address]);
    mesh.serve(vip(1), filtered(AppProtocol::Http1, &to, retry(&[503], 2)));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    client.send("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n").await;
    // One that never asks for the body, ...
    let mut first = origin.accept().await;
    assert_eq!(first.head().await.field("expect"), Some("100-continue"));
    first.send("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n").await;
    // ... one that does and fails, ...
    let mut second = origin.accept().await;
    assert_eq!(second.head().await.field("expect"), Some("100-continue"));
    second.send("HTTP/1.1 100 Continue\r\n\r\n").await;
    assert_eq!(client.head().await.status(), 100);
    client.send("hello").await;
    assert_eq!(second.exactly(5).await, b"hello");
    second.send("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
    // ... and one that has it without the client.
    let mut third = origin.accept().await;
    third.head().await;
    third.send("HTTP/1.1 100 Continue\r\n\r\n").await;
    assert_eq!(third.exactly(5).await, b"hello");
    third.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let answer = client.answer().await;
    assert_eq!((answer.head.status(), answer.text()), (200, "ok"));
}

#[tokio::test]
async fn nothing_is_tried_again_once_an_answer_has_begun() {
    let (mesh, origin) = (Mesh::start(), Origin::bind().await);
    let to = web(AppProtocol::Http1, &[origin.address]);
    mesh.serve(vip(1), filtered(AppProtocol::Http1, &to, retry(&[502, 503], 3)));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    client.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
    let mut server = origin.accept().await;
    server.head().await;
    server.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc").await;
    assert_eq!(client.head().await.status(), 200);
    server.kill();
    client.reset().await;
    assert_eq!(mesh.metric("weft_retries_total", &[]), 0.0);
}

#[tokio::test]
async fn what_fails_on_another_node_is_tried_again_from_here() {
    let mut nodes = Nodes::new(AppProtocol::Http1);
    let to = web(AppProtocol::Http1, &[]);
    let mut ready = endpoint(nodes.address);
    ready.workload = Some(nodes::web());
    to.backends[0].endpoints.store(EndpointSet {
        ready: Box::new([ready]),
        protocol: AppProtocol::Http1,
        ..EndpointSet::default()
    });
    nodes.client.serve(vip(1), filtered(AppProtocol::Http1, &to, retry(&[], 1)));
    let mut client = nodes.connect().await;
    client.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
    let mut first = nodes.accept().await;
    first.head().await;
    first.kill();
    let mut second = nodes.accept().await;
    second.head().await;
    second.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    assert_eq!(client.answer().await.text(), "ok");
    assert_eq!(nodes.client.metric("weft_retries_total", &[("cause", "reset")]), 1.0);
}
