//! TrafficTargets: whom each protects, and what it grants there.
//!
//! Where the specification leaves something open, the rule is the narrow one. Ports of TCPRoutes and requests of HTTPRouteGroups must
//! both hold; several targets add up; a route, match or source that does not exist stands for nothing, and what else the target
//! grants stays. A target that cannot be understood still denies what it does not grant.

use std::{collections::BTreeSet, sync::Arc};

use weft_policy::{
    ir::{AccessIr, BindingIr, GrantIr, MatchIr, PathIr, ValueIr},
    limits,
    names::{ObjectRef, ServiceAccountKey},
};

use super::Findings;
use crate::{
    smi::{
        http_route_group::HttpMatch,
        traffic_target::{RouteKind, Subject, TargetGrant, TargetRule, TrafficTarget},
    },
    store::{Name, ObjectStore},
};

/// What targets say about a service account; `None` if none selects it.
pub(super) fn of_account(
    store: &ObjectStore,
    account: &ServiceAccountKey,
    findings: &mut Findings,
) -> Option<AccessIr> {
    let targets: Vec<&TrafficTarget> = store.targets_of_account(account).collect();
    let (selected_by, grants) = granted(store, targets, &format!("service account {account}"), findings)?;
    Some(AccessIr { account: account.clone(), selected_by, grants })
}

/// What targets say about the pods that a binding means by their labels; `None` if none selects it, or it means none so.
pub(super) fn of_binding(store: &ObjectStore, name: &Name, findings: &mut Findings) -> Option<BindingIr> {
    let binding = store.binding(name).filter(|binding| !binding.selectors.is_empty())?;
    let origin = ObjectRef::new("IdentityBinding", &name.0, &name.1);
    let (selected_by, grants) =
        granted(store, store.targets_of_binding(name).collect(), &origin.to_string(), findings)?;
    Some(BindingIr { origin, workloads: store.pods_of_binding(binding), selected_by, grants })
}

/// What is to be said about a target itself.
pub(super) fn target(store: &ObjectStore, name: &Name, findings: &mut Findings) {
    let Some(target) = store.target(name) else { return };
    if let Some(binding) = target.destination.binding() {
        let at = format!("{}destination.name", target.prefix);
        match store.binding(&binding) {
            None => {
                let message =
                    format!("IdentityBinding {} does not exist; nothing is granted or denied", slashed(&binding));
                findings.error(&object(target), "DestinationNotFound", at, message);
            }
            Some(found) if found.selectors.is_empty() && found.accounts().next().is_none() => {
                let message = format!(
                    "IdentityBinding {} has only SPIFFE identities that name no service account here; nothing is granted or denied",
                    slashed(&binding)
                );
                findings.error(&object(target), "DestinationNotFound", at, message);
            }
            Some(_) => {}
        }
    }
    match &target.grant {
        Ok(_) => drop(grant(store, target, findings)),
        Err(problems) => {
            for problem in problems {
                let message =
                    format!("{}; the target denies what others do not grant, and grants nothing", problem.message);
                findings.error(&object(target), "Invalid", problem.field.clone(), message);
            }
        }
    }
}

fn object(target: &TrafficTarget) -> ObjectRef {
    ObjectRef::new("TrafficTarget", &target.meta.namespace, &target.meta.name)
}

fn slashed((namespace, name): &Name) -> String {
    format!("{namespace}/{name}")
}

/// The targets of one destination and what they grant, in the order of their names.
fn granted(
    store: &ObjectStore,
    mut targets: Vec<&TrafficTarget>,
    destination: &str,
    findings: &mut Findings,
) -> Option<(Vec<ObjectRef>, Vec<GrantIr>)> {
    if targets.is_empty() {
        return None;
    }
    targets.sort_by_key(|target| target.meta.precedence());
    for target in targets.iter().skip(limits::GRANTS_PER_DESTINATION_MAX) {
        let message = format!(
            "{} targets come before this one at {destination}, as many as may grant something; this one grants nothing",
            limits::GRANTS_PER_DESTINATION_MAX
        );
        findings.error(&object(target), "TooManyTargets", format!("{}destination", target.prefix), message);
    }
    let mut quiet = Findings::default();
    let granting = targets.iter().take(limits::GRANTS_PER_DESTINATION_MAX);
    let mut grants: Vec<GrantIr> = granting.filter_map(|target| grant(store, target, &mut quiet)).collect();
    grants.sort_by(|a, b| a.origin.cmp(&b.origin));
    let mut selected_by: Vec<ObjectRef> = targets.iter().map(|target| object(target)).collect();
    selected_by.sort_unstable();
    Some((selected_by, grants))
}

/// What a target grants; `None` if it cannot be understood.
fn grant(store: &ObjectStore, target: &TrafficTarget, findings: &mut Findings) -> Option<GrantIr> {
    let said = target.grant.as_ref().ok()?;
    let origin = object(target);
    let (accounts, workloads) = sources(store, (target, &origin), said, findings);
    let mut rules = Rules::default();
    for (index, rule) in said.rules.iter().enumerate() {
        let at = format!("{}{}[{index}]", target.prefix, said.rules_field);
        rules.add(store, (&target.meta.namespace, &origin), (rule, &at), findings);
    }
    if let Some(requests) = rules.requests.as_mut().filter(|requests| requests.len() > limits::MATCHES_PER_ROUTE_MAX) {
        let message = format!(
            "the rules have {} matches together, over the limit of {}; the last ones match nothing",
            requests.len(),
            limits::MATCHES_PER_ROUTE_MAX
        );
        findings.error(&origin, "TooManyMatches", format!("{}{}", target.prefix, said.rules_field), message);
        requests.truncate(limits::MATCHES_PER_ROUTE_MAX);
    }
    let tcp = rules.tcp.unwrap_or(if rules.requests.is_some() { Ports::All } else { Ports::default() });
    let udp = rules.udp.unwrap_or_default();
    let own = Ports::from_option(said.port);
    let (tcp_ports, udp_ports) = (tcp.both(&own).finish(), udp.both(&own).finish());
    let none = |ports: &Option<Vec<u16>>| ports.as_ref().is_some_and(Vec::is_empty);
    if let Some(port) = said.port.filter(|_| none(&tcp_ports) && none(&udp_ports)) {
        let message = format!("{port} is not among the ports of the routes; nothing is granted");
        findings.error(&origin, "PortMismatch", format!("{}destination.port", target.prefix), message);
    }
    Some(GrantIr { origin, accounts, workloads, tcp_ports, udp_ports, requests: rules.requests })
}

fn sources(
    store: &ObjectStore,
    (target, origin): (&TrafficTarget, &ObjectRef),
    said: &TargetGrant,
    findings: &mut Findings,
) -> (Vec<ServiceAccountKey>, Vec<weft_policy::names::WorkloadId>) {
    let (mut accounts, mut workloads) = (BTreeSet::new(), BTreeSet::new());
    for (index, source) in said.sources.iter().enumerate() {
        let name = match source {
            Subject::Account(account) => {
                accounts.insert(account.clone());
                continue;
            }
            Subject::Binding(namespace, name) => (namespace.clone(), name.clone()),
        };
        let at = format!("{}sources[{index}].name", target.prefix);
        let Some(binding) = store.binding(&name) else {
            let message = format!("IdentityBinding {} does not exist; nothing is granted to it", slashed(&name));
            findings.error(origin, "IdentityBindingNotFound", at, message);
            continue;
        };
        if binding.spiffe_identities > 0 {
            let message = format!(
                "IdentityBinding {} has SPIFFE identities, which no source can prove yet; nothing is granted to them",
                slashed(&name)
            );
            findings.warning(origin, "SpiffeNotProven", at, message);
        }
        let account = binding.service_account.iter();
        accounts.extend(
            account.map(|name| ServiceAccountKey { namespace: binding.meta.namespace.clone(), name: name.clone() }),
        );
        workloads.extend(store.pods_of_binding(binding));
    }
    (accounts.into_iter().collect(), workloads.into_iter().collect())
}

/// What the rules of a target come to, each kind by itself; `None` where there is no rule of the kind.
#[derive(Default)]
struct Rules {
    requests: Option<Vec<MatchIr>>,
    tcp: Option<Ports>,
    udp: Option<Ports>,
}

impl Rules {
    fn add(
        &mut self,
        store: &ObjectStore,
        (namespace, origin): (&Arc<str>, &ObjectRef),
        (rule, at): (&TargetRule, &str),
        findings: &mut Findings,
    ) {
        let name = (namespace.clone(), rule.name.clone());
        let mut missing = |code: &'static str, kind: &str| {
            let message = format!("{kind} {} does not exist; this rule grants nothing", slashed(&name));
            findings.error(origin, code, format!("{at}.name"), message);
        };
        match rule.kind {
            // A rule that stands for nothing must still be seen: without it the others would grant more.
            RouteKind::Tcp => {
                let ports = self.tcp.get_or_insert_default();
                match store.tcp_route(&name) {
                    Some(route) => ports.add(route.ports.as_deref()),
                    None => missing("RouteNotFound", "TCPRoute"),
                }
            }
            RouteKind::Udp => {
                let ports = self.udp.get_or_insert_default();
                match store.udp_route(&name) {
                    Some(route) => ports.add(route.ports.as_deref()),
                    None => missing("RouteNotFound", "UDPRoute"),
                }
            }
            RouteKind::Http => {
                let requests = self.requests.get_or_insert_default();
                match store.http_group(&name) {
                    Some(group) => {
                        let chosen = chosen(&group.matches, rule, (origin, at, &name), findings);
                        let of = ObjectRef::new("HTTPRouteGroup", &name.0, &name.1);
                        requests.extend(chosen.map(|one| match_ir(&of, one)));
                    }
                    None => missing("RouteGroupNotFound", "HTTPRouteGroup"),
                }
            }
        }
    }
}

/// The matches of a group that a rule means, in the order of the group.
fn chosen<'a>(
    matches: &'a [HttpMatch],
    rule: &'a TargetRule,
    (origin, at, group): (&ObjectRef, &str, &Name),
    findings: &mut Findings,
) -> impl Iterator<Item = &'a HttpMatch> {
    let wanted: Option<BTreeSet<&Arc<str>>> = rule.matches.as_ref().map(|names| names.iter().collect());
    if wanted.as_ref().is_some_and(BTreeSet::is_empty) {
        let message = "an empty list means no match, and this rule grants nothing; leave it out to mean all of them";
        findings.warning(origin, "EmptyMatches", format!("{at}.matches"), message);
    }
    let known: BTreeSet<&Arc<str>> = matches.iter().map(|one| &one.name).collect();
    for (index, name) in rule.matches.iter().flatten().enumerate().filter(|(_, name)| !known.contains(name)) {
        let message = format!("HTTPRouteGroup {} has no match {name:?}; nothing is granted by it", slashed(group));
        findings.error(origin, "MatchNotFound", format!("{at}.matches[{index}]"), message);
    }
    matches.iter().filter(move |one| wanted.as_ref().is_none_or(|wanted| wanted.contains(&one.name)))
}

/// A condition as the model has it.
pub(super) fn match_ir(group: &ObjectRef, one: &HttpMatch) -> MatchIr {
    MatchIr {
        origin: group.clone(),
        name: Arc::clone(&one.name),
        path: one.path_regex.clone().map(PathIr::Begins),
        methods: one.methods.clone(),
        headers: one.headers.iter().map(|(name, regex)| (name.clone(), ValueIr::Search(regex.clone()))).collect(),
        query: Vec::new(),
    }
}

/// A set of ports.
enum Ports {
    All,
    These(BTreeSet<u16>),
}

impl Default for Ports {
    fn default() -> Self {
        Self::These(BTreeSet::new())
    }
}

impl Ports {
    fn from_option(port: Option<u16>) -> Self {
        port.map_or(Self::All, |port| Self::These(BTreeSet::from([port])))
    }

    fn add(&mut self, ports: Option<&[u16]>) {
        match (ports, self) {
            (None, this) => *this = Self::All,
            (Some(ports), Self::These(these)) => these.extend(ports),
            (Some(_), Self::All) => {}
        }
    }

    fn both(self, that: &Self) -> Self {
        match (self, that) {
            (Self::All, Self::All) => Self::All,
            (Self::All, Self::These(these)) => Self::These(these.clone()),
            (these @ Self::These(_), Self::All) => these,
            (Self::These(a), Self::These(b)) => Self::These(a.intersection(b).copied().collect()),
        }
    }

    /// Ascending; `None` for all.
    fn finish(self) -> Option<Vec<u16>> {
        match self {
            Self::All => None,
            Self::These(these) => Some(these.into_iter().collect()),
        }
    }
}
