//! Writes to the API server: status and Events, and nothing else.

use std::time::Duration;

use http::{Method, Request, header::CONTENT_TYPE};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use serde_json::{Value, json};

use super::{Identity, conditions::Outcome, events::Event, parents};
use crate::{
    limits,
    watch::kube::{
        health::Reason,
        ledger::Note,
        wire::{self, Failure},
    },
};

/// Who is behind a field of an object, and behind an Event.
pub(super) const FIELD_MANAGER: &str = "weft";
/// What Events name as their reporter.
const CONTROLLER: &str = "weft.dev/agent";

/// Why something was not written.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    /// Its CRD has no status subresource, or the object is gone.
    #[error("no status subresource")]
    NoStatus,
    /// The object has changed since it was seen.
    #[error("the object has changed")]
    Stale,
    /// Anything else, and the pause that the API server asks for.
    #[error("{0}")]
    Failed(String, Option<Duration>),
}

impl WriteError {
    fn failed(failure: Failure) -> Self {
        Self::Failed(failure.message, failure.retry_after)
    }
}

pub(super) struct Writer {
    client: Client,
    holder: String,
}

impl Writer {
    pub(super) fn new(client: Client, identity: &Identity) -> Self {
        Self { client, holder: identity.holder.clone() }
    }

    /// Writes weft's conditions; those of others stay as they are.
    pub(super) async fn set_conditions(&self, note: &Note, outcome: &Outcome) -> Result<(), WriteError> {
        let now = now();
        let patch = json!({
            // Somebody else's conditions are in the same list: a write over a newer one would take them away.
            "metadata": {"resourceVersion": note.resource_version, "uid": note.uid},
            "status": match (&note.parents, &outcome.parents) {
                (Some(present), Some(wanted)) => {
                    json!({"parents": parents::render(present, outcome.generation, wanted, &now)})
                }
                _ => json!({"conditions": outcome.render(&note.conditions, &now)}),
            },
        });
        let path = format!("{}/status?fieldManager={FIELD_MANAGER}", note.path);
        match self.send(Method::PATCH, &path, "application/merge-patch+json", &patch).await {
            Ok(()) => Ok(()),
            Err(failure) if failure.reason == Reason::NotServed && self.is_there(note).await => {
                Err(WriteError::NoStatus)
            }
            Err(failure) if failure.reason == Reason::NotServed || failure.code == 409 => Err(WriteError::Stale),
            Err(failure) => Err(WriteError::failed(failure)),
        }
    }

    /// Whether the object itself is there, so that what is missing is its status subresource. Asked by a list, which the agent may make
    /// anyway; no answer is no proof.
    async fn is_there(&self, note: &Note) -> bool {
        let Some((kind, name)) = note.path.rsplit_once('/') else { return false };
        let path = format!("{kind}?fieldSelector=metadata.name%3D{name}&limit=1");
        let Ok(request) = Request::get(path).body(Vec::new()) else { return false };
        let Ok(body) = wire::ask(&self.client, request).await else { return false };
        let list: Value = serde_json::from_slice(&body).unwrap_or_default();
        list.get("items").and_then(Value::as_array).is_some_and(|items| !items.is_empty())
    }

    /// Sends an Event.
    pub(super) async fn event(&self, event: &Event) -> Result<(), WriteError> {
        let mut body = event.body.clone();
        // Names of Events are the object's and the time, as client-go makes them.
        let rest = event.once.clone().unwrap_or_else(|| format!("{:x}", Timestamp::now().as_nanosecond()));
        let end =
            (0..=event.name.len().min(limits::EVENT_NAME_BYTES_MAX)).rev().find(|at| event.name.is_char_boundary(*at));
        let name = format!("{}.{rest}", event.name[..end.unwrap_or(0)].trim_end_matches(['.', '-']));
        if let Some(fields) = body.as_object_mut() {
            fields.insert("apiVersion".to_owned(), "events.k8s.io/v1".into());
            fields.insert("kind".to_owned(), "Event".into());
            fields.insert("metadata".to_owned(), json!({"namespace": event.namespace, "name": name}));
            fields.insert("eventTime".to_owned(), micro_time().into());
            fields.insert("reportingController".to_owned(), CONTROLLER.into());
            fields.insert("reportingInstance".to_owned(), self.holder.chars().take(128).collect::<String>().into());
        }
        let path = format!("/apis/events.k8s.io/v1/namespaces/{}/events?fieldManager={FIELD_MANAGER}", event.namespace);
        match self.send(Method::POST, &path, "application/json", &body).await {
            // Whoever held the Lease before has told it.
            Err(failure) if failure.code == 409 && event.once.is_some() => Ok(()),
            sent => sent.map_err(WriteError::failed),
        }
    }

    async fn send(&self, method: Method, path: &str, content: &str, body: &Value) -> Result<(), Failure> {
        let request = Request::builder().method(method).uri(path).header(CONTENT_TYPE, content);
        let request = request
            .body(body.to_string().into_bytes())
            .map_err(|error| Failure::new(Reason::Refused, format!("{path} is no path: {error}")))?;
        wire::ask(&self.client, request).await.map(drop)
    }
}

/// Now, as Kubernetes' Time has it: RFC 3339 in seconds.
fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Now, as Kubernetes' MicroTime has it: with six digits more.
pub(super) fn micro_time() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}
