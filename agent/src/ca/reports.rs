//! What agents report of themselves: which bundle they trust, and up to which epoch their certificates are new. While a root is rotated,
//! each replica tells the others in a ConfigMap, so that the leader knows of all agents.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};

use super::limits;

/// Letters of a bundle's hash that are told: 64 bits, to tell apart the few bundles of one rotation.
const HASH_SHORT: usize = 16;

/// What one agent says.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Report {
    /// The beginning of the hash of the bundle in force.
    pub(super) bundle: String,
    /// The highest epoch for which all its certificates were signed anew.
    pub(super) epoch: u64,
}

impl Report {
    pub(super) fn new(bundle_sha256: &str, epoch: u64) -> Self {
        Self { bundle: bundle_sha256.chars().filter(char::is_ascii_hexdigit).take(HASH_SHORT).collect(), epoch }
    }

    /// Whether it says that this bundle is trusted.
    pub(super) fn trusts(&self, bundle_sha256: &str) -> bool {
        self.bundle.len() == HASH_SHORT && bundle_sha256.starts_with(&self.bundle)
    }
}

/// The last report of each agent, by the UID of its pod.
#[derive(Debug, Default)]
pub(super) struct Reports {
    last: Mutex<HashMap<Arc<str>, Report>>,
}

/// As it is written: agents by what they report, so that a large cluster fits.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Written {
    groups: Vec<(Report, Vec<Arc<str>>)>,
}

impl Reports {
    fn last(&self) -> MutexGuard<'_, HashMap<Arc<str>, Report>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a report down.
    pub(super) fn note(&self, uid: &Arc<str>, report: Report) {
        let mut last = self.last();
        if last.len() < limits::AGENTS_MAX || last.contains_key(uid) {
            last.insert(uid.clone(), report);
        }
    }

    /// Forgets agents that are gone.
    pub(super) fn retain(&self, is_there: impl Fn(&str) -> bool) {
        self.last().retain(|uid, _| is_there(uid));
    }

    /// What this replica knows, for the others. What does not fit is left out; the leader waits for it, and says so.
    pub(super) fn write(&self) -> String {
        let mut groups: BTreeMap<Report, Vec<Arc<str>>> = BTreeMap::new();
        for (uid, report) in self.last().iter() {
            groups.entry(report.clone()).or_default().push(uid.clone());
        }
        let mut bytes = 0;
        let mut fits = |uid: &Arc<str>| {
            bytes += uid.len() + 3;
            bytes <= limits::REPORT_MAX
        };
        for uids in groups.values_mut() {
            uids.sort_unstable();
            uids.retain(&mut fits);
        }
        serde_json::to_string(&Written { groups: groups.into_iter().collect() }).unwrap_or_default()
    }

    /// All reports, with those of other replicas. The furthest of an agent's counts: it never goes back.
    pub(super) fn merged<'a>(&self, written: impl Iterator<Item = &'a String>) -> HashMap<Arc<str>, Vec<Report>> {
        let mut all: HashMap<Arc<str>, Vec<Report>> = HashMap::new();
        for (uid, report) in self.last().iter() {
            all.entry(uid.clone()).or_default().push(report.clone());
        }
        for text in written {
            // A replica of another version may write otherwise: its agents will have to come to this one.
            let Ok(written) = serde_json::from_str::<Written>(text) else { continue };
            for (report, uids) in written.groups {
                for uid in uids {
                    all.entry(uid).or_default().push(report.clone());
                }
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_tell_each_other_what_agents_report() {
        let (one, two) = (Reports::default(), Reports::default());
        let (old, new) = ("0123456789abcdef".repeat(4), "f".repeat(64));
        one.note(&"a".into(), Report::new(&old, 0));
        one.note(&"b".into(), Report::new(&new, 3));
        two.note(&"a".into(), Report::new(&new, 4));
        let merged = two.merged([one.write(), "garbage".to_owned()].iter());
        assert!(merged["a"].iter().any(|report| report.trusts(&new) && report.epoch == 4));
        assert!(merged["a"].iter().any(|report| report.trusts(&old)));
        assert!(merged["b"][0].trusts(&new) && !merged["b"][0].trusts(&old));
        assert!(!Report::new("", 0).trusts(&new), "an agent that trusts nothing yet");
        assert!(!Report::new("ff", 0).trusts(&new), "half a hash is none");
        one.retain(|uid| uid == "b");
        assert_eq!(Reports::default().merged([one.write()].iter()).len(), 1);
    }

    #[test]
    fn a_report_is_never_larger_than_its_share_of_a_configmap() {
        let reports = Reports::default();
        for agent in 0..limits::AGENTS_MAX + 10 {
            let uid = format!("{agent:08}-1111-2222-3333-444444444444").into();
            reports.note(&uid, Report::new(&"0".repeat(64), u64::MAX));
        }
        let text = reports.write();
        assert!(text.len() < limits::REPORT_MAX + 1000, "{}", text.len());
        assert!(Reports::default().merged([text].iter()).len() > 9_000);
    }
}
