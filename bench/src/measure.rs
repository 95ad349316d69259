//! One measurement of one row.

use std::{ops::Add as _, path::Path, time::Duration};

use anyhow::{Context, Result};

use crate::{
    accounting::{CpuTime, Memory},
    limits::{self, Effort},
    load::LoadReport,
    report::{MemorySample, Sample},
    row::Row,
    stand::{Stand, Subject},
};

/// Measures at saturation, then at the steady rate.
///
/// # Errors
/// When a run fails.
pub fn sample(stand: &Stand, row: &Row, effort: &Effort, round: usize) -> Result<Sample> {
    let saturated = run(stand, row, None, effort.saturated, effort.warm_up, round)?;
    let steady = run(stand, row, Some(limits::STEADY_RATE), effort.steady, effort.warm_up, round)?;
    let (cpu_sat, path_sat) = per_request(&saturated, stand.subject())?;
    let (cpu_steady, path_steady) = per_request(&steady, stand.subject())?;
    let rps_max = saturated.requests as f64 * 1e6 / saturated.window_us as f64;
    let answers = saturated.backends.values().chain(steady.backends.values()).sum::<u64>();
    let first = [&saturated, &steady].iter().filter_map(|report| report.backends.get(&'a')).sum::<u64>();
    Ok(Sample {
        cpu_us_sat: cpu_sat[0],
        cpu_user_us_sat: cpu_sat[1],
        cpu_kernel_us_sat: cpu_sat[2],
        cpu_us_2k: cpu_steady[0],
        cpu_user_us_2k: cpu_steady[1],
        cpu_kernel_us_2k: cpu_steady[2],
        path_cpu_us_sat: path_sat,
        path_cpu_us_2k: path_steady,
        p50_us: steady.p50_us as f64,
        p99_us: steady.p99_us as f64,
        rps_max,
        proxy_busy: rps_max * cpu_sat[0] / 1e6,
        share_percent: first as f64 * 100.0 / answers.max(1) as f64,
        errors: saturated.errors + steady.errors + steady.unanswered,
    })
}

fn run(
    stand: &Stand,
    row: &Row,
    rate: Option<u32>,
    window: Duration,
    warm_up: Duration,
    round: usize,
) -> Result<LoadReport> {
    let mut args = vec![
        format!("--warm-up-ms={}", warm_up.as_millis()),
        format!("--window-ms={}", window.as_millis()),
        // Every round has arrivals of its own, and every row of a round the same.
        format!("--seed={}", round + 1),
    ];
    args.extend(rate.map(|rate| format!("--rate={rate}")));
    stand.load(row.way, &args, warm_up + window, &[]).with_context(|| format!("row {}", row.name))
}

/// CPU time of the proxy for one request (total, user, kernel), and of the whole path: client, proxy and backends.
fn per_request(report: &LoadReport, subject: Subject) -> Result<([f64; 3], f64)> {
    let [proxy, client, backends @ ..] = report.cpu.as_slice() else {
        anyhow::bail!("the load generator did not report CPU time");
    };
    let (backends, far) = backends.split_at(backends.len() - usize::from(subject.crosses()));
    let sum = |times: &[CpuTime]| times.iter().copied().fold(CpuTime::default(), CpuTime::add);
    let (backends, proxy) = (sum(backends), *proxy + sum(far));
    let subject = if subject == Subject::Direct { backends } else { proxy };
    let each = |us: u64| us as f64 / report.requests.max(1) as f64;
    let path = each((proxy + *client + backends).usage_us);
    Ok(([each(subject.usage_us), each(subject.user_us), each(subject.system_us)], path))
}

/// Memory without connections and with many; to be taken before the stand has carried anything else.
///
/// # Errors
/// When connections cannot be opened.
pub fn memory(stand: &Stand, row: &Row) -> Result<MemorySample> {
    // One request, so that what is made at the first one is there.
    drop(stand.hold(row.way, 1)?);
    let idle = stand.memory()?;
    let mut held = [Memory::default(); 2];
    for (memory, connections) in held.iter_mut().zip(limits::HELD_CONNECTIONS) {
        let holder = stand.hold(row.way, connections)?;
        *memory = stand.memory()?;
        drop(holder);
        stand.wait_released()?;
    }
    Ok(MemorySample { idle, held_1k: held[0], held_5k: held[1] })
}

/// System calls of the proxy for one request, counted by the kernel's own trace point in a run of its own; `None` where perf does not
/// work.
///
/// # Errors
/// When the run fails.
pub fn syscalls(stand: &Stand, row: &Row, dir: &Path) -> Result<Option<f64>> {
    let processes = match stand.subject() {
        Subject::Direct => stand.backend_processes()?,
        Subject::Weft | Subject::WeftNodes | Subject::EnvoyNodes | Subject::Peer(_) => stand.proxy_processes()?,
    };
    let file = dir.join("perf.csv");
    let pids: Vec<String> = processes.iter().map(ToString::to_string).collect();
    let file_name = file.to_string_lossy().into_owned();
    let pids = pids.join(",");
    let wrapper = ["perf", "stat", "-x", ",", "-e", EVENT, "-o", &file_name, "-p", &pids, "--"].map(str::to_owned);
    let window = Duration::from_secs(20);
    let args = [
        "--warm-up-ms=0".to_owned(),
        format!("--window-ms={}", window.as_millis()),
        format!("--requests={}", limits::COUNTED_REQUESTS),
    ];
    let Ok(report) = stand.load(row.way, &args, window, &wrapper) else { return Ok(None) };
    let text = std::fs::read_to_string(&file).unwrap_or_default();
    Ok(counted(&text).map(|count| count as f64 / report.requests.max(1) as f64))
}

const EVENT: &str = "raw_syscalls:sys_enter";

/// The count in perf's comma-separated output.
fn counted(text: &str) -> Option<u64> {
    text.lines().find(|line| line.contains(EVENT))?.split(',').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn perfs_count_is_read() {
        let text = "# started on Sat Nov 21 10:05:55 2026\n\n29,,raw_syscalls:sys_enter,862672,100.00,,\n";
        assert_eq!(counted(text), Some(29));
        assert_eq!(counted("<not supported>,,raw_syscalls:sys_enter,0,100.00,,\n"), None);
    }

    #[test]
    fn cpu_time_is_the_backends_where_there_is_no_proxy() {
        let time = |usage_us| CpuTime { usage_us, user_us: usage_us / 4, system_us: usage_us - usage_us / 4 };
        let report =
            LoadReport { requests: 10, cpu: vec![time(200), time(80), time(40), time(20)], ..LoadReport::default() };
        assert_eq!(per_request(&report, Subject::Weft).expect("cpu"), ([20.0, 5.0, 15.0], 34.0));
        assert_eq!(per_request(&report, Subject::Direct).expect("cpu"), ([6.0, 1.5, 4.5], 34.0));
        let report = LoadReport { cpu: [report.cpu, vec![time(60)]].concat(), ..report };
        assert_eq!(per_request(&report, Subject::WeftNodes).expect("cpu"), ([26.0, 6.5, 19.5], 40.0));
        assert!(per_request(&LoadReport::default(), Subject::Direct).is_err());
    }
}
