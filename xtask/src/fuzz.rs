//! `cargo xtask fuzz [TARGET]`: feeds libFuzzer's inventions to everything that reads what others wrote.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{setup, sh};

const DIR: &str = "integration/fuzz";
/// libFuzzer is C++ that is built from its sources.
const TOOLS: [setup::Tool; 1] = [("g++", "g++", "compiles libFuzzer")];
/// What makes LLVM count which code an input reaches. The same flags as cargo-fuzz without a sanitizer; they need no nightly rustc.
const COVERAGE: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";
/// One input may take this long, seconds. Longer is a hang, and a failure.
const INPUT_TIMEOUT_S: u32 = 10;
/// Memory of a target, MiB. More is a leak, and a failure.
const MEMORY_MIB: u32 = 1024;

/// Arguments of `fuzz`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long each target runs, seconds.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Only this target.
    target: Option<String>,
}

impl Args {
    /// All targets, so long each.
    pub(crate) fn short(seconds: u32) -> Self {
        Self { seconds, target: None }
    }
}

/// Runs the targets one after the other; fails if an input was found that breaks one. The input is kept, and its path printed.
pub(crate) fn run(args: &Args) -> Result<()> {
    setup::require(&TOOLS)?;
    let dir = sh::root().join(DIR);
    let all = targets(&dir)?;
    let chosen: Vec<_> = all.iter().filter(|name| args.target.as_ref().is_none_or(|target| target == *name)).collect();
    if chosen.is_empty() {
        bail!("there is no target {:?}; there are {}", args.target.as_deref().unwrap_or_default(), all.join(", "));
    }
    let binaries = build(&dir)?;
    let mut failed = Vec::new();
    for name in chosen {
        println!("fuzz: {name}, {} s", args.seconds);
        match fuzz(&binaries.join(name), &dir, name, args.seconds) {
            Ok(said) => println!("fuzz: {name}: {said}"),
            Err(error) => {
                println!("fuzz: {name} FAILED: {error:#}");
                failed.push(name.as_str());
            }
        }
    }
    if !failed.is_empty() {
        bail!("fuzzing failed: {}", failed.join(", "));
    }
    Ok(())
}

fn targets(dir: &Path) -> Result<Vec<String>> {
    let sources = dir.join("fuzz_targets");
    let mut names = Vec::new();
    for entry in fs::read_dir(&sources).with_context(|| format!("cannot list {}", sources.display()))? {
        let path = entry?.path();
        names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

/// Builds all targets; returns where they are. With a target triple given, what runs while building is not compiled for fuzzing.
fn build(dir: &Path) -> Result<PathBuf> {
    let version = sh::output(Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc does not tell its host")?;
    let target_dir = sh::target_dir().join("fuzz");
    sh::run(
        sh::cargo()
            .args(["build", "--quiet", "--release", "--locked", "--bins", "--target", host, "--manifest-path"])
            .arg(dir.join("Cargo.toml"))
            .env("RUSTFLAGS", COVERAGE)
            .env("CARGO_TARGET_DIR", &target_dir),
    )?;
    Ok(target_dir.join(host).join("release"))
}

/// What libFuzzer finds on its way stays in the target directory; the seeds in the repository are only read.
fn fuzz(binary: &Path, dir: &Path, name: &str, seconds: u32) -> Result<String> {
    let found = sh::target_dir().join("fuzz/corpus").join(name);
    let artifacts = sh::target_dir().join("fuzz/artifacts").join(name);
    for dir in [&found, &artifacts] {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    let mut command = Command::new(binary);
    command
        .args([
            format!("-max_total_time={seconds}"),
            format!("-timeout={INPUT_TIMEOUT_S}"),
            format!("-rss_limit_mb={MEMORY_MIB}"),
            format!("-artifact_prefix={}/", artifacts.display()),
            "-print_final_stats=1".to_owned(),
            "-verbosity=0".to_owned(),
        ])
        .arg(&found)
        .arg(dir.join("corpus").join(name));
    // libFuzzer says everything on standard error.
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {}", binary.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let lines: Vec<_> = said.lines().collect();
        let last = &lines[lines.len().saturating_sub(40)..];
        bail!("ended with {}\n{}\ninputs are kept in {}", output.status, last.join("\n"), artifacts.display());
    }
    executions(&said).with_context(|| format!("libFuzzer did not say how much it ran:\n{said}"))
}

/// `123 executions, 45 new inputs, 67 MiB`, from libFuzzer's final statistics.
fn executions(said: &str) -> Option<String> {
    let stat = |name: &str| {
        let mut lines =
            said.lines().filter_map(|line| line.strip_prefix("stat::")?.strip_prefix(name)?.strip_prefix(':'));
        lines.next_back()?.trim().parse::<u64>().ok()
    };
    let (executed, new) = (stat("number_of_executed_units")?, stat("new_units_added")?);
    Some(format!("{executed} executions, {new} new inputs, {} MiB", stat("peak_rss_mb")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_read() {
        let said = "Done\nstat::number_of_executed_units: 1234\nstat::average_exec_per_sec:     99\n\
                    stat::new_units_added:          7\nstat::slowest_unit_time_sec:    0\nstat::peak_rss_mb:              45\n";
        assert_eq!(executions(said).as_deref(), Some("1234 executions, 7 new inputs, 45 MiB"));
        assert_eq!(executions("crashed"), None);
    }

    #[test]
    fn every_target_has_seeds() {
        let dir = sh::root().join(DIR);
        let targets = targets(&dir).expect("targets");
        assert!(targets.len() >= 4, "{targets:?}");
        for target in targets {
            let seeds = fs::read_dir(dir.join("corpus").join(&target)).map_or(0, Iterator::count);
            assert!(seeds > 0, "{target} has no seeds");
        }
    }
}
