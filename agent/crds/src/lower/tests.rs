#![allow(clippy::needless_pass_by_value, reason = "document literals are passed as they are written")]

use std::net::IpAddr;

use serde_json::{Value, json};
use weft_policy::{
    endpoints::EndpointSet,
    ir::{FailMode, RouteIr, ServiceIr, WorkloadIr, WorkloadState},
    names::{ServiceKey, WorkloadId},
    plan::{AppProtocol, Balance},
};

use super::*;
use crate::{parse::parse, store::ObjectEvent};

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
        at = &mut at[part];
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
    routes.iter().map(|route| &*route.origin.name).collect()
}

#[test]
fn a_split_becomes_a_route_of_its_root() {
    let ir = shop_and([split("canary", &[("web-v1", 90), ("web-v2", 10)], &[])]);
    let [route] = &*service_of(&ir, "web").routes else { panic!("one route") };
    assert_eq!(route.origin, ObjectRef::new("TrafficSplit", "shop", "canary"));
    assert_eq!(route.matches, None);
    let shares: Vec<_> =
        route.backends.iter().map(|one| (one.service.to_string(), one.weight, one.ports.clone())).collect();
    assert_eq!(shares, [("shop/web-v1".into(), 90, vec![(80, 80)]), ("shop/web-v2".into(), 10, vec![(80, 80)])]);
    assert_eq!(findings(&ir), []);
    assert!(service_of(&ir, "web-v1").routes.is_empty(), "backends are not split further");
}

#[test]
fn splits_with_matches_come_first_and_the_oldest_of_each_kind_first() {
    let created = |document, time: &str| with(document, "metadata.creationTimestamp", json!(time));
    let ir = shop_and([
        group("g", json!([{"name": "m"}])),
        created(split("a-young", &[("web-v1", 1)], &["g"]), "2026-01-02T00:00:00Z"),
        created(split("z-old", &[("web-v1", 1)], &["g"]), "2026-01-01T00:00:00Z"),
        split("b-ageless", &[("web-v1", 1)], &["g"]),
        created(split("wild-young", &[("web-v1", 1)], &[]), "2026-01-02T00:00:00Z"),
        created(split("wild-z-old", &[("web-v2", 1)], &[]), "2026-01-01T00:00:00Z"),
        split("wild-a-ageless", &[("web-v2", 1)], &[]),
    ]);
    assert_eq!(names(&service_of(&ir, "web").routes), ["z-old", "a-young", "b-ageless", "wild-z-old"]);
    assert_eq!(
        findings(&ir),
        [
            ("TrafficSplit shop/wild-a-ageless".into(), "Conflicted", "spec.service".into()),
            ("TrafficSplit shop/wild-young".into(), "Conflicted", "spec.service".into()),
        ]
    );
}

#[test]
fn without_a_wildcard_split_only_the_matched_ones_are_routes() {
    let ir =
        shop_and([group("g", json!([{"name": "m", "pathRegex": "/a"}])), split("canary", &[("web-v2", 1)], &["g"])]);
    let [route] = &*service_of(&ir, "web").routes else { panic!("one route") };
    assert_eq!(route.matches.as_ref().unwrap().len(), 1);
}

#[test]
fn matches_of_several_groups_are_merged_and_unknown_groups_match_nothing() {
    let ir = shop_and([
        group("one", json!([{"name": "a", "pathRegex": "/a"}, {"name": "b", "methods": ["GET"]}])),
        group("two", json!([{"name": "a", "headers": {"Cookie": "x"}}])),
        split("merged", &[("web-v1", 1)], &["one", "two", "one"]),
        split("partly", &[("web-v1", 1)], &["gone", "two"]),
        split("unknown", &[("web-v1", 1)], &["gone"]),
    ]);
    let routes = &service_of(&ir, "web").routes;
    let matches = |index: usize| routes[index].matches.as_ref().unwrap();
    assert_eq!(names(routes), ["merged", "partly", "unknown"]);
    assert_eq!(
        matches(0).iter().map(|one| (&*one.origin.name, &*one.name)).collect::<Vec<_>>(),
        [("one", "a"), ("one", "b"), ("two", "a")]
    );
    assert_eq!(matches(0)[2].headers, [("cookie".into(), "x".into())]);
    assert_eq!(matches(1).len(), 1);
    assert_eq!(*matches(2), [], "matches nothing, which is not the same as matching everything");
    assert_eq!(
        findings(&ir),
        [
            ("TrafficSplit shop/partly".into(), "RouteGroupNotFound", "spec.matches[0].name".into()),
            ("TrafficSplit shop/unknown".into(), "RouteGroupNotFound", "spec.matches[0].name".into()),
        ]
    );
}

#[test]
fn missing_backend_is_dropped() {
    let ir = shop_and([split("canary", &[("gone", 50), ("web-v2", 10)], &[])]);
    let route = &service_of(&ir, "web").routes[0];
    assert_eq!(route.backends.iter().map(|one| one.service.to_string()).collect::<Vec<_>>(), ["shop/web-v2"]);
    assert_eq!(
        findings(&ir),
        [("TrafficSplit shop/canary".into(), "BackendNotFound", "spec.backends[0].service".into())]
    );
}

#[test]
fn the_root_as_a_backend_means_its_own_endpoints_with_a_warning() {
    let ir = shop_and([split("canary", &[("web", 50), ("web-v2", 10)], &[])]);
    assert_eq!(service_of(&ir, "web").routes[0].backends[0].service, key("web"));
    let found = &ir.diagnostics[&key("web")][0];
    assert_eq!((found.code, found.severity), ("BackendIsRoot", Severity::Warning));
}

#[test]
fn a_split_without_its_root_says_so() {
    let ir = lowered(&[split("canary", &[("web-v1", 1)], &[])]);
    assert!(ir.services.is_empty());
    assert_eq!(findings(&ir), [("TrafficSplit shop/canary".into(), "RootNotFound", "spec.service".into())]);
}

#[test]
fn backend_ports_match_by_number_and_else_by_name() {
    let root = service(
        "web",
        json!({"ports": [{"port": 80, "name": "http"}, {"port": 90, "name": "admin"}, {"port": 99, "name": "x"}]}),
    );
    let by_number = service("b", json!({"ports": [{"port": 80, "name": "other"}, {"port": 8090, "name": "admin"}]}));
    // The number wins over the name, even if both are there.
    let both = service(
        "c",
        json!({"ports": [{"port": 90, "name": "http"}, {"port": 80, "name": "admin"}, {"port": 99, "name": "y"}]}),
    );
    let none = service("d", json!({"ports": [{"port": 7, "name": "z"}]}));
    let unnamed = service("e", json!({"ports": [{"port": 81}]}));
    let splits = split("s", &[("b", 1), ("c", 1), ("d", 1), ("e", 1)], &[]);
    let ir = lowered(&[root, by_number, both, none, unnamed, splits]);
    let ports: Vec<_> = service_of(&ir, "web").routes[0].backends.iter().map(|one| one.ports.clone()).collect();
    assert_eq!(ports, [vec![(80, 80), (90, 8090)], vec![(80, 80), (90, 90), (99, 99)], vec![], vec![]]);
    let severities: Vec<_> =
        ir.diagnostics[&key("web")].iter().map(|one| (one.field.as_str(), one.code, one.severity)).collect();
    assert_eq!(
        severities,
        [
            ("spec.backends[0].service", "BackendPortMismatch", Severity::Warning),
            ("spec.backends[2].service", "BackendPortMismatch", Severity::Error),
            ("spec.backends[3].service", "BackendPortMismatch", Severity::Error),
        ]
    );
    assert!(ir.diagnostics[&key("web")][0].message.contains("port 99 (x) of Service shop/web"));
}

#[test]
fn unnamed_ports_do_not_match_by_their_empty_names() {
    let ir = lowered(&[
        service("web", json!({"ports": [{"port": 80}]})),
        service("b", json!({"ports": [{"port": 81}]})),
        split("s", &[("b", 1)], &[]),
    ]);
    assert!(service_of(&ir, "web").routes[0].backends[0].ports.is_empty());
}

#[test]
fn weights_of_v1alpha1_keep_their_proportions() {
    let mut old = split("s", &[("web-v1", 0), ("web-v2", 0)], &[]);
    old["apiVersion"] = json!("split.smi-spec.io/v1alpha1");
    old["spec"].as_object_mut().unwrap().remove("matches");
    old["spec"]["backends"][0]["weight"] = json!("1");
    old["spec"]["backends"][1]["weight"] = json!("500m");
    let ir = shop_and([old]);
    assert_eq!(service_of(&ir, "web").routes[0].backends.iter().map(|one| one.weight).collect::<Vec<_>>(), [1000, 500]);
}

#[test]
fn what_a_port_speaks_is_said_by_its_app_protocol_and_else_by_its_name() {
    for (port, expected) in [
        (json!({"port": 80}), AppProtocol::Detect),
        (json!({"port": 80, "name": "http"}), AppProtocol::Http),
        (json!({"port": 80, "name": "http-metrics"}), AppProtocol::Http),
        (json!({"port": 80, "name": "httpx"}), AppProtocol::Detect),
        (json!({"port": 80, "name": "http2"}), AppProtocol::Tcp),
        (json!({"port": 80, "name": "https"}), AppProtocol::Tcp),
        (json!({"port": 80, "name": "grpc-web"}), AppProtocol::Tcp),
        (json!({"port": 80, "name": "tcp-x"}), AppProtocol::Tcp),
        (json!({"port": 80, "name": "tls"}), AppProtocol::Tcp),
        (json!({"port": 80, "name": "mysql"}), AppProtocol::Tcp),
        (json!({"port": 80, "name": "mysql8"}), AppProtocol::Tcp),
        (json!({"port": 80, "name": "web"}), AppProtocol::Detect),
        (json!({"port": 80, "name": "tcp", "appProtocol": "http"}), AppProtocol::Http),
        (json!({"port": 80, "name": "http", "appProtocol": "tcp"}), AppProtocol::Tcp),
        (json!({"port": 80, "name": "http", "appProtocol": "kubernetes.io/h2c"}), AppProtocol::Tcp),
        (json!({"port": 80, "appProtocol": "kubernetes.io/ws"}), AppProtocol::Http),
        (json!({"port": 80, "name": "http", "appProtocol": "example.com/own"}), AppProtocol::Http),
        (json!({"port": 80, "appProtocol": "HTTP"}), AppProtocol::Http),
    ] {
        let ir = lowered(&[service("web", json!({"ports": [port]}))]);
        assert_eq!(service_of(&ir, "web").ports[0].protocol, expected, "{port}");
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
    for (value, expected, warnings) in [
        (json!("round-robin"), Balance::RoundRobin, 0),
        (json!("least-request"), Balance::LeastRequest, 0),
        (json!("random"), Balance::LeastRequest, 1),
    ] {
        let ir = lowered(&[with(
            web("web", "10.96.0.1"),
            "metadata.annotations",
            json!({"weft.dev/load-balancing": value}),
        )]);
        assert_eq!((service_of(&ir, "web").balance, findings(&ir).len()), (expected, warnings), "{value}");
    }
    assert_eq!(service_of(&lowered(&[web("web", "10.96.0.1")]), "web").balance, Balance::LeastRequest);
}

#[test]
fn endpoints_are_derived_from_selector_and_pods() {
    let ready = |status: &str| json!([{"type": "Ready", "status": status}]);
    let ir = lowered(&[
        web("web", "10.96.0.1"),
        pod("plain", "web", &["10.0.0.1"]),
        with(pod("ready", "web", &["10.0.0.2"]), "status.conditions", ready("True")),
        with(pod("unready", "web", &["10.0.0.3"]), "status.conditions", ready("False")),
        with(
            pod("no-ready-condition", "web", &["10.0.0.4"]),
            "status.conditions",
            json!([{"type": "Initialized", "status": "True"}]),
        ),
        with(pod("terminating", "web", &["10.0.0.5"]), "metadata.deletionTimestamp", json!("2026-01-01T00:00:00Z")),
        with(pod("ended", "web", &["10.0.0.6"]), "status.phase", json!("Succeeded")),
        with(pod("pending", "web", &["10.0.0.7"]), "status.phase", json!("Pending")),
        pod("addressless", "web", &[]),
        pod("other", "other", &["10.0.0.8"]),
        with(pod("other-namespace", "web", &["10.0.0.9"]), "metadata.namespace", json!("else")),
    ]);
    let set = endpoints_of(&ir, "web", 80);
    assert_eq!(addresses(&set.ready), ["10.0.0.1:8080", "10.0.0.2:8080"]);
    assert_eq!(addresses(&set.draining), ["10.0.0.5:8080"]);
    assert_eq!(set.ready[0].workload, Some(WorkloadId::new("shop/plain")));
    assert_eq!(set.ready[0].node.as_deref(), Some("n1"));
    let serves = |name: &str| workload_of(&ir, name).serves.clone();
    assert_eq!(serves("plain"), [(key("web"), 80, 8080)]);
    assert_eq!(serves("unready"), [(key("web"), 80, 8080)], "what a pod serves does not change with its readiness");
    assert_eq!(serves("ended"), []);
    assert_eq!(serves("other"), []);
}

#[test]
fn not_ready_addresses_are_published_when_asked_for() {
    let open = with(web("web", "10.96.0.1"), "spec.publishNotReadyAddresses", json!(true));
    let ir = lowered(&[
        open,
        with(pod("pending", "web", &["10.0.0.1"]), "status.phase", json!("Pending")),
        with(pod("terminating", "web", &["10.0.0.2"]), "metadata.deletionTimestamp", json!("2026-01-01T00:00:00Z")),
        with(pod("ended", "web", &["10.0.0.3"]), "status.phase", json!("Failed")),
    ]);
    assert_eq!(addresses(&endpoints_of(&ir, "web", 80).ready), ["10.0.0.1:8080", "10.0.0.2:8080"]);
}

#[test]
fn target_ports_are_numbers_names_or_the_port_itself() {
    let with_ports =
        |ports: Value| with(pod("p", "web", &["10.0.0.1"]), "spec.containers", json!([{"name": "c", "ports": ports}]));
    for (target, ports, expected) in [
        (json!(8080), json!([]), vec!["10.0.0.1:8080"]),
        (Value::Null, json!([]), vec!["10.0.0.1:80"]),
        (json!("web"), json!([{"name": "web", "containerPort": 9000}]), vec!["10.0.0.1:9000"]),
        (json!("web"), json!([{"name": "web", "containerPort": 9000, "protocol": "UDP"}]), vec![]),
        (json!("web"), json!([{"name": "other", "containerPort": 9000}]), vec![]),
    ] {
        let web = service("web", json!({"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": target}]}));
        let ir = lowered(&[web, with_ports(ports.clone())]);
        assert_eq!(addresses(&endpoints_of(&ir, "web", 80).ready), expected, "{target} {ports}");
    }
    let sidecar = json!([{"name": "s", "restartPolicy": "Always", "ports": [{"name": "web", "containerPort": 9001}]}]);
    let ir = lowered(&[
        service("web", json!({"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "web"}]})),
        with(pod("p", "web", &["10.0.0.1"]), "spec.initContainers", sidecar),
    ]);
    assert_eq!(addresses(&endpoints_of(&ir, "web", 80).ready), ["10.0.0.1:9001"]);
}

#[test]
fn endpoints_have_the_families_of_their_service() {
    for (spec, expected) in [
        (json!({"clusterIP": "10.96.0.1"}), vec!["10.0.0.1:80"]),
        (json!({"clusterIP": "fd00::1"}), vec!["[fd01::1]:80"]),
        (json!({"clusterIPs": ["10.96.0.1", "fd00::1"]}), vec!["10.0.0.1:80", "[fd01::1]:80"]),
        (json!({"clusterIP": "None"}), vec!["10.0.0.1:80", "[fd01::1]:80"]),
        (json!({"clusterIP": "None", "ipFamilies": ["IPv6"]}), vec!["[fd01::1]:80"]),
    ] {
        let mut spec = spec;
        spec["selector"] = json!({"app": "web"});
        spec["ports"] = json!([{"port": 80}]);
        let ir = lowered(&[service("web", spec.clone()), pod("p", "web", &["10.0.0.1", "fd01::1"])]);
        assert_eq!(addresses(&endpoints_of(&ir, "web", 80).ready), expected, "{spec}");
    }
}

fn slice(name: &str, service: &str, ports: Value, endpoints: Value) -> Value {
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
           "metadata": {"name": name, "namespace": "shop", "labels": {"kubernetes.io/service-name": service}},
           "addressType": "IPv4", "ports": ports, "endpoints": endpoints})
}

#[test]
fn slices_take_the_place_of_the_selector() {
    let ports = json!([{"name": "http", "port": 9090}, {"name": "other", "port": 1}]);
    let ir = lowered(&[
        web("web", "10.96.0.1"),
        pod("p", "web", &["10.0.0.1"]),
        slice(
            "a",
            "web",
            ports.clone(),
            json!([
                {"addresses": ["10.0.1.1"], "nodeName": "n2", "targetRef": {"kind": "Pod", "name": "far", "uid": "uid-far"}},
                {"addresses": ["10.0.1.2"], "conditions": {"ready": false}},
                {"addresses": ["10.0.1.3"], "conditions": {"ready": false, "serving": true, "terminating": true}},
                {"addresses": ["10.0.1.4"], "conditions": {"ready": false, "serving": false, "terminating": true}},
                {"addresses": ["10.0.0.1"], "conditions": {}},
            ]),
        ),
        slice(
            "b",
            "web",
            ports,
            json!([{"addresses": ["10.0.1.2"]}, {"addresses": ["10.0.1.1"], "conditions": {"ready": false}}]),
        ),
        slice("c", "web-other", json!([{"name": "http", "port": 1}]), json!([{"addresses": ["10.9.9.9"]}])),
    ]);
    let set = endpoints_of(&ir, "web", 80);
    assert_eq!(
        addresses(&set.ready),
        ["10.0.0.1:9090", "10.0.1.1:9090", "10.0.1.2:9090"],
        "the better of two conditions counts"
    );
    assert_eq!(addresses(&set.draining), ["10.0.1.3:9090"]);
    assert_eq!(set.ready[1].workload, Some(WorkloadId::new("uid-far")), "pods of other nodes are known by UID only");
    assert_eq!(set.ready[1].node.as_deref(), Some("n2"));
    assert_eq!(set.ready[0].workload, Some(WorkloadId::new("shop/p")), "by address");
    assert_eq!(workload_of(&ir, "p").serves, [(key("web"), 80, 9090)]);
}

#[test]
fn a_slice_endpoint_stands_for_a_pod_only_if_that_is_certain() {
    let host = |name: &str| with(pod(name, "x", &["10.0.0.1"]), "spec.hostNetwork", json!(true));
    for (pods, endpoint, expected) in [
        (vec![pod("a", "x", &["10.0.0.1"])], json!({}), Some("shop/a")),
        (vec![pod("a", "x", &["10.0.0.1"]), pod("b", "x", &["10.0.0.1"])], json!({}), None),
        (
            vec![pod("a", "x", &["10.0.0.1"]), with(pod("b", "x", &["10.0.0.1"]), "status.phase", json!("Failed"))],
            json!({}),
            Some("shop/a"),
        ),
        (vec![host("a")], json!({}), None),
        (vec![host("a")], json!({"targetRef": {"kind": "Pod", "name": "a"}}), Some("shop/a")),
        (vec![], json!({"targetRef": {"kind": "Pod", "name": "a"}}), None),
        (vec![pod("a", "x", &[])], json!({"targetRef": {"kind": "Pod", "name": "a", "uid": "u"}}), Some("shop/a")),
        (
            vec![with(pod("a", "x", &[]), "metadata.uid", json!("v"))],
            json!({"targetRef": {"kind": "Pod", "name": "a", "uid": "u"}}),
            Some("u"),
        ),
        (
            vec![with(pod("b", "x", &[]), "metadata.uid", json!("u"))],
            json!({"targetRef": {"kind": "Pod", "name": "a", "uid": "u"}}),
            Some("u"),
        ),
    ] {
        let mut endpoint = endpoint;
        endpoint["addresses"] = json!(["10.0.0.1"]);
        let mut documents = vec![
            web("web", "10.96.0.1"),
            slice("s", "web", json!([{"name": "http", "port": 1}]), json!([endpoint.clone()])),
        ];
        documents.extend(pods.clone());
        let ir = lowered(&documents);
        assert_eq!(
            endpoints_of(&ir, "web", 80).ready[0].workload,
            expected.map(WorkloadId::new),
            "{pods:?} {endpoint}"
        );
    }
}

#[test]
fn services_without_selector_or_slices_have_no_endpoints() {
    let ir = lowered(&[
        service("bare", json!({"ports": [{"port": 80}]})),
        service("name", json!({"type": "ExternalName", "selector": {"app": "web"}, "ports": [{"port": 80}]})),
        pod("p", "web", &["10.0.0.1"]),
    ]);
    assert_eq!(*endpoints_of(&ir, "bare", 80), EndpointSet::default());
    assert_eq!(*endpoints_of(&ir, "name", 80), EndpointSet::default());
}

fn namespace(labels: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": labels}})
}

#[test]
fn pods_are_meshed_by_namespace_and_may_opt_out() {
    let enabled = json!({"weft.dev/mesh": "enabled"});
    let plain = || pod("p", "x", &["10.0.0.1"]);
    for (labels, pod, meshed, warnings) in [
        (enabled.clone(), plain(), true, 0),
        (json!({}), plain(), false, 0),
        (json!({"weft.dev/mesh": "disabled"}), plain(), false, 0),
        (json!({"weft.dev/mesh": "true"}), plain(), false, 1),
        (enabled.clone(), with(plain(), "metadata.labels", json!({"weft.dev/mesh": "disabled"})), false, 0),
        (enabled.clone(), with(plain(), "metadata.annotations", json!({"weft.dev/mesh": "disabled"})), false, 0),
        (enabled.clone(), with(plain(), "metadata.labels", json!({"weft.dev/mesh": "off"})), true, 1),
        // A pod cannot mesh itself: that is its namespace's to say.
        (json!({}), with(plain(), "metadata.labels", json!({"weft.dev/mesh": "enabled"})), false, 0),
        (enabled.clone(), with(plain(), "status.phase", json!("Succeeded")), false, 0),
        (enabled, with(plain(), "status.phase", json!("Pending")), true, 0),
    ] {
        let ir = lowered(&[namespace(labels.clone()), pod.clone()]);
        assert_eq!((workload_of(&ir, "p").meshed, findings(&ir).len()), (meshed, warnings), "{labels} {pod}");
    }
    assert!(!workload_of(&lowered(&[plain()]), "p").meshed, "a namespace that is not known is not meshed");
}

#[test]
fn the_fail_mode_of_a_pod_goes_before_its_namespaces_and_nonsense_is_closed() {
    let label = |value: &str| json!({"weft.dev/fail-mode": value});
    for (of_namespace, of_pod, expected, warnings) in [
        (json!({}), json!({}), FailMode::Open, 0),
        (label("closed"), json!({}), FailMode::Closed, 0),
        (label("closed"), label("open"), FailMode::Open, 0),
        (label("open"), label("closed"), FailMode::Closed, 0),
        (label("open"), label("close"), FailMode::Closed, 1),
        (label("shut"), json!({}), FailMode::Closed, 1),
        (label("shut"), label("open"), FailMode::Open, 1),
    ] {
        let pod = with(pod("p", "x", &["10.0.0.1"]), "metadata.labels", of_pod.clone());
        let ir = lowered(&[namespace(of_namespace.clone()), pod]);
        assert_eq!(
            (workload_of(&ir, "p").fail_mode, findings(&ir).len()),
            (expected, warnings),
            "{of_namespace} {of_pod}"
        );
    }
}

#[test]
fn a_workload_is_named_after_what_it_belongs_to() {
    let controller = |kind: &str, name: &str| json!([{"apiVersion": "v1", "kind": kind, "name": name, "uid": "u", "controller": true}]);
    let owned =
        |kind: &str, name: &str| with(pod("web-1", "app", &[]), "metadata.ownerReferences", controller(kind, name));
    for (pod, expected) in [
        (
            with(owned("ReplicaSet", "web-6d4cf56db6"), "metadata.labels", json!({"pod-template-hash": "6d4cf56db6"})),
            "web",
        ),
        (owned("ReplicaSet", "web-6d4cf56db6"), "web-6d4cf56db6"),
        (owned("StatefulSet", "db"), "db"),
        (owned("Job", "job"), "job"),
        (pod("web-1", "app", &[]), "app"),
        (with(pod("web-1", "app", &[]), "metadata.labels", json!({"app": "a", "app.kubernetes.io/name": "b"})), "b"),
        (with(pod("web-1", "app", &[]), "metadata.labels", json!({})), "web-1"),
        (with(pod("web-1", "app", &[]), "metadata.labels", json!({"app": ""})), "web-1"),
    ] {
        let ir = lowered(std::slice::from_ref(&pod));
        assert_eq!(&*ir.workloads.values().next().unwrap().owner, expected, "{pod}");
    }
}

#[test]
fn a_workload_says_all_that_capture_needs() {
    let pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "p", "namespace": "shop", "uid": "u-1", "annotations": {"weft.dev/netns": "/run/netns/p", "weft.dev/cgroup": "/cg/p"}},
        "spec": {"nodeName": "n1", "serviceAccountName": "sa", "hostNetwork": true},
        "status": {"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}, {"ip": "10.0.0.1"}]}});
    let ir = lowered(&[pod]);
    let workload = workload_of(&ir, "p");
    assert_eq!(*workload.id.0, *"u-1");
    assert_eq!((&*workload.node, &*workload.service_account, workload.host_network), ("n1", "sa", true));
    assert_eq!(workload.ips, ["10.0.0.1".parse::<IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
    assert_eq!(workload.netns.as_deref(), Some("/run/netns/p".as_ref()));
    assert_eq!(workload.cgroup.as_deref(), Some("/cg/p".as_ref()));
    assert_eq!(workload.state, WorkloadState::Ready);
}

#[test]
fn two_pods_with_one_uid_are_told_and_the_first_counts() {
    let twin = |name: &str| with(pod(name, "web", &["10.0.0.1"]), "metadata.uid", json!("same"));
    let ir = lowered(&[twin("b"), twin("a")]);
    assert_eq!(ir.workloads.len(), 1);
    assert_eq!(&*ir.workloads[&WorkloadId::new("same")].name, "a");
    assert_eq!(findings(&ir), [("Pod shop/b".into(), "DuplicateUID", "metadata.uid".into())]);
}

#[test]
fn over_many_splits_and_matches_are_cut_with_a_finding() {
    let many: Vec<Value> = (0..200).map(|n| json!({"name": format!("m{n}"), "pathRegex": format!("/{n}")})).collect();
    let ir =
        shop_and([group("one", json!(many)), group("two", json!(many)), split("s", &[("web-v1", 1)], &["one", "two"])]);
    assert_eq!(service_of(&ir, "web").routes[0].matches.as_ref().unwrap().len(), 256);
    assert_eq!(findings(&ir), [("TrafficSplit shop/s".into(), "TooManyMatches", "spec.matches".into())]);
    let splits: Vec<Value> = (0..258).map(|n| split(&format!("s{n:03}"), &[("web-v1", 1)], &["g"])).collect();
    let ir = shop_and(splits.into_iter().chain([group("g", json!([{"name": "m"}]))]));
    assert_eq!(service_of(&ir, "web").routes.len(), 256);
    let found = findings(&ir);
    assert_eq!((found.len(), &*found[0].0, found[0].1), (2, "TrafficSplit shop/s256", "TooManySplits"));
}
