//! Events: what `kubectl describe` shows below an object.

use serde_json::{Value, json};
use weft_crds::object::ObjectKey;

use super::{
    conditions::{Outcome, shortened},
    widened::Widened,
};
use crate::{
    limits,
    watch::kube::ledger::{Note, Widening},
};

/// An Event that is not sent yet: what `events.k8s.io/v1` wants beside who reports it, and when.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Event {
    /// Namespace of the object, in which the Event lives.
    pub(super) namespace: String,
    /// Prefix of its name.
    pub(super) name: String,
    /// The rest of its name, where nobody is to tell it again; otherwise the time.
    pub(super) once: Option<String>,
    /// Everything else.
    pub(super) body: Value,
}

/// What is said of an object.
pub(super) fn of(key: &ObjectKey, note: &Note, outcome: &Outcome) -> Event {
    let (reason, message) = outcome.worst();
    let (kind, message) = match outcome.is_good() {
        true => ("Normal", "accepted and in force, as written"),
        false => ("Warning", message),
    };
    Event {
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        once: None,
        body: json!({
            "regarding": {
                "apiVersion": note.api_version,
                "kind": key.kind.as_str(),
                "namespace": &*key.namespace,
                "name": &*key.name,
                "uid": note.uid,
                "resourceVersion": note.resource_version,
            },
            "type": kind,
            "reason": reason,
            "action": "Programming",
            "note": shortened(message, limits::EVENT_NOTE_BYTES_MAX),
        }),
    }
}

/// What is said of a destination that nothing guards any more. It stands at the destination: the TrafficTarget may be gone.
pub(super) fn widened(widening: &Widening) -> Event {
    let Widened { destination, targets } = &widening.widened;
    let last = targets.last().map(ToString::to_string).unwrap_or_default();
    let others = match targets.len() {
        0 | 1 => String::new(),
        more => format!(" and {} more", more - 1),
    };
    let (kind, namespace, name) = (&*destination.kind, &*destination.namespace, &*destination.name);
    let api_version = if kind == "ServiceAccount" { "v1" } else { "access.smi-spec.io/v1alpha4" };
    let note = format!(
        "{last}{others} selected {destination} last; no TrafficTarget does any more, and pods that none selects take everything here"
    );
    Event {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        once: Some(widening.id.clone()).filter(|id| !id.is_empty()),
        body: json!({
            "regarding": {"apiVersion": api_version, "kind": kind, "namespace": namespace, "name": name},
            "type": "Warning",
            "reason": "AccessWidened",
            "action": "Programming",
            "note": shortened(&note, limits::EVENT_NOTE_BYTES_MAX),
        }),
    }
}
