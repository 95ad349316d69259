//! What was measured, as JSON for programs and as a table for people.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    accounting::Memory,
    limits,
    row::{DIRECT, ENVOY, Row, WEFT},
};

const BYTES_PER_MB: f64 = 1024.0 * 1024.0;

/// One row in one round, or the medians of all rounds. Times are in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// CPU time of the proxy for one request at saturation. In the row without a proxy: of the backend.
    pub cpu_us_sat: f64,
    /// Of that, in user mode.
    pub cpu_user_us_sat: f64,
    /// Of that, in the kernel.
    pub cpu_kernel_us_sat: f64,
    /// The same at the steady rate.
    pub cpu_us_2k: f64,
    /// As above.
    pub cpu_user_us_2k: f64,
    /// As above.
    pub cpu_kernel_us_2k: f64,
    /// CPU time of client, proxy and backends together for one request.
    pub path_cpu_us_sat: f64,
    /// As above.
    pub path_cpu_us_2k: f64,
    /// Latency at the steady rate.
    pub p50_us: f64,
    /// Latency at the steady rate.
    pub p99_us: f64,
    /// Requests a second at saturation.
    pub rps_max: f64,
    /// How much of its core the proxy used at saturation; well below 1 means that the load generator was the limit.
    pub proxy_busy: f64,
    /// Answers of the first backend, percent.
    pub share_percent: f64,
    /// Requests that went wrong; of all rounds, where the others are medians.
    pub errors: u64,
}

impl Sample {
    fn medians(rounds: &[Self]) -> Self {
        let figure = |of: fn(&Self) -> f64| median(rounds.iter().map(of));
        Self {
            cpu_us_sat: figure(|round| round.cpu_us_sat),
            cpu_user_us_sat: figure(|round| round.cpu_user_us_sat),
            cpu_kernel_us_sat: figure(|round| round.cpu_kernel_us_sat),
            cpu_us_2k: figure(|round| round.cpu_us_2k),
            cpu_user_us_2k: figure(|round| round.cpu_user_us_2k),
            cpu_kernel_us_2k: figure(|round| round.cpu_kernel_us_2k),
            path_cpu_us_sat: figure(|round| round.path_cpu_us_sat),
            path_cpu_us_2k: figure(|round| round.path_cpu_us_2k),
            p50_us: figure(|round| round.p50_us),
            p99_us: figure(|round| round.p99_us),
            rps_max: figure(|round| round.rps_max),
            proxy_busy: figure(|round| round.proxy_busy),
            share_percent: figure(|round| round.share_percent),
            errors: rounds.iter().map(|round| round.errors).sum(),
        }
    }
}

/// Memory of one row.
#[derive(Clone, Copy, Debug)]
pub struct MemorySample {
    /// Without connections.
    pub idle: Memory,
    /// With 1,000 clients connected.
    pub held_1k: Memory,
    /// With 5,000.
    pub held_5k: Memory,
}

/// Everything about one row.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// One for each round.
    pub samples: Vec<Sample>,
    /// Taken once.
    pub memory: Option<MemorySample>,
    /// Taken once.
    pub syscalls: Option<f64>,
}

/// A row of the report. Memory is in MiB.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ReportRow {
    /// Name.
    pub name: String,
    /// Medians of `n` rounds.
    #[serde(flatten)]
    pub medians: Sample,
    /// Resident without connections, with 1,000 and with 5,000.
    pub rss_idle_mb: Option<f64>,
    /// As above.
    pub rss_1k_mb: Option<f64>,
    /// As above.
    pub rss_5k_mb: Option<f64>,
    /// Charged by the memory controller, kernel memory included.
    pub memory_current_idle_mb: Option<f64>,
    /// As above.
    pub memory_current_1k_mb: Option<f64>,
    /// As above.
    pub memory_current_5k_mb: Option<f64>,
    /// Of that, socket buffers.
    pub sock_idle_mb: Option<f64>,
    /// As above.
    pub sock_1k_mb: Option<f64>,
    /// As above.
    pub sock_5k_mb: Option<f64>,
    /// System calls of the proxy for one request, at saturation.
    pub syscalls: Option<f64>,
    /// `cpu_us_sat` divided by Envoy's, round by round.
    pub ratio_envoy_sat: Option<f64>,
    /// `cpu_us_2k` divided by Envoy's, round by round.
    pub ratio_envoy_2k: Option<f64>,
    /// `path_cpu_us_2k` divided by that of the row without a proxy, round by round.
    pub ratio_direct: Option<f64>,
    /// `p50_us` divided by that of the row without a proxy, round by round.
    pub ratio_direct_p50: Option<f64>,
    /// Rounds.
    pub n: usize,
    /// (max − min) / median of `cpu_us_sat` or `cpu_us_2k`, whichever is larger.
    pub spread: f64,
    /// Smallest and largest value of each figure.
    pub ranges: BTreeMap<String, [f64; 2]>,
}

/// The whole report.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The table.
    pub rows: Vec<ReportRow>,
    /// Micro-benchmarks, by name: `median_ns`, `instructions`.
    pub micro: Value,
    /// Where it was measured.
    pub machine: Value,
    /// What was not as it should be. Figures of such a run are not to be used.
    pub problems: Vec<String>,
}

impl Report {
    /// Puts it together.
    #[must_use]
    pub fn new(measured: &[(Row, Measured)], machine: Value, micro: Value) -> Self {
        let find = |name: &str| measured.iter().find(|(row, _)| row.name == name).map(|(_, found)| found);
        let mut rows = Vec::new();
        let mut problems = Vec::new();
        for (row, found) in measured {
            let envoy = row.envoy.and_then(find);
            let reported = report_row(row.name, found, envoy, find(DIRECT));
            if reported.medians.errors > 0 {
                problems.push(format!("{}: {} requests went wrong", row.name, reported.medians.errors));
            }
            let wanted = f64::from(limits::FIRST_SHARE_PERCENT);
            if row.splits && (reported.medians.share_percent - wanted).abs() > limits::SHARE_TOLERANCE_PERCENT {
                problems.push(format!(
                    "{}: the first backend got {:.1} % of the requests, not {wanted} %",
                    row.name, reported.medians.share_percent
                ));
            }
            rows.push(reported);
        }
        Self { rows, micro, machine, problems }
    }

    /// A row by name.
    #[must_use]
    pub fn row(&self, name: &str) -> Option<&ReportRow> {
        self.rows.iter().find(|row| row.name == name)
    }

    /// The bar: what of Envoy's CPU time for a request weft may use, and what it does.
    #[must_use]
    pub fn verdict(&self) -> Option<String> {
        const BAR: f64 = 0.65;
        let weft = self.row(WEFT)?;
        let (sat, steady) = (weft.ratio_envoy_sat?, weft.ratio_envoy_2k?);
        let met = if sat <= BAR && steady <= BAR { "met" } else { "NOT met" };
        Some(format!(
            "{WEFT} uses {sat:.2} of the CPU time of {ENVOY} at saturation and {steady:.2} at {} requests/s; the bar of {BAR} is {met}.",
            limits::STEADY_RATE
        ))
    }

    /// The tables, as Markdown that is aligned for reading as it is.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut text = table(&COST, &self.rows);
        text.push('\n');
        let with_memory: Vec<ReportRow> = self.rows.iter().filter(|row| row.rss_idle_mb.is_some()).cloned().collect();
        text.push_str(&table(&MEMORY, &with_memory));
        if let Some(micro) = self.micro.as_object().filter(|micro| !micro.is_empty()) {
            text.push('\n');
            text.push_str(&micro_table(micro));
        }
        text
    }
}

fn report_row(name: &str, found: &Measured, envoy: Option<&Measured>, direct: Option<&Measured>) -> ReportRow {
    let samples = &found.samples;
    let ratio = |to: Option<&Measured>, of: fn(&Sample) -> f64| {
        let pairs = samples.iter().zip(&to?.samples);
        Some(median(pairs.map(|(one, other)| of(one) / of(other))))
    };
    let megabytes = |pick: fn(&MemorySample) -> Memory, of: fn(Memory) -> Option<u64>| {
        found.memory.as_ref().and_then(|memory| of(pick(memory))).map(|bytes| bytes as f64 / BYTES_PER_MB)
    };
    let ranges: BTreeMap<String, [f64; 2]> =
        FIGURES.iter().map(|(name, of)| ((*name).to_owned(), range(samples.iter().map(of)))).collect();
    let spread_of = |name: &str, median: f64| {
        ranges.get(name).filter(|_| median > 0.0).map_or(0.0, |[min, max]| (max - min) / median)
    };
    let medians = Sample::medians(samples);
    ReportRow {
        name: name.to_owned(),
        medians,
        rss_idle_mb: megabytes(|memory| memory.idle, |memory| Some(memory.rss)),
        rss_1k_mb: megabytes(|memory| memory.held_1k, |memory| Some(memory.rss)),
        rss_5k_mb: megabytes(|memory| memory.held_5k, |memory| Some(memory.rss)),
        memory_current_idle_mb: megabytes(|memory| memory.idle, |memory| memory.current),
        memory_current_1k_mb: megabytes(|memory| memory.held_1k, |memory| memory.current),
        memory_current_5k_mb: megabytes(|memory| memory.held_5k, |memory| memory.current),
        sock_idle_mb: megabytes(|memory| memory.idle, |memory| memory.sock),
        sock_1k_mb: megabytes(|memory| memory.held_1k, |memory| memory.sock),
        sock_5k_mb: megabytes(|memory| memory.held_5k, |memory| memory.sock),
        syscalls: found.syscalls,
        ratio_envoy_sat: ratio(envoy, |sample| sample.cpu_us_sat),
        ratio_envoy_2k: ratio(envoy, |sample| sample.cpu_us_2k),
        ratio_direct: ratio(direct, |sample| sample.path_cpu_us_2k),
        ratio_direct_p50: ratio(direct, |sample| sample.p50_us),
        n: samples.len(),
        spread: spread_of("cpu_us_sat", medians.cpu_us_sat).max(spread_of("cpu_us_2k", medians.cpu_us_2k)),
        ranges,
    }
}

type Figure = (&'static str, fn(&Sample) -> f64);

/// Figures whose range is told.
const FIGURES: [Figure; 5] = [
    ("cpu_us_sat", |sample| sample.cpu_us_sat),
    ("cpu_us_2k", |sample| sample.cpu_us_2k),
    ("p50_us", |sample| sample.p50_us),
    ("p99_us", |sample| sample.p99_us),
    ("rps_max", |sample| sample.rps_max),
];

type Column = (&'static str, fn(&ReportRow) -> String);

const COST: [Column; 12] = [
    ("row", |row| row.name.clone()),
    ("CPU µs/request, saturated", |row| format!("{:.1}", row.medians.cpu_us_sat)),
    ("user / kernel", |row| format!("{:.1} / {:.1}", row.medians.cpu_user_us_sat, row.medians.cpu_kernel_us_sat)),
    ("of Envoy", |row| ratio(row.ratio_envoy_sat)),
    ("CPU µs @2k/s", |row| format!("{:.1}", row.medians.cpu_us_2k)),
    ("of Envoy", |row| ratio(row.ratio_envoy_2k)),
    ("p50 / p99 µs @2k/s", |row| format!("{:.0} / {:.0}", row.medians.p50_us, row.medians.p99_us)),
    ("p50 of direct", |row| ratio(row.ratio_direct_p50)),
    ("whole path of direct @2k/s", |row| ratio(row.ratio_direct)),
    ("best requests/s (proxy core busy)", |row| {
        format!("{:.0}k ({:.0} %)", row.medians.rps_max / 1e3, row.medians.proxy_busy * 100.0)
    }),
    ("system calls", |row| row.syscalls.map_or_else(|| "–".to_owned(), |count| format!("{count:.1}"))),
    ("n, spread", |row| format!("{}, {:.0} %", row.n, row.spread * 100.0)),
];

const MEMORY: [Column; 4] = [
    ("row, MiB idle / 1,000 / 5,000 connections", |row| row.name.clone()),
    ("resident", |row| three(row.rss_idle_mb, row.rss_1k_mb, row.rss_5k_mb)),
    ("charged to the cgroup", |row| {
        three(row.memory_current_idle_mb, row.memory_current_1k_mb, row.memory_current_5k_mb)
    }),
    ("of that, socket buffers", |row| three(row.sock_idle_mb, row.sock_1k_mb, row.sock_5k_mb)),
];

fn ratio(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "–".to_owned(), |ratio| format!("{ratio:.2}"))
}

fn three(idle: Option<f64>, held_1k: Option<f64>, held_5k: Option<f64>) -> String {
    let text = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.1}"));
    format!("{} / {} / {}", text(idle), text(held_1k), text(held_5k))
}

fn table(columns: &[Column], rows: &[ReportRow]) -> String {
    let header: Vec<String> = columns.iter().map(|(name, _)| (*name).to_owned()).collect();
    let cells: Vec<Vec<String>> = rows.iter().map(|row| columns.iter().map(|(_, of)| of(row)).collect()).collect();
    aligned(&header, &cells)
}

fn micro_table(micro: &serde_json::Map<String, Value>) -> String {
    let header = ["micro-benchmark", "median", "instructions"].map(str::to_owned);
    let cells: Vec<Vec<String>> = micro
        .iter()
        .map(|(name, figures)| {
            let median = figures["median_ns"].as_f64().map_or_else(|| "–".to_owned(), time);
            let instructions = figures["instructions"].as_f64().map_or_else(|| "–".to_owned(), thousands);
            vec![name.clone(), median, instructions]
        })
        .collect();
    aligned(&header, &cells)
}

fn time(ns: f64) -> String {
    match ns {
        ns if ns >= 1e6 => format!("{:.2} ms", ns / 1e6),
        ns if ns >= 1e3 => format!("{:.2} µs", ns / 1e3),
        ns => format!("{ns:.1} ns"),
    }
}

fn thousands(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn aligned(header: &[String], cells: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let of_cells = cells.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        of_cells.chain([header[column].chars().count()]).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |row: &[String]| {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (cell, width))| {
                // Names to the left, figures to the right.
                if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
            })
            .collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let rule: Vec<String> = widths
        .iter()
        .enumerate()
        .map(|(column, width)| if column == 0 { "-".repeat(*width) } else { "-".repeat(width - 1) + ":" })
        .collect();
    let mut text = line(header) + &line(&rule);
    for row in cells {
        text.push_str(&line(row));
    }
    text
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        length if length.is_multiple_of(2) => f64::midpoint(values[length / 2 - 1], values[length / 2]),
        length => values[length / 2],
    }
}

fn range(values: impl Iterator<Item = f64>) -> [f64; 2] {
    values.fold([f64::INFINITY, f64::NEG_INFINITY], |[min, max], value| [min.min(value), max.max(value)])
}

#[cfg(test)]
mod tests;
