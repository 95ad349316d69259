//! Bad input of every kind: an error that names object and field, the last good version in force, and nothing else disturbed.

use std::{
    ffi::OsString,
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_integration::{
    AgentOptions, Manifests, Node, Pod, PodSpec, Process, Shop, agent, command,
    objects::{meshed_namespace, traffic_split},
    shop::NAMESPACE,
    wait,
};

/// How long an agent may take to refuse to start.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(20);

/// A document that is wrong, and what the status has to say.
struct Bad {
    what: &'static str,
    text: String,
    /// As the status names it; empty where nothing could be read of it.
    object: &'static str,
    field: &'static str,
    /// A part of the message, in lower case.
    says: &'static str,
}

fn split_with(spec: &str) -> String {
    format!(
        "apiVersion: split.smi-spec.io/v1alpha4\nkind: TrafficSplit\nmetadata: {{namespace: shop, name: canary}}\nspec: {spec}\n"
    )
}

fn group_with(matches: &str) -> String {
    format!(
        "apiVersion: specs.smi-spec.io/v1alpha4\nkind: HTTPRouteGroup\nmetadata: {{namespace: shop, name: group}}\n\
         spec: {{matches: {matches}}}\n"
    )
}

fn bad_documents() -> Vec<Bad> {
    let split = |what, spec: &str, field, says| Bad {
        what,
        text: split_with(spec),
        object: "TrafficSplit shop/canary",
        field,
        says,
    };
    let weights = |what, weight: &str, field, says| {
        split(what, &format!("{{service: web, backends: [{{service: web-v1, weight: {weight}}}]}}"), field, says)
    };
    let group = |what, matches: &str, field, says| Bad {
        what,
        text: group_with(matches),
        object: "HTTPRouteGroup shop/group",
        field,
        says,
    };
    let document = |what, text: &str, object, field, says| Bad { what, text: text.to_owned(), object, field, says };
    vec![
        document("invalid YAML", "kind: [unclosed\n", "", "", ""),
        document("tabs", "kind:\n\tx: y\n", "", "", ""),
        document("not an object", "- just\n- a list\n", "document", "", "map"),
        document("no kind", "apiVersion: v1\nmetadata: {name: x}\n", "document default/x", "kind", "must be given"),
        document(
            "unknown kind",
            "apiVersion: v1\nkind: Podd\nmetadata: {name: x}\n",
            "Podd default/x",
            "kind",
            "unknown",
        ),
        document(
            "unknown version",
            "apiVersion: split.smi-spec.io/v1beta1\nkind: TrafficSplit\nmetadata: {namespace: shop, name: canary}\n",
            "TrafficSplit shop/canary",
            "apiVersion",
            "v1beta1",
        ),
        document(
            "no name",
            "apiVersion: split.smi-spec.io/v1alpha4\nkind: TrafficSplit\nmetadata: {namespace: shop}\n",
            "TrafficSplit",
            "metadata.name",
            "must be given",
        ),
        split("wrong type", "{service: web, backends: web-v1}", "spec.backends", ""),
        split("unknown field", "{service: web, backend: [{service: web-v1, weight: 1}]}", "spec.backend", ""),
        split("no backends", "{service: web, backends: []}", "spec.backends", "at least one"),
        weights("negative weight", "-1", "spec.backends[0].weight", "negative"),
        weights("fractional weight", "0.5", "spec.backends[0].weight", "whole"),
        weights("weight in words", "much", "spec.backends[0].weight", "no quantity"),
        weights("weight beyond all bounds", "99999999999999999999", "spec.backends[0].weight", "limit"),
        weights("all weights zero", "0", "spec.backends", "zero"),
        split(
            "a backend of another namespace",
            "{service: web, backends: [{service: web.other, weight: 1}]}",
            "spec.backends[0].service",
            "only its own",
        ),
        group("regex that does not compile", r#"[{name: a, pathRegex: "/("}]"#, "spec.matches[0].pathRegex", ""),
        group(
            "regex over its limit",
            r#"[{name: a, headers: [{x: "((a{1,1000}){1,1000}){1,1000}"}]}]"#,
            "spec.matches[0].headers.x",
            "",
        ),
        group("back reference", r#"[{name: a, pathRegex: "(a)\\1"}]"#, "spec.matches[0].pathRegex", ""),
        group("unknown method", "[{name: a, methods: [FETCH]}]", "spec.matches[0].methods[0]", "fetch"),
        group("bad header name", r#"[{name: a, headers: [{"x y": "a"}]}]"#, "spec.matches[0].headers", "x y"),
        document(
            "pod with a bad address",
            "apiVersion: v1\nkind: Pod\nmetadata: {namespace: shop, name: p, uid: u}\nspec: {nodeName: node-a, containers: []}\n\
             status: {podIPs: [{ip: 10.0.0.300}]}\n",
            "Pod shop/p",
            "status.podIPs[0].ip",
            "10.0.0.300",
        ),
        document(
            "service with a bad port",
            "apiVersion: v1\nkind: Service\nmetadata: {namespace: shop, name: s}\nspec: {clusterIP: 10.78.0.99, ports: [{port: 70000}]}\n",
            "Service shop/s",
            "spec.ports[0].port",
            "70000",
        ),
    ]
}

#[test]
fn a_bad_document_is_named_and_changes_nothing() -> Result<()> {
    let mut shop = Shop::with_servers("open", 1, 1)?;
    shop.manifests.put(&traffic_split(NAMESPACE, "canary", "web", &[("web-v1", 1)]))?;
    shop.start()?;
    let agent = shop.agent()?;
    let mut failed = Vec::new();
    for bad in bad_documents() {
        // Beside it in the same file stands a good one, which has to work.
        let good = "apiVersion: split.smi-spec.io/v1alpha4\nkind: TrafficSplit\nmetadata: {namespace: shop, name: good}\n\
                    spec: {service: web-v2, backends: [{service: web-v1, weight: 1}]}\n";
        let file = "bad.yaml";
        shop.manifests.put_text(file, &format!("{good}---\n{}", bad.text))?;
        let told = agent
            .wait_status(bad.what, |status| status.files.iter().find(|problem| problem.file.ends_with(file)).cloned());
        let problem = match told {
            Ok(problem) => problem,
            Err(error) => {
                failed.push(format!("{}: not told: {}", bad.what, error.root_cause()));
                shop.manifests.put_text(file, good)?;
                continue;
            }
        };
        let field = problem.field.clone().unwrap_or_default();
        if problem.object != bad.object
            || field != bad.field
            || !problem.message.to_lowercase().contains(bad.says)
            || problem.message.is_empty()
        {
            failed.push(format!("{}: told as {problem:?}", bad.what));
        }
        if problem.line.is_none_or(|line| line == 0) && !bad.object.is_empty() {
            failed.push(format!("{}: without a line: {problem:?}", bad.what));
        }
        // What was in force stays in force.
        agent.wait_shares(NAMESPACE, "web", &[("canary", &[("web-v1", 100.0)])]).with_context(|| bad.what)?;
        let report = shop.load(&["--to", &shop.service("web", 80)?, "--connections", "10"])?;
        if report.servers.get("v1-1") != Some(&10) {
            failed.push(format!("{}: traffic was disturbed: {report:?}", bad.what));
        }
        shop.manifests.put_text(file, good)?;
        agent
            .wait_status("the problem to be gone", |status| status.files.is_empty().then_some(()))
            .with_context(|| bad.what)?;
        agent.wait_shares(NAMESPACE, "web-v2", &[("good", &[("web-v1", 100.0)])]).with_context(|| bad.what)?;
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

#[test]
fn an_object_that_becomes_bad_keeps_its_last_good_version() -> Result<()> {
    let mut shop = Shop::with_servers("open", 1, 1)?;
    let mut split = traffic_split(NAMESPACE, "canary", "web", &[("web-v2", 1)]);
    shop.manifests.put(&split)?;
    shop.start()?;
    shop.agent()?.wait_shares(NAMESPACE, "web", &[("canary", &[("web-v2", 100.0)])])?;
    split["spec"]["backends"] = json!([{"service": "web-v1", "weight": -1}]);
    shop.manifests.put(&split)?;
    let agent = shop.agent()?;
    let problem = agent.wait_status("the problem", |status| status.files.first().cloned())?;
    assert_eq!(problem.object, "TrafficSplit shop/canary");
    let report = shop.load(&["--to", &shop.service("web", 80)?, "--connections", "20"])?;
    assert_eq!(report.servers.get("v2-1"), Some(&20), "{report:?}");
    // A file that is not YAML at all keeps everything that was in it.
    let file = shop.manifests.path_of("TrafficSplit", NAMESPACE, "canary");
    let name = file.file_name().context("no file name")?.to_string_lossy().into_owned();
    shop.manifests.put_text(&name, "{{{")?;
    agent.wait_status("the file's problem", |status| {
        status.files.first().filter(|problem| problem.object != "TrafficSplit shop/canary").cloned()
    })?;
    let report = shop.load(&["--to", &shop.service("web", 80)?, "--connections", "20"])?;
    assert_eq!(report.servers.get("v2-1"), Some(&20), "{report:?}");
    Ok(())
}

fn pod_object(pod: &Pod, name: &str, change: impl FnOnce(&mut Value)) -> Value {
    let mut object = pod.object(true);
    object["metadata"]["name"] = json!(name);
    object["metadata"]["uid"] = json!(format!("uid-of-{name}"));
    change(&mut object);
    object
}

#[test]
fn a_pod_that_cannot_be_captured_says_why_and_the_others_are() -> Result<()> {
    let mut shop = Shop::with_servers("open", 1, 0)?;
    let spare = shop.node.pod(PodSpec::new(NAMESPACE, "spare"))?;
    let no_netns = pod_object(&spare, "no-netns", |pod| {
        pod["metadata"]["annotations"]["weft.dev/netns"] = json!("/run/netns/there-is-none");
    });
    let not_a_netns = pod_object(&spare, "not-a-netns", |pod| {
        pod["metadata"]["annotations"]["weft.dev/netns"] = json!("/etc/hostname");
    });
    let no_annotation = pod_object(&spare, "no-annotation", |pod| {
        pod["metadata"]["annotations"] = json!({});
    });
    let foreign_ip = pod_object(&spare, "foreign-ip", |pod| {
        pod["status"]["podIP"] = json!("10.77.0.222");
        pod["status"]["podIPs"] = json!([{"ip": "10.77.0.222"}]);
    });
    shop.manifests.put_all([&no_netns, &not_a_netns, &no_annotation, &foreign_ip])?;
    shop.start()?;
    let expected = [
        ("no-netns", "there-is-none"),
        ("not-a-netns", "/etc/hostname"),
        ("no-annotation", "weft.dev/netns"),
        ("foreign-ip", "10.77.0.222"),
    ];
    for (name, says) in expected {
        let reason = shop.agent()?.wait_status(name, |status| status.pod(NAMESPACE, name)?.reason.clone())?;
        assert!(reason.contains(says), "{name}: {reason}");
        assert!(!shop.agent()?.status()?.pod(NAMESPACE, name).context("no pod")?.captured, "{name}");
        let gauge = shop.agent()?.metric("weft_pod_captured", &[&format!("\"{name}\"")])?;
        assert!(gauge.abs() < 0.5, "{name}: {gauge}");
    }
    let report = shop.load(&["--to", &shop.service("web", 80)?, "--connections", "20"])?;
    assert_eq!(report.servers.get("v1-1"), Some(&20), "{report:?}");
    Ok(())
}

#[test]
fn two_pods_with_one_address_are_told_and_the_first_stays() -> Result<()> {
    let mut shop = Shop::with_servers("open", 1, 0)?;
    shop.start()?;
    let double = pod_object(&shop.server("v1-1")?.pod, "double", |_| {});
    shop.manifests.put(&double)?;
    let told = shop.agent()?.wait_status("the double address to be told", |status| {
        let reason = status.pod(NAMESPACE, "double").and_then(|pod| pod.reason.clone());
        let finding = status.about("Pod", "double").map(|finding| finding.message.clone()).next();
        reason.or(finding)
    })?;
    let address = shop.server("v1-1")?.pod.ipv4().to_string();
    assert!(told.contains(&address) || told.contains("v1-1") || told.contains("netns"), "{told}");
    assert!(shop.agent()?.status()?.pod(NAMESPACE, "v1-1").context("no pod")?.captured);
    let report = shop.load(&["--to", &shop.service("web", 80)?, "--connections", "20"])?;
    assert_eq!(report.servers.get("v1-1"), Some(&20), "{report:?}");
    Ok(())
}

#[test]
fn a_netns_that_appears_later_is_captured_then() -> Result<()> {
    let mut shop = Shop::with_servers("open", 1, 0)?;
    let late = shop.node.pod(PodSpec::new(NAMESPACE, "late"))?;
    let elsewhere = shop.node.state_dir().join("late-netns");
    let object = pod_object(&late, "late", |pod| {
        pod["metadata"]["annotations"]["weft.dev/netns"] = json!(elsewhere);
    });
    shop.manifests.put(&object)?;
    shop.start()?;
    shop.agent()?.wait_status("the reason", |status| status.pod(NAMESPACE, "late")?.reason.clone())?;
    std::os::unix::fs::symlink(late.netns_path(), &elsewhere)?;
    shop.agent()?.wait_captured(NAMESPACE, "late")
}

/// Runs an agent that has to refuse to start, and returns how it ended and all that it said.
fn refusal(node: &Node, mut command: Command) -> Result<(ExitStatus, String)> {
    let log = node.state_dir().join("refusal.log");
    fs::write(&log, "")?;
    command.env("RUST_BACKTRACE", "0");
    let mut process = Process::start(command, &log)?;
    let status = wait::until("the agent to refuse", REFUSAL_TIMEOUT, || process.has_ended())?;
    let said = fs::read_to_string(&log)?;
    Ok((status, said))
}

fn node_with_a_pod() -> Result<(Pod, Manifests, Node)> {
    let node = Node::new("node-a")?;
    let mut manifests = Manifests::new(&node)?;
    let pod = node.pod(PodSpec::new(NAMESPACE, "client"))?;
    manifests.put(&meshed_namespace(NAMESPACE))?;
    manifests.put_pod(&pod)?;
    Ok((pod, manifests, node))
}

fn assert_refused((status, said): &(ExitStatus, String), parts: &[&str]) {
    assert!(!status.success() && status.code().is_some(), "{status}: {said}");
    for part in parts {
        assert!(said.to_lowercase().contains(&part.to_lowercase()), "{part:?} is not said:\n{said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn a_metrics_port_in_use_is_named() -> Result<()> {
    let (_pod, manifests, node) = node_with_a_pod()?;
    let _holder = node.namespace().run(|| Ok(TcpListener::bind("127.0.0.1:15020")?))?;
    let refused = refusal(&node, agent::run_command(&node, manifests.dir(), &AgentOptions::default())?)?;
    assert_refused(&refused, &["127.0.0.1:15020", "in use"]);
    Ok(())
}

#[test]
fn a_directory_that_is_not_in_bpffs_is_named() -> Result<()> {
    let (_pod, manifests, node) = node_with_a_pod()?;
    let dir = node.state_dir().join("no-bpffs");
    let options = AgentOptions { bpf_dir: Some(dir.clone()), ..AgentOptions::default() };
    let refused = refusal(&node, agent::run_command(&node, manifests.dir(), &options)?)?;
    assert_refused(&refused, &[&dir.to_string_lossy(), "bpf"]);
    Ok(())
}

#[test]
fn bpffs_that_is_not_mounted_is_named() -> Result<()> {
    let (_pod, manifests, node) = node_with_a_pod()?;
    let run = agent::run_command(&node, manifests.dir(), &AgentOptions::default())?;
    // A mount namespace of its own, without bpffs.
    let mut unmounted = Command::new("unshare");
    unmounted.args(["--mount", "sh", "-c", "umount -l /sys/fs/bpf && exec \"$@\"", "sh"]);
    unmounted.arg(run.get_program()).args(run.get_args().map(OsString::from));
    let refused = refusal(&node, unmounted)?;
    assert_refused(&refused, &[&node.bpf_dir().to_string_lossy(), "mount -t bpf"]);
    Ok(())
}

#[test]
fn no_root_is_named() -> Result<()> {
    let (_pod, manifests, node) = node_with_a_pod()?;
    // The binary may lie where only root can read.
    let binary = PathBuf::from("/tmp").join(format!("{}agent", node.prefix()));
    fs::copy(agent::binary("weft-agent")?, &binary)?;
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755))?;
    let _remove = Remove(&binary);
    let mut nobody = Command::new("setpriv");
    nobody.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(&binary);
    nobody.args(["run", "--node", "node-a", "--run-dir", "/tmp/weft-nobody", "--metrics-addr", "none"]);
    nobody.arg("--manifests").arg(manifests.dir()).arg("--bpf-dir").arg(node.bpf_dir());
    let refused = refusal(&node, nobody)?;
    assert_refused(&refused, &["root"]);
    Ok(())
}

struct Remove<'a>(&'a Path);

impl Drop for Remove<'_> {
    fn drop(&mut self) {
        fs::remove_file(self.0).ok();
    }
}

#[test]
fn a_manifest_directory_that_does_not_exist_is_named() -> Result<()> {
    let (_pod, _manifests, node) = node_with_a_pod()?;
    let missing = node.state_dir().join("there-is-none");
    let refused = refusal(&node, agent::run_command(&node, &missing, &AgentOptions::default())?)?;
    assert_refused(&refused, &[&missing.to_string_lossy()]);
    Ok(())
}

#[test]
fn an_agent_outside_of_its_cgroup_root_is_told_what_to_do() -> Result<()> {
    let (_pod, manifests, node) = node_with_a_pod()?;
    let good = agent::run_command(&node, manifests.dir(), &AgentOptions::default())?;
    let pods = node.cgroup().join("kubepods");
    let mut command = Command::new(good.get_program());
    command.args(good.get_args().map(|word| if word == node.cgroup() { pods.as_os_str() } else { word }));
    let said = refusal(&node, command)?;
    let own = format!("{}/agent", node.cgroup().file_name().unwrap_or_default().to_string_lossy());
    assert_refused(&said, &["--cgroup-root", &pods.to_string_lossy(), &own, "come back to it without end"]);
    ensure!(!node.bpf_dir().exists(), "something was pinned");
    Ok(())
}

#[test]
fn a_foreign_pin_directory_is_named_and_left_alone() -> Result<()> {
    let mut shop = Shop::running("open")?;
    shop.take_agent()?.kill()?;
    let pins = pins_below(&shop.node.bpf_dir())?;
    let own = pins.first().and_then(|pin| pin.parent()).context("no pins")?.to_path_buf();
    agent::cleanup(&shop.node)?;
    // Where weft would pin, somebody else has.
    fs::create_dir_all(&own)?;
    let foreign = own.join("somebody_elses");
    let path = foreign.to_string_lossy().into_owned();
    let args = ["map", "create", &path, "type", "array", "key", "4", "value", "8", "entries", "1", "name", "foreign"];
    command::output(Command::new("bpftool").args(args))?;
    let refused = refusal(&shop.node, agent::run_command(&shop.node, shop.manifests.dir(), &AgentOptions::default())?)?;
    assert_refused(&refused, &["somebody_elses"]);
    assert!(foreign.exists(), "somebody else's pin has gone");
    // Neither does a cleanup take what is not weft's; it says so instead.
    let cleaned = agent::cleanup(&shop.node);
    assert!(cleaned.as_ref().map_or_else(ToString::to_string, Clone::clone).contains("somebody_elses"), "{cleaned:?}");
    assert!(foreign.exists(), "somebody else's pin has gone");
    Ok(())
}

#[test]
fn a_corrupt_pin_directory_is_named_or_mended() -> Result<()> {
    let mut shop = Shop::running("open")?;
    shop.take_agent()?.kill()?;
    // One of weft's own maps is replaced by a map of another shape.
    let pins = pins_below(&shop.node.bpf_dir())?;
    let map =
        pins.iter().find(|pin| pin.file_name().is_some_and(|name| name == "PODS")).context("no pinned map PODS")?;
    fs::remove_file(map)?;
    let path = map.to_string_lossy().into_owned();
    let args = ["map", "create", &path, "type", "array", "key", "4", "value", "8", "entries", "1", "name", "PODS"]
        .map(str::to_owned);
    command::output(Command::new("bpftool").args(&args))?;
    let run = agent::run_command(&shop.node, shop.manifests.dir(), &AgentOptions::default())?;
    let refused = refusal(&shop.node, run)?;
    assert_refused(&refused, &["PODS"]);
    // `cleanup` is the way out.
    agent::cleanup(&shop.node)?;
    shop.start()?;
    let report = shop.load(&["--to", &shop.service("web", 80)?, "--connections", "20"])?;
    assert_eq!(report.servers.get("v1-1"), Some(&20), "{report:?}");
    Ok(())
}

fn pins_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut pins = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            pins.extend(pins_below(&path)?);
        } else {
            pins.push(path);
        }
    }
    Ok(pins)
}
