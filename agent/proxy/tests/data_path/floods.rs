//! What a client may do to us over HTTP/2 to make work, and where each of it ends.

use std::time::Duration;

use weft_policy::plan::AppProtocol;
use weft_proxy::{config::ProxyConfig, limits};

use crate::{
    mesh::{Mesh, service, soon, until, vip},
    origin::Origin,
    peers2::{
        self, ACK, Client, END_HEADERS, END_STREAM, GET, PREFACE, Raw, Server, block, frame, get, get_frame, kind,
        named2,
    },
    wire::Wire,
};

const ENHANCE_YOUR_CALM: u32 = 11;

fn reached(mesh: &Mesh, limit: &str) -> f64 {
    mesh.metric("weft_limit_reached_total", &[("limit", limit)])
}

/// Sends until the other side ends it; gives its GOAWAY.
async fn flood(client: &mut Raw, mut next: impl FnMut(u32) -> Vec<u8>) -> (u32, u32, String) {
    for n in 0..100_000 {
        if tokio::io::AsyncWriteExt::write_all(&mut client.0.stream, &next(n)).await.is_err() {
            break;
        }
        // The other side's writes must not wait for us, or it would stop reading.
        if n % 64 == 0
            && let Ok(more) = tokio::time::timeout(Duration::ZERO, client.0.more()).await
            && !more
        {
            break;
        }
    }
    client.last_word().await
}

#[tokio::test]
async fn frames_that_only_make_work_end_the_connection() {
    let (mesh, web) = (Mesh::start(), named2("v1").await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[web.address]));
    type Case = (&'static str, fn(u32) -> Vec<u8>);
    let table: [Case; 6] = [
        ("SETTINGS", |_| frame(kind::SETTINGS, 0, 0, &[])),
        ("PING", |_| frame(kind::PING, 0, 0, &[0; 8])),
        ("PING acknowledgements", |_| frame(kind::PING, ACK, 0, &[0; 8])),
        ("PRIORITY", |_| frame(kind::PRIORITY, 0, 1, &[0, 0, 0, 0, 16])),
        ("WINDOW_UPDATE", |_| frame(kind::WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes())),
        ("unknown", |_| frame(0x42, 0, 0, b"x")),
    ];
    for (n, (what, next)) in table.into_iter().enumerate() {
        let mut client = Raw::connect(&mesh, vip(1), &[]).await;
        let (_, code, words) = flood(&mut client, next).await;
        assert_eq!((code, words.as_str()), (ENHANCE_YOUR_CALM, "too_many_overhead_frames"), "{what}");
        assert_eq!(reached(&mesh, "h2_overhead_frames"), (n + 1) as f64, "{what}");
    }
    // A neighbour is served.
    assert_eq!(Client::connect(&mesh, vip(1)).await.get("/").await.text(), "v1");
}

#[tokio::test]
async fn rapid_resets_end_the_connection() {
    let (mesh, origin) = (Mesh::start(), Origin::bind().await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[origin.address]));
    // All at once, so that hyper has not seen a request when its reset is there already (CVE-2023-44487).
    let mut client = Raw::connect(&mesh, vip(1), &[]).await;
    let reset = |stream: u32| frame(kind::RST_STREAM, 0, stream, &8_u32.to_be_bytes());
    let (_, code, words) = flood(&mut client, |n| [get_frame(2 * n + 1), reset(2 * n + 1)].concat()).await;
    assert_eq!((code, words.as_str()), (ENHANCE_YOUR_CALM, "too_many_resets"));
    assert_eq!(reached(&mesh, "h2_resets"), 1.0);
    // And one by one, so that each has made its work.
    let mut client = Raw::connect(&mesh, vip(1), &[]).await;
    let mut stream = 1;
    let word = loop {
        client.send([get_frame(stream), frame(kind::PING, 0, 0, &[0; 8])].concat()).await;
        let next = client.next().await;
        if next.kind == kind::GOAWAY {
            break next.go_away();
        }
        client.send(reset(stream)).await;
        stream += 2;
        assert!(stream < 100_000);
    };
    assert_eq!((word.1, word.2.as_str()), (ENHANCE_YOUR_CALM, "too_many_overhead_frames"));
    until("nothing of it is left", || mesh.metric("weft_connections_open", &[]) == 0.0).await;
}

#[tokio::test]
async fn clients_that_work_may_ping_and_cancel() {
    let (mesh, web) = (Mesh::start(), named2("v1").await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[web.address]));
    let mut client = Raw::connect(&mesh, vip(1), &[]).await;
    for n in 0..limits::H2_OVERHEAD_FRAMES_MAX {
        client
            .send(
                [
                    get_frame(2 * n + 1),
                    frame(kind::PING, 0, 0, &[0; 8]),
                    frame(kind::WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes()),
                ]
                .concat(),
            )
            .await;
        while client.next_of(kind::DATA).await.flags & END_STREAM == 0 {}
    }
    assert_eq!(reached(&mesh, "h2_overhead_frames"), 0.0);
}

#[tokio::test]
async fn empty_frames_end_the_connection() {
    let (mesh, origin) = (Mesh::start(), Origin::bind().await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[origin.address]));
    let open = frame(kind::HEADERS, END_HEADERS, 1, &block(&GET));
    let mut client = Raw::connect(&mesh, vip(1), &[]).await;
    client.send(&open).await;
    let (_, code, _) = flood(&mut client, |_| frame(kind::DATA, 0, 1, &[])).await;
    assert_eq!(code, ENHANCE_YOUR_CALM);
    assert!(reached(&mesh, "h2_overhead_frames") + reached(&mesh, "h2_small_frames") >= 1.0);
    // One byte at a time, and as much padding as may be.
    let mut client = Raw::connect(&mesh, vip(1), &[]).await;
    client.send(&open).await;
    let padded = [&[255, 0][..], &[0; 255]].concat();
    let (_, code, _) = flood(&mut client, |_| frame(kind::DATA, 8, 1, &padded)).await;
    // Either too many, or more than the window.
    assert!(matches!(code, ENHANCE_YOUR_CALM | 3), "{code}");
}

#[tokio::test]
async fn header_block_that_never_ends_ends_the_connection() {
    let (mesh, web) = (Mesh::start(), named2("v1").await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[web.address]));
    let mut client = Raw::connect(&mesh, vip(1), &[]).await;
    client.send(frame(kind::HEADERS, END_STREAM, 1, &block(&GET))).await;
    let (_, code, words) =
        flood(&mut client, |n| frame(kind::CONTINUATION, 0, 1, &block(&[(&format!("x{n}"), &"y".repeat(100))]))).await;
    assert_eq!((code, words.as_str()), (ENHANCE_YOUR_CALM, "too_many_continuations"));
    assert_eq!(reached(&mesh, "h2_continuations"), 1.0);
    assert_eq!(Client::connect(&mesh, vip(1)).await.get("/").await.text(), "v1");
}

#[tokio::test]
async fn slow_head_is_ended_with_a_word() {
    let header_read_timeout = Duration::from_millis(20);
    let config = ProxyConfig { header_read_timeout, ..ProxyConfig::default() };
    let (mesh, web) = (Mesh::with(&config), named2("v1").await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[web.address]));
    let mut client = Raw::connect(&mesh, vip(1), &[]).await;
    client.send(get_frame(1)).await;
    client.next_of(kind::DATA).await;
    // Idle is no reason; half a head is. Two ticks, so that one sweep was whole.
    for _ in 0..2 {
        mesh.ticked().await;
    }
    client.send(frame(kind::HEADERS, END_STREAM, 3, &block(&GET))).await;
    let (_, code, words) = client.last_word().await;
    assert_eq!((code, words.as_str()), (ENHANCE_YOUR_CALM, "head_timeout"));
    assert_eq!(reached(&mesh, "header_read_timeout"), 1.0);
    // So is a preface without its settings.
    let mut client = Raw(Wire::new(mesh.connect(vip(1)).await));
    client.send(PREFACE).await;
    let (_, code, words) = client.last_word().await;
    assert_eq!((code, words.as_str()), (ENHANCE_YOUR_CALM, "head_timeout"));
}

#[tokio::test]
async fn client_that_takes_no_answer_does_not_hold_the_endpoint_for_ever() {
    let config = ProxyConfig { h2_stall_timeout: Duration::from_millis(50), ..ProxyConfig::default() };
    let (mesh, origin) = (Mesh::with(&config), Origin::bind().await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[origin.address]));
    // No window at all (SETTINGS_INITIAL_WINDOW_SIZE 0).
    let mut client = Raw::connect(&mesh, vip(1), &[(4, 0)]).await;
    client.send(get_frame(1)).await;
    let mut server = Server::over(origin.accept().await, &h2::server::Builder::new()).await;
    let (_, mut respond) = server.call().await;
    let mut sending = respond.send_response(http::Response::new(()), false).unwrap();
    sending.send_data(bytes::Bytes::from_static(b"abc"), false).unwrap();
    let reason = server.during(std::future::poll_fn(|cx| sending.poll_reset(cx))).await.unwrap();
    assert_eq!(reason, h2::Reason::CANCEL);
    assert_eq!(client.next_of(kind::RST_STREAM).await.reset(), 8);
    assert_eq!(reached(&mesh, "h2_stall"), 1.0);
    // A silent endpoint is another matter: it holds nobody but its own client.
    let patient = Client::connect(&mesh, vip(1)).await;
    let (response, _) = patient.begin(get("/"), true).await;
    let (_, mut respond) = server.call().await;
    let mut sending = respond.send_response(http::Response::new(()), false).unwrap();
    let mut body = server.during(response).await.unwrap().into_body();
    for _ in 0..3 {
        server.during(mesh.ticked()).await;
    }
    sending.send_data(bytes::Bytes::from_static(b"abc"), true).unwrap();
    assert_eq!(server.during(peers2::read(&mut body)).await.unwrap(), b"abc");
    assert_eq!(reached(&mesh, "h2_stall"), 1.0);
}

#[tokio::test]
async fn answers_that_wait_in_the_buffer_are_not_kept_for_ever_either() {
    let config = ProxyConfig { h2_stall_timeout: Duration::from_millis(50), ..ProxyConfig::default() };
    let (mesh, web) = (Mesh::with(&config), named2("v1").await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[web.address]));
    // A window of one byte: the rest of the answer waits where nobody but hyper has it.
    let mut client = Raw::connect(&mesh, vip(1), &[(4, 1)]).await;
    client.send(get_frame(1)).await;
    until("it is ended", || reached(&mesh, "h2_stall") == 1.0).await;
    client.0.reset().await;
}

#[tokio::test]
async fn mistakes_that_make_us_reset_are_counted_too() {
    let (mesh, origin) = (Mesh::start(), Origin::bind().await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[origin.address]));
    let mut client = Raw::connect(&mesh, vip(1), &[]).await;
    // MadeYouReset (CVE-2025-8671): a window that is too large, stream by stream.
    let (_, code, _) = flood(&mut client, |n| {
        let stream = 2 * n + 1;
        [get_frame(stream), frame(kind::WINDOW_UPDATE, 0, stream, &(u32::MAX >> 1).to_be_bytes())].concat()
    })
    .await;
    assert_eq!(code, ENHANCE_YOUR_CALM);
    assert_eq!(reached(&mesh, "h2_resets"), 1.0);
}

#[tokio::test]
async fn garbage_after_the_preface_is_no_panic_and_no_leak() {
    let (mesh, web) = (Mesh::start(), named2("v1").await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[web.address]));
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..50 {
        let mut client = Raw(Wire::new(mesh.connect(vip(1)).await));
        let garbage: Vec<u8> = (0..random.usize(1..2000)).map(|_| random.u8(..)).collect();
        client.send([PREFACE, &frame(kind::SETTINGS, 0, 0, &[]), &get_frame(1), &garbage].concat()).await;
        client.0.shutdown();
        client.0.reset_or_end().await;
    }
    assert_eq!(Client::connect(&mesh, vip(1)).await.get("/").await.text(), "v1");
    soon(async {
        while !mesh.proxy().flows(10).await.is_empty() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}
