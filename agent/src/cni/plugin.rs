//! The plugin's side of the CNI protocol: an environment, a document on standard input, one on standard output
//! (CNI specification 1.1.0, section 2 "Execution Protocol").
//!
//! It is chained behind the plugins that make the network, and passes their result on, to the byte.

use std::{
    borrow::Cow,
    fs::File,
    io::{self, Read},
    net::IpAddr,
    os::fd::AsFd,
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    ask,
    protocol::{Answer, Question},
};
use crate::{limits, telemetry::Chain};

/// Versions of the specification, all of which give a list of `ips` as result. A runtime uses the one that the network configuration names.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// What the runtime says in the environment (section 2, "Parameters").
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// `CNI_COMMAND`.
    pub command: String,
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_NETNS`.
    pub netns: String,
    /// `CNI_IFNAME`.
    pub interface: String,
    /// `CNI_ARGS`.
    pub args: String,
}

impl Environment {
    /// That of this process.
    #[must_use]
    pub fn of_process() -> Self {
        let variable = |name| std::env::var_os(name).unwrap_or_default().to_string_lossy().into_owned();
        Self {
            command: variable("CNI_COMMAND"),
            container_id: variable("CNI_CONTAINERID"),
            netns: variable("CNI_NETNS"),
            interface: variable("CNI_IFNAME"),
            args: variable("CNI_ARGS"),
        }
    }
}

/// What a well-formed question ends with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Success {
    /// For standard output; empty where the specification wants nothing.
    pub output: String,
    /// For the runtime's log: why the pod starts without capture.
    pub note: Option<String>,
}

/// An error in the words of the specification (section 5, "Error").
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    cni_version: String,
    /// 1 to 7 are the specification's.
    pub code: u32,
    /// What is wrong.
    pub msg: String,
    /// Which value, and what it should be.
    pub details: String,
}

/// Codes of the specification.
mod code {
    pub(super) const VERSION: u32 = 1;
    pub(super) const ENVIRONMENT: u32 = 4;
    pub(super) const IO: u32 = 5;
    pub(super) const DECODE: u32 = 6;
    pub(super) const CONFIGURATION: u32 = 7;
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Configuration<'a> {
    #[serde(default)]
    cni_version: String,
    /// The agent's socket.
    #[serde(default)]
    socket: PathBuf,
    #[serde(borrow, default)]
    prev_result: Option<&'a RawValue>,
}

/// What of a result is of interest; older and newer versions have the same here.
#[derive(Deserialize)]
struct Network<'a> {
    #[serde(borrow, default)]
    ips: Vec<Address<'a>>,
}

#[derive(Deserialize)]
struct Address<'a> {
    #[serde(borrow)]
    address: Cow<'a, str>,
}

/// Reads the document that the runtime gives, and does what it asks for.
///
/// # Errors
/// When it cannot be understood. That there is no agent, or that it has not captured the pod, is no error.
pub fn run(environment: &Environment, input: impl Read) -> Result<Success, Refusal> {
    let mut text = String::new();
    let read = input.take(limits::CNI_CONFIG_BYTES_MAX + 1).read_to_string(&mut text);
    let refuse = |code, msg: &str, details: String| Refusal {
        cni_version: VERSIONS[VERSIONS.len() - 1].to_owned(),
        code,
        msg: msg.to_owned(),
        details,
    };
    match read {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            return Err(refuse(code::DECODE, "standard input is no text", error.to_string()));
        }
        Err(error) => return Err(refuse(code::IO, "standard input cannot be read", error.to_string())),
        Ok(bytes) if bytes as u64 > limits::CNI_CONFIG_BYTES_MAX => {
            let details = format!("it has more than {} bytes", limits::CNI_CONFIG_BYTES_MAX);
            return Err(refuse(code::DECODE, "the network configuration is too long", details));
        }
        Ok(_) => {}
    }
    answer(environment, &text, limits::CNI_WAIT_MAX)
}

/// As [`run`], with a text and another time to wait.
///
/// # Errors
/// As [`run`].
pub fn answer(environment: &Environment, text: &str, wait: Duration) -> Result<Success, Refusal> {
    let mut refusal = Refusal {
        cni_version: VERSIONS[VERSIONS.len() - 1].to_owned(),
        code: 0,
        msg: String::new(),
        details: String::new(),
    };
    let configuration: Configuration<'_> = match serde_json::from_str(text) {
        // Fields by their order are read, too.
        Ok(configuration) if text.trim_start().starts_with('{') => configuration,
        read => {
            (refusal.code, refusal.msg) = (code::DECODE, "the network configuration cannot be read".to_owned());
            refusal.details = read.map_or_else(|error| error.to_string(), |_| "it is no object".to_owned());
            return Err(refusal);
        }
    };
    let version = &configuration.cni_version;
    let mut refuse = |code, msg: &str, details: String| {
        (refusal.code, refusal.msg, refusal.details) = (code, msg.to_owned(), details);
        Err(refusal.clone())
    };
    if environment.command == "VERSION" {
        let known = serde_json::json!({"cniVersion": version, "supportedVersions": VERSIONS});
        return Ok(Success { output: known.to_string(), note: None });
    }
    if !VERSIONS.contains(&version.as_str()) {
        return refuse(
            code::VERSION,
            "cniVersion: this version is not supported",
            format!("it is {version:?}, and weft-cni knows {}", VERSIONS.join(", ")),
        );
    }
    let required: &[(&str, &str)] = match environment.command.as_str() {
        "ADD" | "CHECK" => &[
            ("CNI_CONTAINERID", &environment.container_id),
            ("CNI_NETNS", &environment.netns),
            ("CNI_IFNAME", &environment.interface),
        ],
        "DEL" => &[("CNI_CONTAINERID", &environment.container_id), ("CNI_IFNAME", &environment.interface)],
        "GC" | "STATUS" => &[],
        other => {
            let details = format!("it is {other:?}, and weft-cni knows ADD, CHECK, DEL, GC, STATUS and VERSION");
            return refuse(code::ENVIRONMENT, "CNI_COMMAND: this command is not known", details);
        }
    };
    let absent: Vec<&str> = required.iter().filter(|(_, value)| value.is_empty()).map(|(name, _)| *name).collect();
    if !absent.is_empty() {
        let details = format!("{} must be set for {}", absent.join(", "), environment.command);
        return refuse(code::ENVIRONMENT, "a variable of the environment is not set", details);
    }
    match (environment.command.as_str(), configuration.prev_result) {
        ("ADD" | "CHECK", None) => refuse(
            code::CONFIGURATION,
            "prevResult: there is none",
            "weft-cni makes no network: it must come after a plugin that does".to_owned(),
        ),
        ("ADD", Some(result)) => {
            let network: Network<'_> = match serde_json::from_str(result.get()) {
                Ok(network) => network,
                Err(error) => return refuse(code::DECODE, "prevResult: it cannot be read", error.to_string()),
            };
            let note = add(environment, &configuration, &network, wait).err();
            Ok(Success { output: result.get().to_owned(), note })
        }
        // Nothing is kept here that a deletion must undo, and whether a pod is captured holds neither it nor its node up.
        _ => Ok(Success::default()),
    }
}

/// Waits for capture. An error is why the pod starts without.
fn add(
    environment: &Environment,
    configuration: &Configuration<'_>,
    network: &Network<'_>,
    wait: Duration,
) -> Result<(), String> {
    let Some(question) = question(&environment.args, network) else { return Ok(()) };
    let pod = format!("{}/{}", question.namespace, question.name);
    let netns =
        File::open(&environment.netns).map_err(|error| format!("{pod}: CNI_NETNS {}: {error}", environment.netns))?;
    match ask::ask(&configuration.socket, &question, netns.as_fd(), wait) {
        Ok(Answer::Captured | Answer::NotMeshed) => Ok(()),
        Ok(Answer::NotCaptured { reason }) => Err(format!("{pod} starts without capture: {reason}")),
        Err(error) => {
            Err(format!("{pod} starts without capture: {}: {}", configuration.socket.display(), Chain(&error)))
        }
    }
}

/// What the agent is asked; nothing if no pod of Kubernetes is meant. The names are the kubelet's (containerd, CRI-O: `K8S_POD_…`).
fn question(args: &str, network: &Network<'_>) -> Option<Question> {
    let argument = |name: &str| {
        let value = args.split(';').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))?;
        (!value.is_empty()).then(|| value.to_owned())
    };
    let addresses = network.ips.iter().filter_map(|ip| ip.address.split('/').next()?.parse().ok());
    let ips: Vec<IpAddr> = addresses.take(limits::CNI_ADDRESSES_MAX).collect();
    Some(Question {
        namespace: argument("K8S_POD_NAMESPACE")?,
        name: argument("K8S_POD_NAME")?,
        uid: argument("K8S_POD_UID"),
        ips,
    })
}

#[cfg(test)]
mod tests;
