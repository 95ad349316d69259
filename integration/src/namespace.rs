//! Network namespaces by name, as `ip netns` keeps them.

use std::{
    fs::File,
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::command;

const NETNS_DIR: &str = "/run/netns";

/// A network namespace that is deleted with this value.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes a namespace.
    ///
    /// # Errors
    /// When the kernel refuses, or the name is taken.
    pub fn create(name: &str) -> Result<Self> {
        command::output(Command::new("ip").args(["netns", "add", name]))?;
        Ok(Self { name: name.to_owned() })
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for the namespace.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new(NETNS_DIR).join(&self.name)
    }

    /// A command that runs in the namespace. It stays in the cgroup of the caller.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// Runs lines of `ip`'s own batch language in the namespace.
    ///
    /// # Errors
    /// When one of the lines fails.
    pub fn ip(&self, batch: &str) -> Result<()> {
        command::input(self.command("ip").args(["-batch", "-"]), batch).map(drop)
    }

    /// Runs `action` on a thread inside the namespace. Only the thread is there: it stays in this process' cgroup.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or `action` fails or panics.
    pub fn run<T: Send>(&self, action: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        run_in(&self.path(), action)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Already gone is fine.
        command::output(Command::new("ip").args(["netns", "del", &self.name])).ok();
    }
}

/// Runs `action` on a thread inside the namespace that `path` stands for.
///
/// # Errors
/// When the namespace cannot be entered, or `action` fails or panics.
pub fn run_in<T: Send>(path: &Path, action: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                .with_context(|| format!("cannot enter {}", path.display()))?;
            action()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Names of all namespaces that begin with `prefix`.
///
/// # Errors
/// When the directory cannot be read.
pub fn names_with_prefix(prefix: &str) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(NETNS_DIR) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot list {NETNS_DIR}")),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with(prefix) {
            names.push(name);
        }
    }
    Ok(names)
}
