//! Can this process, on this kernel, capture at all?

use std::path::Path;

use rustix::thread::{CapabilitySet, capabilities};

use super::{error::CaptureError, programs};

/// `BPF_FS_MAGIC`, linux/magic.h.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// What capture does needs these: programs and maps, routes and transparent sockets, other network namespaces.
const NEEDED: [(CapabilitySet, &str); 3] = [
    (CapabilitySet::BPF, "CAP_BPF"),
    (CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"),
    (CapabilitySet::SYS_ADMIN, "CAP_SYS_ADMIN"),
];

/// Checks what can be checked without loading anything.
pub(crate) fn check(bpf_dir: &Path) -> Result<(), CaptureError> {
    if !programs::built() {
        return Err(CaptureError::NoObject);
    }
    privileges()?;
    bpf_fs(bpf_dir)
}

/// Whether the process has the capabilities.
pub(crate) fn privileges() -> Result<(), CaptureError> {
    let have = capabilities(None)
        .map_err(|error| CaptureError::kernel("read this process's capabilities")(error.into()))?
        .effective;
    let missing: Vec<&str> = NEEDED.iter().filter(|(need, _)| !have.contains(*need)).map(|(_, name)| *name).collect();
    if missing.is_empty() { Ok(()) } else { Err(CaptureError::NotPrivileged { missing: missing.join(", ") }) }
}

/// Whether the directory, or where it is to be made, is on a BPF file system.
pub(crate) fn bpf_fs(bpf_dir: &Path) -> Result<(), CaptureError> {
    let existing = bpf_dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let magic = rustix::fs::statfs(existing).ok().and_then(|stat| u64::try_from(stat.f_type).ok());
    if magic == Some(BPF_FS_MAGIC) { Ok(()) } else { Err(CaptureError::NoBpfFs { path: bpf_dir.to_owned() }) }
}

/// The release of the running kernel.
pub(crate) fn kernel_release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_not_on_a_bpf_file_system_is_refused_by_name() {
        let dir = tempfile::tempdir().expect("directory");
        let error = bpf_fs(&dir.path().join("weft/v1")).expect_err("not a BPF file system");
        assert!(error.to_string().contains("mount -t bpf"), "{error}");
    }
}
