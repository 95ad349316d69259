//! Runs every file of `scenarios/`: manifests, requests, who has to answer, and what the status has to say.
//!
//! All run on one shop, one after the other: what a scenario leaves behind would show in the next one.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use weft_integration::{Shop, limits, shop::NAMESPACE, status::Status, testpod::LoadReport, wait};

/// The file that holds a scenario's manifests.
const FILE: &str = "scenario.yaml";
/// A Service that selects nothing.
const EMPTY: &str = "web-empty";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Scenario {
    /// What it shows.
    shows: String,
    /// YAML documents.
    manifests: String,
    /// What is asked, once the manifests are in force.
    #[serde(default)]
    requests: Vec<Requests>,
    /// Shares that `weft routes` has to show: root Service, split, backend, percent.
    #[serde(default)]
    routes: BTreeMap<String, BTreeMap<String, BTreeMap<String, f64>>>,
    /// What `weft status` has to say of objects.
    #[serde(default)]
    findings: Vec<Finding>,
    /// What `weft status` has to say of documents that are not used.
    #[serde(default)]
    problems: Vec<Problem>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Requests {
    /// Service.
    to: String,
    /// Port of the Service.
    #[serde(default = "http_port")]
    port: u16,
    /// See the test application.
    #[serde(default = "http")]
    speech: String,
    count: u64,
    #[serde(default = "get")]
    method: String,
    #[serde(default = "slash")]
    path: String,
    #[serde(default)]
    headers: Vec<String>,
    /// Answers by version: lowest and highest count. Who is not named must not answer.
    #[serde(default)]
    answers: BTreeMap<String, [u64; 2]>,
    /// Statuses with their exact counts; all 200 if not given.
    statuses: Option<BTreeMap<u16, u64>>,
    /// Connections that are refused.
    #[serde(default)]
    refused: u64,
}

fn http_port() -> u16 {
    80
}

fn http() -> String {
    "http".to_owned()
}

fn get() -> String {
    "GET".to_owned()
}

fn slash() -> String {
    "/".to_owned()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Finding {
    /// `TrafficSplit web`.
    object: String,
    severity: String,
    code: String,
    field: String,
    /// A part of the message.
    says: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Problem {
    /// `TrafficSplit shop/web`, or what could be read of it.
    object: String,
    field: String,
    /// A part of the message.
    says: String,
}

#[test]
fn every_scenario_holds() -> Result<()> {
    let mut shop = Shop::with_servers("open", 2, 2)?;
    shop.add_service(EMPTY, &[("app", "nobody")])?;
    shop.start()?;
    let mut failed = Vec::new();
    let files = files()?;
    for file in &files {
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let result = read(file).and_then(|scenario| {
            let shown = scenario.shows.clone();
            play(&mut shop, &scenario).with_context(|| shown)
        });
        if let Err(error) = result {
            failed.push(format!("{name}: {error:#}"));
        }
        withdraw(&mut shop).with_context(|| format!("after {name}"))?;
    }
    ensure!(!files.is_empty(), "no scenarios");
    ensure!(failed.is_empty(), "{} of {} scenarios failed:\n\n{}", failed.len(), files.len(), failed.join("\n\n"));
    Ok(())
}

fn files() -> Result<Vec<PathBuf>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut files: Vec<_> = fs::read_dir(&dir)
        .with_context(|| format!("cannot list {}", dir.display()))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    Ok(files)
}

fn read(file: &Path) -> Result<Scenario> {
    let text = fs::read_to_string(file)?;
    let scenario: Scenario = serde_saphyr::from_str(&text).with_context(|| format!("{}", file.display()))?;
    // Otherwise requests could be answered before the manifests are in force.
    let waits = !(scenario.routes.is_empty() && scenario.findings.is_empty() && scenario.problems.is_empty());
    ensure!(waits, "the scenario does not say how to see that its manifests are in force");
    Ok(scenario)
}

fn play(shop: &mut Shop, scenario: &Scenario) -> Result<()> {
    shop.manifests.put_text(FILE, &scenario.manifests)?;
    let agent = shop.agent()?;
    for (service, splits) in &scenario.routes {
        let splits: Vec<(&str, Vec<(&str, f64)>)> = splits
            .iter()
            .map(|(split, shares)| {
                (split.as_str(), shares.iter().map(|(service, share)| (service.as_str(), *share)).collect())
            })
            .collect();
        let splits: Vec<_> = splits.iter().map(|(split, shares)| (*split, shares.as_slice())).collect();
        agent.wait_shares(NAMESPACE, service, &splits)?;
    }
    agent.wait_status("the findings", |status| says_all(status, scenario).then_some(()))?;
    for requests in &scenario.requests {
        check(&ask(shop, requests)?, requests).with_context(|| format!("{requests:?}"))?;
    }
    Ok(())
}

/// Says all that is expected, and nothing else: every finding and problem of the scenario's objects is expected.
fn says_all(status: &Status, scenario: &Scenario) -> bool {
    let findings = scenario.findings.iter().all(|expected| {
        status.diagnostics.iter().any(|found| {
            format!("{} {}", found.object.kind, found.object.name) == expected.object
                && found.severity == expected.severity
                && found.code == expected.code
                && found.field.as_deref().unwrap_or_default() == expected.field
                && found.message.contains(&expected.says)
        })
    });
    let problems = scenario.problems.iter().all(|expected| {
        status.files.iter().any(|found| {
            found.file.ends_with(FILE)
                && found.object == expected.object
                && found.field.as_deref().unwrap_or_default() == expected.field
                && found.message.contains(&expected.says)
        })
    });
    findings
        && problems
        && status.diagnostics.len() == scenario.findings.len()
        && status.files.len() == scenario.problems.len()
}

fn ask(shop: &Shop, requests: &Requests) -> Result<LoadReport> {
    let to = shop.service(&requests.to, requests.port)?;
    let count = requests.count.to_string();
    let mut args = vec!["--to", &to, "--connections", &count, "--concurrency", "4", "--speech", &requests.speech];
    args.extend(["--method", &requests.method, "--path", &requests.path]);
    for header in &requests.headers {
        args.extend(["--header", header]);
    }
    shop.load(&args)
}

fn check(report: &LoadReport, requests: &Requests) -> Result<()> {
    let mut versions = BTreeMap::new();
    for (server, count) in &report.servers {
        let version = server.split('-').next().unwrap_or_default();
        // Answers that the mesh itself makes are no version's.
        if version.starts_with('v') {
            *versions.entry(version).or_insert(0) += count;
        }
    }
    for (version, [lowest, highest]) in &requests.answers {
        let count = versions.remove(version.as_str()).unwrap_or(0);
        if count < *lowest || count > *highest {
            bail!("{version} answered {count} times, not {lowest} to {highest}: {report:?}");
        }
    }
    if let Some((version, count)) = versions.first_key_value() {
        bail!("{version} answered {count} times: {report:?}");
    }
    ensure!(report.refused == requests.refused, "{} refused: {report:?}", report.refused);
    ensure!(report.lost() == 0, "{} lost: {report:?}", report.lost());
    if requests.speech == "http" {
        let served = BTreeMap::from([(200, requests.count - requests.refused)]);
        let expected = requests.statuses.as_ref().unwrap_or(&served);
        ensure!(report.statuses == *expected, "statuses: {report:?}");
    }
    Ok(())
}

/// Takes the scenario's manifests away and waits until nothing of them is in force.
fn withdraw(shop: &mut Shop) -> Result<()> {
    shop.manifests.remove_file(FILE)?;
    wait::until("no splits", limits::APPLY_TIMEOUT, || {
        let routes = shop.agent()?.routes()?;
        let left = routes.iter().flat_map(|service| &service.routes).any(|route| route.origin.kind != "Service");
        Ok((!left).then_some(()))
    })?;
    shop.agent()?
        .wait_status("no findings", |status| (status.diagnostics.is_empty() && status.files.is_empty()).then_some(()))
}
