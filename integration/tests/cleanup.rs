//! What is left after `weft-agent cleanup`: nothing.

use std::{collections::BTreeSet, fs, process::Command};

use anyhow::{Context, Result};
use serde_json::Value;
use weft_integration::{Pod, Shop, agent, command, limits, shop::NAMESPACE, wait};

/// The sysctls that capture may set in a pod's namespace.
const SYSCTLS: [&str; 4] = [
    "net.ipv4.tcp_fwmark_accept",
    "net.ipv4.fwmark_reflect",
    "net.ipv6.fwmark_reflect",
    "net.ipv4.ip_local_reserved_ports",
];

/// Everything in a pod's namespace that capture may change.
#[derive(Debug, PartialEq, Eq)]
struct Traces {
    rules: String,
    routes: String,
    sysctls: String,
    listeners: String,
}

impl Traces {
    fn of(pod: &Pod) -> Result<Self> {
        let run = |args: &[&str]| {
            let mut nsenter = Command::new("nsenter");
            command::output(nsenter.arg(format!("--net={}", pod.netns_path().display())).arg("--").args(args))
        };
        Ok(Self {
            rules: run(&["ip", "rule"])? + &run(&["ip", "-6", "rule"])?,
            routes: run(&["ip", "route", "show", "table", "all"])?
                + &run(&["ip", "-6", "route", "show", "table", "all"])?,
            sysctls: run(&[&["sysctl"], &SYSCTLS[..]].concat())?,
            listeners: run(&["ss", "-Hltn"])?,
        })
    }
}

/// Ids of all programs, maps and links in the kernel.
fn bpf_objects() -> Result<[BTreeSet<u64>; 3]> {
    let ids = |what: &str| -> Result<BTreeSet<u64>> {
        let text = command::output(Command::new("bpftool").args(["-j", what, "show"]))?;
        let list: Vec<Value> = serde_json::from_str(&text).with_context(|| format!("bpftool {what} wrote {text:?}"))?;
        Ok(list.iter().filter_map(|object| object.get("id")?.as_u64()).collect())
    };
    Ok([ids("prog")?, ids("map")?, ids("link")?])
}

fn cleaned(kill: bool) -> Result<()> {
    let mut shop = Shop::with_servers("closed", 1, 0)?;
    shop.node.sync_kube_proxy(&shop.manifests)?;
    let before = [Traces::of(&shop.client)?, Traces::of(&shop.server("v1-1")?.pod)?];
    let [programs, maps, links] = bpf_objects()?;
    shop.start()?;
    let web = shop.service("web", 80)?;
    assert_eq!(shop.load(&["--to", &web])?.statuses.get(&200), Some(&1));
    // The check can see what it looks for.
    assert_ne!(Traces::of(&shop.client)?, before[0]);
    let [with_programs, with_maps, with_links] = bpf_objects()?;
    assert!(with_programs.len() > programs.len() && with_maps.len() > maps.len() && with_links.len() > links.len());
    assert!(shop.node.bpf_dir().exists());
    let captured = shop.agent()?.pod_stats(NAMESPACE, "client")?.outbound_captured;
    assert!(captured > 0);

    let agent = shop.take_agent()?;
    if kill {
        agent.kill()?;
    } else {
        assert!(agent.stop()?.success());
    }
    agent::cleanup(&shop.node)?;

    assert_eq!([Traces::of(&shop.client)?, Traces::of(&shop.server("v1-1")?.pod)?], before);
    let before = [programs, maps, links];
    let mut left = Vec::new();
    // A program lets go of its maps some time after it has gone itself: once no CPU can be running it (RCU).
    wait::until("nothing to be left in the kernel", limits::APPLY_TIMEOUT, || {
        let after = bpf_objects()?;
        left = after.iter().zip(&before).flat_map(|(after, before)| after.difference(before).copied()).collect();
        Ok(left.is_empty().then_some(()))
    })
    .with_context(|| format!("left of programs, maps and links: {left:?}"))?;
    assert!(!shop.node.bpf_dir().exists(), "pins are left");
    let run_dir = agent::run_dir(&shop.node);
    let sockets = fs::read_dir(&run_dir).map(|entries| entries.flatten().map(|entry| entry.path()).collect::<Vec<_>>());
    assert!(sockets.as_ref().map_or(true, Vec::is_empty), "{sockets:?}");
    // Fail mode closed, and yet direct: weft is gone.
    let report = shop.load(&["--to", &web, "--connections", "20"])?;
    assert_eq!(report.statuses.get(&200), Some(&20), "{report:?}");
    Ok(())
}

#[test]
fn cleanup_after_a_stop_leaves_nothing_and_traffic_is_direct() -> Result<()> {
    cleaned(false)
}

#[test]
fn cleanup_after_a_kill_leaves_nothing_and_traffic_is_direct() -> Result<()> {
    cleaned(true)
}

#[test]
fn cleanup_without_anything_to_clean_succeeds() -> Result<()> {
    let shop = Shop::with_servers("open", 1, 0)?;
    agent::cleanup(&shop.node)?;
    agent::cleanup(&shop.node)?;
    Ok(())
}

#[test]
fn a_pod_that_leaves_the_mesh_is_as_before() -> Result<()> {
    let mut shop = Shop::with_servers("closed", 1, 0)?;
    let before = Traces::of(&shop.client)?;
    shop.start()?;
    assert_ne!(Traces::of(&shop.client)?, before);
    shop.manifests.remove("Pod", NAMESPACE, "client")?;
    shop.agent()?
        .wait_status("the pod to be released", |status| status.pod(NAMESPACE, "client").is_none().then_some(()))?;
    wait::until("the pod's namespace to be as before", limits::APPLY_TIMEOUT, || {
        Ok((Traces::of(&shop.client)? == before).then_some(()))
    })?;
    let report = shop.load(&["--to", &format!("{}:8080", shop.server("v1-1")?.pod.ipv4()), "--connections", "10"])?;
    assert_eq!(report.statuses.get(&200), Some(&10), "{report:?}");
    Ok(())
}
