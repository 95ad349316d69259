//! Requests that were made to be read differently by two parsers, sent through the agent to nginx and haproxy: each of them sees exactly
//! the requests that weft forwarded, by count and nonce; and where a TrafficTarget grants some requests, exactly those of them.
#![allow(clippy::print_stdout, reason = "figures are printed for people")]

use std::time::Duration;

use anyhow::{Result, ensure};
use weft_integration::{
    Pod, Process, Shop,
    objects::{ServicePort, route_group, traffic_target},
    programs::witness::{self, HTTP1, HTTP2, NONCE},
    shop::NAMESPACE,
    testpod::{
        frames,
        talk::{self, Transcript},
    },
    wait,
};

type Start = fn(&Pod, &std::path::Path) -> Result<Process>;
const WITNESSES: [(&str, Start); 2] = [("nginx", witness::nginx), ("haproxy", witness::haproxy)];
/// Service port to the server's HTTP/1.1.
const TO_HTTP1: u16 = 80;
/// Service port to the server's HTTP/2.
const TO_HTTP2: u16 = 81;
/// How long a server may take to write its log.
const LOG_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection may be refused before it is an error.
const TAKEN_TIMEOUT: Duration = Duration::from_secs(60);

/// What is sent, with `@` and a letter for each nonce, and what reaches the server of it: a letter, method and target each.
type Case = (&'static str, &'static [&'static str]);

/// Requests of HTTP/1. `@LENGTH` and `@HEX` stand for the length of what hides in a body.
const OVER_HTTP1: &[Case] = &[
    ("GET /plain HTTP/1.1\r\n@a\r\n\r\n", &["a GET /plain"]),
    ("GET /1 HTTP/1.1\r\n@a\r\n\r\nGET /2 HTTP/1.1\r\n@b\r\n\r\n", &["a GET /1", "b GET /2"]),
    // CL.TE, TE.CL and their kin.
    (
        "POST / HTTP/1.1\r\n@a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGGET /x HTTP/1.1\r\n@b\r\n\r\n",
        &[],
    ),
    (
        "POST / HTTP/1.1\r\n@a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n5c\r\nGET /x HTTP/1.1\r\n@b\r\n\r\n0\r\n\r\n",
        &[],
    ),
    (
        "POST / HTTP/1.1\r\n@a\r\nTransfer-Encoding: xchunked\r\nContent-Length: 4\r\n\r\nabcdGET /x HTTP/1.1\r\n@b\r\n\r\n",
        &[],
    ),
    (
        "POST / HTTP/1.1\r\n@a\r\nTransfer-Encoding : chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\nGET /x HTTP/1.1\r\n@b\r\n\r\n",
        &[],
    ),
    (
        "POST / HTTP/1.1\r\n@a\r\nTransfer-Encoding:\tchunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\nGET /x HTTP/1.1\r\n@b\r\n\r\n",
        &[],
    ),
    (
        "POST / HTTP/1.1\r\n@a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\nGET /x HTTP/1.1\r\n@b\r\n\r\n",
        &[],
    ),
    (
        "POST / HTTP/1.1\r\n@a\r\nTransfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\nGET /x HTTP/1.1\r\n@b\r\n\r\n",
        &[],
    ),
    (
        "POST / HTTP/1.1\r\n@a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\nGET /x HTTP/1.1\r\n@b\r\n\r\n",
        &[],
    ),
    ("POST / HTTP/1.1\r\n@a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\nGET /x HTTP/1.1\r\n@b\r\n\r\n", &[]),
    (
        "POST / HTTP/1.1\r\n@a\r\nX: y\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\nGET /x HTTP/1.1\r\n@b\r\n\r\n",
        &[],
    ),
    (
        "POST / HTTP/1.0\r\n@a\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n0\r\n\r\nGET /x HTTP/1.1\r\n@b\r\n\r\n",
        &[],
    ),
    ("POST / HTTP/1.1\r\n@a\r\nContent-Length: 0\r\nContent-Length: 30\r\n\r\nGET /x HTTP/1.1\r\n@b\r\n\r\n", &[]),
    (
        "POST / HTTP/1.1\r\n@a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabcGET /x HTTP/1.1\r\n@b\r\n\r\n",
        &["a POST /", "b GET /x"],
    ),
    ("POST / HTTP/1.1\r\n@a\r\nContent-Length: 3, 3\r\n\r\nabcGET /x HTTP/1.1\r\n@b\r\n\r\n", &[]),
    ("POST / HTTP/1.1\r\n@a\r\nContent-Length: +3\r\n\r\nabcGET /x HTTP/1.1\r\n@b\r\n\r\n", &[]),
    ("POST / HTTP/1.1\r\n@a\r\nContent-Length: 0x3\r\n\r\nabcGET /x HTTP/1.1\r\n@b\r\n\r\n", &[]),
    ("POST / HTTP/1.1\r\n@a\r\nContent-Length : 3\r\n\r\nabcGET /x HTTP/1.1\r\n@b\r\n\r\n", &[]),
    (
        "POST / HTTP/1.1\r\n@a\r\nContent_Length: 60\r\nContent-Length: 3\r\n\r\nabcGET /x HTTP/1.1\r\n@b\r\n\r\n",
        &["a POST /", "b GET /x"],
    ),
    (
        "POST / HTTP/1.1\r\n@a\r\nTransfer_Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\nGET /x HTTP/1.1\r\n@b\r\n\r\n",
        &["a POST /", "b GET /x"],
    ),
    (
        "GET /0cl HTTP/1.1\r\n@a\r\nExpect: 100-continue\r\nContent-Length: 0\r\n\r\nGET /x HTTP/1.1\r\n@b\r\n\r\n",
        &["a GET /0cl", "b GET /x"],
    ),
    ("POST / HTTP/1.1\r\n@a\r\nExpect: y 100-continue\r\nContent-Length: 30\r\n\r\nGET /x HTTP/1.1\r\n@b\r\n\r\n", &[]),
    // Bodies that hide a request stay bodies.
    ("POST /cl HTTP/1.1\r\n@a\r\nContent-Length: @LENGTH\r\n\r\nGET /x HTTP/1.1\r\n@b\r\n\r\n", &["a POST /cl"]),
    ("GET /get HTTP/1.1\r\n@a\r\nContent-Length: @LENGTH\r\n\r\nGET /x HTTP/1.1\r\n@b\r\n\r\n", &["a GET /get"]),
    ("DELETE /del HTTP/1.1\r\n@a\r\nContent-Length: @LENGTH\r\n\r\nGET /x HTTP/1.1\r\n@b\r\n\r\n", &["a DELETE /del"]),
    (
        "POST /te HTTP/1.1\r\n@a\r\nTransfer-Encoding: chunked\r\n\r\n@HEX\r\nGET /x HTTP/1.1\r\n@b\r\n\r\n\r\n0\r\n\r\n",
        &["a POST /te"],
    ),
    (
        "POST /te HTTP/1.1\r\n@a\r\nTransfer-Encoding: chunked\r\n\r\n3;GET=/x\r\nabc\r\n0\r\nX: y\r\n\r\nGET /2 HTTP/1.1\r\n@b\r\n\r\n",
        &["a POST /te", "b GET /2"],
    ),
    // Heads.
    ("GET / HTTP/1.1\r\n@a\r\nHost: other\r\n\r\n", &[]),
    ("GET / HTTP/1.1\r\n@a\r\nX: y\r\n GET /x HTTP/1.1\r\n\r\n", &[]),
    ("GET / HTTP/1.1\r\n@a\r\n\tX: y\r\n\r\n", &[]),
    ("GET / HTTP/1.1\r\n@a\r\nX: y\rHost: other\r\n\r\n", &[]),
    ("GET http://web/abs HTTP/1.1\r\n@a\r\n\r\n", &["a GET /abs"]),
    ("GET http://other/abs HTTP/1.1\r\n@a\r\n\r\n", &[]),
    ("GET http://u@web/abs HTTP/1.1\r\n@a\r\n\r\n", &[]),
    ("GET /lf HTTP/1.1\n@a\n\nGET /x HTTP/1.1\r\n@b\r\n\r\n", &["a GET /lf", "b GET /x"]),
    ("GET / HTTP/1.1\r\n@a\r\nConnection: close, X-Nonce\r\n\r\nGET /x HTTP/1.1\r\n@b\r\n\r\n", &["- GET /"]),
    ("GET / HTTP/1.1\r\n@a\r\nConnection: Host\r\n\r\n", &[]),
    (
        "GET / HTTP/1.1\r\n@a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\nGET /x HTTP/1.1\r\n@b\r\n\r\n",
        &["a GET /", "b GET /x"],
    ),
    (
        "GET /ws HTTP/1.1\r\n@a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\nGET /x%2fy HTTP/1.1\r\n@b\r\n\r\n",
        &["a GET /ws"],
    ),
    ("CONNECT web:80 HTTP/1.1\r\n@a\r\n\r\nGET /x HTTP/1.1\r\n@b\r\n\r\n", &[]),
    ("GET / HTTP/1.1 HTTP/1.1\r\n@a\r\n\r\n", &[]),
    ("GET /x\0y HTTP/1.1\r\n@a\r\n\r\n", &[]),
    // Paths.
    ("GET /a/../b HTTP/1.1\r\n@a\r\n\r\n", &["a GET /b"]),
    ("GET /a/%2e%2e/b HTTP/1.1\r\n@a\r\n\r\n", &["a GET /b"]),
    ("GET /a/.%2E/%62 HTTP/1.1\r\n@a\r\n\r\n", &["a GET /b"]),
    ("GET //a///b/./ HTTP/1.1\r\n@a\r\n\r\n", &["a GET /a/b/"]),
    ("GET /../../b HTTP/1.1\r\n@a\r\n\r\n", &["a GET /b"]),
    ("GET /%252e%252e/b HTTP/1.1\r\n@a\r\n\r\n", &["a GET /%252e%252e/b"]),
    ("GET /a;x=1/b?c=/../%2f HTTP/1.1\r\n@a\r\n\r\n", &["a GET /a;x=1/b?c=/../%2f"]),
    ("GET /a%2f..%2fb HTTP/1.1\r\n@a\r\n\r\nGET /x HTTP/1.1\r\n@b\r\n\r\n", &["b GET /x"]),
    ("GET /a%5c..%5cb HTTP/1.1\r\n@a\r\n\r\n", &[]),
    ("GET /a\\..\\b HTTP/1.1\r\n@a\r\n\r\n", &[]),
    ("GET /a/..;/b HTTP/1.1\r\n@a\r\n\r\n", &[]),
    ("GET /a%00/b HTTP/1.1\r\n@a\r\n\r\n", &[]),
    ("GET /a%0d%0aX:%20y HTTP/1.1\r\n@a\r\n\r\n", &[]),
    ("GET /%c0%ae%c0%ae/b HTTP/1.1\r\n@a\r\n\r\n", &[]),
    ("GET /a#/../b HTTP/1.1\r\n@a\r\n\r\n", &[]),
    ("GET /%u002e HTTP/1.1\r\n@a\r\n\r\n", &[]),
];

/// A case with its nonces, and the last lines of a witness that it leads to.
fn case(number: usize, (template, expect): Case, access: Access) -> (String, Vec<String>) {
    let nonce = |letter: &str| format!("n{number:03}{letter}");
    // What hides in a body: one request with its nonce.
    let hidden = "GET /x HTTP/1.1\r\n".len() + field(&nonce("b")).len() + 4;
    let mut request = template.replace("@LENGTH", &hidden.to_string()).replace("@HEX", &format!("{hidden:x}"));
    for letter in ["a", "b"] {
        request = request.replace(&format!("@{letter}"), &field(&nonce(letter)));
    }
    let lines = expect.iter().filter_map(|line| {
        let (letter, rest) = line.split_once(' ')?;
        let (method, target) = rest.split_once(' ')?;
        let nonce = if letter == "-" { letter.to_owned() } else { nonce(letter) };
        access.grants(method, target).then(|| format!("{nonce} {rest} web"))
    });
    (request, lines.collect())
}

fn field(nonce: &str) -> String {
    format!("Host: web\r\n{NONCE}: {nonce}")
}

/// What the client may ask for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Access {
    /// No TrafficTarget selects the server.
    Open,
    /// A TrafficTarget grants [`READS`] and [`WRITES`].
    Some,
}

/// Paths of requests that are granted, and what may begin with them.
const READS: [&str; 8] = ["/b", "/a/b", "/plain", "/2", "/lf", "/ws", "/body", "/last"];
const WRITES: [&str; 2] = ["/te", "/body"];

impl Access {
    /// Whether a request may reach the server, by its method and target as they are forwarded.
    fn grants(self, method: &str, target: &str) -> bool {
        let path = target.split('?').next().unwrap_or_default();
        let paths: &[&str] = match method {
            "GET" => &READS,
            "POST" => &WRITES,
            _ => &[],
        };
        self == Self::Open || paths.iter().any(|granted| path.starts_with(granted))
    }
}

/// Grants the client some requests of a program's pod. What the cases try to hide is none of them.
fn grant(shop: &mut Shop) -> Result<()> {
    let any = |paths: &[&str]| paths.join("|");
    let group =
        route_group(NAMESPACE, "some", &[("read", &any(&READS), &["GET"]), ("write", &any(&WRITES), &["POST"])]);
    let target = traffic_target(NAMESPACE, "some", "default", &[("HTTPRouteGroup", "some")], &["client"]);
    shop.manifests.put_all([&group, &target])
}

fn running(name: &str, start: Start, access: Access) -> Result<Shop> {
    let mut shop = Shop::empty("open")?;
    if access == Access::Some {
        grant(&mut shop)?;
    }
    let ports = [
        // What the server speaks is said, so that each version goes to each.
        ServicePort::named("one", TO_HTTP1, HTTP1).app_protocol("kubernetes.io/ws"),
        ServicePort::named("two", TO_HTTP2, HTTP2).app_protocol("kubernetes.io/h2c"),
    ];
    shop.add_program(name, &ports, start)?;
    shop.start()?;
    Ok(shop)
}

/// A conversation. On a starved machine the agent may miss its heartbeat, and a server that a TrafficTarget selects is closed meanwhile:
/// nothing was sent then, so that it may be tried again.
fn say(shop: &Shop, to: &str, steps: &[&str]) -> Result<Transcript> {
    wait::until(&format!("{to} to take a connection"), TAKEN_TIMEOUT, || {
        let transcript = shop.talk(to, steps)?;
        Ok((transcript.end != "refused").then_some(transcript))
    })
}

/// A witness writes `-` where there is no nonce; nginx does by itself, haproxy leaves it out.
fn line(seen: &str) -> String {
    if seen.starts_with(['G', 'P', 'D']) { format!("- {seen}") } else { seen.to_owned() }
}

/// Waits until a witness has seen all of this, and nothing else but what it may have seen.
fn wait_seen(shop: &Shop, name: &str, expect: &[String], may: &[String]) -> Result<()> {
    let (process, _) = shop.program(name)?;
    let mut last = Vec::new();
    let waited = wait::until(&format!("{name} to have seen {} requests", expect.len()), LOG_TIMEOUT, || {
        last = witness::seen(process).iter().map(|seen| line(seen)).filter(|line| !may.contains(line)).collect();
        last.sort();
        Ok((last.len() >= expect.len()).then_some(()))
    });
    let mut expect = expect.to_vec();
    expect.sort();
    let missing: Vec<_> = expect.iter().filter(|line| !last.contains(line)).collect();
    let unexpected: Vec<_> = last.iter().filter(|line| !expect.contains(line)).collect();
    ensure!(last == expect, "{name}: not seen: {missing:#?}; seen without having been forwarded: {unexpected:#?}");
    waited
}

#[test]
fn servers_see_exactly_the_requests_of_http1_that_were_forwarded() -> Result<()> {
    over_http1(Access::Open)
}

#[test]
fn servers_see_exactly_the_requests_of_http1_that_are_granted() -> Result<()> {
    over_http1(Access::Some)
}

fn over_http1(access: Access) -> Result<()> {
    for (name, start) in WITNESSES {
        let shop = running(name, start, access)?;
        let mut expect = Vec::new();
        let mut number = 0;
        for port in [TO_HTTP1, TO_HTTP2] {
            let to = shop.service(name, port)?;
            for one in OVER_HTTP1 {
                number += 1;
                // An upgrade needs HTTP/1.1 on both sides.
                if port == TO_HTTP2 && one.0.contains("websocket") {
                    continue;
                }
                let (request, lines) = case(number, *one, access);
                let transcript = say(&shop, &to, &[&talk::send(request.as_bytes()), "shutdown", "end"])?;
                ensure!(transcript.end != "timeout", "{name}, port {port}: {request:?}: {transcript:?}");
                let answered = transcript.received.matches("ok ").count();
                ensure!(answered == lines.len(), "{name}, port {port}: {request:?}: {transcript:?}");
                let ours = transcript.received.matches("weft-reason: ").count();
                ensure!(ours > 0 || !lines.is_empty(), "{name}, port {port}: {request:?}: {transcript:?}");
                expect.extend(lines);
            }
        }
        wait_seen(&shop, name, &expect, &[])?;
        println!("{name}: {number} cases, {} requests forwarded and seen", expect.len());
    }
    Ok(())
}

/// Fields of a request of HTTP/2 beside `:method GET` and `:scheme http`, its body, and the target that reaches the server.
type Case2 = (&'static [(&'static str, &'static str)], Option<&'static str>, Option<&'static str>);

const OVER_HTTP2: &[Case2] = &[
    (&[(":path", "/plain")], None, Some("/plain")),
    (&[(":path", "/body")], Some("GET /x HTTP/1.1\r\nHost: web\r\nX-Nonce: hidden\r\n\r\n"), Some("/body")),
    (&[(":path", "/"), ("x", "y\r\nTransfer-Encoding: chunked")], None, None),
    (&[(":path", "/"), ("x", "y\r\n\r\nGET /x HTTP/1.1\r\nHost: web\r\nX-Nonce: hidden")], None, None),
    (&[(":path", "/"), ("x", "y\nz")], None, None),
    (&[(":path", "/"), ("x: y\r\nhost", "other")], None, None),
    (&[(":path", "/ HTTP/1.1\r\nHost: other\r\n\r\nGET /x")], None, None),
    (&[(":path", "/a b")], None, None),
    (&[(":path", "/"), ("transfer-encoding", "chunked")], Some("0\r\n\r\nGET /x HTTP/1.1\r\nHost: web\r\n\r\n"), None),
    (&[(":path", "/"), ("content-length", "0")], Some("GET /x HTTP/1.1\r\nHost: web\r\nX-Nonce: hidden\r\n\r\n"), None),
    (&[(":path", "/"), ("content-length", "4")], Some("abc"), None),
    (&[(":path", "/"), ("connection", "x-nonce")], None, None),
    (&[(":path", "/"), ("upgrade", "h2c")], None, None),
    (&[(":path", "/"), ("host", "other")], None, None),
    (&[(":path", "/"), ("host", "web")], None, Some("/")),
    (&[(":path", "/"), ("content_length", "9"), ("transfer_encoding", "chunked")], None, Some("/")),
    (&[(":path", "/a/%2e%2e//b")], None, Some("/b")),
    (&[(":path", "/a%2f..%2fb")], None, None),
    (&[(":path", "/a\\b")], None, None),
    (&[(":path", "/a/..;/b")], None, None),
    (&[(":path", "/a#b")], None, Some("/a")),
    (&[(":path", "//web/a")], None, Some("/web/a")),
    (&[(":path", "http://other/")], None, None),
    (&[(":path", "*")], None, None),
];

/// Frames of a request.
fn request2(stream: u32, (fields, body, _): &Case2, nonce: &str) -> Vec<u8> {
    let mut block = vec![if body.is_some() { 0x83 } else { 0x82 }, 0x86];
    block.extend(frames::field(":authority", "web"));
    for (name, value) in fields.iter().chain(&[("x-nonce", nonce)]) {
        block.extend(frames::field(name, value));
    }
    let end = if body.is_some() { 0 } else { frames::END_STREAM };
    let mut bytes = frames::frame(frames::HEADERS, end | frames::END_HEADERS, stream, &block);
    if let Some(body) = body {
        bytes.extend(frames::frame(frames::DATA, frames::END_STREAM, stream, body.as_bytes()));
    }
    bytes
}

#[test]
fn servers_see_exactly_the_requests_of_http2_that_were_forwarded() -> Result<()> {
    over_http2(Access::Open)
}

#[test]
fn servers_see_exactly_the_requests_of_http2_that_are_granted() -> Result<()> {
    over_http2(Access::Some)
}

fn over_http2(access: Access) -> Result<()> {
    for (name, start) in WITNESSES {
        let shop = running(name, start, access)?;
        let (mut expect, mut may) = (Vec::new(), Vec::new());
        let mut number = 0;
        for port in [TO_HTTP1, TO_HTTP2] {
            let to = shop.service(name, port)?;
            for one in OVER_HTTP2 {
                number += 1;
                let (nonce, last) = (format!("m{number:03}a"), format!("m{number:03}z"));
                let hello = [frames::PREFACE, &frames::frame(frames::SETTINGS, 0, 0, &[])].concat();
                let ending: Case2 = (&[(":path", "/last")], None, Some("/last"));
                let first = talk::send(&[hello, request2(1, one, &nonce)].concat());
                let then = talk::send(&request2(3, &ending, &last));
                let method = if one.1.is_some() { "POST" } else { "GET" };
                let seen = one.2.filter(|path| access.grants(method, path));
                let answer = seen.map(|_| format!("until:ok {nonce}"));
                let end = format!("until:ok {last}");
                let mut steps = vec![first.as_str()];
                steps.extend(answer.as_deref());
                steps.extend([then.as_str(), end.as_str()]);
                let transcript = say(&shop, &to, &steps)?;
                let context = || format!("{name}, port {port}: {one:?}: {transcript:?}");
                // A line end in a field ends the connection; anything else harms nobody.
                let ends_it = one.0.iter().any(|(name, value)| {
                    *name != ":path" && (name.contains(['\r', '\n']) || value.contains(['\r', '\n']))
                });
                ensure!(ends_it || transcript.steps_done == steps.len(), "{}", context());
                ensure!(transcript.end != "timeout", "{}", context());
                // Where only the body fails its head is on its way; a server may answer it before it has seen the body.
                if one.2.is_none()
                    && access.grants(method, "/")
                    && one.0.iter().any(|(name, _)| *name == "content-length")
                {
                    may.push(format!("{nonce} {method} / web"));
                }
                expect.extend(seen.map(|path| format!("{nonce} {method} {path} web")));
                if !ends_it {
                    expect.push(format!("{last} GET /last web"));
                }
            }
        }
        wait_seen(&shop, name, &expect, &may)?;
        println!("{name}: {number} cases, {} requests forwarded and seen", expect.len());
    }
    Ok(())
}
