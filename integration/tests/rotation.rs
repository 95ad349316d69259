//! Two nodes with the mesh's own authority: agents publish their pods, and traffic between them goes on while certificates and roots are
//! replaced beneath it.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_integration::{
    agent,
    kube::{
        AuthorityOptions, Mesh, MeshOptions,
        mixed::{CLIENT, HTTP, NAMESPACE, SERVER},
    },
    limits, wait,
};

/// Whatever has to come comes by then, also on a busy machine.
const IN_TIME: Duration = Duration::from_secs(120);

/// Two nodes whose authority has two replicas, with these arguments.
fn mesh(arguments: &[&str]) -> Result<Mesh> {
    let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    Mesh::start(MeshOptions { authority: AuthorityOptions { replicas: 2, arguments }, ..MeshOptions::default() })
}

#[test]
fn agents_tell_each_other_of_their_pods_and_then_nothing_crosses_the_link_in_the_clear() -> Result<()> {
    let mesh = mesh(&[])?;
    let cluster = &mesh.cluster;
    let plain = mesh.made("none")?;
    let recording = cluster.link()?.record()?;
    let planted = mesh.mixed.send(cluster, "secret")?;
    let recorded = recording.stop()?;
    ensure!(recorded.holes() == 0, "{} holes in {} packets", recorded.holes(), recorded.packets());
    for planted in &planted {
        ensure!(!recorded.contains(&planted.words), "{planted:?} can be read on the link");
    }
    ensure!(mesh.made("none")? == plain, "a connection was made without mutual TLS");
    status_tells(&mesh)
}

/// Status and explanations say what is so: who is published, which namespace is strict, and what that comes to.
fn status_tells(mesh: &Mesh) -> Result<()> {
    let cluster = &mesh.cluster;
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
    mesh.ask()
}

#[test]
fn no_request_fails_while_leaves_are_renewed_and_the_root_is_rotated_with_the_leader_killed_at_each_step() -> Result<()>
{
    const LEAF_S: &str = "20";
    /// Of every service account of a node together: more than the rotation itself asks for.
    const RENEWALS: f64 = 4.0;
    let mut mesh = mesh(&["--propagation-s", "2", "--takeover-s", "6", "--any-ttl", "--ttl-s", LEAF_S])?;
    let plain = mesh.made("none")?;
    let roots = |mesh: &Mesh, node: &str| -> Result<String> {
        Ok(mesh.cluster.agent_on(node)?.identity()?["bundle_sha256"].as_str().unwrap_or_default().to_owned())
    };
    let before = roots(&mesh, "node-a")?;
    // Ends with an error at the first request that is not answered with 200.
    let mut asking = mesh.watch(4)?;

    mesh.authority.rotate_root(&mesh.cluster)?;
    let (mut seen, began) = (BTreeSet::new(), Instant::now());
    wait::until("the root to be another one", 2 * IN_TIME, || {
        if let Some(status) = asking.has_ended()? {
            anyhow::bail!("a request failed at {seen:?} ({status}): {}", asking.log_tail(limits::LOG_TAIL_LINES));
        }
        let now = mesh.authority.phase(&mesh.cluster)?;
        if now != "steady" && seen.insert(now.clone()) {
            let leads = mesh.authority.leader(&mesh.cluster)?;
            mesh.authority.kill(leads)?;
            mesh.authority.launch(leads)?;
            mesh.authority.wait_ready(leads)?;
        }
        let rotated = now == "steady" && !seen.is_empty();
        Ok((rotated && roots(&mesh, "node-a")? != before && roots(&mesh, "node-b")? == roots(&mesh, "node-a")?)
            .then_some(()))
    })
    .with_context(|| format!("steps so far: {seen:?}, after {} s", began.elapsed().as_secs()))?;
    let all: BTreeSet<String> = ["prepare", "announce", "switch", "reissue", "retire"].map(str::to_owned).into();
    ensure!(seen == all, "{seen:?}");
    // And still, with the new root alone.
    mesh.goes_on(&mut asking)?;
    wait::until("leaves to be renewed on both nodes", IN_TIME, || {
        if let Some(status) = asking.has_ended()? {
            anyhow::bail!("a request failed ({status}): {}", asking.log_tail(limits::LOG_TAIL_LINES));
        }
        let renewals = |node: &str| mesh.cluster.agent_on(node)?.metric("weft_certificate_renewals_total", &[]);
        Ok((renewals("node-a")? >= RENEWALS && renewals("node-b")? >= RENEWALS).then_some(()))
    })?;
    ensure!(mesh.made("none")? == plain, "a connection was made without mutual TLS");
    Ok(())
}
