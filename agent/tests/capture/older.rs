//! Connections that are older than capture: found, told from those that the agent carries, and ended.

use std::{
    io::{self, Read},
    net::{SocketAddr, TcpStream},
};

use weft_agent::capture::Cut;

use crate::{
    agent::Worker,
    world::{Pod, SOON, World, read_line, wait_until},
};

/// A connection that the application has answered on.
fn begin(pod: &Pod, to: SocketAddr) -> TcpStream {
    let stream = pod.run(|| TcpStream::connect_timeout(&to, SOON)).expect("connected");
    read_line(&stream).expect("answered");
    stream
}

fn end(mut stream: &TcpStream) -> io::Result<usize> {
    stream.read(&mut [0])
}

#[test]
fn a_connection_that_is_older_than_capture_is_found_and_reset_and_no_other() {
    let Some(world) = World::new() else { return };
    world.a.serve(8081);
    world.b.serve(8080);
    for ip in [world.b.v4, world.b.v6] {
        let to = SocketAddr::new(ip, 8080);
        let older = begin(&world.a, to);
        let itself = begin(&world.b, to);
        let made = begin(&world.b, SocketAddr::new(if ip.is_ipv4() { world.a.v4 } else { world.a.v6 }, 8081));
        let of_the_node = TcpStream::connect_timeout(&to, SOON).expect("connected");
        read_line(&of_the_node).expect("answered");

        let mut capture = world.open();
        let worker = Worker::attach(&mut capture, &world.b.spec());
        let carried = begin(&world.a, to);
        assert_eq!(worker.accepted(), 1);
        let found = capture.older_connections(&world.b.id()).expect("listed");
        let clients: Vec<SocketAddr> = found.inbound.iter().map(|one| one.client).collect();
        assert_eq!(clients, [older.local_addr().expect("address")]);
        assert_eq!(found.inbound[0].to, to);
        assert!(!found.more);

        let mut cutter = capture.cutter(&world.b.id()).expect("cutter");
        assert_eq!(cutter.cut(&found.inbound[0], None).expect("cut"), Cut::Done);
        assert_eq!(end(&older).expect_err("reset").kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(cutter.cut(&found.inbound[0], None).expect("cut"), Cut::Gone);
        wait_until("it is gone", || capture.older_connections(&world.b.id()).expect("listed").inbound.is_empty());
        for stream in [&itself, &made, &of_the_node, &carried] {
            stream.set_nonblocking(true).expect("set");
            assert_eq!(end(stream).expect_err("open").kind(), io::ErrorKind::WouldBlock);
        }
        drop(cutter);
        drop(worker);
        capture.release_pod(&world.b.id()).expect("released");
    }
}
