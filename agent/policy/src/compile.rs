//! From the model to plans.
//!
//! The unit of compilation is one Service: a change recompiles the Services that it touches and shares everything else with
//! the snapshot before. A change of endpoints recompiles nothing: it swaps the content of a cell that plans name already.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use crate::{
    diagnostic::{CODES, Diagnostic},
    few::Few,
    inbound::Stance,
    ir::{IrDelta, MeshIr, PeerIr, ServiceIr, WorkloadIr},
    names::{Generation, ServiceKey, WorkloadId},
    plan::OutboundPlan,
    snapshot::Snapshot,
};

mod access;
mod cells;
mod peers;
mod pods;
mod services;

use access::Access;
use cells::Cells;
use peers::Peers;
use pods::{Behind, Pods};

/// Keeps the model and the plans made from it; each change recompiles only what it touches.
#[derive(Debug, Default)]
pub struct Compiler {
    ir: MeshIr,
    cells: Cells,
    services: BTreeMap<ServiceKey, CompiledService>,
    /// Who claims a Service address. The first by namespace and name has it, so that the order of arrival does not matter.
    claims: BTreeMap<SocketAddr, Few<ServiceKey>>,
    pods: Pods,
    peers: Peers,
    access: Access,
    reach: BTreeMap<CaptureAddr, Reach>,
    snapshot: Arc<Snapshot>,
}

/// What a change led to.
#[derive(Debug)]
pub struct Compiled {
    /// All plans, old and new.
    pub snapshot: Arc<Snapshot>,
    /// Addresses whose treatment by capture changed: the new one, or `None` where nothing is known any more.
    pub reach: Vec<(CaptureAddr, Option<Reach>)>,
    /// Workloads that became denied by default, or stopped being so: what they do while the agent is gone changes with it. A
    /// workload that is new is not denied by default until it is told here; one that is gone is not told.
    pub closed: Vec<(WorkloadId, bool)>,
}

/// An address as capture sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CaptureAddr {
    /// Address.
    pub ip: IpAddr,
    /// Port; `None` stands for every port.
    pub port: Option<u16>,
}

/// How capture treats an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reach {
    /// Through the proxy.
    Proxy,
    /// Refused at once: nothing could take the connection.
    Refuse,
}

/// The plans of one Service, and what was found while making them.
#[derive(Debug)]
struct CompiledService {
    plans: Arc<[Arc<OutboundPlan>]>,
    problems: Vec<Diagnostic>,
}

/// What one change touches, gathered while the indexes are brought up to date.
#[derive(Default)]
struct Touched {
    services: BTreeSet<ServiceKey>,
    /// Services whose plans are what they were, but may have gained or lost their last ready endpoint.
    readiness: BTreeSet<ServiceKey>,
    addresses: BTreeSet<SocketAddr>,
    workloads: BTreeSet<WorkloadId>,
    ips: BTreeSet<IpAddr>,
    peers: BTreeSet<WorkloadId>,
    /// Namespaces that began or ended to refuse plaintext.
    strict: BTreeSet<Arc<str>>,
    /// Workloads whose inbound plan may be another one.
    inbound: BTreeSet<WorkloadId>,
}

impl Compiler {
    /// Says what holds where no TrafficTarget selects and the namespace does not say; allow until this is called. Takes effect
    /// with the next change that is applied.
    pub fn set_default_stance(&mut self, stance: Stance) {
        self.access.set_default(stance);
    }

    /// Whether pods of a namespace that no TrafficTarget selects take nothing.
    #[must_use]
    pub fn denies_by_default(&self, namespace: &str) -> bool {
        self.ir.stances.get(namespace).unwrap_or(self.access.default_stance()).deny
    }

    /// The model as it stands.
    #[must_use]
    pub fn ir(&self) -> &MeshIr {
        &self.ir
    }

    /// The snapshot of the last change.
    #[must_use]
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// How capture should treat every address that is known: what all [`Compiled::reach`] add up to.
    pub fn reach(&self) -> impl Iterator<Item = (CaptureAddr, Reach)> + '_ {
        self.reach.iter().map(|(address, reach)| (*address, *reach))
    }

    /// Everything that was found about any object, in a stable order: by lowering, by compilation, and between objects that claim
    /// one address.
    #[must_use]
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        let lowered = [
            self.ir.diagnostics.values().collect::<Vec<_>>(),
            self.ir.workload_diagnostics.values().collect(),
            self.ir.namespace_diagnostics.values().collect(),
            self.ir.peer_diagnostics.values().collect(),
            self.ir.access_diagnostics.values().collect(),
        ];
        let mut all: BTreeSet<Diagnostic> =
            lowered.into_iter().flatten().flat_map(|found| found.iter().cloned()).collect();
        all.extend(self.services.values().flat_map(|service| service.problems.iter().cloned()));
        all.extend(self.claims.iter().flat_map(|(address, claims)| services::address_conflicts(*address, claims)));
        all.extend(self.pods.conflicts(&self.ir));
        all.extend(self.peers.conflicts(&self.pods, &self.ir));
        all.extend(self.access.problems(&self.ir));
        debug_assert!(all.iter().all(|found| CODES.contains(&found.code)), "{all:?}");
        all.into_iter().collect()
    }

    /// Takes a change in and compiles what it touches. Never fails: what cannot work becomes a plan that says so.
    pub fn apply(&mut self, delta: IrDelta) -> Compiled {
        let before = Before::of(&self.ir, &delta);
        let changed = self.ir.apply(delta);
        let mut touched = Touched::default();
        self.take_endpoints(&changed, &mut touched);
        self.take_services(&changed, &before, &mut touched);
        self.take_workloads(&changed, &before, &mut touched);
        self.take_peers(&changed, &before, &mut touched);
        self.access.take(&self.ir, &changed, &before.workloads, &mut touched.inbound);
        let mut snapshot = Snapshot {
            generation: Generation(self.snapshot.generation.0 + 1),
            services: self.snapshot.services.clone(),
            addresses: self.snapshot.addresses.clone(),
            pods: self.snapshot.pods.clone(),
            inbound: self.snapshot.inbound.clone(),
            peers: self.snapshot.peers.clone(),
            strict: self.snapshot.strict.clone(),
        };
        self.publish_services(&touched, &mut snapshot);
        self.publish_pods(&touched, &mut snapshot);
        self.publish_peers(&touched, &mut snapshot);
        let closed = self.publish_inbound(&touched, &mut snapshot);
        let reach = self.refresh_reach(&touched, &snapshot);
        self.snapshot = Arc::new(snapshot);
        Compiled { snapshot: Arc::clone(&self.snapshot), reach, closed }
    }

    fn take_endpoints(&mut self, changed: &IrDelta, touched: &mut Touched) {
        for ((service, port), set) in &changed.endpoints {
            let users = self.cells.store(service, *port, set.clone());
            touched.readiness.extend(users.iter().cloned());
        }
    }

    fn take_services(&mut self, changed: &IrDelta, before: &Before, touched: &mut Touched) {
        for (key, service) in &changed.services {
            let old_ir = before.services.get(key).map(|service| &**service);
            if let Some(old) = old_ir {
                for address in services::addresses(old) {
                    if let Some(claims) = self.claims.get_mut(&address) {
                        claims.remove(key);
                        if claims.is_empty() {
                            self.claims.remove(&address);
                        }
                    }
                    touched.addresses.insert(address);
                }
            }
            let old = self.services.remove(key);
            if let Some(service) = service {
                let compiled = services::compile(service, old_ir, old.as_ref(), &mut self.cells);
                self.cells.set_uses(key, services::cells(&compiled.plans));
                for address in services::addresses(service) {
                    self.claims.entry(address).or_default().insert(key.clone());
                    touched.addresses.insert(address);
                }
                self.services.insert(key.clone(), compiled);
            } else {
                self.cells.set_uses(key, Few::default());
            }
            touched.services.insert(key.clone());
            // A pod's plan names the protocol of the Services that it serves, and the plan itself of those without an address.
            touched.workloads.extend(self.pods.serving(key));
            touched.ips.extend(self.peers.addresses_serving(key, &self.ir));
        }
    }

    fn take_workloads(&mut self, changed: &IrDelta, before: &Before, touched: &mut Touched) {
        for (id, workload) in &changed.workloads {
            if let Some(old) = before.workloads.get(id) {
                self.pods.remove(old);
                touched.ips.extend(pods::claimed_ips(old));
            }
            if let Some(workload) = workload {
                self.pods.insert(workload);
            }
            touched.workloads.insert(id.clone());
        }
        for id in &touched.workloads {
            if let Some(workload) = self.ir.workloads.get(id) {
                touched.ips.extend(pods::claimed_ips(workload));
            }
        }
    }

    fn take_peers(&mut self, changed: &IrDelta, before: &Before, touched: &mut Touched) {
        for (id, peer) in &changed.peers {
            let old = before.peers.get(id);
            if let Some(old) = old {
                self.peers.remove(old);
            }
            if let Some(peer) = peer {
                self.peers.insert(peer);
            }
            let addresses = old.into_iter().chain(peer).flat_map(|peer| peer.peer.addresses.iter().copied());
            touched.ips.extend(addresses);
            touched.peers.insert(id.clone());
        }
        touched.strict.extend(changed.strict.keys().cloned());
    }

    fn publish_services(&self, touched: &Touched, snapshot: &mut Snapshot) {
        for key in &touched.services {
            match self.services.get(key) {
                Some(service) => snapshot.services.insert(key.clone(), Arc::clone(&service.plans)),
                None => snapshot.services.remove(key),
            };
        }
        for address in &touched.addresses {
            match self.plan_of_address(*address) {
                Some(plan) => snapshot.addresses.insert(*address, Arc::clone(plan)),
                None => snapshot.addresses.remove(address),
            };
        }
    }

    fn publish_pods(&self, touched: &Touched, snapshot: &mut Snapshot) {
        for ip in &touched.ips {
            // A pod that is known by itself is known better than one that another agent publishes.
            let workload = self.pods.owner(*ip, &self.ir).map(|workload| Behind::from(&**workload));
            let peer = || self.peers.owner(*ip, &self.ir).map(|peer| Behind::from(&**peer));
            let Some(pod) = workload.or_else(peer) else {
                snapshot.pods.remove(ip);
                continue;
            };
            let plan = pods::plan(pod, *ip, |service| {
                Some((self.ir.services.get(service)?, &*self.services.get(service)?.plans))
            });
            if !snapshot.pods.get(ip).is_some_and(|old| pods::same(old, &plan)) {
                snapshot.pods.insert(*ip, Arc::new(plan));
            }
        }
    }

    fn publish_peers(&self, touched: &Touched, snapshot: &mut Snapshot) {
        for id in &touched.peers {
            match self.ir.peers.get(id) {
                Some(peer) => snapshot.peers.insert(id.clone(), Arc::clone(&peer.peer)),
                None => snapshot.peers.remove(id),
            };
        }
        for namespace in &touched.strict {
            match self.ir.strict.get(namespace) {
                Some(by) => snapshot.strict.insert(Arc::clone(namespace), by.clone()),
                None => snapshot.strict.remove(namespace),
            };
        }
    }

    fn publish_inbound(&mut self, touched: &Touched, snapshot: &mut Snapshot) -> Vec<(WorkloadId, bool)> {
        let mut closed = Vec::new();
        for id in &touched.inbound {
            let old = snapshot.inbound.get(id);
            let Some(plan) = self.access.plan(&self.ir, id) else {
                snapshot.inbound.remove(id);
                continue;
            };
            if old.is_some_and(|old| old.is_closed()) != plan.is_closed() {
                closed.push((id.clone(), plan.is_closed()));
            }
            if !old.is_some_and(|old| Arc::ptr_eq(old, &plan)) {
                snapshot.inbound.insert(id.clone(), plan);
            }
        }
        self.access.forget_unused();
        closed
    }

    fn plan_of_address(&self, address: SocketAddr) -> Option<&Arc<OutboundPlan>> {
        let service = self.services.get(self.claims.get(&address)?.first()?)?;
        service.plans.iter().find(|plan| plan.port == address.port())
    }

    fn refresh_reach(&mut self, touched: &Touched, snapshot: &Snapshot) -> Vec<(CaptureAddr, Option<Reach>)> {
        let mut wanted: BTreeMap<CaptureAddr, Option<Reach>> = BTreeMap::new();
        let of_services = touched
            .readiness
            .iter()
            .filter_map(|key| self.ir.services.get(key))
            .flat_map(|service| services::addresses(service));
        for address in touched.addresses.iter().copied().chain(of_services) {
            let reach = snapshot
                .addresses
                .get(&address)
                .map(|plan| if plan.has_ready() { Reach::Proxy } else { Reach::Refuse });
            wanted.insert(CaptureAddr { ip: address.ip(), port: Some(address.port()) }, reach);
        }
        for ip in &touched.ips {
            wanted.insert(CaptureAddr { ip: *ip, port: None }, snapshot.pods.get(ip).map(|_| Reach::Proxy));
        }
        wanted.retain(|address, reach| self.reach.get(address) != reach.as_ref());
        for (address, reach) in &wanted {
            match reach {
                Some(reach) => self.reach.insert(*address, *reach),
                None => self.reach.remove(address),
            };
        }
        wanted.into_iter().collect()
    }
}

/// What a change replaces.
struct Before {
    services: BTreeMap<ServiceKey, Arc<ServiceIr>>,
    workloads: BTreeMap<WorkloadId, Arc<WorkloadIr>>,
    peers: BTreeMap<WorkloadId, Arc<PeerIr>>,
}

impl Before {
    fn of(ir: &MeshIr, delta: &IrDelta) -> Self {
        Self {
            services: delta
                .services
                .keys()
                .filter_map(|key| Some((key.clone(), ir.services.get(key)?.clone())))
                .collect(),
            workloads: delta
                .workloads
                .keys()
                .filter_map(|id| Some((id.clone(), ir.workloads.get(id)?.clone())))
                .collect(),
            peers: delta.peers.keys().filter_map(|id| Some((id.clone(), ir.peers.get(id)?.clone()))).collect(),
        }
    }
}

#[cfg(test)]
mod tests;
