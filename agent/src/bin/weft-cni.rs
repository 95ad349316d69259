//! The chained CNI plugin. What it does is in `weft_agent::cni`.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a CNI plugin answers on standard output and complains on standard error"
)]

use std::process::ExitCode;

use weft_agent::cni::plugin::{self, Environment};

fn main() -> ExitCode {
    match plugin::run(&Environment::of_process(), std::io::stdin().lock()) {
        Ok(success) => {
            if let Some(note) = success.note {
                eprintln!("weft-cni: {note}");
            }
            print!("{}", success.output);
            ExitCode::SUCCESS
        }
        Err(refusal) => {
            // An error of the specification is a document, too.
            println!("{}", serde_json::to_string(&refusal).unwrap_or_default());
            ExitCode::FAILURE
        }
    }
}
