//! What it takes to bring policy into force: everything at the start of an agent, and one changed TrafficSplit. From parsed objects to
//! a snapshot. A Kubernetes namespace has at most 100 Services; a tenth of all are roots of a split, each has two pods.
#![allow(missing_docs, reason = "a program, not a library")]

use std::hint::black_box;

use serde_json::{Value, json};
use weft_crds::{
    lower::lower,
    parse::parse,
    store::{ObjectEvent, ObjectStore},
};
use weft_policy::compile::Compiler;

#[path = "../../policy/benches/counted.rs"]
mod counted;

use counted::{Case, Work};

/// One Service in so many is the root of a TrafficSplit.
const SPLIT_EVERY: usize = 10;
const SERVICES_PER_NAMESPACE: usize = 100;

fn namespace_of(service: usize) -> String {
    format!("shop{}", service / SERVICES_PER_NAMESPACE)
}

fn object(document: &Value) -> ObjectEvent {
    let mut parsed = parse(document);
    assert!(parsed.errors.is_empty(), "{:?}", parsed.errors);
    ObjectEvent::Apply(parsed.objects.pop().expect("one object").0)
}

fn service(number: usize) -> ObjectEvent {
    let ip = format!("10.{}.{}.{}", 96 + number / 65_536, number / 256 % 256, number % 256);
    object(
        &json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": namespace_of(number), "name": format!("s{number}")},
        "spec": {"selector": {"app": format!("s{number}")}, "clusterIP": ip, "clusterIPs": [ip],
                 "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}]}}),
    )
}

fn pod(service: usize, replica: usize) -> ObjectEvent {
    let ip = format!("10.{}.{}.{}", 2 * (service / 65_536) + replica, service / 256 % 256, service % 256);
    object(&json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace_of(service), "name": format!("s{service}-{replica}"), "uid": format!("u{service}-{replica}"),
                     "labels": {"app": format!("s{service}")}},
        "spec": {"nodeName": "n1", "containers": [{"name": "app"}]},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": [{"type": "Ready", "status": "True"}]}}))
}

fn split(root: usize, weight: u32) -> ObjectEvent {
    object(&json!({"apiVersion": "split.smi-spec.io/v1alpha4", "kind": "TrafficSplit",
        "metadata": {"namespace": namespace_of(root), "name": format!("split{root}"), "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"service": format!("s{root}"), "backends": [
            {"service": format!("s{}", root + 1), "weight": weight}, {"service": format!("s{}", root + 2), "weight": 10}]}}))
}

fn store(services: usize) -> ObjectStore {
    let mut store = ObjectStore::default();
    store.apply((0..services).map(service));
    store.apply((0..services).flat_map(|number| [pod(number, 0), pod(number, 1)]));
    store.apply((0..services).step_by(SPLIT_EVERY).map(|root| split(root, 90)));
    store
}

fn full(services: usize) -> Work {
    let store = store(services);
    Box::new(move || {
        let compiled = Compiler::default().apply(lower(&store, &store.all()));
        assert_eq!(black_box(compiled).snapshot.services.len(), services);
    })
}

fn one_change(services: usize) -> Work {
    let mut store = store(services);
    let mut compiler = Compiler::default();
    compiler.apply(lower(&store, &store.all()));
    let versions = [split(0, 80), split(0, 90)];
    let mut round = 0;
    Box::new(move || {
        let dirty = store.apply([versions[round % 2].clone()]);
        assert!(!dirty.is_empty());
        round += 1;
        black_box(compiler.apply(lower(&store, &dirty)));
    })
}

fn main() {
    let mut cases = Vec::new();
    for services in [100, 1_000, 10_000] {
        cases.push(Case {
            name: format!("compile {services} services"),
            rounds: (5_000 / services as u64).max(1),
            prepare: Box::new(move || full(services)),
        });
        cases.push(Case {
            name: format!("compile one change of {services} services"),
            rounds: 100,
            prepare: Box::new(move || one_change(services)),
        });
    }
    counted::main(&cases);
}
