//! The root file system of a virtual machine: busybox, the tests, and what they call.

use std::{
    collections::BTreeSet,
    fs,
    io::BufWriter,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use super::{MUST_RUN, VERIFIER_REPORT, cpio::Archive, package::Package};
use crate::sh;

/// What the line with the kernel's release begins with.
pub(super) const RELEASE_MARK: &str = "weft-kernel: ";
/// What the last line begins with; then comes the tests' exit status.
pub(super) const END_MARK: &str = "weft-end: ";

/// Programs that the tests call, besides busybox's own.
const PROGRAMS: [&str; 2] = ["ip", "bash"];
/// What the tests need of the kernel that is not built in: links, bridges, and what tells which sockets there are.
const MODULES: [&str; 3] = ["veth", "bridge", "tcp_diag"];
/// Where the tests are.
const TESTS: &str = "/tests/capture";

/// Writes it. `arguments` go to the tests.
pub(super) fn write(to: &Path, package: &Package, program: &Path, arguments: &[String]) -> Result<()> {
    let file = fs::File::create(to).with_context(|| format!("cannot create {}", to.display()))?;
    let mut archive = Archive::new(BufWriter::new(file));
    for dir in ["/proc", "/sys", "/dev", "/tmp", "/run/netns", "/root"] {
        archive.directory(Path::new(dir))?;
    }
    let busybox = fs::read(found("busybox")?).context("cannot read busybox")?;
    archive.file(Path::new("/bin/busybox"), &busybox)?;
    archive.symlink(Path::new("/bin/sh"), "busybox")?;

    // Symbols of the test program are four fifths of it, and all of it is in the machine's memory twice while it boots.
    let stripped = to.with_extension("stripped");
    sh::output(sh::command("strip", &["-o"]).arg(&stripped).arg(program))?;
    let tests = fs::read(&stripped).with_context(|| format!("cannot read {}", stripped.display()))?;
    fs::remove_file(&stripped).ok();
    archive.file(Path::new(TESTS), &tests)?;

    let mut libraries = libraries(program)?;
    for name in PROGRAMS {
        let path = found(name)?;
        archive.file(&Path::new("/usr/bin").join(name), &read(&path)?)?;
        libraries.extend(self::libraries(&path)?);
    }
    for library in libraries {
        // Read through links: the loader only asks for the name.
        archive.file(&library, &read(&library)?)?;
    }
    let modules = modules(package)?;
    let mut loads = String::new();
    for (name, content) in modules {
        archive.file(&Path::new("/modules").join(&name), &content)?;
        loads.push_str(&format!("insmod /modules/{name}\n"));
    }
    archive.file(Path::new("/init"), init(&loads, arguments).as_bytes())?;
    archive.finish().with_context(|| format!("cannot write {}", to.display()))
}

/// The first process. Results go to the second serial port, so that nothing of the kernel's gets between them.
fn init(loads: &str, arguments: &[String]) -> String {
    let arguments: Vec<String> = arguments.iter().map(|argument| format!("'{argument}'")).collect();
    format!(
        "#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
export PATH=/usr/bin:/bin HOME=/root
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup /sys/fs/cgroup
mkdir -p /run/netns
{loads}ip link set lo up
exec 3>/dev/ttyS1
echo \"{RELEASE_MARK}$(uname -r)\" >&3
cd /tmp
{VERIFIER_REPORT}=/tmp/verifier {MUST_RUN}=1 RUST_BACKTRACE=0 {TESTS} --test-threads=1 {} >&3 2>&3
status=$?
[ -f /tmp/verifier ] && cat /tmp/verifier >&3
echo \"{END_MARK}$status\" >&3
sync
poweroff -f
",
        arguments.join(" ")
    )
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn found(program: &str) -> Result<PathBuf> {
    sh::find(program).with_context(|| format!("there is no {program} on this machine"))
}

/// The shared libraries of a program, and its loader.
fn libraries(program: &Path) -> Result<BTreeSet<PathBuf>> {
    let listed = sh::output(sh::command("ldd", &[]).arg(program))?;
    Ok(listed.lines().filter_map(library).collect())
}

/// From `NAME => PATH (ADDRESS)` or `PATH (ADDRESS)`; the kernel's own (`linux-vdso.so.1`) has no path.
fn library(line: &str) -> Option<PathBuf> {
    let path = line.split("=>").last()?.split_whitespace().next()?;
    path.starts_with('/').then(|| PathBuf::from(path))
}

/// The modules that are needed, with those that they need before them, unpacked.
fn modules(package: &Package) -> Result<Vec<(String, Vec<u8>)>> {
    let dir = package.modules()?;
    let files = files_of_modules(&dir)?;
    let mut ordered = Vec::new();
    for module in MODULES {
        add_module(module, &files, &mut ordered)?;
    }
    Ok(ordered)
}

type Files = std::collections::BTreeMap<String, PathBuf>;

/// Every module file by the module's name. An unpacked package has no index yet: `depmod` makes it on installation.
fn files_of_modules(dir: &Path) -> Result<Files> {
    let mut files = Files::new();
    let mut waiting = vec![dir.join("kernel")];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))?.flatten() {
            let path = entry.path();
            if path.is_dir() {
                waiting.push(path);
            } else if let Some((name, _)) = entry.file_name().to_string_lossy().split_once(".ko") {
                files.insert(name.replace('-', "_"), path);
            }
        }
    }
    Ok(files)
}

fn add_module(name: &str, files: &Files, ordered: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
    let file_name = format!("{name}.ko");
    if ordered.iter().any(|(present, _)| *present == file_name) {
        return Ok(());
    }
    let path = files.get(name).with_context(|| format!("the kernel has no module {name}"))?;
    let content = if path.extension().is_some_and(|extension| extension == "xz") { unpack(path)? } else { read(path)? };
    for needed in depends(&content) {
        add_module(&needed, files, ordered)?;
    }
    ordered.push((file_name, content));
    Ok(())
}

/// What a module says of itself: `depends=stp,llc`, among other words that end in NUL.
fn depends(module: &[u8]) -> Vec<String> {
    let words = module.split(|byte| *byte == 0);
    let list = words.filter_map(|word| word.strip_prefix(b"depends=")).next().unwrap_or_default();
    let names = String::from_utf8_lossy(list);
    names.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

fn unpack(path: &Path) -> Result<Vec<u8>> {
    let output =
        sh::command("xz", &["-dc"]).arg(path).output().with_context(|| format!("cannot unpack {}", path.display()))?;
    if !output.status.success() {
        bail!("cannot unpack {}: {}", path.display(), String::from_utf8_lossy(&output.stderr));
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_what_ldd_prints() {
        let path = |text: &str| library(text);
        assert_eq!(path("\tlinux-vdso.so.1 (0x00007ffd3a5f2000)"), None);
        assert_eq!(
            path("\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f4b1a)"),
            Some("/lib/x86_64-linux-gnu/libc.so.6".into())
        );
        assert_eq!(path("\t/lib64/ld-linux-x86-64.so.2 (0x00007f4b1a)"), Some("/lib64/ld-linux-x86-64.so.2".into()));
    }

    #[test]
    fn a_module_says_what_it_needs() {
        assert_eq!(depends(b"\x7fELF\0license=GPL\0depends=stp,ipv6-x\0retpoline=Y\0"), ["stp", "ipv6_x"]);
        assert!(depends(b"\0depends=\0name=stp\0").is_empty());
    }

    #[test]
    fn the_tests_run_with_their_arguments_after_the_modules_are_loaded() {
        let script = init("insmod /modules/veth.ko\n", &["--skip=a::b".to_owned()]);
        let module = script.find("insmod /modules/veth.ko").expect("loads it");
        let tests = script.find("/tests/capture --test-threads=1 '--skip=a::b'").expect("runs them");
        assert!(module < tests, "{script}");
    }
}
