//! Datagrams between pods: ports that are guarded take them from those pods alone that may send.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use weft_agent::capture::GuardedPort;

use crate::{
    agent::Worker,
    outbound::stats,
    world::{Pod, SOON, World},
};

const PORT: u16 = 5300;
const OPEN: u16 = 5301;

/// What may take a moment that must not come.
const NEVER: Duration = Duration::from_millis(300);

fn bound(pod: &Pod, at: SocketAddr) -> UdpSocket {
    let socket = pod.run(|| UdpSocket::bind(at)).expect("bound");
    socket.set_read_timeout(Some(SOON)).expect("set");
    socket
}

/// Says something from an unconnected socket, as a resolver does, and hears the answer of an unconnected one.
fn asks(from: &UdpSocket, server: &UdpSocket, to: SocketAddr) -> io::Result<()> {
    from.send_to(b"question", to)?;
    let mut heard = [0; 16];
    let (_, peer) = server.recv_from(&mut heard)?;
    server.send_to(b"answer", peer)?;
    let (length, who) = from.recv_from(&mut heard)?;
    assert_eq!((&heard[..length], who), (&b"answer"[..], to));
    Ok(())
}

fn guard(destination: &Pod, granted: &[&Pod]) -> Vec<GuardedPort> {
    let granted = granted.iter().map(|pod| pod.id()).collect();
    vec![GuardedPort { destination: destination.id(), port: PORT, granted }]
}

#[test]
fn a_guarded_port_takes_datagrams_from_granted_pods_alone_and_answers_pass() {
    let Some(world) = World::new() else { return };
    let mut capture = world.open();
    let _b = Worker::attach(&mut capture, &world.b.spec());
    let _a = Worker::attach(&mut capture, &world.a.spec());
    let any = |ip: IpAddr| SocketAddr::new(ip, 0);
    for (a, b, node) in [(world.a.v4, world.b.v4, world.node_v4), (world.a.v6, world.b.v6, world.node_v6)] {
        let to = SocketAddr::new(b, PORT);
        let (server, open) = (bound(&world.b, to), bound(&world.b, SocketAddr::new(b, OPEN)));
        let client = bound(&world.a, any(a));
        let of_the_node = UdpSocket::bind(any(node)).expect("bound");
        of_the_node.set_read_timeout(Some(SOON)).expect("set");
        asks(&client, &server, to).expect("nothing is guarded");

        capture.set_udp(&guard(&world.b, &[])).expect("written");
        let before = (stats(&capture, &world.a).outbound_udp_denied, stats(&capture, &world.b).inbound_udp_denied);
        let refused = client.send_to(b"question", to).expect_err("denied where it is sent");
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        let refused = world.a.run(|| UdpSocket::bind(any(a)).and_then(|socket| socket.connect(to)));
        assert_eq!(refused.expect_err("denied").kind(), io::ErrorKind::ConnectionRefused);
        // The node is not asked where it sends; it is nobody where that arrives, and hears that nobody takes it.
        of_the_node.connect(to).expect("connected");
        of_the_node.send(b"question").expect("sent");
        assert_eq!(of_the_node.recv(&mut [0; 4]).expect_err("denied").kind(), io::ErrorKind::ConnectionRefused);
        let after = (stats(&capture, &world.a).outbound_udp_denied, stats(&capture, &world.b).inbound_udp_denied);
        assert_eq!(after, (before.0 + 2, before.1 + 1));
        server.set_read_timeout(Some(NEVER)).expect("set");
        assert_eq!(server.recv_from(&mut [0; 4]).expect_err("nothing came").kind(), io::ErrorKind::WouldBlock);
        server.set_read_timeout(Some(SOON)).expect("set");
        // Other ports, and the pod itself.
        asks(&client, &open, SocketAddr::new(b, OPEN)).expect("not guarded");
        asks(&bound(&world.b, any(b)), &server, to).expect("itself");

        capture.set_udp(&guard(&world.b, &[&world.a])).expect("written");
        asks(&client, &server, to).expect("granted");
        // Who may be asked by nobody may ask, and is answered at the port that it asked from.
        let mut both = guard(&world.b, &[&world.a]);
        both.push(GuardedPort { destination: world.a.id(), port: PORT, granted: Vec::new() });
        capture.set_udp(&both).expect("written");
        asks(&client, &server, to).expect("granted");
        capture.set_udp(&[]).expect("written");
        asks(&client, &server, to).expect("nothing is guarded");
    }
}

#[test]
fn guarded_ports_stay_guarded_while_no_agent_runs_and_are_open_again_after_release() {
    let Some(world) = World::new() else { return };
    let to = SocketAddr::new(world.b.v4, PORT);
    let (server, client) = (bound(&world.b, to), bound(&world.a, SocketAddr::new(world.a.v4, 0)));
    let mut capture = world.open();
    let workers = [Worker::attach(&mut capture, &world.a.spec()), Worker::attach(&mut capture, &world.b.spec())];
    capture.set_udp(&guard(&world.b, &[])).expect("written");
    drop((workers, capture));
    assert_eq!(client.send_to(b"question", to).expect_err("denied").kind(), io::ErrorKind::ConnectionRefused);
    let mut capture = world.open();
    let _workers = [Worker::attach(&mut capture, &world.a.spec()), Worker::attach(&mut capture, &world.b.spec())];
    assert_eq!(client.send_to(b"question", to).expect_err("denied").kind(), io::ErrorKind::ConnectionRefused);
    capture.set_udp(&[]).expect("written");
    asks(&client, &server, to).expect("nothing is guarded");
}
