//! `weft status` tells whose programs see connections before weft's do.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use weft_integration::{AgentOptions, Shop, agent, command, wait};

/// What the status says of programs of others.
fn ahead(shop: &Shop) -> Result<Vec<String>> {
    let status = shop.agent()?.status()?;
    let listed = status.capture["foreign_programs"].as_array().context("no list of other programs")?.clone();
    Ok(listed.iter().filter_map(|program| program.as_str().map(str::to_owned)).collect())
}

#[test]
fn connect_programs_that_run_ahead_are_told_until_they_are_gone() -> Result<()> {
    let mut shop = Shop::with_servers("open", 1, 0)?;
    // Programs of somebody else's, attached first: those of a weft that pins elsewhere and was killed.
    let bpf_dir = shop.node.bpf_dir();
    let mut first_dir = bpf_dir.clone().into_os_string();
    first_dir.push("-first");
    shop.start_with(AgentOptions {
        bpf_dir: Some(first_dir.clone().into()),
        log_on_drop: false,
        ..AgentOptions::default()
    })?;
    ensure!(ahead(&shop)?.is_empty(), "the first has nobody ahead");
    shop.take_agent()?.kill()?;
    let second = shop.start();
    let told = second.and_then(|()| {
        let told = ahead(&shop)?;
        let mut weft = shop.node.command(&agent::binary("weft")?.to_string_lossy());
        Ok((told, command::output(weft.arg("--run-dir").arg(agent::run_dir(&shop.node)).arg("status"))?))
    });
    // Whatever came of it, nothing of the first may stay: without its pins its programs are detached.
    fs::remove_dir_all(&first_dir).context("cannot remove the pins of the first")?;
    let (told, text) = told?;
    let pods_cgroup = shop.node.cgroup().join("kubepods");
    for hook in ["connect4", "connect6"] {
        let start = format!("{hook} at {} (program ", pods_cgroup.display());
        let line = told.iter().find(|line| line.starts_with(&start) && line.ends_with(&format!(" {hook})")));
        let line = line.with_context(|| format!("no {hook} in {told:?}"))?;
        ensure!(text.contains(&format!("another program runs ahead of weft: {line}")), "{text}");
    }
    ensure!(told.len() == 2, "{told:?}");
    wait::until("nobody to be ahead any more", Duration::from_secs(5), || Ok(ahead(&shop)?.is_empty().then_some(())))
}
