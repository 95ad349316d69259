//! The API server goes away, says nothing, or is not there yet: what is known stays in force, nothing is disturbed that did not change, and
//! what happened meanwhile is applied.

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use weft_integration::{
    Agent, AgentOptions, Cluster,
    agent::Source,
    http,
    kube::{
        Door, Way,
        shop::{self, Bystanders, NAMESPACE},
    },
    wait,
};

/// Names the variable that makes outages longer than a test needs, seconds.
const OUTAGE_VARIABLE: &str = "WEFT_OUTAGE_S";
const OUTAGE_S: f64 = 2.0;
/// Whatever has to come comes by then, also on a busy machine. After an outage, back-off is at most half as long as the outage was.
const IN_TIME: Duration = Duration::from_secs(60);
/// Kinds of objects that an agent reads.
const KINDS: usize = 16;
/// Those of them that this API server does not serve: Gateway API's are not installed.
const NOT_SERVED: [&str; 3] = ["GRPCRoute", "HTTPRoute", "ReferenceGrant"];
/// What the agent is told of how long a connection may be without a sign of life.
const LOST_AFTER: &str = "3";

/// Makes the API server say nothing, or ends that.
type Silence<'a> = &'a dyn Fn(bool) -> Result<()>;

fn outage_s() -> f64 {
    std::env::var(OUTAGE_VARIABLE).ok().and_then(|text| text.parse().ok()).unwrap_or(OUTAGE_S)
}

fn start(cluster: &mut Cluster, kubeconfig: &Path) -> Result<()> {
    let arguments = vec!["--api-lost-after-s".to_owned(), LOST_AFTER.to_owned()];
    let options = AgentOptions { workers: Some(1), arguments, ..AgentOptions::default() };
    let agent = Agent::start_from(&cluster.node, Source::Kubeconfig(kubeconfig), options)?;
    cluster.set_agent(agent);
    cluster.wait_captured(NAMESPACE)
}

/// For how long each kind may be old, as the agent's metrics say, seconds.
fn stale(agent: &Agent) -> Result<BTreeMap<String, f64>> {
    let metrics = agent.metrics()?;
    let rows = metrics.lines().filter_map(|line| line.strip_prefix("weft_source_stale_seconds{kind=\""));
    rows.map(|row| {
        let (kind, value) = row.split_once("\"} ").context("a sample")?;
        Ok((kind.to_owned(), value.parse()?))
    })
    .collect()
}

fn wait_stale(agent: &Agent, seconds: f64) -> Result<()> {
    let mut last = BTreeMap::new();
    wait::until(&format!("every kind to be stale for {seconds} s"), IN_TIME + Duration::from_secs_f64(seconds), || {
        last = stale(agent)?;
        Ok((last.len() == KINDS && last.values().all(|kind| *kind >= seconds)).then_some(()))
    })
    .with_context(|| format!("{last:?}"))
}

fn wait_fresh(agent: &Agent) -> Result<()> {
    let mut last = BTreeMap::new();
    wait::until("every kind to be followed", IN_TIME, || {
        last = stale(agent)?;
        Ok(last.values().all(|kind| *kind == 0.0).then_some(()))
    })
    .with_context(|| format!("{last:?}"))
}

fn generation(cluster: &Cluster) -> Result<u64> {
    Ok(cluster.agent()?.status()?.generation)
}

#[test]
fn what_happened_while_the_api_server_was_away_is_applied_and_nothing_else_is_touched() -> Result<()> {
    let mut cluster = shop::open()?;
    cluster.apply(&shop::target("stable", "stable", "client"))?;
    let door = Door::to(&cluster.node, &cluster.server)?;
    let kubeconfig = door.kubeconfig(&cluster.server)?;
    start(&mut cluster, &kubeconfig)?;
    let url = format!("http://{}/", cluster.service_ip(NAMESPACE, "web")?);
    let v1 = ("200".to_owned(), "web-v1-1".to_owned());
    ensure!(shop::ask(&cluster, "web")? == v1);
    let mut bystanders = Bystanders::start(&cluster)?;
    let before = generation(&cluster)?;

    cluster.server.kill()?;
    wait_stale(cluster.agent()?, outage_s())?;
    ensure!(shop::ask_at(&cluster, &url)? == v1, "the last good policy holds");
    ensure!(cluster.agent()?.status()?.ready);
    // The agent finds out only when all of this has happened, and been forgotten.
    door.set(Way::Shut);
    cluster.server.restart()?;
    cluster.server.delete(&shop::split(1, 0))?;
    cluster.apply(&shop::target("web", "web", "nobody"))?;
    cluster.server.compact()?;
    ensure!(generation(&cluster)? == before);
    door.set(Way::Open);

    let agent = cluster.agent()?;
    wait_fresh(agent)?;
    agent.wait_shares(NAMESPACE, "web", &[])?;
    wait::until("the target that was added to deny", IN_TIME, || {
        Ok((shop::ask(&cluster, "web")?.0 == "403").then_some(()))
    })?;
    ensure!(agent.metric("weft_source_errors_total", &["reason=\"expired\""])? > 0.0, "{}", agent.metrics()?);
    bystanders.are_undisturbed(&cluster)?;
    // A split that has gone, and a target that has come: they may be told by two lists, or by one.
    let after = generation(&cluster)?;
    ensure!((before + 1..=before + 2).contains(&after), "{before} became {after}: {}", agent.log_tail());
    ensure!(agent.metric("weft_connections_cut_total", &[])? == 0.0);
    Ok(())
}

#[test]
fn connections_to_an_api_server_that_says_nothing_are_given_up_in_time_and_nothing_is_disturbed() -> Result<()> {
    let mut cluster = shop::open()?;
    let door = Door::to(&cluster.node, &cluster.server)?;
    let kubeconfig = door.kubeconfig(&cluster.server)?;
    start(&mut cluster, &kubeconfig)?;
    let mut bystanders = Bystanders::start(&cluster)?;
    let before = generation(&cluster)?;
    let port = door.address().port();
    let silences: [(&str, Silence); 3] = [
        ("the API server stands still", &|silent| cluster.server.freeze(silent)),
        ("what stands between answers for itself", &|silent| {
            door.set(if silent { Way::Mute } else { Way::Open });
            Ok(())
        }),
        ("the network drops packets", &|silent| {
            let rules = format!("type filter hook input priority 0\n tcp dport {port} drop\n tcp sport {port} drop\n");
            cluster.node.nft(&match silent {
                true => format!("table inet silence {{\n chain input {{\n {rules} }}\n}}\n"),
                false => "delete table inet silence\n".to_owned(),
            })
        }),
    ];
    for (what, set) in silences {
        set(true)?;
        wait_stale(cluster.agent()?, outage_s()).context(what)?;
        set(false)?;
        wait_fresh(cluster.agent()?).context(what)?;
        bystanders.are_undisturbed(&cluster).context(what)?;
        ensure!(generation(&cluster)? == before, "{what}: nothing has changed, but {}", cluster.agent()?.log_tail());
    }
    let agent = cluster.agent()?;
    // One list of each kind at the start, and none that nothing asked for; none at all of what this API server does not serve.
    for kind in stale(agent)?.keys() {
        let relists = agent.metric("weft_source_relists_total", &[&format!("kind=\"{kind}\"")])?;
        let expected = if NOT_SERVED.contains(&kind.as_str()) { 0.0 } else { 1.0 };
        ensure!(relists == expected, "{kind} was listed {relists} times");
    }
    cluster.apply(&shop::split(0, 1))?;
    wait::until("a change to be followed", IN_TIME, || Ok((shop::ask(&cluster, "web")?.1 == "web-v2-1").then_some(())))
}

#[test]
fn an_agent_that_finds_no_api_server_waits_and_leaves_what_is_in_force() -> Result<()> {
    let mut cluster = shop::open()?;
    cluster.apply(&shop::target("stable", "stable", "client"))?;
    let kubeconfig = cluster.kubeconfig();
    start(&mut cluster, &kubeconfig)?;
    let url = |service: &str| Ok::<_, anyhow::Error>(format!("http://{}/", cluster.service_ip(NAMESPACE, service)?));
    let (web, stable) = (url("web")?, url("stable")?);
    cluster.agent()?.wait_status("the pod that a target selects to be closed", |status| {
        status.pod(NAMESPACE, "stable-1").filter(|pod| pod.fail_mode == "closed").map(drop)
    })?;
    cluster.take_agent()?.kill()?;
    cluster.server.kill()?;

    let options = AgentOptions::default();
    let metrics = options.metrics_addr;
    let mut agent = Agent::launch_from(&cluster.node, Source::Kubeconfig(&kubeconfig), options)?;
    let said = wait::until("the agent to say what it waits for", IN_TIME, || {
        let (code, body) = cluster.node.namespace().run(|| http::fetch(metrics, "/readyz"))?;
        Ok((code == 503).then_some(body))
    })?;
    ensure!(said.contains("API server"), "/readyz says {said:?}");
    let live = cluster.node.namespace().run(|| http::fetch(metrics, "/livez"))?;
    ensure!(live.0 == 200, "it waits, and is not to be restarted: {live:?}");
    // As an agent left it that is gone: the fail modes hold.
    ensure!(shop::ask_at(&cluster, &stable)?.0 == "000", "what a target selects is closed");
    ensure!(shop::ask_at(&cluster, &web)?.0 == "200", "what none selects is open");
    wait_stale(&agent, outage_s())?;
    ensure!(agent.log().contains("waiting for the API server"), "{}", agent.log_tail());

    cluster.server.restart()?;
    agent.wait_ready()?;
    cluster.set_agent(agent);
    cluster.wait_captured(NAMESPACE)?;
    ensure!(shop::ask(&cluster, "stable")?.0 == "200");
    wait_fresh(cluster.agent()?)
}
