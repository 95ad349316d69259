//! One Service: its addresses, its ports and what they speak, and the routes whose root it is.

use weft_policy::{
    ir::{ServiceIr, ServicePortIr},
    names::ServiceKey,
    plan::{AppProtocol, Balance},
};

use super::{Choice, Findings, choice, routes};
use crate::{
    core::service::{Service, ServicePort},
    store::ObjectStore,
};

/// Annotation: how endpoints are chosen.
const BALANCE_ANNOTATION: &str = "weft.dev/load-balancing";

pub(super) fn service(store: &ObjectStore, key: &ServiceKey, findings: &mut Findings) -> Option<ServiceIr> {
    let Some(service) = store.service(key) else {
        routes::without_root(store, key, findings);
        return None;
    };
    let ports = service.ports.iter().map(|port| ServicePortIr {
        port: port.port,
        name: port.name.clone(),
        protocol: protocol(port),
    });
    Some(ServiceIr {
        key: key.clone(),
        addresses: service.addresses.clone(),
        headless: service.headless,
        balance: balance(service, findings),
        ports: ports.collect(),
        routes: routes::of_root(store, service, findings),
    })
}

fn balance(service: &Service, findings: &mut Findings) -> Balance {
    match choice(&service.meta.annotations, BALANCE_ANNOTATION, &["least-request", "round-robin"]) {
        Choice::Known("round-robin") => Balance::RoundRobin,
        Choice::Absent | Choice::Known(_) => Balance::LeastRequest,
        Choice::Unknown(value) => {
            let message = format!("{value:?} is neither least-request nor round-robin; least-request is used");
            let field = format!("metadata.annotations.{BALANCE_ANNOTATION}");
            findings.warning(&service.key().object(), "UnknownLoadBalancing", field, message);
            Balance::LeastRequest
        }
    }
}

/// What a port speaks: `appProtocol` if it is one that is known, else the port's name up to its first dash (or with digits
/// behind, as in `mysql8`), else the client's first bytes decide. HTTP/2 without TLS is passed through as bytes.
fn protocol(port: &ServicePort) -> AppProtocol {
    let app_protocol = port.app_protocol.as_deref().map(str::to_ascii_lowercase);
    match app_protocol.as_deref() {
        Some("http" | "kubernetes.io/ws") => return AppProtocol::Http,
        Some("kubernetes.io/h2c" | "kubernetes.io/wss") => return AppProtocol::Tcp,
        Some(other) if is_opaque(other) => return AppProtocol::Tcp,
        _ => {}
    }
    let prefix = port.name.split('-').next().unwrap_or_default();
    match prefix {
        "http" => AppProtocol::Http,
        prefix if is_opaque(prefix) || is_opaque(prefix.trim_end_matches(|c: char| c.is_ascii_digit())) => {
            AppProtocol::Tcp
        }
        _ => AppProtocol::Detect,
    }
}

fn is_opaque(name: &str) -> bool {
    const OPAQUE: [&str; 24] = [
        "amqp",
        "amqps",
        "cassandra",
        "dns",
        "ftp",
        "grpc",
        "grpcs",
        "h2c",
        "http2",
        "https",
        "imap",
        "kafka",
        "ldap",
        "memcached",
        "mongo",
        "mongodb",
        "mqtt",
        "mysql",
        "nats",
        "postgres",
        "postgresql",
        "redis",
        "tcp",
        "tls",
    ];
    OPAQUE.contains(&name) || ["smtp", "ssh"].contains(&name)
}
