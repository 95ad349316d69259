//! The agent's binary, run on a node of the harness.

use std::{
    ffi::OsString,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    sync::OnceLock,
};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde_json::Value;

use crate::{
    command, http, limits,
    manifests::Manifests,
    node::Node,
    process::Process,
    slot,
    status::{PodStats, Route, Service, ServiceRoutes, Status},
    wait,
};

/// Names the directory that holds `weft-agent` and `weft`, in place of the one beside the test's own binary.
pub const BIN_DIR_VARIABLE: &str = "WEFT_BIN_DIR";

/// The same, set by the program itself.
static BIN_DIR: OnceLock<PathBuf> = OnceLock::new();

/// Says where the binaries are. The first call counts.
pub fn set_binary_dir(dir: &Path) {
    BIN_DIR.get_or_init(|| dir.to_path_buf());
}

/// Where an agent reads what is wanted.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// A directory of manifests.
    Manifests(&'a Path),
    /// The API server that a kubeconfig names.
    Kubeconfig(&'a Path),
}

/// How an agent is started.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// Where it serves metrics, in the node's namespace.
    pub metrics_addr: SocketAddr,
    /// Worker threads; its own default if not given.
    pub workers: Option<u16>,
    /// How long connections may go on after a stop, seconds.
    pub drain_timeout_s: u64,
    /// Further arguments of its command line.
    pub arguments: Vec<String>,
    /// Further variables of its environment.
    pub environment: Vec<(String, String)>,
    /// Its log level.
    pub log: String,
    /// Its directory in bpffs, if not the node's.
    pub bpf_dir: Option<PathBuf>,
    /// Whether the end of its log is printed when it is dropped. In a test that shows only if the test fails.
    pub log_on_drop: bool,
}

impl Default for AgentOptions {
    fn default() -> Self {
        Self {
            metrics_addr: SocketAddr::from(([127, 0, 0, 1], 15020)),
            workers: None,
            drain_timeout_s: 5,
            arguments: Vec::new(),
            environment: Vec::new(),
            log: "info".to_owned(),
            bpf_dir: None,
            log_on_drop: true,
        }
    }
}

/// A running agent. Killed with its value; what it left in the kernel is cleaned up then, by its own `cleanup`.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    node: Node,
    options: AgentOptions,
    cleanup_on_drop: bool,
}

impl Agent {
    /// Starts an agent on the node and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready; the error carries its log.
    pub fn start(node: &Node, manifests: &Manifests) -> Result<Self> {
        Self::start_with(node, manifests, AgentOptions::default())
    }

    /// As [`start`](Self::start), with options.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_with(node: &Node, manifests: &Manifests, options: AgentOptions) -> Result<Self> {
        Self::start_from(node, Source::Manifests(manifests.dir()), options)
    }

    /// Starts an agent that reads from `source` and waits until it is ready.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_from(node: &Node, source: Source<'_>, options: AgentOptions) -> Result<Self> {
        let mut agent = Self::launch_from(node, source, options)?;
        agent.wait_ready()?;
        Ok(agent)
    }

    /// Starts an agent and does not wait.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn launch(node: &Node, manifests: &Path, options: AgentOptions) -> Result<Self> {
        Self::launch_from(node, Source::Manifests(manifests), options)
    }

    /// Starts an agent that reads from `source` and does not wait.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn launch_from(node: &Node, source: Source<'_>, options: AgentOptions) -> Result<Self> {
        let mut command = run_command_from(node, source, &options)?;
        command.env("WEFT_LOG", &options.log).env("RUST_BACKTRACE", "1");
        command.envs(options.environment.iter().map(|(name, value)| (name, value)));
        let process = Process::start(command, &log_path(node))?;
        Ok(Self { process, node: node.clone(), options, cleanup_on_drop: true })
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Waits until `/readyz` says 200 and the status is this process' own.
    ///
    /// # Errors
    /// When that takes too long, or the agent ends.
    pub fn wait_ready(&mut self) -> Result<()> {
        let deadline = limits::AGENT_READY_TIMEOUT;
        let (node, address) = (self.node.clone(), self.options.metrics_addr);
        let pid = self.pid();
        let process = &mut self.process;
        let ready = wait::until("the agent to be ready", deadline, || {
            if let Some(status) = process.has_ended()? {
                return Ok(Some(Some(status)));
            }
            let (code, body) = node.namespace().run(|| http::fetch(address, "/readyz"))?;
            if code != 200 {
                bail!("/readyz answered {code}: {body}");
            }
            let status = status(&node)?;
            if status.pid != pid {
                bail!("process {} still answers, not {pid}", status.pid);
            }
            Ok(Some(None))
        });
        match ready {
            Ok(None) => Ok(()),
            Ok(Some(status)) => bail!("the agent ended with {status}\n{}", self.log_tail()),
            Err(error) => Err(error.context(self.log_tail())),
        }
    }

    /// What `weft status` says.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn status(&self) -> Result<Status> {
        status(&self.node)
    }

    /// Waits until the status is as wanted.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn wait_status<T>(&self, what: &str, mut wanted: impl FnMut(&Status) -> Option<T>) -> Result<T> {
        let mut last = None;
        wait::until(what, limits::APPLY_TIMEOUT, || {
            let status = self.status()?;
            let found = wanted(&status);
            last = Some(status);
            Ok(found)
        })
        .with_context(|| format!("last status: {last:#?}"))
    }

    /// What `weft routes` says.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn routes(&self) -> Result<Vec<ServiceRoutes>> {
        let text = weft(&self.node, &["routes"])?;
        serde_json::from_str(&text).with_context(|| format!("cannot read the routes:\n{text}"))
    }

    /// What `weft access` says.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn access(&self) -> Result<Vec<Value>> {
        let text = weft(&self.node, &["access"])?;
        serde_json::from_str(&text).with_context(|| format!("cannot read what may reach whom:\n{text}"))
    }

    /// What `weft identity` says.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn identity(&self) -> Result<Value> {
        let text = weft(&self.node, &["identity"])?;
        serde_json::from_str(&text).with_context(|| format!("cannot read the identities:\n{text}"))
    }

    /// What `weft services` says.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn services(&self) -> Result<Vec<Service>> {
        let text = weft(&self.node, &["services"])?;
        serde_json::from_str(&text).with_context(|| format!("cannot read the services:\n{text}"))
    }

    /// Waits until the routes of a Service's only port send these shares (Service, percent) of each split (by name) where they should.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn wait_shares(&self, namespace: &str, service: &str, splits: &[(&str, &[(&str, f64)])]) -> Result<()> {
        const TOLERANCE_PERCENT: f64 = 0.01;
        let mut last = Vec::new();
        wait::until(&format!("the routes of {namespace}/{service} to be {splits:?}"), limits::APPLY_TIMEOUT, || {
            last = self.routes()?;
            let Some(found) = last.iter().find(|routes| routes.namespace == namespace && routes.service == service)
            else {
                return Ok(splits.is_empty().then_some(()));
            };
            let from_splits: Vec<_> = found.routes.iter().filter(|route| route.origin.kind == "TrafficSplit").collect();
            // Of a route that has several rules each is named beside it.
            let name = |route: &Route| match route.rule.as_str() {
                "" => route.origin.name.clone(),
                rule => format!("{} {rule}", route.origin.name),
            };
            let all = splits.iter().all(|(split, shares)| {
                found.routes.iter().filter(|route| route.origin.kind != "Service").any(|route| {
                    name(route) == *split
                        && shares.iter().all(|(service, share)| {
                            let backends = route.backends.iter().filter(|backend| backend.service == *service);
                            (backends.map(|backend| backend.share_percent).sum::<f64>() - share).abs()
                                < TOLERANCE_PERCENT
                        })
                })
            });
            let known = from_splits.iter().all(|route| splits.iter().any(|(split, _)| *split == route.origin.name));
            Ok((all && known).then_some(()))
        })
        .with_context(|| format!("last routes: {last:#?}"))
    }

    /// Waits until a Service has so many ready pods on each of its ports.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn wait_endpoints(&self, namespace: &str, service: &str, ready: usize) -> Result<()> {
        let mut last = None;
        wait::until(&format!("{ready} ready pods of {namespace}/{service}"), limits::APPLY_TIMEOUT, || {
            last = self.services()?.into_iter().find(|found| found.namespace == namespace && found.name == service);
            Ok(last.as_ref().filter(|found| found.ports.iter().all(|port| port.ready == ready)).map(drop))
        })
        .with_context(|| format!("last: {last:#?}"))
    }

    /// Waits until a pod is captured.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn wait_captured(&self, namespace: &str, name: &str) -> Result<()> {
        self.wait_status(&format!("pod {namespace}/{name} to be captured"), |status| {
            status.pod(namespace, name).filter(|pod| pod.captured).map(drop)
        })
    }

    /// What happened at a pod's hooks.
    ///
    /// # Errors
    /// When the agent does not answer, or does not know the pod.
    pub fn pod_stats(&self, namespace: &str, name: &str) -> Result<PodStats> {
        let status = self.status()?;
        let pod = status.pod(namespace, name).with_context(|| format!("no pod {namespace}/{name} in the status"))?;
        Ok(pod.stats)
    }

    /// The text of `/metrics`.
    ///
    /// # Errors
    /// When it does not answer 200.
    pub fn metrics(&self) -> Result<String> {
        let address = self.options.metrics_addr;
        let (code, body) = self.node.namespace().run(|| http::fetch(address, "/metrics"))?;
        if code != 200 {
            bail!("/metrics answered {code}");
        }
        Ok(body)
    }

    /// The sum of all samples of a metric whose label set contains every given fragment (`source="client"`).
    ///
    /// # Errors
    /// As [`metrics`](Self::metrics).
    pub fn metric(&self, name: &str, label_fragments: &[&str]) -> Result<f64> {
        let text = self.metrics()?;
        let samples = text.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
                && label_fragments.iter().all(|fragment| line.contains(fragment))
        });
        Ok(samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }

    /// Connections that the agent took at the inbound listeners of its pods. Exact, unlike the kernel's counters of look-ups: a late
    /// segment for a connection that is gone is looked up too.
    ///
    /// # Errors
    /// As [`metrics`](Self::metrics).
    pub fn inbound_connections(&self) -> Result<u64> {
        // Counters are whole numbers, exact far beyond what a test makes.
        Ok(self.metric("weft_connections_total", &["direction=\"inbound\""])? as u64)
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the agent has ended already.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Kills it as the kernel's memory killer would. What it has put into the kernel stays.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn kill(mut self) -> Result<()> {
        self.cleanup_on_drop = false;
        self.process.kill()
    }

    /// Asks it to stop (SIGTERM) and waits for its end.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn stop(mut self) -> Result<ExitStatus> {
        self.cleanup_on_drop = false;
        self.process.signal(Signal::TERM)?;
        let process = &mut self.process;
        wait::until("the agent to stop", limits::AGENT_STOP_TIMEOUT, || process.has_ended())
    }

    /// Starts a second agent, which takes over from this one, and waits until it is ready and this one has ended.
    ///
    /// # Errors
    /// When the hand-over does not succeed: the old one must end with 0.
    pub fn hand_over(self, manifests: &Manifests) -> Result<Self> {
        self.hand_over_from(Source::Manifests(manifests.dir()))
    }

    /// As [`hand_over`](Self::hand_over), to an agent that reads from `source`.
    ///
    /// # Errors
    /// As [`hand_over`](Self::hand_over).
    pub fn hand_over_from(mut self, source: Source<'_>) -> Result<Self> {
        let mut new = Self::launch_from(&self.node, source, self.options.clone())?;
        self.cleanup_on_drop = false;
        new.wait_ready()?;
        let process = &mut self.process;
        let status = wait::until("the old agent to drain", limits::AGENT_STOP_TIMEOUT, || process.has_ended())
            .with_context(|| new.log_tail())?;
        if !status.success() {
            bail!("the old agent ended with {status} after the hand-over\n{}", new.log_tail());
        }
        Ok(new)
    }

    /// Leaves the process running and the kernel as it is when this value is dropped.
    pub fn keep(&mut self) {
        self.cleanup_on_drop = false;
    }

    /// The last lines of its log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        format!("the agent's log ends:\n{}", self.process.log_tail(limits::LOG_TAIL_LINES))
    }

    /// The whole log.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(log_path(&self.node)).unwrap_or_default()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if self.options.log_on_drop {
            slot::complain(&self.log_tail());
        }
        if !self.cleanup_on_drop {
            return;
        }
        self.process.kill().ok();
        if let Err(error) = cleanup(&self.node) {
            slot::complain(&format!("cannot clean up after the agent: {error:#}"));
        }
    }
}

/// The command line of `weft-agent run` on a node.
///
/// # Errors
/// When the binary cannot be found.
pub fn run_command(node: &Node, manifests: &Path, options: &AgentOptions) -> Result<Command> {
    run_command_from(node, Source::Manifests(manifests), options)
}

/// As [`run_command`], with any source.
///
/// # Errors
/// As [`run_command`].
pub fn run_command_from(node: &Node, source: Source<'_>, options: &AgentOptions) -> Result<Command> {
    let mut command = node.agent_command(&binary("weft-agent")?);
    command.arg("run").args(["--node", node.name()]);
    match source {
        Source::Manifests(dir) => command.arg("--manifests").arg(dir),
        Source::Kubeconfig(file) => command.arg("--kubeconfig").arg(file),
    };
    command.args(places(node, options.bpf_dir.clone()));
    command.arg("--cgroup-root").arg(node.cgroup());
    command.args(["--metrics-addr", &options.metrics_addr.to_string()]);
    command.args(["--drain-timeout-s", &options.drain_timeout_s.to_string()]);
    if let Some(workers) = options.workers {
        command.args(["--workers", &workers.to_string()]);
    }
    command.args(&options.arguments);
    Ok(command)
}

/// `weft-agent cleanup` on a node; returns what it printed.
///
/// # Errors
/// When it fails.
pub fn cleanup(node: &Node) -> Result<String> {
    let mut command = node.agent_command(&binary("weft-agent")?);
    command.arg("cleanup").args(places(node, None)).arg("--cgroup-root").arg(node.cgroup());
    command::output(command.args(["-o", "json"]))
}

/// `weft VERB -o json` on a node.
///
/// # Errors
/// When it fails.
pub fn weft(node: &Node, verb: &[&str]) -> Result<String> {
    let mut command = node.agent_command(&binary("weft")?);
    command.arg("--run-dir").arg(run_dir(node)).args(verb).args(["-o", "json"]);
    command::output(&mut command)
}

/// What `weft status` says on a node.
///
/// # Errors
/// When no agent answers.
pub fn status(node: &Node) -> Result<Status> {
    let text = weft(node, &["status"])?;
    serde_json::from_str(&text).with_context(|| format!("cannot read the status:\n{text}"))
}

/// Where the agent of a node keeps its sockets.
#[must_use]
pub fn run_dir(node: &Node) -> PathBuf {
    node.state_dir().join("run")
}

/// A binary of the workspace: beside the running one, or one directory up (tests are in `deps`).
///
/// # Errors
/// When it has not been built.
pub fn binary(name: &str) -> Result<PathBuf> {
    let named = std::env::var_os(BIN_DIR_VARIABLE).map(PathBuf::from);
    let own = std::env::current_exe().context("cannot tell where this program is")?;
    let dirs =
        BIN_DIR.get().cloned().into_iter().chain(named).chain(own.ancestors().skip(1).take(2).map(Path::to_path_buf));
    let candidates: Vec<_> = dirs.map(|dir| dir.join(name)).collect();
    candidates.iter().find(|path| path.is_file()).cloned().with_context(|| {
        format!("{name} is not built (looked for {candidates:?}); `cargo xtask test` and `cargo xtask demo` build it")
    })
}

fn places(node: &Node, bpf_dir: Option<PathBuf>) -> [OsString; 4] {
    let bpf_dir = bpf_dir.unwrap_or_else(|| node.bpf_dir());
    ["--bpf-dir".into(), bpf_dir.into(), "--run-dir".into(), run_dir(node).into()]
}

fn log_path(node: &Node) -> PathBuf {
    node.state_dir().join("agent.log")
}
