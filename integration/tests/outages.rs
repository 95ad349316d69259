//! Two nodes whose API server and authority are both gone: what goes on, what an agent does that starts meanwhile, and what is there
//! again when the API server is back.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_integration::{
    Agent, http,
    kube::{
        Mesh, MeshOptions,
        mixed::{self, CLIENT, ECHO, GREET, HTTP, NAMESPACE, SERVER},
    },
    wait,
};

/// Whatever has to come comes by then, also on a busy machine.
const IN_TIME: Duration = Duration::from_secs(60);

/// The certificates of a node, by service account: serial numbers.
fn serials(agent: &Agent) -> Result<Vec<(String, String)>> {
    let identity = agent.identity()?;
    let rows = identity["accounts"].as_array().context("no accounts")?;
    let text = |row: &Value, field: &str| row[field].as_str().unwrap_or_default().to_owned();
    Ok(rows.iter().map(|row| (text(row, "service_account"), text(row, "serial"))).collect())
}

/// Until an agent that starts waits for the API server, and says so.
fn waits(mesh: &Mesh, node: &str) -> Result<()> {
    let address = SocketAddr::from(([127, 0, 0, 1], 15020));
    wait::until("an agent to wait for the API server", IN_TIME, || {
        let (code, body) = mesh.cluster.node_named(node)?.namespace().run(|| http::fetch(address, "/readyz"))?;
        ensure!(code == 503, "/readyz answered {code}: {body}");
        Ok(Some(()))
    })
}

#[test]
fn mutual_tls_outlives_api_server_and_authority_and_an_agent_that_starts_waits_with_its_pods_held_to_their_fail_mode()
-> Result<()> {
    let mut mesh = Mesh::start(MeshOptions::default())?;
    let (client_ip, server_ips) = {
        let ips = |name: &str| -> Result<_> { Ok(mesh.cluster.pod(NAMESPACE, name)?.pod.ips()) };
        (ips(CLIENT)?[0], ips(SERVER)?)
    };
    let kept: Vec<_> =
        ["node-a", "node-b"].iter().map(|node| serials(mesh.cluster.agent_on(node)?)).collect::<Result<_>>()?;
    ensure!(kept.iter().flatten().all(|(_, serial)| !serial.is_empty()), "{kept:?}");
    let plain = mesh.made("none")?;
    let mut asking = mesh.watch(2)?;

    mesh.cluster.server.kill()?;
    mesh.authority.kill(0)?;
    let recording = mesh.cluster.link()?.record()?;
    // Requests on connections that were there, and connections that are new.
    mesh.goes_on(&mut asking)?;
    for round in 0..20 {
        mesh.ask()?;
        mesh.say(&format!("planted-in-the-outage-{round}"))?;
    }
    mesh.goes_on(&mut asking)?;
    ensure!(mesh.made("none")? == plain, "a connection was made without mutual TLS");
    drop(asking);

    // The server's agent is killed, and started while there is nothing that it could read policy from.
    mesh.cluster.take_agent_on("node-b")?.kill()?;
    mesh.launch("node-b")?;
    waits(&mesh, "node-b")?;
    let before = mesh.cluster.pod(NAMESPACE, SERVER)?.stats()?;
    let client = &mesh.cluster.pod(NAMESPACE, CLIENT)?.pod;
    for ip in [mesh.service, server_ips[0], server_ips[1]] {
        for (port, steps) in [(ECHO, &["send:planted-in-the-outage", "end"][..]), (GREET, &["end"][..])] {
            let said = mixed::talk(client, SocketAddr::new(ip, port), IN_TIME, steps)?;
            ensure!(said.received.is_empty() && ["reset", "refused"].contains(&&*said.end), "{said:?}");
        }
        let url = format!("http://{}/", SocketAddr::new(ip, HTTP));
        let mut curl = client.command("curl");
        let output = curl.args(["-sg", "--max-time", "30", "-w", "%{http_code}", "-o", "/dev/null", &url]).output()?;
        ensure!(output.stdout == b"503", "{output:?}");
    }
    let now = mesh.cluster.pod(NAMESPACE, SERVER)?.stats()?;
    ensure!(now.connections() == before.connections(), "{before:?} became {now:?}");
    // The node's own pods are as without an agent: fail mode open.
    let programs = &mesh.cluster.pod(NAMESPACE, "programs")?.pod;
    let said = mixed::talk(programs, SocketAddr::new(server_ips[0], ECHO), IN_TIME, &["send:near", "until:near"])?;
    ensure!(said.received == "near", "{said:?}");

    // With the API server back, and still nobody who signs, it has the certificates that the agent before it had.
    mesh.cluster.server.restart()?;
    mesh.wait_ready("node-b")?;
    let comes_back = |mesh: &Mesh, node: &str, kept: &[(String, String)]| -> Result<()> {
        let mut last = Vec::new();
        wait::until("the kept certificates", IN_TIME, || {
            last = serials(mesh.cluster.agent_on(node)?)?;
            Ok((last == kept).then_some(()))
        })
        .with_context(|| format!("{last:?} and not {kept:?}"))?;
        mesh.wait_mutual()?;
        ensure!(mesh.cluster.agent_on(node)?.metric("weft_certificate_renewals_total", &[])? == 0.0, "somebody signed");
        Ok(())
    };
    comes_back(&mesh, "node-b", &kept[1])?;
    mesh.ask()?;
    ensure!(mesh.made("none")? == plain, "a connection was made without mutual TLS");
    let recorded = recording.stop()?;
    ensure!(!recorded.contains(b"planted-in-the-outage"), "what was sent can be read on the link");

    // The same at the client's side.
    mesh.cluster.take_agent_on("node-a")?.kill()?;
    mesh.launch("node-a")?;
    mesh.wait_ready("node-a")?;
    comes_back(&mesh, "node-a", &kept[0])?;
    let recording = mesh.cluster.link()?.record()?;
    mesh.ask()?;
    mesh.say("planted-after-the-outage")?;
    let recorded = recording.stop()?;
    ensure!(!recorded.contains(b"planted-after-the-outage"), "what was sent can be read on the link");
    ensure!(mesh.made("none")? == 0.0, "a connection was made without mutual TLS");
    let seen = mesh.cluster.pod(NAMESPACE, SERVER)?.stats()?;
    ensure!(seen.client_hellos() == 0, "{seen:?}");
    ensure!(seen.ports[&ECHO].peers.contains_key(&client_ip.to_string()), "{seen:?}");
    Ok(())
}
