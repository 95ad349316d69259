//! One Service: its addresses, its ports and what they speak, and the routes whose root it is.

use weft_policy::{
    backend_policy::Balance,
    ir::{ServiceIr, ServicePortIr},
    names::ServiceKey,
    plan::AppProtocol,
};

use super::{Findings, gateway, policies, routes};
use crate::{
    core::service::{Service, ServicePort},
    store::ObjectStore,
};

/// Annotation: how endpoints are chosen.
pub(crate) const BALANCE_ANNOTATION: &str = "weft.dev/load-balancing";

pub(super) fn service(store: &ObjectStore, key: &ServiceKey, findings: &mut Findings) -> Option<ServiceIr> {
    policies::findings(store, key, findings);
    let Some(service) = store.service(key) else {
        routes::without_root(store, key, findings);
        gateway::without_root(store, key, findings);
        return None;
    };
    let ports = service.ports.iter().map(|port| ServicePortIr {
        port: port.port,
        name: port.name.clone(),
        protocol: protocol(port),
    });
    if let Err(value) = balance(service) {
        let known = Balance::ALL.map(Balance::as_str).join(", ");
        let message = format!("{value:?} is none of {known}; {} is used", Balance::default().as_str());
        let field = format!("metadata.annotations.{BALANCE_ANNOTATION}");
        findings.warning(&key.object(), "UnknownLoadBalancing", field, message);
    }
    let splits = routes::of_root(store, service, findings);
    let mut routes = gateway::with_routes(store, service, splits, findings);
    if let Some(fault) = policies::fault(store, key) {
        routes = policies::with_fault(routes, service, &fault);
    }
    Some(ServiceIr {
        key: key.clone(),
        addresses: service.addresses.clone(),
        headless: service.headless,
        ports: ports.collect(),
        routes,
    })
}

/// How endpoints are chosen where no BackendPolicy says so: what the annotation says, if that is understood.
pub(super) fn balance(service: &Service) -> Result<Balance, &str> {
    let Some(word) = service.meta.annotations.get(BALANCE_ANNOTATION) else { return Ok(Balance::default()) };
    Balance::ALL.into_iter().find(|balance| balance.as_str() == word).ok_or(word)
}

/// What a port speaks: `appProtocol` if it is one that is known, else what the port's name begins with (`http-web`, `mysql8`), else
/// the first bytes decide. The names are those of Kubernetes, of Istio's port names and of IANA's registry.
pub(super) fn protocol(port: &ServicePort) -> AppProtocol {
    let said = port.app_protocol.as_deref().and_then(|said| known(&said.to_ascii_lowercase()));
    said.or_else(|| of_name(&port.name)).unwrap_or_default()
}

/// Names are in lower case: Kubernetes sees to that. Up to a dash, with or without the digits before it; `grpc-web` has one of its own.
fn of_name(name: &str) -> Option<AppProtocol> {
    if name == "grpc-web" || name.starts_with("grpc-web-") {
        return known("grpc-web");
    }
    let prefix = name.split('-').next()?;
    known(prefix).or_else(|| {
        let unnumbered = known(prefix.trim_end_matches(|c: char| c.is_ascii_digit()))?;
        // `http8` may be anything, a `mysql8` cannot be HTTP.
        (!unnumbered.is_http()).then_some(unnumbered)
    })
}

/// What a word stands for; `None` for one that says nothing to weft.
fn known(word: &str) -> Option<AppProtocol> {
    match word {
        "http" | "grpc-web" => Some(AppProtocol::Http),
        // An upgrade to WebSocket is one of HTTP/1.1 (RFC 6455 4.1).
        "kubernetes.io/ws" | "ws" => Some(AppProtocol::Http1),
        "kubernetes.io/h2c" | "h2c" | "http2" | "grpc" => Some(AppProtocol::Http2),
        _ if TLS.contains(&word) => Some(AppProtocol::Tls),
        _ if OPAQUE.contains(&word) => Some(AppProtocol::Tcp),
        _ => None,
    }
}

/// Those that begin with a TLS handshake, so not `smtp` or `postgres`, which may turn to TLS later.
const TLS: [&str; 12] =
    ["amqps", "ftps", "grpcs", "https", "imaps", "kubernetes.io/wss", "ldaps", "mqtts", "pop3s", "smtps", "tls", "wss"];

const OPAQUE: [&str; 22] = [
    "amqp",
    "cassandra",
    "dns",
    "ftp",
    "imap",
    "kafka",
    "ldap",
    "memcached",
    "mongo",
    "mongodb",
    "mqtt",
    "mysql",
    "nats",
    "pop3",
    "postgres",
    "postgresql",
    "redis",
    "smtp",
    "ssh",
    "tcp",
    "zookeeper",
    "zk",
];
