//! Running other programs: a failure carries the command line and what was written.

use std::{
    ffi::OsStr,
    io::Write,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// The command line, for messages.
#[must_use]
pub fn line(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}

/// Runs to the end and returns standard output.
///
/// # Errors
/// When it cannot be started or ends with anything but 0.
pub fn output(command: &mut Command) -> Result<String> {
    input(command, "")
}

/// Runs to the end with `text` as standard input and returns standard output.
///
/// # Errors
/// When it cannot be started or ends with anything but 0.
pub fn input(command: &mut Command, text: &str) -> Result<String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", line(command)))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read its input closes it early; its exit status tells more than this error would.
        stdin.write_all(text.as_bytes()).ok();
    }
    let output = child.wait_with_output().with_context(|| format!("cannot wait for {}", line(command)))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!(
            "{} ended with {}\n{text}{stdout}{}",
            line(command),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(stdout)
}
