//! Traffic of every kind that weft tells apart, from a client on one node to servers on another, with words planted in it by which it is
//! found again in a recording of the link.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use super::Cluster;
use crate::{
    Pod, Process, command,
    programs::{nginx, script},
    testpod::talk::Transcript,
};

/// Namespace of everything.
pub const NAMESPACE: &str = "mixed";
/// Pod that asks, on the first node.
pub const CLIENT: &str = "client";
/// Pod of the test application, on the second node; also the name of its Service.
pub const SERVER: &str = "server";
/// Pod of real programs, on the second node; also the name of its Service.
pub const PROGRAMS: &str = "programs";
/// Port of HTTP/1.1 of [`SERVER`].
pub const HTTP: u16 = 8080;
/// Port of [`SERVER`] that sends back what it gets.
pub const ECHO: u16 = 9002;
/// Port of [`SERVER`] that speaks first.
pub const GREET: u16 = 9003;
/// Port of [`SERVER`] that tells how many bytes came.
pub const SUM: u16 = 9004;
const GRPC: u16 = 50_051;
const WEBSOCKET: u16 = 8765;
/// One step of a conversation is done by then, also on a busy machine and over a link that loses packets.
const IN_TIME: Duration = Duration::from_secs(30);
/// Bytes of a body that is compared byte by byte.
const BODY_BYTES: usize = 3 << 20;

/// The pods and their Services. Nothing is said of any port's protocol but by its name, as applications have it.
const OBJECTS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: mixed, labels: {weft.dev/mesh: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: mixed}
spec: {serviceAccountName: client, nodeName: node-a, containers: [{name: client, image: pause}]}
---
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: mixed, labels: {app: server}}
spec:
  serviceAccountName: server
  nodeName: node-b
  containers:
  - name: server
    image: weft-testpod
    args: [--http, '8080', --tcp, 'echo:9002', --tcp, 'greet:9003', --tcp, 'sum:9004']
---
apiVersion: v1
kind: Pod
metadata: {name: programs, namespace: mixed, labels: {app: programs}}
spec: {serviceAccountName: programs, nodeName: node-b, containers: [{name: programs, image: pause}]}
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: mixed}
spec:
  selector: {app: server}
  ports: [{name: http, port: 8080}, {name: main, port: 9002}, {name: tcp-greet, port: 9003}, {name: sum, port: 9004}]
---
apiVersion: v1
kind: Service
metadata: {name: programs, namespace: mixed}
spec:
  selector: {app: programs}
  ports: [{name: h2, port: 8081}, {name: grpc, port: 50051}, {name: web, port: 8765}]
";

/// The servers that run in the pod of programs. They end with this value.
#[derive(Debug)]
pub struct Mixed {
    _programs: [Process; 3],
}

/// A kind of traffic, and words that crossed the link with it.
#[derive(Clone, Debug)]
pub struct Planted {
    /// What it was.
    pub kind: &'static str,
    /// The words.
    pub words: Vec<u8>,
}

impl Mixed {
    /// Brings pods and servers up on a cluster of at least two nodes.
    ///
    /// # Errors
    /// When something does not come up.
    pub fn start(cluster: &mut Cluster) -> Result<Self> {
        cluster.apply(OBJECTS)?;
        let pod = &cluster.pod(NAMESPACE, PROGRAMS)?.pod;
        let nginx = nginx::start(pod, &pod.node().state_dir().join("nginx"))?;
        let grpc = script::serve(pod, "grpc_server.py", &[&GRPC.to_string(), PROGRAMS])?;
        let websocket = script::serve(pod, "websocket_server.py", &[&WEBSOCKET.to_string()])?;
        Ok(Self { _programs: [nginx, grpc, websocket] })
    }

    /// Sends traffic of every kind and compares all that comes back with what must. `tag` is part of every planted word.
    ///
    /// # Errors
    /// When anything does not arrive as it was sent.
    pub fn send(&self, cluster: &Cluster, tag: &str) -> Result<Vec<Planted>> {
        let mut planted = Vec::new();
        let mut plant = |kind: &'static str, words: &str| planted.push(Planted { kind, words: words.into() });
        let server = cluster.pod(NAMESPACE, SERVER)?;
        // By the Service's address, and by the pod's own.
        let by_service = cluster.service_ip(NAMESPACE, SERVER)?;
        for (way, ip) in [("service", by_service), ("pod-v4", server.pod.ips()[0]), ("pod-v6", server.pod.ips()[1])] {
            let word = |kind: &str| format!("{tag}-{kind}-{way}-planted");
            for (kind, does) in [("http1", http1 as Sends), ("echo", echo), ("greet", greet), ("sum", sum)] {
                let said = does(cluster, ip, &word(kind)).with_context(|| format!("{kind} to {way}"))?;
                plant(kind, &said);
            }
        }
        let ip = cluster.service_ip(NAMESPACE, PROGRAMS)?;
        for (kind, does) in [("http2", http2 as Sends), ("grpc", grpc), ("websocket", websocket)] {
            plant(kind, &does(cluster, ip, &format!("{tag}-{kind}-planted")).with_context(|| kind)?);
        }
        Ok(planted)
    }
}

/// Sends one kind of traffic with a word in it; gives the words that crossed.
type Sends = fn(&Cluster, IpAddr, &str) -> Result<String>;

fn client(cluster: &Cluster) -> Result<&Pod> {
    Ok(&cluster.pod(NAMESPACE, CLIENT)?.pod)
}

fn curl(cluster: &Cluster, args: &[&str]) -> Result<String> {
    command::output(client(cluster)?.command("curl").args(["-sSg", "--max-time", "30"]).args(args))
}

/// A scripted conversation of a pod, each step of which may take so long; see [`crate::testpod::talk`].
///
/// # Errors
/// When the client fails as a program.
pub fn talk(pod: &Pod, to: SocketAddr, step_timeout: Duration, steps: &[&str]) -> Result<Transcript> {
    let mut command = pod.testpod()?;
    command.args(["talk", "--to", &to.to_string(), "--timeout-ms", &step_timeout.as_millis().to_string()]);
    command.args(steps.iter().flat_map(|step| ["--step", step]));
    let output = command::output(&mut command)?;
    serde_json::from_str(&output).with_context(|| format!("cannot read the transcript {output:?}"))
}

/// A body of which no part is like another comes back as it went.
fn http1(cluster: &Cluster, ip: IpAddr, word: &str) -> Result<String> {
    let dir = cluster.node.state_dir();
    let (body, back) = (dir.join("body"), dir.join("back"));
    let mut sent = format!("{word}\n").into_bytes();
    sent.extend((0_u32..).flat_map(|number| number.wrapping_mul(2_654_435_761).to_be_bytes()).take(BODY_BYTES));
    fs::write(&body, &sent)?;
    let url = format!("http://{}/echo", SocketAddr::new(ip, HTTP));
    let (from, to) = (format!("@{}", body.display()), back.display().to_string());
    curl(cluster, &["--data-binary", &from, "-H", &format!("x-word: {word}"), "-H", "Expect:", "-o", &to, &url])?;
    ensure!(fs::read(&back)? == sent, "the body that came back is another");
    Ok(word.to_owned())
}

fn http2(cluster: &Cluster, ip: IpAddr, word: &str) -> Result<String> {
    let base = format!("http://{}", SocketAddr::new(ip, nginx::HTTP2));
    let answer = curl(cluster, &["--http2-prior-knowledge", &format!("{base}/{word}")])?;
    // The answer's body is as it is; names and paths in heads are squeezed.
    let expected = format!("HTTP/2.0 GET {} {ip} /{word}\n", client(cluster)?.ipv4());
    ensure!(answer == expected, "{answer:?} is not {expected:?}");
    let large = format!("{base}/large");
    let size = curl(cluster, &["--http2-prior-knowledge", &large, "-o", "/dev/null", "-w", "%{size_download}"])?;
    ensure!(size == nginx::LARGE_BYTES.to_string(), "{size} bytes came");
    Ok(word.to_owned())
}

fn grpc(cluster: &Cluster, ip: IpAddr, word: &str) -> Result<String> {
    let to = SocketAddr::new(ip, GRPC).to_string();
    let done = command::output(&mut script::command(client(cluster)?, "grpc_client.py", &["say", &to, word])?)?;
    ensure!(done.trim() == word, "{done:?} came back");
    Ok(word.to_owned())
}

fn websocket(cluster: &Cluster, ip: IpAddr, word: &str) -> Result<String> {
    let uri = format!("ws://{}/{word}", SocketAddr::new(ip, WEBSOCKET));
    let done = command::output(&mut script::command(client(cluster)?, "websocket_client.py", &[&uri, "0"])?)?;
    ensure!(done.lines().last() == Some("many at once"), "{done:?}");
    Ok(word.to_owned())
}

fn echo(cluster: &Cluster, ip: IpAddr, word: &str) -> Result<String> {
    let to = SocketAddr::new(ip, ECHO);
    let said =
        talk(client(cluster)?, to, IN_TIME, &[&format!("send:{word}"), &format!("until:{word}"), "shutdown", "end"])?;
    ensure!(said.end == "eof" && said.received == word, "{said:?}");
    Ok(word.to_owned())
}

/// The server's words are its own: who it is, and whom it sees.
fn greet(cluster: &Cluster, ip: IpAddr, _word: &str) -> Result<String> {
    let said = talk(client(cluster)?, SocketAddr::new(ip, GREET), IN_TIME, &["end"])?;
    let sees: Vec<IpAddr> = client(cluster)?.ips().into_iter().filter(|own| own.is_ipv4() == ip.is_ipv4()).collect();
    let begins = format!("{SERVER} {} ", sees[0]);
    ensure!(said.end == "eof" && said.received.starts_with(&begins), "{said:?} does not begin with {begins:?}");
    Ok(said.received)
}

fn sum(cluster: &Cluster, ip: IpAddr, word: &str) -> Result<String> {
    const MORE: usize = 1_000_000;
    let (send, fill) = (format!("send:{word}"), format!("fill:{MORE}"));
    let said = talk(client(cluster)?, SocketAddr::new(ip, SUM), IN_TIME, &[&send, &fill, "shutdown", "end"])?;
    let expected = format!("{}\n", MORE + word.len());
    ensure!(said.end == "eof" && said.received == expected, "{said:?} is not {expected:?}");
    Ok(word.to_owned())
}
