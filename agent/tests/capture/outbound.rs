//! Connections that a pod makes.

use std::{
    fs,
    io::{self, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use weft_abi::{DestVerdict, verdict};
use weft_agent::capture::{Capture, convert::dest_key};
use weft_proxy::socket::{Dial, FlowSource};

use crate::{
    agent::{Worker, connect},
    world::{Pod, SOON, World, read_line, wait_until},
};

pub(crate) fn set(capture: &mut Capture, to: SocketAddr, verdict: u32) {
    let key = dest_key(to.ip(), Some(to.port()));
    capture.set_destinations([(key, Some(DestVerdict { verdict, pad: 0 }))]).expect("destination set");
}

/// An IPv4 address as a socket of IPv6 has it.
pub(crate) fn mapped(to: SocketAddr) -> SocketAddr {
    let IpAddr::V4(v4) = to.ip() else { panic!("an IPv4 address") };
    SocketAddr::new(v4.to_ipv6_mapped().into(), to.port())
}

#[test]
fn a_proxied_destination_reaches_the_agent_and_the_client_sees_whom_it_asked_for() {
    let Some(world) = World::new() else { return };
    let mut capture = world.open();
    let _worker = Worker::attach(&mut capture, &world.a.spec());
    set(&mut capture, world.vip4(80), verdict::PROXY);
    set(&mut capture, world.vip6(80), verdict::PROXY);
    for (ask, original, own) in [
        (world.vip4(80), world.vip4(80), world.a.v4),
        (world.vip6(80), world.vip6(80), world.a.v6),
        (mapped(world.vip4(80)), world.vip4(80), world.a.v4),
    ] {
        world.a.run(|| {
            let stream = TcpStream::connect_timeout(&ask, SOON).expect("connected");
            assert_eq!(stream.peer_addr().expect("peer"), ask, "getpeername");
            assert_eq!(stream.local_addr().expect("local").ip().to_canonical(), own, "getsockname");
            let said = read_line(&stream).expect("answer");
            assert_eq!(said, format!("agent: {} asked for {original}", world.a.name));
        });
    }
    let stats = capture.stats();
    assert_eq!(stats.pods[0].1.outbound_captured, 3);
    assert_eq!(stats.counters, [0; weft_abi::counter::COUNT as usize]);
}

#[test]
fn what_is_not_a_destination_is_not_touched() {
    let Some(world) = World::new() else { return };
    world.b.serve(8080);
    let mut capture = world.open();
    let _worker = Worker::attach(&mut capture, &world.a.spec());
    set(&mut capture, SocketAddr::new(world.b.v4, 9090), verdict::PROXY);
    for own in [world.a.v4, world.a.v6] {
        let to = if own.is_ipv4() { world.b.v4 } else { world.b.v6 };
        assert_eq!(world.a.ask(SocketAddr::new(to, 8080)).expect("direct"), format!("app sees {own}"));
    }
    // Another port of the same address is one.
    let said = world.a.ask(SocketAddr::new(world.b.v4, 9090)).expect("captured");
    assert!(said.starts_with("agent: "), "{said}");
    assert_eq!(capture.stats().pods[0].1.outbound_captured, 1);
}

#[test]
fn a_destination_without_a_port_means_every_port() {
    let Some(world) = World::new() else { return };
    let mut capture = world.open();
    let _worker = Worker::attach(&mut capture, &world.a.spec());
    let proxy = DestVerdict { verdict: verdict::PROXY, pad: 0 };
    let pass = DestVerdict { verdict: verdict::DENY, pad: 0 };
    let vip = world.vip4(0).ip();
    capture.set_destinations([(dest_key(vip, None), Some(proxy)), (dest_key(vip, Some(7)), Some(pass))]).expect("set");
    for port in [1, 80, 65_535] {
        let said = world.a.ask(SocketAddr::new(vip, port)).expect("captured");
        assert!(said.ends_with(&format!("{vip}:{port}")), "{said}");
    }
    // The port's own entry comes first.
    assert_eq!(world.a.ask(SocketAddr::new(vip, 7)).expect_err("denied").kind(), io::ErrorKind::ConnectionRefused);
}

#[test]
fn loopback_and_the_agents_own_listeners_are_no_way_in() {
    let Some(world) = World::new() else { return };
    world.a.serve(8080);
    let mut capture = world.open();
    let _worker = Worker::attach(&mut capture, &world.a.spec());
    for loopback in ["127.0.0.1", "::1"] {
        let ip: IpAddr = loopback.parse().expect("address");
        assert_eq!(world.a.ask(SocketAddr::new(ip, 8080)).expect("direct"), format!("app sees {loopback}"));
        for port in [weft_abi::ports::LISTENER_OUTBOUND, weft_abi::ports::LISTENER_INBOUND] {
            let error = world.a.ask(SocketAddr::new(ip, port)).expect_err("reset");
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{loopback} {port}");
        }
    }
    // To itself by its own address.
    assert_eq!(world.a.ask(SocketAddr::new(world.a.v4, 8080)).expect("direct"), format!("app sees {}", world.a.v4));
    assert_eq!(world.a.ask(SocketAddr::new(world.a.v6, 8080)).expect("direct"), format!("app sees {}", world.a.v6));
}

#[test]
fn a_denied_destination_is_refused_at_once() {
    let Some(world) = World::new() else { return };
    let mut capture = world.open();
    let _worker = Worker::attach(&mut capture, &world.a.spec());
    for to in [world.vip4(80), world.vip6(80)] {
        set(&mut capture, to, verdict::DENY);
        let begun = std::time::Instant::now();
        assert_eq!(world.a.ask(to).expect_err("denied").kind(), io::ErrorKind::ConnectionRefused);
        assert!(begun.elapsed() < Duration::from_millis(100), "{:?}", begun.elapsed());
    }
    assert_eq!(world.a.ask(mapped(world.vip4(80))).expect_err("denied").kind(), io::ErrorKind::ConnectionRefused);
    assert_eq!(capture.stats().pods[0].1.outbound_denied, 3);
}

#[test]
fn what_was_sent_and_closed_before_it_was_accepted_is_not_lost() {
    let Some(world) = World::new() else { return };
    let mut capture = world.open();
    let attachment = capture.attach_pod(&world.a.spec(), &mut Vec::new()).expect("attached");
    let (vip, pod) = (world.vip4(80), std::sync::Arc::clone(&attachment.listeners.pod));
    set(&mut capture, vip, verdict::PROXY);
    world.a.run(|| {
        let mut stream = TcpStream::connect_timeout(&vip, SOON).expect("connected");
        stream.write_all(b"fire and forget\n").expect("sent");
    });
    // Nobody has accepted yet, and the client is gone.
    let listener: &TcpListener = &attachment.listeners.outbound[0];
    let (stream, peer) = listener.accept().expect("waits in the queue");
    stream.set_nonblocking(false).expect("blocking");
    let flow = capture.sockets().take(&pod, stream.local_addr().expect("local"), peer).expect("still known");
    assert_eq!(flow.original_dst, vip);
    assert_eq!(read_line(&stream).expect("data"), "fire and forget");
    assert!(capture.sockets().take(&pod, stream.local_addr().expect("local"), peer).is_none(), "taken only once");
}

#[test]
fn an_entry_that_never_comes_out_of_the_queue_is_swept() {
    let Some(world) = World::new() else { return };
    let mut capture = world.open();
    let _attachment = capture.attach_pod(&world.a.spec(), &mut Vec::new()).expect("attached");
    set(&mut capture, world.vip4(80), verdict::PROXY);
    let live = world.a.run(|| {
        // If the acknowledgement of the end comes while close(2) still holds the socket, the kernel keeps it for this long (tcp(7)).
        fs::write("/proc/sys/net/ipv4/tcp_fin_timeout", "1").expect("set");
        drop(TcpStream::connect_timeout(&world.vip4(80), SOON).expect("connected"));
        TcpStream::connect_timeout(&world.vip4(80), SOON).expect("connected")
    });
    assert_eq!(fill(&capture, "CAPTURED"), 2);
    capture.sweep().expect("swept");
    assert_eq!(fill(&capture, "CAPTURED"), 2, "one sweep only marks");
    wait_until("the closed one is swept", || {
        capture.sweep().expect("swept");
        fill(&capture, "CAPTURED") < 2
    });
    for _ in 0..3 {
        capture.sweep().expect("swept");
        assert_eq!(fill(&capture, "CAPTURED"), 1, "the live one stays");
    }
    drop(live);
}

#[test]
fn a_dial_for_the_pod_leaves_with_its_address_and_is_not_captured() {
    let Some(world) = World::new() else { return };
    world.b.serve(8080);
    let mut capture = world.open();
    let a = Worker::attach(&mut capture, &world.a.spec());
    // Even to a destination that would be proxied, were it not the agent who asks.
    for to in [SocketAddr::new(world.b.v4, 8080), SocketAddr::new(world.b.v6, 8080)] {
        set(&mut capture, to, verdict::PROXY);
        let dial = Dial::Outbound { source: &a.pod, to, to_workload: None, tls: false };
        let (stream, _lease) = connect(&capture.sockets(), &dial).expect("dialled");
        let own = if to.is_ipv4() { world.a.v4 } else { world.a.v6 };
        assert_eq!(read_line(&stream).expect("answer"), format!("app sees {own}"));
    }
    assert_eq!(capture.stats().pods[0].1.outbound_captured, 0);
}

pub(crate) fn fill(capture: &Capture, map: &str) -> u64 {
    capture.stats().maps.iter().find(|fill| fill.map == map).expect("map").entries
}

pub(crate) fn stats(capture: &Capture, pod: &Pod) -> weft_abi::PodStats {
    capture.stats().pods.iter().find(|(id, _)| *id == pod.id()).expect("pod").1
}
