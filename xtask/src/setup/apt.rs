//! Programs that Debian packages.

use std::{fs, io::Write, os::unix::fs::OpenOptionsExt, path::Path};

use anyhow::{Context, Result, bail};

use super::{say, timed};
use crate::sh;

/// A program that is needed (a name on the search path, or a file), the Debian package that holds it, and what for.
pub(crate) type Tool = (&'static str, &'static str, &'static str);

/// Asked by Debian's packages whether they may start a service that they have just installed.
const SERVICE_POLICY: &str = "/usr/sbin/policy-rc.d";

/// Installs those of `tools` that are missing, and says which and why; silent if all are there.
pub(crate) fn require(tools: &[Tool]) -> Result<()> {
    let missing: Vec<_> = tools.iter().filter(|(program, ..)| !sh::has(program)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for (program, package, why) in &missing {
        say(&format!("{package}: `{program}` {why}"));
    }
    let mut packages: Vec<&str> = missing.iter().map(|(_, package, _)| *package).collect();
    packages.dedup();
    install(&packages)?;
    for (program, package, _) in missing {
        if !sh::has(program) {
            bail!("{package} is installed, but there is no `{program}`");
        }
    }
    Ok(())
}

/// Installs packages. None of their services is started.
pub(super) fn install(packages: &[&str]) -> Result<()> {
    if !sh::is_root() {
        bail!("not root, so cannot install; run this once: sudo apt-get install {}", packages.join(" "));
    }
    if !sh::has("apt-get") {
        bail!("there is no apt-get here; install these with your own package manager: {}", packages.join(" "));
    }
    let _services = NoServices::start()?;
    let apt = |args: &[&str]| -> Result<()> {
        let mut command = sh::command("apt-get", args);
        sh::output(command.env("DEBIAN_FRONTEND", "noninteractive")).map(drop)
    };
    timed("apt-get update", || apt(&["update", "-qq"]))?;
    timed("apt-get install", || {
        apt(&[&["install", "-y", "-qq", "--no-install-recommends"], packages].concat())
            .with_context(|| format!("cannot install {}", packages.join(" ")))
    })
}

/// While this lives, Debian's packages start no service: servers are wanted for tests, which start them in pods, and nobody asked for
/// one on the machine's own ports.
struct NoServices {
    ours: bool,
}

impl NoServices {
    fn start() -> Result<Self> {
        let policy = fs::OpenOptions::new().write(true).create_new(true).mode(0o755).open(SERVICE_POLICY);
        match policy {
            // 101 is "action forbidden by policy".
            Ok(mut file) => {
                file.write_all(b"#!/bin/sh\nexit 101\n").with_context(|| format!("cannot write {SERVICE_POLICY}"))?;
                Ok(Self { ours: true })
            }
            // The machine has a policy of its own, which stays.
            Err(_) if Path::new(SERVICE_POLICY).exists() => Ok(Self { ours: false }),
            Err(error) => Err(error).with_context(|| format!("cannot create {SERVICE_POLICY}")),
        }
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours {
            fs::remove_file(SERVICE_POLICY).ok();
        }
    }
}
