//! redis: its clients speak first, in a protocol that is not HTTP.

use std::{fs, path::Path};

use anyhow::{Context, Result};

use crate::{Pod, Process, programs};

/// Its port.
pub const PORT: u16 = 6379;

/// Starts redis in a pod; its files are in `dir`.
///
/// # Errors
/// When it does not come up.
pub fn start(pod: &Pod, dir: &Path) -> Result<Process> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let mut server = pod.command("redis-server");
    server.args(["--port", &PORT.to_string(), "--bind", "* -::*", "--protected-mode", "no", "--save", ""]);
    server.args(["--appendonly", "no", "--daemonize", "no", "--dir"]).arg(dir);
    let process = pod.spawn(server)?;
    programs::wait_listening(pod, &[PORT]).with_context(|| process.log_tail(20))?;
    Ok(process)
}
