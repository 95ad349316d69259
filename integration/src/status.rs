//! What `weft status -o json` says, as far as tests look at it. Unknown fields are ignored, so that the agent may say more.

use serde::Deserialize;
use serde_json::Value;

/// The status of an agent.
#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    /// Node.
    pub node: String,
    /// Process id.
    pub pid: u32,
    /// Version of the agent.
    pub version: String,
    /// Generation of the policy in force.
    pub generation: u64,
    /// Whether manifests are applied and pods captured.
    pub ready: bool,
    /// This node's pods.
    pub pods: Vec<PodStatus>,
    /// What is wrong with objects.
    #[serde(default)]
    pub diagnostics: Vec<Diagnostic>,
    /// What is wrong with files.
    #[serde(default)]
    pub files: Vec<FileError>,
    /// Mutual TLS between nodes.
    #[serde(default)]
    pub mtls: Value,
    /// The state of the hooks.
    #[serde(default)]
    pub capture: Value,
}

/// One pod.
#[derive(Clone, Debug, Deserialize)]
pub struct PodStatus {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// Whether it is captured.
    pub captured: bool,
    /// Why not.
    pub reason: Option<String>,
    /// `open` or `closed`.
    pub fail_mode: String,
    /// Connections that were there before.
    #[serde(default)]
    pub connections_before_capture: u64,
    /// What happened at its hooks.
    #[serde(default)]
    pub stats: PodStats,
}

/// What happened at one pod's hooks, in connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PodStats {
    /// Redirected to the agent.
    pub outbound_captured: u64,
    /// Went direct, with the agent gone.
    pub outbound_direct: u64,
    /// Refused, with the agent gone.
    pub outbound_refused: u64,
    /// Refused by policy.
    pub outbound_denied: u64,
    /// Handed to the agent.
    pub inbound_captured: u64,
    /// Reached the application, with the agent gone.
    pub inbound_direct: u64,
    /// Reset, with the agent gone.
    pub inbound_refused: u64,
    /// From the node itself.
    pub inbound_node: u64,
}

/// An object and what is wrong with it.
#[derive(Clone, Debug, Deserialize)]
pub struct Diagnostic {
    /// The object.
    pub object: ObjectRef,
    /// `error` or `warning`.
    pub severity: String,
    /// Stable word.
    pub code: String,
    /// The field.
    #[serde(default)]
    pub field: Option<String>,
    /// For people.
    pub message: String,
}

/// Names an object.
#[derive(Clone, Debug, Deserialize)]
pub struct ObjectRef {
    /// Kind.
    pub kind: String,
    /// Namespace, empty for objects without.
    #[serde(default)]
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
}

/// A file and what is wrong with it.
#[derive(Clone, Debug, Deserialize)]
pub struct FileError {
    /// Path.
    pub file: String,
    /// Which document of the file, from 1.
    #[serde(default)]
    pub document: Option<u64>,
    /// Line.
    #[serde(default)]
    pub line: Option<u64>,
    /// The object, as `TrafficSplit shop/web`.
    #[serde(default)]
    pub object: String,
    /// Field.
    #[serde(default)]
    pub field: Option<String>,
    /// For people.
    pub message: String,
}

impl Status {
    /// A pod by namespace and name.
    #[must_use]
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&PodStatus> {
        self.pods.iter().find(|pod| pod.namespace == namespace && pod.name == name)
    }

    /// All that is said about an object.
    pub fn about<'a>(&'a self, kind: &'a str, name: &'a str) -> impl Iterator<Item = &'a Diagnostic> {
        self.diagnostics
            .iter()
            .filter(move |diagnostic| diagnostic.object.kind == kind && diagnostic.object.name == name)
    }

    /// How many pods are captured.
    #[must_use]
    pub fn captured_pods(&self) -> usize {
        self.pods.iter().filter(|pod| pod.captured).count()
    }
}

/// One Service port of `weft routes -o json`.
#[derive(Clone, Debug, Deserialize)]
pub struct ServiceRoutes {
    /// Namespace of the root Service.
    pub namespace: String,
    /// Name of the root Service.
    pub service: String,
    /// Its port.
    pub port: u16,
    /// What it speaks.
    pub protocol: String,
    /// Its routes, in the order in which they are tried.
    pub routes: Vec<Route>,
}

/// One route.
#[derive(Clone, Debug, Deserialize)]
pub struct Route {
    /// The object that it came from.
    pub origin: ObjectRef,
    /// Which of its rules; empty where it has only one.
    #[serde(default)]
    pub rule: String,
    /// Where its traffic goes.
    pub backends: Vec<Backend>,
}

/// A share of a route.
#[derive(Clone, Debug, Deserialize)]
pub struct Backend {
    /// Service.
    pub service: String,
    /// Share of the traffic now.
    pub share_percent: f64,
    /// Endpoints that take new connections.
    pub ready: usize,
}

/// One Service of `weft services -o json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Service {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Ports.
    pub ports: Vec<Port>,
}

/// One port of a Service.
#[derive(Clone, Debug, Deserialize)]
pub struct Port {
    /// Number.
    pub port: u16,
    /// What it speaks.
    pub protocol: String,
    /// What connections to it turned out to be, if that is not said.
    #[serde(default)]
    pub detected: Vec<Detected>,
    /// Endpoints that take new connections.
    pub ready: usize,
    /// Endpoints that finish what they have.
    pub draining: usize,
}

/// What some connections to a port turned out to be.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Detected {
    /// What they speak.
    pub protocol: String,
    /// Who spoke first: `client` or `server`.
    pub first: String,
    /// How many there were.
    pub connections: u64,
}
