//! Removes everything of weft's from a node, with no agent running and nothing but the pin directory to go by.

use std::{collections::HashMap, path::PathBuf};

use weft_abi::PodConfig;

use super::{
    CaptureConfig,
    error::CaptureError,
    listeners::has_ipv6,
    netns::{self, Netns},
    pins::{self, Pins},
    pod::tear_down,
    probe, programs, routes,
    tables::Tables,
};

/// What was found and removed.
#[derive(Debug, Default)]
pub struct CleanupReport {
    /// Namespaces whose sysctls were restored.
    pub pods: usize,
    /// Pods whose namespaces are gone, or were not found.
    pub pods_without_netns: usize,
    /// Namespaces with a rule or route of ours although no map knew them.
    pub strays: usize,
    /// Links that were detached.
    pub links: usize,
    /// Pinned maps that were removed.
    pub maps: usize,
    /// Files that weft did not make; they are still there.
    pub foreign: Vec<PathBuf>,
    /// What could not be undone.
    pub errors: Vec<String>,
}

impl CleanupReport {
    /// Whether nothing of weft's is left.
    #[must_use]
    pub fn complete(&self) -> bool {
        self.errors.is_empty()
    }

    fn note(&mut self, result: Result<(), CaptureError>) {
        if let Err(error) = result {
            let mut text = error.to_string();
            let mut cause = std::error::Error::source(&error);
            while let Some(error) = cause {
                text.push_str(": ");
                text.push_str(&error.to_string());
                cause = error.source();
            }
            self.errors.push(text);
        }
    }
}

/// Removes all that weft left on this node: programs, links, maps, rules, routes, sysctls, pins. Files of others are reported and left.
/// Not to be used while an agent runs: it would go on without its programs.
///
/// # Errors
/// When the process may not, or the node's namespaces cannot be looked at. What fails later is in the report.
pub fn cleanup(config: &CaptureConfig) -> Result<CleanupReport, CaptureError> {
    probe::privileges()?;
    let pins = Pins::new(&config.bpf_dir);
    let home = Netns::home().map_err(CaptureError::kernel("open this process's network namespace"))?;
    let mut report = CleanupReport { foreign: pins.foreign(), ..CleanupReport::default() };
    let mut namespaces: HashMap<u64, Netns> =
        netns::all(&home).into_iter().map(|netns| (netns.cookie(), netns)).collect();
    namespaces.insert(home.cookie(), home.clone());

    // Maps of another version or shape cannot be read; then only what needs no map can be undone.
    if pins.verify().is_ok()
        && let Ok(tables) = Tables::open(&pins)
    {
        release_recorded(&tables, &pins, &mut namespaces, &mut report);
    }
    for dir in pins.other_versions().into_iter().chain([pins.dir().to_owned()]) {
        match pins::remove_all(&dir) {
            Ok((links, maps)) => {
                report.links += links;
                report.maps += maps;
            }
            Err(error) => report.note(Err(CaptureError::kernel(format!("remove {}", dir.display()))(error))),
        }
    }
    // Only now that our own programs are gone: where there still is one, the rule may be of a weft that pins elsewhere.
    let unused = |netns: &&Netns| netns.cookie() != home.cookie() && !programs::looks_sockets_up(netns);
    for netns in namespaces.values().filter(unused) {
        match netns.enter(|| routes::remove(has_ipv6())).and_then(|done| done) {
            Ok(true) => report.strays += 1,
            Ok(false) => {}
            Err(error) => report.note(Err(CaptureError::kernel("remove rule and route")(error))),
        }
    }
    let root =
        pins::remove_empty(pins.root()).map_err(CaptureError::kernel(format!("remove {}", pins.root().display())));
    report.note(root);
    Ok(report)
}

fn release_recorded(tables: &Tables, pins: &Pins, namespaces: &mut HashMap<u64, Netns>, report: &mut CleanupReport) {
    let cookies = match tables.pods.keys() {
        Ok(cookies) => cookies,
        Err(error) => return report.note(Err(CaptureError::kernel("read map PODS")(error))),
    };
    for cookie in cookies {
        let config: PodConfig = tables.pods.get(&cookie).ok().flatten().unwrap_or_default();
        let netns = namespaces.remove(&cookie);
        if netns.is_some() {
            report.pods += 1;
        } else {
            report.pods_without_netns += 1;
        }
        if pins.lookup_link(cookie).exists() {
            report.links += 1;
        }
        report.note(tear_down(tables, pins, cookie, netns.as_ref(), &config));
    }
}
