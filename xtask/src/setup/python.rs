//! Packages from PyPI, in a virtual environment of weft's own.

use std::path::Path;

use anyhow::{Context, Result};
use weft_integration::programs;

use super::{apt, say, timed};
use crate::sh;

/// A package from PyPI, its version, and what for. Exact, so that a new release cannot change what is tested.
pub(crate) type PythonPackage = (&'static str, &'static str, &'static str);

/// Debian's: it has a `venv` that does not depend on who runs this.
const PYTHON: &str = "/usr/bin/python3";

/// Installs those of `packages` that are missing, and says which and why; silent if all are there.
pub(crate) fn require(packages: &[PythonPackage]) -> Result<()> {
    let prefix = programs::python_prefix()?;
    let python = prefix.join("bin/python");
    if !python.exists() {
        if sh::output(&mut sh::command(PYTHON, &["-c", "import ensurepip, venv"])).is_err() {
            say("python3-venv: makes an environment for packages from PyPI");
            apt::install(&["python3-venv"])?;
        }
        say(&format!("{}: an environment for packages from PyPI", prefix.display()));
        sh::run(sh::command(PYTHON, &["-m", "venv"]).arg(&prefix))?;
    }
    let missing: Vec<_> = packages
        .iter()
        .map(|(name, version, why)| Ok((!is_installed(&prefix, name, version)?).then_some((name, version, why))))
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .flatten()
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut pip =
        sh::command(&prefix.join("bin/pip").to_string_lossy(), &["install", "--quiet", "--only-binary=:all:"]);
    for (name, version, why) in &missing {
        say(&format!("{name} {version} (PyPI): {why}"));
        pip.arg(format!("{name}=={version}"));
    }
    timed("pip install", || sh::run(&mut pip))
}

/// Whether that very version is there, by the directory that pip keeps of each package.
fn is_installed(prefix: &Path, name: &str, version: &str) -> Result<bool> {
    let lib = prefix.join("lib");
    for python in std::fs::read_dir(&lib).with_context(|| format!("cannot list {}", lib.display()))? {
        let packages = python?.path().join("site-packages");
        if packages.join(format!("{}-{version}.dist-info", name.replace('-', "_"))).is_dir() {
            return Ok(true);
        }
    }
    Ok(false)
}
