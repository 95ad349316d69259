//! Mutual TLS between nodes, seen from outside: what is on the link, and what reaches applications.

#[path = "nodes/rules.rs"]
mod rules;

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use weft_integration::{
    Agent, AgentOptions, Cluster, command,
    kube::{
        mirror::Mirror,
        mixed::{self, CLIENT, ECHO, GREET, HTTP, Mixed, NAMESPACE, SERVER},
    },
    link::recording::Recorded,
    testpod::talk::Transcript,
    wait,
};

/// Source ports of connections between agents: see docs/decisions/0012.
const TLS_PORTS: std::ops::RangeInclusive<u16> = 62_024..=65_095;
/// A TLS record of a handshake, of the version that every ClientHello and ServerHello of TLS 1.3 names (RFC 8446, section 5.1).
const HANDSHAKE: [u8; 2] = [22, 3];
/// Whatever has to come comes by then, also on a busy machine and over a link that loses packets.
const IN_TIME: Duration = Duration::from_secs(60);

struct Secured {
    cluster: Cluster,
    mirror: Mirror,
    mixed: Mixed,
}

fn options() -> AgentOptions {
    AgentOptions { workers: Some(1), ..AgentOptions::default() }
}

/// Two nodes whose agents have certificates, and whose pods are published.
fn secured(more: &str) -> Result<Secured> {
    let mut cluster = Cluster::with_nodes(2)?;
    cluster.install_crds()?;
    let mixed = Mixed::start(&mut cluster)?;
    if !more.is_empty() {
        cluster.apply(more)?;
    }
    let mut mirror = Mirror::of(&cluster)?;
    mirror.start_agents(&mut cluster, &options())?;
    cluster.wait_captured(NAMESPACE)?;
    for node in ["node-a", "node-b"] {
        mirror.publish(&cluster, node)?;
    }
    Ok(Secured { cluster, mirror, mixed })
}

/// Every byte stream between pods is TLS, from the ports that are kept for it.
fn all_is_tls(recorded: &Recorded) -> Result<usize> {
    let mut connections = 0;
    for (from, to, stream) in recorded.streams() {
        let Some(begin) = stream.pieces().first().cloned() else { continue };
        ensure!(begin.starts_with(&HANDSHAKE), "{from} to {to} begins with {:?}", &begin[..begin.len().min(16)]);
        ensure!(TLS_PORTS.contains(&from.port()) || TLS_PORTS.contains(&to.port()), "{from} to {to}");
        connections += 1;
    }
    Ok(connections)
}

#[test]
fn nothing_that_is_sent_between_nodes_can_be_read_on_the_link_and_every_byte_arrives() -> Result<()> {
    let Secured { cluster, mixed, .. } = secured("")?;
    let recording = cluster.link()?.record()?;
    let planted = mixed.send(&cluster, "secret")?;
    let recorded = recording.stop()?;
    ensure!(recorded.holes() == 0, "{} holes in {} packets", recorded.holes(), recorded.packets());
    for planted in &planted {
        ensure!(!recorded.contains(&planted.words), "{planted:?} can be read on the link");
    }
    ensure!(all_is_tls(&recorded)? >= 2);
    ensure!(cluster.pod(NAMESPACE, SERVER)?.stats()?.client_hellos() == 0);
    Ok(())
}

#[test]
fn rules_between_nodes_by_address_and_port_hold() -> Result<()> {
    let Secured { cluster, .. } = secured(rules::OTHER)?;
    let recording = cluster.link()?.record()?;
    rules::hold(&cluster)?;
    let recorded = recording.stop()?;
    // Of each family one that requests share.
    ensure!(all_is_tls(&recorded)? >= 2);
    let to_http = recorded.streams().filter(|(from, to, _)| TLS_PORTS.contains(&from.port()) && to.port() == HTTP);
    ensure!(to_http.count() >= 2, "mutual TLS goes to the application's own port");
    ensure!(cluster.pod(NAMESPACE, SERVER)?.stats()?.client_hellos() == 0);
    Ok(())
}

/// A pod of another service account on the client's node, and one on it that weft does not capture.
const OTHERS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: other, namespace: mixed}
spec: {serviceAccountName: other, nodeName: node-a, containers: [{name: other, image: pause}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: outside}
---
apiVersion: v1
kind: Pod
metadata: {name: stranger, namespace: outside}
spec: {serviceAccountName: client, nodeName: node-a, containers: [{name: stranger, image: pause}]}
---
apiVersion: specs.smi-spec.io/v1alpha4
kind: TCPRoute
metadata: {name: all, namespace: mixed}
spec: {matches: {}}
---
apiVersion: access.smi-spec.io/v1alpha3
kind: TrafficTarget
metadata: {name: server, namespace: mixed}
spec:
  destination: {kind: ServiceAccount, name: server, namespace: mixed}
  sources: [{kind: ServiceAccount, name: client, namespace: mixed}]
  rules: [{kind: TCPRoute, name: all}]
";

#[test]
fn who_may_talk_across_nodes_is_said_by_certificates_and_by_nothing_that_a_pod_says() -> Result<()> {
    let Secured { cluster, .. } = secured(OTHERS)?;
    let server = cluster.pod(NAMESPACE, SERVER)?;
    let service = cluster.service_ip(NAMESPACE, SERVER)?;
    let client = &cluster.pod(NAMESPACE, CLIENT)?.pod;
    let other = &cluster.pod(NAMESPACE, "other")?.pod;
    let stranger = &cluster.pod("outside", "stranger")?.pod;
    // What a pod could claim to be: the client's address and its name in a certificate.
    let forged = [
        "-H".to_owned(),
        "x-forwarded-client-cert: URI=spiffe://cluster.local/ns/mixed/sa/client".to_owned(),
        "-H".to_owned(),
        format!("x-forwarded-for: {}", client.ipv4()),
    ];
    for ip in [service, server.pod.ips()[0], server.pod.ips()[1]] {
        let url = format!("http://{}/", SocketAddr::new(ip, HTTP));
        for (pod, allowed) in [(client, true), (other, false), (stranger, false)] {
            for headers in [&[][..], &forged[..]] {
                let mut curl = pod.command("curl");
                curl.args(["-sg", "--max-time", "30", "-w", "%{http_code}", "-o", "/dev/null"]).args(headers);
                let output = curl.arg(&url).output().context("cannot run curl")?;
                let code = String::from_utf8_lossy(&output.stdout).into_owned();
                ensure!((code == "200") == allowed, "{} to {ip}: {code}", pod.name());
            }
        }
    }
    // Nothing came from the others, whatever was said to them.
    let seen = server.stats()?;
    let peers: Vec<String> = seen.ports[&HTTP].peers.keys().cloned().collect();
    let expected: Vec<String> = client.ips().iter().map(ToString::to_string).collect();
    ensure!(peers == expected, "{peers:?}");

    // A source address that is not its own: the answers go to whose it is, and no connection comes of it.
    let before = server.stats()?.connections();
    let own = client.ipv4();
    let forging = format!(
        "ip addr add {own}/32 dev lo && curl -sg --max-time 5 --interface {own} -o /dev/null http://{}:{HTTP}/",
        server.pod.ipv4()
    );
    let output = stranger.command("bash").args(["-c", &forging]).output()?;
    ensure!(!output.status.success(), "a forged address was answered");
    ensure!(server.stats()?.connections() == before, "a forged address reached the application");
    Ok(())
}

#[test]
fn an_address_that_another_pod_had_gives_nothing_to_the_next() -> Result<()> {
    let Secured { mut cluster, .. } = secured(OTHERS)?;
    let client = &cluster.pod(NAMESPACE, CLIENT)?.pod;
    let freed = client.ipv4();
    let to = SocketAddr::new(cluster.pod(NAMESPACE, SERVER)?.pod.ips()[0], ECHO);
    let said = mixed::talk(client, to, IN_TIME, &["send:hello", "until:hello"])?;
    ensure!(said.received == "hello", "{said:?}");
    let before = cluster.pod(NAMESPACE, SERVER)?.stats()?.connections_to(ECHO);

    // The address is given on, and nobody has told the agents: they still have the client published under it.
    cluster.delete(&format!("{{apiVersion: v1, kind: Pod, metadata: {{name: {CLIENT}, namespace: {NAMESPACE}}}}}"))?;
    let heir = &cluster.pod(NAMESPACE, "other")?.pod;
    cluster.node.namespace().ip(&format!("route replace {freed} dev pod{}\n", heir.ipv4().octets()[3]))?;
    command::output(heir.command("ip").args(["addr", "add", &format!("{freed}/32"), "dev", "eth0"]))?;
    let serving = heir.serve(&["--tcp", &format!("greet:{GREET}"), "--tcp", &format!("echo:{ECHO}")])?;

    // It asks from the address.
    let mut curl = heir.command("curl");
    curl.args(["-sg", "--max-time", "10", "--interface", &freed.to_string(), "-d", "x", "-w", "%{http_code}"]);
    let output = curl.arg(format!("http://{to}/")).output()?;
    // The mesh itself answers, by the certificate of who really asks.
    ensure!(String::from_utf8_lossy(&output.stdout).ends_with("\n403"), "{output:?}");
    let server = cluster.pod(NAMESPACE, SERVER)?;
    ensure!(server.stats()?.connections_to(ECHO) == before, "the heir reached the application");
    // It is asked at the address, by somebody who wants the one that had it.
    for (port, steps) in [(GREET, &["end"][..]), (ECHO, &["send:secret", "until:secret"][..])] {
        let said = mixed::talk(&server.pod, SocketAddr::new(freed.into(), port), IN_TIME, steps)?;
        ensure!(said.received.is_empty(), "{said:?}");
    }
    ensure!(serving.stats()?.connections() == 0, "what was meant for another reached the heir");
    Ok(())
}

#[test]
fn nothing_escapes_while_agents_hang_die_and_are_replaced_on_a_link_that_loses_packets() -> Result<()> {
    /// Longer than an agent's heartbeat may be missing.
    const HANG: Duration = Duration::from_secs(7);
    /// A conversation that meets an agent which hangs is given up.
    const PATIENCE: Duration = Duration::from_secs(5);
    const WORD: &str = "planted-while-agents-come-and-go";
    let Secured { mut cluster, mirror, .. } = secured("")?;
    let (agent_a, agent_b) = (cluster.take_agent_on("node-a")?, cluster.take_agent_on("node-b")?);
    let recording = cluster.link()?.record()?;
    cluster.link()?.lose(50)?;
    let client = &cluster.pod(NAMESPACE, CLIENT)?.pod;
    let server = cluster.pod(NAMESPACE, SERVER)?;
    let (send, until, greeting) =
        (format!("send:{WORD}"), format!("until:{WORD}"), format!("{SERVER} {} ", client.ipv4()));
    let talks = [(ECHO, vec![&*send, &*until, "shutdown", "end"], WORD), (GREET, vec!["end"], &*greeting)];
    let (stop, served) = (AtomicBool::new(false), [AtomicU64::new(0), AtomicU64::new(0)]);
    let ip = server.pod.ips()[0];
    let agents = std::thread::scope(|scope| {
        for ((port, steps, expected), served) in talks.iter().zip(&served) {
            let stop = &stop;
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    // Some fail: an agent is gone. What must not be is looked for in the recording and in the application.
                    let said = mixed::talk(client, SocketAddr::new(ip, *port), PATIENCE, steps);
                    if said.is_ok_and(|said| said.end == "eof" && said.received.starts_with(expected)) {
                        served.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        let go_on = |what: &str| {
            let now = || served.each_ref().map(|count| count.load(Ordering::Relaxed));
            let before = now();
            wait::until(what, IN_TIME, || Ok(now().iter().zip(before).all(|(now, before)| *now > before).then_some(())))
        };
        let happen = || -> Result<[Agent; 2]> {
            go_on("conversations before anything happens")?;
            agent_b.signal(Signal::STOP)?;
            std::thread::sleep(HANG);
            agent_b.signal(Signal::CONT)?;
            go_on("conversations after the server's agent hung")?;
            agent_b.kill()?;
            let agent_b = mirror.start_agent(cluster.node_named("node-b")?, &options())?;
            go_on("conversations after the server's agent died")?;
            let agent_b = agent_b.hand_over_from(mirror.source())?;
            go_on("conversations after the server's agent was replaced")?;
            let agent_a = agent_a.hand_over_from(mirror.source())?;
            go_on("conversations after the client's agent was replaced")?;
            Ok([agent_a, agent_b])
        };
        let happened = happen();
        stop.store(true, Ordering::Relaxed);
        happened
    })?;
    let recorded = recording.stop()?;
    for words in [WORD, &greeting] {
        ensure!(!recorded.contains(words.as_bytes()), "{words:?} can be read on the link");
    }
    let seen = server.stats()?;
    ensure!(seen.client_hellos() == 0, "{seen:?}");
    drop(agents);
    Ok(())
}

/// A pod on the client's node whose connections are refused while the agent is gone.
const CAREFUL: &str = "
apiVersion: v1
kind: Pod
metadata: {name: careful, namespace: mixed, labels: {weft.dev/fail-mode: closed}}
spec: {serviceAccountName: careful, nodeName: node-a, containers: [{name: careful, image: pause}]}
";

#[test]
fn without_its_clients_agent_a_pod_is_refused_or_goes_direct_as_its_fail_mode_says_and_then_it_is_mutual_tls_again()
-> Result<()> {
    let Secured { mut cluster, mirror, .. } = secured(CAREFUL)?;
    let own = cluster.pod(NAMESPACE, SERVER)?.pod.ips();
    let ips = [cluster.service_ip(NAMESPACE, SERVER)?, own[0], own[1]];
    // Both pods send a word to the port that sends it back, and listen to the one that speaks first.
    let talks = |cluster: &Cluster, name: &str, word: &str| -> Result<Vec<[Transcript; 2]>> {
        let pod = &cluster.pod(NAMESPACE, name)?.pod;
        let (send, until) = (format!("send:{word}"), format!("until:{word}"));
        let talk = |ip, port, steps: &[&str]| mixed::talk(pod, SocketAddr::new(ip, port), IN_TIME, steps);
        ips.iter()
            .map(|ip| Ok([talk(*ip, ECHO, &[&send, &until, "shutdown", "end"])?, talk(*ip, GREET, &["end"])?]))
            .collect()
    };
    let all_served = |said: &[[Transcript; 2]], word: &str| -> Result<()> {
        for [echo, greet] in said {
            ensure!(echo.end == "eof" && echo.received == word, "{echo:?}");
            ensure!(greet.end == "eof" && greet.received.starts_with(SERVER), "{greet:?}");
        }
        Ok(())
    };
    for (name, word) in [(CLIENT, "before-client"), ("careful", "before-careful")] {
        all_served(&talks(&cluster, name, word)?, word).context(name)?;
    }
    let heard = |cluster: &Cluster| -> Result<_> { cluster.pod(NAMESPACE, SERVER)?.stats() };

    let recording = cluster.link()?.record()?;
    cluster.take_agent_on("node-a")?.kill()?;
    let before = heard(&cluster)?;
    for [echo, greet] in talks(&cluster, "careful", "without-careful")? {
        ensure!(echo.end == "refused" && greet.end == "refused", "{echo:?} {greet:?}");
    }
    ensure!(heard(&cluster)?.connections() == before.connections(), "a pod that fails closed was heard");
    // Directly, from its own address; the server's agent does not ask for more, as the namespace is not strict.
    all_served(&talks(&cluster, CLIENT, "without-client")?, "without-client")?;
    ensure!(heard(&cluster)?.connections() == before.connections() + 6, "{:?}", heard(&cluster)?);
    let recorded = recording.stop()?;
    ensure!(recorded.contains(b"without-client") && !recorded.contains(b"without-careful"));

    cluster.set_agent_on("node-a", mirror.start_agent(cluster.node_named("node-a")?, &options())?)?;
    for pod in [CLIENT, "careful"] {
        cluster.agent_on("node-a")?.wait_captured(NAMESPACE, pod)?;
    }
    let recording = cluster.link()?.record()?;
    for (name, word) in [(CLIENT, "again-client"), ("careful", "again-careful")] {
        all_served(&talks(&cluster, name, word)?, word).context(name)?;
    }
    let recorded = recording.stop()?;
    ensure!(all_is_tls(&recorded)? >= 12, "of two pods, three ways and two ports each");
    for word in ["again-client", "again-careful"] {
        ensure!(!recorded.contains(word.as_bytes()), "{word} can be read on the link");
    }
    let plain = cluster.agent_on("node-a")?.metric("weft_upstream_connections_total", &["encryption=\"none\""])?;
    ensure!(plain == 0.0, "{plain} connections were made without mutual TLS");
    ensure!(heard(&cluster)?.client_hellos() == 0);
    Ok(())
}
