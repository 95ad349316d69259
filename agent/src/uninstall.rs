//! Whether weft is being removed from the cluster, and its removal.
//!
//! An agent that is told to stop cannot see why: for an upgrade everything must stay as it is, after a removal nothing. It asks whether its
//! DaemonSet is there. `weft-agent uninstall` deletes the DaemonSet and waits until all its pods have ended, while the agents may still
//! ask: helm, left alone, takes their permission away before they stop.

use std::time::Duration;

use http::{Method, Request, header::CONTENT_TYPE};
use kube::Client;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    limits,
    watch::kube::{
        health::Reason,
        wire::{self, Failure},
    },
};

/// A DaemonSet by name.
#[derive(Clone, Debug)]
pub struct DaemonSet {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// Why weft was not removed, or not from every node.
#[derive(Debug, thiserror::Error)]
pub enum UninstallError {
    /// The API server.
    #[error("DaemonSet {namespace}/{name} cannot be deleted: {message}")]
    Refused {
        /// Namespace.
        namespace: String,
        /// Name.
        name: String,
        /// What the API server said.
        message: String,
    },
    /// Some agents have not ended.
    #[error(
        "after {0} s some agents have not ended: nodes that are not ready, perhaps. There, weft-agent cleanup does what is left"
    )]
    Late(u64),
}

/// What is known of a DaemonSet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    There,
    Going,
    Gone,
}

/// Whether the DaemonSet is deleted, or about to be. Whatever else the API server says, or does not say, is no: to undo capture opens what
/// policy has closed.
pub async fn is_removed(client: &Client, daemonset: &DaemonSet) -> bool {
    match timeout(limits::UNINSTALL_ASK_MAX, find(client, daemonset)).await {
        Ok(Ok(found)) => found != Found::There,
        Ok(Err(failure)) => {
            tracing::warn!(
                error = failure.message,
                "it cannot be told whether weft is being removed; everything stays as it is"
            );
            false
        }
        Err(_) => {
            tracing::warn!(
                "the API server does not say in time whether weft is being removed; everything stays as it is"
            );
            false
        }
    }
}

/// Deletes the DaemonSet and waits until its pods have ended.
///
/// # Errors
/// When it cannot be deleted, or pods have not ended in time.
pub async fn uninstall(client: &Client, daemonset: &DaemonSet, wait: Duration) -> Result<(), UninstallError> {
    let deadline = Instant::now() + wait;
    let mut asked = false;
    loop {
        let done = if asked { find(client, daemonset).await } else { delete(client, daemonset).await };
        match done {
            Ok(Found::Gone) => return Ok(()),
            Ok(Found::There | Found::Going) => asked = true,
            Err(failure) if Instant::now() >= deadline && !asked => {
                return Err(UninstallError::Refused {
                    namespace: daemonset.namespace.clone(),
                    name: daemonset.name.clone(),
                    message: failure.message,
                });
            }
            Err(_) => {}
        }
        if Instant::now() >= deadline {
            return Err(UninstallError::Late(wait.as_secs()));
        }
        sleep(limits::UNINSTALL_LOOK).await;
    }
}

async fn find(client: &Client, daemonset: &DaemonSet) -> Result<Found, Failure> {
    send(client, daemonset, Method::GET, Vec::new()).await
}

/// In the foreground: the object stays, marked, until its pods have ended.
async fn delete(client: &Client, daemonset: &DaemonSet) -> Result<Found, Failure> {
    let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Foreground"});
    send(client, daemonset, Method::DELETE, options.to_string().into_bytes()).await
}

async fn send(client: &Client, daemonset: &DaemonSet, method: Method, body: Vec<u8>) -> Result<Found, Failure> {
    let DaemonSet { namespace, name } = daemonset;
    let request = Request::builder()
        .method(method)
        .uri(format!("/apis/apps/v1/namespaces/{namespace}/daemonsets/{name}"))
        .header(CONTENT_TYPE, "application/json")
        .body(body)
        .map_err(|error| Failure::new(Reason::Refused, error.to_string()))?;
    match wire::ask(client, request).await {
        Ok(answer) => {
            let object: Value = serde_json::from_slice(&answer).map_err(|error| Failure::unreadable(&error))?;
            Ok(match object["kind"].as_str() {
                Some("DaemonSet") if object["metadata"]["deletionTimestamp"].is_null() => Found::There,
                Some("DaemonSet") => Found::Going,
                // Deleted at once: nothing waited for its pods.
                Some("Status") => Found::Gone,
                _ => return Err(Failure::new(Reason::Unreadable, "the answer is no DaemonSet".to_owned())),
            })
        }
        // Not that of a server which does not know the kind, or of something in between.
        Err(failure) if failure.code == 404 && failure.message.contains(&format!("\"{name}\" not found")) => {
            Ok(Found::Gone)
        }
        Err(failure) => Err(failure),
    }
}
