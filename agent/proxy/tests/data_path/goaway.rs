//! The end of HTTP/2 connections, on either side: in two steps where there is time, and no request lost that nobody looked at.

use std::{sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use weft_policy::plan::AppProtocol;
use weft_proxy::config::ProxyConfig;

use crate::{
    mesh::{Mesh, service, soon, vip},
    origin::Origin,
    peers2::{self, ACK, Client, Raw, Server, frame, get, get_frame, kind, named2, post},
    wire::Wire,
};

#[tokio::test]
async fn drain_says_goaway_twice_and_lets_streams_finish() {
    let (mesh, origin) = (Mesh::start(), Origin::bind().await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[origin.address]));
    let mut client = Raw::connect(&mesh, vip(1), &[]).await;
    client.send(get_frame(1)).await;
    let mut server = Server::over(origin.accept().await, &h2::server::Builder::new()).await;
    let (_, mut first) = server.call().await;
    let drain = mesh.proxy().drain(Duration::from_secs(20));
    let going_on = async {
        // No stream is named yet, so what is on its way still counts (RFC 9113 6.8).
        assert_eq!(client.last_word().await, (u32::MAX >> 1, 0, String::new()));
        let ping = client.next_of(kind::PING).await;
        client.send(get_frame(3)).await;
        let (_, mut second) = server.call().await;
        client.send(frame(kind::PING, ACK, 0, &ping.payload)).await;
        assert_eq!(server.during(client.last_word()).await, (3, 0, String::new()));
        for respond in [&mut first, &mut second] {
            respond.send_response(http::Response::new(()), true).unwrap();
        }
        let mut answered = Vec::new();
        for _ in 0..2 {
            answered.push(server.during(client.next_of(kind::HEADERS)).await.stream);
        }
        answered.sort_unstable();
        assert_eq!(answered, [1, 3]);
        while client.0.more().await {}
        drop(client);
    };
    let (report, ()) = soon(async { tokio::join!(drain, going_on) }).await;
    assert_eq!((report.finished, report.closed), (1, 0));
}

#[tokio::test]
async fn drain_ends_idle_connections_and_resets_what_is_left_at_the_deadline() {
    let (mesh, web, origin) = (Mesh::start(), named2("v1").await, Origin::bind().await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[web.address]));
    mesh.serve(vip(2), service(AppProtocol::Http, &[origin.address]));
    let idle = Client::connect(&mesh, vip(1)).await;
    idle.get("/").await;
    let mut busy = Raw::connect(&mesh, vip(2), &[]).await;
    busy.send(get_frame(1)).await;
    let mut server = Server::over(origin.accept().await, &h2::server::Builder::new()).await;
    let (_, mut respond) = server.call().await;
    // It has said nothing at all, or only half of its first words.
    let mut silent = Wire::new(mesh.connect(vip(1)).await);
    let report = soon(mesh.proxy().drain(Duration::from_millis(300))).await;
    assert_eq!((report.finished, report.closed), (2, 1));
    assert!(soon(idle.driver).await.unwrap().is_ok());
    silent.ended().await;
    busy.0.reset().await;
    // And with the client its request.
    let reason = server.during(std::future::poll_fn(|cx| respond.poll_reset(cx))).await.unwrap();
    assert_eq!(reason, h2::Reason::CANCEL);
}

#[tokio::test]
async fn idle_client_is_let_go_with_a_word() {
    let config = ProxyConfig { downstream_idle_timeout: Duration::from_millis(20), ..ProxyConfig::default() };
    let (mesh, web) = (Mesh::with(&config), named2("v1").await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[web.address]));
    let mut client = Raw::connect(&mesh, vip(1), &[]).await;
    client.send(get_frame(1)).await;
    let (last, code, words) = client.last_word().await;
    assert_eq!((last, code, words.as_str()), (1, 0, "idle"));
    client.0.ended().await;
    assert_eq!(mesh.metric("weft_limit_reached_total", &[("limit", "downstream_idle_timeout")]), 1.0);
}

/// A server that takes no request on its first connection, in one of the ways that HTTP/2 has for it.
async fn refuses_once(how: &str, body: Option<&'static str>) -> (u16, String, usize) {
    let (mesh, origin) = (Mesh::start(), Origin::bind().await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[origin.address]));
    let client = Client::connect(&mesh, vip(1)).await;
    let asked = client.ask(if body.is_some() { post("/") } else { get("/") }, body);
    let serving = async {
        let mut first = Raw(origin.accept().await);
        first.0.exactly(peers2::PREFACE.len()).await;
        first.send(frame(kind::SETTINGS, 0, 0, &[])).await;
        first.next_of(kind::HEADERS).await;
        match how {
            "goaway" => {
                let payload = [0_u32.to_be_bytes(), 0_u32.to_be_bytes()].concat();
                first.send(frame(kind::GOAWAY, 0, 0, &payload)).await;
            }
            "goaway after it" => {
                let payload = [1_u32.to_be_bytes(), 0_u32.to_be_bytes()].concat();
                first.send(frame(kind::GOAWAY, 0, 0, &payload)).await;
                first.0.shutdown();
            }
            "refused" => first.send(frame(kind::RST_STREAM, 0, 1, &7_u32.to_be_bytes())).await,
            "cancelled" => first.send(frame(kind::RST_STREAM, 0, 1, &8_u32.to_be_bytes())).await,
            other => panic!("{other}"),
        }
        let stays = how == "refused";
        if stays {
            first.next_of(kind::HEADERS).await;
            // `:status: 204`, from the static table.
            first.send(frame(kind::HEADERS, peers2::END_STREAM | peers2::END_HEADERS, 3, &[0x89])).await;
            while first.0.more().await {}
            return;
        }
        let mut second = Server::over(origin.accept().await, &h2::server::Builder::new()).await;
        let (request, mut respond) = second.call().await;
        let mut request = request.into_body();
        let read = second.during(peers2::read(&mut request)).await.unwrap();
        let mut stream = respond.send_response(http::Response::new(()), false).unwrap();
        stream.send_data(Bytes::from(read), true).unwrap();
        while second.connection.accept().await.is_some() {}
    };
    let answer = tokio::select! {
        answer = asked => answer,
        () = serving => panic!("the server ended first"),
    };
    (answer.head.status.as_u16(), answer.text().to_owned(), mesh.capture.dials.load(Ordering::SeqCst))
}

#[tokio::test]
async fn request_that_no_server_looked_at_is_sent_again() {
    for body in [None, Some("body")] {
        let text = body.unwrap_or_default().to_owned();
        assert_eq!(refuses_once("goaway", body).await, (200, text, 2), "{body:?}");
        assert_eq!(refuses_once("refused", body).await, (204, String::new(), 1), "{body:?}");
        for how in ["goaway after it", "cancelled"] {
            let (status, text, dials) = refuses_once(how, body).await;
            assert_eq!((status, dials), (502, 1), "{how}: {text}");
        }
    }
}

#[tokio::test]
async fn server_that_refuses_everything_is_not_asked_for_ever() {
    let (mesh, origin) = (Mesh::start(), Origin::bind().await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[origin.address]));
    let client = Client::connect(&mesh, vip(1)).await;
    let (response, _) = client.begin(get("/"), true).await;
    let mut server = Raw(origin.accept().await);
    server.0.exactly(peers2::PREFACE.len()).await;
    server.send(frame(kind::SETTINGS, 0, 0, &[])).await;
    for n in 0..=weft_proxy::limits::POOL_STALE_MAX as u32 {
        let asked = server.next_of(kind::HEADERS).await;
        assert_eq!(asked.stream, 2 * n + 1);
        server.send(frame(kind::RST_STREAM, 0, asked.stream, &7_u32.to_be_bytes())).await;
    }
    let answer = peers2::answer(response).await;
    assert_eq!((answer.head.status.as_u16(), answer.reason()), (502, "upstream_reset"));
    assert_eq!(mesh.metric("weft_limit_reached_total", &[("limit", "h2_refused")]), 1.0);
}

#[tokio::test]
async fn server_that_goes_away_finishes_what_it_has_and_gets_no_more() {
    let (mesh, origin) = (Mesh::start(), Origin::bind().await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[origin.address]));
    let client = Client::connect(&mesh, vip(1)).await;
    let (old, _) = client.begin(get("/old"), true).await;
    let mut first = Server::over(origin.accept().await, &h2::server::Builder::new()).await;
    let (_, mut respond) = first.call().await;
    first.connection.graceful_shutdown();
    let first = tokio::spawn(async move {
        // The second GOAWAY needs the answer to a PING, so this must go on.
        while first.connection.accept().await.is_some() {}
    });
    let mut dials = 1;
    while dials == 1 {
        // Until it is known to go away, it may be asked; it takes what it is asked before its second GOAWAY.
        let (new, _) = client.begin(get("/new"), true).await;
        let accepted = tokio::time::timeout(Duration::from_millis(200), origin.listener.accept()).await;
        if let Ok(Ok((stream, _))) = accepted {
            let mut second = Server::over(Wire::new(stream), &h2::server::Builder::new()).await;
            let (request, mut respond) = second.call().await;
            assert_eq!(request.uri().path(), "/new");
            respond.send_response(http::Response::new(()), true).unwrap();
            assert_eq!(second.during(new).await.unwrap().status(), 200);
            dials = 2;
        }
    }
    respond.send_response(http::Response::new(()), true).unwrap();
    assert_eq!(peers2::answer(old).await.head.status, 200);
    soon(first).await.unwrap();
}
