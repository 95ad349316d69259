//! The plans of one Service. What comes out as it was before is the very object that it was before, so that the workers'
//! progress through a split and their hold on a plan outlive changes of something else.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    sync::Arc,
};

use super::{
    CompiledService,
    cells::{CellKey, Cells},
};
use crate::{
    diagnostic::{Diagnostic, Severity},
    few::Few,
    ir::{BackendIr, MatchIr, PathIr, RouteIr, ServiceIr, ServicePortIr},
    matcher::{RouteMatcher, RuleProblem},
    names::ServiceKey,
    plan::{OutboundPlan, Route, RouteTable},
    rule::{Action, ActionIr, Rule, RuleIr},
    split::{Backend, Split},
};

/// Every address and port that stands for the Service.
pub(super) fn addresses(service: &ServiceIr) -> impl Iterator<Item = SocketAddr> + '_ {
    service.addresses.iter().flat_map(|ip| service.ports.iter().map(|port| SocketAddr::new(*ip, port.port)))
}

/// The cells that plans name.
pub(super) fn cells(plans: &[Arc<OutboundPlan>]) -> Few<CellKey> {
    let rules = plans.iter().flat_map(|plan| plan.all_rules());
    let of_rules =
        rules.flat_map(|rule| rule.mirrors.iter().chain(rule.split().into_iter().flat_map(|split| &split.backends)));
    let of_connections = plans.iter().flat_map(|plan| &plan.connection.backends);
    of_rules.chain(of_connections).map(|backend| (backend.service.clone(), backend.port)).collect()
}

pub(super) fn compile(
    service: &ServiceIr,
    old_ir: Option<&ServiceIr>,
    old: Option<&CompiledService>,
    cells: &mut Cells,
) -> CompiledService {
    let mut build = Build {
        service,
        old_ir,
        old_plans: old.map_or(&[], |old| &old.plans),
        matchers: Vec::new(),
        rules: HashMap::new(),
        cells,
    };
    let plans: Arc<[Arc<OutboundPlan>]> = service.ports.iter().map(|port| build.plan(port)).collect();
    let mut problems: Vec<Diagnostic> = plans.iter().flat_map(|plan| problems(plan)).collect();
    problems.sort();
    problems.dedup();
    CompiledService { plans, problems }
}

fn problems(plan: &OutboundPlan) -> impl Iterator<Item = Diagnostic> {
    let tables = [&plan.routes].into_iter().chain(plan.consumers.iter().map(|(_, table)| table));
    tables.flat_map(|table| table.matcher.problems()).cloned().map(diagnostic)
}

/// The routes of a table, in order of precedence: of one port, for the clients of one namespace or for all others.
fn routes_of<'a>(
    service: &'a ServiceIr,
    port: u16,
    clients: Option<&'a Arc<str>>,
) -> impl Iterator<Item = &'a RouteIr> + Clone {
    service.routes.iter().filter(move |route| route.is_for(port) && route.clients.as_ref() == clients)
}

/// The conditions of routes that have any.
fn conditions<'a>(routes: impl Iterator<Item = &'a RouteIr>) -> Vec<&'a [MatchIr]> {
    routes.filter_map(|route| route.matches.as_deref()).collect()
}

/// The plans of one Service in the making.
struct Build<'a> {
    service: &'a ServiceIr,
    old_ir: Option<&'a ServiceIr>,
    old_plans: &'a [Arc<OutboundPlan>],
    /// Those made for other ports: most Services have the same routes at all of them.
    matchers: Vec<(Vec<&'a [MatchIr]>, RouteMatcher)>,
    /// By port and the address of the model's rule: routes that share that share this.
    rules: HashMap<(u16, *const RuleIr), Arc<Rule>>,
    cells: &'a mut Cells,
}

impl<'a> Build<'a> {
    fn plan(&mut self, port: &'a ServicePortIr) -> Arc<OutboundPlan> {
        let service = self.service;
        let old = self.old_plans.iter().find(|plan| plan.port == port.port);
        let own = Arc::new(RuleIr::forward(
            service.key.object(),
            vec![BackendIr::new(service.key.clone(), 1, vec![(port.port, port.port)])],
        ));
        let bytes = routes_of(service, port.port, None).find(|route| route.matches.is_none() && !route.requests_only);
        let split = self.rule(bytes.map_or(&own, |route| &route.rule), port.port, old).split().cloned();
        // What answers requests by itself says nothing of connections.
        let split = split.or_else(|| self.rule(&own, port.port, old).split().cloned());
        let connection = split.unwrap_or_else(|| Arc::new(Split::new(service.key.object(), Box::default())));
        let routes = self.table(port, None, &own, old);
        let clients: BTreeSet<&Arc<str>> = service
            .routes
            .iter()
            .filter(|route| route.is_for(port.port))
            .filter_map(|route| route.clients.as_ref())
            .collect();
        let consumers =
            clients.into_iter().map(|clients| (Arc::clone(clients), self.table(port, Some(clients), &own, old)));
        let plan = OutboundPlan {
            service: service.key.clone(),
            port: port.port,
            protocol: port.protocol,
            routes,
            consumers: consumers.collect(),
            connection,
        };
        match old {
            Some(old) if same_plan(old, &plan) => Arc::clone(old),
            _ => Arc::new(plan),
        }
    }

    fn table(
        &mut self,
        port: &ServicePortIr,
        clients: Option<&'a Arc<str>>,
        own: &Arc<RuleIr>,
        old: Option<&Arc<OutboundPlan>>,
    ) -> RouteTable {
        let routes = routes_of(self.service, port.port, clients);
        let matcher = self.matcher(conditions(routes.clone()), port.port, clients, old);
        let matched = routes.clone().filter_map(|route| Some((route, route.matches.as_deref()?)));
        let matched = matched.map(|(route, matches)| {
            let prefix = match matches {
                [MatchIr { path: Some(PathIr::Prefix(prefix)), .. }] => Some(Arc::clone(prefix)),
                _ => None,
            };
            Route { rule: self.rule(&route.rule, port.port, old), prefix }
        });
        let matched = matched.collect();
        let otherwise = routes.clone().find(|route| route.matches.is_none());
        let otherwise = self.rule(otherwise.map_or(own, |route| &route.rule), port.port, old);
        RouteTable { matcher, matched, otherwise }
    }

    /// New weights or backends do not change what requests look like, and automata are the dear part of a plan.
    fn matcher(
        &mut self,
        conditions: Vec<&'a [MatchIr]>,
        port: u16,
        clients: Option<&'a Arc<str>>,
        old: Option<&Arc<OutboundPlan>>,
    ) -> RouteMatcher {
        if let (Some(old_ir), Some(old)) = (self.old_ir, old)
            && let Some(table) = table_for(old, clients)
            && self::conditions(routes_of(old_ir, port, clients)) == conditions
        {
            return table.matcher.clone();
        }
        if let Some((_, matcher)) = self.matchers.iter().find(|(known, _)| *known == conditions) {
            return matcher.clone();
        }
        let (matcher, _) = RouteMatcher::new(&conditions);
        self.matchers.push((conditions, matcher.clone()));
        matcher
    }

    fn rule(&mut self, ir: &Arc<RuleIr>, port: u16, old: Option<&Arc<OutboundPlan>>) -> Arc<Rule> {
        let key = (port, Arc::as_ptr(ir));
        if let Some(known) = self.rules.get(&key) {
            return Arc::clone(known);
        }
        let mut share = |backend: &BackendIr| {
            // A backend that has no such port takes no part in this one.
            let (_, target) = *backend.ports.iter().find(|(root, _)| *root == port)?;
            let service = backend.service.clone();
            Some(Backend {
                endpoints: self.cells.cell(&(service.clone(), target)),
                service,
                port: target,
                weight: backend.weight,
                invalid: backend.invalid.clone(),
                headers: backend.headers.clone(),
            })
        };
        let mirrors: Box<[Backend]> = ir.mirrors.iter().filter_map(|mirror| share(&mirror.backend)).collect();
        let action = match &ir.action {
            ActionIr::Redirect(redirect) => Action::Redirect(redirect.clone()),
            ActionIr::Refuse(refusal) => Action::Refuse(refusal.clone()),
            ActionIr::Forward { backends, keeps_shares } => {
                let backends: Box<[Backend]> = backends.iter().filter_map(share).collect();
                let split = Split::new(ir.origin.clone(), backends);
                let split = if *keeps_shares { split.keeping_shares() } else { split };
                let old = old.into_iter().flat_map(|old| {
                    old.all_rules()
                        .filter(|rule| rule.ir.name == ir.name)
                        .filter_map(|rule| rule.split())
                        .chain([&old.connection])
                });
                let same = old.into_iter().find(|old| same_split(old, &split));
                Action::Forward(same.map_or_else(|| Arc::new(split), Arc::clone))
            }
        };
        let rule = Rule { ir: Arc::clone(ir), action, mirrors };
        let same = old.and_then(|old| old.all_rules().find(|old| same_rule(old, &rule)).cloned());
        let rule = same.unwrap_or_else(|| Arc::new(rule));
        self.rules.insert(key, Arc::clone(&rule));
        rule
    }
}

fn table_for<'a>(plan: &'a OutboundPlan, clients: Option<&Arc<str>>) -> Option<&'a RouteTable> {
    match clients {
        None => Some(&plan.routes),
        Some(clients) => plan.consumers.iter().find(|(known, _)| known == clients).map(|(_, table)| table),
    }
}

fn same_backends(a: &[Backend], b: &[Backend]) -> bool {
    a.len() == b.len()
        && a.iter().zip(b).all(|(a, b)| {
            a.service == b.service
                && a.port == b.port
                && a.weight == b.weight
                && a.invalid == b.invalid
                && a.headers == b.headers
                && Arc::ptr_eq(&a.endpoints, &b.endpoints)
        })
}

fn same_split(a: &Split, b: &Split) -> bool {
    a.origin == b.origin && a.keeps_shares == b.keeps_shares && same_backends(&a.backends, &b.backends)
}

/// Whether a rule of before does what this one does, with the very same progress.
fn same_rule(old: &Rule, new: &Rule) -> bool {
    let same_action = match (&old.action, &new.action) {
        (Action::Forward(a), Action::Forward(b)) => Arc::ptr_eq(a, b),
        (Action::Forward(_), _) | (_, Action::Forward(_)) => false,
        // As the model says it.
        _ => true,
    };
    same_action && old.ir == new.ir && same_backends(&old.mirrors, &new.mirrors)
}

fn same_table(a: &RouteTable, b: &RouteTable) -> bool {
    a.matcher.is_same(&b.matcher)
        && Arc::ptr_eq(&a.otherwise, &b.otherwise)
        && a.matched.len() == b.matched.len()
        && a.matched.iter().zip(&b.matched).all(|(a, b)| Arc::ptr_eq(&a.rule, &b.rule) && a.prefix == b.prefix)
}

fn same_plan(a: &OutboundPlan, b: &OutboundPlan) -> bool {
    a.protocol == b.protocol
        && Arc::ptr_eq(&a.connection, &b.connection)
        && same_table(&a.routes, &b.routes)
        && a.consumers.len() == b.consumers.len()
        && a.consumers.iter().zip(&b.consumers).all(|(a, b)| a.0 == b.0 && same_table(&a.1, &b.1))
}

pub(super) fn diagnostic(problem: RuleProblem) -> Diagnostic {
    // Matches of routes have places for names.
    let field = if matches!(&*problem.origin.kind, "HTTPRoute" | "GRPCRoute") {
        format!("spec.{}.{}", problem.name, problem.field)
    } else {
        format!("matches[{}].{}", problem.name, problem.field)
    };
    Diagnostic {
        object: problem.origin,
        severity: Severity::Error,
        code: "InvalidMatch",
        field,
        message: format!("{}; this match holds for no request", problem.message),
    }
}

/// The Services that claim an address in vain.
pub(super) fn address_conflicts(
    address: SocketAddr,
    claims: &Few<ServiceKey>,
) -> impl Iterator<Item = Diagnostic> + '_ {
    let first = claims.first();
    claims.iter().skip(1).filter_map(move |loser| {
        Some(Diagnostic {
            object: loser.object(),
            severity: Severity::Error,
            code: "AddressConflict",
            field: "spec.clusterIPs".into(),
            message: format!(
                "{address} belongs to Service {} too, which comes first by namespace and name and has it",
                first?
            ),
        })
    })
}
