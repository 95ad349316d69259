use std::{fs::File, io::Write, os::unix::net::UnixListener, thread};

use super::*;

const WAIT: Duration = Duration::from_millis(300);
/// What a loaded machine may take on top.
const SLACK: Duration = Duration::from_secs(20);

fn question() -> Question {
    Question { namespace: "n".to_owned(), name: "p".to_owned(), uid: None, ips: Vec::new() }
}

/// Asks while `agent` has the listener; tells how long that took.
fn against(agent: impl FnOnce(UnixListener) + Send + 'static) -> (Result<Answer, AskError>, Duration) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let agent = thread::spawn(move || agent(listener));
    let netns = File::open("/proc/self/ns/net").unwrap();
    let since = Instant::now();
    let answer = ask(&path, &question(), netns.as_fd(), WAIT);
    let took = since.elapsed();
    agent.join().unwrap();
    (answer, took)
}

fn until_question_ends(stream: &mut std::os::unix::net::UnixStream) {
    let mut byte = [0];
    while stream.read(&mut byte).unwrap() == 1 && byte != *b"\n" {}
}

#[test]
fn nobody_waits_for_an_agent_that_is_not_there() {
    let directory = tempfile::tempdir().unwrap();
    let netns = File::open("/proc/self/ns/net").unwrap();
    let path = directory.path().join("s");
    // One that was killed leaves its socket.
    for left_behind in [false, true] {
        if left_behind {
            drop(UnixListener::bind(&path).unwrap());
        }
        let wait = Duration::from_secs(600);
        assert!(matches!(ask(&path, &question(), netns.as_fd(), wait), Err(AskError::NoAgent(_))));
    }
}

#[test]
fn an_agent_that_hangs_is_waited_for_no_longer_than_said() {
    let hangs_after_accept = |listener: UnixListener| {
        let connection = listener.accept().unwrap();
        thread::sleep(2 * WAIT);
        drop(connection);
    };
    let never_accepts = |listener: UnixListener| {
        thread::sleep(2 * WAIT);
        drop(listener);
    };
    let closes_again_and_again = |listener: UnixListener| {
        listener.set_nonblocking(true).unwrap();
        let since = Instant::now();
        while since.elapsed() < 2 * WAIT {
            drop(listener.accept());
            thread::yield_now();
        }
    };
    let dribbles = |listener: UnixListener| {
        let (mut stream, _) = listener.accept().unwrap();
        // Until the plugin has gone.
        while stream.write_all(b" ").is_ok() {
            thread::sleep(WAIT / 20);
        }
    };
    for (name, (answer, took)) in [
        ("hangs", against(hangs_after_accept)),
        ("never accepts", against(never_accepts)),
        ("closes", against(closes_again_and_again)),
        ("dribbles", against(dribbles)),
    ] {
        assert!(matches!(answer, Err(AskError::Late(_))), "{name}: {answer:?}");
        assert!(took >= WAIT && took < WAIT + SLACK, "{name}: {took:?}");
    }
}

#[test]
fn a_full_queue_is_waited_for_no_longer_than_said() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    listener.bind(&SockAddr::unix(&path).unwrap()).unwrap();
    listener.listen(0).unwrap();
    let _first = std::os::unix::net::UnixStream::connect(&path).unwrap();
    let netns = File::open("/proc/self/ns/net").unwrap();
    let since = Instant::now();
    let answer = ask(&path, &question(), netns.as_fd(), WAIT);
    assert!(matches!(answer, Err(AskError::Late(_))), "{answer:?}");
    assert!(since.elapsed() >= WAIT && since.elapsed() < WAIT + SLACK);
}

#[test]
fn the_next_agent_is_asked_when_one_hands_over() {
    let (answer, _) = against(|listener| {
        drop(listener.accept().unwrap());
        let (mut stream, _) = listener.accept().unwrap();
        until_question_ends(&mut stream);
        stream.write_all(b"{\"result\":\"captured\"}\n").unwrap();
    });
    assert!(matches!(answer, Ok(Answer::Captured)), "{answer:?}");
}

#[test]
fn what_is_no_answer_is_none() {
    for text in [&b"captured\n"[..], b"{\"result\":\"perhaps\"}\n", &[b'x'; limits::CNI_MESSAGE_BYTES_MAX + 2000]] {
        let (answer, _) = against(move |listener| {
            let (mut stream, _) = listener.accept().unwrap();
            until_question_ends(&mut stream);
            // The plugin need not read to the end.
            let _ = stream.write_all(text);
        });
        assert!(matches!(answer, Err(AskError::Unreadable(_))), "{answer:?}");
    }
}
