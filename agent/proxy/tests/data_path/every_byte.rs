//! Connections that end after every byte of a request and of a response, on either side, in order or by a reset. Beside them a
//! neighbour uses the same endpoint, and so the same pool: it must never get what was meant for somebody else.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{io::AsyncWriteExt, net::TcpStream, task::JoinHandle};
use weft_policy::plan::AppProtocol;
use weft_proxy::config::ProxyConfig;

use crate::{
    mesh::{Mesh, service, soon, until, vip},
    origin::Origin,
    raw::{Ended, Reader, Seen},
};

/// How a side ends its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    InOrder,
    Reset,
}

const ENDS: [End; 2] = [End::InOrder, End::Reset];

/// Requests of every framing, as heads and bodies. `CASE` stands for the number that tells the server which case it is.
const REQUESTS: [&[(&str, &str)]; 5] = [
    &[("GET /cut HTTP/1.1\r\nHost: web\r\nX-Case: CASE\r\n\r\n", "")],
    &[("POST /cut HTTP/1.1\r\nHost: web\r\nX-Case: CASE\r\nContent-Length: 10\r\n\r\n", "0123456789")],
    &[(
        "POST /cut HTTP/1.1\r\nHost: web\r\nX-Case: CASE\r\nTransfer-Encoding: chunked\r\n\r\n",
        "3\r\nabc\r\na\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\n",
    )],
    &[("PUT /cut HTTP/1.1\r\nHost: web\r\nX-Case: CASE\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n", "hello")],
    &[
        ("GET / HTTP/1.1\r\nHost: web\r\n\r\n", ""),
        ("POST /cut HTTP/1.1\r\nHost: web\r\nX-Case: CASE\r\nContent-Length: 3\r\n\r\n", "abc"),
    ],
];

/// Responses of every framing, with what comes before the body and the body.
const RESPONSES: [(&str, &str); 6] = [
    ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", "0123456789"),
    ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "3\r\nabc\r\na\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\n"),
    ("HTTP/1.1 200 OK\r\n\r\n", UP_TO_THE_END),
    ("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", "abc"),
    ("HTTP/1.1 204 No Content\r\nX-Long: 0123456789\r\n\r\n", ""),
    ("HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\n", "four"),
];
/// A body that has no length of its own: whatever arrives before the connection ends in order is all of it.
const UP_TO_THE_END: &str = "up to the end";

fn response(which: usize) -> String {
    let (head, body) = RESPONSES[which];
    format!("{head}{body}")
}

/// A server for scripted cases.
#[derive(Clone, Default)]
struct Scripted {
    /// Cases whose request arrived whole.
    whole: Arc<Mutex<HashSet<u64>>>,
}

impl Scripted {
    async fn start() -> (SocketAddr, Self) {
        let (origin, scripted) = (Origin::bind().await, Self::default());
        let (address, running) = (origin.address, scripted.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = origin.listener.accept().await {
                stream.set_nodelay(true).unwrap();
                tokio::spawn(running.clone().serve(stream));
            }
        });
        (address, scripted)
    }

    async fn serve(self, stream: TcpStream) {
        let mut reader = Reader::new(stream);
        while let Seen::Whole(request) = reader.request().await {
            let number = request.field("x-case").map(|case| case.parse::<u64>().unwrap());
            if let Some(number) = number {
                self.whole.lock().unwrap().insert(number);
            }
            let target = request.first.split(' ').nth(1).unwrap().to_owned();
            let mut parts = target.trim_start_matches('/').split('/');
            match parts.next() {
                // Ends after so many bytes of a response.
                Some("response") => {
                    let mut next = || parts.next().unwrap().parse::<usize>().unwrap();
                    let (which, bytes, reset) = (next(), next(), next() == 1);
                    reader.stream.write_all(&response(which).as_bytes()[..bytes]).await.ok();
                    if reset {
                        reader.stream.set_zero_linger().unwrap();
                    }
                    return;
                }
                // Says more than it announced.
                Some("beyond") => {
                    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged";
                    reader.stream.write_all(answer.as_bytes()).await.ok();
                }
                // A byte at a time.
                Some("drip") => {
                    let which: usize = parts.next().unwrap().parse().unwrap();
                    for byte in response(which).as_bytes() {
                        reader.stream.write_all(&[*byte]).await.ok();
                        tokio::task::yield_now().await;
                    }
                    if RESPONSES[which].1 == UP_TO_THE_END {
                        return;
                    }
                }
                _ => {
                    let body = request.field("x-nonce").unwrap_or("whole").to_owned();
                    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                    if reader.stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

/// Asks for its own number again and again, on a connection that it keeps.
struct Neighbour {
    stop: Arc<AtomicBool>,
    task: JoinHandle<(u64, u64)>,
    asked: Arc<AtomicU64>,
}

impl Neighbour {
    async fn start(mesh: &Mesh) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let asked = Arc::<AtomicU64>::default();
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&asked));
        let mut reader = Reader::new(mesh.connect(vip(1)).await);
        let task = tokio::spawn(async move {
            let (mut answered, mut failed) = (0, 0);
            while !stopped.load(Ordering::SeqCst) {
                let nonce = format!("nonce-{}", counted.fetch_add(1, Ordering::SeqCst));
                let request = format!("GET /nonce HTTP/1.1\r\nHost: web\r\nX-Nonce: {nonce}\r\n\r\n");
                soon(reader.stream.write_all(request.as_bytes())).await.unwrap();
                let Seen::Whole(answer) = soon(reader.response()).await else { panic!("the neighbour was cut off") };
                match (answer.status(), answer.reason()) {
                    (200, "") => {
                        assert_eq!(answer.text(), nonce, "somebody else's answer");
                        answered += 1;
                    }
                    // A server may end a connection while the next request is on its way: the one thing that a pool cannot know.
                    (502, "upstream_reset") => failed += 1,
                    other => panic!("{other:?}"),
                }
            }
            (answered, failed)
        });
        Self { stop, task, asked }
    }

    /// Ends it, after enough requests to have met the others' connections.
    async fn end(self, least: u64) {
        until("the neighbour has asked often enough", || self.asked.load(Ordering::SeqCst) >= least).await;
        self.stop.store(true, Ordering::SeqCst);
        let (answered, failed) = self.task.await.unwrap();
        assert!(failed * 20 <= answered, "{failed} of the neighbour's requests failed, {answered} did not");
    }
}

/// With a short-lived pool, and short patience with a client that has ended its side.
async fn start() -> (Mesh, Scripted) {
    let short = Duration::from_millis(50);
    let config = ProxyConfig { pool_idle_timeout: short, half_closed_grace: short, ..ProxyConfig::default() };
    let (mesh, (address, scripted)) = (Mesh::with(&config), Scripted::start().await);
    mesh.serve(vip(1), service(AppProtocol::Http, &[address]));
    (mesh, scripted)
}

/// No connection of either side is left, and no task that carries one.
async fn nothing_is_left(mesh: &Mesh) {
    until("all client connections are gone", || mesh.metric("weft_connections_open", &[]) == 0.0).await;
    assert_eq!(mesh.proxy().flows(10).await, []);
    until("all connections to endpoints are gone", || mesh.capture.leases.load(Ordering::SeqCst) == 0).await;
}

/// How far a client's requests have got when it ends after so many bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Reached {
    whole: usize,
    in_head: bool,
    in_body: bool,
}

fn reached(requests: &[(&str, &str)], cut: usize) -> Reached {
    let (mut reached, mut begin) = (Reached::default(), 0);
    for (head, body) in requests {
        // A method alone could be the beginning of anything.
        let method_end = begin + head.find(' ').unwrap();
        let body_begin = begin + head.len();
        begin = body_begin + body.len();
        if cut < begin {
            return Reached { in_head: cut > method_end && cut < body_begin, in_body: cut >= body_begin, ..reached };
        }
        reached.whole += 1;
    }
    reached
}

/// What a client gets that ended its side in order after `reached`; why, if the mesh answered.
async fn answers(stream: TcpStream, reached: Reached, all: usize, place: &str) -> Option<&'static str> {
    let mut reader = Reader::new(stream);
    for _ in 0..reached.whole {
        let Seen::Whole(answer) = soon(reader.response()).await else { panic!("{place}: no answer") };
        assert_eq!((answer.status(), answer.text().as_str()), (200, "whole"), "{place}");
    }
    let said = match soon(reader.response()).await {
        Seen::Whole(answer) => {
            let expect = if reached.in_body { "body_incomplete" } else { "malformed_request" };
            assert_eq!((answer.status(), answer.reason()), (400, expect), "{place}: {answer:?}");
            Some(expect)
        }
        // hyper may have had the beginning of a pipelined request already.
        Seen::Nothing => {
            assert!(reached.whole > 0 || !(reached.in_head || reached.in_body), "{place}: no answer");
            None
        }
        Seen::Part(part) => panic!("{place}: {part}"),
    };
    // Who breaks off within a request is owed no answer.
    let (_, ended) = soon(reader.rest()).await;
    assert!(ended == Ended::InOrder || all > reached.whole, "{place}: {ended:?}");
    said
}

#[tokio::test]
async fn client_that_ends_after_any_byte_of_a_request_harms_nobody() {
    let (mesh, scripted) = start().await;
    let neighbour = Neighbour::start(&mesh).await;
    let (mut case, mut must_be_whole, mut may_be_whole) = (0, HashSet::new(), HashSet::new());
    let mut said = HashMap::<&str, f64>::new();
    for requests in REQUESTS {
        let template: String = requests.iter().flat_map(|(head, body)| [*head, *body]).collect();
        let mut answered = tokio::task::JoinSet::new();
        for end in ENDS {
            for cut in 0..=template.len() {
                case += 1;
                // As many digits as the place holder has.
                let request = template.replace("CASE", &format!("{case:04}"));
                let reached = reached(requests, cut);
                let mut stream = mesh.connect(vip(1)).await;
                soon(stream.write_all(&request.as_bytes()[..cut])).await.unwrap();
                if reached.whole == requests.len() {
                    may_be_whole.insert(case);
                }
                if end == End::Reset {
                    // Its port is free at once, and the played capture knows connections by nothing else.
                    mesh.taken(&stream).await;
                    stream.set_zero_linger().unwrap();
                    continue;
                }
                if reached.whole == requests.len() {
                    must_be_whole.insert(case);
                }
                socket2::SockRef::from(&stream).shutdown(std::net::Shutdown::Write).unwrap();
                let place = format!("{request:?} after {cut} bytes");
                answered.spawn(async move { answers(stream, reached, requests.len(), &place).await });
            }
        }
        while let Some(answer) = answered.join_next().await {
            if let Some(reason) = answer.unwrap() {
                *said.entry(reason).or_default() += 1.0;
            }
        }
    }
    neighbour.end(100).await;
    nothing_is_left(&mesh).await;
    let whole = scripted.whole.lock().unwrap().clone();
    println!("{case} cases; {} requests were whole for the server, the mesh answered {said:?}", whole.len());
    assert!(must_be_whole.is_subset(&whole), "{:?}", must_be_whole.difference(&whole));
    assert!(whole.is_subset(&may_be_whole), "{:?}", whole.difference(&may_be_whole));
    for (reason, answers) in said {
        assert!(mesh.metric("weft_local_replies_total", &[("reason", reason)]) >= answers, "{reason}");
    }
}

#[tokio::test]
async fn endpoint_that_ends_after_any_byte_of_a_response_is_told_from_one_that_answered() {
    let (mesh, _) = start().await;
    let neighbour = Neighbour::start(&mesh).await;
    let (mut cases, mut bad_gateway, mut broken) = (0, 0.0, 0.0);
    for (which, (head, body)) in RESPONSES.into_iter().enumerate() {
        for end in ENDS {
            for cut in 0..=head.len() + body.len() {
                cases += 1;
                let place = format!("{:?} after {cut} bytes, {end:?}", response(which));
                let mut reader = Reader::new(mesh.connect(vip(1)).await);
                let path = format!("/response/{which}/{cut}/{}", usize::from(end == End::Reset));
                let request = format!("GET {path} HTTP/1.1\r\nHost: web\r\n\r\n");
                soon(reader.stream.write_all(request.as_bytes())).await.unwrap();
                let seen = soon(reader.response()).await;
                let whole = cut == head.len() + body.len();
                match seen {
                    Seen::Whole(answer) if answer.status() == 502 => {
                        assert!(cut < head.len(), "{place}: {answer:?}");
                        assert!(
                            matches!(answer.reason(), "upstream_reset" | "upstream_protocol"),
                            "{place}: {answer:?}"
                        );
                        bad_gateway += 1.0;
                    }
                    Seen::Whole(answer) if body == UP_TO_THE_END => {
                        assert!(cut >= head.len() && end == End::InOrder, "{place}: {answer:?}");
                        assert_eq!(answer.text(), body[..cut - head.len()], "{place}");
                    }
                    Seen::Whole(answer) => {
                        assert!(whole, "{place}: {answer:?}");
                        assert!(body.is_empty() || body.contains(&answer.text()) || which == 1, "{place}: {answer:?}");
                    }
                    // What had come of the answer was passed on; then the connection was cut, so that it never looks whole.
                    Seen::Part(_) | Seen::Nothing => {
                        assert!(cut >= head.len() && (!whole || body == UP_TO_THE_END), "{place}: {seen:?}");
                        broken += 1.0;
                    }
                }
            }
        }
    }
    neighbour.end(100).await;
    nothing_is_left(&mesh).await;
    println!("{cases} cases; {bad_gateway} answered by the mesh, {broken} cut");
    let replies = |reason| mesh.metric("weft_local_replies_total", &[("reason", reason)]);
    assert!(replies("upstream_reset") + replies("upstream_protocol") >= bad_gateway);
    assert!(mesh.metric("weft_connections_reset_total", &[]) >= broken, "each is counted as a reset of the mesh's own");
}

#[tokio::test]
async fn what_a_server_says_beyond_its_response_is_never_anybodys_answer() {
    let (mesh, _) = start().await;
    let neighbour = Neighbour::start(&mesh).await;
    for _ in 0..200 {
        let mut reader = Reader::new(mesh.connect(vip(1)).await);
        for (path, expect) in [("/beyond", "abc"), ("/", "whole"), ("/beyond", "abc"), ("/", "whole")] {
            soon(reader.stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: web\r\n\r\n").as_bytes()))
                .await
                .unwrap();
            let Seen::Whole(answer) = soon(reader.response()).await else { panic!("{path}: no answer") };
            assert_eq!(answer.text(), expect, "{path}");
        }
    }
    neighbour.end(100).await;
    nothing_is_left(&mesh).await;
}

#[tokio::test]
async fn messages_that_come_byte_by_byte_are_served() {
    let (mesh, scripted) = start().await;
    let mut case = 9000;
    for requests in REQUESTS {
        case += 1;
        let request: String = requests.iter().flat_map(|(head, body)| [*head, *body]).collect();
        let mut reader = Reader::new(mesh.connect(vip(1)).await);
        reader.stream.set_nodelay(true).unwrap();
        for byte in request.replace("CASE", &case.to_string()).as_bytes() {
            soon(reader.stream.write_all(&[*byte])).await.unwrap();
            tokio::task::yield_now().await;
        }
        for _ in requests {
            let Seen::Whole(answer) = soon(reader.response()).await else { panic!("{request:?}: no answer") };
            assert_eq!((answer.status(), answer.text().as_str()), (200, "whole"), "{request:?}");
        }
        assert!(scripted.whole.lock().unwrap().contains(&case), "{request:?}");
    }
    for (which, (head, _)) in RESPONSES.into_iter().enumerate() {
        let mut reader = Reader::new(mesh.connect(vip(1)).await);
        let request = format!("GET /drip/{which} HTTP/1.1\r\nHost: web\r\n\r\n");
        soon(reader.stream.write_all(request.as_bytes())).await.unwrap();
        let Seen::Whole(answer) = soon(reader.response()).await else { panic!("{head:?}: no answer") };
        assert_eq!(answer.text(), ["0123456789", "abc0123456789", UP_TO_THE_END, "abc", "", "four"][which], "{head:?}");
    }
    nothing_is_left(&mesh).await;
}

/// Opaque bytes: each side's end arrives at the other as what it was, with all that was said before and nothing else.
#[tokio::test]
async fn opaque_connections_end_after_any_byte_as_they_were_ended() {
    const SAID: &[u8] = b"*1\r\n$4\r\nPING\r\n\x00\x01\x02 and 32 bytes more than that";
    let (mesh, origin) = (Mesh::start(), Origin::bind().await);
    mesh.serve(vip(2), service(AppProtocol::Tcp, &[origin.address]));
    let mut cases = 0;
    for cut in 0..=SAID.len() {
        for end in ENDS {
            for from_client in [true, false] {
                cases += 1;
                let client = mesh.connect(vip(2)).await;
                let server = soon(origin.listener.accept()).await.unwrap().0;
                let (mut ends, hears) = if from_client { (client, server) } else { (server, client) };
                let mut hears = Reader::new(hears);
                soon(ends.write_all(&SAID[..cut])).await.unwrap();
                if end == End::Reset {
                    // A reset may overtake bytes that nobody has read yet, in any TCP.
                    soon(hears.until(cut)).await;
                    ends.set_zero_linger().unwrap();
                }
                drop(ends);
                let (heard, how) = soon(hears.rest()).await;
                let expect = if end == End::Reset { Ended::Reset } else { Ended::InOrder };
                let place = format!("after {cut} bytes, {end:?}, by the client: {from_client}");
                assert_eq!((heard.as_slice(), how), (&SAID[..cut], expect), "{place}");
            }
        }
    }
    println!("{cases} cases");
    nothing_is_left(&mesh).await;
}

/// The same bytes every time, so that a failure can be looked at.
#[tokio::test]
async fn garbage_is_refused_with_a_reason_and_reaches_no_server() {
    const CASES: u64 = 1000;
    let (mesh, scripted) = start().await;
    let neighbour = Neighbour::start(&mesh).await;
    let mut random = fastrand::Rng::with_seed(3);
    let (mut refused, mut ended) = (0.0, 0);
    for case in 0..CASES {
        let mut garbage: Vec<u8> = (0..random.usize(1..400)).map(|_| random.u8(..)).collect();
        // A line end would be the end of a head: nothing is wrong with what is before it.
        garbage[0] |= 0x80;
        // Half of it looks like HTTP at first.
        if case % 2 == 0 {
            garbage.splice(0..0, b"GET / HTTP/1.1\r\nHost: web\r\n".iter().copied());
            garbage.extend(b"\r\n\r\n");
        }
        let mut stream = mesh.connect(vip(1)).await;
        soon(stream.write_all(&garbage)).await.unwrap();
        socket2::SockRef::from(&stream).shutdown(std::net::Shutdown::Write).unwrap();
        let mut reader = Reader::new(stream);
        match soon(reader.response()).await {
            Seen::Whole(answer) if answer.first.starts_with("HTTP/") => {
                assert!(
                    (400..500).contains(&answer.status()) && !answer.reason().is_empty(),
                    "{garbage:?}: {answer:?}"
                );
                refused += 1.0;
            }
            Seen::Whole(answer) => panic!("{garbage:?}: {answer:?}"),
            Seen::Part(part) => panic!("{garbage:?}: {part}"),
            Seen::Nothing => ended += 1,
        }
    }
    neighbour.end(100).await;
    nothing_is_left(&mesh).await;
    println!("{CASES} cases; {refused} refused, {ended} ended");
    assert!(refused >= CASES as f64 / 2.0, "{refused}");
    assert!(mesh.metric("weft_local_replies_total", &[]) >= refused);
    assert_eq!(scripted.whole.lock().unwrap().len(), 0);
}
