//! A number that belongs to one node of one live test process, and everything on the machine that carries it: namespaces, cgroups, pins, files.
//!
//! The number is held by a file lock, which the kernel gives back however the process ends. Whoever takes a number first
//! sweeps away what a process that was killed has left under it.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, Once, PoisonError},
};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};

use crate::{command, limits, namespace, wait};

const STATE_DIR: &str = "/run/weft-harness";
const CGROUP2_DIRS: [&str; 2] = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
const CGROUP_NAME: &str = "weft-harness";
const BPFFS: &str = "/sys/fs/bpf";

/// The numbers that this process holds, for the signal handler.
static HELD: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

/// A number, held until dropped.
#[derive(Debug)]
pub struct Slot {
    number: u32,
    /// Keeps the lock.
    _lock: File,
}

impl Slot {
    /// Takes the first free number and sweeps what is left under it.
    ///
    /// # Errors
    /// When not root, when all numbers are taken, or when leftovers cannot be removed.
    pub fn take() -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            bail!("network namespaces, cgroups and BPF need root");
        }
        raise_open_files()?;
        sweep_when_interrupted();
        fs::create_dir_all(STATE_DIR).with_context(|| format!("cannot create {STATE_DIR}"))?;
        for number in 0..limits::SLOTS_MAX {
            let path = Path::new(STATE_DIR).join(format!("{number}.lock"));
            let lock = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
            if flock(lock.as_fd(), FlockOperation::NonBlockingLockExclusive).is_err() {
                continue;
            }
            let slot = Self { number, _lock: lock };
            held().insert(number);
            sweep(number).with_context(|| format!("cannot remove what an earlier run left under number {number}"))?;
            for dir in [slot.state_dir(), slot.cgroup()?] {
                fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
            }
            return Ok(slot);
        }
        bail!("all {} numbers are taken by live processes", limits::SLOTS_MAX)
    }

    /// The number.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// What names of namespaces and devices begin with.
    #[must_use]
    pub fn prefix(&self) -> String {
        prefix(self.number)
    }

    /// A directory for files: sockets, logs, manifests.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        state_dir(self.number)
    }

    /// A cgroup of our own.
    ///
    /// # Errors
    /// When there is no cgroup2 file system.
    pub fn cgroup(&self) -> Result<PathBuf> {
        cgroup(self.number)
    }

    /// A directory of our own in bpffs, for the agent to create.
    #[must_use]
    pub fn bpf_dir(&self) -> PathBuf {
        bpf_dir(self.number)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Err(error) = sweep(self.number) {
            complain(&format!("cannot clean up: {error:#}"));
        }
        held().remove(&self.number);
    }
}

fn held() -> std::sync::MutexGuard<'static, BTreeSet<u32>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

fn prefix(number: u32) -> String {
    format!("weft{number}-")
}

fn state_dir(number: u32) -> PathBuf {
    Path::new(STATE_DIR).join(number.to_string())
}

fn bpf_dir(number: u32) -> PathBuf {
    Path::new(BPFFS).join(format!("weft-harness-{number}"))
}

fn cgroup(number: u32) -> Result<PathBuf> {
    Ok(cgroup2()?.join(CGROUP_NAME).join(number.to_string()))
}

/// Where cgroup2 is mounted: beside version 1 on some machines.
///
/// # Errors
/// When it is not mounted.
pub fn cgroup2() -> Result<PathBuf> {
    CGROUP2_DIRS
        .iter()
        .map(PathBuf::from)
        .find(|dir| dir.join("cgroup.controllers").exists())
        .context("no cgroup2 file system is mounted at /sys/fs/cgroup or /sys/fs/cgroup/unified")
}

/// Removes everything that carries the number. Does what it can, and then tells the first thing that went wrong.
fn sweep(number: u32) -> Result<()> {
    let mut first_error = None;
    let mut attempt = |result: Result<()>| {
        if let Err(error) = result {
            first_error.get_or_insert(error);
        }
    };
    attempt(cgroup(number).and_then(|dir| remove_cgroup(&dir)));
    // Pins keep programs attached, so they go even if the agent that made them can no longer be run.
    attempt(remove_dir(&bpf_dir(number)));
    match namespace::names_with_prefix(&prefix(number)) {
        Ok(names) => {
            for name in names {
                attempt(command::output(Command::new("ip").args(["netns", "del", &name])).map(drop));
            }
        }
        Err(error) => attempt(Err(error)),
    }
    attempt(remove_dir(&state_dir(number)));
    first_error.map_or(Ok(()), Err)
}

fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// Kills every process in a cgroup and below, and removes it.
pub(crate) fn remove_cgroup(dir: &Path) -> Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    end_processes(dir)?;
    remove_cgroup_dirs(dir)
}

/// Kills everything in a cgroup and waits for its end.
pub(crate) fn end_processes(dir: &Path) -> Result<()> {
    fs::write(dir.join("cgroup.kill"), "1")
        .with_context(|| format!("cannot kill the processes of {}", dir.display()))?;
    wait::until(&format!("the processes of {} to end", dir.display()), limits::KILL_TIMEOUT, || {
        let events = fs::read_to_string(dir.join("cgroup.events"))?;
        Ok(events.lines().any(|line| line == "populated 0").then_some(()))
    })
}

fn remove_cgroup_dirs(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_cgroup_dirs(&entry.path())?;
        }
    }
    fs::remove_dir(dir).with_context(|| format!("cannot remove {}", dir.display()))
}

/// Many connections need many files, in every process that the harness starts: they inherit this. Machines that do not let
/// even root raise the hard limit keep theirs.
fn raise_open_files() -> Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let present = getrlimit(Resource::Nofile);
    let enough = |limit: Option<u64>| limit.is_none_or(|limit| limit >= limits::OPEN_FILES);
    if enough(present.current) {
        return Ok(());
    }
    let wanted = Some(limits::OPEN_FILES);
    let maximum = if enough(present.maximum) { present.maximum } else { wanted };
    setrlimit(Resource::Nofile, Rlimit { current: wanted, maximum })
        .or_else(|_| setrlimit(Resource::Nofile, Rlimit { current: present.maximum, maximum: present.maximum }))
        .context("cannot raise the limit of open files")
}

/// Ctrl-C and SIGTERM clean up too.
fn sweep_when_interrupted() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        let spawned = std::thread::Builder::new().name("signals".to_owned()).spawn(|| {
            if let Err(error) = wait_for_signal() {
                complain(&format!("cannot wait for signals: {error:#}"));
                return;
            }
            let numbers = held().clone();
            for number in numbers {
                if let Err(error) = sweep(number) {
                    complain(&format!("cannot clean up: {error:#}"));
                }
            }
            // 128 + SIGINT, as shells do.
            std::process::exit(130);
        });
        if let Err(error) = spawned {
            complain(&format!("cannot watch for signals: {error}"));
        }
    });
}

fn wait_for_signal() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        Ok(())
    })
}

#[allow(clippy::print_stderr, reason = "the only place left to tell about a failed clean-up")]
pub(crate) fn complain(message: &str) {
    eprintln!("weft-integration: {message}");
}
