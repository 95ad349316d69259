use std::time::Duration;

use weft_policy::{
    backend_policy::HashKey,
    rule::{AbortHow, Fault},
};

use super::*;

fn object(kind: &str, name: &str, created: &str, spec: Value) -> Value {
    json!({"apiVersion": "weft.dev/v1alpha1", "kind": kind,
           "metadata": {"name": name, "namespace": "shop", "creationTimestamp": created}, "spec": spec})
}

fn policy(name: &str, created: &str, port: Option<u16>, balance: &str) -> Value {
    let mut target = json!({"kind": "Service", "name": "web"});
    if let Some(port) = port {
        target["port"] = json!(port);
    }
    object("BackendPolicy", name, created, json!({"targetRefs": [target], "loadBalancing": {"type": balance}}))
}

fn fault(name: &str, created: &str, status: u16) -> Value {
    let spec =
        json!({"targetRefs": [{"kind": "Service", "name": "web"}], "abort": {"httpStatus": status, "percent": 10}});
    object("FaultInjection", name, created, spec)
}

const OLD: &str = "2026-01-01T00:00:00Z";
const NEW: &str = "2026-01-02T00:00:00Z";

fn balances(documents: &[Value]) -> (Balance, Balance) {
    let ir = lowered(documents);
    let of = |port| endpoints_of(&ir, "web", port).policy.balance;
    (of(80), of(81))
}

fn two_ports() -> Value {
    with(web("web", "10.96.0.1"), "spec.ports", json!([{"port": 80, "name": "http"}, {"port": 81, "name": "admin"}]))
}

#[test]
fn the_policy_that_names_the_port_counts_then_the_oldest() {
    let all = policy("all", OLD, None, "Random");
    let admin = policy("admin", NEW, Some(81), "RoundRobin");
    assert_eq!(balances(&[two_ports()]), (Balance::LeastRequest, Balance::LeastRequest));
    assert_eq!(balances(&[two_ports(), all.clone()]), (Balance::Random, Balance::Random));
    assert_eq!(balances(&[two_ports(), all.clone(), admin.clone()]), (Balance::Random, Balance::RoundRobin));
    let newer = policy("a-newer", NEW, None, "Maglev");
    let ir = lowered(&[two_ports(), newer.clone(), all.clone(), admin]);
    assert_eq!(endpoints_of(&ir, "web", 80).policy.balance, Balance::Random);
    let found = findings(&ir);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((found[0].0.as_str(), found[0].1), ("BackendPolicy shop/a-newer", "Conflicted"));
    assert_eq!(balances(&[two_ports(), newer]), (Balance::Maglev, Balance::Maglev));
}

#[test]
fn a_policy_takes_the_place_of_the_annotation() {
    let annotated = with(two_ports(), "metadata.annotations", json!({"weft.dev/load-balancing": "round-robin"}));
    let admin = policy("admin", NEW, Some(81), "Random");
    assert_eq!(balances(&[annotated, admin]), (Balance::RoundRobin, Balance::Random));
}

#[test]
fn what_is_not_there_to_be_a_target_is_told() {
    let lone = lowered(&[policy("all", OLD, None, "Random"), fault("f", OLD, 500)]);
    let codes: Vec<_> = findings(&lone).into_iter().map(|(object, code, _)| (object, code)).collect();
    assert_eq!(
        codes,
        [
            ("BackendPolicy shop/all".to_owned(), "TargetNotFound"),
            ("FaultInjection shop/f".to_owned(), "TargetNotFound")
        ]
    );
    let no_port = lowered(&[web("web", "10.96.0.1"), policy("all", OLD, Some(99), "Random")]);
    assert_eq!(findings(&no_port)[0].1, "TargetNotFound");
}

#[test]
fn a_policy_says_by_what_is_hashed_and_how_slowly_endpoints_start() {
    let of = |balancing: Value| {
        let spec = json!({"targetRefs": [{"group": "", "kind": "Service", "name": "web"}], "loadBalancing": balancing});
        let ir = lowered(&[web("web", "10.96.0.1"), object("BackendPolicy", "p", OLD, spec)]);
        std::sync::Arc::clone(&endpoints_of(&ir, "web", 80).policy)
    };
    let keys = json!([{"header": "X-User"}, {"cookie": "sid"}, {"query": "u"}, {"sourceAddress": true}]);
    let hashed = of(json!({"type": "RingHash", "hashOn": keys}));
    let expected = [
        HashKey::Header("x-user".parse().unwrap()),
        HashKey::Cookie("sid".into()),
        HashKey::Query("u".into()),
        HashKey::SourceAddress,
    ];
    assert_eq!((hashed.balance, &hashed.hash_on[..]), (Balance::RingHash, &expected[..]));
    assert_eq!(hashed.origin.as_ref().unwrap().to_string(), "BackendPolicy shop/p");
    assert_eq!(of(json!({"slowStart": "1m30s"})).slow_start, Some(Duration::from_secs(90)));
}

fn faults(ir: &MeshIr) -> Vec<Option<AbortHow>> {
    let how = |fault: &std::sync::Arc<Fault>| fault.abort.map(|abort| abort.how);
    let of_rule = |route: &weft_policy::ir::RouteIr| {
        route.rule.filters.as_ref().and_then(|filters| filters.fault.as_ref().and_then(how))
    };
    service_of(ir, "web").routes.iter().map(of_rule).collect()
}

#[test]
fn a_fault_is_for_all_rules_of_its_service_and_for_what_no_rule_takes() {
    let alone = lowered(&[web("web", "10.96.0.1"), fault("f", OLD, 503)]);
    assert_eq!(faults(&alone), [Some(AbortHow::Http(503))]);
    let routed = lowered(&[
        web("web", "10.96.0.1"),
        web("v1", "10.96.0.2"),
        split("s", &[("v1", 1)], &[]),
        fault("f", OLD, 503),
        fault("g", NEW, 404),
    ]);
    assert_eq!(faults(&routed), [Some(AbortHow::Http(503))]);
    let found = findings(&routed);
    assert_eq!((found[0].0.as_str(), found[0].1), ("FaultInjection shop/g", "Conflicted"), "{found:?}");
    assert_eq!(faults(&lowered(&[web("web", "10.96.0.1")])), []);
}
