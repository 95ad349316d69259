//! Endpoints of one Service port. They live in cells of their own, shared by every plan that names them, so that a pod that
//! comes or goes swaps one cell and recompiles nothing.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use arc_swap::{ArcSwap, Guard};
use serde::Serialize;

use crate::{backend_policy::BackendPolicy, names::WorkloadId, plan::AppProtocol};

/// One address that serves a Service port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Endpoint {
    /// Where to connect.
    pub address: SocketAddr,
    /// The pod behind the address, if the endpoint says so.
    pub workload: Option<WorkloadId>,
    /// The node of that pod.
    pub node: Option<Arc<str>>,
}

/// The endpoints of one Service port at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct EndpointSet {
    /// Those that take new connections and requests, in the order of their addresses.
    pub ready: Box<[Endpoint]>,
    /// Those that finish what they have: terminating, still serving. Never chosen for anything new.
    pub draining: Box<[Endpoint]>,
    /// What the port speaks: backends of one split may differ, and each gets requests in its own protocol.
    pub protocol: AppProtocol,
    /// How they are used.
    pub policy: Arc<BackendPolicy>,
}

impl EndpointSet {
    /// The ready endpoints of the address family of `like`; all of them if that family has none. A client's own address can be
    /// kept only towards a server of the same family.
    #[must_use]
    pub fn ready_like(&self, like: IpAddr) -> &[Endpoint] {
        // In the order of addresses IPv4 comes first.
        let (v4, v6) = self.ready.split_at(self.ready.partition_point(|endpoint| endpoint.address.is_ipv4()));
        let same = if like.is_ipv4() { v4 } else { v6 };
        if same.is_empty() { &self.ready } else { same }
    }
}

/// How many servers stand behind endpoints: a pod with two addresses counts once.
#[must_use]
pub fn servers(endpoints: &[Endpoint]) -> usize {
    let mut seen = BTreeSet::new();
    endpoints.iter().filter(|endpoint| endpoint.workload.as_ref().is_none_or(|workload| seen.insert(workload))).count()
}

/// The place where the current [`EndpointSet`] of one Service port is found.
#[derive(Debug)]
pub struct EndpointCell {
    id: u64,
    set: ArcSwap<EndpointSet>,
}

impl EndpointCell {
    /// A new cell with an id that no other cell of this process has.
    #[must_use]
    pub fn new(set: EndpointSet) -> Self {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        Self { id: NEXT_ID.fetch_add(1, Ordering::Relaxed), set: ArcSwap::from_pointee(set) }
    }

    /// Unique in this process: keys a worker's balancer state.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The current set: no lock, no allocation. Do not hold the guard across an await.
    #[must_use]
    pub fn load(&self) -> Guard<Arc<EndpointSet>> {
        self.set.load()
    }

    /// Puts a new set in place; whoever loads next sees it.
    pub fn store(&self, set: EndpointSet) {
        self.set.store(Arc::new(set));
    }

    /// The same for a set that is shared already.
    pub fn replace(&self, set: Arc<EndpointSet>) {
        self.set.store(set);
    }

    /// Whether anything can take a new connection.
    #[must_use]
    pub fn has_ready(&self) -> bool {
        !self.set.load().ready.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_with_two_addresses_counts_once_and_addresses_without_a_pod_each() {
        let endpoint = |address: &str, pod: Option<&str>| Endpoint {
            address: address.parse().unwrap(),
            workload: pod.map(WorkloadId::new),
            node: None,
        };
        let set = [
            endpoint("10.0.0.1:80", Some("a")),
            endpoint("10.0.0.2:80", None),
            endpoint("10.0.0.3:80", None),
            endpoint("[fd00::1]:80", Some("a")),
        ];
        assert_eq!(servers(&set), 3);
        assert_eq!(servers(&[]), 0);
    }
}
