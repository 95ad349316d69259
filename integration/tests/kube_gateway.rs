//! Routes of Gateway API from an API server: followed once their kinds are served, and told of by their status.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_integration::{AgentOptions, Cluster, kube::shop, wait};

/// A kind that appears is looked for every few seconds; the rest is for a busy machine.
const IN_TIME: Duration = Duration::from_secs(90);
const ROUTES: &str = "/apis/gateway.networking.k8s.io/v1/namespaces/shop/httproutes";

fn route(backend: &str) -> String {
    format!(
        "{{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {{name: canary, namespace: shop}}, spec: {{\
           parentRefs: [{{name: a-gateway}}, {{group: '', kind: Service, name: stable}}, {{group: '', kind: Service, name: gone}}], \
           rules: [{{backendRefs: [{{name: {backend}, port: 80}}]}}]}}}}"
    )
}

/// Type, status and reason.
type Wanted<'a> = (&'a str, &'a str, &'a str);

/// Waits until each Service among the parents of the route is told of with these conditions: type, status, reason.
fn wait_parents(cluster: &Cluster, wanted: &[(&str, &[Wanted<'_>])]) -> Result<Value> {
    let mut last = Value::Null;
    wait::until("the parents to be told of", IN_TIME, || {
        last = cluster.server.call("GET", &format!("{ROUTES}/canary"), None)?;
        let generation = &last["metadata"]["generation"];
        let all = wanted.iter().all(|(service, conditions)| {
            let parents = last.pointer("/status/parents").and_then(Value::as_array).into_iter().flatten();
            let mut ours = parents.filter(|one| one["controllerName"] == "weft.dev/mesh");
            ours.find(|one| one["parentRef"]["name"] == *service).is_some_and(|one| {
                conditions.iter().all(|(name, status, reason)| {
                    one["conditions"].as_array().into_iter().flatten().any(|is| {
                        is["type"] == *name
                            && is["status"] == *status
                            && is["reason"] == *reason
                            && is["observedGeneration"] == *generation
                    })
                })
            })
        });
        Ok(all.then(|| last.clone()))
    })
    .with_context(|| format!("{last:#}"))
}

#[test]
fn a_route_is_followed_when_its_kind_is_served_and_each_parent_is_told_of() -> Result<()> {
    let mut cluster = shop::open()?;
    cluster.start_agent(AgentOptions::default())?;
    // The agent is there before the kinds are.
    cluster.install_gateway_crds()?;
    cluster.apply(&route("nobody"))?;
    let fine = [("Accepted", "True", "Accepted"), ("ResolvedRefs", "True", "ResolvedRefs")];
    let unresolved = ("ResolvedRefs", "False", "BackendNotFound");
    let missing = ("Accepted", "False", "NoMatchingParent");
    wait_parents(&cluster, &[("stable", &[fine[0], unresolved]), ("gone", &[missing, unresolved])])?;

    // What a Gateway's controller says stays.
    let mut object = cluster.server.call("GET", &format!("{ROUTES}/canary"), None)?;
    let other = json!({"parentRef": {"name": "a-gateway"}, "controllerName": "example.com/gateway", "conditions": []});
    let mut parents = object["status"]["parents"].take();
    parents.as_array_mut().context("parents")?.push(other.clone());
    cluster.server.call("PATCH", &format!("{ROUTES}/canary/status"), Some(&json!({"status": {"parents": parents}})))?;

    cluster.apply(&route("stable"))?;
    let told = wait_parents(&cluster, &[("stable", &fine), ("gone", &[missing])])?;
    let parents = told["status"]["parents"].as_array().context("parents")?;
    ensure!(parents.len() == 3 && parents.contains(&other), "{told:#}");
    cluster.agent()?.wait_shares("shop", "stable", &[("canary rules[0]", &[("stable", 100.0)])])?;
    Ok(())
}
