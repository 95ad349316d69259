//! The cluster of the harness is one that tests may trust: what the API server does is what a cluster does.

use std::{
    os::unix::fs::{PermissionsExt, symlink},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_integration::{
    Cluster, command,
    kube::{
        server::ADMIN,
        tools::{ASSETS_VARIABLE, Server, Tools},
    },
};

const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      serviceAccountName: web
      containers:
      - {name: web, image: weft-testpod, args: [--http, '8080'], ports: [{name: http, containerPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop}
spec: {containers: [{name: client, image: pause}]}
";

#[test]
fn pods_of_applied_manifests_run_and_answer_at_their_service_through_a_restart_of_the_server() -> Result<()> {
    let mut cluster = Cluster::new()?;
    cluster.apply(SHOP)?;
    let ask = |cluster: &Cluster| -> Result<String> {
        let url = format!("http://{}/", cluster.service_ip("shop", "web")?);
        let client = cluster.pod("shop", "client")?;
        command::output(client.pod.command("curl").args(["-sS", "--max-time", "10", &url]))
    };
    ensure!(ask(&cluster)?.starts_with("web-"), "a pod of the Deployment answers");
    let deployment = cluster.server.call("GET", "/apis/apps/v1/namespaces/shop/deployments/web", None)?;
    ensure!(deployment["status"]["readyReplicas"] == 2, "{deployment}");
    let pod = cluster.server.call("GET", "/api/v1/namespaces/shop/pods/web-1", None)?;
    let running = &cluster.pod("shop", "web-1")?.pod;
    ensure!(pod["metadata"]["uid"] == running.uid(), "the kubelet goes by the server's UID");
    ensure!(running.cgroup().ends_with(format!("pod{}", running.uid())));

    // Addresses that were given away before a restart stay given away.
    let before = cluster.service_ip("shop", "web")?;
    cluster.server.stop()?;
    ensure!(cluster.server.request("GET", "/readyz", None).is_ok_and(|answer| answer.code != 200), "it is gone");
    cluster.server.restart()?;
    cluster.apply(
        "{apiVersion: v1, kind: Service, metadata: {name: other, namespace: shop}, spec: {ports: [{port: 80}]}}",
    )?;
    ensure!(cluster.service_ip("shop", "web")? == before);
    ensure!(cluster.service_ip("shop", "other")? != before);
    ensure!(ask(&cluster)?.starts_with("web-"));

    let fewer = r#"{"spec": {"replicas": 1}}"#;
    let patch = ["patch", "-n", "shop", "deployment/web", "--type=merge", "-p", fewer];
    command::output(cluster.server.kubectl().args(patch))?;
    cluster.sync()?;
    ensure!(cluster.pod("shop", "web-2").is_err());
    let slices = cluster.server.list("/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices")?;
    let endpoints = slices.iter().find(|slice| slice["metadata"]["name"] == "web-v4").context("a slice")?;
    ensure!(endpoints["endpoints"].as_array().is_some_and(|endpoints| endpoints.len() == 1), "{endpoints}");
    Ok(())
}

#[test]
fn a_watch_from_a_version_that_is_compacted_away_is_told_410() -> Result<()> {
    let mut cluster = Cluster::new()?;
    let account = |name: &str| json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}});
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    let first = cluster.server.call("POST", accounts, Some(&account("first")))?;
    let version = first["metadata"]["resourceVersion"].as_str().context("a version")?.to_owned();
    cluster.server.call("POST", accounts, Some(&account("second")))?;
    cluster.server.stop()?;
    cluster.server.restart()?;
    cluster.server.call("POST", accounts, Some(&account("third")))?;
    cluster.server.compact()?;
    // Its watch cache starts behind that version, so it has to ask etcd, which no longer knows.
    let path = format!("{accounts}?watch=true&timeoutSeconds=2&resourceVersion={version}");
    let answer = cluster.server.request("GET", &path, None)?;
    ensure!(answer.code == 410 || answer.body.pointer("/object/code") == Some(&Value::from(410)), "{answer:?}");
    Ok(())
}

#[test]
fn the_server_tells_who_asked_for_what_in_the_words_of_rbac() -> Result<()> {
    let cluster = Cluster::new()?;
    command::output(cluster.server.kubectl().args(["get", "pods", "-n", "kube-system"]))?;
    let seen = cluster.server.requests()?;
    ensure!(
        seen.iter().any(|request| request.user == ADMIN
            && (request.verb.as_str(), request.group.as_str(), request.resource.as_str()) == ("list", "", "pods")
            && request.namespace == "kube-system"),
        "{seen:?}"
    );
    Ok(())
}

/// Where there is no `kube-apiserver`, a script in its place takes its flags and runs the project's own server.
#[test]
fn the_binaries_of_envtest_are_used_where_the_environment_names_them() -> Result<()> {
    let tools = Tools::find()?;
    let assets = tempfile::tempdir()?;
    symlink(&tools.etcd, assets.path().join("etcd"))?;
    symlink(&tools.kubectl, assets.path().join("kubectl"))?;
    let (flags, script) = (assets.path().join("flags"), assets.path().join("kube-apiserver"));
    let run = match &tools.server {
        Server::Upstream(program) => format!("exec {} \"$@\"", program.display()),
        Server::Testapi(program) => format!(
            "for flag; do case $flag in --etcd-servers=*) etcd=${{flag#*=}};; --secure-port=*) port=${{flag#*=}};; \
             --cert-dir=*) certificates=${{flag#*=}};; esac; done\n\
             exec {} --etcd \"$etcd\" --port \"$port\" --cert-dir \"$certificates\"",
            program.display()
        ),
    };
    std::fs::write(&script, format!("#!/bin/sh\necho \"$@\" > {}\n{run}\n", flags.display()))?;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
    let mut again = Command::new(std::env::current_exe()?);
    again.args(["--exact", "a_watch_from_a_version_that_is_compacted_away_is_told_410"]);
    let output = command::output(again.env(ASSETS_VARIABLE, assets.path()))?;
    ensure!(output.contains("1 passed"), "{output}");
    let flags = std::fs::read_to_string(flags).context("kube-apiserver was not started")?;
    ensure!(flags.contains("--service-cluster-ip-range=") && flags.contains("--token-auth-file="), "{flags}");
    Ok(())
}
