//! The whole run: builds the stands, measures all rows in turns, reports.
#![allow(clippy::print_stdout, reason = "the person who started it wants to see how far it is")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use weft_integration::agent;

use crate::{
    accounting,
    limits::{self, Effort},
    measure,
    peer::{Peer, Programs},
    report::{Measured, Report},
    row::{ROWS, Row},
    stand::{Stand, Subject},
};

/// Of a machine that nobody else uses: kernel threads and the like.
const QUIET_PERCENT: f64 = 5.0;

/// Arguments of `run`.
#[derive(Clone, Debug, clap::Args)]
pub struct RunArgs {
    /// Fewer and shorter rounds.
    #[arg(long)]
    quick: bool,
    /// Write the report here, as JSON.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Write the tables here, as Markdown.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Directory of `weft-agent` and `weft`.
    #[arg(long, value_name = "DIR")]
    bin_dir: PathBuf,
    /// Results of micro-benchmarks that go into the report.
    #[arg(long, value_name = "FILE")]
    micro: Option<PathBuf>,
    /// Only rows whose name contains this; may be given again.
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Peers.
    #[command(flatten)]
    programs: Programs,
}

/// Runs.
///
/// # Errors
/// When a stand or a run fails, or the figures are not to be used.
pub fn run(args: &RunArgs) -> Result<()> {
    let effort = if args.quick { Effort::QUICK } else { Effort::FULL };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if cores < 2 {
        bail!("two cores are needed: one for the proxy, one for everything else");
    }
    agent::set_binary_dir(&args.bin_dir);
    accounting::sweep();
    stay_off_the_proxys_core()?;
    let rows: Vec<Row> = ROWS
        .into_iter()
        .filter(|row| args.only.is_empty() || args.only.iter().any(|text| row.name.contains(text.as_str())))
        .collect();
    if rows.is_empty() {
        bail!("no row has a name that contains {:?}", args.only);
    }
    let micro: Value = match &args.micro {
        Some(path) => {
            let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            serde_json::from_str(&text).with_context(|| format!("cannot read {}", path.display()))?
        }
        None => json!({}),
    };
    let mut machine = machine(&args.programs);
    say(&format!("{} on {}", machine["cpu"].as_str().unwrap_or("?"), machine["kernel"].as_str().unwrap_or("?")));
    say(&format!("{} rows, {} rounds, about {} in all.", rows.len(), effort.rounds, about(expected(&effort, &rows))));

    let busy = busy_with_others()?;
    machine["busy_before_percent"] = json!(busy);
    if busy > QUIET_PERCENT {
        say(&format!(
            "WARNING: other programs use {busy:.0} % of this machine. Figures will be too high, and will not repeat."
        ));
    }
    let (start, before) = (Instant::now(), accounting::Cores::now()?);
    let measured = measure_all(&rows, &effort, &args.programs);
    accounting::sweep();
    let measured = measured?;
    machine["stolen_percent"] = json!(accounting::Cores::now()?.since(before).1);
    let report = Report::new(&measured, machine, micro);
    println!("\n{}", report.markdown());
    if let Some(verdict) = report.verdict() {
        say(&verdict);
    }
    say(&format!("It took {}.", about(start.elapsed())));
    if let Some(path) = &args.markdown {
        write(path, &report.markdown())?;
    }
    if let Some(path) = &args.report {
        write(path, &(serde_json::to_string_pretty(&report)? + "\n"))?;
    }
    if !report.problems.is_empty() {
        bail!("these figures are not to be used: {}", report.problems.join("; "));
    }
    Ok(())
}

fn measure_all(rows: &[Row], effort: &Effort, programs: &Programs) -> Result<Vec<(Row, Measured)>> {
    let mut measured: Vec<(Row, Measured)> = rows.iter().map(|row| (*row, Measured::default())).collect();
    let mut stands: Vec<Stand> = Vec::new();
    for (row, found) in &mut measured {
        if stands.iter().any(|stand| stand.subject() == row.subject) {
            continue;
        }
        say(&format!(
            "Building the stand for \"{}\": a client pod, two backend pods, {}.",
            row.name,
            what(row.subject)
        ));
        let name = stands.len().to_string();
        let stand = Stand::build(row.subject, &name, programs).with_context(|| format!("stand for {}", row.name))?;
        if row.subject != Subject::Direct && !row.subject.crosses() {
            let memory = measure::memory(&stand, row).with_context(|| format!("memory of {}", row.name))?;
            say(&format!(
                "   resident: {:.1} MiB idle, {:.1} with {} connections, {:.1} with {}",
                mebibytes(memory.idle.rss),
                mebibytes(memory.held_1k.rss),
                limits::HELD_CONNECTIONS[0],
                mebibytes(memory.held_5k.rss),
                limits::HELD_CONNECTIONS[1],
            ));
            found.memory = Some(memory);
        }
        stands.push(stand);
    }
    let stand_of = |row: &Row| stands.iter().find(|stand| stand.subject() == row.subject).context("no stand");
    let scratch = tempfile::tempdir().context("cannot make a directory")?;
    for (row, found) in &mut measured {
        found.syscalls = measure::syscalls(stand_of(row)?, row, scratch.path())?;
    }
    if measured.iter().all(|(_, found)| found.syscalls.is_none()) {
        say("System calls are not counted: perf does not work here.");
    }
    for round in 0..effort.rounds {
        say(&format!("Round {} of {}", round + 1, effort.rounds));
        let mut turn: Vec<&mut (Row, Measured)> = measured.iter_mut().collect();
        // To and fro, so that no row always follows the same one.
        if round % 2 == 1 {
            turn.reverse();
        }
        for (row, found) in turn {
            let sample = measure::sample(stand_of(row)?, row, effort, round)?;
            say(&format!(
                "   {:<20} {:>6.1} µs CPU/request saturated ({:.0}k/s), {:>6.1} µs at {}/s, p50 {:.0} µs, p99 {:.0} µs",
                row.name,
                sample.cpu_us_sat,
                sample.rps_max / 1e3,
                sample.cpu_us_2k,
                limits::STEADY_RATE,
                sample.p50_us,
                sample.p99_us
            ));
            found.samples.push(sample);
        }
    }
    Ok(measured)
}

fn what(subject: Subject) -> &'static str {
    match subject {
        Subject::Direct => "nothing between them",
        Subject::Weft => "weft's agent",
        Subject::WeftNodes => "two nodes with weft's agents, and mutual TLS between them",
        Subject::EnvoyNodes => "two nodes with an Envoy each, and mutual TLS between them",
        Subject::Peer(Peer::Envoy) => "Envoy",
        Subject::Peer(Peer::Nginx) => "nginx",
        Subject::Peer(Peer::Haproxy) => "haproxy",
        Subject::Peer(Peer::Tpc) => "a bare hyper proxy",
        Subject::Peer(Peer::Raw) => "a bare epoll proxy",
        Subject::Peer(Peer::Copy) => "a program that copies bytes",
    }
}

/// Runs, and what starting processes and opening held connections takes, which was measured.
fn expected(effort: &Effort, rows: &[Row]) -> Duration {
    const PROCESS_START: Duration = Duration::from_millis(150);
    const STAND: Duration = Duration::from_secs(6);
    let sample = 2 * (effort.warm_up + PROCESS_START) + effort.saturated + effort.steady;
    let rows = u32::try_from(rows.len()).unwrap_or(u32::MAX);
    sample * rows * u32::try_from(effort.rounds).unwrap_or(u32::MAX) + STAND * rows
}

/// How much of the machine others use, percent, while the bench does nothing.
fn busy_with_others() -> Result<f64> {
    const LOOK: Duration = Duration::from_secs(2);
    let before = accounting::Cores::now()?;
    // What is measured is this very time.
    std::thread::sleep(LOOK);
    let (busy, stolen) = accounting::Cores::now()?.since(before);
    Ok(busy + stolen)
}

/// The bench itself waits most of the time; what it does not wait for must not be on the proxy's core.
fn stay_off_the_proxys_core() -> Result<()> {
    let mut cores = rustix::thread::CpuSet::new();
    cores.set(limits::LOAD_CORE);
    rustix::thread::sched_setaffinity(None, &cores).context("cannot choose a core")
}

fn machine(programs: &Programs) -> Value {
    let uname = rustix::system::uname();
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':')).map(|(_, name)| name);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory = memory.lines().next().and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    let congestion = fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").unwrap_or_default();
    let version = |peer: Peer| peer.version(programs).unwrap_or_else(|| "unknown".to_owned());
    json!({
        "cores": cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
        "cpu": cpu.unwrap_or("unknown").trim(),
        "kernel": uname.release().to_string_lossy(),
        "memory_gib": memory.map(|kib| kib as f64 / f64::from(1 << 20)),
        "tcp_congestion_control": congestion.trim(),
        "commit": commit(),
        "envoy": version(Peer::Envoy),
        "nginx": version(Peer::Nginx),
        "haproxy": version(Peer::Haproxy),
    })
}

/// Of the sources that are here; `None` outside of a repository.
fn commit() -> Option<String> {
    let output = Command::new("git")
        .args(["describe", "--always", "--dirty"])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")))
        .output()
        .ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn about(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds < 100 { format!("{seconds} s") } else { format!("{} min", (seconds + 30) / 60) }
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn say(text: &str) {
    println!("{text}");
}
