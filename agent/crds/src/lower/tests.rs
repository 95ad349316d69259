#![allow(clippy::needless_pass_by_value, reason = "document literals are passed as they are written")]

use std::net::IpAddr;

use serde_json::{Value, json};
use weft_policy::{
    backend_policy::Balance,
    endpoints::EndpointSet,
    ir::{FailMode, RouteIr, ServiceIr, WorkloadIr, WorkloadState},
    names::{ServiceKey, WorkloadId},
    plan::AppProtocol,
};

use super::*;
use crate::{parse::parse, store::ObjectEvent};

mod access;
mod endpoints;
mod gateway;
mod peers;
mod policies;
mod routes;
mod workloads;

fn lowered(documents: &[Value]) -> MeshIr {
    let mut store = ObjectStore::default();
    let parsed = parse(&json!({"apiVersion": "v1", "kind": "List", "items": documents}));
    assert_eq!(parsed.errors, []);
    store.apply(parsed.objects.into_iter().map(|(object, _)| ObjectEvent::Apply(object)));
    lower_all(&store)
}

fn key(name: &str) -> ServiceKey {
    ServiceKey::new("shop", name)
}

fn service_of<'a>(ir: &'a MeshIr, name: &str) -> &'a ServiceIr {
    &ir.services[&key(name)]
}

fn endpoints_of<'a>(ir: &'a MeshIr, name: &str, port: u16) -> &'a EndpointSet {
    &ir.endpoints[&(key(name), port)]
}

fn addresses(endpoints: &[weft_policy::endpoints::Endpoint]) -> Vec<String> {
    endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect()
}

fn workload_of<'a>(ir: &'a MeshIr, name: &str) -> &'a WorkloadIr {
    ir.workloads.values().find(|workload| &*workload.name == name).unwrap()
}

fn findings(ir: &MeshIr) -> Vec<(String, &'static str, String)> {
    let all = ir.diagnostics.values().chain(ir.workload_diagnostics.values()).chain(ir.namespace_diagnostics.values());
    let all = all.chain(ir.peer_diagnostics.values());
    all.flat_map(|found| found.iter()).map(|one| (one.object.to_string(), one.code, one.field.clone())).collect()
}

fn service(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"}, "spec": spec})
}

fn web(name: &str, ip: &str) -> Value {
    service(
        name,
        json!({"clusterIP": ip, "selector": {"app": name}, "ports": [{"port": 80, "name": "http", "targetPort": 8080}]}),
    )
}

fn pod(name: &str, app: &str, ips: &[&str]) -> Value {
    let ips: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop", "labels": {"app": app}},
           "spec": {"nodeName": "n1"}, "status": {"podIPs": ips}})
}

fn with(mut document: Value, pointer: &str, value: Value) -> Value {
    let mut at = &mut document;
    for part in pointer.split('.') {
        at = match part.parse::<usize>() {
            Ok(index) => &mut at[index],
            Err(_) => &mut at[part],
        };
    }
    *at = value;
    document
}

fn split(name: &str, backends: &[(&str, u64)], groups: &[&str]) -> Value {
    let backends: Vec<Value> =
        backends.iter().map(|(service, weight)| json!({"service": service, "weight": weight})).collect();
    let matches: Vec<Value> = groups.iter().map(|group| json!({"kind": "HTTPRouteGroup", "name": group})).collect();
    json!({"apiVersion": "split.smi-spec.io/v1alpha4", "kind": "TrafficSplit", "metadata": {"name": name, "namespace": "shop"},
           "spec": {"service": "web", "backends": backends, "matches": matches}})
}

fn group(name: &str, matches: Value) -> Value {
    json!({"apiVersion": "specs.smi-spec.io/v1alpha4", "kind": "HTTPRouteGroup", "metadata": {"name": name, "namespace": "shop"},
           "spec": {"matches": matches}})
}

fn shop() -> Vec<Value> {
    vec![web("web", "10.96.0.1"), web("web-v1", "10.96.0.2"), web("web-v2", "10.96.0.3")]
}

fn shop_and(documents: impl IntoIterator<Item = Value>) -> MeshIr {
    lowered(&shop().into_iter().chain(documents).collect::<Vec<_>>())
}

fn names(routes: &[RouteIr]) -> Vec<&str> {
    routes.iter().map(|route| &*route.rule.origin.name).collect()
}

#[test]
fn what_a_port_speaks_is_said_by_its_app_protocol_and_else_by_its_name() {
    for (port, expected) in [
        (json!({"port": 80}), AppProtocol::Detect),
        (json!({"port": 80, "name": "http"}), AppProtocol::Http),
        (json!({"port": 80, "name": "http-metrics"}), AppProtocol::Http),
        (json!({"port": 80, "name": "httpx"}), AppProtocol::Detect),
        (json!({"port": 80, "name": "http2"}), AppProtocol::Http2),
        (json!({"port": 80, "name": "https"}), AppProtocol::Tls),
        (json!({"port": 80, "name": "grpc-web"}), AppProtocol::Http),
        (json!({"port": 80, "name": "grpc-web-ui"}), AppProtocol::Http),
        (json!({"port": 80, "name": "grpc-website"}), AppProtocol::Http2),
        (json!({"port": 80, "name": "grpc"}), AppProtocol::Http2),
        (json!({"port": 80, "name": "grpcs"}), AppProtocol::Tls),
        (json!({"port": 80, "name": "h2c-api"}), AppProtocol::Http2),
        (json!({"port": 80, "name": "http8"}), AppProtocol::Detect),
        (json!({"port": 80, "name": "tcp-x"}), AppProtocol::Tcp),
        (json!({"port": 80, "name": "tls"}), AppProtocol::Tls),
        (json!({"port": 80, "name": "mysql"}), AppProtocol::Tcp),
        (json!({"port": 80, "name": "mysql8"}), AppProtocol::Tcp),
        (json!({"port": 80, "name": "web"}), AppProtocol::Detect),
        (json!({"port": 80, "name": "tcp", "appProtocol": "http"}), AppProtocol::Http),
        (json!({"port": 80, "name": "http", "appProtocol": "tcp"}), AppProtocol::Tcp),
        (json!({"port": 80, "name": "http", "appProtocol": "kubernetes.io/h2c"}), AppProtocol::Http2),
        (json!({"port": 80, "name": "http", "appProtocol": "kubernetes.io/wss"}), AppProtocol::Tls),
        (json!({"port": 80, "name": "http", "appProtocol": "Redis"}), AppProtocol::Tcp),
        (json!({"port": 80, "appProtocol": "kubernetes.io/ws"}), AppProtocol::Http1),
        (json!({"port": 80, "name": "http", "appProtocol": "example.com/own"}), AppProtocol::Http),
        (json!({"port": 80, "appProtocol": "HTTP"}), AppProtocol::Http),
    ] {
        let ir = lowered(&[service("web", json!({"ports": [port]}))]);
        assert_eq!(service_of(&ir, "web").ports[0].protocol, expected, "{port}");
        assert_eq!(endpoints_of(&ir, "web", 80).protocol, expected, "{port}");
    }
    let udp = lowered(&[service("web", json!({"ports": [{"port": 53, "protocol": "UDP"}]}))]);
    assert!(service_of(&udp, "web").ports.is_empty() && udp.endpoints.is_empty());
}

#[test]
fn addresses_of_a_service_are_all_that_stand_for_it() {
    for (spec, headless, expected) in [
        (json!({"clusterIP": "10.96.0.1"}), false, vec!["10.96.0.1"]),
        (
            json!({"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"]}),
            false,
            vec!["10.96.0.1", "fd00::1"],
        ),
        (json!({"clusterIP": "None"}), true, vec![]),
        (json!({"clusterIP": "None", "clusterIPs": ["None"]}), true, vec![]),
        (json!({"clusterIP": "10.96.0.1", "externalIPs": ["192.0.2.1"]}), false, vec!["10.96.0.1", "192.0.2.1"]),
        (json!({"type": "ExternalName", "externalName": "example.com", "clusterIP": ""}), false, vec![]),
        (json!({}), false, vec![]),
    ] {
        let ir = lowered(&[service("web", spec.clone())]);
        let found = service_of(&ir, "web");
        assert_eq!(found.headless, headless, "{spec}");
        assert_eq!(found.addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>(), expected, "{spec}");
    }
    let balancer = with(
        web("web", "10.96.0.1"),
        "status",
        json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.9"}, {"hostname": "x"}]}}),
    );
    assert_eq!(service_of(&lowered(&[balancer]), "web").addresses.len(), 2);
}

#[test]
fn load_balancing_is_chosen_by_annotation() {
    let chosen = |ir: &MeshIr| endpoints_of(ir, "web", 80).policy.balance;
    for (value, expected, warnings) in [
        (json!("round-robin"), Balance::RoundRobin, 0),
        (json!("least-request"), Balance::LeastRequest, 0),
        (json!("random"), Balance::Random, 0),
        (json!("maglev"), Balance::Maglev, 0),
        (json!("fastest"), Balance::LeastRequest, 1),
    ] {
        let ir = lowered(&[with(
            web("web", "10.96.0.1"),
            "metadata.annotations",
            json!({"weft.dev/load-balancing": value}),
        )]);
        assert_eq!((chosen(&ir), findings(&ir).len()), (expected, warnings), "{value}");
    }
    assert_eq!(chosen(&lowered(&[web("web", "10.96.0.1")])), Balance::LeastRequest);
}
