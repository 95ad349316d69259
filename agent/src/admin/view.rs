//! What the agent shows of itself, made from its state when somebody asks.

use std::collections::HashMap;

use weft_abi::{PodStats, counter};
use weft_policy::{
    diagnostic::{Diagnostic, Severity},
    endpoints::servers,
    ir::FailMode,
    names::ObjectRef,
    plan::{AppProtocol, OutboundPlan},
    view::{GrantView, PlanRule},
};
use weft_proxy::learnt::{LearntKey, LearntRow};

use super::{api, mtls};
use crate::{capture::CaptureStats, pods::PodState, state::Shared};

/// `GET /status`.
#[must_use]
pub fn status(shared: &Shared) -> api::Status {
    let (stats, ahead) = {
        let capture = shared.capture();
        (capture.stats(), capture.programs_ahead())
    };
    let snapshot = shared.snapshots.load();
    let events: HashMap<_, _> = stats.pods.iter().map(|(id, stats)| (id, stats)).collect();
    let pods = shared
        .pods()
        .iter()
        .map(|(id, entry)| {
            let workload = &entry.workload;
            let (captured, reason, before) = match &entry.state {
                PodState::Captured { connections_before } => (true, None, *connections_before),
                PodState::Failed { reason } => (false, Some(reason.clone()), 0),
                PodState::Waiting => (false, Some("not tried yet".to_owned()), 0),
            };
            let inbound = snapshot.inbound.get(id);
            api::Pod {
                stance: if inbound.is_some_and(|plan| plan.stance.deny) { "deny" } else { "allow" }.to_owned(),
                targets: inbound.map_or_else(Vec::new, |plan| plan.selected_by.iter().map(object).collect()),
                namespace: workload.namespace.to_string(),
                name: workload.name.to_string(),
                uid: id.to_string(),
                ips: workload.ips.iter().map(ToString::to_string).collect(),
                captured,
                reason,
                fail_mode: match entry.fail_mode() {
                    FailMode::Open => "open".to_owned(),
                    FailMode::Closed => "closed".to_owned(),
                },
                fail_mode_error: entry.fail_mode_error.clone(),
                connections_before_capture: before,
                stats: pod_events(events.get(id).copied().unwrap_or(&PodStats::default()))
                    .map(|(name, count)| (name.to_owned(), count))
                    .into(),
            }
        })
        .collect();
    let diagnostics = shared.compiler().diagnostics().iter().map(finding).collect();
    api::Status {
        node: shared.node.clone(),
        identity: shared.identity.as_ref().map(|store| store.summary()),
        mtls: mtls::mutual_tls(shared, &snapshot),
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_s: shared.started.elapsed().as_secs(),
        generation: shared.snapshots.generation().0,
        ready: shared.ready(),
        draining: shared.draining(),
        workers: shared.proxy.workers(),
        heartbeat_age_ms: u64::try_from(shared.proxy.heartbeat_age().as_millis()).unwrap_or(u64::MAX),
        pods,
        diagnostics,
        files: shared.problems().to_vec(),
        sources: shared.sources.view(),
        capture: api::Capture {
            bpf_dir: shared.bpf_dir.display().to_string(),
            hooks: stats
                .hooks
                .iter()
                .map(|h| format!("{} at {} (program {})", h.name, h.target, h.program_id))
                .collect(),
            foreign_programs: ahead
                .iter()
                .map(|a| format!("{} at {} (program {} {})", a.hook, a.cgroup.display(), a.program_id, a.name))
                .collect(),
            counters: troubles(&stats).map(|(name, count)| (name.to_owned(), count)).into(),
            maps: stats
                .maps
                .iter()
                .map(|m| api::MapFill { name: m.map.to_owned(), entries: m.entries, max: m.limit })
                .collect(),
        },
    }
}

/// A pod's statistics by name, as in the ABI.
#[must_use]
pub fn pod_events(stats: &PodStats) -> [(&'static str, u64); 10] {
    [
        ("outbound_captured", stats.outbound_captured),
        ("outbound_direct", stats.outbound_direct),
        ("outbound_refused", stats.outbound_refused),
        ("outbound_denied", stats.outbound_denied),
        ("inbound_captured", stats.inbound_captured),
        ("inbound_direct", stats.inbound_direct),
        ("inbound_refused", stats.inbound_refused),
        ("inbound_node", stats.inbound_node),
        ("outbound_udp_denied", stats.outbound_udp_denied),
        ("inbound_udp_denied", stats.inbound_udp_denied),
    ]
}

/// Events in the kernel that mean that a limit was met or a redirect was lost, by name.
#[must_use]
pub fn troubles(stats: &CaptureStats) -> [(&'static str, u64); 7] {
    let count = |slot: u32| stats.counters[slot as usize];
    [
        ("captured_full", count(counter::CAPTURED_FULL)),
        ("bypass_full", count(counter::BYPASS_FULL)),
        ("node_flows_full", count(counter::NODE_FLOWS_FULL)),
        ("storage_full", count(counter::STORAGE_FULL)),
        ("redirect_lost", count(counter::REDIRECT_LOST)),
        ("no_address", count(counter::NO_ADDRESS)),
        ("tls_to_released", count(counter::TLS_TO_RELEASED)),
    ]
}

/// A severity as a label.
#[must_use]
pub fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Warning => "warning",
        Severity::Error => "error",
    }
}

fn finding(diagnostic: &Diagnostic) -> api::Finding {
    api::Finding {
        object: object(&diagnostic.object),
        severity: severity(diagnostic.severity).to_owned(),
        code: diagnostic.code.to_owned(),
        field: diagnostic.field.clone(),
        message: diagnostic.message.clone(),
    }
}

pub(super) fn object(object: &ObjectRef) -> api::Object {
    api::Object {
        kind: object.kind.to_string(),
        namespace: object.namespace.to_string(),
        name: object.name.to_string(),
    }
}

/// `GET /access`.
#[must_use]
pub fn access(shared: &Shared) -> Vec<api::PodAccess> {
    let snapshot = shared.snapshots.load();
    let compiler = shared.compiler();
    let pods = snapshot.inbound.iter().filter_map(|(id, plan)| {
        let pod = compiler.ir().workloads.get(id)?;
        let plan = plan.describe();
        let targets = plan.selected_by.iter().flat_map(|origin| {
            let mut grants: Vec<api::TargetAccess> =
                plan.grants.iter().filter(|grant| grant.origin == *origin).map(target_access).collect();
            if grants.is_empty() {
                grants.push(api::TargetAccess {
                    origin: object(origin),
                    grants: false,
                    accounts: Vec::new(),
                    pods: Vec::new(),
                    tcp_ports: Some(Vec::new()),
                    udp_ports: Some(Vec::new()),
                    requests: None,
                    engine: None,
                });
            }
            grants
        });
        Some(api::PodAccess {
            namespace: pod.namespace.to_string(),
            name: pod.name.to_string(),
            account: pod.service_account.to_string(),
            meshed: pod.meshed,
            stance: if plan.stance.deny { "deny" } else { "allow" }.to_owned(),
            stance_origin: plan.stance.origin.as_deref().map(object),
            targets: targets.collect(),
        })
    });
    let mut pods: Vec<api::PodAccess> = pods.collect();
    pods.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    pods
}

fn target_access(grant: &GrantView) -> api::TargetAccess {
    api::TargetAccess {
        origin: object(&grant.origin),
        grants: true,
        accounts: grant.accounts.iter().map(ToString::to_string).collect(),
        pods: grant.workloads.iter().map(ToString::to_string).collect(),
        tcp_ports: grant.tcp_ports.clone(),
        udp_ports: grant.udp_ports.clone(),
        requests: grant.requests.clone(),
        engine: grant.engine.clone(),
    }
}

/// `GET /services`, with what the workers have `learnt` of ports.
#[must_use]
pub fn services(shared: &Shared, learnt: &[LearntRow]) -> Vec<api::Service> {
    let learnt: HashMap<_, _> = learnt.iter().map(|row| (&row.key, &row.seen)).collect();
    let compiler = shared.compiler();
    let ir = compiler.ir();
    ir.services
        .values()
        .map(|service| api::Service {
            namespace: service.key.namespace.to_string(),
            name: service.key.name.to_string(),
            addresses: service.addresses.iter().map(ToString::to_string).collect(),
            headless: service.headless,
            ports: service
                .ports
                .iter()
                .map(|port| {
                    let seen = learnt.get(&LearntKey::Service(service.key.clone(), port.port));
                    let detected = seen.into_iter().flat_map(|seen| seen.iter());
                    let endpoints = ir.endpoints.get(&(service.key.clone(), port.port));
                    api::ServicePort {
                        port: port.port,
                        name: port.name.to_string(),
                        protocol: port.protocol.as_str().to_owned(),
                        detected: detected
                            .filter(|_| port.protocol == AppProtocol::Detect)
                            .map(|(seen, connections)| api::Detected {
                                protocol: seen.protocol().to_owned(),
                                first: seen.first().to_owned(),
                                connections: *connections,
                            })
                            .collect(),
                        ready: endpoints.map_or(0, |set| servers(&set.ready)),
                        draining: endpoints.map_or(0, |set| servers(&set.draining)),
                        balance: endpoints.map_or_else(String::new, |set| set.policy.balance.as_str().to_owned()),
                        policy: endpoints.and_then(|set| Some(set.policy.origin.as_ref()?.to_string())),
                    }
                })
                .collect(),
            routes: service.routes.len(),
        })
        .collect()
}

/// `GET /routes`.
#[must_use]
pub fn routes(shared: &Shared) -> Vec<api::ServiceRoutes> {
    let snapshot = shared.snapshots.load();
    let mut services: Vec<_> = snapshot.services.iter().collect();
    services.sort_unstable_by_key(|(key, _)| *key);
    services.into_iter().flat_map(|(_, plans)| plans.iter()).map(|plan| service_routes(plan)).collect()
}

fn service_routes(plan: &OutboundPlan) -> api::ServiceRoutes {
    api::ServiceRoutes {
        namespace: plan.service.namespace.to_string(),
        service: plan.service.name.to_string(),
        port: plan.port,
        protocol: plan.protocol.as_str().to_owned(),
        routes: plan.rules().map(route).collect(),
    }
}

fn route(rule: PlanRule<'_>) -> api::Route {
    let backends = rule.backends();
    let keeps_shares = rule.rule.split().is_some_and(|split| split.keeps_shares);
    let ready: Vec<usize> = backends.iter().map(|backend| servers(&backend.endpoints.load().ready)).collect();
    let takes = |index: usize| if ready[index] > 0 || keeps_shares { backends[index].weight } else { 0 };
    let total: u64 = (0..ready.len()).map(takes).sum();
    #[expect(clippy::cast_precision_loss, reason = "a percentage for people")]
    let share = |index: usize| if total == 0 { 0.0 } else { takes(index) as f64 * 100.0 / total as f64 };
    api::Route {
        origin: object(rule.origin()),
        rule: rule.rule.ir.name.to_string(),
        clients: rule.clients.map(ToString::to_string),
        does: rule.rule.ir.told(),
        matches: rule.matches().map(<[String]>::to_vec),
        engine: rule.engine(),
        backends: backends
            .iter()
            .enumerate()
            .map(|(index, backend)| api::Backend {
                namespace: backend.service.namespace.to_string(),
                service: backend.service.name.to_string(),
                port: backend.port,
                weight: backend.weight,
                share_percent: share(index),
                ready: ready[index],
            })
            .collect(),
    }
}
