//! The node agent.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;

use clap::Parser;
use weft_agent::{
    app,
    config::{Cli, Command},
    report,
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
            match app::cleanup(&args.places) {
                Ok(cleaned) => {
                    println!("{}", report::cleanup(&cleaned, args.output));
                    if cleaned.complete() { Ok(()) } else { Err("not everything could be removed".to_owned()) }
                }
                Err(error) => Err(Chain(&error).to_string()),
            }
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
