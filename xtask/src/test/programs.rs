//! The programs that cargo makes of the tests.
//!
//! Everything is compiled by one call for the whole workspace: cargo unifies the features of what is selected, and a tier that selected
//! its own packages would compile the dependencies once more for itself.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::sh;

/// A compiled test target.
pub(crate) struct Program {
    /// The package's name.
    pub(crate) package: String,
    /// The target's name: the crate's for unit tests, the file's for integration tests.
    pub(crate) target: String,
    /// Where cargo would run it.
    package_dir: PathBuf,
    executable: PathBuf,
}

impl Program {
    /// The command that runs it as `cargo test` would.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.executable);
        command.current_dir(&self.package_dir).stdin(Stdio::null());
        command
    }

    /// The file.
    pub(crate) fn executable(&self) -> &Path {
        &self.executable
    }

    /// From one of cargo's messages, if it tells of a test program.
    fn from_message(message: &Value) -> Option<Self> {
        if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
            return None;
        }
        let package_dir = Path::new(message["manifest_path"].as_str()?).parent()?;
        Some(Self {
            package: package_name(message["package_id"].as_str()?).to_owned(),
            target: message["target"]["name"].as_str()?.to_owned(),
            package_dir: package_dir.to_owned(),
            executable: message["executable"].as_str()?.into(),
        })
    }
}

/// Compiles every test of the workspace and every binary that tests start.
pub(crate) fn build() -> Result<Vec<Program>> {
    let mut cargo = sh::cargo();
    cargo.args(["test", "--workspace", "--no-run", "--quiet", "--message-format=json-render-diagnostics"]);
    // What the compiler says goes to the user as it comes.
    let output =
        cargo.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("cannot start cargo test --no-run")?;
    anyhow::ensure!(output.status.success(), "the tests do not compile");
    let messages = String::from_utf8_lossy(&output.stdout);
    let mut programs: Vec<_> = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|message| Program::from_message(&message))
        .collect();
    anyhow::ensure!(!programs.is_empty(), "cargo did not say where the tests are");
    programs.sort_by(|a, b| (&a.package, &a.target).cmp(&(&b.package, &b.target)));
    Ok(programs)
}

/// The name in cargo's package identifier: `path+file:///src/agent#weft-agent@0.1.0`, or `path+file:///src/xtask#0.1.0`, where the
/// directory has the same name.
fn package_name(id: &str) -> &str {
    let (path, fragment) = id.split_once('#').unwrap_or((id, ""));
    match fragment.split_once('@') {
        Some((name, _)) => name,
        None => path.rsplit('/').next().unwrap_or(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_told_by_their_identifiers() {
        assert_eq!(package_name("path+file:///src/agent#weft-agent@0.1.0"), "weft-agent");
        assert_eq!(package_name("path+file:///src/xtask#0.1.0"), "xtask");
    }

    #[test]
    fn only_test_programs_are_taken_from_messages() {
        let mut message = serde_json::json!({
            "reason": "compiler-artifact", "package_id": "path+file:///src/agent#weft-agent@0.1.0",
            "manifest_path": "/src/agent/Cargo.toml", "target": {"name": "capture"},
            "profile": {"test": true}, "executable": "/target/debug/deps/capture-1",
        });
        let program = Program::from_message(&message).expect("a test program");
        assert_eq!((program.package.as_str(), program.target.as_str()), ("weft-agent", "capture"));
        message["profile"]["test"] = false.into();
        assert!(Program::from_message(&message).is_none());
    }
}
