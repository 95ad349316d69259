//! The node agent.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;

use clap::Parser;
use weft_agent::{
    app, ca,
    config::{Cli, Command},
    probe, removal, report,
    telemetry::{Chain, LogFormat, init_logging},
};

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => {
            let log_level = init_logging(args.log_format);
            app::run(&args, log_level).map_err(|error| Chain(&error).to_string())
        }
        Command::Cleanup(args) => {
            let _ = init_logging(LogFormat::Text);
            match removal::cleanup(&args.places, args.cni.places().as_ref()) {
                Ok((cleaned, files)) => {
                    println!("{}", report::cleanup(&cleaned, &files, args.output));
                    if cleaned.complete() { Ok(()) } else { Err("not everything could be removed".to_owned()) }
                }
                Err(error) => Err(Chain(&error).to_string()),
            }
        }
        Command::Uninstall(args) => {
            let _ = init_logging(LogFormat::Text);
            removal::uninstall(&args).map_err(|error| Chain(&error).to_string())
        }
        Command::Ca(args) => {
            let _ = init_logging(args.log_format);
            ca::run(&args).map_err(|error| Chain(&error).to_string())
        }
        Command::Probe(args) => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| error.to_string())
            .and_then(|runtime| {
                let answer = runtime.block_on(probe::probe(&args.run_dir, args.question));
                answer.map_err(|error| Chain(&error).to_string())
            }),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
