//! Which kinds are read, which are of no concern, and which must be refused aloud because their author expects an effect.

use serde_json::Value;

use crate::object::Kind;

/// What to do with a document.
pub(super) enum Recognised<'a> {
    /// Reads it as this kind, in this version.
    Read(Kind, &'a str),
    /// Belongs in manifest directories, but has no effect on weft.
    Ignored,
    /// Field and message.
    Refused(&'static str, String),
}

/// Kinds of the core group that weft has no use for.
const CORE_IGNORED: [&str; 13] = [
    "Binding",
    "ConfigMap",
    "Event",
    "LimitRange",
    "Node",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "PodTemplate",
    "ReplicationController",
    "ResourceQuota",
    "Secret",
    "ServiceAccount",
    "ComponentStatus",
];

/// API groups that weft has no use for, whatever their kinds. NetworkPolicy (networking.k8s.io) is the network plugin's, and
/// keeps working beside weft.
const GROUPS_IGNORED: [&str; 20] = [
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "apiregistration.k8s.io",
    "apps",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "coordination.k8s.io",
    "events.k8s.io",
    "flowcontrol.apiserver.k8s.io",
    "internal.apiserver.k8s.io",
    "metrics.k8s.io",
    "metrics.smi-spec.io",
    "networking.k8s.io",
    "node.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "resource.k8s.io",
    "scheduling.k8s.io",
    "storage.k8s.io",
];

pub(super) fn recognise<'a>(api_version: &'a str, kind: &str, document: &Value) -> Recognised<'a> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    if let Some(known) = Kind::ALL.into_iter().find(|known| known.group() == group && known.as_str() == kind) {
        // A Gateway's routes are no concern of a mesh, whatever they say.
        if matches!(known, Kind::HttpRoute | Kind::GrpcRoute) && !routes_a_service(document) {
            return Recognised::Ignored;
        }
        if known.versions().contains(&version) {
            return Recognised::Read(known, version);
        }
        return Recognised::Refused("apiVersion", unknown_version(known, api_version));
    }
    let not_enforced =
        |effect: &str| Recognised::Refused("kind", format!("{kind} is not enforced by this version of weft: {effect}"));
    match (group, kind) {
        ("gateway.networking.k8s.io", _) if routes_a_service(document) => not_enforced("no request is routed by it"),
        ("gateway.networking.k8s.io", _) => Recognised::Ignored,
        ("weft.dev", _) => not_enforced("it has no effect"),
        ("", "Endpoints") => not_enforced("give an EndpointSlice instead"),
        ("", kind) if CORE_IGNORED.contains(&kind) => Recognised::Ignored,
        (group, _) if GROUPS_IGNORED.contains(&group) => Recognised::Ignored,
        _ => match Kind::ALL.into_iter().find(|known| known.as_str() == kind) {
            Some(known) => Recognised::Refused("apiVersion", unknown_version(known, api_version)),
            None => Recognised::Refused("kind", unknown_kind(group, kind, api_version)),
        },
    }
}

fn unknown_version(kind: Kind, api_version: &str) -> String {
    let prefix = if kind.group().is_empty() { String::new() } else { format!("{}/", kind.group()) };
    let versions: Vec<String> = kind.versions().iter().map(|version| format!("{prefix}{version}")).collect();
    format!("{api_version:?} is not understood for {}; understood: {}", kind.as_str(), versions.join(", "))
}

fn unknown_kind(group: &str, kind: &str, api_version: &str) -> String {
    let known: Vec<&str> = Kind::ALL.into_iter().filter(|known| known.group() == group).map(Kind::as_str).collect();
    if known.is_empty() {
        format!("{kind:?} of {api_version:?} is unknown: it has no effect on weft")
    } else {
        format!("{kind:?} of {api_version:?} is unknown; of this group weft reads {}", known.join(", "))
    }
}

/// Whether a Gateway API route is attached to a Service, that is, meant for a mesh.
pub(super) fn routes_a_service(document: &Value) -> bool {
    let parents = document.pointer("/spec/parentRefs").and_then(Value::as_array);
    parents.is_some_and(|parents| {
        parents.iter().any(|parent| parent.get("kind").and_then(Value::as_str) == Some("Service"))
    })
}
