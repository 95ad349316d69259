//! The small shop that most tests use: a client, servers of two versions, and their Services, in one meshed namespace. The client's
//! service account is `client`, the servers' `web`.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{
    Agent, AgentOptions, Manifests, Node, Pod, PodSpec, Process, command,
    objects::{ServicePort, cluster_ips, meshed_namespace_failing, service},
    pod::Server,
    testpod::{LoadReport, ServerStats, talk::Transcript},
};

/// The namespace of everything in the shop.
pub const NAMESPACE: &str = "shop";
/// Port of pods that speaks HTTP; 80 at Services.
pub const HTTP: u16 = 8080;
/// Port with the habit `ask`, at pods and Services.
pub const ASK: u16 = 9000;
/// Port with the habit `greet`, at pods and Services.
pub const GREET: u16 = 9001;
/// Port with the habit `echo`, at pods and Services.
pub const ECHO: u16 = 9002;
/// Port with the habit `sum`, at pods and Services.
pub const SUM: u16 = 9003;
/// Port with the habit `reset`, at pods and Services.
pub const RESET: u16 = 9004;
/// Port with the habit `half-close`, at pods and Services.
pub const HALF_CLOSE: u16 = 9005;
/// Port with the habit `stall`, at pods and Services.
pub const STALL: u16 = 9006;
/// Longest run of one load.
const LOAD_TIMEOUT: Duration = Duration::from_secs(180);

/// A server pod with the application in it.
#[derive(Debug)]
pub struct WebPod {
    // The server is dropped before its pod.
    server: Server,
    /// The pod.
    pub pod: Pod,
}

impl WebPod {
    /// What the application has seen.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn stats(&self) -> Result<ServerStats> {
        self.server.stats()
    }

    /// The application's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.server.pid()
    }
}

/// A pod with a program in it that is not the test application.
#[derive(Debug)]
struct Program {
    // Ended before its pod.
    process: Process,
    pod: Pod,
}

/// The shop. Services are numbered from 1 in the order in which they are added; see [`cluster_ips`].
#[derive(Debug)]
pub struct Shop {
    agent: Option<Agent>,
    /// Servers.
    pub web: Vec<WebPod>,
    programs: Vec<Program>,
    /// The client, without any application of its own.
    pub client: Pod,
    /// What the agent reads.
    pub manifests: Manifests,
    /// The node.
    pub node: Node,
    services: Vec<String>,
}

impl Shop {
    /// A client and a namespace with a fail mode (`open` or `closed`); no servers, no agent.
    ///
    /// # Errors
    /// When not root, or the kernel refuses.
    pub fn empty(fail_mode: &str) -> Result<Self> {
        let node = Node::new("node-a")?;
        let mut manifests = Manifests::new(&node)?;
        let client = node.pod(PodSpec::new(NAMESPACE, "client").account("client"))?;
        manifests.put(&meshed_namespace_failing(NAMESPACE, fail_mode))?;
        manifests.put_pod(&client)?;
        Ok(Self { agent: None, web: Vec::new(), programs: Vec::new(), client, manifests, node, services: Vec::new() })
    }

    /// With servers v1-1 to v1-n and v2-1 to v2-m, and the Services `web` (all), `web-v1` and `web-v2`; no agent.
    ///
    /// # Errors
    /// As [`empty`](Self::empty).
    pub fn with_servers(fail_mode: &str, v1: usize, v2: usize) -> Result<Self> {
        let mut shop = Self::empty(fail_mode)?;
        for (version, count) in [("v1", v1), ("v2", v2)] {
            for number in 1..=count {
                shop.add_web(version, &format!("{version}-{number}"))?;
            }
        }
        shop.add_service("web", &[("app", "web")])?;
        shop.add_service("web-v1", &[("app", "web"), ("version", "v1")])?;
        shop.add_service("web-v2", &[("app", "web"), ("version", "v2")])?;
        Ok(shop)
    }

    /// One server, and an agent that has captured it and the client.
    ///
    /// # Errors
    /// As [`empty`](Self::empty), and when the agent does not become ready.
    pub fn running(fail_mode: &str) -> Result<Self> {
        let mut shop = Self::with_servers(fail_mode, 1, 0)?;
        shop.start()?;
        Ok(shop)
    }

    /// Adds a server pod.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn add_web(&mut self, version: &str, name: &str) -> Result<()> {
        let spec = PodSpec::new(NAMESPACE, name)
            .account("web")
            .label("app", "web")
            .label("version", version)
            .port("http", HTTP);
        let pod = self.node.pod(spec)?;
        let server = pod.serve(&serve_args().iter().map(String::as_str).collect::<Vec<_>>())?;
        self.manifests.put_pod(&pod)?;
        self.web.push(WebPod { server, pod });
        Ok(())
    }

    /// Adds a Service with every port of the servers.
    ///
    /// # Errors
    /// When its manifest cannot be written.
    pub fn add_service(&mut self, name: &str, selector: &[(&str, &str)]) -> Result<()> {
        self.services.push(name.to_owned());
        let number = u8::try_from(self.services.len()).context("too many Services")?;
        let object = service(NAMESPACE, name, selector, &cluster_ips(number), &service_ports());
        self.manifests.put(&object)
    }

    /// Adds a pod with any program in it, and a Service of the same name. `start` gets a directory for the program's files.
    ///
    /// # Errors
    /// When the program does not come up, or the kernel refuses.
    pub fn add_program(
        &mut self,
        name: &str,
        ports: &[ServicePort],
        start: impl FnOnce(&Pod, &Path) -> Result<Process>,
    ) -> Result<()> {
        let pod = self.node.pod(PodSpec::new(NAMESPACE, name).label("app", name))?;
        let process = start(&pod, &self.node.state_dir().join(name))?;
        self.manifests.put_pod(&pod)?;
        self.programs.push(Program { process, pod });
        self.services.push(name.to_owned());
        let number = u8::try_from(self.services.len()).context("too many Services")?;
        self.manifests.put(&service(NAMESPACE, name, &[("app", name)], &cluster_ips(number), ports))
    }

    /// A program that [`add_program`](Self::add_program) started, and its pod.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn program(&self, name: &str) -> Result<(&Process, &Pod)> {
        let program = self.programs.iter().find(|program| program.pod.name() == name);
        program.map(|program| (&program.process, &program.pod)).with_context(|| format!("no program {name}"))
    }

    /// Lets kube-proxy's stand-in follow, starts an agent and waits until all pods are captured.
    ///
    /// # Errors
    /// When the agent does not become ready.
    pub fn start(&mut self) -> Result<()> {
        self.start_with(AgentOptions::default())
    }

    /// As [`start`](Self::start), with options.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_with(&mut self, options: AgentOptions) -> Result<()> {
        self.node.sync_kube_proxy(&self.manifests)?;
        let agent = self.agent.insert(Agent::start_with(&self.node, &self.manifests, options)?);
        let programs = self.programs.iter().map(|program| &program.pod);
        for pod in self.web.iter().map(|web| &web.pod).chain(programs).chain([&self.client]) {
            agent.wait_captured(NAMESPACE, pod.name())?;
        }
        Ok(())
    }

    /// The agent.
    ///
    /// # Errors
    /// When none runs.
    pub fn agent(&self) -> Result<&Agent> {
        self.agent.as_ref().context("no agent runs")
    }

    /// Takes the agent out, to kill it or replace it.
    ///
    /// # Errors
    /// When none runs.
    pub fn take_agent(&mut self) -> Result<Agent> {
        self.agent.take().context("no agent runs")
    }

    /// Puts an agent in.
    pub fn set_agent(&mut self, agent: Agent) {
        self.agent = Some(agent);
    }

    /// IPv4 and IPv6 address of a Service.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn service_ips(&self, name: &str) -> Result<[IpAddr; 2]> {
        let index =
            self.services.iter().position(|service| service == name).with_context(|| format!("no Service {name}"))?;
        Ok(cluster_ips(u8::try_from(index + 1)?))
    }

    /// IPv4 address and a port of a Service, as `--to` wants it.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn service(&self, name: &str, port: u16) -> Result<String> {
        Ok(SocketAddr::from((self.service_ips(name)?[0], port)).to_string())
    }

    /// A server by name.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn server(&self, name: &str) -> Result<&WebPod> {
        self.web.iter().find(|web| web.pod.name() == name).with_context(|| format!("no pod {name}"))
    }

    /// Starts connections from the client.
    ///
    /// # Errors
    /// When they cannot be started.
    pub fn spawn_load(&self, args: &[&str]) -> Result<Process> {
        spawn_load(&self.client, args)
    }

    /// Makes connections from the client and tells what became of them.
    ///
    /// # Errors
    /// When the client fails as a program.
    pub fn load(&self, args: &[&str]) -> Result<LoadReport> {
        load(&self.client, args)
    }

    /// A scripted conversation of the client; see [`crate::testpod::talk`].
    ///
    /// # Errors
    /// When the client fails as a program.
    pub fn talk(&self, to: &str, steps: &[&str]) -> Result<Transcript> {
        let mut command = self.client.testpod()?;
        command.args(["talk", "--to", to]);
        for step in steps {
            command.args(["--step", step]);
        }
        let output = command::output(&mut command)?;
        serde_json::from_str(&output).with_context(|| format!("cannot read the transcript {output:?}"))
    }

    /// curl in the client pod, quiet but for errors; its output.
    ///
    /// # Errors
    /// When curl ends with an error.
    pub fn curl(&self, args: &[&str]) -> Result<String> {
        command::output(self.client.command("curl").args(["-sS", "--max-time", "10"]).args(args))
    }

    /// What `/who` answers to the client.
    ///
    /// # Errors
    /// When curl fails, or the answer is no JSON.
    pub fn who(&self, url: &str, args: &[&str]) -> Result<Value> {
        let answer = self.curl(&[args, &[url]].concat())?;
        serde_json::from_str(&answer).with_context(|| format!("{url} answered {answer:?}"))
    }
}

/// Starts connections from a pod.
///
/// # Errors
/// When they cannot be started.
pub fn spawn_load(pod: &Pod, args: &[&str]) -> Result<Process> {
    let mut command = pod.testpod()?;
    command.arg("load").args(args);
    pod.spawn(command)
}

/// Makes connections from a pod and tells what became of them.
///
/// # Errors
/// When the client fails as a program.
pub fn load(pod: &Pod, args: &[&str]) -> Result<LoadReport> {
    finish_load(&mut spawn_load(pod, args)?)
}

/// Makes connections from a pod's network namespace, but not from one of its processes.
///
/// # Errors
/// When the client fails as a program.
pub fn stranger_load(pod: &Pod, args: &[&str]) -> Result<LoadReport> {
    let mut command = pod.stranger(&crate::testpod::binary()?.to_string_lossy());
    command.arg("load").args(args);
    finish_load(&mut pod.spawn(command)?)
}

/// Waits for the end of connections that were started.
///
/// # Errors
/// When the client fails as a program.
pub fn finish_load(process: &mut Process) -> Result<LoadReport> {
    let output = process.finish(LOAD_TIMEOUT)?;
    let report = output.lines().last().context("the load reported nothing")?;
    serde_json::from_str(report).with_context(|| format!("cannot read the report {report:?}"))
}

fn serve_args() -> Vec<String> {
    let mut args = vec!["--http".to_owned(), HTTP.to_string()];
    for (habit, port) in HABITS {
        args.extend(["--tcp".to_owned(), format!("{habit}:{port}")]);
    }
    args
}

const HABITS: [(&str, u16); 7] = [
    ("ask", ASK),
    ("greet", GREET),
    ("echo", ECHO),
    ("sum", SUM),
    ("reset", RESET),
    ("half-close", HALF_CLOSE),
    ("stall", STALL),
];

fn service_ports() -> Vec<ServicePort> {
    let mut ports = vec![ServicePort::http(80, HTTP).target_name("http")];
    ports.extend(HABITS.iter().map(|(habit, port)| ServicePort::named(&format!("tcp-{habit}"), *port, *port)));
    ports
}
