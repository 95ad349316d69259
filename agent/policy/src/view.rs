//! What people are shown of plans: rules in order of precedence, shares, readiness; and the canonical form of a snapshot, in
//! which two snapshots are equal if they do the same, whenever and in whatever order they came about.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use serde::Serialize;

use crate::{
    backend_policy::BackendPolicy,
    inbound::{InboundPlan, Mtls, Stance},
    names::{ObjectRef, ServiceAccountKey, ServiceKey, WorkloadId},
    peer::Peer,
    plan::{AppProtocol, OutboundPlan, PodPlan, RouteTable},
    rule::{ActionIr, BackendHeaders, Filters, Rule},
    snapshot::Snapshot,
    split::{Backend, Split},
};

/// One rule of a plan: which requests it takes, and what happens to them.
#[derive(Clone, Copy, Debug)]
pub struct PlanRule<'a> {
    table: &'a RouteTable,
    /// Index in the matcher; `None` for what no rule takes.
    index: Option<usize>,
    /// The namespace whose clients it is for; `None` for all that have no rules of their own.
    pub clients: Option<&'a Arc<str>>,
    /// What happens.
    pub rule: &'a Arc<Rule>,
}

impl OutboundPlan {
    /// The rules in order of precedence; those for single namespaces first. The last one of each table takes everything that no other does.
    pub fn rules(&self) -> impl Iterator<Item = PlanRule<'_>> {
        let consumers = self.consumers.iter().flat_map(|(clients, table)| table.described(Some(clients)));
        consumers.chain(self.routes.described(None))
    }
}

impl RouteTable {
    /// Its rules in order of precedence.
    pub fn described<'a>(&'a self, clients: Option<&'a Arc<str>>) -> impl Iterator<Item = PlanRule<'a>> {
        let of = move |index, rule| PlanRule { table: self, index, clients, rule };
        let matched = self.matched.iter().enumerate().map(move |(index, route)| of(Some(index), &route.rule));
        matched.chain([of(None, &self.otherwise)])
    }
}

impl<'a> PlanRule<'a> {
    /// The object that the rule comes from: an HTTPRoute, a TrafficSplit, or the Service itself.
    #[must_use]
    pub fn origin(&self) -> &'a ObjectRef {
        &self.rule.ir.origin
    }

    /// The backends that it chooses from; none if it answers by itself.
    #[must_use]
    pub fn backends(&self) -> &'a [Backend] {
        self.rule.split().map_or(&[], |split| &split.backends)
    }

    /// Its conditions, any of which is enough; `None` for the rule that takes everything else.
    #[must_use]
    pub fn matches(&self) -> Option<&'a [String]> {
        self.index.map(|index| self.table.matcher.text(index))
    }

    /// Its conditions on one line.
    #[must_use]
    pub fn match_text(&self) -> String {
        match self.matches() {
            None => "everything else".to_owned(),
            Some([]) => "nothing".to_owned(),
            Some(matches) => matches.join(" or "),
        }
    }

    /// Which engines search its patterns.
    #[must_use]
    pub fn engine(&self) -> String {
        self.index.map_or_else(|| "no pattern".to_owned(), |index| self.table.matcher.engine(index))
    }
}

impl Split {
    /// The backends with the share of each in percent, as the weights say.
    pub fn shares(&self) -> impl Iterator<Item = (&Backend, f64)> {
        let total: f64 = self.backends.iter().map(|backend| backend.weight as f64).sum();
        self.backends.iter().map(move |backend| {
            let share = if total > 0.0 { 100.0 * backend.weight as f64 / total } else { 0.0 };
            (backend, share)
        })
    }
}

/// A snapshot without what tells equal ones apart: generations and ids.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SnapshotView {
    /// By `namespace/name`, each port in ascending order.
    pub services: BTreeMap<String, Vec<PlanView>>,
    /// Which Service has an address and port.
    pub addresses: BTreeMap<SocketAddr, String>,
    /// Which pod has an address.
    pub pods: BTreeMap<IpAddr, PodView>,
    /// What may reach a workload.
    pub inbound: BTreeMap<WorkloadId, InboundView>,
    /// Pods that take mutual TLS.
    pub peers: BTreeMap<WorkloadId, Arc<Peer>>,
    /// Namespaces that refuse plaintext, and what says so.
    pub strict: BTreeMap<Arc<str>, ObjectRef>,
}

/// What may reach a workload.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct InboundView {
    /// Whether what nothing grants is denied.
    pub denied_by_default: bool,
    /// What holds if no TrafficTarget selects it.
    pub stance: Stance,
    /// Whether it takes connections without a certificate.
    pub mtls: Mtls,
    /// The TrafficTargets that select it.
    pub selected_by: Vec<ObjectRef>,
    /// What they grant.
    pub grants: Vec<GrantView>,
}

/// What one TrafficTarget grants.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GrantView {
    /// The TrafficTarget.
    pub origin: ObjectRef,
    /// Service accounts that it is granted to.
    pub accounts: Vec<ServiceAccountKey>,
    /// Single pods that it is granted to.
    pub workloads: Vec<WorkloadId>,
    /// TCP ports; `null` for all.
    pub tcp_ports: Option<Vec<u16>>,
    /// UDP ports; `null` for all.
    pub udp_ports: Option<Vec<u16>>,
    /// Conditions on requests, any of which is enough; `null` for whatever is said.
    pub requests: Option<Vec<String>>,
    /// The engines of their patterns.
    pub engine: Option<String>,
}

/// The plan of one Service port.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlanView {
    /// The Service.
    pub service: ServiceKey,
    /// Its port.
    pub port: u16,
    /// What it speaks.
    pub protocol: AppProtocol,
    /// Rules in order of precedence.
    pub rules: Vec<RuleView>,
    /// Where connections go that weft does not look into.
    pub connection: Vec<BackendView>,
}

/// One rule of a plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RuleView {
    /// The object that it comes from.
    pub origin: ObjectRef,
    /// Which of the object's rules.
    pub name: Arc<str>,
    /// The namespace whose clients it is for; `null` for all that have no rules of their own.
    pub clients: Option<Arc<str>>,
    /// Conditions, any of which is enough; `null` for the rule that takes everything else.
    pub matches: Option<Vec<String>>,
    /// The engines of its patterns.
    pub engine: String,
    /// Where its requests go.
    pub backends: Vec<BackendView>,
    /// Whether it answers by itself: a redirect or an error.
    pub answers: Option<ActionIr>,
    /// What is done to requests and responses.
    pub filters: Option<Box<Filters>>,
    /// Services that get copies.
    pub mirrors: Vec<BackendView>,
}

/// One backend of a rule.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BackendView {
    /// The Service.
    pub service: ServiceKey,
    /// Its port.
    pub port: u16,
    /// Its weight.
    pub weight: u64,
    /// Its share in percent, as the weights say.
    pub share_percent: f64,
    /// Endpoints that take new requests.
    pub ready: Vec<SocketAddr>,
    /// Endpoints that finish what they have.
    pub draining: Vec<SocketAddr>,
    /// Why its share is answered with an error instead.
    pub invalid: Option<Arc<str>>,
    /// What is changed in the fields of its share only.
    pub headers: Option<Arc<BackendHeaders>>,
    /// How its endpoints are used.
    pub policy: Arc<BackendPolicy>,
}

/// The plan of one pod address.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PodView {
    /// The pod.
    pub workload: WorkloadId,
    /// Its node.
    pub node: Option<Arc<str>>,
    /// Target port, what it speaks, and the headless Service if there is one.
    pub ports: Vec<(u16, AppProtocol, Option<String>)>,
}

impl Snapshot {
    /// The canonical form.
    #[must_use]
    pub fn describe(&self) -> SnapshotView {
        SnapshotView {
            services: self
                .services
                .iter()
                .map(|(key, plans)| (key.to_string(), plans.iter().map(|plan| plan.describe()).collect()))
                .collect(),
            addresses: self
                .addresses
                .iter()
                .map(|(address, plan)| (*address, format!("{}:{}", plan.service, plan.port)))
                .collect(),
            pods: self.pods.iter().map(|(ip, plan)| (*ip, plan.describe())).collect(),
            inbound: self.inbound.iter().map(|(id, plan)| (id.clone(), plan.describe())).collect(),
            peers: self.peers.iter().map(|(id, peer)| (id.clone(), Arc::clone(peer))).collect(),
            strict: self.strict.iter().map(|(name, by)| (Arc::clone(name), by.clone())).collect(),
        }
    }
}

impl InboundPlan {
    /// The canonical form.
    #[must_use]
    pub fn describe(&self) -> InboundView {
        let grants = self.grants.iter().map(|grant| GrantView {
            origin: (*grant.origin).clone(),
            accounts: grant.accounts.to_vec(),
            workloads: grant.workloads.to_vec(),
            tcp_ports: grant.ports.as_ref().map(|ports| ports.to_vec()),
            udp_ports: grant.udp_ports.as_ref().map(|ports| ports.to_vec()),
            requests: grant.requests.as_ref().map(|requests| requests.text(0).to_vec()),
            engine: grant.requests.as_ref().map(|requests| requests.engine(0)),
        });
        InboundView {
            denied_by_default: self.is_closed(),
            stance: self.stance.clone(),
            mtls: self.mtls.clone(),
            selected_by: self.selected_by.to_vec(),
            grants: grants.collect(),
        }
    }
}

impl OutboundPlan {
    /// The canonical form.
    #[must_use]
    pub fn describe(&self) -> PlanView {
        let rules = self.rules().map(|rule| RuleView {
            origin: rule.origin().clone(),
            name: Arc::clone(&rule.rule.ir.name),
            clients: rule.clients.cloned(),
            matches: rule.matches().map(<[String]>::to_vec),
            engine: rule.engine(),
            backends: rule.rule.split().map_or_else(Vec::new, |split| {
                split.shares().map(|(backend, share)| BackendView::new(backend, share)).collect()
            }),
            answers: rule.rule.split().is_none().then(|| rule.rule.ir.action.clone()),
            filters: rule.rule.ir.filters.clone(),
            mirrors: rule.rule.mirrors.iter().map(|mirror| BackendView::new(mirror, 0.0)).collect(),
        });
        PlanView {
            service: self.service.clone(),
            port: self.port,
            protocol: self.protocol,
            rules: rules.collect(),
            connection: self.connection.shares().map(|(backend, share)| BackendView::new(backend, share)).collect(),
        }
    }
}

impl BackendView {
    fn new(backend: &Backend, share_percent: f64) -> Self {
        let set = backend.endpoints.load();
        Self {
            service: backend.service.clone(),
            port: backend.port,
            weight: backend.weight,
            share_percent,
            ready: set.ready.iter().map(|endpoint| endpoint.address).collect(),
            draining: set.draining.iter().map(|endpoint| endpoint.address).collect(),
            invalid: backend.invalid.clone(),
            headers: backend.headers.clone(),
            policy: Arc::clone(&set.policy),
        }
    }
}

impl PodPlan {
    /// The canonical form.
    #[must_use]
    pub fn describe(&self) -> PodView {
        let ports = self.ports.iter().map(|port| {
            let headless = port.headless.as_ref().map(|plan| format!("{}:{}", plan.service, plan.port));
            (port.target_port, port.protocol, headless)
        });
        PodView { workload: self.workload.clone(), node: self.node.clone(), ports: ports.collect() }
    }
}
