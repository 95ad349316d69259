//! What `weft status` says of mutual TLS between nodes: which namespaces take nothing else, and which pods of this node other nodes are
//! not told of.

use std::collections::{BTreeMap, BTreeSet};

use weft_policy::{names::WorkloadId, snapshot::Snapshot};

use super::{api, view::object};
use crate::{
    locate::Locate,
    pods::{Entry, PodState},
    readiness::{Readiness, Withheld},
    state::Shared,
};

pub(super) fn mutual_tls(shared: &Shared, snapshot: &Snapshot) -> api::MutualTls {
    let mut strict: Vec<api::StrictNamespace> = snapshot
        .strict
        .iter()
        .map(|(namespace, by)| api::StrictNamespace { namespace: namespace.to_string(), by: object(by) })
        .collect();
    strict.sort_unstable_by(|a, b| a.namespace.cmp(&b.namespace));
    let has_identity = shared.identity.is_some();
    let known = if matches!(shared.locate, Locate::Manifests) {
        // Somebody else has written down who takes it.
        let of_node = snapshot.peers.iter().filter(|(_, peer)| *peer.node == *shared.node);
        Known::Manifests { published: of_node.map(|(id, _)| id.clone()).collect(), has_identity }
    } else {
        Known::Cluster { readiness: &shared.readiness, has_identity }
    };
    let (published, withheld) = known.tell(shared.pods().iter());
    api::MutualTls { default: shared.mtls.as_str().to_owned(), strict, published, withheld }
}

/// Who says which pods take mutual TLS.
enum Known<'a> {
    /// This agent, at an API server.
    Cluster { readiness: &'a Readiness, has_identity: bool },
    /// NodeWorkloads among the manifests.
    Manifests { published: BTreeSet<WorkloadId>, has_identity: bool },
}

impl Known<'_> {
    /// How many of these pods are published, and why the others are not.
    fn tell<'p>(&self, pods: impl Iterator<Item = (&'p WorkloadId, &'p Entry)>) -> (usize, Vec<api::WithheldPod>) {
        let why_not: BTreeMap<WorkloadId, (Withheld, String)> = match self {
            Self::Cluster { readiness, .. } => {
                readiness.withheld().into_iter().map(|(pod, why, words)| (pod.id, (why, words))).collect()
            }
            Self::Manifests { .. } => BTreeMap::new(),
        };
        let (mut published, mut withheld) = (0, Vec::new());
        for (id, entry) in pods {
            let is_published = match self {
                Self::Cluster { readiness, .. } => readiness.published().contains(id),
                Self::Manifests { published, .. } => published.contains(id),
            };
            if is_published {
                published += 1;
                continue;
            }
            let (reason, message) = self.reason(entry, why_not.get(id));
            withheld.push(api::WithheldPod {
                namespace: entry.workload.namespace.to_string(),
                name: entry.workload.name.to_string(),
                reason: reason.to_owned(),
                message,
            });
        }
        withheld.sort_unstable_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        (published, withheld)
    }

    fn reason(&self, entry: &Entry, why: Option<&(Withheld, String)>) -> (&'static str, String) {
        let (Self::Cluster { has_identity, .. } | Self::Manifests { has_identity, .. }) = self;
        let account = &entry.workload.service_account;
        match (&entry.state, why) {
            (PodState::Waiting, _) => ("not_captured", "it is not captured yet".to_owned()),
            (PodState::Failed { reason }, _) => ("not_captured", format!("it is not captured: {reason}")),
            _ if entry.workload.host_network => {
                ("host_network", "it has its node's addresses, by which nobody could tell it from others".to_owned())
            }
            _ if !has_identity => (
                Withheld::NoIdentity.as_str(),
                "there is no authority (--ca-address), so no pod has a certificate".to_owned(),
            ),
            _ if matches!(self, Self::Manifests { .. }) => (
                "no_api_server",
                "there is no API server to tell other nodes through, and no NodeWorkloads names it".to_owned(),
            ),
            (_, Some((Withheld::NoIdentity, _))) => {
                (Withheld::NoIdentity.as_str(), "publishing has not begun".to_owned())
            }
            (_, Some((why @ Withheld::NoCertificate, _))) => {
                (why.as_str(), format!("service account {account} has no certificate: see `weft identity`"))
            }
            (_, Some((why @ Withheld::Unproved, words))) if words.is_empty() => {
                (why.as_str(), "it has not been tried yet whether it takes mutual TLS".to_owned())
            }
            (_, Some((why @ Withheld::Unproved, words))) => {
                (why.as_str(), format!("a trial connection by mutual TLS failed: {words}"))
            }
            (_, None) => (
                "unwritten",
                "it is ready, and its NodeWorkloads object is not written: see weft_publication_errors_total"
                    .to_owned(),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use weft_crds::weft::node_workloads::PublishedPod;
    use weft_policy::names::ServiceAccountKey;

    use super::*;
    use crate::pods::{Pods, tests::workload};

    fn pods(states: &[(&str, PodState)]) -> Pods {
        let mut pods = Pods::new("n1");
        for (name, state) in states {
            let mut workload = (*workload(name, "n1", true)).clone();
            workload.host_network = *name == "host";
            let id = workload.id.clone();
            pods.change([(&id, &Some(Arc::new(workload)))]);
            pods.set(&id, state.clone());
        }
        pods
    }

    fn reasons(known: &Known<'_>, pods: &Pods) -> (usize, Vec<(String, String)>) {
        let (published, withheld) = known.tell(pods.iter());
        (published, withheld.into_iter().map(|pod| (pod.name, pod.reason)).collect())
    }

    #[test]
    fn every_pod_is_published_or_says_why_not() {
        let captured = || PodState::Captured { connections_before: 0 };
        let states = [
            ("failed", PodState::Failed { reason: "no namespace".to_owned() }),
            ("host", captured()),
            ("late", captured()),
            ("missing", captured()),
            ("ready", captured()),
            ("refused", captured()),
            ("untried", captured()),
            ("waiting", PodState::Waiting),
        ];
        let pods = pods(&states);
        let readiness = Readiness::default();
        readiness.set_certificates(Box::new(|account| &*account.name != "missing"));
        readiness.require_proof();
        let mut published = BTreeMap::new();
        for (id, entry) in pods.iter().filter(|(_, entry)| entry.state.is_captured() && !entry.workload.host_network) {
            let pod = PublishedPod {
                id: id.clone(),
                name: Arc::clone(&entry.workload.name),
                account: ServiceAccountKey::new("shop", &entry.workload.name),
                ips: entry.workload.ips.clone().into(),
            };
            readiness.captured(pod.clone());
            published.insert(entry.workload.name.to_string(), pod);
        }
        for name in ["ready", "late"] {
            readiness.proved(&published[name], Ok(()));
        }
        readiness.proved(&published["refused"], Err("reset".to_owned()));
        readiness.set_published([published["ready"].id.clone()].into());
        let known = Known::Cluster { readiness: &readiness, has_identity: true };
        let expected = [
            ("failed", "not_captured"),
            ("host", "host_network"),
            ("late", "unwritten"),
            ("missing", "no_certificate"),
            ("refused", "unproved"),
            ("untried", "unproved"),
            ("waiting", "not_captured"),
        ];
        let expected = expected.map(|(name, reason)| (name.to_owned(), reason.to_owned())).to_vec();
        assert_eq!(reasons(&known, &pods), (1, expected));
        let (_, withheld) = known.tell(pods.iter());
        for (index, words) in [(0, "no namespace"), (3, "weft identity"), (4, "reset")] {
            assert!(withheld[index].message.contains(words), "{withheld:?}");
        }
        // Without an authority, and without an API server.
        let known = Known::Cluster { readiness: &readiness, has_identity: false };
        assert!(reasons(&known, &pods).1.contains(&("late".to_owned(), "no_identity".to_owned())));
        let named = [published["late"].id.clone()].into();
        let known = Known::Manifests { published: named, has_identity: true };
        let (count, withheld) = reasons(&known, &pods);
        assert_eq!(count, 1);
        assert!(withheld.contains(&("ready".to_owned(), "no_api_server".to_owned())), "{withheld:?}");
    }
}
