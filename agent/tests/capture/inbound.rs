//! Connections made to a pod.

use std::net::{SocketAddr, TcpStream};

use weft_proxy::socket::{Dial, SocketError, SocketFactory};

use crate::{
    agent::{Worker, connect},
    outbound::{fill, stats},
    world::{SOON, World, read_line, wait_until},
};

#[test]
fn the_application_sees_the_client_through_the_agent() {
    let Some(world) = World::new() else { return };
    world.b.serve(8080);
    let mut capture = world.open();
    let worker = Worker::attach(&mut capture, &world.b.spec());
    for (to, client) in [(world.b.v4, world.a.v4), (world.b.v6, world.a.v6)] {
        let said = world.a.ask(SocketAddr::new(to, 8080)).expect("answer");
        assert_eq!(said, format!("app sees {client}"));
    }
    assert_eq!(worker.accepted(), 2);
    assert!(stats(&capture, &world.b).inbound_captured >= 2);
    assert_eq!(stats(&capture, &world.b).inbound_direct, 0);
    wait_until("no bypass is left", || fill(&capture, "BYPASS") == 0);
}

#[test]
fn a_link_local_address_is_no_way_round() {
    let Some(world) = World::new() else { return };
    world.b.serve(8080);
    let mut capture = world.open();
    // The pod does not even have IPv6, as far as the API knows.
    let mut spec = world.b.spec();
    spec.ips.truncate(1);
    let worker = Worker::attach(&mut capture, &spec);
    let link_local = world.b.ip("-6 -o addr show dev eth0 scope link");
    let address =
        link_local.split_whitespace().find_map(|word| word.strip_suffix("/64")).expect("link-local address").to_owned();
    // The interface of the pod that is asked from: the only one besides loopback.
    let links = world.a.ip("-o link show dev eth0");
    let scope: u32 = links.split(':').next().and_then(|index| index.parse().ok()).expect("index");
    let to = std::net::SocketAddrV6::new(address.parse().expect("address"), 8080, 0, scope);
    let said = world.a.ask(to.into()).expect("answer");
    // An answer to the client's own address could not be routed back to the agent.
    assert_eq!(said, format!("app sees {address}"));
    assert_eq!(worker.accepted(), 1);
    assert!(stats(&capture, &world.b).inbound_captured >= 1);
}

#[test]
fn the_agents_own_dial_between_two_pods_passes_by_its_listener() {
    let Some(world) = World::new() else { return };
    world.b.serve(8080);
    let mut capture = world.open();
    let a = Worker::attach(&mut capture, &world.a.spec());
    let b = Worker::attach(&mut capture, &world.b.spec());
    for (to, client) in [(world.b.v4, world.a.v4), (world.b.v6, world.a.v6)] {
        let to = SocketAddr::new(to, 8080);
        let dial = Dial::Outbound { source: &a.pod, to, to_workload: Some(&b.pod.id), tls: false };
        let (stream, _lease) = connect(&capture.sockets(), &dial).expect("dialled");
        assert_eq!(fill(&capture, "BYPASS"), 1);
        assert_eq!(read_line(&stream).expect("answer"), format!("app sees {client}"));
        drop(stream);
        wait_until("no bypass is left", || fill(&capture, "BYPASS") == 0);
    }
    assert_eq!(b.accepted(), 0);
    // Without the word that it is the agent's, the same dial arrives as ordinary traffic.
    let to = SocketAddr::new(world.b.v4, 8080);
    let (stream, _lease) =
        connect(&capture.sockets(), &Dial::Outbound { source: &a.pod, to, to_workload: None, tls: false })
            .expect("dialled");
    assert_eq!(read_line(&stream).expect("answer"), format!("app sees {}", world.a.v4));
    assert_eq!(b.accepted(), 1);
}

#[test]
fn a_refused_dial_is_told_as_refused() {
    let Some(world) = World::new() else { return };
    let mut capture = world.open();
    let a = Worker::attach(&mut capture, &world.a.spec());
    let b = Worker::attach(&mut capture, &world.b.spec());
    let client = SocketAddr::new(world.a.v4, 40_000);
    for (dial, what) in [
        (
            Dial::Outbound {
                source: &a.pod,
                to: SocketAddr::new(world.b.v4, 9),
                to_workload: Some(&b.pod.id),
                tls: false,
            },
            "another pod's closed port",
        ),
        (Dial::Inbound { pod: &b.pod, client, to: SocketAddr::new(world.b.v4, 9) }, "the pod's own closed port"),
    ] {
        let error = connect(&capture.sockets(), &dial).expect_err(what);
        let SocketError::Kernel { source, .. } = &error else { panic!("{what}: {error}") };
        assert_eq!(source.kind(), std::io::ErrorKind::ConnectionRefused, "{what}");
    }
    wait_until("no bypass is left", || fill(&capture, "BYPASS") == 0);
}

#[test]
fn transparent_ports_are_never_the_clients_own() {
    let Some(world) = World::new() else { return };
    world.b.serve(8080);
    let mut capture = world.open();
    let attachment = capture.attach_pod(&world.b.spec(), &mut Vec::new()).expect("attached");
    let pod = std::sync::Arc::clone(&attachment.listeners.pod);
    let (sockets, to) = (capture.sockets(), SocketAddr::new(world.b.v4, 8080));
    // The client's own connections come from the very ports that would be leased first; they wait in the accept queue.
    let first = weft_abi::ports::TRANSPARENT_FIRST;
    let own: Vec<TcpStream> = (first..first + 40)
        .map(|port| {
            world.a.run(|| {
                let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("socket");
                socket.set_reuse_address(true).expect("reuse");
                socket.bind(&SocketAddr::new(world.a.v4, port).into()).expect("bound");
                socket.connect_timeout(&to.into(), SOON).expect("connected");
                TcpStream::from(socket)
            })
        })
        .collect();
    let client = SocketAddr::new(world.a.v4, 50_000);
    for round in 0..200 {
        let (stream, lease) = connect(&sockets, &Dial::Inbound { pod: &pod, client, to }).expect("dialled");
        let local = stream.local_addr().expect("local");
        assert_eq!(local.ip(), world.a.v4);
        assert!(!(first..first + 40).contains(&local.port()), "round {round} took the client's own port {local}");
        assert_eq!(read_line(&stream).expect("answer"), format!("app sees {}", world.a.v4), "round {round}");
        drop((stream, lease));
    }
    // Nor did any of it touch the client's connections, or count as one.
    // (A segment for a connection that is gone may be looked up too.)
    let captured = stats(&capture, &world.b).inbound_captured;
    assert!((40..60).contains(&captured), "{captured}");
    drop(own);
}

#[test]
fn the_node_itself_is_not_captured_and_counted() {
    let Some(world) = World::new() else { return };
    world.b.serve(8080);
    let mut capture = world.open();
    let worker = Worker::attach(&mut capture, &world.b.spec());
    for (to, node) in [(world.b.v4, world.node_v4), (world.b.v6, world.node_v6)] {
        let stream = TcpStream::connect_timeout(&SocketAddr::new(to, 8080), SOON).expect("connected");
        assert_eq!(read_line(&stream).expect("answer"), format!("app sees {node}"));
        assert_eq!(fill(&capture, "NODE_FLOWS"), 1);
        drop(stream);
        wait_until("no node flow is left", || fill(&capture, "NODE_FLOWS") == 0);
    }
    let stats = stats(&capture, &world.b);
    assert_eq!(worker.accepted(), 0);
    assert!(stats.inbound_node >= 2, "{stats:?}");
    assert_eq!(stats.inbound_direct, 0);
}

#[test]
fn a_pod_that_is_released_meanwhile_has_no_sockets() {
    let Some(world) = World::new() else { return };
    let mut capture = world.open();
    let worker = Worker::attach(&mut capture, &world.b.spec());
    assert!(capture.sockets().is_captured(&world.b.id()));
    capture.release_pod(&world.b.id()).expect("released");
    let client = SocketAddr::new(world.a.v4, 50_000);
    let to = SocketAddr::new(world.b.v4, 8080);
    let error = capture.sockets().socket(&Dial::Inbound { pod: &worker.pod, client, to }).expect_err("gone");
    assert!(matches!(error, SocketError::PodGone(_)) && !error.retryable(), "{error}");
    assert!(!capture.sockets().is_captured(&world.b.id()));
}
