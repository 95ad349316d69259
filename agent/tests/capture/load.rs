//! Many connections, ended in every way: no entry may be left behind, and none may pass unseen.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use weft_abi::{counter, verdict};
use weft_proxy::socket::Dial;

use crate::{
    agent::{Worker, connect},
    outbound::{fill, set, stats},
    world::{SOON, World, wait_until},
};

/// As many as found what was wrong with less careful designs.
const CONNECTIONS: usize = 6_000;
const THREADS: usize = 4;

/// Ends a connection in one of several ways.
fn end(mut stream: TcpStream, way: usize) {
    match way % 5 {
        0 => drop(stream),
        1 => {
            let _reset = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        }
        2 => {
            let _sent = stream.write_all(b"half closed\n");
            let _shut = stream.shutdown(Shutdown::Write);
            let _rest = stream.read(&mut [0; 64]);
        }
        3 => {
            let _sent = stream.write_all(b"fire and forget\n");
        }
        _ => {
            let _answer = stream.read(&mut [0; 64]);
        }
    }
}

#[test]
fn thousands_of_mixed_connections_leave_nothing_behind() {
    let Some(world) = World::new() else { return };
    world.b.serve(8080);
    let mut capture = world.open();
    let (a, b) = (Worker::attach(&mut capture, &world.a.spec()), Worker::attach(&mut capture, &world.b.spec()));
    set(&mut capture, world.vip4(80), verdict::PROXY);
    set(&mut capture, world.vip6(80), verdict::PROXY);
    let (sockets, failed) = (capture.sockets(), std::sync::atomic::AtomicUsize::new(0));
    let share = CONNECTIONS / THREADS;
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (world, a, b, sockets, failed) = (&world, &a, &b, &sockets, &failed);
            scope.spawn(move || {
                let targets = [
                    world.vip4(80),
                    world.vip6(80),
                    SocketAddr::new(world.b.v4, 8080),
                    SocketAddr::new(world.b.v6, 8080),
                ];
                // In the pod, and on a thread of the agent, by turns.
                let in_pod = |from: usize| {
                    world.a.run(|| {
                        for index in from..from + share / 2 {
                            match TcpStream::connect_timeout(&targets[index % 4], SOON) {
                                Ok(stream) => end(stream, index / 4),
                                Err(error) => {
                                    eprintln!("connection {index}: {error}");
                                    failed.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                                }
                            }
                        }
                    });
                };
                in_pod(thread);
                for index in 0..share - share / 2 {
                    let closed = index % 10 == 9;
                    let to = SocketAddr::new(
                        if index % 2 == 0 { world.b.v4 } else { world.b.v6 },
                        if closed { 9 } else { 8080 },
                    );
                    let dial = Dial::Outbound { source: &a.pod, to, to_workload: Some(&b.pod.id), tls: false };
                    match connect(sockets, &dial) {
                        Ok((stream, _lease)) => end(stream, index / 10),
                        Err(_) if closed => {}
                        Err(error) => {
                            eprintln!("dial {index}: {error}");
                            failed.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    assert_eq!(failed.into_inner(), 0);
    for map in ["CAPTURED", "BYPASS", "NODE_FLOWS"] {
        wait_until(map, || fill(&capture, map) == 0);
    }
    let each_way = u64::try_from(CONNECTIONS / 4).expect("small");
    let of_a = stats(&capture, &world.a);
    assert_eq!((of_a.outbound_captured, of_a.outbound_direct), (each_way, 0));
    // Those of the pod's own, and not one of the agent's.
    let accepted = [&a, &b].map(|worker| worker.accepted());
    assert_eq!(accepted, [0, each_way]);
    let of_b = stats(&capture, &world.b);
    // A segment for a connection that is gone is looked up too, and counted; on a slow machine that happens often.
    assert!(of_b.inbound_captured >= each_way, "{of_b:?}");
    assert_eq!((of_b.inbound_direct, of_b.inbound_node), (0, 0));
    let counters = capture.stats().counters;
    for slot in [counter::CAPTURED_FULL, counter::BYPASS_FULL, counter::STORAGE_FULL, counter::REDIRECT_LOST] {
        assert_eq!(counters[slot as usize], 0, "{slot}");
    }
}
