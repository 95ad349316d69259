//! `cargo xtask demo`: weft at work on this machine, told and measured.
//!
//! Pods are network namespaces; the client is plain curl; the agent is fed from a directory of manifests, or from a real API server. What is
//! claimed at the end is what was counted.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, bail};

use crate::{build_ebpf, setup, sh};

mod outage;
mod report;
mod stage;
mod traffic;

use report::Report;
use stage::Stage;

/// Arguments of `demo`.
#[derive(Default, clap::Args)]
pub(crate) struct Args {
    /// Let the agent read from a real API server, and change policy with `kubectl apply`.
    #[arg(long)]
    kube: bool,
    /// Leave everything running afterwards and print commands to play with; Ctrl-C ends it.
    #[arg(long)]
    keep: bool,
    /// Write what was measured here, as JSON.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// The tests have built the programs already.
    #[arg(skip)]
    built: bool,
}

impl Args {
    /// After the tests: with the programs that they ran.
    pub(crate) fn with_tested_programs() -> Self {
        Self { built: true, ..Self::default() }
    }
}

/// Runs the demo; an error if anything is not as it should be.
pub(crate) fn run(args: &Args) -> Result<()> {
    if !sh::is_root() {
        bail!("the demo makes network namespaces and loads eBPF programs, which needs root: sudo -E cargo xtask demo");
    }
    setup::run(setup::Scope::BuildAndTest)?;
    if !args.built {
        println!("Building weft (a few minutes the first time) ...");
        build_ebpf::run()?;
        sh::run(sh::cargo().args(["build", "--quiet", "--workspace", "--bins"]))?;
    }
    // The harness finds the binaries where they were built; it runs inside this process.
    if args.kube {
        setup::run(setup::Scope::Programs)?;
    }
    let stage = Stage::build(&sh::target_dir().join("debug"), args.kube)?;
    let (report, stage) = play(stage)?;
    if let Some(path) = &args.report {
        let text = serde_json::to_string_pretty(&report)?;
        fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
        println!("\nThe figures are in {}.", path.display());
    }
    if args.keep {
        keep(&stage)?;
    }
    drop(stage);
    println!("\nEverything is cleaned up.");
    if !report.ok {
        bail!("not all is as it should be: {}", report.problems().join("; "));
    }
    Ok(())
}

fn play(mut stage: Stage) -> Result<(Report, Stage)> {
    let mut report = Report::default();

    chapter("Pods");
    say("A client and six pods of a web shop: three run version 1, three version 2. None of them knows of weft.");
    report.captured_pods = stage.start_agent()?;
    say(&format!("The agent has captured {} pods where they stood. Nothing was restarted.", report.captured_pods));

    chapter("Splitting requests");
    say("Plain curl asks http://web.shop 2,000 times. No policy yet: all six pods answer.");
    report.no_split = traffic::versions(&stage)?;
    say("Now a TrafficSplit: 90 for version 1, 10 for version 2.");
    stage.split(90, 10)?;
    report.split_90_10 = traffic::versions(&stage)?;
    say("Two splits on one root: who has the cookie usertype=tester gets version 2, everybody else version 1.");
    stage.split_testers()?;
    report.cookie = traffic::cookies(&stage)?;
    say(
        "Nine pods of version 1 and one of version 2, and the split 90/10 again. Shares follow the policy, not the pods.",
    );
    stage.scale(9, 1)?;
    stage.split(90, 10)?;
    report.split_9_1_replicas = traffic::versions(&stage)?;
    println!("{}", report.shares_table());

    chapter("From a change to its effect");
    say("The split is turned around 50 times, while a client asks on four open connections.");
    report.apply_to_effect_ms = traffic::apply_to_effect(&mut stage)?;
    println!("{}", report.effect_table());

    chapter("Without the agent");
    say(
        "1,500 connections are made while the agent is killed (-9) and started again, and while a new agent takes over.",
    );
    for mode in outage::Mode::ALL {
        report.restart.push(outage::run(&mut stage, mode)?);
    }
    println!("{}", report.restart_table());

    report.ok = report.problems().is_empty();
    match report.problems().as_slice() {
        [] => say("All as it should be."),
        problems => problems.iter().for_each(|problem| say(&format!("NOT as it should be: {problem}."))),
    }
    Ok((report, stage))
}

fn keep(stage: &Stage) -> Result<()> {
    chapter("Yours");
    println!("{}", stage.instructions()?);
    say("Ctrl-C ends it and cleans up.");
    // The harness cleans up on the signal; nothing else ends this wait.
    loop {
        std::thread::park();
        if !stage.is_alive()? {
            bail!("the agent has gone");
        }
    }
}

fn chapter(title: &str) {
    println!("\n── {title} {}", "─".repeat(74_usize.saturating_sub(title.chars().count())));
}

fn say(text: &str) {
    println!("   {text}");
}
