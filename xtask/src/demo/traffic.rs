//! What the client asks, and who answers.

use std::{fmt::Write as _, fs, time::Duration};

use anyhow::{Context, Result, bail};
use weft_integration::{
    Process,
    testpod::{monotonic_ns, watch::Change},
};

use super::{
    report::{Answers, Percentiles},
    stage::{HOST, Stage},
};

/// Requests of a phase.
const REQUESTS: u32 = 2_000;
/// Among so many curls at one time.
const CURLS: u32 = 4;
/// How long one curl may take for its share.
const CURL_TIMEOUT: Duration = Duration::from_secs(60);
/// Changes whose time to effect is measured.
const CHANGES: u32 = 50;
/// Connections on which a change must have arrived to count.
const WATCHED_CONNECTIONS: usize = 4;
/// How long one change may take; far above what is wanted, so that a slow one is measured and not hidden.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);

/// Asks and counts the versions.
pub(crate) fn versions(stage: &Stage) -> Result<Answers> {
    let mut config = common("");
    writeln!(config, "url = \"http://{HOST}/?[1-{}]\"", REQUESTS / CURLS)?;
    let mut answers = Answers { requests: REQUESTS, ..Answers::default() };
    for output in curls(stage, &config)? {
        for (body, code, _) in parse(&output) {
            match (body, code) {
                (body, "200") if body.starts_with("v1-") => answers.v1 += 1,
                (body, "200") if body.starts_with("v2-") => answers.v2 += 1,
                _ => {}
            }
        }
    }
    answers.errors = answers.requests.saturating_sub(answers.v1 + answers.v2);
    Ok(answers)
}

/// Asks with and without the cookie in turn, on the same connections. Whoever gets the wrong version is an error.
pub(crate) fn cookies(stage: &Stage) -> Result<Answers> {
    let mut config = String::new();
    for number in 0..REQUESTS / CURLS {
        let cookie = number % 2 == 0;
        if number > 0 {
            config.push_str("next\n");
        }
        config.push_str(&common(if cookie { "tester" } else { "other" }));
        if cookie {
            config.push_str("cookie = \"theme=dark; usertype=tester\"\n");
        }
        writeln!(config, "url = \"http://{HOST}/?{number}\"")?;
    }
    let mut answers = Answers { requests: REQUESTS, ..Answers::default() };
    for output in curls(stage, &config)? {
        for (body, code, who) in parse(&output) {
            match (body, code, who) {
                (body, "200", "other") if body.starts_with("v1-") => answers.v1 += 1,
                (body, "200", "tester") if body.starts_with("v2-") => answers.v2 += 1,
                _ => {}
            }
        }
    }
    answers.errors = answers.requests.saturating_sub(answers.v1 + answers.v2);
    Ok(answers)
}

/// curl's own configuration language: names resolved here, an own line behind each answer.
fn common(who: &str) -> String {
    format!("silent\nresolve = \"{HOST}:80:{}\"\nwrite-out = \"#%{{http_code}} {who}\\n\"\n", Stage::web_address().ip())
}

/// Runs the curls in the client pod and returns what each wrote.
fn curls(stage: &Stage, config: &str) -> Result<Vec<String>> {
    let path = stage.state_dir().join("curl.config");
    fs::write(&path, config).with_context(|| format!("cannot write {}", path.display()))?;
    let mut running = Vec::new();
    for _ in 0..CURLS {
        let mut curl = stage.client()?.command("curl");
        curl.arg("--config").arg(&path);
        running.push(stage.client()?.spawn(curl)?);
    }
    running.iter_mut().map(|curl: &mut Process| curl.finish(CURL_TIMEOUT)).collect()
}

/// Body, status and the word of `common`, for each answer.
fn parse(output: &str) -> Vec<(&str, &str, &str)> {
    let mut body = "";
    let mut answers = Vec::new();
    for line in output.lines() {
        match line.strip_prefix('#') {
            Some(result) => {
                let (code, who) = result.split_once(' ').unwrap_or((result, ""));
                answers.push((std::mem::take(&mut body), code, who));
            }
            None => body = line,
        }
    }
    answers
}

/// From the rename of the manifest, or the request to the API server, until the last of the open connections gets the other version.
pub(crate) fn apply_to_effect(stage: &mut Stage) -> Result<Percentiles> {
    stage.split(1, 0)?;
    let mut command = stage.client()?.testpod()?;
    command.args(["watch", "--to", &Stage::web_address().to_string(), "--host", HOST]);
    command.args(["--connections", &WATCHED_CONNECTIONS.to_string()]);
    let watch = stage.client()?.spawn(command)?;
    wait_changed(&watch, "v1", 0)?;
    let mut millis = Vec::new();
    for change in 0..CHANGES {
        let to_v2 = change % 2 == 0;
        let begin = monotonic_ns();
        stage.change_split(u32::from(!to_v2), u32::from(to_v2))?;
        let end = wait_changed(&watch, if to_v2 { "v2" } else { "v1" }, begin)?;
        let elapsed = Duration::from_nanos(end.saturating_sub(begin));
        millis.push(elapsed.as_secs_f64() * 1000.0);
    }
    Percentiles::of(millis)
}

/// Waits until every connection has changed to `version` after `since_ns`; when the last one did.
fn wait_changed(watch: &Process, version: &str, since_ns: u64) -> Result<u64> {
    let mut changed = [None; WATCHED_CONNECTIONS];
    watch.wait_line(&format!("a change of all connections to {version}"), CHANGE_TIMEOUT, |line| {
        let change = Change::parse(line)?;
        if change.version == version && change.at_ns >= since_ns {
            *changed.get_mut(change.connection)? = Some(change.at_ns);
        }
        changed.iter().copied().collect::<Option<Vec<_>>>()?.into_iter().max()
    })
}

impl Percentiles {
    fn of(mut millis: Vec<f64>) -> Result<Self> {
        millis.sort_by(f64::total_cmp);
        // Nearest rank: of 50 values the 99th percentile is the largest.
        let rank = |percent: usize| (millis.len() * percent).div_ceil(100).saturating_sub(1);
        match (millis.get(rank(50)), millis.get(rank(99))) {
            (Some(p50), Some(p99)) => Ok(Self { p50: *p50, p99: *p99 }),
            _ => bail!("nothing was measured"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart() {
        let output = "v1-2\n#200 tester\n#000 other\nweft: no endpoint\n#503 other\n";
        let answers = parse(output);
        assert_eq!(answers, [("v1-2", "200", "tester"), ("", "000", "other"), ("weft: no endpoint", "503", "other")]);
    }

    #[test]
    fn percentiles_are_nearest_rank() {
        let percentiles = Percentiles::of((1..=50).map(f64::from).collect()).expect("values");
        assert_eq!((percentiles.p50, percentiles.p99), (25.0, 50.0));
        assert!(Percentiles::of(Vec::new()).is_err());
    }
}
