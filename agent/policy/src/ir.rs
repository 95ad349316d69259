//! The model that every front end lowers to. Each item names the object that it came from.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, sync::Arc};

use serde::Serialize;

use crate::{
    diagnostic::Diagnostic,
    endpoints::EndpointSet,
    inbound::Stance,
    names::{ObjectRef, ServiceAccountKey, ServiceKey, WorkloadId},
    peer::Peer,
    plan::AppProtocol,
    rule::{BackendHeaders, RuleIr},
};

pub use crate::matches::{MatchIr, PathIr, ValueIr};

/// One Service with the routes whose root it is: the unit of lowering and of compilation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceIr {
    /// Which Service.
    pub key: ServiceKey,
    /// Every address that stands for it: cluster IPs, external IPs, load balancer IPs. Empty for a headless Service.
    pub addresses: Vec<IpAddr>,
    /// `clusterIP: None`.
    pub headless: bool,
    /// TCP ports, ascending.
    pub ports: Vec<ServicePortIr>,
    /// In order of precedence; those without matches come after those with.
    pub routes: Vec<RouteIr>,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServicePortIr {
    /// Number.
    pub port: u16,
    /// Name; empty if the Service has one unnamed port.
    pub name: Arc<str>,
    /// What it speaks.
    pub protocol: AppProtocol,
}

/// A rule for (part of) a root Service's traffic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RouteIr {
    /// Any of these must hold; an empty list matches nothing (its groups do not exist). `None` for what no other route takes.
    pub matches: Option<Vec<MatchIr>>,
    /// Ports of the root that it is for, ascending; `None` for all of them.
    pub ports: Option<Vec<u16>>,
    /// For clients of this namespace only, before whatever holds for all (GEP-1426, consumer routes).
    pub clients: Option<Arc<str>>,
    /// It says nothing of connections that weft does not look into.
    pub requests_only: bool,
    /// What happens to what it takes. Routes that come from one rule of an object share it.
    pub rule: Arc<RuleIr>,
}

impl RouteIr {
    /// One that shares all it takes out between backends, as a TrafficSplit does.
    #[must_use]
    pub fn split(origin: ObjectRef, matches: Option<Vec<MatchIr>>, backends: Vec<BackendIr>) -> Self {
        let rule = Arc::new(RuleIr::forward(origin, backends));
        Self { matches, ports: None, clients: None, requests_only: false, rule }
    }

    /// Whether it is for a port of the root.
    #[must_use]
    pub fn is_for(&self, port: u16) -> bool {
        self.ports.as_ref().is_none_or(|ports| ports.contains(&port))
    }
}

/// A Service that takes a share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BackendIr {
    /// Which.
    pub service: ServiceKey,
    /// Its share, relative to the others (v1alpha1 quantities in thousandths).
    pub weight: u64,
    /// For each port of the root that this backend has too: (root port, backend port). A port that is missing here gets no traffic.
    pub ports: Vec<(u16, u16)>,
    /// Why its share is answered with an error instead (Gateway API: `BackendNotFound`, `RefNotPermitted`, `InvalidKind`).
    pub invalid: Option<Arc<str>>,
    /// What is changed in the fields of its share only.
    pub headers: Option<Arc<BackendHeaders>>,
}

impl BackendIr {
    /// One that takes its share as it is.
    #[must_use]
    pub fn new(service: ServiceKey, weight: u64, ports: Vec<(u16, u16)>) -> Self {
        Self { service, weight, ports, invalid: None, headers: None }
    }
}

/// What TrafficTargets say about one destination service account: a unit of lowering and of compilation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AccessIr {
    /// The destination.
    pub account: ServiceAccountKey,
    /// The targets that select it by a valid destination, whether they grant anything or not, in the order of their names.
    pub selected_by: Vec<ObjectRef>,
    /// What they grant, in the same order.
    pub grants: Vec<GrantIr>,
}

/// What TrafficTargets say about the pods that one IdentityBinding means by their labels: beside what they say about the service
/// accounts of those pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BindingIr {
    /// The IdentityBinding.
    pub origin: ObjectRef,
    /// The pods, ascending.
    pub workloads: Vec<WorkloadId>,
    /// The targets that select it, as in [`AccessIr`].
    pub selected_by: Vec<ObjectRef>,
    /// What they grant, as in [`AccessIr`].
    pub grants: Vec<GrantIr>,
}

/// What one TrafficTarget grants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GrantIr {
    /// The TrafficTarget.
    pub origin: ObjectRef,
    /// Source service accounts, ascending.
    pub accounts: Vec<ServiceAccountKey>,
    /// Single source pods (IdentityBinding by label), ascending.
    pub workloads: Vec<WorkloadId>,
    /// TCP ports, ascending; `None` for all, empty for none.
    pub tcp_ports: Option<Vec<u16>>,
    /// UDP ports, likewise. `Some(vec![])` where no UDPRoute grants any.
    pub udp_ports: Option<Vec<u16>>,
    /// Any of these must hold for a request; `None` for whatever is said on TCP.
    pub requests: Option<Vec<MatchIr>>,
}

/// A pod, as far as weft cares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WorkloadIr {
    /// Its UID.
    pub id: WorkloadId,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name of the pod.
    pub name: Arc<str>,
    /// What the pod belongs to, for people and metrics: its Deployment, StatefulSet, Job, or the pod itself.
    pub owner: Arc<str>,
    /// Service account.
    pub service_account: Arc<str>,
    /// Node; empty while unscheduled.
    pub node: Arc<str>,
    /// Addresses.
    pub ips: Vec<IpAddr>,
    /// Shares the node's network namespace.
    pub host_network: bool,
    /// Whether it can be what its addresses stand for.
    pub state: WorkloadState,
    /// Its namespace is labelled for the mesh, and it has not ended.
    pub meshed: bool,
    /// What happens to its connections while the agent is gone.
    pub fail_mode: FailMode,
    /// The object whose label asks for [`FailMode::Open`] by name, if one does.
    pub fail_open_by: Option<ObjectRef>,
    /// Annotation `weft.dev/netns`.
    pub netns: Option<PathBuf>,
    /// Annotation `weft.dev/cgroup`.
    pub cgroup: Option<PathBuf>,
    /// Service ports whose endpoints include this pod: (Service, Service port, target port).
    pub serves: Vec<(ServiceKey, u16, u16)>,
    /// UDP ports at which it takes datagrams, as it or a Service that selects it says: ascending. Policy guards these, and those that are granted.
    pub udp_ports: Vec<u16>,
}

/// A pod that an agent publishes: a unit of lowering and of compilation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PeerIr {
    /// The NodeWorkloads object that counts.
    pub origin: ObjectRef,
    /// What it says.
    pub peer: Arc<Peer>,
    /// Service ports whose endpoints include this pod: (Service, Service port, target port).
    pub serves: Vec<(ServiceKey, u16, u16)>,
}

/// How alive a pod is. If several pods claim one address, the greatest wins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkloadState {
    /// Phase Succeeded or Failed: its addresses may belong to another pod already.
    Ended,
    /// Starting, failing its readiness probe, or terminating.
    #[default]
    NotReady,
    /// Takes traffic.
    Ready,
}

/// What happens to a pod's connections while the agent is gone: label `weft.dev/fail-mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FailMode {
    /// They go direct, are counted and listed.
    #[default]
    Open,
    /// They are refused at once.
    Closed,
}

/// The whole model: what lowering of everything gives, and what deltas add up to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MeshIr {
    /// By Service.
    pub services: BTreeMap<ServiceKey, Arc<ServiceIr>>,
    /// By Service and Service port.
    pub endpoints: BTreeMap<(ServiceKey, u16), Arc<EndpointSet>>,
    /// By pod UID.
    pub workloads: BTreeMap<WorkloadId, Arc<WorkloadIr>>,
    /// Findings by the object whose lowering made them; objects without findings are absent.
    pub diagnostics: BTreeMap<ServiceKey, Arc<[Diagnostic]>>,
    /// The same for pods.
    pub workload_diagnostics: BTreeMap<WorkloadId, Arc<[Diagnostic]>>,
    /// The same for namespaces.
    pub namespace_diagnostics: BTreeMap<Arc<str>, Arc<[Diagnostic]>>,
    /// What holds where no TrafficTarget selects, by namespace; absent where the namespace does not say.
    pub stances: BTreeMap<Arc<str>, Stance>,
    /// The object that refuses plaintext, by namespace; absent where none does.
    pub strict: BTreeMap<Arc<str>, ObjectRef>,
    /// Pods that take mutual TLS, by UID.
    pub peers: BTreeMap<WorkloadId, Arc<PeerIr>>,
    /// Findings about NodeWorkloads, by the UID of the pod whose lowering made them.
    pub peer_diagnostics: BTreeMap<WorkloadId, Arc<[Diagnostic]>>,
    /// What TrafficTargets say, by service account of the destination; absent where none selects it.
    pub access: BTreeMap<ServiceAccountKey, Arc<AccessIr>>,
    /// The same by IdentityBinding, for those that mean pods by label.
    pub bindings: BTreeMap<ObjectRef, Arc<BindingIr>>,
    /// Findings by the TrafficTarget, service account or IdentityBinding whose lowering made them.
    pub access_diagnostics: BTreeMap<ObjectRef, Arc<[Diagnostic]>>,
}

/// What changed: new values, or `None` for what is gone.
#[derive(Clone, Debug, Default)]
pub struct IrDelta {
    /// By Service.
    pub services: BTreeMap<ServiceKey, Option<Arc<ServiceIr>>>,
    /// By Service and Service port.
    pub endpoints: BTreeMap<(ServiceKey, u16), Option<Arc<EndpointSet>>>,
    /// By pod UID.
    pub workloads: BTreeMap<WorkloadId, Option<Arc<WorkloadIr>>>,
    /// By lowering unit.
    pub diagnostics: BTreeMap<ServiceKey, Option<Arc<[Diagnostic]>>>,
    /// By pod UID.
    pub workload_diagnostics: BTreeMap<WorkloadId, Option<Arc<[Diagnostic]>>>,
    /// By namespace.
    pub namespace_diagnostics: BTreeMap<Arc<str>, Option<Arc<[Diagnostic]>>>,
    /// By namespace.
    pub stances: BTreeMap<Arc<str>, Option<Stance>>,
    /// By namespace.
    pub strict: BTreeMap<Arc<str>, Option<ObjectRef>>,
    /// By pod UID.
    pub peers: BTreeMap<WorkloadId, Option<Arc<PeerIr>>>,
    /// By pod UID.
    pub peer_diagnostics: BTreeMap<WorkloadId, Option<Arc<[Diagnostic]>>>,
    /// By service account.
    pub access: BTreeMap<ServiceAccountKey, Option<Arc<AccessIr>>>,
    /// By IdentityBinding.
    pub bindings: BTreeMap<ObjectRef, Option<Arc<BindingIr>>>,
    /// By TrafficTarget, service account or IdentityBinding.
    pub access_diagnostics: BTreeMap<ObjectRef, Option<Arc<[Diagnostic]>>>,
}

impl IrDelta {
    /// Whether it says nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
            && self.endpoints.is_empty()
            && self.workloads.is_empty()
            && self.diagnostics.is_empty()
            && self.workload_diagnostics.is_empty()
            && self.namespace_diagnostics.is_empty()
            && self.stances.is_empty()
            && self.strict.is_empty()
            && self.peers.is_empty()
            && self.peer_diagnostics.is_empty()
            && self.access.is_empty()
            && self.bindings.is_empty()
            && self.access_diagnostics.is_empty()
    }
}

impl MeshIr {
    /// Takes a change in. What the delta repeats unchanged is left out of the answer, which holds what really changed.
    pub fn apply(&mut self, delta: IrDelta) -> IrDelta {
        IrDelta {
            services: merge(&mut self.services, delta.services),
            endpoints: merge(&mut self.endpoints, delta.endpoints),
            workloads: merge(&mut self.workloads, delta.workloads),
            diagnostics: merge(&mut self.diagnostics, delta.diagnostics),
            workload_diagnostics: merge(&mut self.workload_diagnostics, delta.workload_diagnostics),
            namespace_diagnostics: merge(&mut self.namespace_diagnostics, delta.namespace_diagnostics),
            stances: merge(&mut self.stances, delta.stances),
            strict: merge(&mut self.strict, delta.strict),
            peers: merge(&mut self.peers, delta.peers),
            peer_diagnostics: merge(&mut self.peer_diagnostics, delta.peer_diagnostics),
            access: merge(&mut self.access, delta.access),
            bindings: merge(&mut self.bindings, delta.bindings),
            access_diagnostics: merge(&mut self.access_diagnostics, delta.access_diagnostics),
        }
    }
}

fn merge<K: Ord + Clone, V: PartialEq + Clone>(
    into: &mut BTreeMap<K, V>,
    mut delta: BTreeMap<K, Option<V>>,
) -> BTreeMap<K, Option<V>> {
    delta.retain(|key, value| into.get(key) != value.as_ref());
    for (key, value) in &delta {
        match value {
            Some(value) => into.insert(key.clone(), value.clone()),
            None => into.remove(key),
        };
    }
    delta
}
