//! `cargo xtask setup`: installs what building and testing weft need, says what and why, and is silent when all is there.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context, Result, bail};

use crate::sh;

mod apiserver;
mod apt;
mod python;

pub(crate) use apt::{Tool, require};
pub(crate) use python::{PythonPackage, require as require_python};

/// How much is wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// To build, and to test all but what real programs speak.
    BuildAndTest,
    /// Also the programs that tests run in pods.
    Programs,
    /// Also the tools of `lint`.
    Lint,
}

/// What every chore needs. A chore with needs of its own calls [`require`] with them.
const TOOLS: [Tool; 8] = [
    ("ip", "iproute2", "makes the network namespaces that stand for pods"),
    ("nft", "nftables", "stands in for kube-proxy and for NetworkPolicy in the demo and the tests"),
    ("curl", "curl", "is the unmodified client of the demo"),
    ("bpftool", "bpftool", "shows the tests what is loaded in the kernel, and what is left after a cleanup"),
    ("nsenter", "util-linux", "starts processes inside a pod's namespace"),
    ("sysctl", "procps", "reads and sets kernel parameters of a namespace"),
    ("cc", "gcc", "links Rust programs"),
    ("setcap", "libcap2-bin", "gives a test pod single capabilities"),
];

/// Real servers and clients, which tests run in pods as they are.
const PROGRAMS: [Tool; 12] = [
    ("nginx", "nginx", "serves HTTP/1.1, HTTP/2 and TLS in a pod"),
    ("haproxy", "haproxy", "notes the requests that it reads, as nginx does with another parser"),
    ("openssl", "openssl", "makes the certificate of a server whose TLS passes through"),
    ("redis-server", "redis-server", "is a server whose client speaks first, on a port of no declared protocol"),
    ("redis-cli", "redis-tools", "is the client of redis"),
    ("redis-benchmark", "redis-tools", "is a pipelining client of redis"),
    ("mariadbd", "mariadb-server-core", "is a server that speaks first"),
    ("mariadb", "mariadb-client-core", "is the client of MariaDB"),
    ("runc", "runc", "runs the agent in a container, as the chart says"),
    ("h2load", "nghttp2-client", "loads HTTP/2 with many connections and streams"),
    ("wrk", "wrk", "loads HTTP/1.1 with many connections"),
    ("faketime", "faketime", "sets the wall clock of one process while that runs"),
];
const PYTHON_PROGRAMS: [PythonPackage; 2] = [
    ("websockets", "17.4", "is a WebSocket server and client"),
    ("grpcio", "1.85.1", "is a gRPC server and client, with the implementation of gRPC that most others share"),
];

/// The toolchain that builds BPF: Debian's own rustc (with its own LLVM and core sources), under this rustup name.
pub(crate) const BPF_TOOLCHAIN: &str = "bpf-deb";
const BPF_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];
const BPF_CLIPPY_PACKAGE: &str = "rust-web-clippy";
/// bpf-linker must speak the bitcode of the rustc above, so both use this LLVM.
const LLVM_MAJOR: &str = "22";
const BPF_LINKER_VERSION: &str = "0.13.0";
/// Exact, so that a new release cannot change what is accepted.
const CARGO_DENY_VERSION: &str = "0.20.2";
const BPFFS: &str = "/sys/fs/bpf";

/// Installs what is missing.
pub(crate) fn run(scope: Scope) -> Result<()> {
    require(&TOOLS)?;
    bpf_toolchain()?;
    if scope == Scope::Programs {
        require(&PROGRAMS)?;
        require_python(&PYTHON_PROGRAMS)?;
        apiserver::require()?;
    }
    if scope == Scope::Lint {
        if !Path::new("/usr/bin/clippy-driver").exists() {
            say(&format!("{BPF_CLIPPY_PACKAGE}: the clippy of the BPF toolchain"));
            apt::install(&[BPF_CLIPPY_PACKAGE])?;
        }
        cargo_deny()?;
    }
    if sh::is_root() {
        mount_bpffs()?;
    }
    Ok(())
}

/// Where bpf-linker and the link to LLVM live: outside of the repository, because they outlive a clone.
pub(crate) fn bpf_prefix() -> Result<PathBuf> {
    let home = std::env::var_os("HOME").context("HOME is not set")?;
    Ok(Path::new(&home).join(".local/share/bpf-toolchain"))
}

fn bpf_toolchain() -> Result<()> {
    let rustc = Path::new("/usr/bin/rustc");
    let rustc_fits = || {
        Path::new("/usr/lib/rustlib/src/rust/library/core").exists()
            && sh::output(Command::new(rustc).arg("-vV"))
                .is_ok_and(|version| version.contains(&format!("LLVM version: {LLVM_MAJOR}")))
    };
    if !rustc_fits() {
        say(&format!(
            "{}: a rustc with the sources of `core`, which builds for the BPF target",
            BPF_PACKAGES.join(", ")
        ));
        apt::install(&BPF_PACKAGES)?;
        if !rustc_fits() {
            bail!("{} is not a rustc with LLVM {LLVM_MAJOR} and the sources of core", rustc.display());
        }
    }

    let prefix = bpf_prefix()?;
    let linker = prefix.join("bin/bpf-linker");
    if !linker.exists() {
        say(&format!("bpf-linker {BPF_LINKER_VERSION}: links BPF programs; built once, about two minutes"));
        link_llvm(rustc, &prefix)?;
        timed("cargo install bpf-linker", || {
            sh::run(
                sh::cargo()
                    .args(["install", "bpf-linker", "--version", BPF_LINKER_VERSION, "--locked", "--quiet"])
                    .args(["--no-default-features", "--features", &format!("llvm-{LLVM_MAJOR}"), "--root"])
                    .arg(&prefix)
                    .env("LLVM_PREFIX", prefix.join("llvm"))
                    .env("CARGO_TARGET_DIR", prefix.join("build"))
                    .env_remove("RUSTFLAGS"),
            )
        })?;
        fs::remove_dir_all(prefix.join("build")).ok();
    }

    let toolchains = sh::output(Command::new("rustup").args(["toolchain", "list"])).context("rustup is needed")?;
    if !toolchains.lines().any(|line| line.split_whitespace().next() == Some(BPF_TOOLCHAIN)) {
        say(&format!("rustup toolchain {BPF_TOOLCHAIN}: a name for /usr/bin/rustc"));
        sh::run(Command::new("rustup").args(["toolchain", "link", BPF_TOOLCHAIN, "/usr"]))?;
    }
    Ok(())
}

/// bpf-linker is built against the very LLVM that rustc loads.
fn link_llvm(rustc: &Path, prefix: &Path) -> Result<()> {
    let libraries = sh::output(Command::new("ldd").arg(rustc))?;
    let llvm = libraries
        .lines()
        .filter(|line| line.contains("libLLVM"))
        .find_map(|line| line.split_whitespace().nth(2))
        .with_context(|| format!("{} does not load libLLVM", rustc.display()))?;
    let lib = prefix.join("llvm/lib");
    fs::create_dir_all(&lib).with_context(|| format!("cannot create {}", lib.display()))?;
    let link = lib.join("libLLVM.so");
    fs::remove_file(&link).ok();
    std::os::unix::fs::symlink(fs::canonicalize(llvm)?, &link)
        .with_context(|| format!("cannot create {}", link.display()))
}

fn cargo_deny() -> Result<()> {
    let present = sh::output(sh::cargo().args(["deny", "--version"]));
    if present.is_ok_and(|version| version.trim().ends_with(CARGO_DENY_VERSION)) {
        return Ok(());
    }
    say(&format!("cargo-deny {CARGO_DENY_VERSION}: checks licences, bans and advisories; built once, some minutes"));
    timed("cargo install cargo-deny", || {
        sh::run(
            sh::cargo()
                .args(["install", "cargo-deny", "--version", CARGO_DENY_VERSION, "--locked", "--quiet"])
                .env_remove("CARGO_TARGET_DIR"),
        )
    })
}

/// Pins live in bpffs; systemd mounts it, minimal machines do not.
fn mount_bpffs() -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    let mounted = mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        fields.next() == Some(BPFFS) && fields.next() == Some("bpf")
    });
    if !mounted {
        say(&format!("mounting bpffs at {BPFFS}: the agent pins its programs there, so that they outlive it"));
        sh::run(&mut sh::command("mount", &["-t", "bpf", "bpf", BPFFS]))?;
    }
    Ok(())
}

fn say(what: &str) {
    println!("setup: {what}");
}

fn timed(what: &str, action: impl FnOnce() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    action()?;
    println!("setup: {what} took {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}
