//! A thousand connections for a while: no error, and afterwards nothing is left of them. `WEFT_SOAK_SECONDS` makes it longer.
#![allow(clippy::print_stdout, reason = "figures are printed for people")]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_integration::{Shop, agent, command, objects::ServicePort, programs::nginx, shop::NAMESPACE, wait};

/// Says how long each load takes.
const SECONDS_VARIABLE: &str = "WEFT_SOAK_SECONDS";
/// Without it: enough that every connection has been used often.
const SECONDS: u32 = 8;
/// Rounds of the load at most, until one leaves memory as it was: what the first ones need is kept, and what the allocator keeps between
/// its blocks grows slowly to where it stays.
const ROUNDS_MAX: usize = 8;
const CONNECTIONS: &str = "1000";
/// What memory may grow by in a round.
const GROWTH_MAX: f64 = 1.05;
/// Until nothing is left.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(30);

fn seconds() -> Result<u32> {
    match std::env::var(SECONDS_VARIABLE) {
        Ok(text) => text.parse().with_context(|| format!("{SECONDS_VARIABLE} is {text:?}, not a number of seconds")),
        Err(_) => Ok(SECONDS),
    }
}

/// What the agent's process has.
#[derive(Clone, Copy, Debug)]
struct Held {
    rss_kib: u64,
    files: usize,
}

fn held(pid: u32) -> Result<Held> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(Held {
        rss_kib: rss.trim().trim_end_matches(" kB").parse()?,
        files: std::fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
    })
}

/// Takes the server out of its Service, which ends what the pool keeps, waits until no connection is left and as many files are open
/// as at the beginning, and puts it back.
fn settled(shop: &mut Shop, files: usize) -> Result<Held> {
    let (absent, present) = {
        let pod = shop.program("nginx")?.1;
        (pod.object(false), pod.object(true))
    };
    shop.manifests.put(&absent)?;
    let pid = shop.agent()?.pid();
    let settled =
        wait::until(&format!("the agent to have {files} open files and no connection"), SETTLE_TIMEOUT, || {
            let flows: Vec<serde_json::Value> = serde_json::from_str(&agent::weft(&shop.node, &["flows"])?)?;
            let open = shop.agent()?.metric("weft_connections_open", &[])?;
            let held = held(pid)?;
            ensure!(
                held.files <= files && flows.is_empty() && open == 0.0,
                "{held:?}, {} flows, {open} open",
                flows.len()
            );
            Ok(Some(held))
        })?;
    shop.manifests.put(&present)?;
    shop.agent()?.wait_endpoints(NAMESPACE, "nginx", 1)?;
    Ok(settled)
}

/// Runs the load again and again, until a round leaves what the agent holds as it was before.
fn soak(name: &str, port: u16, load: impl Fn(&Shop, &str, u32) -> Result<u64>) -> Result<()> {
    let ports = [ServicePort::named("main", 80, nginx::HTTP1), ServicePort::named("other", 81, nginx::HTTP2)];
    let mut shop = Shop::empty("open")?;
    shop.add_program("nginx", &ports, nginx::start)?;
    shop.start()?;
    let to = shop.service("nginx", port)?;
    let begin = held(shop.agent()?.pid())?;
    let (mut before, mut growth) = (begin, f64::INFINITY);
    for round in 1..=ROUNDS_MAX {
        let requests = load(&shop, &to, seconds()?)?;
        let during = held(shop.agent()?.pid())?;
        let after = settled(&mut shop, begin.files)?;
        growth = after.rss_kib as f64 / before.rss_kib as f64;
        println!(
            "{name}: round {round}: {requests} requests on {CONNECTIONS} connections in {} s, 0 errors; RSS before {} KiB, right after {} KiB, \
             settled {} KiB ({growth:.3}); open files {} and {}",
            seconds()?,
            before.rss_kib,
            during.rss_kib,
            after.rss_kib,
            begin.files,
            after.files,
        );
        before = after;
        if growth <= GROWTH_MAX {
            break;
        }
    }
    let agent = shop.agent()?;
    println!(
        "{name}: {} dials, {} connections that the pool had no room for, {} resets, {} answers of the mesh",
        agent.metric("weft_dials_total", &["result=\"connected\""])?,
        agent.metric("weft_limit_reached_total", &["limit=\"pool_idle_per_key\""])?,
        agent.metric("weft_connections_reset_total", &[])?,
        agent.metric("weft_local_replies_total", &[])?,
    );
    ensure!(growth <= GROWTH_MAX, "memory still grows after {ROUNDS_MAX} rounds: by {growth:.3}, {before:?}");
    Ok(())
}

#[test]
fn a_thousand_connections_of_http_1_leave_nothing_behind() -> Result<()> {
    soak("wrk", 80, |shop, to, seconds| {
        let mut wrk = shop.client.command("wrk");
        wrk.args(["-t", "1", "-c", CONNECTIONS, "-d", &format!("{seconds}s"), "--timeout", "10s"]);
        let said = command::output(wrk.arg(format!("http://{to}/")))?;
        // It names errors only if there were any.
        ensure!(!said.contains("Socket errors") && !said.contains("Non-2xx"), "{said}");
        let requests = said.lines().find_map(|line| line.trim().split_once(" requests in ")?.0.parse().ok());
        requests.with_context(|| format!("wrk did not say how many requests it made:\n{said}"))
    })
}

#[test]
fn a_thousand_connections_of_http_2_leave_nothing_behind() -> Result<()> {
    soak("h2load", 81, |shop, to, seconds| {
        let mut h2load = shop.client.command("h2load");
        h2load.args(["-t", "1", "-c", CONNECTIONS, "-m", "4", "-D", &seconds.to_string()]);
        let said = command::output(h2load.arg(format!("http://{to}/")))?;
        let line = said.lines().find(|line| line.starts_with("requests: ")).context("no requests")?;
        let count = |word: &str| {
            line.split(", ").find_map(|part| {
                part.strip_prefix("requests: ").unwrap_or(part).strip_suffix(word)?.trim().parse::<u64>().ok()
            })
        };
        ensure!(count("failed") == Some(0) && count("errored") == Some(0) && count("timeout") == Some(0), "{said}");
        let statuses = said.lines().find(|line| line.starts_with("status codes: ")).context("no statuses")?;
        ensure!(statuses.contains(" 0 3xx, 0 4xx, 0 5xx"), "{said}");
        count("succeeded").with_context(|| format!("h2load did not say how many requests it made:\n{said}"))
    })
}
