//! The chart's pod spec, run by a container runtime: the agent captures with the mounts, capabilities, user and system call filter that it says,
//! an upgrade with two agents at one time loses nothing, and nothing in the list of capabilities could be left out.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;
use weft_integration::{
    Cluster, Pod,
    agent::{run_dir, status},
    cni::{NETWORK, Runtime},
    command,
    container::{Container, Image},
    shop::load,
    wait,
};

/// Loading the programs with debug assertions, on a loaded machine.
const EVENTUALLY: Duration = Duration::from_secs(90);
/// Names an archive that `cargo xtask image` has made, to take the agent from instead of from this build.
const IMAGE_VARIABLE: &str = "WEFT_TEST_IMAGE";
const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {weft.dev/mesh: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {containers: [{name: web, image: weft-testpod, args: [--http, '8080'], ports: [{name: http, containerPort: 8080}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop}
spec: {containers: [{name: client, image: pause}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}
";

/// A cluster without an agent, an image, and the chart's pod for this node.
struct Stage {
    cluster: Cluster,
    runtime: Runtime,
    image: Image,
    pod: Value,
}

impl Stage {
    fn new() -> Result<Self> {
        let mut cluster = Cluster::new()?;
        cluster.install_crds()?;
        cluster.apply(SHOP)?;
        let runtime = Runtime::new(&cluster.node)?;
        let dir = cluster.node.state_dir().join("image");
        let image = match std::env::var_os(IMAGE_VARIABLE) {
            Some(archive) => Image::unpack(archive.as_ref(), &dir)?,
            None => Image::of_build(&dir)?,
        };
        let pod = pod_spec(&cluster, &runtime)?;
        Ok(Self { cluster, runtime, image, pod })
    }

    fn start(&self, name: &str) -> Result<Container> {
        Container::start(&self.cluster, &self.image, &self.pod, name)
    }

    fn start_ready(&self, name: &str) -> Result<Container> {
        let mut container = self.start(name)?;
        self.wait_ready(&mut container)?;
        Ok(container)
    }

    /// As the kubelet does: by the probe that the chart says.
    fn wait_ready(&self, container: &mut Container) -> Result<()> {
        wait::until("the readiness probe to succeed", EVENTUALLY, || {
            ensure_runs(container)?;
            Ok(self.probe(container, "readinessProbe")?.then_some(()))
        })
        .with_context(|| container.log())
    }

    fn probe(&self, container: &Container, which: &str) -> Result<bool> {
        let command = self.pod["containers"][0][which]["exec"]["command"].as_array().context("a probe's command")?;
        let command: Vec<&str> = command.iter().filter_map(Value::as_str).collect();
        Ok(container.exec(&command)?.status.success())
    }

    fn client(&self) -> Result<&Pod> {
        Ok(&self.cluster.pod("shop", "client")?.pod)
    }

    fn web_address(&self) -> Result<String> {
        Ok(format!("{}:80", self.cluster.service_ip("shop", "web")?))
    }

    fn wait_captured(&self, container: &Container) -> Result<()> {
        wait::until("both pods to be captured", EVENTUALLY, || {
            let status = status(&self.cluster.node)?;
            let captured = |name| status.pod("shop", name).is_some_and(|pod| pod.captured);
            Ok((captured("web") && captured("client")).then_some(()))
        })
        .with_context(|| container.log())
    }

    fn carried(&self) -> Result<u64> {
        let status = status(&self.cluster.node)?;
        Ok(status.pod("shop", "client").context("the client")?.stats.outbound_captured)
    }
}

fn ensure_runs(container: &mut Container) -> Result<()> {
    if let Some(status) = container.has_ended()? {
        anyhow::bail!("it ended with {status}");
    }
    Ok(())
}

/// The chart's DaemonSet with this node's places.
fn pod_spec(cluster: &Cluster, runtime: &Runtime) -> Result<Value> {
    let chart = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../manifests/weft");
    let node = &cluster.node;
    let mut helm = cluster.server.helm();
    helm.args(["template", "weft"]).arg(chart).args(["--namespace", "weft-system"]);
    for (value, path) in [
        ("node.cgroupRoot", node.cgroup().to_owned()),
        ("node.bpfDir", node.bpf_dir()),
        ("node.runDir", run_dir(node)),
        ("cni.binDir", runtime.bin_dir.clone()),
        ("cni.confDir", runtime.conf_dir.clone()),
    ] {
        helm.arg("--set").arg(format!("{value}={}", path.display()));
    }
    helm.args(["--set", "agent.drainTimeoutSeconds=5", "--set", "agent.logFormat=text"]);
    let rendered = command::output(&mut helm)?;
    let documents: Vec<Value> = serde_saphyr::from_multiple(&rendered)?;
    let daemonset = documents.iter().find(|object| object["kind"] == "DaemonSet").context("the DaemonSet")?;
    Ok(daemonset["spec"]["template"]["spec"].clone())
}

#[test]
fn the_agent_captures_with_what_the_chart_gives_it() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.start_ready("a")?;
    stage.wait_captured(&container)?;
    // It is as it was to be.
    let pid = container.pid()?;
    let proc = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| {
        proc.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).with_context(|| format!("no {name}"))
    };
    // capabilities(7): NET_BIND_SERVICE 10, NET_ADMIN 12, SYS_PTRACE 19, SYS_ADMIN 21, BPF 39.
    let wanted: u64 = [10, 12, 19, 21, 39].iter().map(|bit| 1 << bit).sum();
    for set in ["CapBnd:", "CapEff:", "CapPrm:"] {
        ensure!(u64::from_str_radix(field(set)?, 16)? == wanted, "{set} {}", field(set)?);
    }
    ensure!(field("Seccomp:")? == "2", "a system call filter");
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo"))?;
    let root = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/")).context("a root")?;
    ensure!(root.split(' ').nth(5).is_some_and(|options| options.split(',').any(|word| word == "ro")), "{root}");

    let report = load(stage.client()?, &["--to", &stage.web_address()?, "--connections", "20"])?;
    ensure!(report.statuses.get(&200) == Some(&20), "{report:?}");
    ensure!(stage.carried()? == 20);
    ensure!(stage.probe(&container, "livenessProbe")?);
    wait::until("the CNI plugin", EVENTUALLY, || Ok((stage.runtime.plugins()? == [NETWORK, "weft-cni"]).then_some(())))
        .with_context(|| container.log())?;
    Ok(())
}

#[test]
fn an_upgrade_overlaps_and_loses_nothing() -> Result<()> {
    let stage = Stage::new()?;
    let mut old = stage.start_ready("old")?;
    stage.wait_captured(&old)?;
    let to = stage.web_address()?;
    let mut load = weft_integration::shop::spawn_load(
        stage.client()?,
        &["--to", &to, "--connections", "600", "--concurrency", "4", "--rate", "100", "--progress", "10"],
    )?;
    load.wait_line("that requests are under way", EVENTUALLY, |line| line.starts_with("done").then_some(()))?;
    // maxSurge: the new pod is made while the old one runs.
    let new = stage.start_ready("new")?;
    wait::until("the old agent not to be ready any more", EVENTUALLY, || {
        Ok((!stage.probe(&old, "readinessProbe")?).then_some(()))
    })?;
    ensure!(stage.probe(&old, "livenessProbe")?, "or the kubelet would start it again");
    ensure!(stage.probe(&new, "livenessProbe")? && stage.probe(&new, "readinessProbe")?);
    ensure_runs(&mut old)?;
    old.signal(Signal::TERM)?;
    let ended = wait::until("the old agent to end", EVENTUALLY, || old.has_ended())?;
    ensure!(ended.success(), "{ended}\n{}", old.log());
    let report = weft_integration::shop::finish_load(&mut load)?;
    ensure!(report.statuses.get(&200) == Some(&600), "{report:?}");
    ensure!(stage.probe(&new, "readinessProbe")?);
    stage.wait_captured(&new)?;
    Ok(())
}

#[test]
fn without_any_one_capability_the_agent_says_so_or_captures_nothing() -> Result<()> {
    let stage = Stage::new()?;
    let listed: Vec<String> = stage.pod["containers"][0]["securityContext"]["capabilities"]["add"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|name| name.as_str().map(str::to_owned))
        .collect();
    for (index, left_out) in listed.iter().enumerate() {
        // Carrying works without it; a client's port below 1024 is not kept then.
        if left_out == "NET_BIND_SERVICE" {
            continue;
        }
        let mut pod = stage.pod.clone();
        let rest: Vec<&String> = listed.iter().filter(|name| *name != left_out).collect();
        pod["containers"][0]["securityContext"]["capabilities"]["add"] = serde_json::to_value(rest)?;
        let mut container = Container::start(&stage.cluster, &stage.image, &pod, &format!("c{index}"))?;
        match left_out.as_str() {
            "SYS_PTRACE" => {
                stage.wait_ready(&mut container)?;
                let status = status(&stage.cluster.node)?;
                let pod = status.pod("shop", "client").context("the client")?;
                ensure!(!pod.captured, "{left_out} is not needed");
                ensure!(pod.reason.as_deref().is_some_and(|why| why.contains("no process")), "{:?}", pod.reason);
                container.signal(Signal::TERM)?;
                wait::until("it to end", EVENTUALLY, || container.has_ended())?;
            }
            _ => {
                let ended = wait::until("it to refuse", EVENTUALLY, || container.has_ended())
                    .with_context(|| format!("without {left_out}\n{}", container.log()))?;
                let named = container.log().contains(&format!("CAP_{left_out}"));
                ensure!(!ended.success() && named, "without {left_out}: {ended}\n{}", container.log());
            }
        }
    }
    Ok(())
}
