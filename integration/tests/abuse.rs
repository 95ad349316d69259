//! Clients that abuse HTTP/2: answered within limits that have names, while a neighbour on the same node is served as before.
#![allow(clippy::print_stdout, reason = "figures are printed for people")]

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, ensure};
use weft_integration::{
    PodSpec, Process, Shop, command,
    objects::ServicePort,
    programs::nginx,
    shop::{NAMESPACE, finish_load, spawn_load},
    testpod::flood::FloodReport,
    wait,
};

/// How long each abuse lasts.
const ABUSE: Duration = Duration::from_secs(2);
/// The neighbour's requests a second, and how many of them fit beside one abuse.
const NEIGHBOUR_RATE: &str = "200";
const NEIGHBOUR_REQUESTS: &str = "400";
/// What the neighbour's 99th percentile may rise to, against that without abuse. One process floods as fast as it can on a machine
/// that has few cores, so this holds what is grossly wrong; the ratio itself is printed.
const NEIGHBOUR_RATIO_MAX: f64 = 10.0;
/// Below this a ratio says nothing.
const NEIGHBOUR_FLOOR: Duration = Duration::from_millis(50);
/// What the agent's memory may grow by in all, KiB.
const MEMORY_GROWTH_MAX_KIB: u64 = 64 << 10;

/// An abuse, and the limit that it meets; `None`: it is an error of the connection, or is answered with a status.
const ABUSES: [(&str, Option<&str>); 14] = [
    ("rapid-reset", Some("h2_resets")),
    ("made-you-reset", None),
    ("continuation", Some("h2_continuations")),
    ("empty-data", Some("h2_small_frames")),
    ("settings", Some("h2_overhead_frames")),
    ("ping", Some("h2_overhead_frames")),
    ("priority", Some("h2_overhead_frames")),
    ("window-update", Some("h2_overhead_frames")),
    ("window-overflow", None),
    ("tiny-window", Some("h2_overhead_frames")),
    ("hpack-bomb", Some("head_bytes")),
    ("header-list", None),
    ("oversized-frame", None),
    ("too-many-streams", Some("h2_streams")),
];

fn rss_kib(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(rss.trim().trim_end_matches(" kB").parse()?)
}

fn neighbour(shop: &Shop) -> Result<Process> {
    let to = shop.service("web", 80)?;
    let args = ["--to", &to, "--connections", NEIGHBOUR_REQUESTS, "--concurrency", "32", "--rate", NEIGHBOUR_RATE];
    spawn_load(&shop.client, &[&args[..], &["--speech", "keep-http"]].concat())
}

fn neighbour_p99(process: &mut Process) -> Result<Duration> {
    let report = finish_load(process)?;
    ensure!(report.statuses.get(&200) == Some(&report.connections), "the neighbour was not served: {report:?}");
    Ok(Duration::from_micros(report.served_us_p99))
}

#[test]
fn abuse_is_answered_within_limits_beside_a_neighbour() -> Result<()> {
    let mut shop = Shop::with_servers("open", 1, 0)?;
    let attacker = shop.node.pod(PodSpec::new(NAMESPACE, "attacker"))?;
    shop.manifests.put_pod(&attacker)?;
    shop.add_program("nginx", &[ServicePort::named("main", 81, nginx::HTTP2)], nginx::start)?;
    shop.start()?;
    shop.agent()?.wait_captured(NAMESPACE, "attacker")?;
    let (to, pid) = (shop.service("nginx", 81)?, shop.agent()?.pid());
    let limits = |name: &str| shop.agent()?.metric("weft_limit_reached_total", &[&format!("limit=\"{name}\"")]);
    neighbour_p99(&mut neighbour(&shop)?)?;
    let before = rss_kib(pid)?;
    let mut wrong = BTreeMap::new();
    for (abuse, limit) in ABUSES {
        let calm = neighbour_p99(&mut neighbour(&shop)?)?;
        let reached = limit.map(limits).transpose()?;
        let mut beside = neighbour(&shop)?;
        let mut flood = attacker.testpod()?;
        flood.args(["flood", abuse, "--to", &to, "--millis", &ABUSE.as_millis().to_string()]);
        let report: FloodReport = serde_json::from_str(&command::output(&mut flood)?)?;
        let disturbed = neighbour_p99(&mut beside)?;
        let ratio = disturbed.as_secs_f64() / calm.as_secs_f64();
        println!(
            "{abuse}: neighbour's p99 {calm:?}, beside it {disturbed:?} ({ratio:.2}); RSS {} KiB; {report:?}",
            rss_kib(pid)?
        );
        if disturbed > NEIGHBOUR_FLOOR && ratio > NEIGHBOUR_RATIO_MAX {
            wrong.insert(abuse, format!("the neighbour waits {ratio:.1} times as long"));
        }
        let answered = report.ended + report.goaways.values().sum::<u64>() + report.resets.values().sum::<u64>();
        if answered + report.responses == 0 {
            wrong.insert(abuse, "nothing was answered".to_owned());
        }
        if let (Some(limit), Some(reached)) = (limit, reached) {
            let named = wait::until("the limit to be counted", Duration::from_secs(3), || {
                Ok((limits(limit)? > reached).then_some(()))
            });
            if named.is_err() {
                wrong.insert(abuse, format!("{limit} was not counted"));
            }
        }
    }
    let after = rss_kib(pid)?;
    println!("RSS {before} KiB before, {after} KiB after");
    ensure!(wrong.is_empty(), "{wrong:#?}");
    ensure!(after <= before + MEMORY_GROWTH_MAX_KIB, "memory grew from {before} to {after} KiB");
    Ok(())
}
