//! Copies of requests for other Services, and faults that were asked for.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::Request;
use weft_policy::{
    ir::BackendIr,
    names::{ObjectRef, ServiceAccountKey, ServiceKey},
    plan::{AppProtocol, OutboundPlan},
    rule::{Abort, AbortHow, Delay, Fault, Filters, Fraction, MirrorIr, Timeouts},
    split::Backend,
};

use crate::{
    access::captured,
    mesh::{Mesh, speaking, until, vip},
    origin::{Named, Origin, refusing},
    peers2::{self, Client, Server, named2},
    rules::{filtered, ruled, web},
    wire::Wire,
};

fn mirrored(
    protocol: AppProtocol,
    original: std::net::SocketAddr,
    share: Fraction,
    copies: &Arc<weft_policy::endpoints::EndpointCell>,
) -> Arc<OutboundPlan> {
    let service = ServiceKey::new("shop", "shadow");
    let mirror = Backend::new(service.clone(), 80, 1, Arc::clone(copies));
    ruled(protocol, &web(protocol, &[original]), None, Box::new([mirror]), |ir| {
        ir.mirrors = vec![MirrorIr { backend: BackendIr::new(service, 1, vec![(80, 80)]), share }];
    })
}

#[tokio::test]
async fn copies_are_what_the_originals_are_in_their_share() {
    for protocol in [AppProtocol::Http1, AppProtocol::Http2] {
        let (mesh, origin) = (Mesh::start(), Named::start("v1").await);
        let (original, shadow) = match protocol {
            AppProtocol::Http2 => (named2("v1").await, named2("shadow").await),
            _ => (origin, Named::start("shadow").await),
        };
        let half = Fraction { numerator: 1, denominator: 2 };
        mesh.serve(vip(1), mirrored(protocol, original.address, half, &speaking(protocol, &[shadow.address])));
        let mut client = Wire::new(mesh.connect(vip(1)).await);
        for n in 0..200 {
            let body = format!("body {n}");
            let length = body.len();
            let answer = match n % 2 {
                0 => client.get("/").await,
                _ => {
                    client.ask(format!("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: {length}\r\n\r\n{body}")).await
                }
            };
            assert_eq!((answer.head.status(), answer.head.field("x-name")), (200, Some("v1")));
        }
        let copies = || mesh.metric("weft_mirrored_total", &[("result", "answered")]);
        until("copies are over", || shadow.requests.load(Ordering::SeqCst) as f64 == copies()).await;
        println!("{} of 200 copied", copies());
        // Half of 200, with a standard deviation of 7.
        assert!((50.0..=150.0).contains(&copies()), "{}", copies());
        mesh.metric_becomes("weft_requests_total", &[], 200.0).await;
        assert_eq!(original.requests.load(Ordering::SeqCst), 200);
    }
}

#[tokio::test]
async fn copy_has_the_fields_and_the_body_of_its_original() {
    let (mesh, original, shadow) = (Mesh::start(), Named::start("v1").await, Origin::bind().await);
    let to = speaking(AppProtocol::Http1, &[shadow.address]);
    mesh.serve(vip(1), mirrored(AppProtocol::Http1, original.address, Fraction::ALL, &to));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    let chunked =
        "POST /a?b HTTP/1.1\r\nHost: web\r\nExpect: 100-continue\r\nx-one: 1\r\nTransfer-Encoding: chunked\r\n\r\n";
    client.send(format!("{chunked}3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n")).await;
    let mut copy = shadow.accept().await;
    let head = copy.head().await;
    assert_eq!(
        (head.first.as_str(), head.field("host"), head.field("x-one")),
        ("POST /a?b HTTP/1.1", Some("web"), Some("1"))
    );
    assert_eq!((head.field("expect"), head.field("content-length")), (None, Some("6")));
    assert_eq!(copy.exactly(6).await, b"abcdef");
    // The original is answered while its copy is not.
    let mut head = client.head().await;
    if head.status() == 100 {
        head = client.head().await;
    }
    assert_eq!(client.body(head, false).await.text(), "abcdef");
    assert_eq!(mesh.metric("weft_mirrored_total", &[]), 0.0);
    copy.send("HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n").await;
    mesh.metric_becomes("weft_mirrored_total", &[("result", "answered")], 1.0).await;
}

#[tokio::test]
async fn original_is_answered_whatever_becomes_of_its_copy() {
    let (mesh, original, silent) = (Mesh::start(), Named::start("v1").await, Origin::bind().await);
    let (dead, _held) = refusing();
    let denying = weft_policy::names::WorkloadId::new("uid-shadow-1");
    for (at, to, result) in [
        (vip(1), speaking(AppProtocol::Http1, &[dead]), Some("failed")),
        (vip(2), speaking(AppProtocol::Http1, &[]), Some("failed")),
        // The destination's policy holds for copies, too; it has none yet, and takes nothing.
        (vip(3), captured(&mesh, &denying, AppProtocol::Http1, silent.address), Some("failed")),
        (vip(4), speaking(AppProtocol::Http1, &[silent.address]), None),
    ] {
        mesh.serve(at, mirrored(AppProtocol::Http1, original.address, Fraction::ALL, &to));
        let before = mesh.metric("weft_mirrored_total", &[]);
        let mut client = Wire::new(mesh.connect(at).await);
        assert_eq!(client.get("/").await.text(), "v1");
        if let Some(result) = result {
            mesh.metric_becomes("weft_mirrored_total", &[("result", result)], before + 1.0).await;
        }
    }
    mesh.metric_becomes("weft_denied_total", &[("basis", "no_plan")], 1.0).await;
    // As many as may be under way: others are not made, and nobody waits.
    let mut client = Wire::new(mesh.connect(vip(4)).await);
    for _ in 0..weft_proxy::limits::MIRRORS_MAX + 10 {
        assert_eq!(client.get("/").await.text(), "v1");
    }
    assert_eq!(mesh.metric("weft_mirrored_total", &[("result", "busy")]), 11.0);
    assert_eq!(mesh.metric("weft_limit_reached_total", &[("limit", "mirrors")]), 11.0);
}

#[tokio::test]
async fn long_bodies_are_not_copied() {
    let (mesh, original, shadow) = (Mesh::start(), Named::start("v1").await, Named::start("shadow").await);
    let to = speaking(AppProtocol::Http1, &[shadow.address]);
    mesh.serve(vip(1), mirrored(AppProtocol::Http1, original.address, Fraction::ALL, &to));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    for length in [64 * 1024 + 1, 64 * 1024] {
        let body = "x".repeat(length);
        let answer = client.ask(format!("PUT / HTTP/1.1\r\nHost: web\r\nContent-Length: {length}\r\n\r\n{body}")).await;
        assert_eq!(answer.body.len(), length);
    }
    mesh.metric_becomes("weft_mirrored_total", &[("result", "answered")], 1.0).await;
    assert_eq!(mesh.metric("weft_mirrored_total", &[("result", "too_long")]), 1.0);
    // One that its client does not finish.
    client.send("PUT / HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\n\r\nab").await;
    until("it arrives", || original.requests.load(Ordering::SeqCst) == 3).await;
    client.kill();
    mesh.metric_becomes("weft_mirrored_total", &[("result", "incomplete")], 1.0).await;
    assert_eq!(shadow.requests.load(Ordering::SeqCst), 1);
}

fn faulty(fault: Fault) -> Filters {
    Filters { fault: Some(Arc::new(fault)), ..Filters::default() }
}

fn fault() -> Fault {
    Fault { origin: ObjectRef::new("FaultInjection", "shop", "web"), sources: Vec::new(), delay: None, abort: None }
}

fn abort(how: AbortHow, share: Fraction) -> Filters {
    faulty(Fault { abort: Some(Abort { how, share }), ..fault() })
}

#[tokio::test]
async fn requests_are_ended_in_the_way_and_the_share_that_is_asked_for() {
    let (mesh, server) = (Mesh::start(), Named::start("v1").await);
    let to = web(AppProtocol::Http1, &[server.address]);
    mesh.serve(
        vip(1),
        filtered(AppProtocol::Http1, &to, abort(AbortHow::Http(418), Fraction { numerator: 10, denominator: 100 })),
    );
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    let mut aborted = 0;
    for _ in 0..1000 {
        let answer = client.get("/").await;
        match answer.head.status() {
            418 => {
                assert_eq!(answer.head.reason(), "fault_abort");
                aborted += 1;
            }
            status => assert_eq!((status, answer.text()), (200, "v1")),
        }
    }
    println!("{aborted} of 1000 aborted");
    // 100, with a standard deviation of 9.5: six of them.
    assert!((43..=157).contains(&aborted), "{aborted}");
    assert_eq!(mesh.metric("weft_faults_total", &[("fault", "abort")]), f64::from(aborted));

    mesh.serve(vip(2), filtered(AppProtocol::Http1, &to, abort(AbortHow::Reset, Fraction::ALL)));
    let mut client = Wire::new(mesh.connect(vip(2)).await);
    client.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
    client.reset().await;
    assert_eq!(client.read_so_far(), b"", "not a byte of an answer");
    let client = Client::connect(&mesh, vip(2)).await;
    let (response, _) = client.begin(peers2::get("/"), true).await;
    let ended = async { peers2::read(&mut response.await?.into_body()).await };
    assert!(crate::mesh::soon(ended).await.unwrap_err().is_reset());

    mesh.serve(vip(3), filtered(AppProtocol::Http2, &to, abort(AbortHow::Grpc(8), Fraction::ALL)));
    let client = Client::connect(&mesh, vip(3)).await;
    let call = Request::post("http://web/a.B/C").header("content-type", "application/grpc").body(()).unwrap();
    let answer = client.ask(call, None).await;
    assert_eq!(
        (answer.head.status.as_u16(), answer.field("grpc-status"), answer.reason()),
        (200, Some("8"), "fault_abort")
    );
    assert_eq!(client.get("/").await.head.status, 429, "for those who do not read that");
}

#[tokio::test]
async fn requests_are_held_up_for_the_clients_that_are_named() {
    let (mesh, server) = (Mesh::start(), Named::start("v1").await);
    let to = web(AppProtocol::Http1, &[server.address]);
    let delay = Delay { fixed: Duration::from_millis(200), jitter: Duration::from_millis(20), share: Fraction::ALL };
    for (at, sources, delayed) in [
        (vip(1), vec![], true),
        (vip(2), vec![ServiceAccountKey::new("shop", "client-1")], true),
        (vip(3), vec![ServiceAccountKey::new("shop", "other")], false),
    ] {
        let before = mesh.metric("weft_faults_total", &[]);
        let fault = Fault { sources, delay: Some(delay), ..fault() };
        mesh.serve(at, filtered(AppProtocol::Http1, &to, faulty(fault)));
        let begun = Instant::now();
        assert_eq!(Wire::new(mesh.connect(at).await).get("/").await.text(), "v1");
        assert_eq!(mesh.metric("weft_faults_total", &[("fault", "delay")]) - before, f64::from(u8::from(delayed)));
        assert!(!delayed || begun.elapsed() >= delay.fixed);
    }
    // A delay is within the request's time.
    let fault = Fault { delay: Some(Delay { fixed: Duration::from_secs(600), ..delay }), ..fault() };
    let timeouts = Timeouts { request: Some(Duration::from_millis(100)), backend_request: None };
    mesh.serve(vip(4), filtered(AppProtocol::Http1, &to, Filters { timeouts, ..faulty(fault) }));
    assert_eq!(Wire::new(mesh.connect(vip(4)).await).get("/").await.head.reason(), "request_timeout");
}

#[tokio::test]
async fn copy_of_a_call_waits_until_all_of_it_was_said() {
    let (mesh, original, shadow) = (Mesh::start(), Origin::bind().await, named2("shadow").await);
    let to = speaking(AppProtocol::Http2, &[shadow.address]);
    mesh.serve(vip(1), mirrored(AppProtocol::Http2, original.address, Fraction::ALL, &to));
    let client = Client::connect(&mesh, vip(1)).await;
    let (response, mut sending) = client.begin(peers2::post("/a.B/C"), false).await;
    let mut server = Server::over(original.accept().await, &h2::server::Builder::new()).await;
    let (request, mut respond) = server.call().await;
    let mut asked = request.into_body();
    sending.send_data(Bytes::from_static(b"one"), false).unwrap();
    assert_eq!(server.during(peers2::part(&mut asked)).await.unwrap().unwrap(), "one");
    assert_eq!(shadow.requests.load(Ordering::SeqCst), 0);
    sending.send_data(Bytes::from_static(b"two"), true).unwrap();
    assert_eq!(server.during(peers2::part(&mut asked)).await.unwrap().unwrap(), "two");
    until("the copy arrives", || shadow.requests.load(Ordering::SeqCst) == 1).await;
    respond.send_response(http::Response::new(()), true).unwrap();
    assert_eq!(server.during(response).await.unwrap().status(), 200);
}
