//! Where a process runs: its cgroups, its core, its network namespace. Joined before the program starts, so that everything it ever
//! uses is accounted.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::accounting::MemoryGroup;

/// A place.
#[derive(Clone, Debug)]
pub struct Place {
    /// Cgroup (v2) that accounts CPU time.
    pub cgroup: PathBuf,
    /// More files that a process writes itself to.
    pub memory: Option<PathBuf>,
    /// The only core.
    pub core: usize,
    /// Network namespace.
    pub netns: PathBuf,
}

impl Place {
    /// In a cgroup and a namespace, on a core.
    #[must_use]
    pub fn new(cgroup: &Path, netns: &Path, core: usize) -> Self {
        Self { cgroup: cgroup.to_path_buf(), memory: None, core, netns: netns.to_path_buf() }
    }

    /// With its memory accounted.
    #[must_use]
    pub fn with_memory(mut self, group: &MemoryGroup) -> Self {
        self.memory = group.procs();
        self
    }

    /// A command there. Arguments that are added go to `program`, which gets the process id of the command.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        const JOIN: &str = "echo $$ > \"$0\" && exec taskset -c \"$1\" nsenter --net=\"$2\" -- \"${@:3}\"";
        let mut command = self.joining(JOIN);
        command.arg(self.cgroup.join("cgroup.procs")).arg(self.core.to_string()).arg(&self.netns).arg(program);
        command
    }

    /// A command that finds its cgroup and its namespace by itself, on the core and with its memory accounted.
    #[must_use]
    pub fn around(&self, inner: &Command) -> Command {
        let mut command = self.joining("exec taskset -c \"$0\" \"$@\"");
        command.arg(self.core.to_string()).arg(inner.get_program()).args(inner.get_args());
        command
    }

    fn joining(&self, script: &str) -> Command {
        let mut command = Command::new("bash");
        let memory = match &self.memory {
            Some(path) => format!("echo $$ > '{}' && ", path.display()),
            None => String::new(),
        };
        command.arg("-c").arg(memory + script);
        command
    }
}

/// This program.
///
/// # Errors
/// When the kernel does not tell where it is.
pub fn own_binary() -> Result<PathBuf> {
    std::env::current_exe().context("cannot tell where this program is")
}
