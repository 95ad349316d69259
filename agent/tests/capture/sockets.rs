//! Every way to make a connection: what the application asked for is known, and it sees what it would see without weft.

use std::{
    io::{self, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    os::fd::AsRawFd,
};

use rustix::event::{PollFd, PollFlags, poll};
use socket2::{Domain, Protocol, Socket, Type};
use weft_abi::{ports, verdict};
use weft_agent::capture::Capture;

use crate::{
    agent::Worker,
    outbound::{fill, mapped, set, stats},
    raw,
    world::{Pod, SOON, World, read_line, wait_until},
};

/// Pod a is captured, and two addresses that nobody has are destinations; pod b serves on port 8080 and is none.
pub(crate) struct Scene {
    pub(crate) capture: Capture,
    _worker: Worker,
    // Last, so that it is dropped last.
    pub(crate) world: World,
}

impl Scene {
    pub(crate) fn new() -> Option<Self> {
        let world = World::new()?;
        world.b.serve(8080);
        let mut capture = world.open();
        let worker = Worker::attach(&mut capture, &world.a.spec());
        for to in [world.vip4(80), world.vip6(80)] {
            set(&mut capture, to, verdict::PROXY);
        }
        Some(Self { capture, _worker: worker, world })
    }

    pub(crate) fn vips(&self) -> [SocketAddr; 2] {
        [self.world.vip4(80), self.world.vip6(80)]
    }

    /// An address of each kind, and what the agent is to be told: a mapped address is the IPv4 address.
    pub(crate) fn asked(&self) -> [(SocketAddr, SocketAddr); 3] {
        let [v4, v6] = self.vips();
        [(v4, v4), (v6, v6), (mapped(v4), v4)]
    }

    pub(crate) fn a(&self) -> &Pod {
        &self.world.a
    }

    /// Where pod b answers, of the same family.
    pub(crate) fn direct(&self, like: SocketAddr) -> SocketAddr {
        SocketAddr::new(if like.is_ipv4() { self.world.b.v4 } else { self.world.b.v6 }, 8080)
    }

    pub(crate) fn own(&self, like: SocketAddr) -> IpAddr {
        if like.ip().to_canonical().is_ipv4() { self.world.a.v4 } else { self.world.a.v6 }
    }

    /// What the agent says to a connection of pod a that it was told of.
    pub(crate) fn answer(&self, original: SocketAddr) -> String {
        format!("agent: {} asked for {original}", self.world.a.name)
    }

    pub(crate) fn captured(&self) -> u64 {
        stats(&self.capture, &self.world.a).outbound_captured
    }
}

pub(crate) fn socket(to: SocketAddr) -> Socket {
    Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP)).expect("socket")
}

/// The first line that comes out of a socket.
pub(crate) fn said(socket: &Socket) -> String {
    read_line(&TcpStream::from(socket.try_clone().expect("another descriptor"))).expect("answer")
}

pub(crate) fn peer(socket: &Socket) -> SocketAddr {
    socket.peer_addr().expect("peer").as_socket().expect("an address of the internet")
}

pub(crate) fn local(socket: &Socket) -> SocketAddr {
    socket.local_addr().expect("local").as_socket().expect("an address of the internet")
}

#[test]
fn a_multipath_socket_is_captured_as_the_tcp_that_it_falls_back_to() {
    let Some(scene) = Scene::new() else { return };
    // Off, the kernel refuses to make such a socket at all.
    assert_eq!(scene.a().sysctl("net/mptcp/enabled"), "1");
    for (to, original) in scene.asked() {
        scene.a().run(|| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::MPTCP)).expect("socket");
            socket.connect_timeout(&to.into(), SOON).expect("connected");
            assert_eq!(said(&socket), scene.answer(original));
            assert_eq!(local(&socket).ip().to_canonical(), scene.own(to));
        });
    }
    assert_eq!(scene.captured(), 3);
    // What is no destination is none for these sockets either.
    let direct = scene.direct(scene.vips()[0]);
    scene.a().run(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)).expect("socket");
        socket.connect_timeout(&direct.into(), SOON).expect("connected");
        assert_eq!(said(&socket), format!("app sees {}", scene.world.a.v4));
        assert_eq!(peer(&socket), direct);
    });
    wait_until("no entry is left", || fill(&scene.capture, "CAPTURED") == 0);
}

/// A limit: what is asked is the socket above the one that was redirected, and has nothing kept with it.
#[test]
fn a_multipath_sockets_peer_is_where_it_was_redirected_to() {
    let Some(scene) = Scene::new() else { return };
    for (to, _) in scene.asked() {
        scene.a().run(|| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::MPTCP)).expect("socket");
            socket.connect_timeout(&to.into(), SOON).expect("connected");
            let peer = peer(&socket);
            assert_eq!(peer.ip().to_canonical(), scene.own(to));
            assert!((ports::REDIRECT_FIRST..ports::REDIRECT_FIRST + ports::REDIRECT_COUNT).contains(&peer.port()));
        });
    }
}

/// Bits of `net.ipv4.tcp_fastopen` (ip-sysctl): as a client, without a cookie; as a server, on every listener, without a cookie.
const FAST_OPEN: &str = "1543";

#[test]
fn data_in_the_first_segment_goes_where_it_was_sent() {
    let Some(scene) = Scene::new() else { return };
    scene.a().run(|| std::fs::write("/proc/sys/net/ipv4/tcp_fastopen", FAST_OPEN).expect("set"));
    for (to, original) in scene.asked() {
        scene.a().run(|| {
            let first = socket(to);
            let sent = first.send_to_with_flags(b"at once\n", &to.into(), libc::MSG_FASTOPEN).expect("sent");
            assert_eq!(sent, 8);
            assert_eq!(said(&first), scene.answer(original), "MSG_FASTOPEN");
            assert_eq!(peer(&first), to);
            // The first write connects (tcp(7)); the destination is decided upon earlier.
            let later = socket(to);
            raw::set_option(&later, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 1).expect("set");
            later.connect(&to.into()).expect("put off");
            (&later).write_all(b"at once\n").expect("sent");
            assert_eq!(said(&later), scene.answer(original), "TCP_FASTOPEN_CONNECT");
            assert_eq!(peer(&later), to);
        });
    }
    assert_eq!(scene.captured(), 6);
    wait_until("no entry is left", || fill(&scene.capture, "CAPTURED") == 0);
}

#[test]
fn a_denied_destination_gets_no_data_in_a_first_segment() {
    let Some(mut scene) = Scene::new() else { return };
    scene.a().run(|| std::fs::write("/proc/sys/net/ipv4/tcp_fastopen", FAST_OPEN).expect("set"));
    for to in scene.vips() {
        set(&mut scene.capture, to, verdict::DENY);
        scene.a().run(|| {
            let error =
                socket(to).send_to_with_flags(b"at once\n", &to.into(), libc::MSG_FASTOPEN).expect_err("denied");
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        });
    }
}

#[test]
fn a_ring_connects_like_a_system_call() {
    let Some(scene) = Scene::new() else { return };
    for by_worker in [false, true] {
        for (to, original) in scene.asked() {
            scene.a().run(|| {
                let socket = socket(to);
                raw::connect_by_ring(socket.as_raw_fd(), to, by_worker).expect("connected, with io_uring enabled");
                assert_eq!(said(&socket), scene.answer(original), "by a worker: {by_worker}");
                assert_eq!(peer(&socket), to);
            });
        }
    }
    assert_eq!(scene.captured(), 6);
    let direct = scene.direct(scene.vips()[1]);
    scene.a().run(|| {
        let socket = socket(direct);
        raw::connect_by_ring(socket.as_raw_fd(), direct, true).expect("connected");
        assert_eq!(said(&socket), format!("app sees {}", scene.world.a.v6));
    });
}

#[test]
fn a_connection_that_is_not_waited_for_is_captured() {
    let Some(scene) = Scene::new() else { return };
    for (to, original) in scene.asked() {
        scene.a().run(|| {
            let socket = socket(to);
            socket.set_nonblocking(true).expect("set");
            let error = socket.connect(&to.into()).expect_err("under way");
            assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS));
            let wait = rustix::time::Timespec { tv_sec: 5, tv_nsec: 0 };
            let mut ready = [PollFd::new(&socket, PollFlags::OUT)];
            assert_eq!(poll(&mut ready, Some(&wait)).expect("polled"), 1);
            assert!(socket.take_error().expect("asked").is_none());
            // As some programs ask whether it is done.
            let again = socket.connect(&to.into());
            assert!(again.is_ok() || again.is_err_and(|error| error.raw_os_error() == Some(libc::EISCONN)));
            assert_eq!(peer(&socket), to);
            socket.set_nonblocking(false).expect("set");
            assert_eq!(said(&socket), scene.answer(original));
        });
    }
    assert_eq!(scene.captured(), 3);
}

#[test]
fn a_socket_of_ipv6_only_speaks_only_ipv6() {
    let Some(scene) = Scene::new() else { return };
    let [v4, v6] = scene.vips();
    scene.a().run(|| {
        for only in [true, false] {
            let socket = socket(v6);
            socket.set_only_v6(only).expect("set");
            socket.connect_timeout(&v6.into(), SOON).expect("connected");
            assert_eq!(said(&socket), scene.answer(v6));
            assert_eq!(peer(&socket), v6);
        }
        let both = socket(v6);
        both.set_only_v6(false).expect("set");
        both.connect_timeout(&mapped(v4).into(), SOON).expect("connected");
        assert_eq!(said(&both), scene.answer(v4));
        // As without weft (ipv6(7), IPV6_V6ONLY).
        let only = socket(v6);
        only.set_only_v6(true).expect("set");
        let error = only.connect(&mapped(v4).into()).expect_err("another family");
        assert_eq!(error.raw_os_error(), Some(libc::ENETUNREACH));
    });
}

#[test]
fn a_socket_that_is_bound_to_an_interface_is_captured() {
    let Some(scene) = Scene::new() else { return };
    for (to, original) in scene.asked() {
        scene.a().run(|| {
            let socket = socket(to);
            socket.bind_device(Some(b"eth0")).expect("bound");
            socket.connect_timeout(&to.into(), SOON).expect("connected");
            assert_eq!(said(&socket), scene.answer(original));
            assert_eq!(peer(&socket), to);
        });
    }
    assert_eq!(scene.captured(), 3);
}

#[test]
fn a_marked_socket_is_captured_like_any_other() {
    let Some(scene) = Scene::new() else { return };
    for mark in [weft_abi::TRANSPARENT_MARK, 1, u32::MAX] {
        for (to, original) in scene.asked() {
            scene.a().run(|| {
                let socket = socket(to);
                socket.set_mark(mark).expect("marked");
                socket.connect_timeout(&to.into(), SOON).expect("connected");
                assert_eq!(said(&socket), scene.answer(original), "mark {mark:#x}");
                assert_eq!(peer(&socket), to);
            });
        }
    }
}
