use std::{io::Write, net::TcpListener};

use super::*;

fn load(target: SocketAddr, pace: Pace) -> Load {
    Load {
        target,
        connections: 1,
        pace,
        warm_up: Duration::ZERO,
        window: Duration::from_millis(600),
        requests_max: u64::MAX,
        cgroups: Vec::new(),
        seed: 1,
    }
}

/// A server that answers at once, but for one stall before its `stall_at`th answer.
fn stalling_server(stall_at: u32, stall: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
    let address = listener.local_addr().expect("address");
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        stream.set_nodelay(true).expect("set");
        let response = message::response(b'a');
        let mut buffer = [0; 4096];
        for answered in 0.. {
            if stream.read(&mut buffer).expect("a request") == 0 {
                return;
            }
            if answered == stall_at {
                // The stall is what is measured here.
                std::thread::sleep(stall);
            }
            if stream.write_all(&response).is_err() {
                return;
            }
        }
    });
    address
}

fn responder() -> SocketAddr {
    let listener = poll::listen(([127, 0, 0, 1], 0).into()).expect("listens");
    let address = listener.local_addr().expect("address");
    std::thread::spawn(move || responder::serve(&listener, b'b'));
    address
}

#[test]
fn a_stall_is_counted_for_every_request_that_was_due_in_it() {
    let target = stalling_server(50, Duration::from_millis(300));
    let report = load(target, Pace::Open(500)).run().expect("runs");
    assert_eq!((report.errors, report.unanswered), (0, 0), "{report:?}");
    assert!((200..400).contains(&report.requests), "{report:?}");
    // Half of the window was stalled. Counted from the moment of sending, only one request in 300 would have been slow.
    assert!(report.max_us > 250_000, "{report:?}");
    assert!(report.p99_us > 200_000, "{report:?}");
    let report = load(responder(), Pace::Open(500)).run().expect("runs");
    assert!(report.p50_us < 100_000, "{report:?}");
}

#[test]
fn a_closed_loop_asks_as_fast_as_it_is_answered() {
    let report = Load { connections: 8, ..load(responder(), Pace::Closed) }.run().expect("runs");
    assert_eq!(report.errors, 0);
    assert!(report.requests > 1_000, "{report:?}");
    assert_eq!(report.backends.keys().copied().collect::<String>(), "b");
}

#[test]
fn a_run_can_be_ended_by_its_number_of_requests() {
    let report = Load { requests_max: 100, ..load(responder(), Pace::Closed) }.run().expect("runs");
    assert!((100..110).contains(&report.requests), "{report:?}");
}

#[test]
fn requests_that_are_never_answered_are_in_the_latencies() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
    let target = listener.local_addr().expect("address");
    let load = Load { window: Duration::from_millis(100), ..load(target, Pace::Open(200)) };
    let mut run = Run::new(&load).expect("run");
    run.connect().expect("connects");
    let now_ns = clock::now_ns();
    run.window = now_ns..now_ns + 100_000_000;
    run.schedule = Some(Schedule::new(200, now_ns, 1));
    run.drive(run.window.end).expect("drives");
    let waiting = run.waiting();
    assert!((5..60).contains(&waiting.len()), "{waiting:?}");
    assert!(waiting.iter().all(|due_ns| run.window.contains(due_ns)));
}

#[test]
fn a_target_that_only_breaks_connections_is_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
    let target = listener.local_addr().expect("address");
    std::thread::spawn(move || listener.incoming().flatten().for_each(drop));
    assert!(load(target, Pace::Closed).run().is_err());
}

#[test]
fn held_connections_were_each_answered() {
    assert_eq!(hold(responder(), 200).expect("held").len(), 200);
}
