//! The outbound side: rule, split, shares.

use std::sync::Arc;

use super::{
    PassedOver, Request, RouteAnswer,
    resolve::{Source, Target},
};
use crate::{
    endpoints::Endpoint, matcher::RequestHead, names::ServiceKey, plan::OutboundPlan, rule::Action, split::Split,
};

/// Where something may go.
pub(super) struct Share {
    pub(super) service: Option<ServiceKey>,
    pub(super) port: u16,
    pub(super) weight: u64,
    pub(super) share_percent: f64,
    pub(super) endpoints: Vec<Endpoint>,
}

pub(super) fn follow(
    target: &Target,
    source: &Source,
    request: Option<&Request>,
    notes: &mut Vec<String>,
) -> (Option<RouteAnswer>, Vec<Share>) {
    if !source.is_carried() {
        notes.push(
            "the source is not captured: what it sends to a Service is shared out by Kubernetes, not by TrafficSplits"
                .to_owned(),
        );
    }
    match target {
        Target::Service(plan) => by_plan(plan, source, request, notes),
        Target::Pod { plan, port, .. } => {
            let host = request.and_then(|request| request.headers.get(http::header::HOST)?.to_str().ok());
            // Only requests whose Host names a headless Service are routed as its own.
            if let Some(headless) = host.filter(|_| source.is_carried()).and_then(|host| plan.headless(*port, host)) {
                return by_plan(headless, source, request, notes);
            }
            let endpoint = Endpoint {
                address: (plan.address, *port).into(),
                workload: Some(plan.workload.clone()),
                node: plan.node.clone(),
            };
            let share =
                Share { service: None, port: *port, weight: 1, share_percent: 100.0, endpoints: vec![endpoint] };
            (None, vec![share])
        }
    }
}

fn by_plan(
    plan: &Arc<OutboundPlan>,
    source: &Source,
    request: Option<&Request>,
    notes: &mut Vec<String>,
) -> (Option<RouteAnswer>, Vec<Share>) {
    let head = request.map(|request| RequestHead {
        method: &request.method,
        path: &request.path,
        query: request.query.as_deref(),
        headers: &request.headers,
    });
    let namespace = source.account().map(|account| account.namespace);
    let table = namespace.as_ref().map_or(&plan.routes, |namespace| plan.table(namespace));
    let taken = head.as_ref().and_then(|head| table.matcher.find(head)).filter(|_| source.is_carried());
    if head.is_none() && !table.matched.is_empty() && source.is_carried() {
        notes.push(format!(
            "{} rules look at requests; give METHOD and PATH to see which of them takes one",
            table.matched.len()
        ));
    }
    let clients = namespace.as_ref().filter(|namespace| plan.consumers.iter().any(|(known, _)| known == *namespace));
    let rules: Vec<_> = table.described(clients).collect();
    let index = taken.unwrap_or(rules.len() - 1);
    let passed_over = if head.is_some() {
        let passed = rules.iter().take(index);
        passed
            .map(|rule| PassedOver {
                origin: rule.origin().clone(),
                rule: rule.rule.ir.name.to_string(),
                matches: rule.match_text(),
            })
            .collect()
    } else {
        Vec::new()
    };
    let rule = &rules[index];
    let split = if head.is_some() { rule.rule.split() } else { Some(&plan.connection) };
    let answer = match &rule.rule.action {
        Action::Redirect(redirect) => Some(format!("a redirect ({})", redirect.status)),
        Action::Refuse(refusal) => Some(format!("{}, {refusal}", refusal.status())),
        Action::Forward(_) => None,
    };
    if let Some(answer) = answer.filter(|_| head.is_some()) {
        notes.push(format!("the mesh answers by itself: {answer}"));
    }
    let shares = split.map_or_else(Vec::new, |split| shares(split));
    let origin = if head.is_some() { rule.origin() } else { &plan.connection.origin };
    let (name, does) =
        if head.is_some() { (rule.rule.ir.name.to_string(), rule.rule.ir.told()) } else { Default::default() };
    let route = RouteAnswer { origin: origin.clone(), rule: name, does, matches: rule.match_text(), passed_over };
    (Some(route), shares)
}

fn shares(split: &Split) -> Vec<Share> {
    let backends = &split.backends;
    let ready: Vec<Vec<Endpoint>> = backends.iter().map(|backend| backend.endpoints.load().ready.to_vec()).collect();
    let counts = |index: usize| if ready[index].is_empty() && !split.keeps_shares { 0 } else { backends[index].weight };
    let total: u64 = (0..ready.len()).map(counts).sum();
    #[expect(clippy::cast_precision_loss, reason = "a percentage for people")]
    let share = |index: usize| if total == 0 { 0.0 } else { counts(index) as f64 * 100.0 / total as f64 };
    let shares = backends.iter().enumerate().map(|(index, backend)| Share {
        service: Some(backend.service.clone()),
        port: backend.port,
        weight: backend.weight,
        share_percent: share(index),
        endpoints: ready[index].clone(),
    });
    shares.collect()
}
