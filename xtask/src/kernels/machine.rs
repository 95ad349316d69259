//! A virtual machine: qemu, with the console in a file and the second serial port to be read line by line.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::image::END_MARK;
use crate::sh;

/// Memory of a machine: the unpacked root file system, and maps for 262,144 destinations that a test fills.
const MEMORY_MIB: &str = "1536";
/// As many as a small node has; connections must meet on two.
const CPUS: &str = "2";
/// Lines of the console that are shown after a failure.
const CONSOLE_LINES: usize = 40;

/// Boots a kernel and passes on every line of its second serial port, until the last.
///
/// # Errors
/// When it cannot be started, ends without its last line, or takes longer than `time_max`.
pub(super) fn run(
    kernel: &Path,
    initrd: &Path,
    console: &Path,
    time_max: Duration,
    mut line: impl FnMut(&str),
) -> Result<()> {
    let mut qemu = sh::command("qemu-system-x86_64", &["-accel", "tcg,thread=multi"]);
    // An old processor: emulated vector instructions and five-level page walks, which a newer one has, take longer than they save.
    qemu.args(["-cpu", "Nehalem", "-m", MEMORY_MIB, "-smp", CPUS]);
    qemu.args(["-display", "none", "-monitor", "none", "-no-reboot", "-nic", "none", "-nodefaults"]);
    qemu.arg("-serial").arg(format!("file:{}", console.display())).args(["-serial", "stdio"]);
    qemu.arg("-kernel").arg(kernel).arg("-initrd").arg(initrd);
    qemu.args(["-append", "console=ttyS0 panic=-1 loglevel=5 mitigations=off"]);
    let mut machine =
        Machine(qemu.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start qemu-system-x86_64")?);
    let (sender, lines) = mpsc::channel();
    if let Some(stdout) = machine.0.stdout.take() {
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned()).is_err() {
                    return;
                }
            }
        });
    }
    let deadline = Instant::now() + time_max;
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(text) if text.starts_with(END_MARK) => return Ok(()),
            Ok(text) => line(&text),
            Err(RecvTimeoutError::Timeout) => bail!("not done within {} s", time_max.as_secs()),
            Err(RecvTimeoutError::Disconnected) => bail!("the machine ended before its tests did"),
        }
    }
}

/// Ends with its value: a machine has nothing to lose.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// The last lines of a console.
pub(super) fn tail(console: &Path) -> String {
    let text = fs::read(console).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(CONSOLE_LINES)..].join("\n")
}
