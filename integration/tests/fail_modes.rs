//! What happens while the agent is dead, hangs, comes back or is replaced: in both fail modes, in both directions.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rustix::process::Signal;
use weft_integration::{
    Agent, Pod, PodSpec, Shop,
    objects::plain_namespace,
    shop::{ASK, HTTP, NAMESPACE, finish_load, load},
    testpod::LoadReport,
    wait,
};

/// "At once".
const REFUSED_MAX: Duration = Duration::from_millis(100);
/// A hang shows after the heartbeat's age limit of 5 s, which is counted from its last beat.
const HANG_SHOWS: Duration = Duration::from_secs(8);
const LOAD_TIMEOUT: Duration = Duration::from_secs(60);

/// A client that weft does not capture: what it sends is inbound traffic from somewhere else.
fn outsider(shop: &mut Shop) -> Result<Pod> {
    let pod = shop.node.pod(PodSpec::new("elsewhere", "outsider"))?;
    shop.manifests.put(&plain_namespace("elsewhere"))?;
    shop.manifests.put_pod(&pod)?;
    Ok(pod)
}

fn to_pod(shop: &Shop, port: u16) -> Result<String> {
    Ok(format!("{}:{port}", shop.server("v1-1")?.pod.ipv4()))
}

fn assert_served(report: &LoadReport, count: u64, what: &str) {
    assert_eq!(report.served, count, "{what}: {report:?}");
    assert_eq!(report.statuses.get(&200), Some(&count), "{what}: {report:?}");
}

fn assert_refused(report: &LoadReport, count: u64, what: &str) {
    assert_eq!(report.refused + report.reset, count, "{what}: {report:?}");
    let slowest = report.refused_us_max.max(report.reset_us_max);
    assert!(u128::from(slowest) < REFUSED_MAX.as_micros(), "{what}: {report:?}");
}

/// Both directions with the agent gone.
fn check_gone(shop: &Shop, outsider: &Pod, fail_mode: &str) -> Result<()> {
    let outbound = shop.load(&["--to", &shop.service("web", 80)?, "--connections", "50"])?;
    // The outsider is not captured, so only the server's own fail mode counts.
    let inbound = load(outsider, &["--to", &to_pod(shop, HTTP)?, "--connections", "50"])?;
    if fail_mode == "open" {
        assert_served(&outbound, 50, "outbound");
        assert_served(&inbound, 50, "inbound");
    } else {
        assert_refused(&outbound, 50, "outbound");
        assert_refused(&inbound, 50, "inbound");
    }
    Ok(())
}

fn check_back(shop: &Shop, outsider: &Pod) -> Result<()> {
    let before = shop.agent()?.pod_stats(NAMESPACE, "client")?;
    let inbound_before = shop.agent()?.inbound_connections()?;
    assert_served(&shop.load(&["--to", &shop.service("web", 80)?, "--connections", "50"])?, 50, "outbound, back");
    assert_served(&load(outsider, &["--to", &to_pod(shop, HTTP)?, "--connections", "50"])?, 50, "inbound, back");
    let after = shop.agent()?.pod_stats(NAMESPACE, "client")?;
    assert_eq!(after.outbound_captured - before.outbound_captured, 50);
    assert_eq!(shop.agent()?.inbound_connections()? - inbound_before, 50);
    Ok(())
}

fn killed(fail_mode: &str) -> Result<()> {
    let mut shop = Shop::with_servers(fail_mode, 1, 0)?;
    let outsider = outsider(&mut shop)?;
    shop.start()?;
    check_back(&shop, &outsider)?;
    let before = (shop.agent()?.pod_stats(NAMESPACE, "client")?, shop.agent()?.pod_stats(NAMESPACE, "v1-1")?);
    shop.take_agent()?.kill()?;
    check_gone(&shop, &outsider, fail_mode)?;
    shop.start()?;
    let after = (shop.agent()?.pod_stats(NAMESPACE, "client")?, shop.agent()?.pod_stats(NAMESPACE, "v1-1")?);
    if fail_mode == "open" {
        assert_eq!(after.0.outbound_direct - before.0.outbound_direct, 50, "direct connections are counted");
        // Those of the client arrive at the server too.
        assert_eq!(after.1.inbound_direct - before.1.inbound_direct, 100, "direct connections are counted");
    } else {
        assert_eq!(after.0.outbound_refused - before.0.outbound_refused, 50, "refused connections are counted");
        assert_eq!(after.1.inbound_refused - before.1.inbound_refused, 50, "refused connections are counted");
    }
    check_back(&shop, &outsider)
}

#[test]
fn with_the_agent_killed_open_pods_go_direct() -> Result<()> {
    killed("open")
}

#[test]
fn with_the_agent_killed_closed_pods_are_refused_at_once() -> Result<()> {
    killed("closed")
}

fn hung(fail_mode: &str) -> Result<()> {
    let mut shop = Shop::with_servers(fail_mode, 1, 0)?;
    let outsider = outsider(&mut shop)?;
    shop.start()?;
    check_back(&shop, &outsider)?;
    shop.agent()?.signal(Signal::STOP)?;
    let web = shop.service("web", 80)?;
    wait::until("the hang to show", HANG_SHOWS, || {
        let report = shop.load(&["--to", &web, "--timeout-ms", "200"])?;
        Ok((report.timed_out == 0).then_some(()))
    })?;
    check_gone(&shop, &outsider, fail_mode)?;
    shop.agent()?.signal(Signal::CONT)?;
    wait::until("the agent to be used again", HANG_SHOWS, || {
        let before = shop.agent()?.pod_stats(NAMESPACE, "client")?.outbound_captured;
        shop.load(&["--to", &web, "--timeout-ms", "1000"])?;
        Ok((shop.agent()?.pod_stats(NAMESPACE, "client")?.outbound_captured > before).then_some(()))
    })?;
    check_back(&shop, &outsider)
}

#[test]
fn with_the_agent_hung_open_pods_go_direct() -> Result<()> {
    hung("open")
}

#[test]
fn with_the_agent_hung_closed_pods_are_refused_at_once() -> Result<()> {
    hung("closed")
}

/// 1,500 connections, and what happens to the agent while they are made.
fn through(
    shop: &mut Shop,
    speech: &str,
    port: u16,
    event: impl FnOnce(&mut Shop) -> Result<()>,
) -> Result<LoadReport> {
    let web = shop.service("web", port)?;
    let args = ["--to", &web, "--speech", speech, "--connections", "1500", "--concurrency", "16", "--rate", "400"];
    let mut load = shop.spawn_load(&[&args[..], &["--progress", "10", "--timeout-ms", "5000"]].concat())?;
    load.wait_line("500 connections", LOAD_TIMEOUT, |line| (line == "done 500").then_some(()))?;
    event(shop)?;
    finish_load(&mut load)
}

#[test]
fn a_hand_over_loses_no_connection() -> Result<()> {
    let mut shop = Shop::running("closed")?;
    for (speech, port) in [("http", 80), ("ask", ASK)] {
        let before = shop.agent()?.pod_stats(NAMESPACE, "client")?;
        let old_pid = shop.agent()?.pid();
        let report = through(&mut shop, speech, port, |shop| {
            let new = shop.take_agent()?.hand_over(&shop.manifests)?;
            shop.set_agent(new);
            Ok(())
        })?;
        assert_eq!((report.served, report.lost()), (1500, 0), "{speech}: {report:?}");
        if speech == "http" {
            assert_served(&report, 1500, speech);
        }
        let after = shop.agent()?.pod_stats(NAMESPACE, "client")?;
        assert_eq!(after.outbound_captured - before.outbound_captured, 1500, "{speech}");
        assert_eq!((after.outbound_direct, after.outbound_refused), (0, 0), "{speech}");
        assert_ne!(shop.agent()?.status()?.pid, old_pid, "{speech}");
    }
    Ok(())
}

#[test]
fn after_a_restart_no_connection_is_lost() -> Result<()> {
    for fail_mode in ["open", "closed"] {
        let mut shop = Shop::running(fail_mode)?;
        shop.take_agent()?.kill()?;
        shop.start()?;
        let web = shop.service("web", 80)?;
        let report = shop.load(&["--to", &web, "--connections", "1500", "--concurrency", "16"])?;
        assert_served(&report, 1500, fail_mode);
        let stats = shop.agent()?.pod_stats(NAMESPACE, "client")?;
        assert_eq!(
            (stats.outbound_captured, stats.outbound_direct, stats.outbound_refused),
            (1500, 0, 0),
            "{fail_mode}"
        );
    }
    Ok(())
}

#[test]
fn through_a_kill_and_a_restart_every_connection_is_served_or_told_at_once() -> Result<()> {
    for fail_mode in ["open", "closed"] {
        let mut shop = Shop::running(fail_mode)?;
        let report = through(&mut shop, "http", 80, |shop| {
            shop.take_agent()?.kill()?;
            shop.start()
        })?;
        // What was inside the agent when it was killed ended with it: no more than were made at one time.
        assert!(report.reset <= 16, "{fail_mode}: {report:?}");
        assert_eq!(report.served + report.refused + report.reset, 1500, "{fail_mode}: {report:?}");
        assert_eq!(report.statuses.get(&200), Some(&report.served), "{fail_mode}: {report:?}");
        if fail_mode == "open" {
            assert_eq!(report.refused, 0, "{report:?}");
        } else {
            assert!(report.refused > 0, "{report:?}");
            assert!(u128::from(report.refused_us_max) < REFUSED_MAX.as_micros(), "{report:?}");
        }
    }
    Ok(())
}

/// Pods are taken over one after the other: a client's connections must not be carried to servers that are still waiting for it.
#[test]
fn a_restart_among_many_pods_makes_no_error_of_its_own() -> Result<()> {
    let mut shop = Shop::with_servers("closed", 10, 0)?;
    shop.start()?;
    for round in 0..3 {
        let report = through(&mut shop, "http", 80, |shop| {
            shop.take_agent()?.kill()?;
            shop.start()
        })?;
        assert_eq!(report.statuses.get(&200), Some(&report.served), "round {round}: {report:?}");
        assert_eq!(report.served + report.refused + report.reset, 1500, "round {round}: {report:?}");
    }
    Ok(())
}

#[test]
fn a_connection_that_is_being_served_survives_a_hand_over() -> Result<()> {
    let mut shop = Shop::running("closed")?;
    let url = format!("http://{}/stream/60", shop.service("web", 80)?);
    // 60 chunks take 3 s.
    let mut command = shop.client.command("curl");
    command.args(["-sS", "--no-buffer", &url]);
    let mut curl = shop.client.spawn(command)?;
    curl.wait_line("the first chunk", LOAD_TIMEOUT, |line| (line == "chunk 0").then_some(()))?;
    let new = shop.take_agent()?.hand_over(&shop.manifests)?;
    shop.set_agent(new);
    let output = curl.finish(LOAD_TIMEOUT)?;
    assert_eq!(output.lines().count(), 60, "{output}");
    Ok(())
}

#[test]
fn sigterm_finishes_what_is_being_served() -> Result<()> {
    let mut shop = Shop::running("open")?;
    let url = format!("http://{}/stream/40", shop.service("web", 80)?);
    let mut command = shop.client.command("curl");
    command.args(["-sS", "--no-buffer", &url]);
    let mut curl = shop.client.spawn(command)?;
    curl.wait_line("the first chunk", LOAD_TIMEOUT, |line| (line == "chunk 0").then_some(()))?;
    let begin = Instant::now();
    let status = shop.take_agent()?.stop()?;
    ensure!(status.success(), "the agent ended with {status}");
    assert!(begin.elapsed() < Duration::from_secs(20), "it took {:?}", begin.elapsed());
    let output = curl.finish(LOAD_TIMEOUT)?;
    assert_eq!(output.lines().count(), 40, "{output}");
    Ok(())
}

#[test]
fn a_fail_mode_can_be_changed_while_traffic_flows() -> Result<()> {
    let mut shop = Shop::running("open")?;
    let report = through(&mut shop, "http", 80, |shop| {
        shop.manifests.put(&weft_integration::objects::meshed_namespace_failing(NAMESPACE, "closed"))?;
        let agent: &Agent = shop.agent()?;
        agent.wait_status("fail mode closed", |status| {
            status.pods.iter().all(|pod| pod.fail_mode == "closed" && pod.captured).then_some(())
        })
    })?;
    assert_served(&report, 1500, "through the change");
    shop.take_agent()?.kill()?;
    assert_refused(&shop.load(&["--to", &shop.service("web", 80)?, "--connections", "20"])?, 20, "after the change");
    Ok(())
}
