//! The chained CNI plugin: a pod's first packet goes by policy already, and no pod waits for an agent that does not answer.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};
use weft_integration::{
    AgentOptions, Cluster, Pod, PodSpec, Process,
    agent::binary,
    cni::{Added, NETWORK, Runtime},
    command,
    shop::load,
    wait,
};

const EVENTUALLY: Duration = Duration::from_secs(60);
/// How long the plugin waits at most.
const WAIT_MAX: Duration = Duration::from_secs(2);
/// What starting a program takes on a loaded machine.
const SLACK: Duration = Duration::from_secs(20);
const SYSTEM: &str = "weft-system";
const DAEMONSET: &str = "weft-agent";

const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {weft.dev/mesh: enabled, weft.dev/default: deny}}
---
apiVersion: v1
kind: Namespace
metadata: {name: elsewhere}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec:
  serviceAccountName: web
  containers: [{name: web, image: weft-testpod, args: [--http, '8080'], ports: [{name: http, containerPort: 8080}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: specs.smi-spec.io/v1alpha4
kind: HTTPRouteGroup
metadata: {name: all, namespace: shop}
spec: {matches: [{name: all, pathRegex: '.*', methods: ['*']}]}
---
apiVersion: access.smi-spec.io/v1alpha3
kind: TrafficTarget
metadata: {name: web, namespace: shop}
spec:
  destination: {kind: ServiceAccount, name: web, namespace: shop}
  sources: [{kind: ServiceAccount, name: friend, namespace: shop}]
  rules: [{kind: HTTPRouteGroup, name: all, matches: [all]}]
";

/// A cluster whose agent runs and has put its plugin into the runtime's list.
struct Stage {
    cluster: Cluster,
    runtime: Runtime,
}

impl Stage {
    fn new() -> Result<Self> {
        let mut cluster = Cluster::new()?;
        cluster.install_crds()?;
        cluster.apply(SHOP)?;
        let runtime = Runtime::new(&cluster.node)?;
        let mut arguments = runtime.agent_args();
        arguments.extend(["--daemonset".into(), DAEMONSET.into(), "--pod-namespace".into(), SYSTEM.into()]);
        cluster.start_agent(AgentOptions { arguments, ..AgentOptions::default() })?;
        cluster.wait_captured("shop")?;
        let stage = Self { cluster, runtime };
        stage.wait_plugins(&[NETWORK, "weft-cni"])?;
        Ok(stage)
    }

    fn wait_plugins(&self, wanted: &[&str]) -> Result<()> {
        wait::until(&format!("the plugins {wanted:?}"), EVENTUALLY, || {
            Ok((self.runtime.plugins()? == wanted).then_some(()))
        })
    }

    /// The object, as it is when the kubelet sees it first: on a node, and without an address.
    fn create_object(&self, namespace: &str, name: &str, account: &str) -> Result<String> {
        let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"nodeName": self.cluster.node.name(), "serviceAccountName": account,
                "containers": [{"name": "app", "image": "pause"}]}});
        let made = self.cluster.server.call("POST", &format!("/api/v1/namespaces/{namespace}/pods"), Some(&object))?;
        Ok(made["metadata"]["uid"].as_str().context("a UID")?.to_owned())
    }

    /// A pod whose sandbox the plugins have seen, and in which nothing runs.
    fn pod(&self, namespace: &str, name: &str, account: &str) -> Result<(Pod, Added)> {
        let uid = self.create_object(namespace, name, account)?;
        let pod = self.cluster.node.pod_of(PodSpec::new(namespace, name).account(account), &uid)?;
        let added = self.add(&pod, &uid)?;
        ensure!(added.result["interfaces"][0]["name"] == "eth0", "the result before is passed on: {}", added.result);
        Ok((pod, added))
    }

    /// On a machine under load even an agent that is well may not answer in two seconds. A runtime would start the pod then; here it asks
    /// again, so that what follows is about a pod that was captured before.
    fn add(&self, pod: &Pod, uid: &str) -> Result<Added> {
        wait::until("the agent to answer in time", EVENTUALLY, || {
            let added = self.runtime.add(pod, Some(uid))?;
            Ok((!added.note.contains("no answer within")).then_some(added))
        })
    }

    fn ask_web(&self, pod: &Pod) -> Result<std::collections::BTreeMap<u16, u64>> {
        let to = format!("{}:80", self.cluster.service_ip("shop", "web")?);
        Ok(load(pod, &["--to", &to])?.statuses)
    }

    fn questions(&self, result: &str) -> Result<f64> {
        self.cluster.agent()?.metric("weft_cni_questions_total", &[&format!("result=\"{result}\"")])
    }

    fn is_captured(&self, namespace: &str, name: &str) -> Result<bool> {
        Ok(self.cluster.agent()?.status()?.pod(namespace, name).is_some_and(|pod| pod.captured))
    }
}

#[test]
fn the_first_packet_of_a_pod_goes_by_policy() -> Result<()> {
    let stage = Stage::new()?;
    // Out: it is known at once, by account.
    let (friend, added) = stage.pod("shop", "friend", "friend")?;
    ensure!(added.note.is_empty(), "{}", added.note);
    ensure!(stage.ask_web(&friend)?.get(&200) == Some(&1), "granted to its account");
    let stats = stage.cluster.agent()?.pod_stats("shop", "friend")?;
    ensure!(stats.outbound_captured == 1, "{stats:?}");
    let (stranger, _) = stage.pod("shop", "stranger", "stranger")?;
    ensure!(stage.ask_web(&stranger)?.get(&403) == Some(&1), "not granted to its account");
    // In: its namespace denies what nothing grants. Nobody else knows its address yet.
    let server = friend.serve(&["--http", "8080"])?;
    let answers = load(&stranger, &["--to", &format!("{}:8080", friend.ipv4())])?;
    ensure!(!answers.statuses.contains_key(&200), "{answers:?}");
    ensure!(server.stats()?.connections() == 0, "it has seen nothing");
    ensure!(stage.questions("captured")? == 2.0);

    // The kubelet writes the same addresses into the status, and the container's processes are found: nothing is captured anew.
    let agent = stage.cluster.agent()?;
    let generations = || Ok::<_, anyhow::Error>(agent.log().matches("plans are in force").count());
    let before = generations()?;
    stage.cluster.set_ready(&friend, true)?;
    wait::until("the status to be seen", EVENTUALLY, || Ok((generations()? > before).then_some(())))?;
    ensure!(stage.is_captured("shop", "friend")?);
    ensure!(stage.ask_web(&friend)?.get(&200) == Some(&1));
    ensure!(!agent.log().contains("is released"), "{}", agent.log_tail());
    Ok(())
}

#[test]
fn a_pod_is_captured_however_late_its_object_is_seen_or_its_sandbox_made_anew() -> Result<()> {
    let stage = Stage::new()?;
    // The runtime is faster than the watch, and does not know the UID. Its cgroup has that of the object, which is made afterwards.
    let pod = stage.cluster.node.pod_of(PodSpec::new("shop", "friend").account("friend"), "not-known-yet")?;
    std::thread::scope(|scope| -> Result<()> {
        let adding = scope.spawn(|| stage.runtime.add(&pod, None));
        stage.create_object("shop", "friend", "friend")?;
        let added = adding.join().map_err(|_| anyhow::anyhow!("the thread panicked"))??;
        // On a machine under load two seconds may pass; then it is captured a moment later.
        ensure!(added.note.is_empty() || added.note.contains("no answer within"), "{}", added.note);
        Ok(())
    })?;
    stage.cluster.agent()?.wait_captured("shop", "friend")?;
    ensure!(stage.ask_web(&pod)?.get(&200) == Some(&1));

    // A sandbox that fails is made anew; the object stays.
    let (mut again, _) = stage.pod("shop", "again", "friend")?;
    ensure!(stage.ask_web(&again)?.get(&200) == Some(&1));
    again.recreate_sandbox()?;
    let uid = again.uid().to_owned();
    let added = stage.add(&again, &uid)?;
    ensure!(added.note.is_empty(), "{}", added.note);
    ensure!(stage.ask_web(&again)?.get(&200) == Some(&1), "captured in the new one");
    Ok(())
}

#[test]
fn no_pod_waits_for_long_and_none_fails() -> Result<()> {
    let mut stage = Stage::new()?;
    // Not in the mesh: at once, whether its object has been seen or not.
    let (_elsewhere, added) = stage.pod("elsewhere", "plain", "default")?;
    ensure!(added.note.is_empty(), "{}", added.note);
    let unseen = stage.cluster.node.pod_of(PodSpec::new("elsewhere", "unseen"), "unseen")?;
    ensure!(stage.add(&unseen, "unseen")?.note.is_empty());
    ensure!(stage.questions("not_meshed")? == 2.0);
    // A sandbox without the addresses that it is said to have.
    let uid = stage.create_object("shop", "broken", "default")?;
    let broken = stage.cluster.node.pod_of(PodSpec::new("shop", "broken"), &uid)?;
    broken
        .run(|| command::output(std::process::Command::new("ip").args(["addr", "flush", "dev", "eth0"])).map(drop))?;
    let added = stage.add(&broken, &uid)?;
    ensure!(
        added.note.contains("shop/broken starts without capture") && added.note.contains("10.77"),
        "{}",
        added.note
    );
    ensure!(stage.questions("not_captured")? >= 1.0);

    // An object that nobody ever sees.
    let ghost = stage.cluster.node.pod_of(PodSpec::new("shop", "ghost"), "ghost")?;
    let added = stage.runtime.add(&ghost, Some("ghost"))?;
    ensure!(added.note.contains("no answer within 2000 ms"), "{}", added.note);
    ensure!(added.took >= WAIT_MAX && added.took < WAIT_MAX + SLACK, "{:?}", added.took);

    // An agent that hangs.
    stage.cluster.agent()?.signal(Signal::STOP)?;
    let added = stage.runtime.add(&ghost, Some("ghost"))?;
    stage.cluster.agent()?.signal(Signal::CONT)?;
    ensure!(added.note.contains("no answer within 2000 ms"), "{}", added.note);
    ensure!(added.took >= WAIT_MAX && added.took < WAIT_MAX + SLACK, "{:?}", added.took);

    // One that was killed leaves its socket; the pod is captured by the next one.
    stage.cluster.take_agent()?.kill()?;
    let (pod, added) = stage.pod("shop", "friend", "friend")?;
    ensure!(added.note.contains("no agent listens"), "{}", added.note);
    let _pause = pause(&pod)?;
    stage.cluster.start_agent(AgentOptions { arguments: stage.runtime.agent_args(), ..AgentOptions::default() })?;
    stage.cluster.set_ready(&pod, true)?;
    stage.cluster.agent()?.wait_captured("shop", "friend")?;

    // One that was stopped has taken its socket along, and left the plugin.
    stage.cluster.take_agent()?.stop()?;
    let (_pod, added) = stage.pod("shop", "another", "friend")?;
    ensure!(added.note.contains("no agent listens"), "{}", added.note);
    stage.wait_plugins(&[NETWORK, "weft-cni"])
}

/// What holds a pod's namespace in a cluster, and is found in its cgroup.
fn pause(pod: &Pod) -> Result<Process> {
    let mut sleep = pod.command("sleep");
    sleep.arg("infinity");
    pod.spawn(sleep)
}

#[test]
fn the_plugin_stays_in_the_list_until_weft_is_removed_and_then_nothing_of_weft_is_left() -> Result<()> {
    let mut stage = Stage::new()?;
    // The network plugin is upgraded.
    stage.runtime.write_list("harness-2")?;
    stage.wait_plugins(&[NETWORK, "weft-cni"])?;
    ensure!(fs::read_to_string(stage.runtime.list_path())?.contains("harness-2"));
    ensure!(stage.cluster.agent()?.metric("weft_cni_chained", &[])? == 1.0);

    // Helm's hook: it deletes the DaemonSet and waits for its pods, which the kubelet ends.
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}});
    stage.cluster.server.call("POST", "/api/v1/namespaces", Some(&namespace))?;
    let daemonsets = format!("/apis/apps/v1/namespaces/{SYSTEM}/daemonsets");
    let labels = json!({"app": "weft"});
    let daemonset = json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": DAEMONSET},
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels},
            "spec": {"containers": [{"name": "agent", "image": "weft-agent"}]}}}});
    stage.cluster.server.call("POST", &daemonsets, Some(&daemonset))?;
    // While it is there, a stop is a restart: everything stays.
    stage.cluster.take_agent()?.stop()?;
    ensure!(stage.runtime.plugins()? == [NETWORK, "weft-cni"] && has_pins(&stage.cluster.node.bpf_dir()));
    let mut arguments = stage.runtime.agent_args();
    arguments.extend(["--daemonset".into(), DAEMONSET.into(), "--pod-namespace".into(), SYSTEM.into()]);
    stage.cluster.start_agent(AgentOptions { arguments, ..AgentOptions::default() })?;
    stage.cluster.wait_captured("shop")?;

    let mut hook = stage.cluster.node.command(&binary("weft-agent")?.to_string_lossy());
    hook.args(["uninstall", "--namespace", SYSTEM, "--daemonset", DAEMONSET, "--timeout-s", "120", "--kubeconfig"]);
    hook.arg(stage.cluster.kubeconfig());
    let mut hook = Process::start(hook, &stage.cluster.node.state_dir().join("uninstall.log"))?;
    let object = format!("{daemonsets}/{DAEMONSET}");
    wait::until("the DaemonSet to be marked", EVENTUALLY, || {
        let answer = stage.cluster.server.request("GET", &object, None)?;
        Ok(answer.body["metadata"]["deletionTimestamp"].is_string().then_some(()))
    })?;
    ensure!(hook.has_ended()?.is_none(), "its pods run");
    stage.cluster.take_agent()?.stop()?;
    // The garbage collector's part, when the last pod has gone.
    let patch = json!({"metadata": {"finalizers": Value::Null}});
    stage.cluster.server.call("PATCH", &object, Some(&patch))?;
    hook.finish(EVENTUALLY)?;

    ensure!(stage.runtime.plugins()? == [NETWORK], "{:?}", stage.runtime.plugins()?);
    ensure!(fs::read_dir(&stage.runtime.bin_dir)?.next().is_none(), "the program is gone");
    ensure!(!has_pins(&stage.cluster.node.bpf_dir()), "nothing is pinned");
    let web = &stage.cluster.pod("shop", "web")?.pod;
    ensure!(stage.ask_web(web)?.get(&200) == Some(&1), "connections go direct");
    let rules = web.run(|| command::output(std::process::Command::new("ip").arg("rule")))?;
    ensure!(rules.lines().count() == 3, "the rules that each namespace has: {rules}");
    Ok(())
}

fn has_pins(dir: &Path) -> bool {
    fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some())
}
