//! Identities of a real agent's pods: who has a certificate, and what a restart, a hand-over and a removal do to it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_integration::{Agent, AgentOptions, PodSpec, Shop, limits, shop::NAMESPACE, wait};

/// Serial numbers by service account, once every account has one.
fn serials(agent: &Agent, accounts: usize) -> Result<BTreeMap<String, String>> {
    let mut last = Value::Null;
    wait::until("a certificate for every service account", limits::APPLY_TIMEOUT, || {
        last = agent.identity()?;
        let rows = last["accounts"].as_array().context("no accounts")?;
        let serials: BTreeMap<_, _> = rows
            .iter()
            .filter_map(|row| {
                let name = format!("{}/{}", row["namespace"].as_str()?, row["service_account"].as_str()?);
                Some((name, row["serial"].as_str()?.to_owned()))
            })
            .collect();
        Ok((serials.len() == accounts && rows.len() == accounts).then_some(serials))
    })
    .with_context(|| format!("last: {last:#}"))
}

#[test]
fn every_service_account_has_one_certificate_that_outlives_the_agent() -> Result<()> {
    let mut shop = Shop::with_servers("open", 2, 0)?;
    shop.start()?;
    let first = serials(shop.agent()?, 2)?;
    assert_eq!(first.keys().map(String::as_str).collect::<Vec<_>>(), ["shop/client", "shop/web"]);
    let before = shop.agent()?.identity()?;
    assert_eq!(before["trust_domain"], "cluster.local");
    assert_eq!(before["accounts"][1]["spiffe_id"], "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!(before["accounts"][1]["pods"], 2);

    shop.take_agent()?.kill()?;
    shop.start()?;
    assert_eq!(serials(shop.agent()?, 2)?, first, "after a kill");
    assert_eq!(shop.agent()?.identity()?["bundle_sha256"], before["bundle_sha256"], "the same root");
    assert_eq!(shop.agent()?.metric("weft_certificate_renewals_total", &[])?, 0.0, "nobody was asked");

    let new = shop.take_agent()?.hand_over(&shop.manifests)?;
    shop.set_agent(new);
    assert_eq!(serials(shop.agent()?, 2)?, first, "after a hand-over");

    // A pod that comes later is asked for at once; its certificate is of the same root, and has a serial number of its own.
    let late = shop.node.pod(PodSpec::new(NAMESPACE, "late").account("late"))?;
    shop.manifests.put_pod(&late)?;
    let third = serials(shop.agent()?, 3)?;
    assert!(first.iter().all(|(account, serial)| third.get(account) == Some(serial)), "{third:?}");
    assert!(shop.agent()?.metric("weft_certificate_expiry_timestamp_seconds", &["service_account=\"late\""])? > 1e9);
    Ok(())
}

#[test]
fn certificates_are_renewed_while_the_agent_runs_and_the_old_one_is_in_force_until_then() -> Result<()> {
    let mut shop = Shop::with_servers("open", 1, 0)?;
    let arguments = ["--certificate-ttl-s", "4", "--trust-domain", "mesh.test"].map(str::to_owned).to_vec();
    shop.start_with(AgentOptions { arguments, ..AgentOptions::default() })?;
    let agent = shop.agent()?;
    let mut seen = serials(agent, 2)?;
    assert_eq!(agent.identity()?["accounts"][0]["spiffe_id"], "spiffe://mesh.test/ns/shop/sa/client");
    for _ in 0..2 {
        seen = wait::until("other serial numbers", limits::APPLY_TIMEOUT, || {
            ensure!(agent.metric("weft_identities_without_certificate", &[])? == 0.0, "one is without a certificate");
            let now = serials(agent, 2)?;
            Ok(now.iter().all(|(account, serial)| seen.get(account) != Some(serial)).then_some(now))
        })?;
    }
    assert!(agent.metric("weft_certificate_renewals_total", &[])? >= 6.0);
    assert_eq!(agent.metric("weft_certificate_failures_total", &[])?, 0.0);
    Ok(())
}

const DAY: f64 = 86_400.0;
const HOUR: f64 = 3_600.0;
/// An agent looks at its clock every 30 s, and on a busy machine later.
const NOTICED: Duration = Duration::from_secs(90);

/// The wall clock of one process. The machine's own is everybody's, and Linux gives no process another: time namespaces have the steady
/// clocks alone.
struct WallClock(PathBuf);

impl WallClock {
    fn new(file: PathBuf) -> Result<Self> {
        let clock = Self(file);
        clock.set("+0")?;
        Ok(clock)
    }

    /// Sets it, by so much from the true time.
    fn set(&self, offset: &str) -> Result<()> {
        // Whole and at once: it is read while it is written.
        let staged = self.0.with_extension("new");
        std::fs::write(&staged, offset)?;
        Ok(std::fs::rename(&staged, &self.0)?)
    }

    /// What a process needs that is to have it (Debian's libfaketime).
    fn environment(&self) -> Result<Vec<(String, String)>> {
        let library = format!("/usr/lib/{}-linux-gnu/faketime/libfaketimeMT.so.1", std::env::consts::ARCH);
        ensure!(Path::new(&library).exists(), "{library} is missing: `cargo xtask setup` installs it");
        let variables = [
            ("LD_PRELOAD", library),
            ("FAKETIME_TIMESTAMP_FILE", self.0.display().to_string()),
            // Seconds after which it reads the file again.
            ("FAKETIME_CACHE_DURATION", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ];
        Ok(variables.map(|(name, value)| (name.to_owned(), value)).to_vec())
    }
}

/// Waits until every account has another certificate than it had.
fn others(agent: &Agent, before: &BTreeMap<String, String>) -> Result<BTreeMap<String, String>> {
    wait::until("other certificates", NOTICED, || {
        let serials = serials(agent, before.len())?;
        Ok(serials.iter().all(|(account, serial)| before.get(account) != Some(serial)).then_some(serials))
    })
    .with_context(|| agent.log_tail())
}

/// How far from now, by the true time, the client's certificate ends, in seconds.
fn ends_in(agent: &Agent) -> Result<f64> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs_f64();
    Ok(agent.metric("weft_certificate_expiry_timestamp_seconds", &["service_account=\"client\""])? - now)
}

#[test]
fn a_wall_clock_set_forward_renews_at_once_and_one_set_back_keeps_and_tells_until_it_is_right() -> Result<()> {
    let mut shop = Shop::with_servers("open", 1, 0)?;
    let clock = WallClock::new(shop.node.state_dir().join("clock"))?;
    shop.start_with(AgentOptions { environment: clock.environment()?, ..AgentOptions::default() })?;
    let agent = shop.agent()?;
    let failures = |reason: &str| agent.metric("weft_certificate_failures_total", &[&format!("reason=\"{reason}\"")]);
    let all_failures = || agent.metric("weft_certificate_failures_total", &[]);
    let first = serials(agent, 2)?;
    ensure!((ends_in(agent)? - DAY).abs() < HOUR, "ends in {} s", ends_in(agent)?);
    ensure!(all_failures()? == 0.0);
    // Ends with an error at the first request that is not answered.
    let mut watch = shop.client.testpod()?;
    watch.args(["watch", "--connections", "2", "--to", &shop.service("web", 80)?]);
    let mut watch = shop.client.spawn(watch)?;
    let mut goes_on = || -> Result<()> {
        let before = shop.web[0].stats()?.requests();
        wait::until("requests to go on", limits::APPLY_TIMEOUT, || {
            Ok((shop.web[0].stats()?.requests() > before + 100).then_some(()))
        })?;
        ensure!(watch.has_ended()?.is_none(), "a request failed: {}", watch.log_tail(limits::LOG_TAIL_LINES));
        Ok(())
    };
    goes_on()?;

    // What there was has ended, which is told of each; nothing else fails.
    clock.set("+26h")?;
    let second = others(agent, &first)?;
    ensure!((ends_in(agent)? - 26.0 * HOUR - DAY).abs() < HOUR, "ends in {} s", ends_in(agent)?);
    ensure!((failures("expired")?, all_failures()?) == (2.0, 2.0), "{}", agent.log_tail());
    ensure!(agent.metric("weft_certificate_renewals_total", &[])? == 4.0, "each is renewed once");
    ensure!(agent.metric("weft_clock_jumps_total", &[])? == 1.0);
    goes_on()?;

    // Two hours before the authority itself begins, and so nobody can give one that is in force.
    clock.set("-2h")?;
    wait::until("both accounts to be told as not yet valid", NOTICED, || {
        Ok((failures("not_yet_valid")? >= 2.0).then_some(()))
    })
    .with_context(|| agent.log_tail())?;
    let noticed = Instant::now();
    ensure!(agent.metric("weft_clock_jumps_total", &[])? == 2.0);
    goes_on()?;
    drop(watch);
    let (before, since) = (cpu_seconds(agent)?, Instant::now());
    // Nobody asks now. Long enough for a timer that spins to show.
    std::thread::sleep(Duration::from_secs(2));
    let share = (cpu_seconds(agent)? - before) / since.elapsed().as_secs_f64();
    ensure!(share < 0.5, "the agent spends {share} of a processor");
    let identity = agent.identity()?;
    for row in identity["accounts"].as_array().context("no accounts")? {
        ensure!(row["problem"].as_str().is_some_and(|problem| problem.starts_with("not_yet_valid")), "{row:#}");
    }
    ensure!(serials(agent, 2)? == second, "what there is stays");
    ensure!(agent.metric("weft_identities_without_certificate", &[])? == 0.0);
    // The first pause is half a second less a fifth; each account is asked for once more than it has waited.
    let most = 2.0 * ((noticed.elapsed() + NOTICED).as_secs_f64() / 0.4 + 1.0);
    ensure!(failures("not_yet_valid")? < most && all_failures()? == failures("not_yet_valid")? + 2.0);

    clock.set("+0")?;
    let third = others(agent, &second)?;
    ensure!((ends_in(agent)? - DAY).abs() < HOUR, "ends in {} s", ends_in(agent)?);
    ensure!(third.len() == 2 && agent.identity()?["accounts"][0]["problem"].is_null());
    Ok(())
}

/// What the kernel counts processor time in, for proc(5): the same on every machine that weft runs on.
const USER_HZ: f64 = 100.0;

/// Processor time of an agent so far (proc(5), `stat`).
fn cpu_seconds(agent: &Agent) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", agent.pid()))?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    // `utime` and `stime`, fields 14 and 15; the first after the name is field 3.
    let ticks = |field: usize| fields.get(field - 3).context("a field")?.parse::<f64>().context("a number");
    Ok((ticks(14)? + ticks(15)?) / USER_HZ)
}
