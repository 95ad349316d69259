//! Scripts of the harness' own, run by the Python that has packages from PyPI.

use std::process::Command;

use anyhow::Result;

use super::{file, python};
use crate::{Pod, Process, limits, testpod};

/// A command that runs a script in a pod.
///
/// # Errors
/// When there is no such Python.
pub fn command(pod: &Pod, script: &str, args: &[&str]) -> Result<Command> {
    let mut command = pod.command(&python()?.to_string_lossy());
    command.arg(file(script)).args(args);
    Ok(command)
}

/// Starts a script that serves, and waits until it says that it is ready.
///
/// # Errors
/// When it does not come up.
pub fn serve(pod: &Pod, script: &str, args: &[&str]) -> Result<Process> {
    let process = pod.spawn(command(pod, script, args)?)?;
    process
        .wait_line("that it is ready", limits::PROCESS_READY_TIMEOUT, |line| (line == testpod::READY).then_some(()))?;
    Ok(process)
}
