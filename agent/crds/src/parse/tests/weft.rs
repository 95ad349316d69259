use super::*;
use crate::{
    limits::{NODE_SHARD_PODS_MAX, NODE_SHARDS_MAX},
    weft::node_workloads::{NodeWorkloads, object_name, shard_of},
};

fn workloads(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "weft.dev/v1alpha1", "kind": "NodeWorkloads", "metadata": {"name": name}, "spec": spec})
}

fn pod(uid: &str) -> Value {
    json!({"uid": uid, "namespace": "shop", "name": "web-0", "serviceAccount": "web", "ips": ["10.0.0.2", "fd00::2"]})
}

fn with(field: &str, value: Value) -> Value {
    let mut pod = pod("u1");
    pod[field] = value;
    workloads("n1-0", json!({"node": "n1", "pods": [pod]}))
}

#[test]
fn node_workloads_are_read_and_fields_of_newer_agents_are_passed_over() {
    let mut one = pod("u1");
    one["ips"] = json!(["fd00::2", "10.0.0.2", "fd00::2"]);
    one["alpn"] = json!(["weft-h3"]);
    let mut document =
        workloads("node-1.example-12", json!({"node": "node-1.example", "pods": [one, pod("u2")], "zone": "a"}));
    document["metadata"]["namespace"] = json!("ignored");
    let Object::NodeWorkloads(found) = object(&document) else { panic!("{document}") };
    let NodeWorkloads { meta, node, pods } = &*found;
    assert_eq!((&*meta.namespace, &*meta.name, &**node), ("", "node-1.example-12", "node-1.example"));
    assert_eq!(pods.len(), 2);
    assert_eq!(*pods[0].ips, ["10.0.0.2".parse::<std::net::IpAddr>().unwrap(), "fd00::2".parse().unwrap()]);
    assert_eq!((&*pods[0].id.0, &*pods[0].name, pods[0].account.to_string()), ("u1", "web-0", "shop/web".to_owned()));
    let Object::NodeWorkloads(empty) = object(&workloads("n1-0", json!({"node": "n1"}))) else { panic!("empty") };
    assert_eq!(empty.pods, []);
}

#[test]
fn what_is_wrong_with_node_workloads_is_named_by_its_field() {
    let many: Vec<Value> = (0..=NODE_SHARD_PODS_MAX).map(|index| pod(&format!("u{index}"))).collect();
    let of = |name: &str, node: &str| workloads(name, json!({"node": node, "pods": [pod("u1")]}));
    for (document, field) in [
        (of("n1", "n1"), "metadata.name"),
        (of("n1-", "n1"), "metadata.name"),
        (of("n2-0", "n1"), "metadata.name"),
        (of("n1-0-0", "n1"), "metadata.name"),
        (of("n1-00", "n1"), "metadata.name"),
        (of(&format!("n1-{NODE_SHARDS_MAX}"), "n1"), "metadata.name"),
        (of("n1-0", ""), "spec.node"),
        (of("n1-0", "N1"), "spec.node"),
        (workloads("n1-0", json!({"pods": []})), "spec"),
        (workloads("n1-0", json!({"node": "n1", "pods": many})), "spec.pods"),
        (workloads("n1-0", json!({"node": "n1", "pods": [pod("u1"), pod("u2"), pod("u1")]})), "spec.pods[2].uid"),
        (with("uid", json!("")), "spec.pods[0].uid"),
        (with("uid", json!("u".repeat(400))), "spec.pods[0].uid"),
        (with("uid", json!(1)), "spec.pods[0].uid"),
        (with("namespace", json!("a.b")), "spec.pods[0].namespace"),
        (with("name", json!("")), "spec.pods[0].name"),
        (with("serviceAccount", json!("a/b")), "spec.pods[0].serviceAccount"),
        (with("ips", json!([])), "spec.pods[0].ips"),
        (with("ips", json!((0..9).map(|at| format!("10.0.0.{at}")).collect::<Vec<_>>())), "spec.pods[0].ips"),
        (with("ips", json!(["10.0.0.2", "10.0.0.256"])), "spec.pods[0].ips[1]"),
        (with("ips", Value::Null), "spec.pods[0].ips"),
    ] {
        assert_eq!(error(&document).1, field, "{document}");
    }
    for ip in [
        "127.0.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "169.254.1.1",
        "::1",
        "::",
        "fe80::1",
        "ff02::1",
        "::ffff:10.0.0.1",
    ] {
        let (_, field, message) = error(&with("ips", json!([ip])));
        assert_eq!(field, "spec.pods[0].ips[0]", "{ip}");
        assert!(message.contains("no address that a pod"), "{message}");
    }
}

#[test]
fn each_shard_of_a_node_has_one_name_and_no_name_is_two_nodes() {
    assert_eq!(shard_of(&object_name("n1", 7), "n1"), Some(7));
    for (name, node) in
        [("n1-7", "n"), ("a-1-0", "a"), ("n1-+7", "n1"), ("n1-07", "n1"), ("n1-65536", "n1"), ("n1", "n1")]
    {
        assert_eq!(shard_of(name, node), None, "{name} of {node}");
    }
    assert_eq!(shard_of("a-1-0", "a-1"), Some(0));
}

fn policy(spec: Value) -> Value {
    json!({"apiVersion": "weft.dev/v1alpha1", "kind": "BackendPolicy", "metadata": {"name": "p", "namespace": "shop"}, "spec": spec})
}

fn balancing(balancing: Value) -> Value {
    policy(json!({"targetRefs": [{"kind": "Service", "name": "web"}], "loadBalancing": balancing}))
}

#[test]
fn what_is_wrong_with_a_backend_policy_is_named_by_its_field() {
    let target = |target: Value| policy(json!({"targetRefs": [target]}));
    let many: Vec<Value> = (0..17).map(|n| json!({"kind": "Service", "name": format!("w{n}")})).collect();
    let hash_on = |key: Value| balancing(json!({"type": "Maglev", "hashOn": [key]}));
    for (document, field) in [
        (policy(json!({})), "spec"),
        (policy(json!({"targetRefs": []})), "spec.targetRefs"),
        (policy(json!({"targetRefs": many})), "spec.targetRefs"),
        (policy(json!({"targetRefs": [{"kind": "Service", "name": "web"}], "retries": 3})), "spec.retries"),
        (target(json!({"kind": "Pod", "name": "web"})), "spec.targetRefs[0].kind"),
        (target(json!({"kind": "Service", "name": "a.b"})), "spec.targetRefs[0].name"),
        (target(json!({"kind": "Service", "name": "web", "group": "apps"})), "spec.targetRefs[0].group"),
        (target(json!({"kind": "Service", "name": "web", "port": 0})), "spec.targetRefs[0].port"),
        (target(json!({"kind": "Service", "name": "web", "namespace": "x"})), "spec.targetRefs[0].namespace"),
        (
            policy(json!({"targetRefs": [{"kind": "Service", "name": "w"}, {"kind": "Service", "name": "w"}]})),
            "spec.targetRefs[1]",
        ),
        (balancing(json!({"type": "Fastest"})), "spec.loadBalancing.type"),
        (balancing(json!({"type": "Random", "hashOn": [{"header": "x"}]})), "spec.loadBalancing.hashOn"),
        (balancing(json!({"type": "Maglev", "slowStart": "10s"})), "spec.loadBalancing.slowStart"),
        (balancing(json!({"slowStart": "0s"})), "spec.loadBalancing.slowStart"),
        (balancing(json!({"slowStart": "2h"})), "spec.loadBalancing.slowStart"),
        (balancing(json!({"slowStart": "10"})), "spec.loadBalancing.slowStart"),
        (balancing(json!({"slowStart": 10})), "spec.loadBalancing.slowStart"),
        (hash_on(json!({})), "spec.loadBalancing.hashOn[0]"),
        (hash_on(json!({"header": "a", "query": "b"})), "spec.loadBalancing.hashOn[0]"),
        (hash_on(json!({"sourceAddress": false})), "spec.loadBalancing.hashOn[0]"),
        (hash_on(json!({"header": "a b"})), "spec.loadBalancing.hashOn[0].header"),
        (hash_on(json!({"cookie": "a=b"})), "spec.loadBalancing.hashOn[0].cookie"),
        (hash_on(json!({"query": ""})), "spec.loadBalancing.hashOn[0].query"),
    ] {
        assert_eq!(error(&document).1, field, "{document}");
    }
}

#[test]
fn what_is_wrong_with_a_fault_injection_is_named_by_its_field() {
    let fault = |spec: Value| {
        let mut document = policy(spec);
        document["kind"] = json!("FaultInjection");
        document
    };
    let abort = |abort: Value| fault(json!({"abort": abort}));
    let delay = |delay: Value| fault(json!({"delay": delay}));
    for (document, field) in [
        (fault(json!({})), "spec"),
        (fault(json!({"targetRefs": [{"kind": "Service", "name": "web"}]})), "spec"),
        (abort(json!({})), "spec.abort"),
        (abort(json!({"reset": false})), "spec.abort"),
        (abort(json!({"httpStatus": 500, "grpcStatus": 1})), "spec.abort"),
        (abort(json!({"httpStatus": 99})), "spec.abort.httpStatus"),
        (abort(json!({"httpStatus": -1})), "spec.abort.httpStatus"),
        (abort(json!({"grpcStatus": 0})), "spec.abort.grpcStatus"),
        (abort(json!({"grpcStatus": 17})), "spec.abort.grpcStatus"),
        (abort(json!({"reset": true, "percent": 101})), "spec.abort.percent"),
        (abort(json!({"reset": true, "percent": -1})), "spec.abort.percent"),
        (abort(json!({"reset": true, "percent": 0.5})), "spec.abort.percent"),
        (delay(json!({"fixed": "0s"})), "spec.delay.fixed"),
        (delay(json!({"fixed": "1d"})), "spec.delay.fixed"),
        (delay(json!({"fixed": "1s", "jitter": "-1s"})), "spec.delay.jitter"),
        (delay(json!({"fixed": "1s", "percent": 1_000_000_000_000_i64})), "spec.delay.percent"),
        (
            fault(json!({"delay": {"fixed": "1s"}, "sources": [{"serviceAccount": "A"}]})),
            "spec.sources[0].serviceAccount",
        ),
        (
            fault(json!({"delay": {"fixed": "1s"}, "sources": [{"serviceAccount": "a", "namespace": "b.c"}]})),
            "spec.sources[0].namespace",
        ),
        (
            fault(json!({"delay": {"fixed": "1s"}, "targetRefs": [{"kind": "Service", "name": "web", "port": 80}]})),
            "spec.targetRefs[0].port",
        ),
    ] {
        assert_eq!(error(&document).1, field, "{document}");
    }
    let Object::FaultInjection(found) = object(&delay(json!({"fixed": "1s500ms", "jitter": "1s"}))) else {
        panic!("fault")
    };
    let delay = found.fault.delay.unwrap();
    assert_eq!((delay.fixed.as_millis(), delay.jitter.as_millis(), delay.share.takes(u32::MAX)), (1500, 1000, true));
}
