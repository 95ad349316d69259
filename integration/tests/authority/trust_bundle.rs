//! The roots as a ClusterTrustBundle, which the project's API server has with the rule of its name, and others may not have.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use weft_identity::Bundle;
use weft_integration::{
    Cluster,
    kube::{Authority, AuthorityOptions, Fault},
    wait,
};

use crate::{IN_TIME, client::roots, secret, started};

const BUNDLES: &str = "/apis/certificates.k8s.io/v1beta1/clustertrustbundles";
const NAME: &str = "weft.dev:identity:roots";

/// Its roots, once there are any.
fn published(cluster: &Cluster) -> Result<Option<Bundle>> {
    let answer = cluster.server.request("GET", &format!("{BUNDLES}/{NAME}"), None)?;
    if answer.code != 200 {
        return Ok(None);
    }
    ensure!(answer.body["spec"]["signerName"] == "weft.dev/identity", "{}", answer.body);
    Ok(Bundle::from_pem(answer.body["spec"]["trustBundle"].as_str().unwrap_or_default().as_bytes()).ok())
}

#[test]
fn the_cluster_trust_bundle_follows_the_roots_through_a_rotation() -> Result<()> {
    let arguments =
        ["--propagation-s", "1", "--takeover-s", "4", "--ttl-s", "1", "--any-ttl"].map(str::to_owned).to_vec();
    let mut cluster = Cluster::new()?;
    // No agents: a rotation waits for nobody.
    let authority = {
        let mut authority = Authority::prepare(&mut cluster, AuthorityOptions { replicas: 1, arguments })?;
        for agent in cluster.nodes().map(|node| node.name().to_owned()).collect::<Vec<_>>() {
            let path = format!("/api/v1/namespaces/weft-system/pods/weft-agent-{agent}");
            cluster.server.call("DELETE", &path, None)?;
        }
        authority.launch(0)?;
        authority.wait_ready(0)?;
        authority
    };
    let before = roots(&authority)?;
    let is_there = |bundle: &Bundle| Ok(published(&cluster)?.is_some_and(|found| found == *bundle).then_some(()));
    wait::until("the roots to be published", IN_TIME, || is_there(&before))?;
    // What others do to it is put right; what they add stays.
    let path = format!("{BUNDLES}/{NAME}");
    let garbage = json!({"metadata": {"labels": {"theirs": "kept"}}, "spec": {"trustBundle": "garbage"}});
    cluster.server.call("PATCH", &path, Some(&garbage))?;
    wait::until("them to be put right", IN_TIME, || is_there(&before))?;
    ensure!(cluster.server.call("GET", &path, None)?["metadata"]["labels"]["theirs"] == "kept");
    cluster.server.call("DELETE", &path, None)?;
    wait::until("them to be published again", IN_TIME, || is_there(&before))?;
    let ask = json!({"metadata": {"annotations": {"weft.dev/rotate-root": "now"}}});
    cluster.server.call("PATCH", "/api/v1/namespaces/weft-system/secrets/weft-ca-root", Some(&ask))?;
    wait::until("both roots to be published", IN_TIME, || {
        Ok(published(&cluster)?.filter(|found| found.roots().len() == 2 && found.roots().contains(&before.roots()[0])))
    })?;
    let after = wait::until("the next root to be alone", 2 * IN_TIME, || {
        Ok(published(&cluster)?.filter(|found| found.roots().len() == 1 && *found != *before))
    })?;
    wait::until("the rotation to be over", IN_TIME, || {
        let root = secret(&cluster, "weft-ca-root")?;
        let phase = root["metadata"]["annotations"]["weft.dev/rotation"].as_str().unwrap_or_default();
        Ok(phase.starts_with("steady").then_some(()))
    })?;
    wait::until("the same to be mounted", IN_TIME, || Ok((*roots(&authority)? == after).then_some(())))
}

#[test]
fn an_api_server_without_cluster_trust_bundles_is_asked_once_and_one_that_refuses_holds_nothing_up() -> Result<()> {
    let mut cluster = Cluster::new()?;
    let mut authority = Authority::prepare(&mut cluster, AuthorityOptions::default())?;
    // As before Kubernetes 1.27.
    authority.faults.set(&["/apis/certificates.k8s.io"], Fault::Answer(404, None, "404 page not found"));
    authority.launch(0)?;
    authority.wait_ready(0)?;
    let count = |authority: &Authority, words: &str| {
        authority.faults.asked().iter().filter(|asked| asked.line.contains(words)).count()
    };
    // The leader has been here several times.
    let looks = count(&authority, "secrets/weft-ca-root");
    wait::until("the leader to look again", IN_TIME, || {
        Ok((count(&authority, "secrets/weft-ca-root") >= looks + 2).then_some(()))
    })?;
    let lines: Vec<String> = authority
        .faults
        .asked()
        .into_iter()
        .map(|asked| asked.line)
        .filter(|line| line.contains("certificates.k8s.io"))
        .collect();
    let versions = ["v1", "v1beta1", "v1alpha1"].map(|version| format!("GET /apis/certificates.k8s.io/{version}"));
    ensure!(lines == versions, "{lines:?}");
    ensure!(!authority.log(0).contains("ClusterTrustBundle"), "{}", authority.log(0));
    ensure!(authority.metric(0, "weft_ca_problem", &["trust_bundle"])? == 0.0);
    // One that has them, and does not let us.
    authority.faults.clear();
    authority.faults.set(&["clustertrustbundles"], Fault::Answer(403, None, "{}"));
    authority.kill(0)?;
    authority.launch(0)?;
    authority.wait_ready(0)?;
    wait::until("it to be told", IN_TIME, || {
        Ok((authority.metric(0, "weft_ca_problem", &["trust_bundle", "forbidden"])? == 1.0).then_some(()))
    })?;
    let refused = count(&authority, "clustertrustbundles");
    wait::until("it to be tried again", IN_TIME, || {
        Ok((count(&authority, "clustertrustbundles") >= refused + 2).then_some(()))
    })?;
    let is_told = |line: &&str| line.contains("the authority has a problem") && line.contains("trust_bundle");
    let log = authority.log(0);
    ensure!(log.lines().filter(is_told).count() == 1, "it is told once: {log}");
    ensure!(authority.metric(0, "weft_ca_problem", &["leader"])? == 0.0);
    authority.faults.clear();
    wait::until("the roots to be published", IN_TIME, || published(&cluster))?;
    Ok(())
}

#[test]
fn a_leader_with_nothing_to_do_asks_little_and_still_sees_what_is_changed() -> Result<()> {
    let (cluster, authority) = started(AuthorityOptions::default())?;
    let by_leader = || {
        let asked = authority.faults.asked();
        asked.iter().filter(|asked| asked.line == "GET /api/v1/namespaces/weft-system/secrets/weft-ca-root").count()
    };
    wait::until("the leader to be done", IN_TIME, || Ok(published(&cluster)?.map(drop)))?;
    // Two looks without anything between them are a period apart.
    let next = |seen: usize| {
        wait::until("the leader to look", IN_TIME, || Ok((by_leader() > seen).then_some(())))
            .map(|()| (Instant::now(), by_leader()))
    };
    let (_, seen) = next(by_leader())?;
    let (one, seen) = next(seen)?;
    let (two, _) = next(seen)?;
    ensure!(two - one > Duration::from_secs(4), "{:?} between two looks", two - one);
    // And what this replica sees makes it look at once.
    let path = "/api/v1/namespaces/weft-system/configmaps/weft-trust-bundle";
    let before: Value = cluster.server.call("GET", path, None)?;
    cluster.server.call("DELETE", path, None)?;
    let deleted = Instant::now();
    wait::until("the bundle to be published again", IN_TIME, || {
        Ok((cluster.server.request("GET", path, None)?.code == 200).then_some(()))
    })?;
    let found = cluster.server.call("GET", path, None)?;
    ensure!(found["data"] == before["data"], "the same after {:?}", deleted.elapsed());
    Ok(())
}
