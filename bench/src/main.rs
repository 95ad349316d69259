//! The bench's program: the whole run, and the parts of it that are processes of their own.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool talks to its user")]

use std::{io::Write, net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use weft_bench::{
    limits,
    load::{self, Load, Pace},
    map_sync, poll,
    relay::{Framing, Relay},
    responder,
    run::{self, RunArgs},
    stand::READY,
    tpc,
};

/// Measures what a request costs through weft and through its peers. Started by `cargo xtask bench`.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Measure all rows.
    Run(Box<RunArgs>),
    /// Measure how long it takes to bring destinations into the BPF maps; prints JSON.
    MapSync,
    /// Ask again and again, and report as JSON.
    Load(LoadArgs),
    /// Open connections, ask once on each, and keep them open until killed.
    Hold {
        /// Where to.
        #[arg(long)]
        target: SocketAddr,
        /// How many.
        #[arg(long)]
        connections: usize,
    },
    /// Answer every request with the same bytes.
    Respond {
        /// The letter that fills the answers.
        #[arg(long)]
        name: char,
        /// Where.
        #[arg(long)]
        listen: SocketAddr,
    },
    /// Run one of the bounds.
    Bound {
        /// Which.
        kind: Bound,
        /// Where.
        #[arg(long)]
        listen: SocketAddr,
        /// Where requests go.
        #[arg(num_args = 2, required = true)]
        backends: Vec<SocketAddr>,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Bound {
    Tpc,
    Raw,
    Copy,
}

#[derive(clap::Args)]
struct LoadArgs {
    #[arg(long)]
    target: SocketAddr,
    /// Requests a second; as many as can be, if not given.
    #[arg(long)]
    rate: Option<u32>,
    #[arg(long, default_value_t = 0)]
    warm_up_ms: u64,
    #[arg(long)]
    window_ms: u64,
    /// Ends the run earlier.
    #[arg(long, default_value_t = u64::MAX)]
    requests: u64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Cgroups whose CPU time is reported.
    #[arg(long)]
    cgroup: Vec<PathBuf>,
}

fn main() -> ExitCode {
    match run(Cli::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<()> {
    match verb {
        Verb::Run(args) => run::run(&args),
        Verb::MapSync => {
            println!("{}", map_sync::measure()?);
            Ok(())
        }
        Verb::Load(args) => {
            let load = Load {
                target: args.target,
                connections: limits::CONNECTIONS,
                pace: args.rate.map_or(Pace::Closed, Pace::Open),
                warm_up: Duration::from_millis(args.warm_up_ms),
                window: Duration::from_millis(args.window_ms),
                requests_max: args.requests,
                cgroups: args.cgroup,
                seed: args.seed,
            };
            println!("{}", serde_json::to_string(&load.run()?)?);
            Ok(())
        }
        Verb::Hold { target, connections } => {
            let _held = load::hold(target, connections)?;
            say_ready()?;
            loop {
                std::thread::park();
            }
        }
        Verb::Respond { name, listen } => {
            let listener = poll::listen(listen).with_context(|| format!("cannot listen on {listen}"))?;
            say_ready()?;
            Ok(responder::serve(&listener, u8::try_from(name)?)?)
        }
        Verb::Bound { kind, listen, backends } => {
            let [first, second] = backends[..] else { anyhow::bail!("two backends are needed") };
            let backends = [first, second];
            let listener = poll::listen(listen).with_context(|| format!("cannot listen on {listen}"))?;
            match kind {
                Bound::Tpc => tpc::serve(listener, backends),
                Bound::Raw => Ok(Relay::new(Framing::Requests, backends)?.serve(&listener)?),
                Bound::Copy => Ok(Relay::new(Framing::Bytes, backends)?.serve(&listener)?),
            }
        }
    }
}

fn say_ready() -> Result<()> {
    println!("{READY}");
    Ok(std::io::stdout().flush()?)
}
