//! What the client asks, and who answers.

use std::{fmt::Write as _, fs, time::Duration};

use anyhow::{Context, Result};
use weft_integration::{
    Process,
    effect::{Percentiles, Watch},
};

use super::{
    report::Answers,
    stage::{HOST, Stage},
};

/// Requests of a phase.
const REQUESTS: u32 = 2_000;
/// Among so many curls at one time.
const CURLS: u32 = 4;
/// How long one curl may take for its share.
const CURL_TIMEOUT: Duration = Duration::from_secs(60);
/// Changes whose time to effect is measured.
const CHANGES: usize = 50;

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
    let watch = Watch::start(stage.client()?, Stage::web_address(), HOST)?;
    let times = watch.to_and_fro(["v1", "v2"], CHANGES, |version| {
        let to_v2 = version == "v2";
        stage.change_split(u32::from(!to_v2), u32::from(to_v2))
    })?;
    Ok(times.begun)
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
}
