//! TLS that passes through: byte for byte, with the name that its client asks for.

use weft_policy::plan::AppProtocol;
use weft_proxy::flows::{FlowProtocol, FlowRow};

use crate::{
    mesh::{Mesh, cell, plan, service, split, until, vip},
    origin::{Origin, refusing},
    wire::Wire,
};

/// What `openssl s_client -servername web.shop.svc.cluster.local -alpn h2,http/1.1` sends.
fn hello() -> Vec<u8> {
    let hex = include_str!("../../src/hello/openssl_s_client.hex");
    let digits: Vec<_> = hex.chars().filter_map(|c| c.to_digit(16)).collect();
    digits.chunks(2).map(|two| u8::try_from(two[0] * 16 + two[1]).unwrap()).collect()
}

async fn row(mesh: &Mesh) -> FlowRow {
    mesh.proxy().flows(10).await.remove(0)
}

async fn carried(protocol: AppProtocol, pieces: &[&[u8]]) -> (Mesh, Wire, Wire) {
    let (mesh, origin) = (Mesh::start(), Origin::bind().await);
    mesh.serve(vip(1), service(protocol, &[origin.address]));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    let mut server = None;
    for piece in pieces {
        client.send(piece).await;
        let server = match &mut server {
            Some(server) => server,
            None => server.insert(origin.accept().await),
        };
        if protocol == AppProtocol::Tls {
            // Nothing is held back, however little it says.
            assert_eq!(server.exactly(piece.len()).await, *piece);
        }
    }
    let mut server = server.unwrap();
    if protocol != AppProtocol::Tls {
        assert_eq!(server.exactly(pieces.concat().len()).await, pieces.concat());
    }
    (mesh, client, server)
}

#[tokio::test]
async fn name_and_offers_of_a_client_are_shown() {
    for protocol in [AppProtocol::Tls, AppProtocol::Detect, AppProtocol::Http] {
        let (mesh, mut client, mut server) = carried(protocol, &[&hello()]).await;
        let row = row(&mesh).await;
        assert_eq!((row.protocol, row.server_name.as_deref()), (FlowProtocol::Tls, Some("web.shop.svc.cluster.local")));
        assert_eq!(row.alpn, ["h2", "http/1.1"]);
        server.send("server hello").await;
        assert_eq!(client.exactly(12).await, b"server hello");
        drop(client);
        server.ended().await;
        drop(server);
        until("its bytes are counted", || mesh.metric("weft_tcp_sent_bytes_total", &[]) == hello().len() as f64).await;
    }
}

#[tokio::test]
async fn name_is_read_however_many_segments_the_hello_comes_in() {
    let hello = hello();
    for protocol in [AppProtocol::Tls, AppProtocol::Detect] {
        for size in [1, 7, 100] {
            let (mesh, _client, _server) = carried(protocol, &hello.chunks(size).collect::<Vec<_>>()).await;
            let row = row(&mesh).await;
            assert_eq!(row.server_name.as_deref(), Some("web.shop.svc.cluster.local"), "{protocol:?} {size}");
        }
    }
}

#[tokio::test]
async fn what_is_no_tls_on_a_port_of_tls_is_carried_as_bytes() {
    let (mesh, _client, _server) = carried(AppProtocol::Tls, &[b"GET / HTTP/1.1\r\n\r\n"]).await;
    let row = row(&mesh).await;
    assert_eq!((row.protocol, row.server_name), (FlowProtocol::Tcp, None));
}

#[tokio::test]
async fn server_may_speak_first_on_a_port_of_tls() {
    let (mesh, origin) = (Mesh::start(), Origin::bind().await);
    mesh.serve(vip(1), service(AppProtocol::Tls, &[origin.address]));
    let mut client = Wire::new(mesh.connect(vip(1)).await);
    let mut server = origin.accept().await;
    server.send("220 not yet\r\n").await;
    assert_eq!(client.exactly(13).await, b"220 not yet\r\n");
}

#[tokio::test]
async fn connections_of_tls_follow_the_weights_of_a_split() {
    for protocol in [AppProtocol::Tls, AppProtocol::Detect] {
        let (mesh, v1, v2) = (Mesh::start(), Origin::bind().await, Origin::bind().await);
        let (one, two) = (cell(&[v1.address]), cell(&[v2.address]));
        mesh.serve(vip(1), plan(protocol, split("canary", &[("v1", 90, &one), ("v2", 10, &two)])));
        let mut open = Vec::new();
        for _ in 0..10 {
            let mut client = Wire::new(mesh.connect(vip(1)).await);
            client.send(hello()).await;
            open.push(client);
        }
        for (origin, share) in [(&v1, 9), (&v2, 1)] {
            for _ in 0..share {
                let mut server = origin.accept().await;
                assert_eq!(server.exactly(hello().len()).await, hello());
                open.push(server);
            }
        }
    }
}

#[tokio::test]
async fn client_of_tls_is_reset_where_nothing_can_be_reached() {
    let mesh = Mesh::start();
    let (dead, _held) = refusing();
    for protocol in [AppProtocol::Tls, AppProtocol::Detect] {
        mesh.serve(vip(1), service(protocol, &[dead]));
        let mut client = Wire::new(mesh.connect(vip(1)).await);
        let _ = client.stream.try_write(&hello());
        client.reset().await;
    }
}
