//! Pods whose sandbox dies: made anew under the same name and address, or gone, with another pod at the address at once.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use weft_integration::{
    Pod, PodSpec, Process, Shop,
    objects::traffic_split,
    pod::Server,
    shop::{self, HTTP, NAMESPACE},
    testpod::LoadReport,
    wait,
};

/// From the moment when the new sandbox's application is up until the pod's connections go by policy again: the agent looks every 0.5 s,
/// and a pod that was looked at while it had no address is tried again after 2 s.
const RECAPTURE_MAX: Duration = Duration::from_secs(5);
/// From one pod's end until another serves at its address.
const REUSE_MAX: Duration = Duration::from_secs(1);
/// Until nothing holds a namespace any more: an agent lets the connections of a pod that went end for some seconds.
const RELEASE_MAX: Duration = Duration::from_secs(30);
/// Named in the namespace of a sandbox and in the node's: when the first goes, the link goes.
const CANARY: &str = "canary";

/// A server pod that a test ends and replaces.
struct Web {
    server: Server,
    pod: Pod,
}

impl Web {
    fn start(pod: Pod) -> Result<Self> {
        Ok(Self { server: serve(&pod)?, pod })
    }
}

fn serve(pod: &Pod) -> Result<Server> {
    pod.serve(&["--http", &HTTP.to_string()])
}

fn web_spec(name: &str, app: &str) -> PodSpec {
    PodSpec::new(NAMESPACE, name).label("app", app).label("version", "v1").port("http", HTTP)
}

/// Requests of the third pod, a few hundred a second, until told to end.
fn steady(shop: &Shop, to: &str) -> Result<Process> {
    let load = shop.spawn_load(&[
        "--to",
        to,
        "--connections",
        "2400",
        "--concurrency",
        "8",
        "--rate",
        "200",
        "--timeout-ms",
        "5000",
        "--progress",
        "100",
    ])?;
    load.wait_line("that requests are under way", Duration::from_secs(10), |line| {
        line.starts_with("done").then_some(())
    })?;
    Ok(load)
}

/// Who gave an answer of its own, among the applications; the agent's errors name nobody.
fn answers(report: &LoadReport) -> BTreeMap<&str, u64> {
    let is_pod = |name: &str| ["v1-", "v2-", "other-"].iter().any(|prefix| name.starts_with(prefix));
    report.servers.iter().filter(|(name, _)| is_pod(name)).map(|(name, count)| (name.as_str(), *count)).collect()
}

fn only(report: &LoadReport, allowed: &[&str]) -> Result<()> {
    let wrong: Vec<_> = answers(report).into_iter().filter(|(name, _)| !allowed.contains(name)).collect();
    ensure!(wrong.is_empty(), "answers from pods that must not have been asked: {wrong:?}\n{report:#?}");
    Ok(())
}

/// All were answered, by these and nobody else.
fn all_good(report: &LoadReport, allowed: &[&str]) -> Result<()> {
    only(report, allowed)?;
    ensure!(report.statuses.get(&200) == Some(&report.connections), "{report:#?}");
    Ok(())
}

/// Puts a link into the pod's namespace whose other end shows when the namespace is gone: whatever holds it, holds the link.
fn watch_namespace(shop: &Shop, pod: &Pod) -> Result<u64> {
    let path = pod.netns_path();
    let name = path.file_name().context("a name")?.to_string_lossy();
    shop.node.namespace().ip(&format!("link add {CANARY} type veth peer name {CANARY} netns {name}\n"))?;
    // The kernel's own holds: connections that the killed application left half closed, which nobody will answer.
    pod.run(|| {
        for sysctl in ["tcp_orphan_retries", "tcp_fin_timeout"] {
            fs::write(format!("/proc/sys/net/ipv4/{sysctl}"), "1")?;
        }
        Ok(())
    })?;
    Ok(fs::metadata(&path)?.ino())
}

/// Nothing holds the namespace of a sandbox that ended; the agent has no descriptor of it, and no pin.
fn expect_released(shop: &Shop, inode: u64) -> Result<()> {
    let links = || shop.node.namespace().run(|| Ok(fs::read_to_string("/proc/thread-self/net/dev")?));
    wait::until("the old sandbox's namespace to go", RELEASE_MAX, || Ok((!links()?.contains(CANARY)).then_some(())))?;
    let status = shop.agent()?.status()?;
    let held = format!("net:[{inode}]");
    for entry in fs::read_dir(format!("/proc/{}/fd", status.pid))? {
        // One that is closed meanwhile is not held.
        let Ok(target) = fs::read_link(entry?.path()) else { continue };
        ensure!(target.to_string_lossy() != held, "the agent still holds {held}");
    }
    let mut lookups = 0;
    for version in fs::read_dir(shop.node.bpf_dir())? {
        for pin in fs::read_dir(version?.path())? {
            lookups += usize::from(pin?.file_name().to_string_lossy().starts_with("link_lookup_"));
        }
    }
    ensure!(lookups == status.captured_pods(), "{lookups} look-up programs for {} pods", status.captured_pods());
    ensure!(map_entries(&status.capture, "PODS")? == lookups as u64, "{}", status.capture);
    ensure!(map_entries(&status.capture, "LOCAL_ADDRS")? == 2 * lookups as u64, "{}", status.capture);
    Ok(())
}

fn map_entries(capture: &Value, map: &str) -> Result<u64> {
    let maps = capture["maps"].as_array().context("no maps in the status")?;
    let found = maps.iter().find(|fill| fill["name"] == map).with_context(|| format!("no {map} in the status"))?;
    found["entries"].as_u64().context("no count")
}

/// Waits until the pod's own connections go by policy.
fn wait_recaptured(shop: &Shop, pod: &Pod, to: &str) -> Result<()> {
    wait::until(&format!("{} to be captured again", pod.name()), RECAPTURE_MAX, || {
        let before = shop.agent()?.pod_stats(NAMESPACE, pod.name()).unwrap_or_default();
        // As long as it is not, kube-proxy serves it.
        shop::load(pod, &["--to", to])?;
        let after = shop.agent()?.pod_stats(NAMESPACE, pod.name()).unwrap_or_default();
        Ok((after.outbound_captured > before.outbound_captured).then_some(()))
    })
}

/// Two pods of version 1, one of version 2, and a split that sends everything to version 1: who is asked without it, is version 2 too.
fn split_shop() -> Result<(Shop, Web)> {
    let mut shop = Shop::with_servers("open", 1, 1)?;
    let again = Web::start(shop.node.pod(web_spec("v1-2", "web"))?)?;
    shop.manifests.put_pod(&again.pod)?;
    shop.manifests.put(&traffic_split(NAMESPACE, "only-v1", "web", &[("web-v1", 100), ("web-v2", 0)]))?;
    shop.start()?;
    shop.agent()?.wait_captured(NAMESPACE, "v1-2")?;
    shop.agent()?.wait_shares(NAMESPACE, "web", &[("only-v1", &[("web-v1", 100.0), ("web-v2", 0.0)])])?;
    shop.agent()?.wait_endpoints(NAMESPACE, "web-v1", 2)?;
    Ok((shop, again))
}

fn made_anew(same_uid: bool) -> Result<()> {
    let (mut shop, again) = split_shop()?;
    let (mut pod, mut server) = (again.pod, again.server);
    let web = shop.service("web", 80)?;
    let mut steady = steady(&shop, &web)?;
    for _round in 0..3 {
        let uid = pod.uid().to_owned();
        let old = watch_namespace(&shop, &pod)?;
        drop(server);
        if same_uid {
            pod.recreate_sandbox()?;
        } else {
            pod = shop.node.pod_in_place_of(pod, web_spec("v1-2", "web"))?;
            shop.manifests.put_pod(&pod)?;
        }
        ensure!((pod.uid() == uid) == same_uid, "{uid}");
        server = serve(&pod)?;
        wait_recaptured(&shop, &pod, &web)?;
        // By policy: without it, the pod of version 2 would be asked every third time.
        all_good(&shop::load(&pod, &["--to", &web, "--connections", "60"])?, &["v1-1", "v1-2"])?;
        // And it is a server again, whom connections reach through the agent.
        let before = shop.agent()?.inbound_connections()?;
        let direct = std::net::SocketAddr::from((pod.ipv4(), HTTP)).to_string();
        all_good(&shop::stranger_load(&shop.client, &["--to", &direct, "--connections", "5"])?, &["v1-2"])?;
        ensure!(shop.agent()?.inbound_connections()? > before, "the new sandbox's connections do not pass the agent");
        let found = shop.agent()?.status()?;
        let of_pod: Vec<_> = found.pods.iter().filter(|found| found.name == "v1-2").collect();
        ensure!(of_pod.len() == 1 && of_pod[0].uid == pod.uid() && of_pod[0].captured, "{of_pod:#?}");
        expect_released(&shop, old)?;
    }
    let report = shop::finish_load(&mut steady)?;
    only(&report, &["v1-1", "v1-2"])?;
    ensure!(report.statuses.get(&200).copied().unwrap_or(0) * 100 >= report.connections * 90, "{report:#?}");
    all_good(&shop.load(&["--to", &web, "--connections", "100"])?, &["v1-1", "v1-2"])
}

#[test]
fn a_sandbox_made_anew_under_the_same_uid_is_captured_again() -> Result<()> {
    made_anew(true)
}

#[test]
fn a_pod_of_the_same_name_and_address_is_captured_again() -> Result<()> {
    made_anew(false)
}

#[test]
fn a_pod_that_takes_over_an_address_gets_nothing_that_was_for_the_pod_before() -> Result<()> {
    let (mut shop, gone) = split_shop()?;
    shop.add_service("other", &[("app", "other")])?;
    shop.node.sync_kube_proxy(&shop.manifests)?;
    let (web, other) = (shop.service("web", 80)?, shop.service("other", 80)?);
    // Connections that the agent keeps for the pod that will go.
    all_good(&shop.load(&["--to", &web, "--connections", "200", "--concurrency", "8"])?, &["v1-1", "v1-2"])?;
    let mut steady = steady(&shop, &web)?;

    let (old_ip, old_uid) = (gone.pod.ipv4(), gone.pod.uid().to_owned());
    let old = watch_namespace(&shop, &gone.pod)?;
    let Web { pod, server } = gone;
    shop.manifests.remove("Pod", NAMESPACE, "v1-2")?;
    shop.node.sync_kube_proxy(&shop.manifests)?;
    // The object goes before the address is free, as with Kubernetes.
    shop.agent()?.wait_endpoints(NAMESPACE, "web-v1", 1)?;
    let begun = Instant::now();
    drop(server);
    let new = Web::start(shop.node.pod_in_place_of(pod, web_spec("other-1", "other"))?)?;
    shop.manifests.put_pod(&new.pod)?;
    let reused = begun.elapsed();
    ensure!(reused < REUSE_MAX, "the address was reused only after {reused:?}");
    ensure!(new.pod.ipv4() == old_ip && new.pod.uid() != old_uid, "another pod at the same address");

    shop.agent()?.wait_captured(NAMESPACE, "other-1")?;
    shop.agent()?.wait_endpoints(NAMESPACE, "other", 1)?;
    shop.node.sync_kube_proxy(&shop.manifests)?;
    all_good(&shop.load(&["--to", &other, "--connections", "100", "--concurrency", "8"])?, &["other-1"])?;
    all_good(&shop.load(&["--to", &web, "--connections", "100", "--concurrency", "8"])?, &["v1-1"])?;
    // By its address, in both directions.
    let direct = std::net::SocketAddr::from((old_ip, HTTP)).to_string();
    all_good(&shop.load(&["--to", &direct, "--connections", "20"])?, &["other-1"])?;
    all_good(&shop::load(&new.pod, &["--to", &web, "--connections", "20"])?, &["v1-1"])?;
    let status = shop.agent()?.status()?;
    if let Some(stale) = status.pods.iter().find(|pod| pod.uid == old_uid) {
        bail!("{stale:#?}");
    }
    let report = shop::finish_load(&mut steady)?;
    only(&report, &["v1-1", "v1-2"])?;
    ensure!(report.statuses.get(&200).copied().unwrap_or(0) * 100 >= report.connections * 95, "{report:#?}");
    expect_released(&shop, old)
}
