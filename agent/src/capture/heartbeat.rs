//! The agent's heartbeat, and the other settings that share its map entry.

use std::{
    io,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};
use weft_abi::{ABI_VERSION, Settings, limits, settings_flags};

use super::bpf::Map;

/// The only slot of the map.
const SLOT: u32 = 0;

/// Tells the programs that the agent runs.
#[derive(Debug)]
pub struct Heartbeat {
    map: Map<u32, Settings>,
    settings: Mutex<Settings>,
    retired: AtomicBool,
}

impl Heartbeat {
    /// Takes the settings over, with the heartbeat as it is: an agent that starts is not there yet.
    pub(crate) fn new(map: Map<u32, Settings>, host_netns_cookie: u64, only_pods: bool) -> io::Result<Self> {
        let mut settings = map.get(&SLOT)?.unwrap_or_default();
        settings.heartbeat_max_age_ns = limits::HEARTBEAT_MAX_AGE_NS;
        settings.host_netns_cookie = host_netns_cookie;
        settings.abi_version = ABI_VERSION;
        settings.flags &= !settings_flags::ONLY_PODS;
        if only_pods {
            settings.flags |= settings_flags::ONLY_PODS;
        }
        map.set(&SLOT, &settings)?;
        Ok(Self { map, settings: Mutex::new(settings), retired: AtomicBool::new(false) })
    }

    /// Says that every worker was seen running `age` ago or later. The slowest worker counts: when one hangs, the heartbeat ages with
    /// it, and after `HEARTBEAT_MAX_AGE_NS` the programs treat the agent as gone.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn beat(&self, age: Duration) -> io::Result<()> {
        if self.retired.load(Ordering::Relaxed) {
            return Ok(());
        }
        let seen_ns = now_ns().saturating_sub(u64::try_from(age.as_nanos()).unwrap_or(u64::MAX));
        self.change(|settings| settings.heartbeat_ns = settings.heartbeat_ns.max(seen_ns))
    }

    /// After a hand-over the heartbeat is the new agent's.
    pub(crate) fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
    }

    pub(crate) fn set_host_pods(&self, any: bool) -> io::Result<()> {
        self.change(|settings| {
            settings.flags &= !settings_flags::HOST_PODS;
            if any {
                settings.flags |= settings_flags::HOST_PODS;
            }
        })
    }

    fn change(&self, change: impl FnOnce(&mut Settings)) -> io::Result<()> {
        let mut settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut settings);
        self.map.set(&SLOT, &settings)
    }
}

/// The clock of `bpf_ktime_get_ns`.
pub(crate) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    let nanoseconds = u64::try_from(now.tv_nsec).unwrap_or_default();
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}
