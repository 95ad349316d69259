use super::*;

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

#[test]
fn udp_ports_are_those_of_containers_and_of_services_that_select_the_pod() {
    let container = json!([{"name": "c", "ports": [
        {"containerPort": 5300, "protocol": "UDP"}, {"name": "logs", "containerPort": 514, "protocol": "UDP"},
        {"containerPort": 8080}, {"containerPort": 53, "protocol": "TCP"},
    ]}]);
    let dns = |app: &str, target: Value| {
        let port = json!({"port": 53, "protocol": "UDP", "targetPort": target});
        service("dns", json!({"selector": {"app": app}, "ports": [port]}))
    };
    for (service, expected) in [
        (dns("web", json!(5353)), &[514, 5300, 5353][..]),
        (dns("web", Value::Null), &[53, 514, 5300]),
        (dns("web", json!("logs")), &[514, 5300]),
        (dns("other", json!(5353)), &[514, 5300]),
    ] {
        let ir =
            lowered(&[service.clone(), with(pod("p", "web", &["10.0.0.1"]), "spec.containers", container.clone())]);
        assert_eq!(workload_of(&ir, "p").udp_ports, expected, "{service}");
    }
}
