//! Mutual TLS between nodes, as the kernel sees it: where it is dialled from, and who may have it where it arrives.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use socket2::{Domain, Socket, Type};
use weft_abi::{counter, ports};
use weft_agent::capture::{Capture, cleanup};
use weft_proxy::socket::{Dial, SocketError, SocketFactory};

use crate::{
    agent::{Worker, connect},
    outbound::stats,
    world::{Pod, SOON, World, read_line, wait_until},
};

/// Connects from the pod and a port of the block, as another node's agent would.
fn dial_from_block(pod: &Pod, port: u16, to: SocketAddr) -> io::Result<TcpStream> {
    let own = if to.is_ipv4() { pod.v4 } else { pod.v6 };
    pod.run(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::new(own, port).into())?;
        socket.connect_timeout(&to.into(), SOON)?;
        Ok(socket.into())
    })
}

/// Counts what reaches an application that is served with it.
fn count_connections(pod: &Pod, port: u16) -> Arc<AtomicU64> {
    let count = Arc::new(AtomicU64::new(0));
    for any in ["0.0.0.0", "::"] {
        let ip: IpAddr = any.parse().expect("address");
        let listener = pod.run(|| {
            let socket = Socket::new(Domain::for_address(SocketAddr::new(ip, port)), Type::STREAM, None)?;
            if ip.is_ipv6() {
                socket.set_only_v6(true)?;
            }
            socket.bind(&SocketAddr::new(ip, port).into())?;
            socket.listen(128)?;
            Ok::<TcpListener, io::Error>(socket.into())
        });
        let (listener, count) = (listener.expect("application listens"), Arc::clone(&count));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                count.fetch_add(1, Ordering::SeqCst);
                drop(stream);
            }
        });
    }
    count
}

fn both(world: &World, port: u16) -> [SocketAddr; 2] {
    [world.b.v4, world.b.v6].map(|ip| SocketAddr::new(ip, port))
}

fn expect_reset(world: &World, port: u16, what: &str) {
    for to in both(world, 8080) {
        let begun = Instant::now();
        let error = dial_from_block(&world.a, port, to).expect_err(what);
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{what}: {to}: {error}");
        assert!(begun.elapsed() < Duration::from_secs(1), "{what}: {to}: a reset comes at once");
    }
}

#[test]
fn mutual_tls_is_dialled_from_the_pods_own_address_and_the_block() {
    let Some(world) = World::new() else { return };
    let mut capture = world.open();
    let a = Worker::attach(&mut capture, &world.a.spec());
    let sockets = capture.sockets();
    let listeners = both(&world, 8080).map(|at| world.b.run(|| TcpListener::bind(at)).expect("application listens"));
    let mut held = Vec::new();
    for listener in &listeners {
        let to = listener.local_addr().expect("address");
        let own = if to.is_ipv4() { world.a.v4 } else { world.a.v6 };
        // A destination that somebody says is captured here: mutual TLS gets no way round an agent even then.
        let dial = Dial::Outbound { source: &a.pod, to, to_workload: Some(&a.pod.id), tls: true };
        let dialled: Vec<_> = (0..3).map(|_| connect(&sockets, &dial).expect("dialled")).collect();
        let mut seen = Vec::new();
        for _ in &dialled {
            let peer = listener.accept().expect("accepted").1;
            assert_eq!(peer.ip(), own);
            assert!(sockets.is_tls_port(peer.port()), "{peer}");
            seen.push(peer.port());
        }
        seen.dedup();
        assert_eq!(seen.len(), 3, "one port for each connection");
        held.extend(dialled);
    }
    assert!(!sockets.is_tls_port(ports::TLS_DIAL_FIRST - 1) && !sockets.is_tls_port(ports::TLS_DIAL_LAST + 1));
    assert_eq!(capture.stats().counters[counter::BYPASS_ADDED as usize], 0);

    // A pod without an address of that family cannot reach it with its own.
    drop((held, a));
    capture.release_pod(&world.a.id()).expect("released");
    let mut spec = world.a.spec();
    spec.ips.truncate(1);
    let pod = capture.attach_pod(&spec, &mut Vec::new()).expect("attached").listeners.pod;
    let to = SocketAddr::new(world.b.v6, 8080);
    let dial = Dial::Outbound { source: &pod, to, to_workload: None, tls: true };
    let error = capture.sockets().socket(&dial).expect_err("no IPv6");
    assert!(matches!(error, SocketError::NoAddress { .. }), "{error}");
}

#[test]
fn one_destination_takes_more_connections_than_the_block_has_ports_while_all_are_in_time_wait() {
    // Which side closes first ends in TIME_WAIT for a minute.
    for client_closes in [true, false] {
        let Some(world) = World::new() else { return };
        let mut capture = world.open();
        let a = Worker::attach(&mut capture, &world.a.spec());
        let to = SocketAddr::new(world.b.v4, 8080);
        let listener = world.b.run(|| TcpListener::bind(to)).expect("application listens");
        let block = usize::from(ports::TLS_DIAL_LAST - ports::TLS_DIAL_FIRST) + 1;
        let dial = Dial::Outbound { source: &a.pod, to, to_workload: None, tls: true };
        let begun = Instant::now();
        let connections = block * 2;
        for index in 0..connections {
            let (mut client, lease) = connect(&capture.sockets(), &dial).unwrap_or_else(|error| {
                panic!("connection {index} after {:?}, client closes: {client_closes}: {error}", begun.elapsed())
            });
            let mut server = listener.accept().expect("accepted").0;
            let (first, second) = if client_closes { (&mut client, &mut server) } else { (&mut server, &mut client) };
            first.shutdown(std::net::Shutdown::Write).expect("closed");
            assert_eq!(second.read(&mut [0]).expect("ended"), 0);
            second.shutdown(std::net::Shutdown::Write).expect("closed");
            assert_eq!(first.read(&mut [0]).expect("ended"), 0);
            drop((client, server, lease));
        }
        println!(
            "{:.0} connections a second one after the other, client closes first: {client_closes}",
            connections as f64 / begun.elapsed().as_secs_f64()
        );
    }
}

#[test]
fn only_an_agent_gets_what_comes_from_the_block() {
    for fail_closed in [false, true] {
        let Some(world) = World::new() else { return };
        let reached = count_connections(&world.b, 8080);
        let mut capture = world.open();
        let mut spec = world.b.spec();
        spec.fail_closed = fail_closed;
        let worker = Worker::attach(&mut capture, &spec);
        for to in both(&world, 8080) {
            let _stream = dial_from_block(&world.a, ports::TLS_DIAL_FIRST, to).expect("the agent takes it");
        }
        wait_until("the agent has both", || worker.accepted() == 2);

        let direct = |count: u64| {
            for to in both(&world, 8080) {
                let mut stream = world.a.run(|| TcpStream::connect_timeout(&to, SOON)).expect("direct");
                assert_eq!(stream.read(&mut [0]).expect("the application closes"), 0);
            }
            wait_until("the application has both", || reached.load(Ordering::SeqCst) == count);
        };
        // What the smallest agent does with them is to pass them on.
        wait_until("passed on", || reached.load(Ordering::SeqCst) == 2);
        world.stop_beating();
        let before = stats(&capture, &world.b).inbound_refused;
        expect_reset(&world, ports::TLS_DIAL_LAST, "the agent hangs");
        assert!(stats(&capture, &world.b).inbound_refused >= before + 2);
        if !fail_closed {
            direct(4);
        }
        drop((worker, capture));
        expect_reset(&world, ports::TLS_DIAL_FIRST + 7, "the agent is dead");
        if !fail_closed {
            direct(6);
        }
        assert_eq!(reached.load(Ordering::SeqCst), if fail_closed { 2 } else { 6 });
    }
}

#[test]
fn a_client_hello_that_comes_after_its_agent_died_reaches_no_application() {
    let Some(world) = World::new() else { return };
    let reached = count_connections(&world.b, 8080);
    for to in both(&world, 8080) {
        let capture = &mut world.open();
        // Nobody accepts.
        let attachment = capture.attach_pod(&world.b.spec(), &mut Vec::new()).expect("attached");
        let socket = world.a.run(|| {
            let own = if to.is_ipv4() { world.a.v4 } else { world.a.v6 };
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).expect("socket");
            // Holds the last segment of the handshake back until there are data to go with it (tcp(7)).
            rustix::net::sockopt::set_tcp_quickack(socket.as_fd(), false).expect("option");
            socket.set_reuse_address(true).expect("option");
            socket.bind(&SocketAddr::new(own, ports::TLS_DIAL_FIRST + 1).into()).expect("bound");
            socket.connect_timeout(&to.into(), SOON).expect("the listener answers");
            socket
        });
        drop(attachment);
        capture.release_pod(&world.b.id()).expect("released");
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(SOON)).expect("timeout");
        // The first may still be accepted by a kernel that has not seen the reset.
        let ended = stream.write_all(b"\x16\x03\x01hello").and_then(|()| stream.read(&mut [0]).map(drop));
        let error = ended.expect_err("reset");
        assert!(matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe), "{to}: {error}");
    }
    assert_eq!(reached.load(Ordering::SeqCst), 0);
}

#[test]
fn a_released_pod_refuses_the_block_for_a_while_and_nothing_else() {
    let Some(mut world) = World::new() else { return };
    let reached = count_connections(&world.b, 8080);
    let mut capture = world.open();
    drop(Worker::attach(&mut capture, &world.b.spec()));
    capture.release_pod(&world.b.id()).expect("released");
    let refused = |capture: &Capture| capture.stats().counters[counter::TLS_TO_RELEASED as usize];
    expect_reset(&world, ports::TLS_DIAL_FIRST, "released");
    assert_eq!(refused(&capture), 2);
    assert_eq!(links(&world), 1);
    for to in both(&world, 8080) {
        drop(dial_from_block(&world.a, ports::TLS_DIAL_FIRST - 1, to).expect("direct"));
    }
    wait_until("the application has both", || reached.load(Ordering::SeqCst) == 2);

    // The next agent leaves it so.
    drop(capture);
    let mut capture = world.open();
    capture.release_unclaimed().expect("released");
    capture.sweep().expect("swept");
    expect_reset(&world, ports::TLS_DIAL_FIRST + 1, "released by an earlier agent");

    // Captured again, the agent gets it.
    let worker = Worker::attach(&mut capture, &world.b.spec());
    assert_eq!(links(&world), 0);
    for to in both(&world, 8080) {
        drop(dial_from_block(&world.a, ports::TLS_DIAL_FIRST + 2, to).expect("the agent takes it"));
    }
    wait_until("the agent has both", || worker.accepted() == 2);
    drop((worker, capture));

    // An agent that finds nobody claiming a captured pod releases it like any other.
    world.config.refuse_tls_for = Duration::from_secs(1);
    let mut capture = world.open();
    let begun = Instant::now();
    assert_eq!(capture.release_unclaimed().expect("released"), 1);
    if begun.elapsed() < world.config.refuse_tls_for / 2 {
        expect_reset(&world, ports::TLS_DIAL_FIRST + 3, "nobody claims it");
    }
    let reached_before = reached.load(Ordering::SeqCst);
    wait_until("the while is over", || {
        dial_from_block(&world.a, ports::TLS_DIAL_FIRST + 4, SocketAddr::new(world.b.v4, 8080)).is_ok()
    });
    wait_until("the application has it", || reached.load(Ordering::SeqCst) == reached_before + 1);
    assert_eq!(links(&world), 1);
    capture.sweep().expect("swept");
    assert_eq!(links(&world), 0);
}

#[test]
fn what_is_left_of_a_released_pod_goes_with_its_namespace_and_with_weft() {
    let Some(world) = World::new() else { return };
    world.b.serve(8080);
    let mut capture = world.open();
    for pod in [&world.a, &world.b] {
        drop(Worker::attach(&mut capture, &pod.spec()));
        capture.release_pod(&pod.id()).expect("released");
    }
    assert_eq!(links(&world), 2);
    crate::world::run("ip", &format!("netns del {}", world.a.name));
    wait_until("the link of the namespace that is gone is removed", || {
        capture.sweep().expect("swept");
        links(&world) == 1
    });
    drop(capture);
    let report = cleanup(&world.config).expect("cleaned");
    assert!(report.complete() && report.links == 8, "{report:?}");
    assert!(!world.config.bpf_dir.exists());
    let node = TcpStream::connect_timeout(&SocketAddr::new(world.b.v4, 8080), SOON).expect("connected");
    assert_eq!(read_line(&node).expect("answer"), format!("app sees {}", world.node_v4));
}

/// Programs that were left in released pods.
fn links(world: &World) -> usize {
    let dir = world.config.bpf_dir.join(format!("v{}", weft_abi::ABI_VERSION));
    let entries = std::fs::read_dir(dir).expect("pins").flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("link_released_")).count()
}
