//! Where in the cgroup hierarchy programs are attached, and whose programs run before ours.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use super::{
    bpf::{self, attach_type},
    error::CaptureError,
    limits::{CGROUP_PROGRAMS_MAX, CGROUPS_SCANNED_MAX, PODS_CGROUP_DEPTH_MAX},
};

/// Where systemd mounts the unified hierarchy: beside the old ones, or instead of them.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];

/// `CGROUP2_SUPER_MAGIC`, linux/magic.h.
const CGROUP2_MAGIC: u64 = 0x6367_7270;

/// What the cgroup of all pods is called, in each of kubelet's cgroup drivers.
const PODS_CGROUPS: [&str; 3] = ["kubepods", "kubepods.slice", "kubelet-kubepods.slice"];

/// Inode number, and so id, of the root of the whole hierarchy (kernfs numbers from one).
const HIERARCHY_ROOT: u64 = 1;

/// The cgroups that programs are attached to.
#[derive(Debug)]
pub(crate) struct Cgroups {
    /// Root of the hierarchy: sees the node's own sockets too.
    pub(crate) root: Cgroup,
    /// All pods and nothing else, if there is such a cgroup.
    pub(crate) pods: Option<Cgroup>,
}

/// An open cgroup.
#[derive(Debug)]
pub(crate) struct Cgroup {
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    /// What `bpf_get_current_ancestor_cgroup_id` says.
    pub(crate) id: u64,
}

impl Cgroup {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        if fs_magic(path) != Some(CGROUP2_MAGIC) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a directory of the cgroup2 hierarchy"));
        }
        // On 64-bit machines a cgroup's id is its inode number.
        Ok(Self { id: file.metadata()?.ino(), path: path.to_owned(), file })
    }
}

impl Cgroups {
    /// Opens the given root, or finds it.
    pub(crate) fn find(root: Option<&Path>) -> Result<Self, CaptureError> {
        let missing = |path: &Path| CaptureError::NoCgroup { path: path.to_owned() };
        let root = match root {
            Some(path) => Cgroup::open(path).map_err(|_| missing(path))?,
            None => MOUNTS
                .iter()
                .find_map(|path| Cgroup::open(Path::new(path)).ok())
                .ok_or_else(|| missing(Path::new(MOUNTS[1])))?,
        };
        let pods = pods_cgroup(&root.path).and_then(|path| Cgroup::open(&path).ok());
        Ok(Self { root, pods })
    }

    /// Where the connect programs go.
    pub(crate) fn connect(&self) -> &Cgroup {
        self.pods.as_ref().unwrap_or(&self.root)
    }
}

/// Fails unless this process runs in the cgroup that `sock_ops` is to be attached to, or below: a program sees the sockets of those
/// processes alone. What the agent dials for an application from elsewhere gets no bypass entry, so the pod's look-up program hands it to
/// the agent again, which dials for it, and so on without end. Asked of the kernel, not of `/proc/self/cgroup`, whose names are relative
/// to a namespace.
pub(crate) fn check_own(root: Option<&Path>) -> Result<(), CaptureError> {
    let root = Cgroups::find(root)?.root;
    if root.id == HIERARCHY_ROOT || holds(&root.path, std::process::id()) {
        return Ok(());
    }
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("that is not known").to_owned();
    Err(CaptureError::OutsideCgroup { root: root.path, own })
}

/// Whether a thread of this namespace's is in the cgroup or below.
fn holds(root: &Path, thread: u32) -> bool {
    let thread = thread.to_string();
    let mut waiting = VecDeque::from([root.to_owned()]);
    let mut scanned = 0;
    while let Some(path) = waiting.pop_front() {
        scanned += 1;
        if scanned > CGROUPS_SCANNED_MAX {
            // Nobody is refused for what could not be seen.
            tracing::warn!(limit = CGROUPS_SCANNED_MAX, root = %root.display(), "more cgroups than are searched for this process; it is taken to be in one of them");
            return true;
        }
        // Of threads: a cgroup in threaded mode does not tell its processes. One that went away meanwhile has none.
        let threads = std::fs::read_to_string(path.join("cgroup.threads")).unwrap_or_default();
        if threads.lines().any(|line| line == thread) {
            return true;
        }
        waiting.extend(children(&path));
    }
    false
}

fn fs_magic(path: &Path) -> Option<u64> {
    rustix::fs::statfs(path).ok().and_then(|stat| u64::try_from(stat.f_type).ok())
}

fn pods_cgroup(root: &Path) -> Option<PathBuf> {
    let mut level = vec![root.to_owned()];
    for _ in 0..PODS_CGROUP_DEPTH_MAX {
        let children: Vec<PathBuf> = level.iter().flat_map(|dir| children(dir)).collect();
        let named = |dir: &&PathBuf| dir.file_name().is_some_and(|name| PODS_CGROUPS.iter().any(|pods| name == *pods));
        if let Some(found) = children.iter().find(named) {
            return Some(found.clone());
        }
        level = children;
    }
    None
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// A connect program of somebody else's that sees connections before ours does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramAhead {
    /// The cgroup that it is attached to.
    pub cgroup: PathBuf,
    /// `connect4` or `connect6`.
    pub hook: &'static str,
    /// Its id, as `bpftool prog` shows it.
    pub program_id: u32,
    /// Its name.
    pub name: String,
}

/// Finds programs that run before ours: those in our cgroup that were attached earlier, and all below it, since a child's programs
/// run before its parent's.
pub(crate) fn programs_ahead(cgroup: &Cgroup, ours: [u32; 2]) -> Vec<ProgramAhead> {
    let mut ahead = Vec::new();
    let mut waiting = VecDeque::from([cgroup.path.clone()]);
    let mut scanned = 0;
    while let Some(path) = waiting.pop_front() {
        scanned += 1;
        if scanned > CGROUPS_SCANNED_MAX {
            tracing::warn!(limit = CGROUPS_SCANNED_MAX, "more cgroups than are searched for connect programs");
            break;
        }
        for (hook, kind, our_id) in
            [("connect4", attach_type::INET4_CONNECT, ours[0]), ("connect6", attach_type::INET6_CONNECT, ours[1])]
        {
            for program_id in attached(&path, kind).into_iter().take_while(|id| *id != our_id) {
                let name = bpf::program_info(program_id).map(|info| info.name()).unwrap_or_default();
                ahead.push(ProgramAhead { cgroup: path.clone(), hook, program_id, name });
            }
        }
        waiting.extend(children(&path));
    }
    ahead
}

fn attached(path: &Path, attach_type: u32) -> Vec<u32> {
    // A cgroup that went away meanwhile has no programs.
    File::open(path)
        .and_then(|file| bpf::attached_programs(file.as_fd(), attach_type, CGROUP_PROGRAMS_MAX))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pods_cgroup_is_found_under_every_name_and_depth() {
        for name in ["kubepods", "kubepods.slice", "kubelet.slice/kubelet-kubepods.slice"] {
            let root = tempfile::tempdir().expect("directory");
            std::fs::create_dir_all(root.path().join("system.slice/deep")).expect("directory");
            std::fs::create_dir_all(root.path().join(name)).expect("directory");
            assert_eq!(pods_cgroup(root.path()), Some(root.path().join(name)), "{name}");
        }
    }

    #[test]
    fn without_a_pods_cgroup_there_is_none() {
        let root = tempfile::tempdir().expect("directory");
        std::fs::create_dir_all(root.path().join("a/b/kubepods")).expect("directory");
        assert_eq!(pods_cgroup(root.path()), None);
    }

    #[test]
    fn a_directory_that_is_no_cgroup_is_refused() {
        let root = tempfile::tempdir().expect("directory");
        let error = Cgroups::find(Some(root.path())).expect_err("no cgroup");
        assert!(error.to_string().contains("no cgroup2 hierarchy"), "{error}");
    }
}
