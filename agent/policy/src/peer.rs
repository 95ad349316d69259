//! Pods that take mutual TLS, as the agents of their nodes publish them.

use std::{net::IpAddr, sync::Arc};

use serde::Serialize;

use crate::names::{ServiceAccountKey, WorkloadId};

/// A pod whose agent says that it takes mutual TLS: captured, with a certificate at hand. Whoever connects to it does so with mutual
/// TLS or not at all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Peer {
    /// The pod.
    pub workload: WorkloadId,
    /// The service account that its certificate must name.
    pub account: ServiceAccountKey,
    /// The node whose agent publishes it.
    pub node: Arc<str>,
    /// Its addresses, ascending.
    pub addresses: Box<[IpAddr]>,
    /// Namespace of the pod.
    pub namespace: Arc<str>,
    /// Name of the pod.
    pub name: Arc<str>,
}
