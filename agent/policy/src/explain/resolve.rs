//! From what a person types to what the model has.

use std::{net::IpAddr, sync::Arc};

use super::{DestinationAnswer, Question, QuestionError, SourceAnswer};
use crate::{
    compile::Compiler,
    ir::{MeshIr, WorkloadIr},
    names::{ObjectRef, ServiceAccountKey, ServiceKey},
    plan::{AppProtocol, OutboundPlan, PodPlan},
};

/// Who asks.
#[derive(Clone, Debug)]
pub(super) enum Source {
    Pod(Arc<WorkloadIr>),
    /// Some pod of this account, meshed, wherever the answer needs it to be.
    Account(ServiceAccountKey),
    Outside,
}

impl Source {
    pub(super) fn account(&self) -> Option<ServiceAccountKey> {
        match self {
            Self::Pod(pod) => {
                Some(ServiceAccountKey { namespace: pod.namespace.clone(), name: pod.service_account.clone() })
            }
            Self::Account(account) => Some(account.clone()),
            Self::Outside => None,
        }
    }

    pub(super) fn namespace(&self) -> Option<&str> {
        match self {
            Self::Pod(pod) => Some(&pod.namespace),
            Self::Account(account) => Some(&account.namespace),
            Self::Outside => None,
        }
    }

    /// Whether weft carries what it sends.
    pub(super) fn is_carried(&self) -> bool {
        match self {
            Self::Pod(pod) => pod.meshed,
            Self::Account(_) => true,
            Self::Outside => false,
        }
    }

    pub(super) fn answer(&self) -> SourceAnswer {
        let account = self.account();
        let (text, node) = match self {
            Self::Pod(pod) => (
                format!(
                    "pod {}/{}, service account {}/{}",
                    pod.namespace, pod.name, pod.namespace, pod.service_account
                ),
                (!pod.node.is_empty()).then(|| pod.node.to_string()),
            ),
            Self::Account(account) => {
                (format!("a meshed pod of service account {account}, on the server's node"), None)
            }
            Self::Outside => ("somebody without an identity".to_owned(), None),
        };
        SourceAnswer { text, account, node }
    }
}

/// What is asked for.
#[derive(Clone, Debug)]
pub(super) enum Target {
    Service(Arc<OutboundPlan>),
    Pod { plan: Arc<PodPlan>, pod: Arc<WorkloadIr>, port: u16 },
}

impl Target {
    pub(super) fn port(&self) -> u16 {
        match self {
            Self::Service(plan) => plan.port,
            Self::Pod { port, .. } => *port,
        }
    }

    pub(super) fn namespace(&self) -> &str {
        match self {
            Self::Service(plan) => &plan.service.namespace,
            Self::Pod { pod, .. } => &pod.namespace,
        }
    }

    pub(super) fn protocol(&self) -> AppProtocol {
        match self {
            Self::Service(plan) => plan.protocol,
            Self::Pod { plan, port, .. } => plan.protocol(*port),
        }
    }

    pub(super) fn answer(&self) -> DestinationAnswer {
        let object = match self {
            Self::Service(plan) => plan.service.object(),
            Self::Pod { pod, .. } => ObjectRef::new("Pod", &pod.namespace, &pod.name),
        };
        DestinationAnswer { object, port: self.port(), protocol: self.protocol(), udp: false }
    }
}

pub(super) fn source(ir: &MeshIr, question: &Question) -> Result<Source, QuestionError> {
    let text = question.source.as_str();
    let error = |message: String| QuestionError::Source(text.to_owned(), message);
    if text == "outside" {
        return Ok(Source::Outside);
    }
    if let Some(account) = text.strip_prefix("sa:") {
        let (namespace, name) = qualified(account, &question.namespace);
        return if name.is_empty() {
            Err(error("after \"sa:\" comes NAMESPACE/NAME".to_owned()))
        } else {
            Ok(Source::Account(ServiceAccountKey::new(namespace, name)))
        };
    }
    let (namespace, name) = qualified(text.strip_prefix("pod:").unwrap_or(text), &question.namespace);
    pod(ir, namespace, name).map(Source::Pod).ok_or_else(|| {
        error(format!("no pod {namespace}/{name} is known; give NAMESPACE/POD, sa:NAMESPACE/ACCOUNT, or \"outside\""))
    })
}

pub(super) fn destination(compiler: &Compiler, question: &Question) -> Result<Target, QuestionError> {
    let text = question.destination.as_str();
    let error = |message: String| QuestionError::Destination(text.to_owned(), message);
    let (host, port) = host_and_port(text);
    let ir = compiler.ir();
    if let Ok(ip) = host.parse::<IpAddr>() {
        let port =
            port.and_then(|port| port.parse().ok()).ok_or_else(|| error("give a port, as in 10.0.0.1:80".into()))?;
        let snapshot = compiler.snapshot();
        return match snapshot.destination((ip, port).into()) {
            Some(crate::plan::Destination::Service(plan)) => Ok(Target::Service(plan)),
            Some(crate::plan::Destination::Pod(plan)) => {
                let pod = ir.workloads.get(&plan.workload).cloned();
                pod.map(|pod| Target::Pod { plan, pod, port })
                    .ok_or_else(|| error("the pod with this address is gone".into()))
            }
            None => Err(error("no Service and no pod has this address: weft leaves it alone".to_owned())),
        };
    }
    let (want_service, want_pod, host) = match (host.strip_prefix("svc:"), host.strip_prefix("pod:")) {
        (Some(host), _) => (true, false, host),
        (_, Some(host)) => (false, true, host),
        _ => (true, true, host),
    };
    if want_service && let Some(key) = service(ir, host, &question.namespace) {
        return service_port(compiler, &key, port).map(Target::Service).map_err(error);
    }
    let (namespace, name) = qualified(host, &question.namespace);
    if want_pod && let Some(pod) = pod(ir, namespace, name) {
        let port =
            port.and_then(|port| port.parse().ok()).ok_or_else(|| error(format!("give a port, as in {host}:80")))?;
        let plan = pod.ips.iter().find_map(|ip| compiler.snapshot().pods.get(ip));
        let plan = plan.filter(|plan| plan.workload == pod.id).cloned();
        return plan
            .map(|plan| Target::Pod { plan, pod, port })
            .ok_or_else(|| error("the pod has no address of its own (yet)".to_owned()));
    }
    Err(error(format!("no Service and no pod is known as {host}; give NAMESPACE/NAME, NAME.NAMESPACE, or IP:PORT")))
}

/// `namespace/name`, or a name of the namespace that goes without saying.
fn qualified<'a>(text: &'a str, namespace: &'a str) -> (&'a str, &'a str) {
    text.split_once('/').unwrap_or((namespace, text))
}

/// A port is what follows the last colon, but for an IPv6 address without brackets.
fn host_and_port(text: &str) -> (&str, Option<&str>) {
    if text.parse::<IpAddr>().is_ok() {
        return (text, None);
    }
    if let Some((host, rest)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return (host, rest.strip_prefix(':'));
    }
    match text.rsplit_once(':') {
        // "svc:" and "pod:" are no hosts.
        Some((host, port)) if host != "svc" && host != "pod" => (host, Some(port)),
        _ => (text, None),
    }
}

fn pod(ir: &MeshIr, namespace: &str, name: &str) -> Option<Arc<WorkloadIr>> {
    ir.workloads.values().find(|pod| *pod.namespace == *namespace && *pod.name == *name).cloned()
}

fn service(ir: &MeshIr, host: &str, namespace: &str) -> Option<ServiceKey> {
    let known = |key: ServiceKey| ir.services.contains_key(&key).then_some(key);
    if let Some((namespace, name)) = host.split_once('/') {
        return known(ServiceKey::new(namespace, name));
    }
    let mut labels = host.split('.');
    let (name, own) = (labels.next()?, labels.next());
    if labels.next().is_some_and(|label| label != "svc") {
        return None;
    }
    known(ServiceKey::new(own.unwrap_or(namespace), name))
}

fn service_port(compiler: &Compiler, key: &ServiceKey, port: Option<&str>) -> Result<Arc<OutboundPlan>, String> {
    let plans = compiler.snapshot().services.get(key).map(|plans| &**plans).unwrap_or_default();
    let service = compiler.ir().services.get(key);
    let ports = || plans.iter().map(|plan| plan.port.to_string()).collect::<Vec<_>>().join(", ");
    let wanted = match port {
        None => {
            return match plans {
                [plan] => Ok(Arc::clone(plan)),
                [] => Err(format!("Service {key} has no TCP port")),
                _ => Err(format!("give a port: Service {key} has {}", ports())),
            };
        }
        Some(port) => port,
    };
    let named = service.into_iter().flat_map(|service| &service.ports).find(|port| *port.name == *wanted);
    let number = named.map(|port| port.port).or_else(|| wanted.parse().ok());
    let plan = plans.iter().find(|plan| Some(plan.port) == number);
    plan.cloned().ok_or_else(|| format!("Service {key} has no port {wanted}; it has {}", ports()))
}
