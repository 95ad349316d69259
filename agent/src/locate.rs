//! Where a pod is on this node: its cgroup by its UID, and its network namespace by any process in there.
//!
//! With manifests the pod says so itself. With an API server nothing that a pod says is believed: only the kubelet makes cgroups.

use std::{
    collections::{BTreeSet, VecDeque},
    ffi::OsStr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use weft_policy::ir::WorkloadIr;

use crate::limits;

/// Where cgroup hierarchies are mounted, the unified one first: systemd's layouts "unified" and "hybrid" (systemd, CGROUP_DELEGATION),
/// and version 1 controllers, in which the kubelet puts pods where there is no more than that.
const MOUNTS: [&str; 6] = [
    "/sys/fs/cgroup/unified",
    "/sys/fs/cgroup/systemd",
    "/sys/fs/cgroup/pids",
    "/sys/fs/cgroup/memory",
    "/sys/fs/cgroup/cpu",
    "/sys/fs/cgroup",
];

/// How pods are found.
#[derive(Clone, Debug)]
pub enum Locate {
    /// By what their manifests say.
    Manifests,
    /// By what the kubelet made.
    Host(HostPaths),
}

/// Where to look.
#[derive(Clone, Debug)]
pub struct HostPaths {
    /// The node's /proc.
    pub proc: PathBuf,
    /// Roots of cgroup hierarchies, the one with BPF programs first.
    pub cgroups: Vec<PathBuf>,
}

/// Where a pod may be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Paths of network namespaces, the likeliest first: a pod may make some of its own, and only one has its addresses.
    pub netns: Vec<PathBuf>,
    /// Its cgroup.
    pub cgroup: Option<PathBuf>,
}

/// Why a pod was not found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocateError {
    /// The manifest does not say.
    #[error("metadata.annotations: {0} must say where the pod is")]
    NotSaid(&'static str),
    /// The kubelet made none, or made it elsewhere.
    #[error("no cgroup of pod {uid} below {roots}")]
    NoCgroup {
        /// UID.
        uid: String,
        /// Where it was looked for.
        roots: String,
    },
    /// Nothing runs there, or nothing that can be seen.
    #[error("no process in {cgroup} whose network namespace can be seen below {proc}")]
    NoProcess {
        /// The pod's cgroup.
        cgroup: String,
        /// Where processes were looked for.
        proc: String,
    },
}

impl HostPaths {
    /// Where things are on this node. `cgroup_root` is the one that was asked for.
    #[must_use]
    pub fn new(proc: &Path, cgroup_root: Option<&Path>) -> Self {
        let cgroups = match cgroup_root {
            Some(root) => vec![root.to_owned()],
            None => MOUNTS.iter().map(PathBuf::from).filter(|path| path.is_dir()).collect(),
        };
        Self { proc: proc.to_owned(), cgroups }
    }
}

impl Locate {
    /// Finds a pod.
    ///
    /// # Errors
    /// When it is not there, or not yet.
    pub fn find(&self, workload: &WorkloadIr) -> Result<Place, LocateError> {
        match self {
            Self::Manifests if workload.host_network => match &workload.cgroup {
                Some(cgroup) => Ok(Place { netns: Vec::new(), cgroup: Some(cgroup.clone()) }),
                None => Err(LocateError::NotSaid("weft.dev/cgroup")),
            },
            Self::Manifests => match &workload.netns {
                Some(netns) => Ok(Place { netns: vec![netns.clone()], cgroup: workload.cgroup.clone() }),
                None => Err(LocateError::NotSaid("weft.dev/netns")),
            },
            Self::Host(paths) => paths.find(&workload.id.0, workload.host_network),
        }
    }
}

impl HostPaths {
    fn find(&self, uid: &str, host_network: bool) -> Result<Place, LocateError> {
        let roots = || self.cgroups.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
        let no_cgroup = || LocateError::NoCgroup { uid: uid.to_owned(), roots: roots() };
        if !is_uid(uid) {
            return Err(no_cgroup());
        }
        let mut nothing_in = None;
        for root in &self.cgroups {
            let Some(cgroup) = pod_cgroup(root, uid) else { continue };
            if host_network {
                return Ok(Place { netns: Vec::new(), cgroup: Some(cgroup) });
            }
            let netns = self.namespaces(&cgroup, uid);
            if !netns.is_empty() {
                return Ok(Place { netns, cgroup: Some(cgroup) });
            }
            nothing_in.get_or_insert(cgroup);
        }
        Err(nothing_in.map_or_else(no_cgroup, |cgroup| LocateError::NoProcess {
            cgroup: cgroup.display().to_string(),
            proc: self.proc.display().to_string(),
        }))
    }

    /// The network namespaces of a cgroup's processes, each once: those near its top first.
    fn namespaces(&self, cgroup: &Path, uid: &str) -> Vec<PathBuf> {
        let mut pids = Vec::new();
        let mut hidden = false;
        walk(cgroup, limits::POD_CGROUP_DEPTH_MAX, |dir| {
            let listed = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            for pid in listed.lines().map(str::trim) {
                // A process of another PID namespace than ours reads as 0 (cgroups(7)).
                if pid == "0" { hidden = true } else { pids.push(pid.to_owned()) }
            }
            pids.len() >= limits::POD_PROCESSES_LOOKED_AT
        });
        if pids.is_empty() && hidden {
            pids = self.processes_of(uid);
        }
        let mut seen = BTreeSet::new();
        let mut found = Vec::new();
        for pid in pids.iter().take(limits::POD_PROCESSES_LOOKED_AT) {
            let path = self.proc.join(pid).join("ns/net");
            if std::fs::metadata(&path).is_ok_and(|metadata| seen.insert((metadata.dev(), metadata.ino()))) {
                found.push(path);
            }
        }
        found
    }

    /// The processes that the node's /proc shows in a pod's cgroup: it has the numbers that the cgroup's own list hides from us.
    fn processes_of(&self, uid: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(&self.proc) else { return Vec::new() };
        let is_of_pod = |pid: &String| {
            let cgroups = std::fs::read_to_string(self.proc.join(pid).join("cgroup")).unwrap_or_default();
            cgroups.lines().any(|line| line.split(['/', ':']).any(|name| is_cgroup_of(OsStr::new(name), uid)))
        };
        entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
            .filter(is_of_pod)
            .collect()
    }
}

/// A UID becomes part of a path: only what a UID or a static pod's hash consists of may.
fn is_uid(uid: &str) -> bool {
    !uid.is_empty() && uid.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// What the kubelet calls a pod's cgroup: `pod<uid>` with the cgroupfs driver, and with systemd's a slice, in whose name dashes stand for
/// levels and so cannot stand in the UID (kubernetes, pkg/kubelet/cm/cgroup_manager_linux.go, `escapeSystemdCgroupName`).
fn is_cgroup_of(name: &OsStr, uid: &str) -> bool {
    let Some(name) = name.to_str() else { return false };
    if name.strip_prefix("pod") == Some(uid) {
        return true;
    }
    let slice = name.strip_suffix(".slice").and_then(|name| name.rsplit_once("pod"));
    slice.is_some_and(|(parent, of)| (parent.is_empty() || parent.ends_with('-')) && of == uid.replace('-', "_"))
}

fn pod_cgroup(root: &Path, uid: &str) -> Option<PathBuf> {
    let mut found = None;
    walk(root, limits::POD_CGROUP_DEPTH_MAX, |dir| {
        if dir.file_name().is_some_and(|name| is_cgroup_of(name, uid)) {
            found = Some(dir.to_owned());
        }
        found.is_some()
    });
    found
}

/// Visits a directory and those below it, level by level, until `visit` has had enough.
fn walk(root: &Path, depth: usize, mut visit: impl FnMut(&Path) -> bool) {
    let mut waiting = VecDeque::from([(root.to_owned(), 0)]);
    for _ in 0..limits::CGROUPS_WALKED_MAX {
        let Some((dir, level)) = waiting.pop_front() else { return };
        if visit(&dir) {
            return;
        }
        if level == depth {
            continue;
        }
        let Ok(entries) = std::fs::read_dir(&dir) else { continue };
        // Links are not followed: /sys/fs/cgroup has some to directories that it has anyway.
        let directories = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        waiting.extend(directories.map(|entry| (entry.path(), level + 1)));
    }
}

#[cfg(test)]
mod tests;
