//! Sockets that connect more than once, and sockets that change hands.

use std::{
    fs,
    io::{self, IoSlice, IoSliceMut, Write},
    mem::MaybeUninit,
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    process::{Command, Stdio},
};

use rustix::{
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
        recvmsg, sendmsg,
    },
    process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
};
use socket2::Socket;
use weft_abi::verdict;

use crate::{
    agent::Worker,
    outbound::{fill, mapped, set, stats},
    sockets::{Scene, peer, said, socket},
    world::{SOON, World, read_line, wait_until},
};

#[test]
fn a_socket_that_is_disconnected_and_connects_elsewhere_is_judged_again() {
    let Some(mut scene) = Scene::new() else { return };
    let [v4, v6] = scene.vips();
    let other = |to: SocketAddr| SocketAddr::new(to.ip(), 81);
    for to in [v4, v6] {
        set(&mut scene.capture, other(to), verdict::PROXY);
    }
    let direct = |to: SocketAddr| (scene.direct(to), format!("app sees {}", scene.own(to)));
    let told = |asked: SocketAddr, original: SocketAddr| (asked, scene.answer(original));
    // Of one family, and an IPv6 socket that goes over to IPv4. Linux cannot send it back: it keeps sending IPv4.
    for steps in [
        [told(v4, v4), direct(v4), told(other(v4), other(v4)), direct(v4), told(v4, v4)],
        [told(v6, v6), direct(v6), told(other(v6), other(v6)), direct(v6), told(v6, v6)],
        [
            direct(v6),
            told(v6, v6),
            told(mapped(v4), v4),
            (mapped(direct(v4).0), direct(v4).1),
            told(mapped(other(v4)), other(v4)),
        ],
    ] {
        scene.a().run(|| {
            let socket = socket(steps[0].0);
            for (to, expected) in &steps {
                socket.connect_timeout(&(*to).into(), SOON).expect("connected");
                assert_eq!(peer(&socket), *to);
                assert_eq!(said(&socket), *expected, "{steps:?}");
                // An address of family AF_UNSPEC dissolves the association (connect(2)).
                rustix::net::connect_unspec(&socket).expect("disconnected");
                assert!(socket.peer_addr().is_err(), "no peer");
            }
        });
    }
    wait_until("no entry is left", || fill(&scene.capture, "CAPTURED") == 0);
}

#[test]
fn a_socket_that_was_refused_may_try_elsewhere() {
    let Some(mut scene) = Scene::new() else { return };
    for to in scene.vips() {
        let denied = SocketAddr::new(to.ip(), 82);
        set(&mut scene.capture, denied, verdict::DENY);
        let direct = scene.direct(to);
        let closed = SocketAddr::new(direct.ip(), 9);
        scene.a().run(|| {
            // Refused by policy, by the peer, and both by turns: the same descriptor goes on.
            for refused in [vec![denied], vec![closed], vec![denied, closed, denied]] {
                for (last, expected) in [(to, scene.answer(to)), (direct, format!("app sees {}", scene.own(to)))] {
                    let socket = socket(to);
                    for refusing in &refused {
                        let error = socket.connect(&(*refusing).into()).expect_err("refused");
                        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{refusing}");
                    }
                    socket.connect_timeout(&last.into(), SOON).expect("connected");
                    assert_eq!((said(&socket), peer(&socket)), (expected, last));
                }
            }
            // And the other way round: a connection that was captured leaves nothing to a refused one.
            let socket = socket(to);
            socket.connect_timeout(&to.into(), SOON).expect("connected");
            assert_eq!(said(&socket), scene.answer(to));
            rustix::net::connect_unspec(&socket).expect("disconnected");
            assert_eq!(socket.connect(&denied.into()).expect_err("denied").kind(), io::ErrorKind::ConnectionRefused);
            assert!(socket.peer_addr().is_err(), "no peer");
        });
    }
    wait_until("no entry is left", || fill(&scene.capture, "CAPTURED") == 0);
}

#[test]
fn a_captured_connection_that_was_refused_is_forgotten_by_its_socket() {
    let Some(world) = World::new() else { return };
    world.b.serve(8080);
    let mut capture = world.open();
    // Published and then gone, without anybody's word: between the program's look and the first segment's arrival.
    let worker = Worker::attach(&mut capture, &world.a.spec());
    for (to, direct) in [(world.vip4(80), world.b.v4), (world.vip6(80), world.b.v6)] {
        set(&mut capture, to, verdict::PROXY);
        let socket = world.a.run(|| socket(to));
        world.a.run(|| socket.connect_timeout(&to.into(), SOON).expect("connected"));
        world.a.run(|| rustix::net::connect_unspec(&socket).expect("disconnected"));
        // To the very port of the block, which nobody captured: reset by the pod itself.
        let words = weft_agent::capture::convert::addr(to.ip()).words_be;
        let own = if to.is_ipv4() { world.a.v4 } else { world.a.v6 };
        let redirect = SocketAddr::new(own, weft_abi::ports::redirect_port(&words, to.port(), 0));
        world.a.run(|| {
            let error = socket.connect(&redirect.into()).expect_err("nobody's");
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
            socket.connect_timeout(&SocketAddr::new(direct, 8080).into(), SOON).expect("connected");
            assert_eq!(said(&socket), format!("app sees {own}"));
        });
    }
    drop(worker);
}

#[test]
fn a_connection_that_is_older_than_capture_is_not_touched() {
    let Some(world) = World::new() else { return };
    world.b.serve(8080);
    let targets = [world.b.v4, world.b.v6].map(|ip| SocketAddr::new(ip, 8080));
    let old: Vec<TcpStream> =
        targets.iter().map(|to| world.a.run(|| TcpStream::connect_timeout(to, SOON).expect("connected"))).collect();
    let mut capture = world.open();
    let _worker = Worker::attach(&mut capture, &world.a.spec());
    for (to, mut stream) in targets.iter().zip(&old) {
        let own = if to.is_ipv4() { world.a.v4 } else { world.a.v6 };
        set(&mut capture, *to, verdict::PROXY);
        assert_eq!(stream.peer_addr().expect("peer"), *to);
        stream.write_all(b"still here\n").expect("sent");
        assert_eq!(read_line(stream).expect("answer"), format!("app sees {own}"));
        // A new one to the same place is captured.
        assert!(world.a.ask(*to).expect("captured").starts_with("agent: "));
    }
    assert_eq!(stats(&capture, &world.a).outbound_captured, 2);
}

#[test]
fn a_socket_that_is_passed_on_keeps_its_destination() {
    let Some(scene) = Scene::new() else { return };
    for (to, original) in scene.asked() {
        let (ours, theirs) = UnixStream::pair().expect("pair");
        scene.a().run(|| {
            let socket = socket(to);
            socket.connect_timeout(&to.into(), SOON).expect("connected");
            pass(&ours, &socket);
        });
        // Here is another namespace, and another thread; the one that connected has ended.
        let socket = receive(&theirs);
        assert_eq!((said(&socket), peer(&socket)), (scene.answer(original), to));
        // Disconnected here, it is still a socket of the pod's.
        rustix::net::connect_unspec(&socket).expect("disconnected");
        socket.connect_timeout(&to.into(), SOON).expect("connected");
        assert_eq!((said(&socket), peer(&socket)), (scene.answer(original), to));
    }
    assert_eq!(scene.captured(), 6);
}

/// Sends a descriptor (unix(7), SCM_RIGHTS).
fn pass(to: &UnixStream, socket: &Socket) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [std::os::fd::AsFd::as_fd(socket)];
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)), "there is room");
    sendmsg(to, &[IoSlice::new(b"x")], &mut control, SendFlags::empty()).expect("sent");
}

fn receive(from: &UnixStream) -> Socket {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(from, &mut [IoSliceMut::new(&mut [0])], &mut control, RecvFlags::empty()).expect("received");
    let received = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    received.expect("a descriptor").into()
}

#[test]
fn a_child_and_another_process_see_the_same_connection() {
    let Some(scene) = Scene::new() else { return };
    for to in scene.vips() {
        let netns = &scene.world.a.netns;
        // The child, a copy without another program, reads what the parent's connection is answered; then both wait.
        let script = format!(
            "exec 3<>/dev/tcp/{}/{}; (IFS= read -r -t 5 line <&3; printf '%s\\n' \"$line\"); read -r _",
            to.ip(),
            to.port()
        );
        let mut process = scene
            .world
            .a
            .run(|| Command::new("bash").args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn())
            .expect("bash");
        let mut line = String::new();
        io::BufRead::read_line(&mut io::BufReader::new(process.stdout.take().expect("a pipe")), &mut line)
            .expect("read");
        assert_eq!(line.trim_end(), scene.answer(to), "{}", netns.display());
        // From outside, as a debugger takes it.
        let pid = Pid::from_raw(i32::try_from(process.id()).expect("small")).expect("not zero");
        let taken = pidfd_open(pid, PidfdFlags::empty())
            .and_then(|process| pidfd_getfd(process, 3, PidfdGetfdFlags::empty()))
            .expect("taken");
        assert_eq!(peer(&Socket::from(taken)), to);
        assert!(fs::metadata(format!("/proc/{}/fd/3", process.id())).is_ok());
        drop(process.stdin.take());
        process.wait().expect("ended");
    }
    assert_eq!(scene.captured(), 2);
}
