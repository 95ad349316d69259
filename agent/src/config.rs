//! Command line of the agent, checked once.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};

use weft_identity::{TrustDomain, limits::TTL_DEFAULT};

use crate::{ca::CaArgs, cni::install::CniPlaces, limits, probe::Question, telemetry::LogFormat};

/// weft's node agent: captures the connections of this node's pods with eBPF and carries them as policy says.
#[derive(Debug, Parser)]
#[command(name = "weft-agent", version, about, max_term_width = 120)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent. If one already runs with the same --run-dir, take over from it without losing a connection.
    Run(Box<RunArgs>),
    /// Remove everything that weft put into this node: programs, links, pins, rules, routes, sysctls. Traffic is direct afterwards.
    Cleanup(CleanupArgs),
    /// Remove weft from every node of a cluster: delete the agents' DaemonSet and wait until all have ended. Each undoes what it did.
    Uninstall(UninstallArgs),
    /// Run the authority of the mesh: it gives agents certificates for the pods of their nodes.
    Ca(Box<CaArgs>),
    /// Answer a container's probe: exit code 0 if the agent of this container is alive, or in charge and ready.
    Probe(ProbeArgs),
}

/// Where weft keeps its things on the node.
#[derive(Clone, Debug, Args)]
pub struct Places {
    /// Directory in bpffs for pinned programs, maps and links. Created if absent; must be weft's own.
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/weft", env = "WEFT_BPF_DIR")]
    pub bpf_dir: PathBuf,
    /// Directory for the admin, hand-over and CNI sockets, made with mode 0700.
    #[arg(long, value_name = "DIR", default_value = "/run/weft", env = "WEFT_RUN_DIR")]
    pub run_dir: PathBuf,
    /// Root of the cgroup2 hierarchy, or the part of it that holds the agent and all its pods: programs are attached there, and to the
    /// kubepods cgroup below it if there is one [default: where cgroup2 is mounted].
    #[arg(long, value_name = "DIR", env = "WEFT_CGROUP_ROOT")]
    pub cgroup_root: Option<PathBuf>,
}

/// Where the CNI plugin goes. Both directories, or neither.
#[derive(Clone, Debug, Default, Args)]
pub struct CniArgs {
    /// Directory of the container runtime's CNI programs, usually /opt/cni/bin: `weft-cni` is copied there, so that pods are captured
    /// before they start.
    #[arg(long, value_name = "DIR", env = "WEFT_CNI_BIN_DIR", requires = "cni_conf_dir")]
    pub cni_bin_dir: Option<PathBuf>,
    /// Directory of the container runtime's network configurations, usually /etc/cni/net.d: the plugin is chained to the first list there.
    #[arg(long, value_name = "DIR", env = "WEFT_CNI_CONF_DIR", requires = "cni_bin_dir")]
    pub cni_conf_dir: Option<PathBuf>,
}

impl CniArgs {
    /// Both directories.
    #[must_use]
    pub fn places(&self) -> Option<CniPlaces> {
        let (bin_dir, conf_dir) = self.cni_bin_dir.clone().zip(self.cni_conf_dir.clone())?;
        Some(CniPlaces { bin_dir, conf_dir })
    }
}

/// Arguments of `run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Where objects come from.
    #[command(flatten)]
    pub source: SourceArgs,
    /// A connection to the API server without a sign of life for so long counts as lost, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = limits::KUBE_LOST_AFTER_S, value_parser = clap::value_parser!(u64).range(limits::KUBE_LOST_AFTER_S_MIN..=limits::KUBE_LOST_AFTER_S_MAX), env = "WEFT_API_LOST_AFTER_S")]
    pub api_lost_after_s: u64,
    /// Name of this node: pods whose spec.nodeName equals it are captured.
    #[arg(long, value_name = "NAME", env = "WEFT_NODE")]
    pub node: String,
    /// Where weft keeps its things.
    #[command(flatten)]
    pub places: Places,
    /// The node's /proc, as far as this process sees it; pods are found through it unless --manifests says where they are.
    #[arg(long, value_name = "DIR", default_value = "/proc", env = "WEFT_HOST_PROC")]
    pub host_proc: PathBuf,
    /// Where the CNI plugin goes.
    #[command(flatten)]
    pub cni: CniArgs,
    /// Namespace that the agent itself runs in: where the agents of a cluster agree who of them writes the status of objects.
    #[arg(long, value_name = "NAME", default_value = "weft-system", env = "POD_NAMESPACE")]
    pub pod_namespace: String,
    /// Name of the DaemonSet that runs this agent, in --pod-namespace. If it is gone when the agent is told to stop, weft is being removed:
    /// the agent undoes what it did on the node, as `cleanup` does.
    #[arg(long, value_name = "NAME", env = "WEFT_DAEMONSET")]
    pub daemonset: Option<String>,
    /// Address of /metrics, /livez and /readyz, or "none".
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:15020", value_parser = parse_metrics_addr, env = "WEFT_METRICS_ADDR")]
    pub metrics_addr: MetricsAddr,
    /// Worker threads of the data path [default: one for each core, at most 4].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=weft_proxy::limits::WORKERS_MAX as i64), env = "WEFT_WORKERS")]
    pub workers: Option<u16>,
    /// How long connections may go on after a stop or hand-over, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(0..=86_400), env = "WEFT_DRAIN_TIMEOUT_S")]
    pub drain_timeout_s: u64,
    /// After a hand-over, stay until told to stop, or until the successor is gone. For where an end means a restart: under Kubernetes
    /// the restarted agent would take over again.
    #[arg(long, env = "WEFT_STAY_AFTER_HANDOVER")]
    pub stay_after_handover: bool,
    /// Who signs certificates for this node's pods.
    #[command(flatten)]
    pub identity: IdentityArgs,
    /// Whether pods that no TrafficTarget selects take what is meant for them, where their namespace's label weft.dev/default does not
    /// say.
    #[arg(long, value_enum, default_value_t, env = "WEFT_DEFAULT_STANCE")]
    pub default_stance: DefaultStance,
    /// Whether pods take plaintext from elsewhere, where their namespace's label weft.dev/mtls does not say.
    #[arg(long, value_enum, default_value_t, env = "WEFT_MTLS")]
    pub mtls: DefaultMtls,
    /// How log lines look. Levels are set by WEFT_LOG.
    #[arg(long, value_enum, default_value_t, env = "WEFT_LOG_FORMAT")]
    pub log_format: LogFormat,
}

impl RunArgs {
    /// After how long a connection to the API server without a sign of life counts as lost.
    #[must_use]
    pub fn api_lost_after(&self) -> Duration {
        Duration::from_secs(self.api_lost_after_s)
    }

    /// How long connections may go on after a stop or hand-over.
    #[must_use]
    pub fn drain_timeout(&self) -> Duration {
        Duration::from_secs(self.drain_timeout_s)
    }
}

/// Where objects come from: a directory, an API server outside, or by default the API server of the cluster that the agent runs in.
#[derive(Clone, Debug, Default, Args)]
#[group(multiple = false)]
pub struct SourceArgs {
    /// Read Kubernetes manifests from this directory (*.yaml, *.yml, *.json; not from subdirectories) and follow its changes.
    #[arg(long, value_name = "DIR", env = "WEFT_MANIFESTS")]
    pub manifests: Option<PathBuf>,
    /// Read from the API server that the current context of this file names [default, without --manifests: the API server of the
    /// cluster that the agent runs in, as its service account].
    #[arg(long, value_name = "FILE", env = "WEFT_KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
}

/// Who signs certificates for this node's pods. With --manifests this process does, unless --ca-address names an authority; with an API
/// server and without --ca-address there are no identities, and no mutual TLS.
#[derive(Clone, Debug, Args)]
pub struct IdentityArgs {
    /// Whose names certificates have: spiffe://<trust domain>/ns/<namespace>/sa/<service account>. The same everywhere in a cluster.
    #[arg(long, value_name = "NAME", default_value = "cluster.local", env = "WEFT_TRUST_DOMAIN")]
    pub trust_domain: TrustDomain,
    /// Ask the authority of the cluster at this address.
    #[arg(long, value_name = "HOST:PORT", env = "WEFT_CA_ADDRESS")]
    pub ca_address: Option<String>,
    /// Name that the authority's certificate must have [default: the host of --ca-address].
    #[arg(long, value_name = "NAME", requires = "ca_address", env = "WEFT_CA_SERVER_NAME")]
    pub ca_server_name: Option<String>,
    /// Token that tells the authority who asks; read anew for every call.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/var/run/secrets/weft/ca-token/token",
        env = "WEFT_CA_TOKEN_FILE"
    )]
    pub ca_token_file: PathBuf,
    /// Roots by which the authority is known, PEM; the cluster publishes them in a ConfigMap.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/var/run/secrets/weft/roots/roots.pem",
        env = "WEFT_CA_BUNDLE_FILE"
    )]
    pub ca_bundle_file: PathBuf,
    /// With --manifests: the keys that this process signs with, made if there are none. Agents that are to trust each other share them
    /// [default: keys of its own, kept in the kernel's memory].
    #[arg(long, value_name = "FILE", requires = "manifests", conflicts_with = "ca_address", env = "WEFT_CA_KEYS_FILE")]
    pub ca_keys_file: Option<PathBuf>,
    /// How long certificates live that this process signs, seconds: for tests that watch them being renewed.
    #[arg(long, hide = true, value_name = "SECONDS", default_value_t = TTL_DEFAULT.as_secs(), value_parser = clap::value_parser!(u64).range(1..=TTL_DEFAULT.as_secs()), env = "WEFT_CERTIFICATE_TTL_S")]
    pub certificate_ttl_s: u64,
}

/// Arguments of `cleanup`.
#[derive(Clone, Debug, Args)]
pub struct CleanupArgs {
    /// Where weft keeps its things.
    #[command(flatten)]
    pub places: Places,
    /// Where the CNI plugin is.
    #[command(flatten)]
    pub cni: CniArgs,
    /// How the report is printed.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: OutputFormat,
}

/// Arguments of `uninstall`.
#[derive(Clone, Debug, Args)]
pub struct UninstallArgs {
    /// Use the API server that the current context of this file names [default: that of the cluster that this runs in].
    #[arg(long, value_name = "FILE", env = "WEFT_KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
    /// Namespace of the DaemonSet.
    #[arg(long, value_name = "NAME", default_value = "weft-system", env = "POD_NAMESPACE")]
    pub namespace: String,
    /// Name of the DaemonSet.
    #[arg(long, value_name = "NAME", env = "WEFT_DAEMONSET")]
    pub daemonset: String,
    /// How long agents may take to end, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub timeout_s: u64,
}

/// Arguments of `probe`.
#[derive(Clone, Debug, Args)]
pub struct ProbeArgs {
    /// What is asked.
    #[arg(value_enum)]
    pub question: Question,
    /// The agent's run directory.
    #[arg(long, value_name = "DIR", default_value = "/run/weft", env = "WEFT_RUN_DIR")]
    pub run_dir: PathBuf,
}

/// What holds where no TrafficTarget selects a pod and its namespace does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum DefaultStance {
    /// It takes everything.
    #[default]
    Allow,
    /// It takes nothing, as SMI says.
    Deny,
}

/// What pods take from elsewhere whose namespace is in the mesh and does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum DefaultMtls {
    /// Mutual TLS, and plaintext.
    #[default]
    Permissive,
    /// Mutual TLS alone.
    Strict,
}

impl DefaultMtls {
    /// Whether plaintext is refused.
    #[must_use]
    pub fn is_strict(self) -> bool {
        self == Self::Strict
    }

    /// As on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Permissive => "permissive",
            Self::Strict => "strict",
        }
    }
}

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum OutputFormat {
    /// A table for people.
    #[default]
    Table,
    /// JSON for programs.
    Json,
}

/// Address of the metrics endpoint, or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetricsAddr(pub Option<SocketAddr>);

impl std::fmt::Display for MetricsAddr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(addr) => addr.fmt(f),
            None => f.write_str("none"),
        }
    }
}

pub(crate) fn parse_metrics_addr(text: &str) -> Result<MetricsAddr, String> {
    if text == "none" {
        return Ok(MetricsAddr(None));
    }
    text.parse()
        .map(|addr| MetricsAddr(Some(addr)))
        .map_err(|_| "expected ADDRESS:PORT, as in 127.0.0.1:15020, or \"none\"".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn objects_come_from_one_place() {
        let sources = |args: &[&str]| {
            let all = ["weft-agent", "run", "--node", "n"].iter().chain(args);
            Cli::try_parse_from(all).map(|cli| match cli.command {
                Command::Run(args) => (args.source.manifests.is_some(), args.source.kubeconfig.is_some()),
                Command::Cleanup(_) | Command::Uninstall(_) | Command::Ca(_) | Command::Probe(_) => {
                    unreachable!("the words say run")
                }
            })
        };
        assert_eq!(sources(&["--manifests", "d"]).unwrap(), (true, false));
        assert_eq!(sources(&["--kubeconfig", "f"]).unwrap(), (false, true));
        assert_eq!(sources(&[]).unwrap(), (false, false), "the cluster that it runs in");
        let error = sources(&["--manifests", "d", "--kubeconfig", "f"]).unwrap_err();
        assert!(error.to_string().contains("cannot be used with"), "{error}");
    }

    #[test]
    fn metrics_addresses_are_checked() {
        assert_eq!(parse_metrics_addr("none"), Ok(MetricsAddr(None)));
        assert!(parse_metrics_addr("[::1]:1").is_ok());
        assert!(parse_metrics_addr("localhost").is_err());
    }
}
