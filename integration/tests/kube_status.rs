//! What becomes of objects is written on them by one agent of the cluster, only where it is news, and by another one when the first is gone.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_integration::{
    Agent, AgentOptions, Cluster, Node,
    agent::Source,
    kube::{
        Door, Fault, Faults, Request,
        server::{AGENT, SECOND_AGENT},
        shop::{self, NAMESPACE},
    },
    wait,
};

/// A Lease that nobody renews is free after 15 s; the rest is for a busy machine.
const IN_TIME: Duration = Duration::from_secs(60);
const SPLITS: &str = "/apis/split.smi-spec.io/v1alpha4/namespaces/shop/trafficsplits";
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/weft-system/leases/weft-status";

/// A split with a backend that there is not, called so.
fn bad_split(backend: &str) -> String {
    format!(
        "{{apiVersion: split.smi-spec.io/v1alpha4, kind: TrafficSplit, metadata: {{name: bad, namespace: shop}}, \
         spec: {{service: stable, backends: [{{service: {backend}, weight: 1}}]}}}}"
    )
}

fn condition<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    object.pointer("/status/conditions")?.as_array()?.iter().find(|condition| condition["type"] == name)
}

/// Waits until a split has a condition with this status, whose message has this word.
fn wait_condition(cluster: &Cluster, split: &str, name: &str, status: &str, word: &str) -> Result<Value> {
    let mut last = Value::Null;
    wait::until(&format!("{split} to be {name}={status}"), IN_TIME, || {
        last = cluster.server.call("GET", &format!("{SPLITS}/{split}"), None)?;
        let found = condition(&last, name).filter(|found| {
            found["status"] == status
                && found["observedGeneration"] == last["metadata"]["generation"]
                && found["message"].as_str().is_some_and(|message| message.contains(word))
        });
        Ok(found.cloned())
    })
    .with_context(|| format!("{last}"))
}

fn events(cluster: &Cluster, object: &str) -> Result<Vec<Value>> {
    let mut events = cluster.server.list("/apis/events.k8s.io/v1/namespaces/shop/events")?;
    events.retain(|event| event["regarding"]["name"] == object);
    Ok(events)
}

/// What a user has written, but for the Lease.
fn writes(cluster: &Cluster, user: &str) -> Result<Vec<Request>> {
    let reads = ["get", "list", "watch"];
    let mut requests = cluster.server.requests()?;
    requests.retain(|request| {
        request.user == user
            && !request.resource.is_empty()
            && request.resource != "leases"
            && !reads.contains(&&*request.verb)
    });
    Ok(requests)
}

fn holder(cluster: &Cluster) -> Result<String> {
    let lease = cluster.server.call("GET", LEASE, None)?;
    Ok(lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned())
}

fn delete_target(cluster: &Cluster, name: &str) -> Result<()> {
    let path = format!("/apis/access.smi-spec.io/v1alpha3/namespaces/shop/traffictargets/{name}");
    cluster.server.call("DELETE", &path, None).map(drop)
}

/// Events that the pods of a service account take everything now.
fn widened(cluster: &Cluster, account: &str) -> Result<Vec<Value>> {
    let mut found = events(cluster, account)?;
    found.retain(|event| event["reason"] == "AccessWidened");
    Ok(found)
}

#[test]
fn one_agent_writes_only_what_is_news_and_the_next_one_writes_when_it_is_gone() -> Result<()> {
    let mut cluster = shop::open()?;
    cluster.apply(&shop::target("guard", "stable", "client"))?;
    cluster.start_agent(AgentOptions::default())?;
    wait::until("the first agent to hold the Lease", IN_TIME, || {
        Ok(holder(&cluster)?.starts_with("node-a_").then_some(()))
    })?;
    // The agent of another node, with nothing to capture there.
    let other = Node::new("node-b")?;
    let door = Door::from(&other, &cluster.node, &cluster.server)?;
    let kubeconfig: PathBuf = door.kubeconfig_of(&cluster.server, SECOND_AGENT)?;
    let second = Agent::start_from(&other, Source::Kubeconfig(&kubeconfig), AgentOptions::default())?;

    cluster.apply(&bad_split("nobody"))?;
    wait_condition(&cluster, "web", "Accepted", "True", "")?;
    wait_condition(&cluster, "bad", "ResolvedRefs", "False", "nobody")?;
    wait::until("an Event of it", IN_TIME, || Ok((events(&cluster, "bad")?.len() == 1).then_some(())))?;
    ensure!(writes(&cluster, SECOND_AGENT)?.is_empty(), "{:?}", writes(&cluster, SECOND_AGENT)?);

    // Nothing of this is news for the objects: a change beside them, one of their metadata, and the same once more.
    let before = writes(&cluster, AGENT)?;
    cluster.apply(&bad_split("nobody"))?;
    let annotation = json!({"metadata": {"annotations": {"note": "x"}}});
    cluster.server.call("PATCH", &format!("{SPLITS}/bad"), Some(&annotation))?;
    let foreign = json!([{"type": "Reviewed", "status": "True", "reason": "ByHand", "message": ""}]);
    let status = json!({"status": {"conditions": with(&cluster, "bad", &foreign)?}});
    cluster.server.call("PATCH", &format!("{SPLITS}/bad/status"), Some(&status))?;
    // This is news for one of them, so whatever else there was to write has been written then.
    cluster.apply(&shop::split(3, 1))?;
    wait_condition(&cluster, "web", "Accepted", "True", "")?;
    let news: Vec<_> = writes(&cluster, AGENT)?.split_off(before.len());
    ensure!(news.len() == 1 && news[0].name == "web" && news[0].subresource == "status", "{news:?}");

    delete_target(&cluster, "guard")?;
    wait::until("the deletion to be told", IN_TIME, || Ok((!widened(&cluster, "stable")?.is_empty()).then_some(())))?;
    cluster.take_agent()?.kill()?;
    cluster.apply(&bad_split("nowhere"))?;
    let found =
        wait_condition(&cluster, "bad", "ResolvedRefs", "False", "nowhere").with_context(|| second.log_tail())?;
    ensure!(found["reason"].as_str().is_some_and(|reason| reason.ends_with("NotFound")), "{found}");
    ensure!(holder(&cluster)?.starts_with("node-b_"));
    let object = cluster.server.call("GET", &format!("{SPLITS}/bad"), None)?;
    ensure!(condition(&object, "Reviewed").is_some(), "conditions of others stay: {object}");
    let written = writes(&cluster, SECOND_AGENT)?;
    ensure!(written.iter().all(|request| request.name != "web"), "nothing about it is news: {written:?}");
    // It saw the deletion, too, but that was told already.
    ensure!(widened(&cluster, "stable")?.len() == 1, "{:?}", widened(&cluster, "stable")?);
    Ok(())
}

/// One of each kind with a field that there is not.
const BAD: [(&str, &str, &str, &str); 8] = [
    (
        "split.smi-spec.io/v1alpha4",
        "TrafficSplit",
        "trafficsplits",
        "service: stable, backends: [{service: web-v1, weight: 1}]",
    ),
    (
        "specs.smi-spec.io/v1alpha4",
        "HTTPRouteGroup",
        "httproutegroups",
        "matches: [{name: a, pathRegex: /a, methods: [GET]}]",
    ),
    ("specs.smi-spec.io/v1alpha4", "TCPRoute", "tcproutes", "matches: {ports: [80]}"),
    ("specs.smi-spec.io/v1alpha4", "UDPRoute", "udproutes", "matches: {ports: [53]}"),
    ("access.smi-spec.io/v1alpha4", "IdentityBinding", "identitybindings", "schemes: {serviceAccount: web}"),
    (
        "access.smi-spec.io/v1alpha3",
        "TrafficTarget",
        "traffictargets",
        "destination: {kind: ServiceAccount, name: none, namespace: shop}, \
         sources: [{kind: ServiceAccount, name: client, namespace: shop}], rules: [{kind: TCPRoute, name: all}]",
    ),
    ("weft.dev/v1alpha1", "BackendPolicy", "backendpolicies", "targetRefs: [{kind: Service, name: web}]"),
    ("weft.dev/v1alpha1", "FaultInjection", "faultinjections", "abort: {reset: true}"),
];

#[test]
fn a_bad_object_of_any_kind_ends_in_a_condition_an_event_and_a_metric() -> Result<()> {
    let mut cluster = shop::open()?;
    cluster.start_agent(AgentOptions::default())?;
    let problems = |cluster: &Cluster| -> Result<f64> {
        let agent = cluster.agent()?;
        Ok(agent.metric("weft_manifest_problems", &[])?
            + agent.metric("weft_object_findings", &["severity=\"error\""])?)
    };
    let before = problems(&cluster)?;
    for (version, kind, _, spec) in BAD {
        cluster.server.apply(&format!(
            "{{apiVersion: {version}, kind: {kind}, metadata: {{name: bad, namespace: shop}}, spec: {{extra: 1, {spec}}}}}"
        ))?;
    }
    for (version, kind, plural, _) in BAD {
        let path = format!("/apis/{version}/namespaces/shop/{plural}/bad");
        let mut last = Value::Null;
        wait::until(&format!("{kind} to be told of by a condition"), IN_TIME, || {
            last = cluster.server.call("GET", &path, None)?;
            let accepted = condition(&last, "Accepted");
            let told = accepted.filter(|accepted| {
                accepted["status"] == "False"
                    && accepted["message"].as_str().is_some_and(|message| message.contains("extra"))
            });
            Ok(told.map(drop))
        })
        .with_context(|| format!("{last}"))?;
        wait::until(&format!("{kind} to be told of by an Event"), IN_TIME, || {
            let told = events(&cluster, "bad")?.into_iter().filter(|event| event["regarding"]["kind"] == kind);
            Ok(told.into_iter().next().map(drop))
        })?;
    }
    let after = problems(&cluster)?;
    #[allow(clippy::cast_precision_loss, reason = "six")]
    let wanted = before + BAD.len() as f64;
    ensure!(after >= wanted, "{before} became {after}: {}", cluster.agent()?.metrics()?);
    let told = events(&cluster, "bad")?;
    ensure!(told.len() == BAD.len() && told.iter().all(|event| event["type"] == "Warning"), "{told:?}");
    Ok(())
}

#[test]
fn the_deletion_of_the_last_target_is_told_once_where_it_widens_access() -> Result<()> {
    let mut cluster = shop::open()?;
    cluster.apply(&shop::target("first", "web", "nobody"))?;
    cluster.apply(&shop::target("second", "web", "nobody"))?;
    cluster.apply(&shop::target("guard", "stable", "nobody"))?;
    let stance = |word: Value| json!({"metadata": {"labels": {"weft.dev/default": word}}});
    cluster.start_agent(AgentOptions::default())?;
    cluster.wait_captured(NAMESPACE)?;
    ensure!(shop::ask(&cluster, "web")?.0 == "403");

    // One is left, which grants nobody anything: nothing got wider.
    delete_target(&cluster, "first")?;
    wait::until("the first target to be gone", IN_TIME, || {
        Ok((cluster.agent()?.metric("weft_source_objects", &["kind=\"TrafficTarget\""])? == 2.0).then_some(()))
    })?;
    delete_target(&cluster, "second")?;
    let found =
        wait::until("an Event of what is open now", IN_TIME, || Ok(widened(&cluster, "web")?.into_iter().next()))?;
    let note = found["note"].as_str().unwrap_or_default();
    ensure!(note.contains("TrafficTarget shop/second") && !note.contains("first"), "{found}");
    ensure!(found["type"] == "Warning" && found["regarding"]["kind"] == "ServiceAccount", "{found}");
    ensure!(shop::ask(&cluster, "web")?.0 == "200", "it says what is so");
    ensure!(cluster.agent()?.log().contains("no TrafficTarget selects this destination any more"));

    // Where the stance denies, the last target that goes opens nothing.
    cluster.server.call("PATCH", "/api/v1/namespaces/shop", Some(&stance(json!("deny"))))?;
    wait::until("the stance to deny", IN_TIME, || Ok((shop::ask(&cluster, "web")?.0 == "403").then_some(())))?;
    delete_target(&cluster, "guard")?;
    wait::until("the last target to be gone", IN_TIME, || {
        Ok((cluster.agent()?.metric("weft_source_objects", &["kind=\"TrafficTarget\""])? == 0.0).then_some(()))
    })?;
    // News for another object, which is written after whatever there was to tell of destinations.
    cluster.apply(&bad_split("nobody"))?;
    wait_condition(&cluster, "bad", "ResolvedRefs", "False", "nobody")?;
    ensure!(widened(&cluster, "stable")?.is_empty());
    Ok(())
}

/// The conditions of a split, and some more.
fn with(cluster: &Cluster, split: &str, more: &Value) -> Result<Value> {
    let object = cluster.server.call("GET", &format!("{SPLITS}/{split}"), None)?;
    let mut all = object.pointer("/status/conditions").and_then(Value::as_array).cloned().unwrap_or_default();
    all.extend(more.as_array().cloned().unwrap_or_default());
    Ok(Value::Array(all))
}

#[test]
fn a_status_that_cannot_be_written_is_written_later_and_holds_nothing_up() -> Result<()> {
    let mut cluster = shop::open()?;
    let faults = Faults::before(&cluster.node, &cluster.server)?;
    let kubeconfig = faults.kubeconfig(&cluster.server)?;
    cluster.set_agent(Agent::start_from(&cluster.node, Source::Kubeconfig(&kubeconfig), AgentOptions::default())?);
    wait_condition(&cluster, "web", "Accepted", "True", "")?;
    let mut versions = [("web-v2-1", (0, 1)), ("web-v1-1", (1, 0))].into_iter().cycle();
    for code in [409, 500, 403] {
        faults.set(&["PATCH ", "/status"], Fault::Answer(code, None, ""));
        let seen = faults.asked().len();
        let (pod, (v1, v2)) = versions.next().context("there is always a next")?;
        cluster.apply(&shop::split(v1, v2))?;
        wait::until(&format!("{code}: the split to be in force"), IN_TIME, || {
            Ok((shop::ask(&cluster, "web")?.1 == pod).then_some(()))
        })?;
        wait::until(&format!("{code} to be tried again"), IN_TIME, || {
            let asked = faults.asked().split_off(seen);
            Ok((asked.iter().filter(|asked| asked.code == code).count() >= 2).then_some(()))
        })?;
        faults.clear();
        wait_condition(&cluster, "web", "Accepted", "True", "").with_context(|| format!("{code}"))?;
    }
    Ok(())
}

/// The definition of TrafficSplit as it is installed, to be put back with changes.
fn definition(cluster: &Cluster) -> Result<Value> {
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/trafficsplits.split.smi-spec.io";
    cluster.server.call("GET", path, None)
}

fn put_definition(cluster: &Cluster, definition: &Value) -> Result<()> {
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/trafficsplits.split.smi-spec.io";
    cluster.server.call("PUT", path, Some(definition)).map(drop)
}

#[test]
fn objects_of_a_definition_without_status_get_events() -> Result<()> {
    let mut cluster = shop::open()?;
    let mut changed = definition(&cluster)?;
    for version in changed["spec"]["versions"].as_array_mut().into_iter().flatten() {
        version.as_object_mut().context("a version")?.remove("subresources");
    }
    put_definition(&cluster, &changed)?;
    wait::until("the status subresource to be gone", IN_TIME, || {
        Ok((cluster.server.request("GET", &format!("{SPLITS}/web/status"), None)?.code == 404).then_some(()))
    })?;
    cluster.start_agent(AgentOptions::default())?;
    cluster.apply(&bad_split("nobody"))?;
    let found = wait::until("an Event", IN_TIME, || Ok(events(&cluster, "bad")?.into_iter().next()))?;
    ensure!(
        found["type"] == "Warning" && found["note"].as_str().is_some_and(|note| note.contains("nobody")),
        "{found}"
    );
    ensure!(cluster.agent()?.log().contains("no status subresource"));
    // Once.
    cluster.apply(&bad_split("nowhere"))?;
    wait::until("an Event of the change", IN_TIME, || Ok((events(&cluster, "bad")?.len() >= 2).then_some(())))?;
    ensure!(events(&cluster, "bad")?.len() == 2);
    Ok(())
}

#[test]
fn a_definition_may_change_its_versions_or_go_and_come_back_while_the_agent_runs() -> Result<()> {
    let mut cluster = shop::open()?;
    cluster.start_agent(AgentOptions::default())?;
    cluster.wait_captured(NAMESPACE)?;
    let answers = |cluster: &Cluster, pod: &str| {
        wait::until(&format!("{pod} to answer"), IN_TIME, || Ok((shop::ask(cluster, "web")?.1 == pod).then_some(())))
    };
    answers(&cluster, "web-v1-1")?;

    // The newest version is not served any more; the object is edited in an older one.
    let whole = definition(&cluster)?;
    let mut fewer = whole.clone();
    for version in fewer["spec"]["versions"].as_array_mut().into_iter().flatten() {
        let newest = version["name"] == "v1alpha4";
        version["served"] = json!(!newest);
    }
    put_definition(&cluster, &fewer)?;
    wait::until("the newest version not to be served", IN_TIME, || {
        Ok((cluster.server.request("GET", SPLITS, None)?.code == 404).then_some(()))
    })?;
    cluster.server.apply(&shop::split(0, 1).replace("v1alpha4", "v1alpha2"))?;
    answers(&cluster, "web-v2-1").with_context(|| cluster.agent().map(Agent::log_tail).unwrap_or_default())?;
    ensure!(cluster.agent()?.metric("weft_source_objects", &["kind=\"TrafficSplit\""])? == 1.0);

    // All of it goes, and what it defined with it: the Service is what it is without a split.
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/trafficsplits.split.smi-spec.io";
    cluster.server.call("DELETE", path, None)?;
    cluster.agent()?.wait_shares(NAMESPACE, "web", &[])?;
    wait::until("the definition to be gone", IN_TIME, || {
        Ok((cluster.server.request("GET", path, None)?.code == 404).then_some(()))
    })?;
    cluster.install_crds()?;
    cluster.apply(&shop::split(1, 0))?;
    wait::until("the split to be in force again", IN_TIME, || {
        Ok((cluster.agent()?.metric("weft_source_objects", &["kind=\"TrafficSplit\""])? == 1.0).then_some(()))
    })?;
    answers(&cluster, "web-v1-1")?;
    wait_condition(&cluster, "web", "Programmed", "True", "").map(drop)
}
