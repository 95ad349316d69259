//! The plans of one Service. What comes out as it was before is the very object that it was before, so that the workers'
//! progress through a split and their hold on a plan outlive changes of something else.

use std::{net::SocketAddr, sync::Arc};

use super::{
    CompiledService,
    cells::{CellKey, Cells},
};
use crate::{
    diagnostic::{Diagnostic, Severity},
    few::Few,
    ir::{BackendIr, MatchIr, RouteIr, ServiceIr, ServicePortIr},
    matcher::{RouteMatcher, RuleProblem},
    names::{ObjectRef, ServiceKey},
    plan::OutboundPlan,
    split::{Backend, Split},
};

/// Every address and port that stands for the Service.
pub(super) fn addresses(service: &ServiceIr) -> impl Iterator<Item = SocketAddr> + '_ {
    service.addresses.iter().flat_map(|ip| service.ports.iter().map(|port| SocketAddr::new(*ip, port.port)))
}

/// The cells that plans name.
pub(super) fn cells(plans: &[Arc<OutboundPlan>]) -> Few<CellKey> {
    let splits = plans.iter().flat_map(|plan| plan.matched.iter().chain([&plan.otherwise]));
    splits.flat_map(|split| split.backends.iter()).map(|backend| (backend.service.clone(), backend.port)).collect()
}

pub(super) fn compile(
    service: &ServiceIr,
    old_ir: Option<&ServiceIr>,
    old: Option<&CompiledService>,
    cells: &mut Cells,
) -> CompiledService {
    let old_plans: &[Arc<OutboundPlan>] = old.map_or(&[], |old| &old.plans);
    let (matcher, problems) = match (old, old_ir, old_plans.first()) {
        // New weights or backends do not change what requests look like, and automata are the dear part of a plan.
        (Some(old), Some(old_ir), Some(plan)) if matched(old_ir).map(pattern).eq(matched(service).map(pattern)) => {
            (plan.matcher.clone(), old.problems.clone())
        }
        _ => {
            let rules: Vec<&[MatchIr]> = matched(service).filter_map(|route| route.matches.as_deref()).collect();
            let (matcher, problems) = RouteMatcher::new(&rules);
            (matcher, problems.into_iter().map(diagnostic).collect())
        }
    };
    let plans = service.ports.iter().map(|port| {
        let old = old_plans.iter().find(|plan| plan.port == port.port);
        plan(service, port, &matcher, old, cells)
    });
    CompiledService { plans: plans.collect(), problems }
}

fn matched(service: &ServiceIr) -> impl Iterator<Item = &RouteIr> {
    service.routes.iter().filter(|route| route.matches.is_some())
}

fn pattern(route: &RouteIr) -> Option<&[MatchIr]> {
    route.matches.as_deref()
}

fn plan(
    service: &ServiceIr,
    port: &ServicePortIr,
    matcher: &RouteMatcher,
    old: Option<&Arc<OutboundPlan>>,
    cells: &mut Cells,
) -> Arc<OutboundPlan> {
    let old_splits: Vec<&Arc<Split>> =
        old.map_or_else(Vec::new, |old| old.matched.iter().chain([&old.otherwise]).collect());
    let mut split = |origin: &ObjectRef, shares: &mut dyn Iterator<Item = (&ServiceKey, u16, u64)>| {
        let backend = |(key, port, weight): (&ServiceKey, u16, u64)| {
            let service = key.clone();
            Backend { endpoints: cells.cell(&(service.clone(), port)), service, port, weight }
        };
        let backends: Box<[Backend]> = shares.map(backend).collect();
        let same = old_splits.iter().find(|old| old.origin == *origin && same_backends(&old.backends, &backends));
        same.map_or_else(|| Arc::new(Split::new(origin.clone(), backends)), |old| Arc::clone(old))
    };
    let mut of_route = |route: &RouteIr| {
        let share = |backend: &'_ BackendIr| {
            // A backend that has no such port takes no part in this one.
            let (_, target) = *backend.ports.iter().find(|(root, _)| *root == port.port)?;
            Some((target, backend.weight))
        };
        let mut shares = route
            .backends
            .iter()
            .filter_map(|backend| share(backend).map(|(target, weight)| (&backend.service, target, weight)));
        split(&route.origin, &mut shares)
    };
    let matched: Box<[Arc<Split>]> = matched(service).map(&mut of_route).collect();
    let otherwise = match service.routes.iter().find(|route| route.matches.is_none()) {
        Some(route) => of_route(route),
        None => split(&service.key.object(), &mut std::iter::once((&service.key, port.port, 1))),
    };
    let plan = OutboundPlan {
        service: service.key.clone(),
        port: port.port,
        protocol: port.protocol,
        balance: service.balance,
        matcher: matcher.clone(),
        matched,
        otherwise,
    };
    match old {
        Some(old) if same_plan(old, &plan) => Arc::clone(old),
        _ => Arc::new(plan),
    }
}

fn same_backends(a: &[Backend], b: &[Backend]) -> bool {
    a.len() == b.len()
        && a.iter().zip(b).all(|(a, b)| {
            a.service == b.service
                && a.port == b.port
                && a.weight == b.weight
                && Arc::ptr_eq(&a.endpoints, &b.endpoints)
        })
}

fn same_plan(a: &OutboundPlan, b: &OutboundPlan) -> bool {
    a.protocol == b.protocol
        && a.balance == b.balance
        && a.matcher.is_same(&b.matcher)
        && Arc::ptr_eq(&a.otherwise, &b.otherwise)
        && a.matched.len() == b.matched.len()
        && a.matched.iter().zip(&b.matched).all(|(a, b)| Arc::ptr_eq(a, b))
}

pub(super) fn diagnostic(problem: RuleProblem) -> Diagnostic {
    Diagnostic {
        object: problem.origin,
        severity: Severity::Error,
        code: "InvalidMatch",
        field: format!("matches[{}].{}", problem.name, problem.field),
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
