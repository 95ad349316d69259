//! weft's own chores: `cargo xtask VERB`, one file a verb.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool talks to its user")]

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod bench;
mod build_ebpf;
mod ci;
mod demo;
mod fuzz;
mod generate;
mod image;
mod kernels;
mod lint;
mod setup;
mod sh;
mod test;
mod tidy;

/// weft's own chores. Everything starts here; nothing needs to be installed by hand but rustup.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install what building and testing need; says what and why, silent when there is nothing to do.
    Setup,
    /// Build the eBPF programs into target/bpf.
    BuildEbpf,
    /// Show weft at work on this machine and measure it.
    Demo(demo::Args),
    /// Feed invented input to everything that reads what others wrote.
    Fuzz(fuzz::Args),
    /// Run the tests: `unit`, `proxy`, `netns`, `kernels` or `all`.
    Test(test::Args),
    /// Measure what a request costs, beside Envoy, nginx, haproxy and two bounds.
    Bench(bench::Args),
    /// Write what is generated from the Rust types: the CustomResourceDefinitions of the chart.
    Gen(generate::Args),
    /// Pack the agent as a container image; no container engine is needed.
    Image(image::Args),
    /// Formatting, clippy, import rules, generated files, licences.
    Lint,
    /// What continuous integration runs: lint, then every test, then the demo.
    Ci,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    match Cli::parse().verb {
        Verb::Setup => setup::run(setup::Scope::Programs),
        Verb::BuildEbpf => {
            setup::run(setup::Scope::BuildAndTest)?;
            build_ebpf::run()
        }
        Verb::Demo(args) => demo::run(&args),
        Verb::Test(args) => test::run(&args).and_then(test::Totals::into_result),
        Verb::Bench(args) => bench::run(&args),
        Verb::Fuzz(args) => fuzz::run(&args),
        Verb::Gen(args) => generate::run(&args),
        Verb::Image(args) => image::run(&args),
        Verb::Lint => lint::run(),
        Verb::Ci => ci::run(),
    }
}
