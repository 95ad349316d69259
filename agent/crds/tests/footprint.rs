//! What the objects of a large cluster take in memory, from what the API server says to plans: counted in bytes that are allocated, so
//! the figure is the same on every machine.
#![allow(missing_docs, reason = "a test")]
#![allow(clippy::print_stdout, reason = "figures are printed for people")]

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weft_crds::{
    lower::lower,
    object::Kind,
    parse::parse_as,
    store::{ObjectEvent, ObjectStore},
};
use weft_policy::{compile::Compiler, names::ServiceKey};

/// A cluster as SIG Scalability tests them: 10,000 Services.
const SERVICES: usize = 10_000;
/// And 100,000 endpoints.
const ENDPOINTS_PER_SERVICE: usize = 10;
/// What they may take: an agent may have 150 MB in all, with its programs, its buffers, and what the allocator keeps between its blocks.
const HEAP_BYTES_MAX: i64 = 80 << 20;
/// Half of all changes of one split take less; in fact about a hundredth of it.
const CHANGE_MAX: Duration = Duration::from_millis(1);
/// Changes whose time is taken.
const CHANGES: usize = 101;
const NODES: usize = 1_000;
const SERVICES_PER_NAMESPACE: usize = 100;

fn uid(space: u32, number: usize) -> String {
    format!("{space:08x}-1c5e-4d6f-9a77-{number:012x}")
}

fn namespace(service: usize) -> String {
    format!("tenant-{}", service / SERVICES_PER_NAMESPACE)
}

fn service(number: usize) -> Value {
    let name = format!("service-{number}");
    let ip = format!("10.{}.{}.{}", 96 + number / 65_536, number / 256 % 256, number % 256);
    json!({"metadata": {"name": name, "namespace": namespace(number), "uid": uid(1, number),
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"app": name, "app.kubernetes.io/name": name, "app.kubernetes.io/managed-by": "Helm"}},
        "spec": {"selector": {"app": name}, "clusterIP": ip, "clusterIPs": [ip], "type": "ClusterIP", "ipFamilies": ["IPv4"],
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}]}})
}

fn slice(number: usize) -> Value {
    let name = format!("service-{number}");
    let endpoints: Vec<Value> = (0..ENDPOINTS_PER_SERVICE)
        .map(|replica| {
            let at = number * ENDPOINTS_PER_SERVICE + replica;
            json!({"addresses": [format!("10.{}.{}.{}", 128 + at / 65_536, at / 256 % 256, at % 256)],
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "nodeName": format!("node-{}", at % NODES), "zone": "zone-a",
                "targetRef": {"kind": "Pod", "namespace": namespace(number), "name": format!("{name}-7d9c6b5f48-{at:05x}"),
                    "uid": uid(2, at)}})
        })
        .collect();
    json!({"metadata": {"name": format!("{name}-x7k2p"), "namespace": namespace(number), "uid": uid(3, number),
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2026-01-01T00:00:00Z"},
            "labels": {"kubernetes.io/service-name": name, "app": name,
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"}},
        "addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]})
}

fn mib(bytes: i64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn stage<T>(name: &str, total: &mut i64, work: impl FnOnce() -> T) -> T {
    let mut result = None;
    let counted = allocation_counter::measure(|| result = Some(work()));
    *total += counted.bytes_current;
    println!("{name}: {:+.1} MiB, now {:.1} MiB", mib(counted.bytes_current), mib(*total));
    result.expect("a result")
}

/// Half of all changes of a split take at most this, from the parsed object to the snapshot.
fn one_change(store: &mut ObjectStore, compiler: &mut Compiler) -> Duration {
    let mut took: Vec<Duration> = (0..CHANGES)
        .map(|weight| {
            let split = json!({"apiVersion": "split.smi-spec.io/v1alpha4", "kind": "TrafficSplit",
                "metadata": {"name": "split", "namespace": namespace(0)},
                "spec": {"service": "service-0", "backends": [
                    {"service": "service-1", "weight": weight}, {"service": "service-2", "weight": 100}]}});
            let split = ObjectEvent::Apply(parse_as(Kind::TrafficSplit, "v1alpha4", &split).expect("a split"));
            let begin = Instant::now();
            let dirty = store.apply([split]);
            let compiled = compiler.apply(lower(store, &dirty));
            drop(compiled);
            begin.elapsed()
        })
        .collect();
    took.sort_unstable();
    took[took.len() / 2]
}

#[test]
fn ten_thousand_services_and_a_hundred_thousand_endpoints_stay_small() {
    let mut total = 0;
    let read = |kind: Kind, of: fn(usize) -> Value| -> Vec<ObjectEvent> {
        let object = |number| parse_as(kind, "v1", &of(number)).expect("an object");
        (0..SERVICES).map(|number| ObjectEvent::Apply(object(number))).collect()
    };
    let services = stage("Services", &mut total, || read(Kind::Service, service));
    let slices = stage("EndpointSlices", &mut total, || read(Kind::EndpointSlice, slice));
    let mut store = ObjectStore::default();
    let dirty = stage("store", &mut total, || store.apply(services.into_iter().chain(slices)));
    let delta = stage("lowering", &mut total, || lower(&store, &dirty));
    stage("dirty", &mut total, || drop(dirty));
    let mut compiler = Compiler::default();
    let compiled = stage("compilation", &mut total, || compiler.apply(delta));
    stage("what it says", &mut total, || drop(compiled));
    assert_eq!(compiler.snapshot().services.len(), SERVICES);
    let took = one_change(&mut store, &mut compiler);
    println!("one changed TrafficSplit among them takes {took:?}");
    assert!(took < CHANGE_MAX, "{took:?}");
    let plan = &compiler.snapshot().services[&ServiceKey::new(&namespace(0), "service-0")][0];
    assert_eq!(plan.connection.backends[0].weight, CHANGES as u64 - 1, "the last change is in force");
    assert!(total < HEAP_BYTES_MAX, "{:.1} MiB", mib(total));
}
