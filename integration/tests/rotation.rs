//! Two nodes with the mesh's own authority: agents publish their pods, and traffic between them goes on while certificates and roots are
//! replaced beneath it.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_integration::{
    Agent, AgentOptions, Cluster,
    agent::{self, Source},
    kube::{
        authority::{Authority, AuthorityOptions},
        mixed::{CLIENT, HTTP, Mixed, NAMESPACE, SERVER},
    },
    limits, wait,
};

const NODES: [&str; 2] = ["node-a", "node-b"];
/// Whatever has to come comes by then, also on a busy machine.
const IN_TIME: Duration = Duration::from_secs(120);

struct Mesh {
    // Agents end before the authority does.
    cluster: Cluster,
    authority: Authority,
    mixed: Mixed,
}

/// Two nodes whose agents have certificates of an authority of two replicas, and have told each other of their pods.
fn mesh(arguments: &[&str]) -> Result<Mesh> {
    let mut cluster = Cluster::with_nodes(2)?;
    cluster.install_crds()?;
    let mixed = Mixed::start(&mut cluster)?;
    let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    let authority = Authority::start_with(&mut cluster, AuthorityOptions { replicas: 2, arguments })?;
    for node in NODES {
        let arguments = authority.agent_arguments(node)?;
        let options = AgentOptions { workers: Some(1), arguments, ..AgentOptions::default() };
        let kubeconfig = cluster.kubeconfig_on(node)?;
        let agent = Agent::launch_from(cluster.node_named(node)?, Source::Kubeconfig(&kubeconfig), options)?;
        cluster.set_agent_on(node, agent)?;
    }
    for node in NODES {
        let mut agent = cluster.take_agent_on(node)?;
        let ready = agent.wait_ready();
        cluster.set_agent_on(node, agent)?;
        ready.with_context(|| node.to_owned())?;
    }
    cluster.wait_captured(NAMESPACE)?;
    let mut last = Vec::new();
    wait::until("all pods to be published", limits::APPLY_TIMEOUT, || {
        last = published(&cluster)?;
        Ok((last == [CLIENT, "programs", SERVER]).then_some(()))
    })
    .with_context(|| format!("published are {last:?}"))?;
    // The other agent hears of it a moment later.
    wait::until("a connection by mutual TLS", limits::APPLY_TIMEOUT, || {
        ask(&cluster)?;
        Ok((made(&cluster, "mutual_tls")? > 0.0).then_some(()))
    })?;
    Ok(Mesh { cluster, authority, mixed })
}

/// The pods that agents say take mutual TLS.
fn published(cluster: &Cluster) -> Result<Vec<String>> {
    let objects = cluster.server.list("/apis/weft.dev/v1alpha1/nodeworkloads")?;
    let pods = objects.iter().filter_map(|object| object["spec"]["pods"].as_array()).flatten();
    let mut names: Vec<String> = pods.filter_map(|pod| Some(pod["name"].as_str()?.to_owned())).collect();
    names.sort();
    Ok(names)
}

fn target(cluster: &Cluster) -> Result<String> {
    Ok(SocketAddr::new(cluster.service_ip(NAMESPACE, SERVER)?, HTTP).to_string())
}

fn ask(cluster: &Cluster) -> Result<()> {
    let url = format!("http://{}/", target(cluster)?);
    let mut curl = cluster.pod(NAMESPACE, CLIENT)?.pod.command("curl");
    weft_integration::command::output(curl.args(["-sSf", "--max-time", "20", "-o", "/dev/null", &url])).map(drop)
}

/// How many connections the client's agent has made, by how they are protected.
fn made(cluster: &Cluster, encryption: &str) -> Result<f64> {
    let label = format!("encryption=\"{encryption}\"");
    cluster.agent_on("node-a")?.metric("weft_upstream_connections_total", &[&label])
}

#[test]
fn agents_tell_each_other_of_their_pods_and_then_nothing_crosses_the_link_in_the_clear() -> Result<()> {
    let Mesh { cluster, mixed, .. } = mesh(&[])?;
    let plain = made(&cluster, "none")?;
    let recording = cluster.link()?.record()?;
    let planted = mixed.send(&cluster, "secret")?;
    let recorded = recording.stop()?;
    ensure!(recorded.holes() == 0, "{} holes in {} packets", recorded.holes(), recorded.packets());
    for planted in &planted {
        ensure!(!recorded.contains(&planted.words), "{planted:?} can be read on the link");
    }
    ensure!(made(&cluster, "none")? == plain, "a connection was made without mutual TLS");
    status_tells(&cluster)
}

/// Status and explanations say what is so: who is published, which namespace is strict, and what that comes to.
fn status_tells(cluster: &Cluster) -> Result<()> {
    let told = |what: &str, strict: Value| -> Result<()> {
        for (node, published) in [("node-a", 1), ("node-b", 2)] {
            let expected = json!({"default": "permissive", "strict": strict, "published": published, "withheld": []});
            cluster.agent_on(node)?.wait_status(what, |status| (status.mtls == expected).then_some(()))?;
        }
        Ok(())
    };
    told("no namespace to be strict", json!([]))?;
    let strict = json!({"metadata": {"labels": {"weft.dev/mtls": "strict"}}});
    cluster.server.call("PATCH", &format!("/api/v1/namespaces/{NAMESPACE}"), Some(&strict))?;
    let by = json!({"kind": "Namespace", "namespace": "", "name": NAMESPACE});
    told("a namespace to be strict", json!([{"namespace": NAMESPACE, "by": by}]))?;
    let node = cluster.node_named("node-b")?;
    let explain = |source: &str| agent::weft(node, &["explain", source, &format!("pod:{NAMESPACE}/{SERVER}:{HTTP}")]);
    let refused = explain("outside").err().context("plaintext is refused")?.to_string();
    let why = format!("Namespace {NAMESPACE} takes mutual TLS only, and this connection brought no certificate");
    ensure!(refused.contains(&why), "{refused}");
    let allowed = explain(&format!("sa:{NAMESPACE}/{CLIENT}"))?;
    ensure!(allowed.contains("\"allowed\"") && allowed.contains("in plaintext from elsewhere is refused"), "{allowed}");
    // And so it is.
    ask(cluster)
}

#[test]
fn no_request_fails_while_leaves_are_renewed_and_the_root_is_rotated_with_the_leader_killed_at_each_step() -> Result<()>
{
    const LEAF_S: &str = "20";
    /// Of every service account of a node together: more than the rotation itself asks for.
    const RENEWALS: f64 = 4.0;
    let Mesh { cluster, mut authority, .. } =
        mesh(&["--propagation-s", "2", "--takeover-s", "6", "--any-ttl", "--ttl-s", LEAF_S])?;
    let plain = made(&cluster, "none")?;
    let roots = |node: &str| -> Result<String> {
        Ok(cluster.agent_on(node)?.identity()?["bundle_sha256"].as_str().unwrap_or_default().to_owned())
    };
    let before = roots("node-a")?;
    let client = &cluster.pod(NAMESPACE, CLIENT)?.pod;
    let mut asking = client.testpod()?;
    // Ends with an error at the first request that is not answered with 200.
    asking.args(["watch", "--connections", "4", "--to", &target(&cluster)?]);
    let mut asking = client.spawn(asking)?;
    let served = || -> Result<u64> { Ok(cluster.pod(NAMESPACE, SERVER)?.stats()?.requests()) };
    let first = served()?;
    wait::until("requests to flow", IN_TIME, || Ok((served()? > first + 100).then_some(())))?;

    authority.rotate_root(&cluster)?;
    let (mut seen, began) = (BTreeSet::new(), Instant::now());
    wait::until("the root to be another one", 2 * IN_TIME, || {
        if let Some(status) = asking.has_ended()? {
            anyhow::bail!("a request failed at {seen:?} ({status}): {}", asking.log_tail(limits::LOG_TAIL_LINES));
        }
        let now = authority.phase(&cluster)?;
        if now != "steady" && seen.insert(now.clone()) {
            let leads = authority.leader(&cluster)?;
            authority.kill(leads)?;
            authority.launch(leads)?;
            authority.wait_ready(leads)?;
        }
        let rotated = now == "steady" && !seen.is_empty();
        Ok((rotated && roots("node-a")? != before && roots("node-b")? == roots("node-a")?).then_some(()))
    })
    .with_context(|| format!("steps so far: {seen:?}, after {} s", began.elapsed().as_secs()))?;
    let all: BTreeSet<String> = ["prepare", "announce", "switch", "reissue", "retire"].map(str::to_owned).into();
    ensure!(seen == all, "{seen:?}");
    // And still, with the new root alone.
    let then = served()?;
    wait::until("requests to flow", IN_TIME, || Ok((served()? > then + 100).then_some(())))?;
    ensure!(asking.has_ended()?.is_none(), "{}", asking.log_tail(limits::LOG_TAIL_LINES));
    wait::until("leaves to be renewed on both nodes", IN_TIME, || {
        if let Some(status) = asking.has_ended()? {
            anyhow::bail!("a request failed ({status}): {}", asking.log_tail(limits::LOG_TAIL_LINES));
        }
        let renewals = |node: &str| cluster.agent_on(node)?.metric("weft_certificate_renewals_total", &[]);
        Ok((renewals("node-a")? >= RENEWALS && renewals("node-b")? >= RENEWALS).then_some(()))
    })?;
    ensure!(made(&cluster, "none")? == plain, "a connection was made without mutual TLS");
    Ok(())
}
