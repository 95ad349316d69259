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
