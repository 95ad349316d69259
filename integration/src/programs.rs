//! Real programs that tests run in pods, as they are. `cargo xtask setup` installs them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::{Pod, command, limits, wait};

pub mod mariadb;
pub mod nginx;
pub mod redis;
pub mod script;
pub mod witness;

/// Names another virtual environment.
pub const PYTHON_VARIABLE: &str = "WEFT_PYTHON_PREFIX";

/// The virtual environment with packages from PyPI: outside of the repository, because it outlives a clone.
///
/// # Errors
/// When there is no home directory.
pub fn python_prefix() -> Result<PathBuf> {
    if let Some(prefix) = std::env::var_os(PYTHON_VARIABLE) {
        return Ok(prefix.into());
    }
    let home = std::env::var_os("HOME").context("HOME is not set")?;
    Ok(Path::new(&home).join(".local/share/weft/python"))
}

/// Its interpreter.
///
/// # Errors
/// When it has not been installed.
pub fn python() -> Result<PathBuf> {
    let python = python_prefix()?.join("bin/python");
    if !python.exists() {
        bail!("there is no {}; `cargo xtask setup` makes it", python.display());
    }
    Ok(python)
}

/// A file that belongs to the harness: a script, a configuration.
#[must_use]
pub fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("programs").join(name)
}

/// Waits until somebody in the pod listens on all these ports. Makes no connection, so that nothing is added to what a server counts.
///
/// # Errors
/// When that takes too long.
pub fn wait_listening(pod: &Pod, ports: &[u16]) -> Result<()> {
    for port in ports {
        let filter = format!("sport = :{port}");
        wait::until(&format!("port {port} of {} to be open", pod.name()), limits::PROCESS_READY_TIMEOUT, || {
            let listeners = command::output(pod.stranger("ss").args(["-Hltn", &filter]))?;
            Ok((!listeners.is_empty()).then_some(()))
        })?;
    }
    Ok(())
}
