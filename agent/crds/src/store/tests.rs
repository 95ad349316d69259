use serde_json::{Value, json};

use super::*;
use crate::parse::parse;

fn apply(store: &mut ObjectStore, documents: &[Value]) -> Dirty {
    let parsed = parse(&json!({"apiVersion": "v1", "kind": "List", "items": documents}));
    assert_eq!(parsed.errors, []);
    store.apply(parsed.objects.into_iter().map(|(object, _)| ObjectEvent::Apply(object)))
}

fn service(name: &str, app: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
           "spec": {"selector": {"app": app}, "ports": [{"port": 80}]}})
}

fn pod(name: &str, app: &str, ip: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop", "labels": {"app": app}},
           "status": {"podIPs": [{"ip": ip}]}})
}

fn split(name: &str, root: &str, backend: &str, group: &str) -> Value {
    json!({"apiVersion": "split.smi-spec.io/v1alpha4", "kind": "TrafficSplit", "metadata": {"name": name, "namespace": "shop"},
           "spec": {"service": root, "backends": [{"service": backend, "weight": 1}], "matches": [{"kind": "HTTPRouteGroup", "name": group}]}})
}

fn group(name: &str, path: &str) -> Value {
    json!({"apiVersion": "specs.smi-spec.io/v1alpha4", "kind": "HTTPRouteGroup", "metadata": {"name": name, "namespace": "shop"},
           "matches": [{"name": "m", "pathRegex": path}]})
}

fn slice(name: &str, service: &str, ip: &str) -> Value {
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "ports": [{"port": 80}],
           "metadata": {"name": name, "namespace": "shop", "labels": {"kubernetes.io/service-name": service}},
           "endpoints": [{"addresses": [ip]}]})
}

fn world() -> ObjectStore {
    let mut store = ObjectStore::default();
    apply(
        &mut store,
        &[
            service("web", "web"),
            service("v1", "v1"),
            service("other", "other"),
            split("s", "web", "v1", "g"),
            group("g", "/"),
            pod("p1", "v1", "10.0.0.1"),
            pod("p2", "v1", "10.0.0.2"),
            pod("p3", "other", "10.0.0.3"),
        ],
    );
    store
}

fn services(dirty: &Dirty) -> Vec<&str> {
    dirty.services.iter().map(|key| &*key.name).collect()
}

fn endpoints(dirty: &Dirty) -> Vec<&str> {
    dirty.endpoints.iter().map(|(key, _)| &*key.name).collect()
}

fn workloads(dirty: &Dirty) -> Vec<&str> {
    dirty.workloads.iter().map(|id| &*id.0).collect()
}

#[test]
fn a_change_that_changes_nothing_touches_nothing() {
    let mut store = world();
    let mut heartbeat = pod("p1", "v1", "10.0.0.1");
    heartbeat["metadata"]["annotations"] = json!({"example.com/seen": "now"});
    heartbeat["metadata"]["resourceVersion"] = json!("77");
    assert!(apply(&mut store, &[heartbeat, service("web", "web"), group("g", "/")]).is_empty());
    let gone = ObjectKey::new(Kind::Pod, "shop", "never-there");
    assert!(store.apply([ObjectEvent::Delete(gone)]).is_empty());
}

#[test]
fn a_pod_touches_itself_and_the_endpoints_of_the_services_that_select_it() {
    let mut store = world();
    let dirty = apply(&mut store, &[pod("p1", "v1", "10.0.0.9")]);
    assert_eq!((services(&dirty), endpoints(&dirty), workloads(&dirty)), (vec![], vec!["v1"], vec!["shop/p1"]));
    let dirty = apply(&mut store, &[pod("p1", "other", "10.0.0.9")]);
    assert_eq!(
        (endpoints(&dirty), workloads(&dirty)),
        (vec!["other", "v1"], vec!["shop/p1"]),
        "both sides of a change of labels"
    );
    let dirty = store.apply([ObjectEvent::Delete(ObjectKey::new(Kind::Pod, "shop", "p1"))]);
    assert_eq!((endpoints(&dirty), workloads(&dirty)), (vec!["other"], vec!["shop/p1"]));
}

#[test]
fn a_new_pod_of_the_same_name_touches_the_old_one_too() {
    let mut store = world();
    let mut reborn = pod("p1", "v1", "10.0.0.1");
    reborn["metadata"]["uid"] = json!("u-2");
    assert_eq!(workloads(&apply(&mut store, &[reborn])), ["shop/p1", "u-2"]);
}

#[test]
fn pods_that_share_an_address_touch_each_other() {
    let mut store = world();
    let dirty = apply(&mut store, &[pod("p3", "other", "10.0.0.1")]);
    assert_eq!(workloads(&dirty), ["shop/p1", "shop/p3"]);
}

#[test]
fn a_split_touches_its_roots_and_a_group_the_roots_of_the_splits_that_name_it() {
    let mut store = world();
    let dirty = apply(&mut store, &[split("s", "other", "v1", "g")]);
    assert_eq!((services(&dirty), endpoints(&dirty), workloads(&dirty)), (vec!["other", "web"], vec![], vec![]));
    assert_eq!(services(&apply(&mut store, &[group("g", "/new")])), ["other"]);
    assert_eq!(services(&apply(&mut store, &[group("unused", "/")])), [] as [&str; 0]);
}

#[test]
fn a_service_touches_the_roots_that_it_is_a_backend_of() {
    let mut store = world();
    let dirty = store.apply([ObjectEvent::Delete(ObjectKey::new(Kind::Service, "shop", "v1"))]);
    assert_eq!(
        (services(&dirty), endpoints(&dirty), workloads(&dirty)),
        (vec!["v1", "web"], vec!["v1"], vec!["shop/p1", "shop/p2"])
    );
    let dirty = apply(&mut store, &[service("v1", "none")]);
    assert_eq!((services(&dirty), workloads(&dirty)), (vec!["v1", "web"], vec![]));
}

#[test]
fn ports_that_a_service_loses_are_touched() {
    let mut store = world();
    let mut moved = service("v1", "v1");
    moved["spec"]["ports"] = json!([{"port": 81}]);
    let dirty = apply(&mut store, &[moved]);
    assert_eq!(dirty.endpoints.iter().map(|(_, port)| *port).collect::<Vec<_>>(), [80, 81]);
}

#[test]
fn the_first_slice_of_a_service_touches_the_pods_that_it_selects() {
    let mut store = world();
    let dirty = apply(&mut store, &[slice("a", "v1", "10.0.0.3")]);
    assert_eq!((endpoints(&dirty), workloads(&dirty)), (vec!["v1"], vec!["shop/p1", "shop/p2", "shop/p3"]));
    let dirty = apply(&mut store, &[slice("b", "v1", "10.0.0.1")]);
    assert_eq!(workloads(&dirty), ["shop/p1"], "another one only those that it names");
    store.apply([ObjectEvent::Delete(ObjectKey::new(Kind::EndpointSlice, "shop", "a"))]);
    let dirty = store.apply([ObjectEvent::Delete(ObjectKey::new(Kind::EndpointSlice, "shop", "b"))]);
    assert_eq!(workloads(&dirty), ["shop/p1", "shop/p2"]);
}

#[test]
fn a_pod_without_a_uid_touches_the_one_that_a_slice_names_by_uid_beside_its_name() {
    let mut store = world();
    let mut named = slice("a", "v1", "10.0.0.3");
    named["endpoints"][0]["targetRef"] = json!({"kind": "Pod", "name": "p4", "uid": "u-4"});
    apply(&mut store, &[named]);
    assert_eq!(workloads(&apply(&mut store, &[pod("p4", "v1", "10.0.0.4")])), ["shop/p4", "u-4"]);
}

#[test]
fn a_namespace_touches_its_pods() {
    let mut store = world();
    let namespace = |labels: Value| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": labels}});
    let dirty = apply(&mut store, &[namespace(json!({"weft.dev/mesh": "enabled"}))]);
    assert_eq!(
        (services(&dirty), endpoints(&dirty), workloads(&dirty)),
        (vec![], vec![], vec!["shop/p1", "shop/p2", "shop/p3"])
    );
    assert!(
        apply(&mut store, &[namespace(json!({"weft.dev/mesh": "enabled", "team": "x"}))]).is_empty(),
        "only weft's labels matter"
    );
}

#[test]
fn everything_gone_leaves_nothing_behind() {
    let mut store = world();
    apply(&mut store, &[slice("a", "v1", "10.0.0.3")]);
    let keys = [
        (Kind::Service, vec!["web", "v1", "other"]),
        (Kind::TrafficSplit, vec!["s"]),
        (Kind::HttpRouteGroup, vec!["g"]),
        (Kind::Pod, vec!["p1", "p2", "p3"]),
        (Kind::EndpointSlice, vec!["a"]),
    ];
    for (kind, names) in keys {
        store.apply(names.into_iter().map(|name| ObjectEvent::Delete(ObjectKey::new(kind, "shop", name))));
        assert_eq!(store.count(kind), 0);
    }
    assert!(store.all().is_empty());
    assert_eq!(format!("{:?}", store.index), format!("{:?}", Index::default()), "no index keeps what is gone");
}

#[test]
fn a_slice_touches_the_pods_that_it_names_and_no_others() {
    let mut store = ObjectStore::default();
    let pods = [("a", json!("u-a"), "10.0.0.1"), ("b", Value::Null, "10.0.0.2"), ("c", json!("u-c"), "10.0.0.3")];
    let pods = pods.map(|(name, uid, ip)| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop", "uid": uid},
            "status": {"phase": "Running", "podIP": ip}})
    });
    apply(&mut store, &pods);
    let at = |ip: &str| json!({"addresses": [ip]});
    let of = |ip: &str, name: &str, uid: Value| json!({"addresses": [ip], "targetRef": {"kind": "Pod", "name": name, "uid": uid}});
    let cases = [
        (vec![at("10.0.0.1")], vec!["u-a"], "by its address"),
        (vec![of("10.0.0.1", "x", json!("u-x"))], vec![], "an address that is another pod's, as the slice has it"),
        (vec![of("10.0.0.9", "x", json!("u-a"))], vec!["u-a"], "by its UID"),
        (vec![of("10.0.0.9", "c", Value::Null)], vec!["u-c"], "by its name"),
        (
            vec![of("10.0.0.9", "b", json!("u-b")), at("10.0.0.3")],
            vec!["shop/b", "u-c"],
            "by its name, as it has no UID",
        ),
        (vec![], vec![], "none"),
    ];
    for (endpoints, expected, how) in cases {
        let mut slice = slice("web-1", "web", "10.0.0.1");
        slice["endpoints"] = endpoints.into();
        let dirty = apply(&mut store, &[slice]);
        for (name, id) in [("a", "u-a"), ("b", "shop/b"), ("c", "u-c")] {
            let named = expected.contains(&id);
            let pod = store.pod(&("shop".into(), name.into())).expect("a pod");
            assert_eq!(store.slices_mentioning(pod).count(), usize::from(named), "{how}: {name}");
            assert!(!named || dirty.workloads.contains(&pod.id()), "{how}: {name} in {dirty:?}");
        }
    }
}
