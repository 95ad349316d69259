//! What the scheduler and the memory controller say that a group of processes has used.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// CPU time, microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuTime {
    /// All of it.
    pub usage_us: u64,
    /// In user mode. The kernel divides the exact total by samples, so a short window tells little of the division.
    pub user_us: u64,
    /// In the kernel.
    pub system_us: u64,
}

impl CpuTime {
    /// What the processes of a cgroup (v2) have used so far. These figures are there whether or not the CPU controller is on.
    ///
    /// # Errors
    /// When the cgroup has no `cpu.stat`.
    pub fn of(cgroup: &Path) -> Result<Self> {
        let path = cgroup.join("cpu.stat");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let field = |name| field(&text, name).with_context(|| format!("no {name} in {}", path.display()));
        Ok(Self { usage_us: field("usage_usec")?, user_us: field("user_usec")?, system_us: field("system_usec")? })
    }

    /// What was used since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            usage_us: self.usage_us.saturating_sub(earlier.usage_us),
            user_us: self.user_us.saturating_sub(earlier.user_us),
            system_us: self.system_us.saturating_sub(earlier.system_us),
        }
    }
}

impl std::ops::Add for CpuTime {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            usage_us: self.usage_us + other.usage_us,
            user_us: self.user_us + other.user_us,
            system_us: self.system_us + other.system_us,
        }
    }
}

/// What all cores have done since the machine started, in ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cores {
    /// Ran something.
    busy: u64,
    /// Wanted to, and the hypervisor ran somebody else.
    stolen: u64,
    /// All there was.
    total: u64,
}

impl Cores {
    /// Until now.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn now() -> Result<Self> {
        let text = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        Self::parse(&text).context("cannot understand /proc/stat")
    }

    /// proc_stat(5): user, nice, system, idle, iowait, irq, softirq, steal; guest time is in user time already.
    fn parse(text: &str) -> Option<Self> {
        let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let ticks: Vec<u64> = line.split_whitespace().take(8).map_while(|field| field.parse().ok()).collect();
        let [_, _, _, idle, waiting, _, _, stolen] = ticks[..] else { return None };
        let total = ticks.iter().sum();
        Some(Self { busy: total - idle - waiting - stolen, stolen, total })
    }

    /// Percentages since `earlier`: busy, and stolen.
    #[must_use]
    pub fn since(self, earlier: Self) -> (f64, f64) {
        let total = self.total.saturating_sub(earlier.total).max(1) as f64;
        let percent = |now: u64, earlier: u64| now.saturating_sub(earlier) as f64 * 100.0 / total;
        (percent(self.busy, earlier.busy), percent(self.stolen, earlier.stolen))
    }
}

/// Memory of a group of processes, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Resident set sizes added up: pages that two processes share count twice.
    pub rss: u64,
    /// All that the memory controller charges, kernel memory and page cache included; `None` where there is no such controller.
    pub current: Option<u64>,
    /// Of that, buffers of sockets.
    pub sock: Option<u64>,
}

/// Where the memory of a group is accounted.
#[derive(Debug)]
pub enum MemoryGroup {
    /// The unified hierarchy has the memory controller: the processes' own cgroup tells.
    Unified(PathBuf),
    /// The controller is bound to the old hierarchy; a directory of ours there, removed with this value.
    Legacy(PathBuf),
    /// There is none.
    None,
}

const LEGACY_ROOT: &str = "/sys/fs/cgroup/memory";
const LEGACY_NAME: &str = "weft-bench";

impl MemoryGroup {
    /// For processes that are or will be in `cgroup` (v2); `name` tells this run's group from others.
    ///
    /// # Errors
    /// When a directory cannot be made.
    pub fn new(cgroup: &Path, name: &str) -> Result<Self> {
        // Allowed to fail: that is how one learns that the controller is elsewhere.
        let mut ancestors: Vec<&Path> = cgroup.ancestors().skip(1).collect();
        ancestors.retain(|dir| dir.join("cgroup.subtree_control").exists());
        for dir in ancestors.iter().rev() {
            fs::write(dir.join("cgroup.subtree_control"), "+memory").ok();
        }
        if cgroup.join("memory.current").exists() {
            return Ok(Self::Unified(cgroup.to_path_buf()));
        }
        let root = Path::new(LEGACY_ROOT);
        if !root.join("memory.usage_in_bytes").exists() {
            return Ok(Self::None);
        }
        let dir = root.join(LEGACY_NAME).join(name);
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        // Socket buffers are only counted once there is a limit for them; this one is none.
        fs::write(dir.join("memory.kmem.tcp.limit_in_bytes"), (1_u64 << 40).to_string()).ok();
        Ok(Self::Legacy(dir))
    }

    /// The file that a process writes itself to, if joining the v2 cgroup is not enough.
    #[must_use]
    pub fn procs(&self) -> Option<PathBuf> {
        match self {
            Self::Legacy(dir) => Some(dir.join("cgroup.procs")),
            Self::Unified(_) | Self::None => None,
        }
    }

    /// What the processes of `cgroup` use now.
    ///
    /// # Errors
    /// When a figure cannot be read.
    pub fn read(&self, cgroup: &Path) -> Result<Memory> {
        let rss = processes(cgroup)?.iter().map(|pid| resident_bytes(*pid)).sum();
        let (current, sock) = match self {
            Self::Unified(dir) => {
                let stat = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
                (number(&dir.join("memory.current")), field(&stat, "sock"))
            }
            Self::Legacy(dir) => {
                (number(&dir.join("memory.usage_in_bytes")), number(&dir.join("memory.kmem.tcp.usage_in_bytes")))
            }
            Self::None => (None, None),
        };
        Ok(Memory { rss, current, sock })
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        if let Self::Legacy(dir) = self {
            // A process that has just ended keeps its group for a moment; what is left is removed by the next run.
            let _waited =
                weft_integration::wait::until("an empty memory group", std::time::Duration::from_secs(2), || {
                    Ok(fs::remove_dir(&*dir).is_ok().then_some(()))
                });
        }
    }
}

/// Removes groups of runs that were killed. Those of living ones are not empty and stay.
pub fn sweep() {
    let dir = Path::new(LEGACY_ROOT).join(LEGACY_NAME);
    for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
        fs::remove_dir(entry.path()).ok();
    }
    fs::remove_dir(dir).ok();
}

/// Ids of the processes in a cgroup.
///
/// # Errors
/// When it is not there.
pub fn processes(cgroup: &Path) -> Result<Vec<u32>> {
    let path = cgroup.join("cgroup.procs");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
}

fn resident_bytes(pid: u32) -> u64 {
    // A process that has ended meanwhile has none.
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or_default() * 1024
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_read_and_subtracted() {
        let dir = tempfile::tempdir().expect("directory");
        fs::write(dir.path().join("cpu.stat"), "usage_usec 900\nuser_usec 300\nsystem_usec 600\nnr_periods 0\n")
            .expect("file");
        let now = CpuTime::of(dir.path()).expect("read");
        assert_eq!(now, CpuTime { usage_us: 900, user_us: 300, system_us: 600 });
        let earlier = CpuTime { usage_us: 400, user_us: 100, system_us: 300 };
        assert_eq!(now.since(earlier), CpuTime { usage_us: 500, user_us: 200, system_us: 300 });
        assert!(CpuTime::of(&dir.path().join("missing")).is_err());
    }

    #[test]
    fn busy_and_stolen_time_are_told_apart() {
        let at = |text| Cores::parse(text).expect("parsed");
        let earlier = at("cpu  100 0 100 800 0 0 0 0 0 0\ncpu0 1 2\n");
        let now = at("cpu  130 0 120 830 10 0 0 10 0 0\ncpu0 1 2\n");
        assert_eq!(now.since(earlier), (50.0, 10.0));
        assert_eq!(Cores::parse("cpu  1 2\n"), None);
    }

    #[test]
    fn this_process_is_resident() {
        assert!(resident_bytes(std::process::id()) > 100_000);
    }
}
