//! What a policy is attached to: Services of its own namespace (Gateway API's LocalPolicyTargetReference, with the port by number).

use std::collections::BTreeSet;

use serde::Deserialize;
use weft_policy::names::ServiceKey;

use crate::{
    decode::{self, FieldError, Problems},
    limits,
};

/// A Service, or one port of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// Which.
    pub service: ServiceKey,
    /// The port; `None` for all that no other object names.
    pub port: Option<u16>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TargetDocument {
    group: Option<String>,
    kind: String,
    name: String,
    port: Option<i32>,
}

/// Reads `spec.targetRefs` of an object in a namespace.
pub(super) fn targets(documents: &[TargetDocument], namespace: &str, problems: &mut Problems) -> Vec<Target> {
    if documents.len() > limits::TARGETS_MAX {
        let message = format!("{} targets are over the limit of {}", documents.len(), limits::TARGETS_MAX);
        problems.push(FieldError::new("spec.targetRefs", message));
    }
    let (mut targets, mut seen) = (Vec::new(), BTreeSet::new());
    for (index, document) in documents.iter().take(limits::TARGETS_MAX).enumerate() {
        let at = format!("spec.targetRefs[{index}]");
        if document.group.as_deref().is_some_and(|group| !group.is_empty() && group != "core") {
            let message = "only a Service can be a target: its group is the empty one";
            problems.push(FieldError::new(format!("{at}.group"), message));
        }
        if document.kind != "Service" {
            let message = format!("{} cannot be a target: only a Service can", decode::quoted(&document.kind));
            problems.push(FieldError::new(format!("{at}.kind"), message));
        }
        if !decode::is_label(&document.name) {
            let message = format!("{} is no valid name of a Service (RFC 1123 label)", decode::quoted(&document.name));
            problems.push(FieldError::new(format!("{at}.name"), message));
        }
        let port = document.port.map(|port| decode::port(port, &format!("{at}.port"), problems));
        let target = Target { service: ServiceKey::new(namespace, &document.name), port };
        if !seen.insert(target.clone()) {
            problems.push(FieldError::new(at, "the same target is given before"));
        }
        targets.push(target);
    }
    targets
}
