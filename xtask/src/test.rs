//! `cargo xtask test [TIER]`: runs the tests and counts them.

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
};

use anyhow::{Context, Result, bail};

use crate::{build_ebpf, kernels, setup, sh};

pub(crate) mod programs;

use programs::Program;

/// Arguments of `test`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which tests.
    #[arg(value_enum, default_value_t)]
    tier: Tier,
    /// Only tests whose name contains this.
    filter: Option<String>,
}

impl Args {
    /// Every test.
    pub(crate) fn all() -> Self {
        Self { tier: Tier::All, filter: None }
    }
}

/// The packages whose tests are tiers of their own.
const PROXY: &str = "weft-proxy";
const INTEGRATION: &str = "weft-integration";

/// Groups of tests.
#[derive(Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Tier {
    /// Without the network: policy, kinds, configuration, chores.
    Unit,
    /// The data path over plain loopback sockets.
    Proxy,
    /// The agent's binary, end to end, on pods of network namespaces. Needs root.
    Netns,
    /// The tests of capture on other kernels, each booted under qemu: the oldest that weft supports and a current one of Debian's, and the
    /// running one. Needs root; installs qemu and downloads the kernels once; prints what the verifier had to do on each. Some two
    /// minutes a kernel.
    Kernels,
    /// All of them.
    #[default]
    All,
}

/// How many tests there were.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    passed: u64,
    failed: u64,
    skipped: u64,
    /// Test programs that ended without a result: did not compile, or crashed.
    broken: u64,
}

impl Totals {
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.broken += other.broken;
    }

    /// A run that ended without a result.
    pub(crate) fn broken() -> Self {
        Self { broken: 1, ..Self::default() }
    }

    /// How many ran to a result.
    pub(crate) fn ran(self) -> u64 {
        self.passed + self.failed
    }

    /// Prints the counts; an error if anything failed.
    pub(crate) fn into_result(self) -> Result<()> {
        println!("{self}");
        if self.broken > 0 {
            bail!("{} run(s) of tests did not compile or crashed", self.broken);
        }
        if self.failed > 0 {
            bail!("{} test(s) failed", self.failed);
        }
        Ok(())
    }

    /// Nothing may be left out where it counts.
    pub(crate) fn forbid_skipped(self) -> Result<Self> {
        if self.skipped > 0 {
            self.into_result().ok();
            bail!("{} test(s) were skipped, which continuous integration does not accept", self.skipped);
        }
        Ok(self)
    }
}

impl std::fmt::Display for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// Runs the tests of a tier.
pub(crate) fn run(args: &Args) -> Result<Totals> {
    setup::run(setup::Scope::BuildAndTest)?;
    build_ebpf::run()?;
    let programs = programs::build()?;
    let mut totals = Totals::default();
    let filter = args.filter.as_deref();
    let wants = |tier| args.tier == tier || args.tier == Tier::All;
    if wants(Tier::Unit) {
        heading("unit: policy, kinds, configuration, chores");
        let other_tiers = [PROXY, INTEGRATION];
        totals.add(run_programs(&programs, |package| !other_tiers.contains(&package), filter, &[])?);
    }
    if wants(Tier::Proxy) {
        heading("proxy: the data path over loopback");
        totals.add(run_programs(&programs, |package| package == PROXY, filter, &[])?);
    }
    if wants(Tier::Netns) {
        heading("netns: the agent end to end, on pods of network namespaces");
        if sh::is_root() {
            setup::run(setup::Scope::Programs)?;
            // One at a time: they share two cores, and some measure.
            totals.add(run_programs(&programs, |package| package == INTEGRATION, filter, &["--test-threads=1"])?);
        } else if args.tier == Tier::Netns {
            bail!("not root: these tests make network namespaces and load eBPF programs; run them with sudo");
        } else {
            println!("NOT RUN: not root, and these tests make network namespaces and load eBPF programs");
            totals.add(Totals { skipped: 1, ..Totals::default() });
        }
    }
    if wants(Tier::Kernels) {
        heading("kernels: capture on the kernels that nodes run");
        match kernels::cannot_run() {
            None => {
                let here = if args.tier == Tier::All { kernels::Here::Verifier } else { kernels::Here::Everything };
                totals.add(kernels::run(&programs, filter, here)?);
            }
            Some(why) => {
                println!("NOT RUN: {why}");
                totals.add(Totals { skipped: 1, ..Totals::default() });
            }
        }
    }
    Ok(totals)
}

fn heading(text: &str) {
    println!("\n== {text}");
}

/// Runs all programs of the packages that are wanted, also after one has failed.
fn run_programs(
    programs: &[Program],
    wanted: impl Fn(&str) -> bool,
    filter: Option<&str>,
    harness_args: &[&str],
) -> Result<Totals> {
    let mut totals = Totals::default();
    for program in programs.iter().filter(|program| wanted(&program.package)) {
        let counted = run_program(program, filter, harness_args)?;
        if counted.failed + counted.broken > 0 {
            println!("FAILED: {} of {}", program.target, program.package);
        }
        totals.add(counted);
    }
    Ok(totals)
}

/// Passes the output on and adds up the results in it.
fn run_program(program: &Program, filter: Option<&str>, harness_args: &[&str]) -> Result<Totals> {
    let mut command = program.command();
    command.arg("--quiet").args(filter).args(harness_args).stdout(Stdio::piped());
    // The harness finds the binaries where they are built.
    command.env("WEFT_BIN_DIR", sh::target_dir().join("debug"));
    let mut child = command.spawn().with_context(|| format!("cannot start {}", program.executable().display()))?;
    let mut totals = Totals::default();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line?;
            println!("{line}");
            totals.add(parse_result(&line).unwrap_or_default());
        }
    }
    let status = child.wait().with_context(|| format!("cannot wait for {}", program.executable().display()))?;
    if !status.success() && totals.failed == 0 {
        totals.broken += 1;
    }
    Ok(totals)
}

/// The counts in `test result: ok. 5 passed; 0 failed; 0 ignored; ...`.
pub(crate) fn parse_result(line: &str) -> Option<Totals> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let number =
        |word: &str| counts.split(';').find_map(|part| part.trim().strip_suffix(word)?.trim().parse::<u64>().ok());
    Some(Totals { passed: number("passed")?, failed: number("failed")?, skipped: number("ignored")?, broken: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_counted() {
        let line = "test result: FAILED. 5 passed; 2 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.98s";
        let totals = parse_result(line).expect("counts");
        assert_eq!((totals.passed, totals.failed, totals.skipped), (5, 2, 1));
        assert!(parse_result("running 5 tests").is_none());
    }

    #[test]
    fn skipped_tests_are_told_from_none() {
        assert!(Totals { skipped: 1, ..Totals::default() }.forbid_skipped().is_err());
        assert!(Totals { passed: 1, ..Totals::default() }.forbid_skipped().is_ok());
    }
}
