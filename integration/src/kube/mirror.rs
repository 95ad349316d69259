//! The objects of a cluster as a directory of manifests, for agents that read them from there: they sign certificates themselves, with
//! keys that they share, so a test of what is between nodes needs no authority. What agents publish of their pods the test writes.

use std::{collections::BTreeSet, path::PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Cluster, server::text};
use crate::{
    Agent, AgentOptions, Manifests, Node,
    agent::{self, Source},
    limits,
    manifests::{CGROUP_ANNOTATION, NETNS_ANNOTATION},
    wait,
};

/// What is mirrored: kind, version, path of the list.
const KINDS: [(&str, &str, &str); 5] = [
    ("Namespace", "v1", "/api/v1/namespaces"),
    ("Pod", "v1", "/api/v1/pods"),
    ("Service", "v1", "/api/v1/services"),
    ("TCPRoute", "specs.smi-spec.io/v1alpha4", "/apis/specs.smi-spec.io/v1alpha4/tcproutes"),
    ("TrafficTarget", "access.smi-spec.io/v1alpha3", "/apis/access.smi-spec.io/v1alpha3/traffictargets"),
];

/// The directory, and the keys.
#[derive(Debug)]
pub struct Mirror {
    manifests: Manifests,
    keys: PathBuf,
}

impl Mirror {
    /// Everything that is in the cluster now; the definitions must be installed.
    ///
    /// # Errors
    /// When the API server does not answer, or a file cannot be written.
    pub fn of(cluster: &Cluster) -> Result<Self> {
        let keys = cluster.node.state_dir().join("authority.pem");
        let mut mirror = Self { manifests: Manifests::new(&cluster.node)?, keys };
        mirror.update(cluster)?;
        Ok(mirror)
    }

    /// Makes it what is in the cluster now.
    ///
    /// # Errors
    /// As [`of`](Self::of).
    pub fn update(&mut self, cluster: &Cluster) -> Result<()> {
        for (kind, version, path) in KINDS {
            let mut present = BTreeSet::new();
            for mut object in cluster.server.list(path)? {
                object["kind"] = json!(kind);
                object["apiVersion"] = json!(version);
                let (namespace, name) =
                    (text(&object, "/metadata/namespace").to_owned(), text(&object, "/metadata/name").to_owned());
                if kind == "Pod" {
                    // A pod that does not run yet has no place.
                    let Ok(running) = cluster.pod(&namespace, &name) else { continue };
                    object["metadata"]["annotations"] = json!({
                        NETNS_ANNOTATION: running.pod.netns_path(), CGROUP_ANNOTATION: running.pod.cgroup()});
                }
                self.manifests.put(&object)?;
                present.insert((namespace, name));
            }
            let of_kind: Vec<Value> = self.manifests.of_kind(kind).cloned().collect();
            for object in of_kind {
                let (namespace, name) = (text(&object, "/metadata/namespace"), text(&object, "/metadata/name"));
                if !present.contains(&(namespace.to_owned(), name.to_owned())) {
                    self.manifests.remove(kind, namespace, name)?;
                }
            }
        }
        Ok(())
    }

    /// Starts an agent on every node that has none, waits until all are ready, and until each has a certificate for every service account
    /// of its pods.
    ///
    /// # Errors
    /// When one does not become ready.
    pub fn start_agents(&self, cluster: &mut Cluster, options: &AgentOptions) -> Result<()> {
        let names: Vec<String> = cluster.nodes().map(|node| node.name().to_owned()).collect();
        for name in &names {
            if cluster.agent_on(name).is_err() {
                let agent = self.start_agent(cluster.node_named(name)?, options)?;
                cluster.set_agent_on(name, agent)?;
            }
        }
        for name in &names {
            wait_certificates(cluster, name)?;
        }
        Ok(())
    }

    /// Starts an agent on a node and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start_agent(&self, node: &Node, options: &AgentOptions) -> Result<Agent> {
        let mut options = options.clone();
        options.arguments.extend(["--ca-keys-file".to_owned(), self.keys.display().to_string()]);
        Agent::start_from(node, self.source(), options)
    }

    /// Where the agents read.
    #[must_use]
    pub fn source(&self) -> Source<'_> {
        Source::Manifests(self.manifests.dir())
    }

    /// Publishes all captured pods of a node, as its agent would, and waits until every agent has taken it in.
    ///
    /// # Errors
    /// When a file cannot be written, or an agent does not follow.
    pub fn publish(&mut self, cluster: &Cluster, node: &str) -> Result<()> {
        let status = cluster.agent_on(node)?.status()?;
        let of_node = |pod: &&Value| {
            let found = status.pod(text(pod, "/metadata/namespace"), text(pod, "/metadata/name"));
            found.is_some_and(|pod| pod.captured)
        };
        let pods: Vec<Value> = self
            .manifests
            .of_kind("Pod")
            .filter(of_node)
            .map(|pod| {
                let ips = pod.pointer("/status/podIPs").and_then(Value::as_array).into_iter().flatten();
                json!({
                    "uid": pod["metadata"]["uid"], "namespace": pod["metadata"]["namespace"],
                    "name": pod["metadata"]["name"], "serviceAccount": text(pod, "/spec/serviceAccountName"),
                    "ips": ips.map(|ip| ip["ip"].clone()).collect::<Vec<_>>(),
                })
            })
            .collect();
        let object = json!({"apiVersion": "weft.dev/v1alpha1", "kind": "NodeWorkloads",
            "metadata": {"name": format!("{node}-0")}, "spec": {"node": node, "pods": pods}});
        let agents: Vec<&Agent> = cluster.nodes().filter_map(|node| cluster.agent_on(node.name()).ok()).collect();
        let before = agents.iter().map(|agent| Ok(agent.status()?.generation)).collect::<Result<Vec<_>>>()?;
        self.manifests.put(&object)?;
        for (agent, before) in agents.iter().zip(before) {
            agent.wait_status("what was published to be in force", |status| {
                (status.generation > before).then_some(())
            })?;
        }
        Ok(())
    }
}

fn wait_certificates(cluster: &Cluster, node: &str) -> Result<()> {
    let mut last = Value::Null;
    wait::until(&format!("certificates on {node}"), limits::APPLY_TIMEOUT, || {
        last = serde_json::from_str(&agent::weft(cluster.node_named(node)?, &["identity"])?)?;
        let accounts = last["accounts"].as_array().map_or(&[][..], Vec::as_slice);
        let all = accounts.iter().all(|account| account["serial"].is_string());
        Ok((all && !accounts.is_empty()).then_some(()))
    })
    .with_context(|| format!("last: {last}"))
}
