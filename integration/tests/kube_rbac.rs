//! The chart's rules for the agent are what it is seen to ask for: `chart.rs` holds that they are enough, this that none is too much.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_integration::{
    AgentOptions, Cluster, command,
    kube::{Request, server::AGENT},
    wait,
};

/// Every status of what is published has been written by then, ten in half a second.
const IN_TIME: Duration = Duration::from_secs(60);
/// What the agent reads and writes while it runs.
const GROUPS: [&str; 8] = [
    "",
    "access.smi-spec.io",
    "coordination.k8s.io",
    "discovery.k8s.io",
    "events.k8s.io",
    "specs.smi-spec.io",
    "split.smi-spec.io",
    "weft.dev",
];

fn workspace(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// Group, resource with subresource, verb.
type Right = (String, String, String);

/// What the roles of the agent allow it.
fn rights(roles: &str) -> Result<BTreeSet<Right>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(roles)?;
    let agents = documents.iter().filter(|document| {
        matches!(document["kind"].as_str(), Some("ClusterRole" | "Role"))
            && document["metadata"]["name"].as_str().is_some_and(|name| name.ends_with("-agent"))
    });
    let mut rights = BTreeSet::new();
    for rule in agents.flat_map(|role| role["rules"].as_array().into_iter().flatten()) {
        let words = |field: &str| -> Vec<String> {
            rule[field].as_array().into_iter().flatten().filter_map(|word| Some(word.as_str()?.to_owned())).collect()
        };
        for group in words("apiGroups") {
            for resource in words("resources") {
                rights.extend(words("verbs").into_iter().map(|verb| (group.clone(), resource.clone(), verb)));
            }
        }
    }
    Ok(rights)
}

fn right(request: &Request) -> Right {
    let resource = match &*request.subresource {
        "" => request.resource.clone(),
        subresource => format!("{}/{subresource}", request.resource),
    };
    (request.group.clone(), resource, request.verb.clone())
}

#[test]
fn every_right_that_the_chart_gives_the_agent_is_used() -> Result<()> {
    let mut cluster = Cluster::new()?;
    cluster.install_crds()?;
    let mut helm = cluster.server.helm();
    helm.args(["template", "weft"]).arg(workspace("manifests/weft")).args(["--show-only", "templates/rbac.yaml"]);
    let mut unused = rights(&command::output(&mut helm)?)?;
    unused.retain(|(group, ..)| GROUPS.contains(&&**group));
    ensure!(unused.len() > GROUPS.len(), "{unused:?}");
    // Only a pod with a certificate is published, and there is no authority here; the first write of an object takes both of these.
    for verb in ["create", "patch"] {
        ensure!(unused.remove(&("weft.dev".to_owned(), "nodeworkloads".to_owned(), verb.to_owned())), "{unused:?}");
    }
    // What an earlier agent of this node left.
    let left = "apiVersion: weft.dev/v1alpha1\nkind: NodeWorkloads\nmetadata: {name: node-a-3, labels: {weft.dev/node: node-a}}\n\
        spec: {node: node-a, pods: []}\n";
    cluster.apply(left)?;
    cluster.apply(&std::fs::read_to_string(workspace("integration/published/smi.yaml"))?)?;
    cluster.start_agent(AgentOptions::default())?;
    wait::until("every right to be used", IN_TIME, || {
        for request in cluster.server.requests()?.iter().filter(|request| request.user == AGENT) {
            unused.remove(&right(request));
        }
        Ok(unused.is_empty().then_some(()))
    })
    .with_context(|| format!("the agent never used {unused:?}"))
}
