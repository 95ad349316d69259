//! Events: what `kubectl describe` shows below an object.

use serde_json::{Value, json};
use weft_crds::object::ObjectKey;

use super::conditions::{Outcome, shortened};
use crate::{limits, watch::kube::ledger::Note};

/// An Event that is not sent yet: what `events.k8s.io/v1` wants beside who reports it, and when.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Event {
    /// Namespace of the object, in which the Event lives.
    pub(super) namespace: String,
    /// Prefix of its name.
    pub(super) name: String,
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
