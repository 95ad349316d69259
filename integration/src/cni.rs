//! The container runtime's part in a pod's network: it runs the plugins of the node's first configuration list, one after the other, each
//! with the result of the one before.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::{Node, Pod, command};

/// The harness makes pods' networks itself; this is what it calls itself in the list.
pub const NETWORK: &str = "harness-veth";
const LIST: &str = "10-harness.conflist";

/// The directories of a node's container runtime.
#[derive(Clone, Debug)]
pub struct Runtime {
    node: Node,
    /// Plugins.
    pub bin_dir: PathBuf,
    /// Configurations.
    pub conf_dir: PathBuf,
}

/// How the plugins have answered.
#[derive(Clone, Debug)]
pub struct Added {
    /// The last result.
    pub result: Value,
    /// What a plugin wrote for the runtime's log.
    pub note: String,
    /// How long the plugins behind the first took.
    pub took: Duration,
}

impl Runtime {
    /// A runtime whose list has no plugin but the harness itself.
    ///
    /// # Errors
    /// When the directories cannot be made.
    pub fn new(node: &Node) -> Result<Self> {
        let dir = node.state_dir().join("cni");
        let runtime = Self { node: node.clone(), bin_dir: dir.join("bin"), conf_dir: dir.join("net.d") };
        for dir in [&runtime.bin_dir, &runtime.conf_dir] {
            fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        }
        runtime.write_list("harness")?;
        Ok(runtime)
    }

    /// Writes the list anew, without any chained plugin, as a network plugin does that is upgraded.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_list(&self, network: &str) -> Result<()> {
        let list = json!({"cniVersion": "1.0.0", "name": network, "plugins": [{"type": NETWORK, "mtu": 1500}]});
        fs::write(self.list_path(), format!("{list:#}\n")).context("cannot write the list")
    }

    /// Path of the list.
    #[must_use]
    pub fn list_path(&self) -> PathBuf {
        self.conf_dir.join(LIST)
    }

    /// The agent's arguments.
    #[must_use]
    pub fn agent_args(&self) -> Vec<String> {
        let (bin_dir, conf_dir) = (self.bin_dir.display(), self.conf_dir.display());
        ["--cni-bin-dir", &bin_dir.to_string(), "--cni-conf-dir", &conf_dir.to_string()].map(str::to_owned).to_vec()
    }

    /// Types of the list's plugins.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn plugins(&self) -> Result<Vec<String>> {
        let plugins = self.list()?["plugins"].as_array().cloned().unwrap_or_default();
        Ok(plugins.iter().filter_map(|plugin| plugin["type"].as_str().map(str::to_owned)).collect())
    }

    fn list(&self) -> Result<Value> {
        let text = fs::read_to_string(self.list_path()).context("cannot read the list")?;
        serde_json::from_str(&text).with_context(|| format!("the list is no JSON: {text}"))
    }

    /// What the runtime does when a pod's network namespace is there and nothing runs in it. `uid`: what the runtime says of it.
    ///
    /// # Errors
    /// When a plugin fails, and with it the creation of the pod.
    pub fn add(&self, pod: &Pod, uid: Option<&str>) -> Result<Added> {
        let addresses: Vec<Value> = pod
            .ips()
            .iter()
            .map(|ip| json!({"address": format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 }), "interface": 0}))
            .collect();
        let mut added = Added {
            result: json!({"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": pod.netns_path()}],
                "ips": addresses, "dns": {}}),
            note: String::new(),
            took: Duration::ZERO,
        };
        let list = self.list()?;
        for plugin in list["plugins"].as_array().into_iter().flatten() {
            let kind = plugin["type"].as_str().context("a plugin without a type")?;
            if kind != NETWORK {
                self.run(&self.bin_dir.join(kind), &list, plugin, (pod, uid), &mut added)?;
            }
        }
        Ok(added)
    }

    fn run(
        &self,
        program: &Path,
        list: &Value,
        plugin: &Value,
        (pod, uid): (&Pod, Option<&str>),
        added: &mut Added,
    ) -> Result<()> {
        let mut configuration = plugin.clone();
        for field in ["cniVersion", "name"] {
            configuration[field] = list[field].clone();
        }
        configuration["prevResult"] = added.result.clone();
        let uid = uid.map(|uid| format!(";K8S_POD_UID={uid}")).unwrap_or_default();
        let mut command = self.node.command(&program.to_string_lossy());
        command
            .env("CNI_COMMAND", "ADD")
            .env("CNI_CONTAINERID", "harness")
            .env("CNI_NETNS", pod.netns_path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &self.bin_dir)
            .env(
                "CNI_ARGS",
                format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={}{uid}", pod.kube_namespace(), pod.name()),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let since = Instant::now();
        let mut child = command.spawn().with_context(|| format!("cannot start {}", command::line(&command)))?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(configuration.to_string().as_bytes())?;
        }
        let output = child.wait_with_output().context("cannot wait for a plugin")?;
        added.took += since.elapsed();
        added.note.push_str(&String::from_utf8_lossy(&output.stderr));
        if !output.status.success() {
            bail!("the pod is not created: {}{}", String::from_utf8_lossy(&output.stdout), added.note);
        }
        added.result = serde_json::from_slice(&output.stdout).context("a plugin's result is no JSON")?;
        Ok(())
    }
}
