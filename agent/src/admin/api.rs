//! What the admin socket answers: plain data, the contract between agent and CLI and of every `-o json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::watch::{SourceProblem, kube::health::SourceView};

/// `GET /status`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Name of this node.
    pub node: String,
    /// Process id of the agent.
    pub pid: u32,
    /// Version of the agent.
    pub version: String,
    /// Seconds since the agent started.
    pub uptime_s: u64,
    /// Generation of the plans in force.
    pub generation: u64,
    /// What becomes of identities, in a line; absent where there is no authority.
    #[serde(default)]
    pub identity: Option<String>,
    /// Mutual TLS between nodes.
    #[serde(default)]
    pub mtls: MutualTls,
    /// Whether manifests are applied and every pod was either captured or found impossible to capture.
    pub ready: bool,
    /// Whether the agent is finishing its connections and takes no new ones.
    pub draining: bool,
    /// Worker threads of the data path.
    pub workers: usize,
    /// Age of the slowest worker's last sign of life, milliseconds.
    pub heartbeat_age_ms: u64,
    /// Pods of this node that are meant to be captured.
    pub pods: Vec<Pod>,
    /// Findings about objects.
    pub diagnostics: Vec<Finding>,
    /// Manifests, or objects of the API server, that are not used as written.
    pub files: Vec<SourceProblem>,
    /// How the watches of the API server are doing; empty where objects come from a directory.
    #[serde(default)]
    pub sources: Vec<SourceView>,
    /// The kernel's side.
    pub capture: Capture,
}

/// Mutual TLS between nodes: who has to, and who can.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MutualTls {
    /// What pods take whose namespace does not say: `permissive` or `strict`.
    pub default: String,
    /// Namespaces whose pods take nothing else from elsewhere, ascending.
    pub strict: Vec<StrictNamespace>,
    /// Pods of this node that other nodes are told to take it.
    pub published: usize,
    /// The other pods of this node that are captured or should be, and why other nodes are not told of them.
    pub withheld: Vec<WithheldPod>,
}

/// A namespace that refuses plaintext.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StrictNamespace {
    /// Its name.
    pub namespace: String,
    /// The object that says so.
    pub by: Object,
}

/// A pod that other nodes are not told of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WithheldPod {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Stable word: `not_captured`, `host_network`, `no_identity`, `no_certificate`, `unproved`, `no_api_server` or `unwritten`.
    pub reason: String,
    /// For people: what is missing.
    pub message: String,
}

/// One pod.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pod {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// Addresses.
    pub ips: Vec<String>,
    /// Whether its connections are captured.
    pub captured: bool,
    /// Why not.
    pub reason: Option<String>,
    /// `open` or `closed`.
    pub fail_mode: String,
    /// Why the kernel does not know that yet.
    #[serde(default)]
    pub fail_mode_error: Option<String>,
    /// What holds where no TrafficTarget selects it: `allow` or `deny`.
    #[serde(default)]
    pub stance: String,
    /// The TrafficTargets that select it: everything that none of them grants is denied.
    #[serde(default)]
    pub targets: Vec<Object>,
    /// TCP connections that were open when capture began, and are not carried by weft.
    pub connections_before_capture: u32,
    /// What happened at its hooks, by name.
    pub stats: BTreeMap<String, u64>,
}

/// A finding about an object.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Finding {
    /// The object.
    pub object: Object,
    /// `error` or `warning`.
    pub severity: String,
    /// Stable word.
    pub code: String,
    /// Path of the field; empty for the whole object.
    pub field: String,
    /// What is wrong, and what is done about it.
    pub message: String,
}

/// A Kubernetes object by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// Kind.
    pub kind: String,
    /// Namespace; empty for cluster-scoped kinds.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// The kernel's side.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Capture {
    /// Where programs, maps and links are pinned.
    pub bpf_dir: String,
    /// Attached programs, and where.
    pub hooks: Vec<String>,
    /// Other connect programs on the same cgroups, in the order in which they run.
    pub foreign_programs: Vec<String>,
    /// Events that should not happen, by name.
    pub counters: BTreeMap<String, u64>,
    /// How full the maps are.
    pub maps: Vec<MapFill>,
}

/// How full one map is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MapFill {
    /// Name.
    pub name: String,
    /// Entries.
    pub entries: u64,
    /// Entries that it can hold.
    pub max: u64,
}

/// `GET /services`, one each.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Service {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Addresses; empty for a headless Service.
    pub addresses: Vec<String>,
    /// Headless.
    pub headless: bool,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// How many objects route its traffic.
    pub routes: usize,
}

/// One port of a Service.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServicePort {
    /// Number.
    pub port: u16,
    /// Name.
    pub name: String,
    /// `http`, `http1`, `http2`, `tls`, `tcp` or `detect`.
    pub protocol: String,
    /// If it is `detect`: what connections to it turned out to be so far, the most frequent first.
    #[serde(default)]
    pub detected: Vec<Detected>,
    /// Pods that take new connections.
    pub ready: usize,
    /// Pods that finish what they have.
    pub draining: usize,
    /// How endpoints are chosen: `least-request`, `maglev`.
    pub balance: String,
    /// The BackendPolicy that says so, if one does.
    #[serde(default)]
    pub policy: Option<String>,
}

/// What some connections to a port turned out to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detected {
    /// `http`, `http2`, `tls` or `tcp`.
    pub protocol: String,
    /// Who spoke first: `client` or `server`.
    pub first: String,
    /// How many connections.
    pub connections: u64,
}

/// `GET /routes`: all routes of one Service port, in the order in which they are tried.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServiceRoutes {
    /// Namespace of the root Service.
    pub namespace: String,
    /// Name of the root Service.
    pub service: String,
    /// Its port.
    pub port: u16,
    /// What it speaks.
    pub protocol: String,
    /// The routes.
    pub routes: Vec<Route>,
}

/// One route.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Route {
    /// The object that it came from.
    pub origin: Object,
    /// Which of its rules; empty where it has only one.
    #[serde(default)]
    pub rule: String,
    /// The namespace whose clients it is for; `null` for all that have no rules of their own.
    #[serde(default)]
    pub clients: Option<String>,
    /// What it does beside forwarding, one thing each.
    #[serde(default)]
    pub does: Vec<String>,
    /// Any of these, an empty list being none at all; `null` for everything that is left.
    pub matches: Option<Vec<String>>,
    /// How its matches are evaluated.
    pub engine: String,
    /// Where its traffic goes.
    pub backends: Vec<Backend>,
}

/// A share of a route.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Backend {
    /// Namespace.
    pub namespace: String,
    /// Service.
    pub service: String,
    /// Service port.
    pub port: u16,
    /// Weight as compiled.
    pub weight: u64,
    /// Share of the traffic now, percent: backends without a ready endpoint have none.
    pub share_percent: f64,
    /// Pods that take new connections.
    pub ready: usize,
}

/// `GET /access`: what may reach one pod.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PodAccess {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Its service account.
    pub account: String,
    /// Whether it is captured or meant to be: nothing is enforced for other pods.
    pub meshed: bool,
    /// What holds where no TrafficTarget selects it: `allow` or `deny`.
    pub stance: String,
    /// The namespace that says so; `null` for the agent's default.
    pub stance_origin: Option<Object>,
    /// The TrafficTargets that select it: everything that none of them grants is denied.
    pub targets: Vec<TargetAccess>,
}

/// What one TrafficTarget grants at a pod.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TargetAccess {
    /// The TrafficTarget.
    pub origin: Object,
    /// Whether it grants anything: one that is invalid selects and grants nothing.
    pub grants: bool,
    /// Service accounts, as `namespace/name`.
    pub accounts: Vec<String>,
    /// Pods by UID that an IdentityBinding means by label, of those that are known here.
    pub pods: Vec<String>,
    /// TCP ports; `null` for all.
    pub tcp_ports: Option<Vec<u16>>,
    /// UDP ports; `null` for all.
    pub udp_ports: Option<Vec<u16>>,
    /// Any of these requests, an empty list being none at all; `null` for whatever is said.
    pub requests: Option<Vec<String>>,
    /// How its requests are matched; `null` where it does not look at requests.
    pub engine: Option<String>,
}

/// What `drain` and `log-level` answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Done {
    /// What was done.
    pub message: String,
}

/// `GET /identity`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Identity {
    /// Who signs; absent where there are no identities.
    pub authority: Option<String>,
    /// Whose names they are.
    pub trust_domain: String,
    /// Hash of the roots in force.
    pub bundle_sha256: Option<String>,
    /// How many there are.
    pub roots: usize,
    /// Why there are no newer ones.
    pub problem: Option<String>,
    /// Service accounts that pods of this node run as.
    pub accounts: Vec<IdentityRow>,
}

/// One service account.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct IdentityRow {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub service_account: String,
    /// Its name in certificates.
    pub spiffe_id: String,
    /// Pods of this node that run as it.
    pub pods: usize,
    /// Serial number of the certificate in force, hex.
    pub serial: Option<String>,
    /// When it ends, seconds from now.
    pub expires_in_s: Option<i64>,
    /// When the authority is asked next, seconds from now.
    pub asks_in_s: u64,
    /// Why asking failed last, until it succeeds.
    pub problem: Option<String>,
}
