//! The node-local CLI: asks the agent on this node and prints what it says.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use http::Method;
use weft_agent::{
    admin::{
        api::{Done, Service, ServiceRoutes, Status},
        client::{ClientError, ask},
    },
    config::OutputFormat,
    report,
    telemetry::Chain,
};

/// Looks into the weft agent of this node.
#[derive(Debug, Parser)]
#[command(name = "weft", version, about, max_term_width = 120)]
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

#[derive(Debug, Subcommand)]
enum Command {
    /// The agent, its pods (captured, or why not), and everything that is not used as it was written.
    Status,
    /// Services: addresses, ports, protocols, endpoints.
    Services,
    /// Where requests to each Service go: matches in the order in which they are tried, backends, shares.
    Routes {
        /// Only this Service: NAME or NAMESPACE/NAME.
        service: Option<String>,
    },
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

fn main() -> ExitCode {
    let cli = Cli::parse();
    let answer = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())
        .and_then(|runtime| runtime.block_on(run(&cli)).map_err(|error| Chain(&error).to_string()));
    match answer {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: &Cli) -> Result<String, ClientError> {
    let dir = &cli.run_dir;
    let json = cli.output == OutputFormat::Json;
    Ok(match &cli.command {
        Command::Status => {
            let status: Status = ask(dir, Method::GET, "/status", "").await?;
            if json { report::json(&status) } else { report::status(&status) }
        }
        Command::Services => {
            let services: Vec<Service> = ask(dir, Method::GET, "/services", "").await?;
            if json { report::json(&services) } else { report::services(&services) }
        }
        Command::Routes { service } => {
            let mut routes: Vec<ServiceRoutes> = ask(dir, Method::GET, "/routes", "").await?;
            if let Some(wanted) = service {
                routes.retain(|r| *wanted == r.service || *wanted == format!("{}/{}", r.namespace, r.service));
            }
            if json { report::json(&routes) } else { report::routes(&routes) }
        }
        Command::Flows => {
            let flows: Vec<serde_json::Value> = ask(dir, Method::GET, "/flows", "").await?;
            if json { report::json(&flows) } else { report::flows(&flows) }
        }
        Command::Drain => ask::<Done>(dir, Method::POST, "/drain", "").await?.message,
        Command::LogLevel { level } => ask::<Done>(dir, Method::PUT, "/log-level", level).await?.message,
    })
}
