use std::{fs, os::unix::fs::symlink};

use tempfile::TempDir;

use super::*;

const UID: &str = "1b4e28ba-2fa1-11d2-883f-0016d3cca427";
const UID_ESCAPED: &str = "1b4e28ba_2fa1_11d2_883f_0016d3cca427";

/// A /proc and a cgroup hierarchy that hold what a test puts there.
struct Host {
    dir: TempDir,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("proc")).unwrap();
        fs::create_dir_all(dir.path().join("cgroup")).unwrap();
        Self { dir }
    }

    fn paths(&self) -> HostPaths {
        HostPaths { proc: self.dir.path().join("proc"), cgroups: vec![self.dir.path().join("cgroup")] }
    }

    fn cgroup(&self, path: &str, procs: &str) {
        let dir = self.dir.path().join("cgroup").join(path);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("cgroup.procs"), procs).unwrap();
    }

    /// A process in a network namespace, which is a file of that name.
    fn process(&self, pid: u32, netns: &str, cgroup: &str) {
        let dir = self.dir.path().join("proc").join(pid.to_string());
        fs::create_dir_all(dir.join("ns")).unwrap();
        let file = self.dir.path().join(netns);
        fs::write(&file, "").unwrap();
        symlink(file, dir.join("ns/net")).unwrap();
        fs::write(dir.join("cgroup"), cgroup).unwrap();
    }

    fn find(&self, uid: &str) -> Result<Vec<String>, LocateError> {
        let place = self.paths().find(uid, false)?;
        let name = |path: &PathBuf| fs::canonicalize(path).unwrap().file_name().unwrap().to_string_lossy().into_owned();
        Ok(place.netns.iter().map(name).collect())
    }
}

#[test]
fn pods_are_found_in_every_layout_of_kubelet_and_runtime() {
    for pod in [
        format!("kubepods/besteffort/pod{UID}"),
        format!("kubepods/burstable/pod{UID}"),
        format!("kubepods/pod{UID}"),
        format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID_ESCAPED}.slice"),
        format!("kubepods.slice/kubepods-pod{UID_ESCAPED}.slice"),
        format!(
            "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{UID_ESCAPED}.slice"
        ),
    ] {
        for container in
            ["cri-containerd-0123abcd.scope", "crio-0123abcd.scope", "crio-conmon-0123abcd.scope", "0123abcd"]
        {
            let host = Host::new();
            host.cgroup("kubepods/burstable/podffffffff-2fa1-11d2-883f-0016d3cca427/c", "7\n");
            host.cgroup(&pod, "");
            host.cgroup(&format!("{pod}/{container}"), "41\n42\n");
            host.process(7, "other", "");
            host.process(41, "pod", "");
            host.process(42, "pod", "");
            assert_eq!(host.find(UID).as_deref(), Ok(&["pod".to_owned()][..]), "{pod}/{container}");
        }
    }
}

#[test]
fn a_cgroup_is_of_a_pod_only_by_its_whole_name() {
    for (name, expected) in [
        (format!("pod{UID}"), true),
        (format!("kubepods-burstable-pod{UID_ESCAPED}.slice"), true),
        (format!("pod{UID_ESCAPED}.slice"), true),
        (format!("pod{UID}x"), false),
        (format!("xpod{UID}"), false),
        (format!("pod{UID_ESCAPED}"), false),
        (format!("kubepods-burstable-pod{UID_ESCAPED}.scope"), false),
        (format!("kubepods-burstable-pod{UID}.slice"), false),
        (format!("evilpod{UID_ESCAPED}.slice"), false),
        ("pod".to_owned(), false),
    ] {
        assert_eq!(is_cgroup_of(OsStr::new(&name), UID), expected, "{name}");
    }
}

#[test]
fn namespaces_that_a_pod_made_itself_come_after_its_own() {
    let host = Host::new();
    host.cgroup(&format!("kubepods/pod{UID}/inner/nested"), "50\n");
    host.cgroup(&format!("kubepods/pod{UID}/pause"), "41\n");
    host.process(50, "nested", "");
    host.process(41, "pod", "");
    assert_eq!(host.find(UID).unwrap(), ["pod", "nested"]);
}

#[test]
fn processes_of_another_pid_namespace_are_found_through_proc() {
    let host = Host::new();
    let pod = format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID_ESCAPED}.slice");
    host.cgroup(&format!("{pod}/cri-containerd-01.scope"), "0\n0\n");
    host.process(900, "other", "0::/kubepods.slice/kubepods-podffff.slice/cri-containerd-02.scope\n");
    host.process(901, "pod", &format!("0::/../../../{pod}/cri-containerd-01.scope\n"));
    assert_eq!(host.find(UID).unwrap(), ["pod"]);
}

#[test]
fn what_is_missing_is_named() {
    let host = Host::new();
    let error = host.find(UID).unwrap_err().to_string();
    assert!(error.contains(UID) && error.contains("cgroup"), "{error}");
    host.cgroup(&format!("kubepods/pod{UID}/c"), "41\n");
    let error = host.find(UID).unwrap_err().to_string();
    assert!(error.contains("no process in") && error.contains("proc"), "{error}");
}

#[test]
fn a_uid_is_no_path() {
    let host = Host::new();
    host.cgroup("pod../x", "1\n");
    for uid in ["", "..", "../x", "a/b", "shop/web", "a\0b"] {
        assert!(matches!(host.find(uid), Err(LocateError::NoCgroup { .. })), "{uid:?}");
    }
}

#[test]
fn this_very_process_is_found_by_its_cgroup() {
    // A directory of a fabricated hierarchy, but the real /proc.
    let host = Host::new();
    host.cgroup(&format!("kubepods/pod{UID}/c"), &format!("{}\n", std::process::id()));
    let paths = HostPaths { proc: "/proc".into(), ..host.paths() };
    let place = paths.find(UID, false).unwrap();
    let inode = |path: &Path| fs::metadata(path).unwrap().ino();
    assert_eq!(inode(&place.netns[0]), inode(Path::new("/proc/self/ns/net")));
    assert!(paths.find(UID, true).unwrap().netns.is_empty(), "a host-network pod has no namespace of its own");
}
