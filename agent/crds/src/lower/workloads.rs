//! Pods, and what their namespaces say about them.

use std::sync::Arc;

use weft_policy::{
    inbound::Stance,
    ir::{FailMode, WorkloadIr, WorkloadState},
    names::{ObjectRef, WorkloadId},
};

use super::{Choice, Findings, choice, endpoints};
use crate::{
    core::{
        namespace::Namespace,
        pod::{CGROUP_ANNOTATION, NETNS_ANNOTATION, Pod},
    },
    store::ObjectStore,
};

/// Label of namespaces: `enabled` captures their pods. Label or annotation of pods: `disabled` leaves one out.
const MESH: &str = "weft.dev/mesh";
/// Label of namespaces: `allow` or `deny`, where no TrafficTarget selects.
const DEFAULT: &str = "weft.dev/default";
/// Label of namespaces: `permissive` or `strict`, for connections that bring no certificate.
const MTLS: &str = "weft.dev/mtls";
/// Label of namespaces and pods: `open` or `closed`.
const FAIL_MODE: &str = "weft.dev/fail-mode";

pub(super) fn workload(store: &ObjectStore, id: &WorkloadId, findings: &mut Findings) -> Option<WorkloadIr> {
    let mut pods = store.pods_with_id(id);
    let pod = pods.next()?;
    for other in pods {
        let message = format!(
            "Pod {}/{} has the same UID, and comes first; this one is not used",
            pod.meta.namespace, pod.meta.name
        );
        findings.error(&object(other), "DuplicateUID", "metadata.uid", message);
    }
    let namespace = store.namespace(&pod.meta.namespace);
    let state = if pod.ended {
        WorkloadState::Ended
    } else if pod.ready && !pod.meta.deleting {
        WorkloadState::Ready
    } else {
        WorkloadState::NotReady
    };
    let path = |annotation: &str| pod.meta.annotations.get(annotation).map(Into::into);
    Some(WorkloadIr {
        id: id.clone(),
        namespace: pod.meta.namespace.clone(),
        name: pod.meta.name.clone(),
        owner: owner(pod),
        service_account: pod.service_account.clone(),
        node: pod.node.clone(),
        ips: pod.ips.clone(),
        host_network: pod.host_network,
        state,
        meshed: meshed(namespace, pod, findings) && !pod.ended,
        fail_mode: fail_mode(namespace, pod, findings),
        fail_open_by: fail_open_by(namespace, pod),
        netns: path(NETNS_ANNOTATION),
        cgroup: path(CGROUP_ANNOTATION),
        serves: endpoints::served_by(store, pod),
        udp_ports: endpoints::udp_ports(store, pod),
    })
}

/// What is to be said about a namespace itself.
pub(super) fn namespace(store: &ObjectStore, name: &Arc<str>, findings: &mut Findings) {
    let Some(namespace) = store.namespace(name) else { return };
    let object = ObjectRef::new("Namespace", "", name);
    if let Choice::Unknown(value) = choice(&namespace.meta.labels, MESH, &["enabled", "disabled"]) {
        let message = format!("{value:?} is neither enabled nor disabled; its pods are not captured");
        findings.warning(&object, "UnknownMeshLabel", format!("metadata.labels.{MESH}"), message);
    }
    if let Choice::Unknown(value) = choice(&namespace.meta.labels, FAIL_MODE, &["open", "closed"]) {
        let message = format!("{value:?} is neither open nor closed; its pods are treated as closed");
        findings.warning(&object, "UnknownFailMode", format!("metadata.labels.{FAIL_MODE}"), message);
    }
    if let Choice::Unknown(value) = choice(&namespace.meta.labels, DEFAULT, &["allow", "deny"]) {
        let message = format!("{value:?} is neither allow nor deny; what no TrafficTarget selects here is denied");
        findings.error(&object, "UnknownDefault", format!("metadata.labels.{DEFAULT}"), message);
    }
    if let Choice::Unknown(value) = choice(&namespace.meta.labels, MTLS, &["permissive", "strict"]) {
        let message = format!("{value:?} is neither permissive nor strict; plaintext is refused here as in strict");
        findings.error(&object, "UnknownMtls", format!("metadata.labels.{MTLS}"), message);
    }
}

/// The object that refuses plaintext in a namespace, if one does. A word that is not understood does, because a slip in `strict` must not
/// let plaintext in. The agent's own default is for namespaces in the mesh alone: nobody could speak mutual TLS to the others.
pub(super) fn strict(store: &ObjectStore, name: &Arc<str>) -> Option<ObjectRef> {
    let strict = match choice(&store.namespace(name)?.meta.labels, MTLS, &["permissive", "strict"]) {
        Choice::Absent if store.strict_by_default() && namespace_is_meshed(store, name) == Some(true) => {
            return Some(ObjectRef::new("Option", "", "--mtls=strict"));
        }
        Choice::Absent => false,
        Choice::Known(value) => value == "strict",
        Choice::Unknown(_) => true,
    };
    strict.then(|| ObjectRef::new("Namespace", "", name))
}

/// What holds in a namespace where no TrafficTarget selects; `None` if it does not say, and the agent's default holds. A word that is
/// not understood denies, because a slip in `deny` must not allow.
pub(super) fn stance(store: &ObjectStore, name: &Arc<str>) -> Option<Stance> {
    let deny = match choice(&store.namespace(name)?.meta.labels, DEFAULT, &["allow", "deny"]) {
        Choice::Absent => return None,
        Choice::Known(value) => value == "deny",
        Choice::Unknown(_) => true,
    };
    Some(Stance { deny, origin: Some(Arc::new(ObjectRef::new("Namespace", "", name))) })
}

pub(super) fn namespace_is_meshed(store: &ObjectStore, name: &str) -> Option<bool> {
    let labels = &store.namespace(&name.into())?.meta.labels;
    Some(matches!(choice(labels, MESH, &["enabled", "disabled"]), Choice::Known("enabled")))
}

/// The object whose label asks for fail mode `open`, if one does and is heard.
fn fail_open_by(namespace: Option<&Namespace>, pod: &Pod) -> Option<ObjectRef> {
    match (choice(&pod.meta.labels, FAIL_MODE, &["open"]), namespace) {
        (Choice::Known(_), _) => Some(object(pod)),
        (Choice::Absent, Some(namespace)) => match choice(&namespace.meta.labels, FAIL_MODE, &["open"]) {
            Choice::Known(_) => Some(ObjectRef::new("Namespace", "", &namespace.meta.name)),
            Choice::Absent | Choice::Unknown(_) => None,
        },
        _ => None,
    }
}

fn object(pod: &Pod) -> ObjectRef {
    ObjectRef::new("Pod", &pod.meta.namespace, &pod.meta.name)
}

pub(super) fn meshed(namespace: Option<&Namespace>, pod: &Pod, findings: &mut Findings) -> bool {
    let of_namespace =
        namespace.map_or(Choice::Absent, |namespace| choice(&namespace.meta.labels, MESH, &["enabled", "disabled"]));
    let mut meshed = matches!(of_namespace, Choice::Known("enabled"));
    for (map, field) in [(&pod.meta.labels, "labels"), (&pod.meta.annotations, "annotations")] {
        match choice(map, MESH, &["disabled", "enabled"]) {
            Choice::Known("disabled") => meshed = false,
            Choice::Known(_) | Choice::Absent => {}
            Choice::Unknown(value) => {
                let message =
                    format!("{value:?} is not understood: only disabled leaves a pod out; the namespace decides");
                findings.warning(&object(pod), "UnknownMeshLabel", format!("metadata.{field}.{MESH}"), message);
            }
        }
    }
    meshed
}

fn fail_mode(namespace: Option<&Namespace>, pod: &Pod, findings: &mut Findings) -> FailMode {
    let mode = |value: Choice<'_>| match value {
        Choice::Known("open") => Some(FailMode::Open),
        Choice::Known(_) | Choice::Unknown(_) => Some(FailMode::Closed),
        Choice::Absent => None,
    };
    let of_pod = choice(&pod.meta.labels, FAIL_MODE, &["open", "closed"]);
    if let Choice::Unknown(value) = of_pod {
        let message = format!("{value:?} is neither open nor closed; the pod is treated as closed");
        findings.warning(&object(pod), "UnknownFailMode", format!("metadata.labels.{FAIL_MODE}"), message);
    }
    let of_namespace =
        namespace.map_or(Choice::Absent, |namespace| choice(&namespace.meta.labels, FAIL_MODE, &["open", "closed"]));
    mode(of_pod).or_else(|| mode(of_namespace)).unwrap_or_default()
}

/// What the pod belongs to, for people and metrics: the owner that controls it, a Deployment by the name of its ReplicaSet
/// without the hash; else what its labels say; else the pod itself.
fn owner(pod: &Pod) -> Arc<str> {
    if let Some((kind, name)) = &pod.controller {
        let hash = pod.meta.labels.get("pod-template-hash").filter(|_| &**kind == "ReplicaSet");
        let deployment = hash.and_then(|hash| name.strip_suffix(hash.as_str())?.strip_suffix('-'));
        return deployment.filter(|name| !name.is_empty()).map_or_else(|| name.clone(), Into::into);
    }
    let label = ["app.kubernetes.io/name", "app"].into_iter().find_map(|key| pod.meta.labels.get(key));
    label.filter(|label| !label.is_empty()).map_or_else(|| pod.meta.name.clone(), |label| label.as_str().into())
}
