//! Why capture failed.

use std::{io, net::IpAddr, path::PathBuf};

use weft_policy::names::WorkloadId;

/// Capture as a whole cannot do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The agent was compiled on a machine where the programs were not.
    #[error("weft-agent was built without its BPF object: run `cargo xtask build-ebpf` and build it again")]
    NoObject,
    /// The process lacks privileges.
    #[error("capture needs {missing}: run weft-agent as root")]
    NotPrivileged {
        /// The capabilities it lacks.
        missing: String,
    },
    /// There is nowhere to pin programs.
    #[error("{} is not on a BPF file system: run `mount -t bpf bpf /sys/fs/bpf`, or set another directory that is", .path.display())]
    NoBpfFs {
        /// The directory that was asked for.
        path: PathBuf,
    },
    /// There is nowhere to attach programs.
    #[error("no cgroup2 hierarchy at {}: capture attaches its programs there", .path.display())]
    NoCgroup {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The agent's own sockets would not be seen.
    #[error(
        "this process runs in cgroup {own}, outside of --cgroup-root {}: programs that are attached there do not see its connections, and \
         what it dials for an application would come back to it without end; set --cgroup-root to a directory that this cgroup is below \
         (the root of the cgroup2 hierarchy always is), or start weft-agent in a cgroup below {}", .root.display(), .root.display()
    )]
    OutsideCgroup {
        /// Where programs would be attached.
        root: PathBuf,
        /// The process' own cgroup, as `/proc/self/cgroup` names it.
        own: String,
    },
    /// The kernel lacks something that capture cannot do without.
    #[error(
        "the kernel refuses {hook}, which needs Linux {needs} or later with CONFIG_BPF_SYSCALL and CONFIG_CGROUP_BPF (this is {running})"
    )]
    MissingHook {
        /// The hook.
        hook: &'static str,
        /// The first kernel that has all that the hook's program uses.
        needs: &'static str,
        /// The kernel that runs.
        running: String,
        /// What the kernel said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The pin directory is not as this agent would have left it.
    #[error("{}: {what}; stop weft-agent and run `weft-agent cleanup`, which removes what is weft's there", .path.display())]
    Pins {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A map has no room.
    #[error("map {map} is full: its limit is {limit} entries (metric weft_capture_map_entries{{map=\"{map}\"}})")]
    Full {
        /// Name of the map.
        map: &'static str,
        /// Its size, entries.
        limit: u32,
    },
    /// The programs cannot be read.
    #[error("cannot load the BPF object {object}")]
    Object {
        /// Which one.
        object: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The kernel refused.
    #[error("cannot {action}")]
    Kernel {
        /// What was tried.
        action: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl CaptureError {
    pub(crate) fn kernel(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::Kernel { action, source }
    }
}

/// One pod cannot be captured, or released.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// The path does not lead to a network namespace.
    #[error("network namespace {} cannot be opened", .path.display())]
    Netns {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The path leads to the host's own namespace.
    #[error("network namespace {} is the host's own: a pod that shares it must say hostNetwork", .path.display())]
    HostNetns {
        /// The path.
        path: PathBuf,
    },
    /// The cgroup of a host-network pod is not there.
    #[error("cgroup {} cannot be opened", .path.display())]
    Cgroup {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A host-network pod can only be told from the node by its cgroup.
    #[error("a host-network pod needs a cgroup, to be told from the node itself")]
    NoCgroup,
    /// The pod has no address to redirect to.
    #[error("the pod has no address")]
    NoAddress,
    /// An address of the pod is not in its namespace.
    #[error("pod address {ip} is not configured in its network namespace, which has {}", list(.present))]
    Address {
        /// The address.
        ip: IpAddr,
        /// Those that are.
        present: Vec<IpAddr>,
    },
    /// Two pods name the same namespace.
    #[error("network namespace is already captured for pod {other}")]
    NetnsTaken {
        /// The other pod, `namespace/name`.
        other: String,
    },
    /// The pod is captured already.
    #[error("pod {0} is captured already")]
    Attached(WorkloadId),
    /// The pod is not captured.
    #[error("pod {0} is not captured")]
    NotAttached(WorkloadId),
    /// Somebody else listens where the agent wants to.
    #[error(
        "port {port} of the loopback address is in use in the pod's network namespace (IPv{ip_version}); weft reserves it"
    )]
    PortInUse {
        /// The port.
        port: u16,
        /// 4 or 6.
        ip_version: u32,
    },
    /// Capture as a whole failed.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The kernel refused.
    #[error("cannot {action}")]
    Kernel {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl PodError {
    pub(crate) fn kernel(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Kernel { action, source }
    }

    /// Stable word for the gauge that says why a pod is not captured.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Netns { .. } => "netns_missing",
            Self::HostNetns { .. } => "netns_is_host",
            Self::Cgroup { .. } | Self::NoCgroup => "cgroup_missing",
            Self::NoAddress => "no_address",
            Self::Address { .. } => "address_not_in_netns",
            Self::NetnsTaken { .. } => "netns_taken",
            Self::Attached(_) => "attached",
            Self::NotAttached(_) => "not_attached",
            Self::PortInUse { .. } => "port_in_use",
            Self::Capture(_) | Self::Kernel { .. } => "kernel_error",
        }
    }

    /// Whether trying again may help although nothing of the pod's changed.
    #[must_use]
    pub fn retryable(&self) -> bool {
        !matches!(
            self,
            Self::HostNetns { .. } | Self::NoCgroup | Self::NoAddress | Self::Attached(_) | Self::NotAttached(_)
        )
    }
}

fn list(addresses: &[IpAddr]) -> String {
    if addresses.is_empty() {
        return "none".to_owned();
    }
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
