//! A Lease, that says which one of several writes (`coordination.k8s.io/v1`), held as client-go's leader election does: whoever sees it unchanged
//! for its whole duration, by its own clock, may take it.

use std::time::Duration;

use http::{Method, Request, header::CONTENT_TYPE};
use kube::Client;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Identity, writer};
use crate::{
    limits,
    watch::kube::{
        health::Reason,
        wire::{self, Failure},
    },
};

pub(crate) struct Lease {
    client: Client,
    name: &'static str,
    path: String,
    namespace: String,
    holder: String,
    /// What the Lease said last of its holder and its renewal, and since when it says so.
    observed: Option<(String, String, Instant)>,
    /// Until when this agent holds it, if it cannot renew it any more.
    held_until: Option<Instant>,
    complained: bool,
}

impl Lease {
    /// A Lease of this name, in the namespace of whoever wants it.
    pub(crate) fn new(client: Client, identity: &Identity, name: &'static str) -> Self {
        Self {
            client,
            name,
            path: format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", identity.namespace),
            namespace: identity.namespace.clone(),
            holder: identity.holder.clone(),
            observed: None,
            held_until: None,
            complained: false,
        }
    }

    /// Whether it is held now: nobody else writes.
    pub(crate) fn is_held(&self) -> bool {
        self.held_until.is_some_and(|until| Instant::now() < until)
    }

    /// Takes or renews the Lease, if it is free or ours.
    pub(crate) async fn renew(&mut self) {
        let asked = Instant::now();
        match self.attempt().await {
            Ok(true) => {
                // Counted from before the request, and shorter than others wait: two agents never hold it at one time.
                self.held_until = Some(asked + limits::LEASE_HELD);
                self.complained = false;
            }
            Ok(false) => {
                self.held_until = None;
                self.complained = false;
            }
            Err(failure) => {
                if !self.complained {
                    tracing::warn!(reason = %failure.reason, error = failure.message, lease = self.name, namespace = self.namespace, "it cannot be told who holds the Lease");
                    self.complained = true;
                }
            }
        }
    }

    async fn attempt(&mut self) -> Result<bool, Failure> {
        let present = match self.send(Method::GET, &format!("{}/{}", self.path, self.name), None).await {
            Ok(present) => present,
            Err(failure) if failure.reason == Reason::NotServed => {
                let spec = self.spec(&Value::Null);
                let body = json!({
                    "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                    "metadata": {"namespace": self.namespace, "name": self.name}, "spec": spec,
                });
                return lost_to_none(self.send(Method::POST, &self.path.clone(), Some(&body)).await);
            }
            Err(failure) => return Err(failure),
        };
        let text = |field: &str| present.pointer(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (holder, renewed) = (text("/spec/holderIdentity"), text("/spec/renewTime"));
        let is_ours = holder == self.holder;
        if !is_ours && !holder.is_empty() {
            let seconds = present.pointer("/spec/leaseDurationSeconds").and_then(Value::as_u64);
            let duration =
                Duration::from_secs(seconds.unwrap_or(limits::LEASE_DURATION_S).min(limits::LEASE_DURATION_MAX_S));
            let same = self.observed.as_ref().is_some_and(|(by, at, _)| (by, at) == (&holder, &renewed));
            if !same {
                self.observed = Some((holder, renewed, Instant::now()));
                return Ok(false);
            }
            if self.observed.as_ref().is_some_and(|(.., since)| since.elapsed() < duration) {
                return Ok(false);
            }
        }
        let mut body = present.clone();
        let spec = self.spec(&present["spec"]);
        if let Some(fields) = body.as_object_mut() {
            fields.insert("spec".to_owned(), spec);
        }
        // With its resourceVersion: whoever was faster has it.
        lost_to_none(self.send(Method::PUT, &format!("{}/{}", self.path, self.name), Some(&body)).await)
    }

    fn spec(&self, present: &Value) -> Value {
        let now = writer::micro_time();
        let ours = present.get("holderIdentity").and_then(Value::as_str) == Some(&self.holder);
        let transitions = present.get("leaseTransitions").and_then(Value::as_i64).unwrap_or(0);
        let acquired = present.get("acquireTime").filter(|_| ours).cloned().unwrap_or_else(|| now.clone().into());
        json!({
            "holderIdentity": self.holder,
            "leaseDurationSeconds": limits::LEASE_DURATION_S,
            "acquireTime": acquired,
            "renewTime": now,
            "leaseTransitions": if ours || present.is_null() { transitions } else { transitions.saturating_add(1) },
        })
    }

    async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, Failure> {
        let refused = |error: http::Error| Failure::new(Reason::Refused, format!("{path} is no path: {error}"));
        let bytes = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        let request = Request::builder().method(method).uri(path).header(CONTENT_TYPE, "application/json").body(bytes);
        let answer = wire::ask(&self.client, request.map_err(refused)?).await?;
        serde_json::from_slice(&answer).map_err(|error| Failure::unreadable(&error))
    }
}

/// Somebody else was faster (409): the Lease is theirs.
fn lost_to_none(written: Result<Value, Failure>) -> Result<bool, Failure> {
    match written {
        Ok(_) => Ok(true),
        Err(failure) if failure.code == 409 => Ok(false),
        Err(failure) => Err(failure),
    }
}
