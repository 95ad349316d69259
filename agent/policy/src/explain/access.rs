//! The inbound side: who asks, what is granted, what is missing.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{BackendAnswer, EndpointAnswer, Request, TargetAnswer, resolve::Source, route::Share};
use crate::{
    compile::Compiler,
    endpoints::Endpoint,
    inbound::{self, Basis, ConnectionVerdict, Grant, InboundPlan, Verdict},
    ir::WorkloadIr,
    matcher::RequestHead,
    names::{ObjectRef, ServiceAccountKey, ServiceKey, WorkloadId},
};

/// What something comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Goes on.
    Allowed,
    /// Refused.
    Denied,
    /// Only requests are granted, and none was given: it depends on the request.
    SomeRequests,
    /// Some of the endpoints that take a share refuse it.
    SomeEndpoints,
    /// Nothing can take it: no backend has a share and a ready endpoint.
    Unavailable,
    /// Decided where the endpoint is, by what is not known here.
    Unknown,
}

/// What is asked of every endpoint.
pub(super) struct Asked<'a> {
    pub(super) compiler: &'a Compiler,
    pub(super) source: &'a Source,
    pub(super) request: Option<&'a Request>,
    /// The port is declared to speak something that weft does not look into.
    pub(super) opaque: bool,
    /// Datagrams are asked for.
    pub(super) udp: bool,
}

impl Asked<'_> {
    pub(super) fn backend(&self, share: Share, notes: &mut Vec<String>) -> BackendAnswer {
        let service = share.service.as_ref();
        let endpoints = share.endpoints.iter().map(|endpoint| self.endpoint(endpoint, service, notes)).collect();
        BackendAnswer {
            service: share.service,
            port: share.port,
            weight: share.weight,
            share_percent: share.share_percent,
            endpoints,
        }
    }

    fn endpoint(&self, endpoint: &Endpoint, service: Option<&ServiceKey>, notes: &mut Vec<String>) -> EndpointAnswer {
        let ir = self.compiler.ir();
        let pod = endpoint.workload.as_ref().and_then(|id| ir.workloads.get(id));
        let mut answer = EndpointAnswer {
            address: endpoint.address.to_string(),
            pod: pod.map(|pod| format!("{}/{}", pod.namespace, pod.name)),
            account: pod
                .map(|pod| ServiceAccountKey { namespace: pod.namespace.clone(), name: pod.service_account.clone() }),
            outcome: Outcome::Unknown,
            basis: String::new(),
            targets: Vec::new(),
        };
        let namespace = service.map(|service| &service.namespace).or(pod.map(|pod| &pod.namespace));
        if let Some(object) = namespace.and_then(|namespace| self.refuses_to_send(endpoint, pod, namespace)) {
            answer.outcome = Outcome::Denied;
            answer.basis = format!(
                "{object} takes mutual TLS only, and no NodeWorkloads says that {} does: the agent of the source does not connect",
                endpoint.address
            );
            return answer;
        }
        let Some(pod) = pod else {
            answer.basis = match &endpoint.node {
                Some(node) => format!("its pod is not known here: ask the agent of node {node}"),
                None => "no pod is known at this address".to_owned(),
            };
            return answer;
        };
        if !pod.meshed {
            answer.outcome = Outcome::Allowed;
            answer.basis = "the pod is not captured: nothing is enforced for it".to_owned();
            return answer;
        }
        if matches!(self.source, Source::Pod(source) if source.id == pod.id) {
            answer.outcome = Outcome::Allowed;
            answer.basis = "a pod may always talk to itself".to_owned();
            return answer;
        }
        let Some(plan) = self.compiler.snapshot().inbound.get(&pod.id) else {
            answer.basis = "there is no inbound plan for this pod here".to_owned();
            return answer;
        };
        let account = self.identity(pod, notes);
        let workload = match self.source {
            Source::Pod(source) => Some(source.id.clone()),
            _ => None,
        };
        let source = account.as_ref().map(|account| inbound::Source { account, workload: workload.as_ref() });
        let port = endpoint.address.port();
        // As at the pod itself: asked before anything else, of whoever nobody vouches for. Datagrams are encrypted in neither mode.
        let plaintext = plan.plaintext().filter(|_| !self.udp);
        if let Some(Basis::Plaintext(object)) = &plaintext {
            let note = format!(
                "{object} takes mutual TLS only: what comes to its pods in plaintext from elsewhere is refused, whatever is granted"
            );
            if !notes.contains(&note) {
                notes.push(note);
            }
        }
        let (outcome, basis) = match plaintext.filter(|_| source.is_none()) {
            Some(basis) => (Outcome::Denied, basis),
            None => self.verdict(plan, source, port),
        };
        answer.outcome = outcome;
        answer.basis = basis.to_string();
        answer.targets = self.targets(plan, source, workload.as_ref(), port);
        answer
    }

    /// The object for which the agent of the source does not even connect: it would have to be in plaintext, and that namespace takes
    /// none. Where one agent serves both ends nothing has to be encrypted.
    fn refuses_to_send(
        &self,
        endpoint: &Endpoint,
        pod: Option<&Arc<WorkloadIr>>,
        namespace: &str,
    ) -> Option<&ObjectRef> {
        if self.udp || !self.source.is_carried() {
            return None;
        }
        let snapshot = self.compiler.snapshot();
        let object = snapshot.strict.get(namespace)?;
        let is_beside = |pod: &WorkloadIr| match self.source {
            Source::Pod(source) => source.node == pod.node,
            Source::Account(_) | Source::Outside => true,
        };
        if pod.is_some_and(|pod| pod.meshed && is_beside(pod)) {
            return None;
        }
        let address = endpoint.address.ip();
        let of_address = || snapshot.pods.get(&address).map(|plan| &plan.workload);
        let peer = endpoint.workload.as_ref().or_else(of_address).and_then(|workload| snapshot.peers.get(workload));
        (!peer.is_some_and(|peer| peer.addresses.contains(&address))).then_some(object)
    }

    /// The account that the destination knows the source by.
    fn identity(&self, pod: &WorkloadIr, notes: &mut Vec<String>) -> Option<ServiceAccountKey> {
        match self.source {
            Source::Pod(source) if !source.meshed => {
                notes.push(format!(
                    "pod {}/{} is not captured, so nobody vouches for its service account",
                    source.namespace, source.name
                ));
                None
            }
            Source::Pod(source) if source.node != pod.node && !self.compiler.ir().peers.contains_key(&pod.id) => {
                notes.push(format!(
                    "pod {}/{} runs on node {:?}, the server on {:?}, which no NodeWorkloads says takes mutual TLS: so nothing proves a \
                     service account",
                    source.namespace, source.name, source.node, pod.node
                ));
                None
            }
            _ => self.source.account(),
        }
    }

    fn head(&self) -> Option<RequestHead<'_>> {
        self.request.map(|request| RequestHead {
            method: &request.method,
            path: &request.path,
            query: request.query.as_deref(),
            headers: &request.headers,
        })
    }

    fn verdict(&self, plan: &InboundPlan, source: Option<inbound::Source<'_>>, port: u16) -> (Outcome, Basis) {
        let certain = if self.udp {
            Some(plan.udp(source, port))
        } else {
            self.head().map(|head| plan.request(source, port, &head))
        };
        match certain {
            Some(Verdict::Allow(basis)) => return (Outcome::Allowed, basis),
            Some(Verdict::Deny(basis)) => return (Outcome::Denied, basis),
            None => {}
        }
        match plan.connection(source, port) {
            ConnectionVerdict::Allow(basis) => (Outcome::Allowed, basis),
            ConnectionVerdict::Deny(basis) => (Outcome::Denied, basis),
            ConnectionVerdict::Requests(basis) if self.opaque => (Outcome::Denied, basis),
            ConnectionVerdict::Requests(basis) => (Outcome::SomeRequests, basis),
        }
    }

    fn targets(
        &self,
        plan: &InboundPlan,
        source: Option<inbound::Source<'_>>,
        workload: Option<&WorkloadId>,
        port: u16,
    ) -> Vec<TargetAnswer> {
        plan.selected_by
            .iter()
            .map(|origin| {
                let grants: Vec<&Grant> = plan.grants.iter().filter(|grant| *grant.origin == *origin).collect();
                let answers: Vec<(bool, String)> =
                    grants.iter().map(|grant| self.grant(grant, source, workload, port)).collect();
                let (grants, why) = match answers.iter().position(|(granted, _)| *granted) {
                    Some(index) => answers[index].clone(),
                    None if answers.is_empty() => {
                        (false, "it selects the destination and grants nothing to anybody: it is invalid, or names nothing that exists".to_owned())
                    }
                    None => (false, answers.into_iter().map(|(_, why)| why).collect::<Vec<_>>().join("; ")),
                };
                TargetAnswer { origin: origin.clone(), grants, why }
            })
            .collect()
    }

    fn grant(
        &self,
        grant: &Grant,
        source: Option<inbound::Source<'_>>,
        workload: Option<&WorkloadId>,
        port: u16,
    ) -> (bool, String) {
        let Some(source) = source else { return (false, "nobody knows who asks".to_owned()) };
        let listed = grant.accounts.binary_search(source.account).is_ok()
            || workload.is_some_and(|workload| grant.workloads.binary_search(workload).is_ok());
        if !listed {
            let sources: Vec<String> = grant.accounts.iter().take(NAMED_MAX).map(ToString::to_string).collect();
            let sources = match (sources.is_empty(), grant.accounts.len().saturating_sub(NAMED_MAX)) {
                (true, _) => "no account".to_owned(),
                (false, 0) => sources.join(", "),
                (false, more) => format!("{} and {more} more", sources.join(", ")),
            };
            let mut why = format!("service account {} is not among its sources ({sources})", source.account);
            match (grant.workloads.len(), workload) {
                (0, _) => {}
                (count, Some(_)) => {
                    why.push_str(&format!(", and the pod is none of the {count} known here that an IdentityBinding means by label"));
                }
                (count, None) => why.push_str(&format!(
                    ", but {count} pods known here are, by label through an IdentityBinding: ask with NAMESPACE/POD as the source"
                )),
            }
            return (false, why);
        }
        let (ports, protocol) = if self.udp { (&grant.udp_ports, "UDP") } else { (&grant.ports, "TCP") };
        if let Some(ports) = ports
            && ports.binary_search(&port).is_err()
        {
            let ports: Vec<String> = ports.iter().take(NAMED_MAX).map(ToString::to_string).collect();
            let ports = if ports.is_empty() { "none".to_owned() } else { ports.join(", ") };
            return (false, format!("{protocol} port {port} is not among its {protocol} ports ({ports})"));
        }
        if self.udp {
            return (true, "it grants whatever is sent".to_owned());
        }
        let Some(requests) = &grant.requests else { return (true, "it grants whatever is said".to_owned()) };
        let texts: Vec<String> = (0..requests.len()).flat_map(|rule| requests.text(rule).iter().cloned()).collect();
        let shown = match texts.len().saturating_sub(NAMED_MAX) {
            0 if texts.is_empty() => "none".to_owned(),
            0 => texts.join(" or "),
            more => format!("{} or {more} more", texts[..NAMED_MAX].join(" or ")),
        };
        match self.head() {
            None if self.opaque => {
                (false, format!("it grants HTTP requests only ({shown}), and this port speaks something else"))
            }
            None => (false, format!("it grants these requests: {shown}")),
            Some(head) if requests.find(&head).is_some() => (true, format!("its requests match: {shown}")),
            Some(_) => (false, format!("the request is none of its own: {shown}")),
        }
    }
}

/// Names in a row before the rest is counted.
const NAMED_MAX: usize = 5;

/// What all endpoints that take a share come to.
pub(super) fn sum(backends: &[BackendAnswer]) -> (Outcome, String) {
    let live = backends.iter().filter(|backend| backend.share_percent > 0.0);
    let endpoints: Vec<&EndpointAnswer> = live.flat_map(|backend| &backend.endpoints).collect();
    let Some(first) = endpoints.first() else {
        return (Outcome::Unavailable, "no backend has both a share and a ready endpoint".to_owned());
    };
    if endpoints.iter().all(|endpoint| endpoint.outcome == first.outcome) {
        let same = endpoints.iter().all(|endpoint| endpoint.basis == first.basis);
        let basis = if same { first.basis.clone() } else { format!("{}; others: see below", first.basis) };
        return (first.outcome, basis);
    }
    let refusing = endpoints.iter().filter(|endpoint| endpoint.outcome != Outcome::Allowed).count();
    (Outcome::SomeEndpoints, format!("{refusing} of {} endpoints do not simply allow it", endpoints.len()))
}
