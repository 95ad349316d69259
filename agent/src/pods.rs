//! This node's pods: which ones should be captured, which are, and why not.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use weft_policy::{
    ir::{FailMode, WorkloadIr},
    names::{ServiceAccountKey, WorkloadId},
};

use crate::{
    capture::PodSpec,
    locate::{Locate, LocateError, Place},
};

/// What is known of the pods that should be captured.
#[derive(Debug)]
pub struct Pods {
    node: Arc<str>,
    entries: BTreeMap<WorkloadId, Entry>,
}

/// One pod that should be captured.
#[derive(Debug)]
pub struct Entry {
    /// The pod.
    pub workload: Arc<WorkloadIr>,
    /// How far it is.
    pub state: PodState,
    /// Policy denies by default what is meant for it, so it must not be reached while nobody is there to ask.
    pub denies: bool,
    /// Why the kernel does not know its fail mode yet; that is tried again.
    pub fail_mode_error: Option<String>,
}

impl Entry {
    /// What becomes of its connections while the agent is gone.
    #[must_use]
    pub fn fail_mode(&self) -> FailMode {
        if self.denies { FailMode::Closed } else { self.workload.fail_mode }
    }
}

/// How far a pod is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodState {
    /// Not tried yet.
    Waiting,
    /// Its connections are captured.
    Captured {
        /// TCP connections that were open before, and are not carried by weft.
        connections_before: u32,
    },
    /// It could not be captured, and is tried again.
    Failed {
        /// Why.
        reason: String,
    },
}

impl PodState {
    /// Whether its connections are captured.
    #[must_use]
    pub fn is_captured(&self) -> bool {
        matches!(self, Self::Captured { .. })
    }
}

/// What has to be done after a change.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PodChanges {
    /// Pods to let go of.
    pub release: Vec<WorkloadId>,
    /// Pods to capture, after the releases.
    pub attach: Vec<WorkloadId>,
    /// Captured pods whose fail mode is another one now.
    pub fail_mode: Vec<WorkloadId>,
}

impl Pods {
    /// No pods yet, on this node.
    #[must_use]
    pub fn new(node: &str) -> Self {
        Self { node: node.into(), entries: BTreeMap::new() }
    }

    /// All pods that should be captured.
    pub fn iter(&self) -> impl Iterator<Item = (&WorkloadId, &Entry)> {
        self.entries.iter()
    }

    /// One pod.
    #[must_use]
    pub fn entry(&self, id: &WorkloadId) -> Option<&Entry> {
        self.entries.get(id)
    }

    /// Whether every pod was tried.
    #[must_use]
    pub fn settled(&self) -> bool {
        self.entries.values().all(|entry| entry.state != PodState::Waiting)
    }

    /// Takes changed workloads in (`None`: gone) and says what to do about them.
    pub fn change<'a>(
        &mut self,
        changed: impl IntoIterator<Item = (&'a WorkloadId, &'a Option<Arc<WorkloadIr>>)>,
    ) -> PodChanges {
        let mut changes = PodChanges::default();
        for (id, workload) in changed {
            let wanted = workload.as_ref().filter(|w| w.meshed && w.node == self.node && !w.ips.is_empty());
            match (self.entries.get_mut(id), wanted) {
                (Some(entry), Some(workload)) if same_to_capture(&entry.workload, workload) => {
                    if entry.workload.fail_mode != workload.fail_mode
                        && matches!(entry.state, PodState::Captured { .. })
                    {
                        changes.fail_mode.push(id.clone());
                    }
                    entry.workload = Arc::clone(workload);
                }
                (before, wanted) => {
                    if before.is_some_and(|entry| matches!(entry.state, PodState::Captured { .. })) {
                        changes.release.push(id.clone());
                    }
                    self.entries.remove(id);
                    if let Some(workload) = wanted {
                        let (workload, state) = (Arc::clone(workload), PodState::Waiting);
                        self.entries
                            .insert(id.clone(), Entry { workload, state, denies: false, fail_mode_error: None });
                        changes.attach.push(id.clone());
                    }
                }
            }
        }
        changes
    }

    /// Takes in which pods' policy denies by default. Returns the captured ones whose fail mode is another one for it: first those
    /// that are closed now, then those that are not closed any more.
    pub fn denying(&mut self, denies: impl Fn(&WorkloadId) -> bool) -> (Vec<WorkloadId>, Vec<WorkloadId>) {
        let (mut closed, mut opened) = (Vec::new(), Vec::new());
        for (id, entry) in &mut self.entries {
            let before = entry.fail_mode();
            entry.denies = denies(id);
            let after = entry.fail_mode();
            if before != after && matches!(entry.state, PodState::Captured { .. }) {
                if after == FailMode::Closed { &mut closed } else { &mut opened }.push(id.clone());
            }
        }
        (closed, opened)
    }

    /// Pods that failed and should be tried again.
    #[must_use]
    pub fn failed(&self) -> Vec<WorkloadId> {
        self.entries
            .iter()
            .filter(|(_, entry)| matches!(entry.state, PodState::Failed { .. }))
            .map(|(id, _)| id.clone())
            .collect()
    }

    /// Notes how an attempt ended. Returns whether that is news.
    pub fn set(&mut self, id: &WorkloadId, state: PodState) -> bool {
        let Some(entry) = self.entries.get_mut(id) else { return false };
        let news = entry.state != state;
        entry.state = state;
        // Whoever captures a pod writes its fail mode, too.
        entry.fail_mode_error = None;
        news
    }

    /// Captured pods whose fail mode could not be written and should be tried again.
    #[must_use]
    pub fn fail_mode_failed(&self) -> Vec<WorkloadId> {
        let failed = |entry: &Entry| entry.fail_mode_error.is_some();
        self.entries.iter().filter(|(_, entry)| failed(entry)).map(|(id, _)| id.clone()).collect()
    }

    /// Notes whether a captured pod's fail mode could be written (`None`: it could). Returns whether that is news.
    pub fn set_fail_mode_error(&mut self, id: &WorkloadId, error: Option<String>) -> bool {
        let Some(entry) = self.entries.get_mut(id) else { return false };
        let news = entry.fail_mode_error != error;
        entry.fail_mode_error = error;
        news
    }
}

/// Whether a change of the object leaves the pod's sockets as they are.
fn same_to_capture(a: &WorkloadIr, b: &WorkloadIr) -> bool {
    let key = |w: &WorkloadIr| {
        (
            by_family(&w.ips),
            w.netns.clone(),
            w.cgroup.clone(),
            w.host_network,
            Arc::clone(&w.name),
            Arc::clone(&w.owner),
        )
    };
    key(a) == key(b)
}

/// The order of families says nothing: the network plugin has one, and the status of the pod another.
fn by_family(ips: &[IpAddr]) -> Vec<IpAddr> {
    let mut ips = ips.to_vec();
    ips.sort_by_key(IpAddr::is_ipv6);
    ips
}

/// What capture needs to know of a pod: once for each place where it may be. `announced`: where the CNI plugin said that it is.
///
/// # Errors
/// When the pod cannot be found.
pub fn pod_specs(
    workload: &WorkloadIr,
    fail_mode: FailMode,
    locate: &Locate,
    announced: Option<&Path>,
) -> Result<Vec<PodSpec>, LocateError> {
    let place = match announced {
        // Nothing runs in it yet that could be found.
        Some(netns) => Place { netns: vec![netns.to_owned()], cgroup: None },
        None => locate.find(workload)?,
    };
    let spec = |netns: Option<PathBuf>| PodSpec {
        id: workload.id.clone(),
        namespace: Arc::clone(&workload.namespace),
        name: Arc::clone(&workload.name),
        owner: Arc::clone(&workload.owner),
        account: ServiceAccountKey {
            namespace: Arc::clone(&workload.namespace),
            name: Arc::clone(&workload.service_account),
        },
        netns,
        cgroup: place.cgroup.clone(),
        ips: workload.ips.clone(),
        fail_closed: fail_mode == FailMode::Closed,
    };
    Ok(if workload.host_network { vec![spec(None)] } else { place.netns.iter().cloned().map(Some).map(spec).collect() })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn workload(uid: &str, node: &str, meshed: bool) -> Arc<WorkloadIr> {
        Arc::new(WorkloadIr {
            id: WorkloadId::new(uid),
            namespace: "shop".into(),
            name: uid.into(),
            owner: "web".into(),
            service_account: "default".into(),
            node: node.into(),
            ips: vec!["10.0.0.1".parse().unwrap()],
            host_network: false,
            meshed,
            fail_mode: FailMode::Open,
            fail_open_by: None,
            netns: Some("/run/netns/a".into()),
            cgroup: None,
            state: weft_policy::ir::WorkloadState::Ready,
            serves: Vec::new(),
            udp_ports: Vec::new(),
        })
    }

    fn change(pods: &mut Pods, workload: &Arc<WorkloadIr>) -> PodChanges {
        pods.change([(&workload.id, &Some(Arc::clone(workload)))])
    }

    #[test]
    fn only_meshed_pods_of_this_node_are_wanted() {
        let mut pods = Pods::new("n1");
        for (w, expected) in
            [(workload("a", "n1", true), 1), (workload("b", "n2", true), 0), (workload("c", "n1", false), 0)]
        {
            assert_eq!(change(&mut pods, &w).attach.len(), expected, "{}", w.id);
        }
    }

    #[test]
    fn a_pod_that_moves_to_another_namespace_path_is_captured_anew() {
        let mut pods = Pods::new("n1");
        let first = workload("a", "n1", true);
        change(&mut pods, &first);
        pods.set(&first.id, PodState::Captured { connections_before: 0 });
        assert_eq!(change(&mut pods, &first), PodChanges::default());
        let mut moved = (*first).clone();
        moved.netns = Some("/run/netns/b".into());
        let changes = change(&mut pods, &Arc::new(moved));
        assert_eq!(
            changes,
            PodChanges { release: vec![first.id.clone()], attach: vec![first.id.clone()], fail_mode: vec![] }
        );
    }

    #[test]
    fn another_fail_mode_leaves_the_pod_captured() {
        let mut pods = Pods::new("n1");
        let first = workload("a", "n1", true);
        change(&mut pods, &first);
        pods.set(&first.id, PodState::Captured { connections_before: 0 });
        let mut closed = (*first).clone();
        closed.fail_mode = FailMode::Closed;
        let changes = change(&mut pods, &Arc::new(closed));
        assert_eq!(changes, PodChanges { fail_mode: vec![first.id.clone()], ..PodChanges::default() });
    }

    #[test]
    fn a_pod_that_policy_denies_is_closed_whatever_its_label_says() {
        let mut pods = Pods::new("n1");
        let (open, waiting) = (workload("a", "n1", true), workload("b", "n1", true));
        let mut closed = (*workload("c", "n1", true)).clone();
        closed.fail_mode = FailMode::Closed;
        let closed = Arc::new(closed);
        for pod in [&open, &waiting, &closed] {
            change(&mut pods, pod);
        }
        for pod in [&open, &closed] {
            pods.set(&pod.id, PodState::Captured { connections_before: 0 });
        }
        assert_eq!(pods.denying(|_| true), (vec![open.id.clone()], vec![]), "no other one changes its mode now");
        for pod in [&open, &waiting, &closed] {
            let entry = pods.entry(&pod.id).unwrap();
            assert_eq!(entry.fail_mode(), FailMode::Closed, "{}", pod.id);
        }
        assert_eq!(pods.denying(|_| true), (vec![], vec![]));
        assert_eq!(pods.denying(|_| false), (vec![], vec![open.id.clone()]));
        assert_eq!(pods.entry(&closed.id).unwrap().fail_mode(), FailMode::Closed);
    }

    #[test]
    fn a_fail_mode_that_could_not_be_written_is_tried_until_it_is() {
        let mut pods = Pods::new("n1");
        let first = workload("a", "n1", true);
        change(&mut pods, &first);
        pods.set(&first.id, PodState::Captured { connections_before: 0 });
        assert!(pods.fail_mode_failed().is_empty());
        let refused = || Some("refused".to_owned());
        assert!(pods.set_fail_mode_error(&first.id, refused()));
        assert!(!pods.set_fail_mode_error(&first.id, refused()), "said once");
        // What policy says later does not hide that the kernel has an older mode.
        pods.denying(|_| true);
        pods.denying(|_| false);
        assert_eq!(pods.fail_mode_failed(), std::slice::from_ref(&first.id));
        assert!(pods.set_fail_mode_error(&first.id, None), "that it is written at last is news");
        assert!(pods.fail_mode_failed().is_empty());
        // Capture writes the mode itself.
        pods.set_fail_mode_error(&first.id, refused());
        pods.set(&first.id, PodState::Captured { connections_before: 0 });
        assert!(pods.fail_mode_failed().is_empty());
        // Pods that are gone are not tried.
        pods.set_fail_mode_error(&first.id, refused());
        pods.change([(&first.id, &None)]);
        assert!(pods.fail_mode_failed().is_empty());
        assert!(!pods.set_fail_mode_error(&first.id, refused()));
    }

    #[test]
    fn a_pod_that_leaves_the_mesh_is_released_once() {
        let mut pods = Pods::new("n1");
        let first = workload("a", "n1", true);
        change(&mut pods, &first);
        pods.set(&first.id, PodState::Captured { connections_before: 2 });
        assert_eq!(pods.change([(&first.id, &None)]).release.len(), 1);
        assert_eq!(pods.change([(&first.id, &None)]), PodChanges::default());
    }
}
