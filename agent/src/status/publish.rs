//! Tells other nodes which pods of this one take mutual TLS: in NodeWorkloads objects of at most 16 pods, which this agent alone writes.
//!
//! Twice a second what should be there is compared with what was written last, and only what differs is written; what is to be taken
//! back for a pod that is about to be let go of is written at once. What is really there is looked at once a minute: an earlier agent
//! may have left more, and somebody may have deleted some.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use http::{Method, Request, header::CONTENT_TYPE};
use kube::Client;
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use weft_crds::{
    object::{Kind, Object},
    parse::parse_as,
    weft::node_workloads::{object_name, shard_of},
};
use weft_policy::names::WorkloadId;

use crate::{
    limits,
    readiness::Readiness,
    watch::kube::{
        health::Reason,
        wire::{self, Failure},
    },
};

pub mod metrics;
mod shards;

use metrics::PublishMetrics;
use shards::{Shard, Shards, assign, changes};

/// Label of NodeWorkloads: the node, so that an agent finds its own without reading all.
const NODE_LABEL: &str = "weft.dev/node";
/// Who is behind the fields of NodeWorkloads.
const FIELD_MANAGER: &str = "weft-publisher";
const VERSION: &str = "v1alpha1";
const PATH: &str = "/apis/weft.dev/v1alpha1/nodeworkloads";

/// How long things take; other than in `limits.rs` only for tests.
#[derive(Clone, Copy, Debug)]
struct Times {
    round: Duration,
    look: Duration,
    certificates_by: Duration,
    pause_max: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            round: limits::PUBLISH_ROUND,
            look: limits::PUBLISH_LOOK,
            certificates_by: limits::PUBLISH_CERTIFICATES_BY,
            pause_max: limits::KUBE_BACKOFF_MAX,
        }
    }
}

/// Keeps the NodeWorkloads of this node as they should be.
pub struct Publisher {
    client: Client,
    node: String,
    readiness: Arc<Readiness>,
    metrics: PublishMetrics,
    /// What is there, as far as this agent knows; `None` until it was looked at.
    present: Option<Shards>,
    /// The Node object: with it go its NodeWorkloads (Kubernetes, "Owners and dependents").
    owner: Option<Value>,
    look_at: Instant,
    /// Not before this, after a failure.
    again_at: Instant,
    pause: Duration,
    complaint: Option<String>,
    full: bool,
    /// Until then a pod that an earlier agent published is left published while its certificate is still awaited.
    certificates_by: Instant,
    times: Times,
}

impl Publisher {
    /// A publisher for this node that has looked at nothing.
    #[must_use]
    pub fn new(client: &Client, node: &str, readiness: Arc<Readiness>, metrics: PublishMetrics) -> Self {
        Self::with_times(client, node, (readiness, metrics), Times::default())
    }

    fn with_times(
        client: &Client,
        node: &str,
        (readiness, metrics): (Arc<Readiness>, PublishMetrics),
        times: Times,
    ) -> Self {
        let now = Instant::now();
        Self {
            client: client.clone(),
            node: node.to_owned(),
            readiness,
            metrics,
            present: None,
            owner: None,
            look_at: now,
            again_at: now,
            pause: limits::KUBE_BACKOFF_FIRST,
            complaint: None,
            full: false,
            certificates_by: now + times.certificates_by,
            times,
        }
    }

    /// Publishes. Never ends.
    pub async fn run(mut self) {
        let mut round = interval(self.times.round);
        round.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let readiness = Arc::clone(&self.readiness);
        loop {
            let is_urgent = tokio::select! {
                _ = round.tick() => false,
                () = readiness.urgent() => true,
            };
            if is_urgent || Instant::now() >= self.again_at {
                self.round().await;
            }
        }
    }

    async fn round(&mut self) {
        match self.write_changes().await {
            Ok(()) => {
                self.complaint = None;
                self.pause = limits::KUBE_BACKOFF_FIRST;
            }
            Err(failure) => {
                self.metrics.failed(failure.reason);
                if self.complaint.as_ref() != Some(&failure.message) {
                    tracing::warn!(reason = %failure.reason, error = failure.message, "other nodes are not told of every change of this node's pods; it is tried again");
                    self.complaint = Some(failure.message);
                }
                // What is there is not certain any more.
                self.look_at = Instant::now();
                let asked = failure.retry_after.unwrap_or_default();
                self.again_at = Instant::now() + self.pause.max(asked).min(self.times.pause_max);
                self.pause = (self.pause * 2).min(self.times.pause_max);
            }
        }
    }

    /// Looks and writes once; what is written before a failure stays so.
    async fn write_changes(&mut self) -> Result<(), Failure> {
        if self.present.is_none() || Instant::now() >= self.look_at {
            self.look().await?;
        }
        let present = self.present.get_or_insert_default();
        let mut wanted = self.readiness.wanted();
        if Instant::now() < self.certificates_by {
            let awaited = self.readiness.withheld().into_iter().filter(|(_, why, _)| why.may_pass());
            let known = |id: &WorkloadId| present.values().flatten().any(|shard| shard.contains_key(id));
            wanted.extend(awaited.filter(|(pod, ..)| known(&pod.id)).map(|(pod, ..)| (pod.id.clone(), pod)));
        }
        let assignment = assign(present, wanted);
        self.metrics.withheld(&self.readiness, assignment.left_out);
        if assignment.left_out > 0 && !self.full {
            tracing::warn!(
                pods = assignment.left_out,
                "no NodeWorkloads object has room for these pods; other nodes talk to them in plaintext"
            );
        }
        self.full = assignment.left_out > 0;
        for (number, shard) in changes(present, &assignment.shards) {
            self.write(number, shard).await?;
            self.tell();
        }
        self.tell();
        Ok(())
    }

    /// Says what is published now.
    fn tell(&self) {
        let shards = self.present.iter().flat_map(BTreeMap::values).flatten();
        let ids: BTreeSet<_> = shards.flat_map(BTreeMap::keys).cloned().collect();
        self.metrics.published.set(ids.len().try_into().unwrap_or(i64::MAX));
        self.readiness.set_published(ids);
    }

    /// Reads what is there of this node.
    async fn look(&mut self) -> Result<(), Failure> {
        let found = list(&self.client, &self.node).await?;
        self.owner = self.owner().await?;
        self.present = Some(found);
        self.look_at = Instant::now() + self.times.look;
        Ok(())
    }

    /// The Node object, if there is one and it may be read.
    async fn owner(&self) -> Result<Option<Value>, Failure> {
        let node = match send(&self.client, Method::GET, &format!("/api/v1/nodes/{}", self.node), None).await {
            Ok(body) => body,
            // Without it objects of a node that is gone stay until somebody deletes them.
            Err(failure) if matches!(failure.reason, Reason::NotServed | Reason::Forbidden) => return Ok(None),
            Err(failure) => return Err(failure),
        };
        let uid = node.pointer("/metadata/uid").and_then(Value::as_str);
        Ok(uid.map(|uid| json!({"apiVersion": "v1", "kind": "Node", "name": self.node, "uid": uid})))
    }

    async fn write(&mut self, number: u16, shard: Option<Shard>) -> Result<(), Failure> {
        let name = object_name(&self.node, number);
        let Some(shard) = shard else {
            delete(&self.client, &name).await?;
            self.metrics.deleted.inc();
            self.present.get_or_insert_default().remove(&number);
            return Ok(());
        };
        let body = self.document(&name, &shard);
        let path = format!("{PATH}/{name}?fieldManager={FIELD_MANAGER}&force=true");
        let bytes = body.to_string().len();
        send(&self.client, Method::PATCH, &path, Some(&body)).await?;
        self.metrics.applied.inc();
        self.metrics.bytes.inc_by(bytes.try_into().unwrap_or(u64::MAX));
        self.present.get_or_insert_default().insert(number, Some(shard));
        Ok(())
    }

    fn document(&self, name: &str, shard: &Shard) -> Value {
        let pods: Vec<Value> = shard
            .values()
            .map(|pod| {
                json!({
                    "uid": &*pod.id.0, "namespace": &*pod.account.namespace, "name": &*pod.name,
                    "serviceAccount": &*pod.account.name, "ips": pod.ips,
                })
            })
            .collect();
        let mut metadata = json!({"name": name, "labels": {NODE_LABEL: self.node}});
        if let Some(owner) = &self.owner {
            metadata["ownerReferences"] = json!([owner]);
        }
        json!({
            "apiVersion": format!("weft.dev/{VERSION}"), "kind": "NodeWorkloads",
            "metadata": metadata, "spec": {"node": self.node, "pods": pods},
        })
    }
}

/// Takes back everything that is published of a node, because weft is taken off it; then waits for a moment in which the watches carry
/// that to the other nodes. No longer than `at_most`.
pub async fn withdraw_all(client: &Client, node: &str, at_most: Duration) {
    let all = async {
        for number in list(client, node).await?.into_keys() {
            delete(client, &object_name(node, number)).await?;
        }
        Ok::<(), Failure>(())
    };
    match timeout(at_most, all).await {
        Ok(Ok(())) => sleep(limits::PUBLISH_SEEN).await,
        Ok(Err(failure)) => {
            tracing::warn!(reason = %failure.reason, error = failure.message, "other nodes go on to take this node's pods for ready");
        }
        Err(_) => tracing::warn!(
            "other nodes may go on to take this node's pods for ready: the API server did not answer in time"
        ),
    }
}

/// What is there of a node.
async fn list(client: &Client, node: &str) -> Result<Shards, Failure> {
    // Every name of a node is a name that a URL may hold as it is (RFC 1123).
    let found = send(client, Method::GET, &format!("{PATH}?labelSelector={NODE_LABEL}%3D{node}"), None).await?;
    let items = found.get("items").and_then(Value::as_array).into_iter().flatten();
    let shards = items.filter_map(|item| {
        let name = item.pointer("/metadata/name").and_then(Value::as_str)?;
        // Another node's object may bear this node's label; it is none of this one's for that.
        let number = shard_of(name, node)?;
        let shard = match parse_as(Kind::NodeWorkloads, VERSION, item) {
            Ok(Object::NodeWorkloads(workloads)) => {
                Some(workloads.pods.iter().map(|pod| (pod.id.clone(), pod.clone())).collect())
            }
            _ => None,
        };
        Some((number, shard))
    });
    Ok(shards.collect())
}

async fn delete(client: &Client, name: &str) -> Result<(), Failure> {
    match send(client, Method::DELETE, &format!("{PATH}/{name}"), None).await {
        Err(failure) if failure.code != 404 => Err(failure),
        _ => Ok(()),
    }
}

async fn send(client: &Client, method: Method, path: &str, body: Option<&Value>) -> Result<Value, Failure> {
    let content = if method == Method::PATCH { "application/apply-patch+yaml" } else { "application/json" };
    let bytes = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
    let request = Request::builder().method(method).uri(path).header(CONTENT_TYPE, content).body(bytes);
    let request = request.map_err(|error| Failure::new(Reason::Refused, format!("{path} is no path: {error}")))?;
    let answer = wire::ask(client, request).await?;
    serde_json::from_slice(&answer).map_err(|error| Failure::unreadable(&error))
}

#[cfg(test)]
mod tests;
