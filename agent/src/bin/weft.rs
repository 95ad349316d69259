//! The CLI: asks the agent on this node and prints what it says, and reads manifests without one.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::{future::Future, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use http::{Method, StatusCode};
use weft_agent::{
    admin::{
        api::{Done, Identity, PodAccess, Service, ServiceRoutes, Status},
        client::{ClientError, ask},
    },
    cli::{
        convert::{self, ConvertArgs},
        explain::{self, ExplainArgs},
        lint::{self, LintArgs},
    },
    config::OutputFormat,
    report,
    telemetry::Chain,
};
use weft_policy::explain::Answer;

/// Looks into the weft agent of this node, and into manifests.
#[derive(Debug, Parser)]
#[command(name = "weft", version, about, max_term_width = 120, after_help = EXIT_CODES)]
struct Cli {
    /// The agent's run directory.
    #[arg(long, value_name = "DIR", default_value = "/run/weft", env = "WEFT_RUN_DIR", global = true)]
    run_dir: PathBuf,
    /// How results are printed.
    #[arg(short, long, value_enum, default_value_t, global = true)]
    output: OutputFormat,
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done; 1 the answer is no (lint found errors), or the agent cannot be asked; 2 the \
question is none: a wrong command line, or a file that cannot be read.";

#[derive(Debug, Subcommand)]
enum Command {
    /// What the agent is asked.
    #[command(flatten)]
    Agent(AgentCommand),
    /// Check manifests without an agent: what is not used as it was written, on which line, and what to do about it.
    ///
    /// Everything is parsed, lowered and compiled as the agent does it. Exit code 0: no errors; 1: errors; 2: a file cannot be read.
    Lint(LintArgs),
    /// Say where a connection or request would go, whether it may (mutual TLS included), and which objects say so, or what is missing.
    ///
    /// The agent's own plans are asked, or with --manifests the same engine on manifests. Exit code 0: allowed; 1: anything else (denied,
    /// only some requests or endpoints, nothing ready, not known here); 2: the question names what is not there.
    Explain(ExplainArgs),
    /// Turn Istio's VirtualService, DestinationRule and AuthorizationPolicy into SMI's objects, as YAML.
    ///
    /// What SMI cannot say is refused by name on standard error, and nothing comes of its object. Gateway API objects come with the
    /// next version. Exit code 0: everything is carried; 1: something is refused; 2: a file cannot be read.
    Convert(ConvertArgs),
}

#[derive(Debug, Subcommand)]
enum AgentCommand {
    /// The agent, its pods (captured, or why not), mutual TLS (strict namespaces, pods that other nodes are not told of and why), and
    /// everything that is not used as it was written.
    Status,
    /// Services: addresses, ports, protocols, endpoints.
    Services,
    /// Where requests to each Service go: matches in the order in which they are tried, backends, shares.
    Routes {
        /// Only this Service: NAME or NAMESPACE/NAME.
        service: Option<String>,
    },
    /// What may reach each pod: grants of TrafficTargets, or what holds without.
    Access {
        /// Only this pod: NAME or NAMESPACE/NAME.
        pod: Option<String>,
    },
    /// Service accounts of this node's pods: their certificates, when they end, and why there is none.
    Identity,
    /// Connections that the agent carries now.
    Flows,
    /// Tell the agent to finish its connections and end. New connections meet their pods' fail mode.
    Drain,
    /// Change the agent's log level: "debug", "info,weft_proxy=debug".
    LogLevel {
        /// The level, or filter directives.
        level: String,
    },
}

/// The question is none: as clap has it for a wrong command line.
const NO_QUESTION: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match &cli.command {
        Command::Lint(args) => match lint::run(args) {
            Ok(report) => say(&report.show(cli.output), !report.failed(args.strict)),
            Err(error) => fail(&error, NO_QUESTION),
        },
        Command::Explain(args) if !args.manifests.is_empty() => match explain::offline(args) {
            Ok(answer) => say(&explain::show(&answer, cli.output), explain::is_yes(&answer)),
            Err(error) => fail(&error, NO_QUESTION),
        },
        Command::Explain(args) => on_runtime(explain_by_agent(&cli, args)),
        Command::Convert(args) => match convert::run(args) {
            Ok(report) => {
                for line in report.remarks() {
                    eprintln!("{line}");
                }
                say(&report.show(cli.output), report.complete())
            }
            Err(error) => fail(&error, NO_QUESTION),
        },
        Command::Agent(command) => ask_agent(&cli, command),
    }
}

fn say(text: &str, yes: bool) -> ExitCode {
    println!("{text}");
    if yes { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn fail(error: &(dyn std::error::Error + 'static), code: u8) -> ExitCode {
    eprintln!("error: {}", Chain(error));
    ExitCode::from(code)
}

fn on_runtime(answer: impl Future<Output = ExitCode>) -> ExitCode {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(answer),
        Err(error) => fail(&error, 1),
    }
}

fn ask_agent(cli: &Cli, command: &AgentCommand) -> ExitCode {
    on_runtime(async {
        match run(cli, command).await {
            Ok(text) => say(&text, true),
            Err(error) => fail(&error, 1),
        }
    })
}

async fn explain_by_agent(cli: &Cli, args: &ExplainArgs) -> ExitCode {
    let body = serde_json::to_string(&args.question()).unwrap_or_default();
    match ask::<Answer>(&cli.run_dir, Method::POST, "/explain", &body).await {
        Ok(answer) => say(&explain::show(&answer, cli.output), explain::is_yes(&answer)),
        Err(error @ ClientError::Refused { status: StatusCode::UNPROCESSABLE_ENTITY, .. }) => fail(&error, NO_QUESTION),
        Err(error) => fail(&error, 1),
    }
}

async fn run(cli: &Cli, command: &AgentCommand) -> Result<String, ClientError> {
    let dir = &cli.run_dir;
    let json = cli.output == OutputFormat::Json;
    Ok(match command {
        AgentCommand::Status => {
            let status: Status = ask(dir, Method::GET, "/status", "").await?;
            if json { report::json(&status) } else { report::status(&status) }
        }
        AgentCommand::Services => {
            let services: Vec<Service> = ask(dir, Method::GET, "/services", "").await?;
            if json { report::json(&services) } else { report::services(&services) }
        }
        AgentCommand::Routes { service } => {
            let mut routes: Vec<ServiceRoutes> = ask(dir, Method::GET, "/routes", "").await?;
            if let Some(wanted) = service {
                routes.retain(|r| *wanted == r.service || *wanted == format!("{}/{}", r.namespace, r.service));
            }
            if json { report::json(&routes) } else { report::routes(&routes) }
        }
        AgentCommand::Access { pod } => {
            let mut pods: Vec<PodAccess> = ask(dir, Method::GET, "/access", "").await?;
            if let Some(wanted) = pod {
                pods.retain(|pod| *wanted == pod.name || *wanted == format!("{}/{}", pod.namespace, pod.name));
            }
            if json { report::json(&pods) } else { report::access_of(&pods) }
        }
        AgentCommand::Identity => {
            let identity: Identity = ask(dir, Method::GET, "/identity", "").await?;
            if json { report::json(&identity) } else { report::identity(&identity) }
        }
        AgentCommand::Flows => {
            let flows: Vec<serde_json::Value> = ask(dir, Method::GET, "/flows", "").await?;
            if json { report::json(&flows) } else { report::flows(&flows) }
        }
        AgentCommand::Drain => ask::<Done>(dir, Method::POST, "/drain", "").await?.message,
        AgentCommand::LogLevel { level } => ask::<Done>(dir, Method::PUT, "/log-level", level).await?.message,
    })
}
