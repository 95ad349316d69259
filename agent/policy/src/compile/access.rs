//! Inbound plans: one for all workloads that share a service account and the same bindings.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use crate::{
    diagnostic::{Diagnostic, Severity},
    inbound::{Grant, InboundPlan, Mtls, Stance},
    ir::{GrantIr, IrDelta, MatchIr, MeshIr, WorkloadIr, WorkloadState},
    limits,
    matcher::RouteMatcher,
    names::{ObjectRef, ServiceAccountKey, WorkloadId},
};

use super::services;

/// What decides about the inbound plan of a workload: its service account, and the bindings that mean it.
type PlanKey = (ServiceAccountKey, BTreeSet<ObjectRef>);

/// What is compiled of TrafficTargets, and the plans made of it.
#[derive(Debug, Default)]
pub(super) struct Access {
    default: Stance,
    accounts: BTreeMap<ServiceAccountKey, Selection>,
    bindings: BTreeMap<ObjectRef, Selection>,
    bindings_of: BTreeMap<WorkloadId, BTreeSet<ObjectRef>>,
    workloads_of: BTreeMap<ServiceAccountKey, BTreeSet<WorkloadId>>,
    plans: BTreeMap<PlanKey, Arc<InboundPlan>>,
    key_of: BTreeMap<WorkloadId, PlanKey>,
    users: BTreeMap<PlanKey, usize>,
    unused: BTreeSet<PlanKey>,
    stale: bool,
}

/// The targets of one destination, compiled.
#[derive(Debug, Default)]
struct Selection {
    selected_by: Vec<ObjectRef>,
    grants: Vec<Compiled>,
}

#[derive(Debug)]
struct Compiled {
    grant: Grant,
    requests: Option<Vec<MatchIr>>,
    /// What was made of them; `None` where nothing was.
    matched: Option<Matched>,
    problems: Vec<Diagnostic>,
}

/// A matcher, and what was found while making it.
#[derive(Clone, Debug)]
struct Matched {
    matcher: RouteMatcher,
    problems: Vec<Diagnostic>,
}

impl Matched {
    fn new(requests: &[MatchIr]) -> Self {
        let (matcher, problems) = RouteMatcher::new(&[requests]);
        Self { matcher, problems: problems.into_iter().map(services::diagnostic).collect() }
    }
}

fn too_much(grant: &GrantIr) -> Diagnostic {
    Diagnostic {
        object: grant.origin.clone(),
        severity: Severity::Error,
        code: "TooMuchToMatch",
        field: "spec.rules".into(),
        message: format!(
            "the regexes of the TrafficTargets before this one at the same destination take more than {} bytes to compile, as much as \
             one destination may have; the HTTP rules of this one grant nothing",
            limits::DESTINATION_AUTOMATA_BYTES_MAX
        ),
    }
}

impl Access {
    pub(super) fn set_default(&mut self, stance: Stance) {
        self.stale |= self.default != stance;
        self.default = stance;
    }

    /// What holds where neither a TrafficTarget nor the namespace says anything.
    pub(super) fn default_stance(&self) -> &Stance {
        &self.default
    }

    /// Takes a change in, and names the workloads whose plan may be another one.
    pub(super) fn take(
        &mut self,
        ir: &MeshIr,
        changed: &IrDelta,
        before: &BTreeMap<WorkloadId, Arc<WorkloadIr>>,
        touched: &mut BTreeSet<WorkloadId>,
    ) {
        for id in changed.workloads.keys() {
            if let Some(old) = before.get(id) {
                let account = account_of(old);
                if let Some(ids) = self.workloads_of.get_mut(&account) {
                    ids.remove(id);
                    if ids.is_empty() {
                        self.workloads_of.remove(&account);
                    }
                }
            }
            if let Some(workload) = ir.workloads.get(id) {
                self.workloads_of.entry(account_of(workload)).or_default().insert(id.clone());
            }
            touched.insert(id.clone());
        }
        let mut outdated: BTreeSet<ServiceAccountKey> = changed.access.keys().cloned().collect();
        for (account, access) in &changed.access {
            let old = self.accounts.remove(account).unwrap_or_default();
            if let Some(access) = access {
                self.accounts.insert(account.clone(), Selection::new(&access.selected_by, &access.grants, old));
            }
        }
        for namespace in changed.stances.keys().chain(changed.strict.keys()) {
            outdated.extend(self.accounts_in(namespace));
        }
        if std::mem::take(&mut self.stale) {
            outdated.extend(self.workloads_of.keys().cloned());
        }
        for account in &outdated {
            self.forget_plans(account);
            touched.extend(self.workloads_of.get(account).into_iter().flatten().cloned());
        }
        self.take_bindings(changed, touched);
    }

    fn take_bindings(&mut self, changed: &IrDelta, touched: &mut BTreeSet<WorkloadId>) {
        if changed.bindings.is_empty() {
            return;
        }
        self.plans.retain(|(_, bindings), _| bindings.iter().all(|binding| !changed.bindings.contains_key(binding)));
        self.bindings_of.retain(|id, bindings| {
            let count = bindings.len();
            bindings.retain(|binding| !changed.bindings.contains_key(binding));
            if bindings.len() < count {
                touched.insert(id.clone());
            }
            !bindings.is_empty()
        });
        for (origin, binding) in &changed.bindings {
            let old = self.bindings.remove(origin).unwrap_or_default();
            let Some(binding) = binding else { continue };
            for id in &binding.workloads {
                self.bindings_of.entry(id.clone()).or_default().insert(origin.clone());
                touched.insert(id.clone());
            }
            self.bindings.insert(origin.clone(), Selection::new(&binding.selected_by, &binding.grants, old));
        }
    }

    fn accounts_in(&self, namespace: &Arc<str>) -> impl Iterator<Item = ServiceAccountKey> + '_ {
        let namespace = Arc::clone(namespace);
        let from = ServiceAccountKey { namespace: Arc::clone(&namespace), name: "".into() };
        let accounts = self.workloads_of.range(from..).map(|(account, _)| account);
        accounts.take_while(move |account| account.namespace == namespace).cloned()
    }

    fn forget_plans(&mut self, account: &ServiceAccountKey) {
        let from = (account.clone(), BTreeSet::new());
        let keys: Vec<PlanKey> =
            self.plans.range(from..).map(|(key, _)| key).take_while(|(of, _)| of == account).cloned().collect();
        for key in keys {
            self.plans.remove(&key);
        }
    }

    /// The plan of a workload; `None` for one that is gone or has ended.
    pub(super) fn plan(&mut self, ir: &MeshIr, id: &WorkloadId) -> Option<Arc<InboundPlan>> {
        if let Some(key) = self.key_of.remove(id)
            && let Some(users) = self.users.get_mut(&key)
        {
            *users -= 1;
            if *users == 0 {
                self.unused.insert(key);
            }
        }
        let workload = ir.workloads.get(id).filter(|workload| workload.state != WorkloadState::Ended)?;
        let bindings = self.bindings_of.get(id).cloned().unwrap_or_default();
        let key = (account_of(workload), bindings);
        *self.users.entry(key.clone()).or_default() += 1;
        self.key_of.insert(id.clone(), key.clone());
        if let Some(plan) = self.plans.get(&key) {
            return Some(Arc::clone(plan));
        }
        let stance = ir.stances.get(&workload.namespace).unwrap_or(&self.default);
        let mtls = ir.strict.get(&workload.namespace).cloned().map_or(Mtls::Permissive, Mtls::Strict);
        let plan = Arc::new(self.make(&key, stance.clone(), mtls));
        self.plans.insert(key, Arc::clone(&plan));
        Some(plan)
    }

    fn make(&self, (account, bindings): &PlanKey, stance: Stance, mtls: Mtls) -> InboundPlan {
        let of_bindings = bindings.iter().filter_map(|binding| self.bindings.get(binding));
        let selections = || self.accounts.get(account).into_iter().chain(of_bindings.clone());
        let selected_by: BTreeSet<&ObjectRef> = selections().flat_map(|selection| &selection.selected_by).collect();
        let grants = selections().flat_map(|selection| &selection.grants).map(|compiled| compiled.grant.clone());
        InboundPlan { stance, mtls, selected_by: selected_by.into_iter().cloned().collect(), grants: grants.collect() }
    }

    /// Drops plans that no workload has any more.
    pub(super) fn forget_unused(&mut self) {
        for key in std::mem::take(&mut self.unused) {
            if self.users.get(&key).is_some_and(|users| *users == 0) {
                self.users.remove(&key);
                self.plans.remove(&key);
            }
        }
    }

    /// What was found about matches, and about pods that ask to be open while policy closes them.
    pub(super) fn problems(&self, ir: &MeshIr) -> Vec<Diagnostic> {
        let selections = self.accounts.values().chain(self.bindings.values());
        let matches =
            selections.flat_map(|selection| &selection.grants).flat_map(|grant| grant.problems.iter().cloned());
        let refused = self.key_of.iter().filter_map(|(id, key)| {
            let object = ir.workloads.get(id)?.fail_open_by.as_ref()?;
            self.plans.get(key)?.is_closed().then(|| Diagnostic {
                object: object.clone(),
                severity: Severity::Error,
                code: "FailModeRefused",
                field: "metadata.labels.weft.dev/fail-mode".into(),
                message:
                    "open is refused for pods that are denied by default or refuse plaintext: they stay closed while the agent is gone"
                        .into(),
            })
        });
        matches.chain(refused).collect()
    }
}

fn account_of(workload: &WorkloadIr) -> ServiceAccountKey {
    ServiceAccountKey { namespace: workload.namespace.clone(), name: workload.service_account.clone() }
}

impl Selection {
    /// Compiles what is new; automata of matches that are as they were are kept, and each is made once.
    fn new(selected_by: &[ObjectRef], grants: &[GrantIr], old: Self) -> Self {
        let mut known: HashMap<Vec<MatchIr>, Matched> = HashMap::new();
        for one in old.grants {
            if let (Some(requests), Some(matched)) = (one.requests, one.matched) {
                known.insert(requests, matched);
            }
        }
        // Matchers that count: what was compiled before counts as what is compiled now, so that only the targets decide.
        let mut counted: HashMap<&[MatchIr], Matched> = HashMap::new();
        let mut built_bytes = 0_usize;
        let mut compiled: Vec<Compiled> = Vec::with_capacity(grants.len());
        for grant in grants {
            let matched = grant.requests.as_deref().and_then(|requests| {
                if let Some(matched) = counted.get(requests) {
                    return Some(matched.clone());
                }
                if built_bytes > limits::DESTINATION_AUTOMATA_BYTES_MAX {
                    return None;
                }
                let matched = known.get(requests).cloned().unwrap_or_else(|| Matched::new(requests));
                built_bytes = built_bytes.saturating_add(matched.matcher.built_bytes());
                counted.insert(requests, matched.clone());
                Some(matched)
            });
            let (requests, problems) = match (&matched, &grant.requests) {
                (_, None) => (None, Vec::new()),
                (Some(matched), Some(_)) => (Some(matched.matcher.clone()), matched.problems.clone()),
                // A table without rules: it holds for no request.
                (None, Some(_)) => (Some(RouteMatcher::default()), vec![too_much(grant)]),
            };
            compiled.push(Compiled {
                grant: Grant {
                    origin: Arc::new(grant.origin.clone()),
                    accounts: grant.accounts.clone().into(),
                    workloads: grant.workloads.clone().into(),
                    ports: grant.tcp_ports.clone().map(Into::into),
                    udp_ports: grant.udp_ports.clone().map(Into::into),
                    requests,
                },
                requests: grant.requests.clone(),
                matched,
                problems,
            });
        }
        Self { selected_by: selected_by.to_vec(), grants: compiled }
    }
}
