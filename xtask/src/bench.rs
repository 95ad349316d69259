//! `cargo xtask bench`: what a request costs through weft, through its peers and through two bounds; and micro-benchmarks.
//!
//! Installs and builds what is needed, then starts `weft-bench`, which measures. That is a program of its own because it contains the
//! agent's capture, which embeds the BPF objects that this program builds.

use std::{fs, path::PathBuf, time::Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{build_ebpf, setup, sh};

mod micro;
mod peers;

/// Arguments of `bench`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Fewer and shorter rounds: about five minutes instead of twenty-five, without what is built and installed first.
    #[arg(long)]
    quick: bool,
    /// Write what was measured here, as JSON.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Write the tables here, as Markdown.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Leave the micro-benchmarks out.
    #[arg(long)]
    no_micro: bool,
    /// Only rows whose name contains this ("weft", "Envoy captured"); may be given again.
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
}

/// Measures; an error if something failed or the figures are not to be used.
pub(crate) fn run(args: &Args) -> Result<()> {
    if !sh::is_root() {
        bail!(
            "the bench makes network namespaces and loads eBPF programs, which needs root: sudo -E cargo xtask bench"
        );
    }
    let start = Instant::now();
    setup::run(setup::Scope::BuildAndTest)?;
    let peers = peers::install()?;
    println!("Building weft and the bench, optimized (several minutes the first time) ...");
    build_ebpf::run()?;
    sh::run(sh::cargo().args(["build", "--release", "--quiet", "--package", "weft-agent", "--package", "weft-bench"]))?;
    let bin_dir = sh::target_dir().join("release");
    let binary = bin_dir.join("weft-bench");

    let dir = sh::target_dir().join("bench");
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let micro_file = dir.join("micro.json");
    let micro = if args.no_micro { Value::Object(serde_json::Map::new()) } else { micro::run(&binary, args.quick)? };
    fs::write(&micro_file, serde_json::to_string_pretty(&micro)?)
        .with_context(|| format!("cannot write {}", micro_file.display()))?;
    println!(
        "Prepared in {:.0} s. Leave the machine alone now: everything that runs beside this is in the figures.\n",
        start.elapsed().as_secs_f64()
    );

    let mut command = std::process::Command::new(binary);
    command.current_dir(sh::root()).arg("run").arg("--bin-dir").arg(bin_dir).arg("--micro").arg(micro_file);
    command.arg("--envoy").arg(peers.envoy);
    if args.quick {
        command.arg("--quick");
    }
    for (option, file) in [("--report", &args.report), ("--markdown", &args.markdown)] {
        if let Some(file) = file {
            // Relative to where the user is, not to the workspace.
            command.arg(option).arg(std::path::absolute(file)?);
        }
    }
    for text in &args.only {
        command.args(["--only", text]);
    }
    sh::run(&mut command)
}
