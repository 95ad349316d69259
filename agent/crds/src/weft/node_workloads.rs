//! NodeWorkloads, weft.dev v1alpha1: what the agent of one node tells all others of its pods.
//!
//! It is written by agents alone, and by newer ones than the reader while a cluster is upgraded: so fields that are not known are passed
//! over here. They can only say more of a pod that is published either way.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde_json::Value;
use weft_policy::names::{ServiceAccountKey, WorkloadId};

use crate::{
    core::pod::Pod,
    decode::{self, FieldError, Problems},
    limits,
    object::{Kind, Meta},
};

/// Some of the pods of one node that take mutual TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeWorkloads {
    /// Metadata. The name is that of the node and the number of the shard: `node-1-0`.
    pub meta: Meta,
    /// The node.
    pub node: Arc<str>,
    /// Its pods, in the order of the object; no UID twice.
    pub pods: Vec<PublishedPod>,
}

/// One pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedPod {
    /// Its UID.
    pub id: WorkloadId,
    /// Its name.
    pub name: Arc<str>,
    /// Its namespace and service account.
    pub account: ServiceAccountKey,
    /// Its addresses, ascending; at least one.
    pub ips: Box<[IpAddr]>,
}

#[derive(Deserialize)]
struct Document {
    spec: Spec,
}

#[derive(Deserialize)]
struct Spec {
    node: String,
    #[serde(default)]
    pods: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    uid: String,
    namespace: String,
    name: String,
    service_account: String,
    ips: Vec<String>,
}

/// The name of the object that holds one shard of a node.
#[must_use]
pub fn object_name(node: &str, shard: u16) -> String {
    format!("{node}-{shard}")
}

/// The shard that an object of this name would be of a node; `None` if it is none of that node's.
#[must_use]
pub fn shard_of(name: &str, node: &str) -> Option<u16> {
    let shard = name.strip_prefix(node)?.strip_prefix('-')?;
    let number = shard.parse().ok()?;
    // Each shard has one name.
    (number < limits::NODE_SHARDS_MAX && object_name(node, number) == name).then_some(number)
}

impl NodeWorkloads {
    /// Reads one.
    pub(crate) fn new(meta: ObjectMeta, document: &Value, problems: &mut Problems) -> Result<Self, FieldError> {
        let Document { spec } = decode::decode(document)?;
        let meta = Meta::new(Kind::NodeWorkloads, meta);
        if !decode::is_subdomain(&spec.node) {
            let message = format!("{} is no valid name (RFC 1123 subdomain)", decode::quoted(&spec.node));
            problems.push(FieldError::new("spec.node", message));
        } else if shard_of(&meta.name, &spec.node).is_none() {
            let message = format!(
                "must be the name of the node, a dash, and a number below {}: {:?} is none of node {}",
                limits::NODE_SHARDS_MAX,
                &*meta.name,
                spec.node
            );
            problems.push(FieldError::new("metadata.name", message));
        }
        if spec.pods.len() > limits::NODE_SHARD_PODS_MAX {
            let message = format!("{} pods are over the limit of {}", spec.pods.len(), limits::NODE_SHARD_PODS_MAX);
            problems.push(FieldError::new("spec.pods", message));
        }
        let mut seen = BTreeSet::new();
        let mut pods = Vec::with_capacity(spec.pods.len().min(limits::NODE_SHARD_PODS_MAX));
        for (index, entry) in spec.pods.into_iter().take(limits::NODE_SHARD_PODS_MAX).enumerate() {
            let at = format!("spec.pods[{index}]");
            let pod = published(entry, &at, problems);
            if !seen.insert(pod.id.clone()) {
                let message = format!("pod {} is listed before", decode::quoted(&pod.id.0));
                problems.push(FieldError::new(format!("{at}.uid"), message));
            }
            pods.push(pod);
        }
        Ok(Self { meta, node: spec.node.into(), pods })
    }

    /// What it says of a pod.
    pub(crate) fn pod(&self, id: &WorkloadId) -> Option<&PublishedPod> {
        self.pods.iter().find(|pod| pod.id == *id)
    }

    /// Its name as the store keeps it.
    pub(crate) fn pods_as_documents(&self) -> impl Iterator<Item = Pod> + '_ {
        self.pods.iter().map(|pod| pod.as_document(&self.node))
    }
}

impl PublishedPod {
    /// The pod as its own document would have it, as far as it is told. It has no labels, so no selector means it.
    pub(crate) fn as_document(&self, node: &Arc<str>) -> Pod {
        let meta = Meta {
            namespace: Arc::clone(&self.account.namespace),
            name: Arc::clone(&self.name),
            uid: Some(Arc::clone(&self.id.0)),
            ..Meta::default()
        };
        let service_account = Arc::clone(&self.account.name);
        Pod { meta, node: Arc::clone(node), service_account, ips: self.ips.to_vec(), ready: true, ..Pod::default() }
    }
}

fn published(entry: Entry, at: &str, problems: &mut Problems) -> PublishedPod {
    if entry.uid.is_empty() || entry.uid.len() > limits::UID_BYTES_MAX {
        let message = format!("must have 1 to {} bytes, and has {}", limits::UID_BYTES_MAX, entry.uid.len());
        problems.push(FieldError::new(format!("{at}.uid"), message));
    }
    let names = [
        ("namespace", &entry.namespace, decode::is_label(&entry.namespace), "label"),
        ("name", &entry.name, decode::is_subdomain(&entry.name), "subdomain"),
        ("serviceAccount", &entry.service_account, decode::is_subdomain(&entry.service_account), "subdomain"),
    ];
    for (field, name, valid, form) in names {
        if !valid {
            let message = format!("{} is no valid name (RFC 1123 {form})", decode::quoted(name));
            problems.push(FieldError::new(format!("{at}.{field}"), message));
        }
    }
    if entry.ips.is_empty() || entry.ips.len() > limits::POD_IPS_MAX {
        let message = format!("must hold 1 to {} addresses, and holds {}", limits::POD_IPS_MAX, entry.ips.len());
        problems.push(FieldError::new(format!("{at}.ips"), message));
    }
    let mut ips = Vec::with_capacity(entry.ips.len().min(limits::POD_IPS_MAX));
    for (index, text) in entry.ips.iter().take(limits::POD_IPS_MAX).enumerate() {
        let field = format!("{at}.ips[{index}]");
        let Some(ip) = decode::ip(text, &field, problems) else { continue };
        if !may_be_a_pods(ip) {
            problems.push(FieldError::new(field, format!("{ip} is no address that a pod of another node can have")));
        }
        ips.push(ip);
    }
    ips.sort_unstable();
    ips.dedup();
    PublishedPod {
        id: WorkloadId(entry.uid.into()),
        name: entry.name.into(),
        account: ServiceAccountKey { namespace: entry.namespace.into(), name: entry.service_account.into() },
        ips: ips.into(),
    }
}

/// Whether an address means one pod wherever it is used. Taken as a pod's, one that means each machine itself would draw everybody's
/// connections to themselves into the mesh.
fn may_be_a_pods(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let local = ip.is_loopback() || ip.is_link_local();
            !(local || ip.is_unspecified() || ip.is_multicast() || ip == Ipv4Addr::BROADCAST)
        }
        // An address of the other family in disguise would not meet the rules above.
        IpAddr::V6(ip) => {
            let local = ip.is_loopback() || ip.is_unicast_link_local();
            !(local || ip.is_unspecified() || ip.is_multicast() || ip.to_ipv4_mapped().is_some())
        }
    }
}
