//! Pod.

use std::{collections::BTreeSet, net::IpAddr, path::Path, sync::Arc};

use k8s_openapi::api::core::v1;
use weft_policy::names::WorkloadId;

use crate::{
    decode::{self, FieldError, Problems},
    object::{Kind, Meta},
};

/// Annotation: path of the pod's network namespace, for pods that no kubelet knows.
pub const NETNS_ANNOTATION: &str = "weft.dev/netns";
/// Annotation: path of the pod's cgroup.
pub const CGROUP_ANNOTATION: &str = "weft.dev/cgroup";

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Metadata.
    pub meta: Meta,
    /// Node; empty while unscheduled.
    pub node: Arc<str>,
    /// Service account; `default` where none is given.
    pub service_account: Arc<str>,
    /// Shares the node's network namespace.
    pub host_network: bool,
    /// The owner that controls it: kind and name.
    pub controller: Option<(Arc<str>, Arc<str>)>,
    /// Addresses, the primary one first.
    pub ips: Vec<IpAddr>,
    /// Phase Succeeded or Failed.
    pub ended: bool,
    /// Its readiness, whether it is being deleted or not.
    pub ready: bool,
    /// Container ports that have a name, TCP only, in the order of containers.
    pub named_ports: Vec<(Arc<str>, u16)>,
    /// UDP ports of containers, in their order.
    pub udp_ports: Vec<u16>,
}

impl Pod {
    /// Its UID; where a document has none, `namespace/name`, which is as stable as the document and never like a real UID.
    #[must_use]
    pub fn id(&self) -> WorkloadId {
        match &self.meta.uid {
            Some(uid) => WorkloadId(Arc::clone(uid)),
            None => WorkloadId(format!("{}/{}", self.meta.namespace, self.meta.name).into()),
        }
    }

    /// Trims a pod.
    pub(crate) fn new(pod: v1::Pod, problems: &mut Problems) -> Self {
        let controller = pod.metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
        let controller = controller.map(|owner| (owner.kind.as_str().into(), owner.name.as_str().into()));
        let meta = Meta::new(Kind::Pod, pod.metadata);
        for annotation in [NETNS_ANNOTATION, CGROUP_ANNOTATION] {
            if meta
                .annotations
                .get(annotation)
                .is_some_and(|path| !Path::new(path).is_absolute() || path.contains('\0'))
            {
                problems
                    .push(FieldError::new(format!("metadata.annotations.{annotation}"), "must be an absolute path"));
            }
        }
        let spec = pod.spec.unwrap_or_default();
        let status = pod.status.unwrap_or_default();
        let phase = status.phase.as_deref().unwrap_or("Running");
        // The API server refuses unknown phases; a directory has nobody to do so.
        if !["Pending", "Running", "Succeeded", "Failed", "Unknown"].contains(&phase) {
            problems.push(FieldError::new(
                "status.phase",
                format!("{phase:?} is none of Pending, Running, Succeeded, Failed, Unknown"),
            ));
        }
        let conditions = status.conditions.as_deref().unwrap_or_default();
        let ready = if conditions.is_empty() {
            phase == "Running"
        } else {
            conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
        };
        let (named_ports, udp_ports) =
            container_ports(&spec.containers, spec.init_containers.as_deref().unwrap_or_default(), problems);
        let account = spec.service_account_name.or(spec.service_account).filter(|account| !account.is_empty());
        Self {
            ips: ips(status.pod_ip.as_deref(), status.pod_ips.as_deref().unwrap_or_default(), problems),
            named_ports,
            udp_ports,
            meta,
            node: spec.node_name.unwrap_or_default().into(),
            service_account: account.as_deref().unwrap_or("default").into(),
            host_network: spec.host_network.unwrap_or(false),
            controller,
            ended: phase == "Succeeded" || phase == "Failed",
            ready,
        }
    }
}

fn ips(primary: Option<&str>, all: &[v1::PodIP], problems: &mut Problems) -> Vec<IpAddr> {
    let mut ips = Vec::new();
    for (index, entry) in all.iter().enumerate() {
        ips.extend(decode::ip(&entry.ip, &format!("status.podIPs[{index}].ip"), problems));
    }
    if ips.is_empty() {
        ips.extend(primary.filter(|ip| !ip.is_empty()).and_then(|ip| decode::ip(ip, "status.podIP", problems)));
    }
    let mut seen = BTreeSet::new();
    ips.retain(|ip| seen.insert(*ip));
    ips
}

/// Ports of containers, then of those init containers that go on running (`restartPolicy: Always`), as kube's endpoint
/// controllers look them up: those of TCP that have a name, and those of UDP.
fn container_ports(
    containers: &[v1::Container],
    init: &[v1::Container],
    problems: &mut Problems,
) -> (Vec<(Arc<str>, u16)>, Vec<u16>) {
    let running_init = init.iter().enumerate().filter(|(_, one)| one.restart_policy.as_deref() == Some("Always"));
    let containers = containers.iter().enumerate().map(|one| ("containers", one));
    let (mut named, mut udp) = (Vec::new(), Vec::new());
    for (list, (index, container)) in containers.chain(running_init.map(|one| ("initContainers", one))) {
        for (at, port) in container.ports.iter().flatten().enumerate() {
            let field = format!("spec.{list}[{index}].ports[{at}].containerPort");
            let number = decode::port(port.container_port, &field, problems);
            let tcp = port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP");
            if port.protocol.as_deref() == Some("UDP") {
                udp.push(number);
            }
            if let Some(name) = port.name.as_deref().filter(|name| tcp && !name.is_empty()) {
                named.push((name.into(), number));
            }
        }
    }
    (named, udp)
}
