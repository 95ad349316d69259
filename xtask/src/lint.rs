//! `cargo xtask lint`: everything that can be said about the code without running it.

use anyhow::{Result, bail};

use crate::{build_ebpf, generate, setup, sh, tidy};

type Check = fn() -> Result<()>;

/// Runs all checks, also after one has failed, and fails if any did.
pub(crate) fn run() -> Result<()> {
    setup::run(setup::Scope::Lint)?;
    // The agent embeds the objects, so nothing compiles without them.
    build_ebpf::run()?;
    let checks: [(&str, Check); 8] = [
        ("format", || sh::run(sh::cargo().args(["fmt", "--all", "--check"]))),
        ("format of ebpf", || sh::run(sh::cargo().args(["fmt", "--manifest-path", "ebpf/Cargo.toml", "--check"]))),
        ("clippy", || {
            sh::run(sh::cargo().args(["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"]))
        }),
        ("clippy of ebpf", clippy_ebpf),
        ("tidy", tidy::run),
        ("generated files", || generate::run(&generate::Args::check())),
        ("licences, bans, sources", || {
            sh::run(sh::cargo().args(["deny", "--log-level", "error", "check", "licenses", "bans", "sources"]))
        }),
        ("advisories", advisories),
    ];
    let mut failed = Vec::new();
    for (name, check) in checks {
        println!("lint: {name}");
        if let Err(error) = check() {
            println!("lint: {name} FAILED: {error:#}");
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("lint failed: {}", failed.join(", "));
    }
    Ok(())
}

/// With the BPF toolchain's own clippy: the programs compile for no other target.
fn clippy_ebpf() -> Result<()> {
    let target_dir = sh::target_dir().join("bpf-lint");
    sh::run(build_ebpf::bpf_cargo("clippy", &target_dir)?.args(["--quiet", "--", "-D", "warnings"]))
}

/// Needs the advisory database, which machines without a way to it lack; that is said, and is no failure of the code.
fn advisories() -> Result<()> {
    if let Err(error) = sh::output(sh::cargo().args(["deny", "fetch", "db"])) {
        let text = format!("{error:#}");
        let reason = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        println!("lint: advisories NOT CHECKED: the database cannot be fetched ({})", reason.trim());
        return Ok(());
    }
    sh::run(sh::cargo().args(["deny", "--log-level", "error", "check", "advisories"]))
}
