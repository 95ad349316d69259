//! `cargo xtask ci`: what continuous integration runs.

use std::time::Instant;

use anyhow::Result;

use crate::{demo, fuzz, lint, sh, test};

/// How long each fuzz target runs, seconds: enough to see that it works, and to find what a change has just broken.
const FUZZ_SECONDS: u32 = 10;

/// Lint, then every test, then a little fuzzing, then the demo, whose figures are checked too; the counts come last.
pub(crate) fn run() -> Result<()> {
    let start = Instant::now();
    let linted = lint::run();
    let tested = if sh::is_root() {
        test::run(&test::Args::all()).and_then(test::Totals::forbid_skipped)
    } else {
        Err(anyhow::anyhow!("not root, so the tests on network namespaces cannot run"))
    };
    let fuzzed = fuzz::run(&fuzz::Args::short(FUZZ_SECONDS));
    let shown = if sh::is_root() { demo::run(&demo::Args::with_tested_programs()) } else { Ok(()) };
    println!("\nlint: {}", if linted.is_ok() { "ok" } else { "FAILED" });
    println!("fuzz: {}", if fuzzed.is_ok() { "ok" } else { "FAILED" });
    println!("demo: {}", if shown.is_ok() { "ok" } else { "FAILED" });
    println!("took {} min {} s", start.elapsed().as_secs() / 60, start.elapsed().as_secs() % 60);
    let counted = tested.and_then(test::Totals::into_result);
    linted.and(fuzzed).and(shown).and(counted)
}
