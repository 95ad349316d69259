use weft_policy::names::ServiceAccountKey;

use super::*;

fn published(node: &str, shard: u8, pods: &[(&str, &str, &str)]) -> Value {
    let pods: Vec<Value> = pods
        .iter()
        .map(|(uid, account, ip)| {
            json!({"uid": uid, "namespace": "shop", "name": format!("pod-{uid}"), "serviceAccount": account, "ips": [ip]})
        })
        .collect();
    json!({"apiVersion": "weft.dev/v1alpha1", "kind": "NodeWorkloads", "metadata": {"name": format!("{node}-{shard}")},
           "spec": {"node": node, "pods": pods}})
}

fn aged(document: Value, day: u8) -> Value {
    with(document, "metadata.creationTimestamp", json!(format!("2026-01-0{day}T00:00:00Z")))
}

fn slice(endpoints: Value) -> Value {
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
           "metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
           "ports": [{"name": "http", "port": 8080}], "endpoints": endpoints})
}

fn of_pod(uid: &str, node: &str, ip: &str) -> Value {
    json!({"addresses": [ip], "nodeName": node, "targetRef": {"kind": "Pod", "name": format!("pod-{uid}"), "uid": uid}})
}

fn account_of(ir: &MeshIr, uid: &str) -> Option<String> {
    ir.peers.get(&WorkloadId::new(uid)).map(|peer| peer.peer.account.name.to_string())
}

fn codes(ir: &MeshIr) -> Vec<(String, &'static str)> {
    findings(ir).into_iter().map(|(object, code, _)| (object, code)).collect()
}

#[test]
fn a_published_pod_is_what_its_nodes_agent_says_and_serves_what_slices_say() {
    let ir = shop_and([
        published("n2", 0, &[("u1", "sa", "10.0.2.1")]),
        slice(json!([of_pod("u1", "n2", "10.0.2.1"), of_pod("u9", "n3", "10.0.3.9")])),
    ]);
    assert_eq!(findings(&ir), []);
    assert_eq!(ir.peers.len(), 1);
    let found = &ir.peers[&WorkloadId::new("u1")];
    assert_eq!(found.serves, [(key("web"), 80, 8080)]);
    assert_eq!(found.peer.account, ServiceAccountKey::new("shop", "sa"));
    assert_eq!((&*found.peer.node, &*found.peer.name), ("n2", "pod-u1"));
    assert_eq!(*found.peer.addresses, ["10.0.2.1".parse::<IpAddr>().unwrap()]);
}

#[test]
fn an_endpoint_that_gives_nothing_but_an_address_is_the_pod_that_is_published_there() {
    let bare = slice(json!([{"addresses": ["10.0.2.1"]}, {"addresses": ["10.0.2.2"]}]));
    let ir = shop_and([published("n2", 0, &[("u1", "sa", "10.0.2.1")]), bare]);
    let ready = &endpoints_of(&ir, "web", 80).ready;
    assert_eq!(ready.iter().map(|one| one.workload.clone()).collect::<Vec<_>>(), [Some(WorkloadId::new("u1")), None]);
    assert_eq!(ir.peers[&WorkloadId::new("u1")].serves, [(key("web"), 80, 8080)]);
}

/// A claim that is not used leaves a pod in plaintext, so only the truth takes one out.
#[test]
fn of_several_claims_to_a_pod_the_node_that_has_it_counts_and_else_the_oldest() {
    let (right, wrong) =
        (published("n2", 0, &[("u1", "right", "10.0.2.1")]), published("n3", 0, &[("u1", "wrong", "10.0.2.1")]));
    let in_slice = slice(json!([of_pod("u1", "n2", "10.0.2.1")]));
    let own = with(
        with(pod("pod-u1", "web", &["10.0.2.1"]), "metadata.uid", json!("u1")),
        "spec",
        json!({"nodeName": "n2", "serviceAccountName": "right"}),
    );
    for (documents, counts, found) in [
        (
            vec![aged(right.clone(), 2), aged(wrong.clone(), 1), in_slice.clone()],
            Some("right"),
            vec![("NodeWorkloads n3-0", "PodMismatch")],
        ),
        (
            vec![aged(right.clone(), 2), aged(wrong.clone(), 1), own.clone()],
            Some("right"),
            vec![("NodeWorkloads n3-0", "PodMismatch")],
        ),
        (
            vec![aged(right.clone(), 2), aged(wrong.clone(), 1)],
            Some("wrong"),
            vec![("NodeWorkloads n2-0", "DuplicateUID")],
        ),
        (
            vec![aged(right.clone(), 1), aged(wrong.clone(), 2)],
            Some("right"),
            vec![("NodeWorkloads n3-0", "DuplicateUID")],
        ),
        (vec![right.clone(), wrong.clone()], Some("right"), vec![("NodeWorkloads n3-0", "DuplicateUID")]),
        (vec![wrong.clone(), in_slice.clone()], None, vec![("NodeWorkloads n3-0", "PodMismatch")]),
        // Its own document knows the service account, too.
        (
            vec![published("n2", 0, &[("u1", "other", "10.0.2.1")]), own.clone()],
            None,
            vec![("NodeWorkloads n2-0", "PodMismatch")],
        ),
        // In two shards of its own node for a moment.
        (vec![right.clone(), published("n2", 1, &[("u1", "right", "10.0.2.1")])], Some("right"), vec![]),
        (
            vec![right.clone(), published("n2", 1, &[("u1", "newer", "10.0.2.1")])],
            Some("right"),
            vec![("NodeWorkloads n2-1", "DuplicateUID")],
        ),
    ] {
        let ir = shop_and(documents.clone());
        let found: Vec<(String, &str)> = found.into_iter().map(|(object, code)| (object.to_owned(), code)).collect();
        assert_eq!((account_of(&ir, "u1").as_deref(), codes(&ir)), (counts, found), "{documents:?}");
    }
}
