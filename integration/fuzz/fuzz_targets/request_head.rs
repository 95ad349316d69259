//! Requests: whatever bytes a client sends to the whole data path, over sockets, the server gets requests that another parser
//! reads in the same way, or nothing.
#![no_main]
#![allow(dead_code, reason = "modules shared with the data path's tests")]

use std::{
    net::SocketAddr,
    sync::{Mutex, OnceLock},
    time::Duration,
};

use libfuzzer_sys::fuzz_target;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
};
use weft_policy::plan::AppProtocol;
use weft_proxy::config::ProxyConfig;

use crate::mesh::{Mesh, service, vip};

#[path = "../../../agent/proxy/tests/data_path/mesh.rs"]
mod mesh;
#[path = "../../../agent/proxy/tests/data_path/wire.rs"]
mod wire;

/// How long an answer is waited for. Requests that are incomplete get none.
const PATIENCE: Duration = Duration::from_millis(10);
/// Fields of a request; the data path lets fewer through.
const FIELDS_MAX: usize = 256;
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

struct World {
    runtime: Runtime,
    mesh: Mesh,
}

fn world() -> &'static Mutex<World> {
    static WORLD: OnceLock<Mutex<World>> = OnceLock::new();
    WORLD.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mesh = runtime.block_on(async {
            // Rust's own start-up ignores SIGPIPE; libFuzzer's does not, and a peer may close before it is written to.
            signal(SignalKind::pipe()).unwrap();
            let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
            let short = Duration::from_millis(50);
            let config = ProxyConfig {
                half_closed_grace: short,
                continue_timeout: Duration::ZERO,
                pool_idle_timeout: short,
                ..ProxyConfig::default()
            };
            let mesh = Mesh::with(&config);
            mesh.serve(vip(1), service(AppProtocol::Http, &[listener.local_addr().unwrap()]));
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(serve(stream));
                }
            });
            mesh
        });
        Mutex::new(World { runtime, mesh })
    })
}

/// Reads requests with another parser than the data path's, strictly, and answers each.
async fn serve(mut stream: tokio::net::TcpStream) {
    let mut read = Vec::new();
    let mut first = true;
    loop {
        while let Some(length) = request_length(&read, first) {
            read.drain(..length);
            first = false;
            if stream.write_all(ANSWER).await.is_err() {
                return;
            }
        }
        match stream.read_buf(&mut read).await {
            Ok(1..) => {}
            _ => return,
        }
    }
}

/// Bytes of the request that these begin with; `None`: it is not complete.
fn request_length(bytes: &[u8], may_be_opaque: bool) -> Option<usize> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    let head = match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return None,
        // What does not begin like HTTP is carried as bytes from the start; such a connection carries nothing else.
        Err(_) if may_be_opaque => return None,
        Err(error) => panic!("{error}: {:?}", String::from_utf8_lossy(bytes)),
    };
    let text = String::from_utf8_lossy(&bytes[..head]);
    let values = |name: &str| -> Vec<&[u8]> {
        request.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value).collect()
    };
    assert_eq!(request.version, Some(1), "{text:?}");
    assert_eq!(values("host").len(), 1, "{text:?}");
    assert!(values("connection").iter().all(|value| value.eq_ignore_ascii_case(b"upgrade")), "{text:?}");
    assert!(!request.path.unwrap_or_default().contains('#'), "{text:?}");
    let (lengths, codings) = (values("content-length"), values("transfer-encoding"));
    assert!(lengths.len() + codings.len() <= 1, "two framings: {text:?}");
    if let Some(coding) = codings.first() {
        assert_eq!(*coding, b"chunked", "{text:?}");
        return chunked_length(&bytes[head..]).map(|body| head + body);
    }
    let body = lengths.first().map_or(0, |length| std::str::from_utf8(length).unwrap().parse().unwrap());
    (bytes.len() - head >= body).then_some(head + body)
}

fn chunked_length(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match httparse::parse_chunk_size(&bytes[at..]) {
            Ok(httparse::Status::Complete((line, 0))) => {
                at += line;
                let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
                return match httparse::parse_headers(&bytes[at..], &mut fields) {
                    Ok(httparse::Status::Complete((trailers, _))) => Some(at + trailers),
                    Ok(httparse::Status::Partial) => None,
                    Err(error) => panic!("{error}: {:?}", String::from_utf8_lossy(bytes)),
                };
            }
            Ok(httparse::Status::Complete((line, size))) => {
                at += line + usize::try_from(size).unwrap() + 2;
                if at > bytes.len() {
                    return None;
                }
                assert_eq!(&bytes[at - 2..at], b"\r\n");
            }
            Ok(httparse::Status::Partial) => return None,
            Err(error) => panic!("{error}: {:?}", String::from_utf8_lossy(bytes)),
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let world = world().lock().unwrap();
    world.runtime.block_on(async {
        let mut client = world.mesh.connect(vip(1)).await;
        client.write_all(bytes).await.ok();
        let mut answers = Vec::new();
        // Until the answers stop to come.
        while let Ok(Ok(1..)) = tokio::time::timeout(PATIENCE, client.read_buf(&mut answers)).await {}
        assert!(!answers.windows(7).any(|window| window == b"panicked"));
        client.set_zero_linger().ok();
    });
});
