//! Protocols that begin as HTTP/1.1.

use weft_policy::plan::AppProtocol;

use crate::{
    mesh::{Mesh, service, until, vip},
    origin::Origin,
    wire::Wire,
};

const UPGRADE: &str =
    "GET /chat HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: abc\r\n\r\n";

async fn pair() -> (Mesh, Origin, Wire) {
    let (mesh, origin) = (Mesh::start(), Origin::bind().await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[origin.address]));
    let client = Wire::new(mesh.connect(vip(1)).await);
    (mesh, origin, client)
}

#[tokio::test]
async fn upgraded_connection_carries_bytes_both_ways_until_both_end() {
    let (mesh, origin, mut client) = pair().await;
    client.send(UPGRADE).await;
    let mut server = origin.accept().await;
    let asked = server.head().await;
    assert_eq!((asked.field("connection"), asked.field("upgrade")), (Some("upgrade"), Some("websocket")));
    assert_eq!(asked.field("sec-websocket-key"), Some("abc"));
    // With the first bytes of the new protocol at its heels.
    server
        .send(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-Kept: 1\r\n\r\nwelcome",
        )
        .await;
    let answer = client.head().await;
    assert_eq!((answer.status(), answer.field("upgrade"), answer.field("x-kept")), (101, Some("websocket"), Some("1")));
    assert_eq!(client.exactly(7).await, b"welcome");
    for n in 0..10 {
        let text = format!("HTTP/1.1 400 frame {n:03}");
        client.send(&text).await;
        assert_eq!(server.exactly(text.len()).await, text.as_bytes());
        server.send(&text).await;
        assert_eq!(client.exactly(text.len()).await, text.as_bytes());
    }
    let flows = mesh.proxy().flows(10).await;
    assert_eq!(serde_json::to_value(flows[0].protocol).unwrap(), "upgraded");
    client.shutdown();
    server.ended().await;
    server.send("last words").await;
    assert_eq!(client.exactly(10).await, b"last words");
    drop(server);
    client.ended().await;
    until("leases are given back", || mesh.capture.leases.load(std::sync::atomic::Ordering::SeqCst) == 0).await;
}

#[tokio::test]
async fn refused_upgrade_is_a_plain_answer() {
    let (_mesh, origin, mut client) = pair().await;
    client.send(UPGRADE).await;
    let mut server = origin.accept().await;
    server.head().await;
    server.send("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno").await;
    let answer = client.answer().await;
    assert_eq!((answer.head.status(), answer.text()), (403, "no"));
    client.send("GET /next HTTP/1.1\r\nHost: web\r\n\r\n").await;
    assert_eq!(server.head().await.first, "GET /next HTTP/1.1");
    server.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(client.answer().await.head.status(), 200);
}

#[tokio::test]
async fn upgrade_to_cleartext_http2_is_ignored() {
    let (_mesh, origin, mut client) = pair().await;
    client.send("GET / HTTP/1.1\r\nHost: web\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n").await;
    let mut server = origin.accept().await;
    let asked = server.head().await;
    let names: Vec<_> = asked.fields.keys().map(String::as_str).collect();
    assert_eq!(names, ["host"]);
}

#[tokio::test]
async fn reset_of_an_upgraded_connection_stays_a_reset() {
    let (_mesh, origin, mut client) = pair().await;
    client.send(UPGRADE).await;
    let mut server = origin.accept().await;
    server.head().await;
    server.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await;
    client.head().await;
    server.kill();
    client.reset().await;
}
