//! The micro-benchmarks: criterion takes times, callgrind counts instructions, and the bench itself times the BPF maps.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use crate::sh;

/// Benches, by package.
const BENCHES: [(&str, &str); 2] = [("weft-policy", "route_find"), ("weft-crds", "compile")];

/// In the names of the largest cases.
const LARGE: &str = "10000";

/// Runs them all. By name: `median_ns`, and `instructions` of one round.
pub(crate) fn run(bench_binary: &Path, quick: bool) -> Result<Value> {
    let mut all = Map::new();
    for (package, bench) in BENCHES {
        println!("Micro-benchmark {bench}: times ...");
        let started = SystemTime::now();
        let mut cargo = sh::cargo();
        cargo.args(["bench", "--quiet", "--package", package, "--bench", bench, "--", "--noplot"]);
        if quick {
            cargo.arg("--quick");
        } else {
            cargo.args(["--warm-up-time", "1", "--measurement-time", "3", "--sample-size", "30"]);
        }
        sh::output(&mut cargo)?;
        for (name, median_ns) in medians(&sh::target_dir().join("criterion"), started)? {
            all.insert(name, json!({"median_ns": median_ns}));
        }
        println!("Micro-benchmark {bench}: instructions ...");
        let binary = binary(package, bench)?;
        for (name, instructions) in counts(&binary, quick)? {
            let entry = all.entry(name).or_insert_with(|| json!({}));
            entry["instructions"] = json!(instructions);
        }
    }
    println!("Micro-benchmark of the BPF maps ...");
    let text = sh::output(Command::new(bench_binary).arg("map-sync"))?;
    let measured: Map<String, Value> = serde_json::from_str(&text).with_context(|| format!("cannot read {text}"))?;
    all.extend(measured);
    Ok(Value::Object(all))
}

/// What criterion has written since `started`: names and medians, nanoseconds.
fn medians(dir: &Path, started: SystemTime) -> Result<Vec<(String, f64)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let new = entry?.path().join("new");
        let estimates = new.join("estimates.json");
        let Ok(written) = fs::metadata(&estimates).and_then(|metadata| metadata.modified()) else { continue };
        if written < started {
            continue;
        }
        let read = |path: PathBuf| -> Result<Value> {
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            serde_json::from_str(&text).with_context(|| format!("cannot read {}", path.display()))
        };
        let name = read(new.join("benchmark.json"))?["full_id"].as_str().unwrap_or_default().to_owned();
        let median = read(estimates)?["median"]["point_estimate"].as_f64().context("criterion wrote no median")?;
        found.push((name, median));
    }
    if found.is_empty() {
        bail!("criterion wrote nothing to {}", dir.display());
    }
    Ok(found)
}

/// The program of a bench.
fn binary(package: &str, bench: &str) -> Result<PathBuf> {
    let messages = sh::output(sh::cargo().args([
        "bench",
        "--quiet",
        "--package",
        package,
        "--bench",
        bench,
        "--no-run",
        "--message-format=json",
    ]))?;
    let executable = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).find_map(|message| {
        (message["target"]["name"] == bench).then(|| message["executable"].as_str().map(PathBuf::from)).flatten()
    });
    executable.with_context(|| format!("cargo did not tell where the program of bench {bench} is"))
}

/// Instructions of one round of each case: the difference of two runs, so that preparing it does not count.
fn counts(binary: &Path, quick: bool) -> Result<Vec<(String, u64)>> {
    let list = sh::output(Command::new(binary).arg("--list"))?;
    let mut counts = Vec::new();
    for line in list.lines() {
        let (rounds, name) = line.split_once('\t').with_context(|| format!("not a case: {line}"))?;
        let rounds: u64 = rounds.parse().with_context(|| format!("not a case: {line}"))?;
        // Preparing these takes a minute under valgrind.
        if quick && name.contains(LARGE) {
            continue;
        }
        let once = collected(binary, name, rounds)?;
        let twice = collected(binary, name, 2 * rounds)?;
        counts.push((name.to_owned(), twice.saturating_sub(once) / rounds));
    }
    Ok(counts)
}

fn collected(binary: &Path, name: &str, rounds: u64) -> Result<u64> {
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(binary);
    command.args(["--count", name, &rounds.to_string()]);
    let output = command.output().context("cannot start valgrind")?;
    let text = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("valgrind ended with {}\n{text}", output.status);
    }
    instructions(&text).with_context(|| format!("valgrind counted nothing:\n{text}"))
}

/// The number in callgrind's `Collected : 1234`.
fn instructions(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.split_once("Collected :")?.1.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callgrinds_count_is_read() {
        let text = "==12== \n==12== Events    : Ir\n==12== Collected : 2076181\n==12== \n";
        assert_eq!(instructions(text), Some(2_076_181));
        assert_eq!(instructions("==12== Events    : Ir\n"), None);
    }

    #[test]
    fn only_what_this_run_wrote_is_taken() {
        let dir = tempfile::tempdir().expect("directory");
        let new = dir.path().join("case/new");
        fs::create_dir_all(&new).expect("directory");
        fs::write(new.join("estimates.json"), r#"{"median": {"point_estimate": 12.5}}"#).expect("file");
        fs::write(new.join("benchmark.json"), r#"{"full_id": "a case"}"#).expect("file");
        assert_eq!(medians(dir.path(), SystemTime::UNIX_EPOCH).expect("read"), [("a case".to_owned(), 12.5)]);
        let later = SystemTime::now() + std::time::Duration::from_secs(60);
        assert!(medians(dir.path(), later).is_err());
    }
}
