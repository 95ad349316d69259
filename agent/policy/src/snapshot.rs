//! All plans of one generation, and how a connection follows its own.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwap;

use crate::{
    inbound::InboundPlan,
    names::{Generation, ObjectRef, ServiceKey, WorkloadId},
    peer::Peer,
    plan::{Destination, OutboundPlan, PodPlan},
    shared_map::SharedMap,
};

/// All plans of one generation. Immutable; what did not change is shared with the snapshot before.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Which one this is.
    pub generation: Generation,
    /// By Service, each port in ascending order.
    pub services: SharedMap<ServiceKey, Arc<[Arc<OutboundPlan>]>>,
    /// By Service address and port.
    pub addresses: SharedMap<SocketAddr, Arc<OutboundPlan>>,
    /// By pod address.
    pub pods: SharedMap<IpAddr, Arc<PodPlan>>,
    /// By workload, for those of this node.
    pub inbound: SharedMap<WorkloadId, Arc<InboundPlan>>,
    /// Pods that take mutual TLS, those of this node among them.
    pub peers: SharedMap<WorkloadId, Arc<Peer>>,
    /// Namespaces that refuse plaintext, and the object that says so.
    pub strict: SharedMap<Arc<str>, ObjectRef>,
}

impl Snapshot {
    /// What an address and port stand for.
    #[must_use]
    pub fn destination(&self, address: SocketAddr) -> Option<Destination> {
        if let Some(plan) = self.addresses.get(&address) {
            return Some(Destination::Service(Arc::clone(plan)));
        }
        self.pods.get(&address.ip()).map(|plan| Destination::Pod(Arc::clone(plan)))
    }
}

/// Where the current snapshot is found. One writer, any number of readers.
#[derive(Debug, Default)]
pub struct SnapshotCell {
    generation: AtomicU64,
    snapshot: ArcSwap<Snapshot>,
}

impl SnapshotCell {
    /// Puts a snapshot in place. Its generation must be higher than the one before.
    pub fn publish(&self, snapshot: Arc<Snapshot>) {
        let generation = snapshot.generation.0;
        self.snapshot.store(snapshot);
        self.generation.store(generation, Ordering::Release);
    }

    /// The current snapshot.
    #[must_use]
    pub fn load(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// The generation of the current snapshot.
    #[must_use]
    pub fn generation(&self) -> Generation {
        Generation(self.generation.load(Ordering::Acquire))
    }
}

/// One connection's hold on the plan of its destination. Keeps only that plan alive, not a whole snapshot.
#[derive(Debug)]
pub struct PlanHandle {
    cell: Arc<SnapshotCell>,
    address: SocketAddr,
    seen: u64,
    destination: Option<Destination>,
}

impl PlanHandle {
    /// A handle on whatever `address` stands for, now and later.
    #[must_use]
    pub fn new(cell: Arc<SnapshotCell>, address: SocketAddr) -> Self {
        let mut handle = Self { cell, address, seen: 0, destination: None };
        handle.refresh(handle.cell.generation.load(Ordering::Acquire));
        handle
    }

    /// The current plan: one relaxed load unless a new generation was published. `None` if the address stands for nothing any more.
    pub fn current(&mut self) -> Option<&Destination> {
        let generation = self.cell.generation.load(Ordering::Relaxed);
        if generation != self.seen {
            // Pairs with the Release in `publish`: the snapshot that is loaded next is at least as new as `generation`.
            std::sync::atomic::fence(Ordering::Acquire);
            self.refresh(generation);
        }
        self.destination.as_ref()
    }

    fn refresh(&mut self, generation: u64) {
        self.destination = self.cell.snapshot.load().destination(self.address);
        self.seen = generation;
    }
}
