//! What both kinds of bound are tested for.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use crate::{
    limits,
    load::{Load, LoadReport, Pace},
    message, poll, responder,
};

/// Two responders, called a and b.
pub(crate) fn backends() -> [SocketAddr; 2] {
    [b'a', b'b'].map(|name| {
        let listener = poll::listen(([127, 0, 0, 1], 0).into()).expect("listens");
        let address = listener.local_addr().expect("address");
        std::thread::spawn(move || responder::serve(&listener, name));
        address
    })
}

fn run(target: SocketAddr, connections: usize) -> LoadReport {
    let load = Load {
        target,
        connections,
        pace: Pace::Closed,
        warm_up: Duration::ZERO,
        window: Duration::from_secs(10),
        requests_max: 5_000,
        cgroups: Vec::new(),
        seed: 1,
    };
    load.run().expect("runs")
}

pub(crate) fn splits_requests(target: SocketAddr) {
    let report = run(target, 16);
    assert_eq!(report.errors, 0, "{report:?}");
    let first = report.backends.get(&'a').copied().unwrap_or_default();
    let share = first * 100 / report.requests;
    // Four standard deviations of 5,000 choices: 1.7 percentage points.
    assert!((88..=92).contains(&share), "{report:?}");
}

pub(crate) fn carries_bytes(target: SocketAddr) {
    for _ in 0..5 {
        let report = run(target, 1);
        assert_eq!((report.errors, report.backends.len()), (0, 1), "{report:?}");
    }
}

pub(crate) fn carries_pieces(target: SocketAddr) {
    let mut client = TcpStream::connect(target).expect("connects");
    client.set_nodelay(true).expect("set");
    for piece in message::REQUEST.chunks(7) {
        client.write_all(piece).expect("sent");
    }
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while message::head_end(&answer).is_none_or(|end| answer.len() < end + limits::BODY_BYTES) {
        let length = client.read(&mut buffer).expect("answered");
        assert_ne!(length, 0, "closed");
        answer.extend_from_slice(&buffer[..length]);
    }
    assert_eq!(message::status(&answer), Some(200));
}
