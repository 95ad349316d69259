//! A process that is killed with its value.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::{command, wait};

/// A running process. Its standard output is collected by line, its standard error goes to a file.
#[derive(Debug)]
pub struct Process {
    child: Child,
    line: String,
    output: Arc<Lines>,
    log: PathBuf,
}

#[derive(Debug, Default)]
struct Lines {
    state: Mutex<LinesState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct LinesState {
    lines: Vec<String>,
    closed: bool,
}

impl Process {
    /// Starts `command`, with standard error appended to `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(mut command: Command, log: &Path) -> Result<Self> {
        let line = command::line(&command);
        let stderr = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot open {}", log.display()))?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .with_context(|| format!("cannot start {line}"))?;
        let output = Arc::new(Lines::default());
        if let Some(stdout) = child.stdout.take() {
            let output = Arc::clone(&output);
            std::thread::Builder::new().name("stdout".to_owned()).spawn(move || collect(stdout, &output))?;
        }
        Ok(Self { child, line, output, log: log.to_path_buf() })
    }

    /// Process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process has ended already.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("process id out of range")?;
        kill_process(pid, signal).with_context(|| format!("cannot send {signal:?} to {}", self.line))
    }

    /// Waits for a line of standard output, among all that were written so far and that come.
    ///
    /// # Errors
    /// When the output ends without it, or in `timeout`.
    pub fn wait_line<T>(&self, what: &str, timeout: Duration, mut wanted: impl FnMut(&str) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + timeout;
        let mut seen = 0;
        let mut state = self.output.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            while let Some(line) = state.lines.get(seen) {
                seen += 1;
                if let Some(found) = wanted(line) {
                    return Ok(found);
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.closed || left.is_zero() {
                let lines = state.lines.join("\n");
                let why = if state.closed { "it ended" } else { "timeout" };
                bail!("{} did not write {what} ({why}); output:\n{lines}\n{}", self.line, self.log_tail(20));
            }
            state = self.output.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whether it has ended.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn has_ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("cannot wait for {}", self.line))
    }

    /// Waits for the end and returns standard output.
    ///
    /// # Errors
    /// When it does not end in `timeout` or ends with anything but 0.
    pub fn finish(&mut self, timeout: Duration) -> Result<String> {
        let line = self.line.clone();
        let status = wait::until(&format!("the end of {line}"), timeout, || self.has_ended())?;
        let mut state = self.output.state.lock().unwrap_or_else(PoisonError::into_inner);
        while !state.closed {
            state = self.output.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let output = state.lines.join("\n");
        if !status.success() {
            bail!("{line} ended with {status}\n{output}\n{}", self.log_tail(20));
        }
        Ok(output)
    }

    /// Kills it (SIGKILL) and waits for its end.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("cannot kill {}", self.line))?;
        self.child.wait().map(drop).with_context(|| format!("cannot wait for {}", self.line))
    }

    /// The last lines of standard error.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines_total = log.lines().count();
        log.lines().skip(lines_total.saturating_sub(lines)).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A stopped process (SIGSTOP) dies of SIGKILL too.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn collect(stdout: impl std::io::Read, output: &Lines) {
    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
        output.state.lock().unwrap_or_else(PoisonError::into_inner).lines.push(line);
        output.changed.notify_all();
    }
    output.state.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
    output.changed.notify_all();
}
