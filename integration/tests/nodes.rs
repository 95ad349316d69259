//! Clusters of several nodes, an agent on each: what crosses the link between them.

#[path = "nodes/rules.rs"]
mod rules;

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use weft_integration::{
    AgentOptions, Cluster,
    kube::mixed::{CLIENT, HTTP, Mixed, NAMESPACE, SERVER},
    shop::load,
};

fn options() -> AgentOptions {
    AgentOptions { workers: Some(1), ..AgentOptions::default() }
}

/// Two nodes with agents, and pods of all kinds, captured.
fn two_nodes() -> Result<(Mixed, Cluster)> {
    let mut cluster = Cluster::with_nodes(2)?;
    cluster.install_crds()?;
    let mixed = Mixed::start(&mut cluster)?;
    cluster.start_agents(&options())?;
    cluster.wait_captured(NAMESPACE)?;
    Ok((mixed, cluster))
}

#[test]
fn traffic_of_every_kind_crosses_nodes_whole_also_when_the_link_loses_packets() -> Result<()> {
    let (mixed, cluster) = two_nodes()?;
    let recording = cluster.link()?.record()?;
    let planted = mixed.send(&cluster, "plain")?;
    let recorded = recording.stop()?;
    ensure!(recorded.holes() == 0, "{} holes in {} packets", recorded.holes(), recorded.packets());
    // Nothing makes mutual TLS of it here, so the recording shows all of it: what finds nothing elsewhere can find something.
    for planted in &planted {
        ensure!(recorded.contains(&planted.words), "{planted:?} did not cross the link");
    }
    for node in ["node-a", "node-b"] {
        let connections = cluster.agent_on(node)?.metric("weft_connections_total", &[])?;
        ensure!(connections >= planted.len() as f64, "the agent of {node} carried {connections}");
    }
    cluster.link()?.lose(20)?;
    mixed.send(&cluster, "lossy")?;

    cluster.link()?.lose(1000)?;
    let to = SocketAddr::new(cluster.pod(NAMESPACE, SERVER)?.pod.ips()[0], HTTP).to_string();
    let report = load(&cluster.pod(NAMESPACE, CLIENT)?.pod, &["--to", &to, "--timeout-ms", "1000"])?;
    ensure!(report.served == 0, "{report:?}");
    cluster.link()?.lose(0)?;
    let report = load(&cluster.pod(NAMESPACE, CLIENT)?.pod, &["--to", &to, "--timeout-ms", "30000"])?;
    ensure!(report.served == 1, "{report:?}");
    Ok(())
}

#[test]
fn rules_between_nodes_by_address_and_port_hold() -> Result<()> {
    let (_mixed, mut cluster) = two_nodes()?;
    cluster.apply(rules::OTHER)?;
    cluster.wait_captured(NAMESPACE)?;
    rules::hold(&cluster)
}

#[test]
fn three_nodes_reach_each_other_and_a_pod_is_run_where_it_is_placed() -> Result<()> {
    let mut cluster = Cluster::with_nodes(3)?;
    cluster.install_crds()?;
    let mut objects = format!(
        "{{apiVersion: v1, kind: Namespace, metadata: {{name: {NAMESPACE}, labels: {{weft.dev/mesh: enabled}}}}}}\n"
    );
    for letter in ["a", "b", "c"] {
        objects.push_str(&format!(
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: web-{letter}, namespace: {NAMESPACE}, labels: {{app: web}}}}, \
             spec: {{nodeName: node-{letter}, containers: [{{name: web, image: weft-testpod, args: [--http, '{HTTP}']}}]}}}}\n"
        ));
    }
    objects.push_str(&format!(
        "---\n{{apiVersion: v1, kind: Service, metadata: {{name: web, namespace: {NAMESPACE}}}, \
         spec: {{selector: {{app: web}}, ports: [{{name: http, port: {HTTP}}}]}}}}\n"
    ));
    cluster.apply(&objects)?;
    cluster.start_agents(&options())?;
    cluster.wait_captured(NAMESPACE)?;
    for agent in ["node-a", "node-b", "node-c"] {
        cluster.agent_on(agent)?.wait_endpoints(NAMESPACE, "web", 3)?;
    }
    let names = ["web-a", "web-b", "web-c"];
    let service = cluster.service_ip(NAMESPACE, "web")?;
    for name in names {
        let pod = &cluster.pod(NAMESPACE, name)?.pod;
        ensure!(pod.node().name() == format!("node-{}", &name[4..]), "{name} is on {}", pod.node().name());
        let report = load(pod, &["--to", &SocketAddr::new(service, HTTP).to_string(), "--connections", "30"])?;
        ensure!(report.served == 30, "{report:?}");
        ensure!(report.servers.keys().eq(names), "{report:?}");
    }
    Ok(())
}
