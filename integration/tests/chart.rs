//! The Helm chart on a real API server: what it installs, and what its definitions accept. Whether its rules are what is
//! asked for is held by `kube_rbac.rs`.

use std::{collections::BTreeSet, path::PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_integration::{ApiServer, Cluster, command};

const NAMESPACE: &str = "weft-system";

fn workspace(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn install(server: &ApiServer) -> Result<()> {
    let chart = workspace("manifests/weft");
    command::output(server.helm().args(["install", "weft"]).arg(chart).args([
        "--namespace",
        NAMESPACE,
        "--create-namespace",
    ]))?;
    server.wait_established()
}

/// The documents of a YAML file or stream, empty ones left out.
fn documents(yaml: &str) -> Result<Vec<Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(yaml)?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

/// What the chart makes of the given settings.
fn rendered(server: &ApiServer, settings: &[&str]) -> Result<Vec<Value>> {
    let mut helm = server.helm();
    helm.args(["template", "weft"]).arg(workspace("manifests/weft")).args(["--namespace", NAMESPACE]);
    for setting in settings {
        helm.args(["--set", setting]);
    }
    documents(&command::output(&mut helm)?)
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Result<&'a Value> {
    objects.iter().find(|object| object["kind"] == kind).with_context(|| format!("the chart has no {kind}"))
}

/// Whether everything in `part` is in `whole`, too.
fn holds(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            part.iter().all(|(key, value)| whole.get(key).is_some_and(|found| holds(found, value)))
        }
        (Value::Array(whole), Value::Array(part)) => {
            whole.len() == part.len() && whole.iter().zip(part).all(|(whole, part)| holds(whole, part))
        }
        (whole, part) => whole == part,
    }
}

fn words(value: &Value) -> BTreeSet<&str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

#[test]
fn what_is_published_for_smi_is_accepted_in_every_version_and_keeps_every_field() -> Result<()> {
    let cluster = Cluster::new()?;
    let server = &cluster.server;
    install(server)?;
    let published = std::fs::read_to_string(workspace("integration/published/smi.yaml"))?;
    server.apply(&published)?;
    for document in documents(&published)? {
        let text = |pointer: &str| document.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let group = text("/apiVersion").split('/').next().unwrap_or_default();
        let name = format!("{}.{group}/{}", text("/kind"), text("/metadata/name"));
        let found = command::output(server.kubectl().args(["get", "-o", "json", "-n", "default", &name]))?;
        let found: Value = serde_json::from_str(&found)?;
        for (field, value) in document.as_object().into_iter().flatten().filter(|(field, _)| *field != "apiVersion") {
            ensure!(holds(&found[field], value), "{name} has lost something of {field}: {}", found[field]);
        }
    }
    for (short, count) in [("tt", 6), ("htr", 4), ("tr", 4), ("ur", 1), ("ts", 5), ("ib", 1)] {
        let names = command::output(server.kubectl().args(["get", short, "-n", "default", "-o", "name"]))?;
        ensure!(names.lines().count() == count, "{short}: {names}");
    }
    Ok(())
}

/// What a schema would drop, the agent could not refuse.
#[test]
fn a_misspelt_field_reaches_the_agent_and_a_mistyped_one_does_not_reach_the_store() -> Result<()> {
    let cluster = Cluster::new()?;
    let server = &cluster.server;
    install(server)?;
    let path = "/apis/access.smi-spec.io/v1alpha2/namespaces/default/traffictargets";
    let target = |name: &str, rule: Value| {
        json!({"apiVersion": "access.smi-spec.io/v1alpha2", "kind": "TrafficTarget", "metadata": {"name": name}, "spec": {
            "destination": {"kind": "ServiceAccount", "name": "a"},
            "sources": [{"kind": "ServiceAccount", "name": "b"}],
            "rules": [rule]}})
    };
    let misspelt = json!({"kind": "HTTPRouteGroup", "name": "g", "match": ["only-this"]});
    server.call("POST", path, Some(&target("misspelt", misspelt)))?;
    // Read in another version than it was written in.
    let read = "/apis/access.smi-spec.io/v1alpha3/namespaces/default/traffictargets/misspelt";
    let found = server.call("GET", read, None)?;
    ensure!(found["spec"]["rules"][0]["match"] == json!(["only-this"]), "{found}");
    for mistyped in [json!({"kind": "HTTPRouteGroup"}), json!({"kind": "Secret", "name": "g"}), json!("g")] {
        let answer = server.request("POST", path, Some(&target("mistyped", mistyped.clone())))?;
        ensure!(answer.code == 422, "{mistyped} was answered {}", answer.code);
    }
    // Conditions are written beside the object, not into it: its generation stays.
    let status = json!({"status": {"conditions": [{"type": "Accepted", "status": "False", "reason": "Invalid", "message": "m",
        "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
    let patched = server.call("PATCH", &format!("{read}/status"), Some(&status))?;
    ensure!(patched["metadata"]["generation"] == 1, "{patched}");
    let row = command::output(server.kubectl().args(["get", "tt", "misspelt", "-n", "default", "--no-headers"]))?;
    ensure!(row.contains("False"), "the column Accepted: {row}");
    Ok(())
}

#[test]
fn values_that_cannot_be_are_refused_by_name() -> Result<()> {
    let cluster = Cluster::new()?;
    for (setting, named) in [
        ("policy.defaultStance=maybe", "/policy/defaultStance"),
        ("agent.workers=-1", "/agent/workers"),
        ("agent.metricsAddress=localhost:1", "/agent/metricsAddress"),
        // The whole BPF file system is not weft's.
        ("node.bpfDir=/sys/fs/bpf", "/node/bpfDir"),
        ("agent.wokers=1", "wokers"),
        ("authority.certificateTtlSeconds=60", "/authority/certificateTtlSeconds"),
        ("identity.trustDomain=Mesh", "/identity/trustDomain"),
        ("authority.certManager.issuer=mesh", "/authority/certManager/issuer"),
        ("authority.certManager.issuer=ClusterIssuer/mesh", "authority.certManager.roots"),
    ] {
        let error = rendered(&cluster.server, &[setting]).expect_err("refused");
        ensure!(format!("{error:#}").contains(named), "{setting}: {error:#}");
    }
    rendered(&cluster.server, &["policy.defaultStance=deny", "agent.workers=2", "agent.metricsAddress=[::1]:9090"])?;
    Ok(())
}

#[test]
fn the_pod_has_what_it_needs_and_no_more() -> Result<()> {
    let cluster = Cluster::new()?;
    let objects = rendered(&cluster.server, &[])?;
    let daemonset = of_kind(&objects, "DaemonSet")?;
    ensure!(daemonset["spec"]["updateStrategy"]["rollingUpdate"] == json!({"maxSurge": 1, "maxUnavailable": 0}));
    let pod = &daemonset["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let security = &container["securityContext"];
    ensure!(words(&security["capabilities"]["drop"]) == BTreeSet::from(["ALL"]));
    let added = BTreeSet::from(["BPF", "NET_ADMIN", "NET_BIND_SERVICE", "SYS_ADMIN", "SYS_PTRACE"]);
    ensure!(words(&security["capabilities"]["add"]) == added, "{security}");
    ensure!(security["readOnlyRootFilesystem"] == true && security["privileged"].is_null());
    ensure!(pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault");
    ensure!(pod["hostPID"] == true, "cgroup.procs shows no process of another process id namespace");
    // With the node's network each port would be a host port, and two agents could not overlap.
    ensure!(container["ports"].is_null() && pod["hostNetwork"] == true);
    let writable: BTreeSet<&str> = container["volumeMounts"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|mount| mount["readOnly"] != true)
        .filter_map(|mount| mount["mountPath"].as_str())
        .collect();
    let cni = ["/host/cni/bin", "/host/cni/net.d"];
    let without_cni = BTreeSet::from(["/host/bpf", "/host/proc/sys/net", "/run/weft"]);
    ensure!(writable == without_cni.iter().copied().chain(cni).collect(), "{writable:?}");
    let objects = rendered(&cluster.server, &["cni.enabled=false"])?;
    let text = of_kind(&objects, "DaemonSet")?.to_string();
    ensure!(!text.contains("cni"), "{text}");
    Ok(())
}

#[test]
fn the_authority_has_no_rights_on_its_node_and_is_found_by_its_agents() -> Result<()> {
    let cluster = Cluster::new()?;
    let objects = rendered(&cluster.server, &["authority.replicas=3", "identity.trustDomain=mesh.example"])?;
    let deployment = of_kind(&objects, "Deployment")?;
    ensure!(deployment["spec"]["replicas"] == 3);
    let pod = &deployment["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    ensure!(container["securityContext"]["capabilities"] == json!({"drop": ["ALL"]}) && pod["volumes"].is_null());
    ensure!(pod["securityContext"]["runAsNonRoot"] == true && pod["hostNetwork"].is_null());
    ensure!(container["securityContext"]["readOnlyRootFilesystem"] == true);
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    for (kind, selector) in [("Service", "/spec/selector"), ("PodDisruptionBudget", "/spec/selector/matchLabels")] {
        let selector = of_kind(&objects, kind)?.pointer(selector).with_context(|| format!("{kind} selects nothing"))?;
        ensure!(holds(labels, selector), "{kind} selects {selector}, and the pods have {labels}");
    }
    let agent = &of_kind(&objects, "DaemonSet")?["spec"]["template"]["spec"];
    let both = ["--trust-domain=mesh.example"];
    let arguments = words(&agent["containers"][0]["args"]);
    ensure!(both.iter().all(|one| arguments.contains(one) && words(&container["args"]).contains(one)), "{arguments:?}");
    let service = of_kind(&objects, "Service")?;
    let (name, port) = (service["metadata"]["name"].as_str().unwrap_or_default(), &service["spec"]["ports"][0]["port"]);
    let address = format!("--ca-address={name}.{NAMESPACE}.svc.cluster.local:{port}");
    ensure!(arguments.contains(address.as_str()), "{address} is not in {arguments:?}");
    ensure!(words(&container["args"]).contains(format!("--service={name}").as_str()));
    ensure!(agent["dnsPolicy"] == "ClusterFirstWithHostNet", "the node's own DNS knows no Services");
    for mode in ["permissive", "strict"] {
        let objects = rendered(&cluster.server, &[&format!("mtls.mode={mode}")])?;
        let environment = &of_kind(&objects, "DaemonSet")?["spec"]["template"]["spec"]["containers"][0]["env"];
        let says = json!({"name": "WEFT_MTLS", "value": mode});
        ensure!(environment.as_array().is_some_and(|all| all.contains(&says)), "{environment}");
    }
    let refused = rendered(&cluster.server, &["mtls.mode=strict", "identity.enabled=false"]);
    ensure!(
        refused.is_err_and(|error| format!("{error:#}").contains("needs identity.enabled=true")),
        "nobody could reach anybody"
    );
    let without = rendered(&cluster.server, &["identity.enabled=false"])?;
    ensure!(of_kind(&without, "Deployment").is_err() && !of_kind(&without, "DaemonSet")?.to_string().contains("--ca-"));
    Ok(())
}

#[test]
fn the_authority_may_ask_cert_manager_only_where_that_signs() -> Result<()> {
    let cluster = Cluster::new()?;
    let rules = |objects: &[Value], kind: &str| -> Result<Vec<Value>> {
        let authority = |object: &&Value| object["kind"] == kind && object["metadata"]["name"] == "weft-ca";
        let role = objects.iter().find(authority).with_context(|| format!("the authority has no {kind}"))?;
        Ok(role["rules"].as_array().cloned().unwrap_or_default())
    };
    let of_deployment = |objects: &[Value]| of_kind(objects, "Deployment").map(Value::to_string);
    let objects = rendered(&cluster.server, &[])?;
    ensure!(!of_deployment(&objects)?.contains("cert-manager"));
    ensure!(!rules(&objects, "Role")?.iter().any(|rule| words(&rule["apiGroups"]).contains("cert-manager.io")));
    let attest = json!({"apiGroups": ["certificates.k8s.io"], "resources": ["signers"], "resourceNames": ["weft.dev/identity"], "verbs": ["attest"]});
    ensure!(rules(&objects, "ClusterRole")?.contains(&attest));
    let settings =
        ["authority.certManager.issuer=ClusterIssuer/mesh", "authority.certManager.roots=mesh-roots/root.pem"];
    let objects = rendered(&cluster.server, &settings)?;
    let text = of_deployment(&objects)?;
    for argument in ["--cert-manager-issuer=ClusterIssuer/mesh", "--cert-manager-roots=mesh-roots/root.pem"] {
        ensure!(text.contains(argument), "{argument} is not in {text}");
    }
    let more: Vec<Value> = rules(&objects, "Role")?
        .into_iter()
        .filter(|rule| {
            rule["resources"] == json!(["certificaterequests"]) || rule["resourceNames"] == json!(["mesh-roots"])
        })
        .collect();
    let expected = json!([
        {"apiGroups": ["cert-manager.io"], "resources": ["certificaterequests"], "verbs": ["create", "delete", "get"]},
        {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["mesh-roots"], "verbs": ["get"]},
    ]);
    ensure!(json!(more) == expected, "{more:?}");
    Ok(())
}

/// What helm runs before it deletes anything, and what that may do.
#[test]
fn removal_ends_the_agents_first_and_may_do_no_more() -> Result<()> {
    let cluster = Cluster::new()?;
    let objects = rendered(&cluster.server, &[])?;
    let daemonset = of_kind(&objects, "DaemonSet")?["metadata"]["name"].as_str().context("a name")?.to_owned();
    let job = of_kind(&objects, "Job")?;
    ensure!(job["metadata"]["annotations"]["helm.sh/hook"] == "pre-delete");
    let pod = &job["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    ensure!(words(&container["args"]).contains(format!("--daemonset={daemonset}").as_str()), "{container}");
    ensure!(container["securityContext"]["capabilities"] == json!({"drop": ["ALL"]}) && pod["volumes"].is_null());
    ensure!(pod["securityContext"]["runAsNonRoot"] == true);
    let selector = &of_kind(&objects, "DaemonSet")?["spec"]["selector"]["matchLabels"];
    ensure!(
        !holds(&job["spec"]["template"]["metadata"]["labels"], selector),
        "the DaemonSet would take it for its own"
    );
    let role = objects.iter().find(|object| object["kind"] == "Role" && object["metadata"]["name"] == "weft-uninstall");
    let rules = &role.context("the Job's Role")?["rules"];
    let expected = json!([{"apiGroups": ["apps"], "resources": ["daemonsets"], "resourceNames": [daemonset], "verbs": ["delete", "get"]}]);
    ensure!(*rules == expected, "{rules}");
    let objects = rendered(&cluster.server, &["uninstall.cleanNodes=false"])?;
    ensure!(of_kind(&objects, "Job").is_err() && !of_kind(&objects, "DaemonSet")?.to_string().contains("--daemonset"));
    Ok(())
}
