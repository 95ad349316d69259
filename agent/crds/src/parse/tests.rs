#![allow(clippy::needless_pass_by_value, reason = "document literals are passed as they are written")]

use proptest::prelude::*;
use serde_json::json;

use super::*;

mod access;
mod smi;
mod weft;

fn split(version: &str, spec: Value) -> Value {
    json!({"apiVersion": format!("split.smi-spec.io/{version}"), "kind": "TrafficSplit",
           "metadata": {"name": "canary", "namespace": "shop"}, "spec": spec})
}

fn weights(version: &str, weights: &[Value]) -> Value {
    let backends: Vec<Value> = weights
        .iter()
        .enumerate()
        .map(|(index, weight)| json!({"service": format!("b{index}"), "weight": weight}))
        .collect();
    split(version, json!({"service": "web", "backends": backends}))
}

fn group(body: Value) -> Value {
    let mut document = json!({"apiVersion": "specs.smi-spec.io/v1alpha4", "kind": "HTTPRouteGroup",
                              "metadata": {"name": "group", "namespace": "shop"}});
    for (key, value) in body.as_object().unwrap() {
        document[key] = value.clone();
    }
    document
}

/// The one error of a document: object, field, message.
fn error(document: &Value) -> (String, String, String) {
    let parsed = parse(document);
    assert_eq!((parsed.objects.len(), parsed.errors.len()), (0, 1), "{document} {parsed:?}");
    let error = parsed.errors[0].clone();
    (error.object, error.field, error.message)
}

fn object(document: &Value) -> Object {
    let parsed = parse(document);
    assert_eq!(parsed.errors, [], "{document}");
    parsed.objects[0].0.clone()
}

fn read_split(document: &Value) -> TrafficSplit {
    let Object::TrafficSplit(split) = object(document) else { panic!("not a split") };
    (*split).clone()
}

fn read_group(document: &Value) -> HttpRouteGroup {
    let Object::HttpRouteGroup(group) = object(document) else { panic!("not a group") };
    (*group).clone()
}

#[test]
fn unknown_fields_of_smi_kinds_are_named_and_those_of_core_kinds_are_not_minded() {
    for (document, field) in [
        (
            split("v1alpha4", json!({"service": "w", "backends": [{"service": "b", "wieght": 1}]})),
            "spec.backends[0].wieght",
        ),
        (split("v1alpha4", json!({"service": "w", "backend": []})), "spec.backend"),
        (split("v1alpha4", json!({"service": "w", "backends": [], "match": []})), "spec.match"),
        (group(json!({"spec": {"matches": [{"name": "m", "path": "/"}]}})), "spec.matches[0].path"),
        (group(json!({"spec": {"matches": []}, "rules": []})), "rules"),
    ] {
        let (_, found, message) = error(&document);
        assert_eq!(found, field);
        assert!(message.contains("unknown field"), "{message}");
    }
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "extra": 1}, "spec": {"extra": {}}, "extra": 1});
    assert_eq!(object(&pod).key().to_string(), "Pod default/p");
}

#[test]
fn missing_and_mistyped_fields_are_named() {
    for (document, field) in [
        (split("v1alpha4", json!({"backends": []})), "spec"),
        (split("v1alpha4", json!({"service": 1, "backends": []})), "spec.service"),
        (split("v1alpha4", json!({"service": "w", "backends": {}})), "spec.backends"),
        (split("v1alpha4", json!([])), "spec"),
        (
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"hostNetwork": "yes"}}),
            "spec.hostNetwork",
        ),
        (
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"a": 1}}}),
            "metadata.labels.a",
        ),
        (
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": {"ports": [{"port": "x"}]}}),
            "spec.ports[0].port",
        ),
        (
            split("v1alpha4", json!({"service": "w", "backends": [], "matches": [{"kind": "HTTPRouteGroup"}]})),
            "spec.matches[0]",
        ),
    ] {
        assert_eq!(error(&document).1, field, "{document}");
    }
}

#[test]
fn kinds_without_effect_are_told_apart() {
    for (api_version, kind, field, message) in [
        (
            "access.smi-spec.io/v1beta1",
            "TrafficTarget",
            "apiVersion",
            "\"access.smi-spec.io/v1beta1\" is not understood for TrafficTarget; understood: access.smi-spec.io/v1alpha1, access.smi-spec.io/v1alpha2, access.smi-spec.io/v1alpha3, access.smi-spec.io/v1alpha4",
        ),
        (
            "specs.smi-spec.io/v1alpha1",
            "UDPRoute",
            "apiVersion",
            "\"specs.smi-spec.io/v1alpha1\" is not understood for UDPRoute; understood: specs.smi-spec.io/v1alpha4",
        ),
        (
            "access.smi-spec.io/v1alpha3",
            "TrafficTargets",
            "kind",
            "\"TrafficTargets\" of \"access.smi-spec.io/v1alpha3\" is unknown; of this group weft reads TrafficTarget, IdentityBinding",
        ),
        (
            "weft.dev/v1alpha1",
            "ExternalService",
            "kind",
            "ExternalService is not enforced by this version of weft: it has no effect",
        ),
        ("v1", "Endpoints", "kind", "Endpoints is not enforced by this version of weft: give an EndpointSlice instead"),
        (
            "split.smi-spec.io/v1alpha9",
            "TrafficSplit",
            "apiVersion",
            "\"split.smi-spec.io/v1alpha9\" is not understood for TrafficSplit; understood: split.smi-spec.io/v1alpha1, split.smi-spec.io/v1alpha2, split.smi-spec.io/v1alpha3, split.smi-spec.io/v1alpha4",
        ),
        ("v2", "Pod", "apiVersion", "\"v2\" is not understood for Pod; understood: v1"),
        (
            "smi-spec.io/v1alpha4",
            "TrafficSplit",
            "apiVersion",
            "\"smi-spec.io/v1alpha4\" is not understood for TrafficSplit; understood: split.smi-spec.io/v1alpha1, split.smi-spec.io/v1alpha2, split.smi-spec.io/v1alpha3, split.smi-spec.io/v1alpha4",
        ),
        (
            "split.smi-spec.io/v1alpha4",
            "TraficSplit",
            "kind",
            "\"TraficSplit\" of \"split.smi-spec.io/v1alpha4\" is unknown; of this group weft reads TrafficSplit",
        ),
        ("example.com/v1", "Widget", "kind", "\"Widget\" of \"example.com/v1\" is unknown: it has no effect on weft"),
    ] {
        let document = json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": "x", "namespace": "shop"}});
        assert_eq!(error(&document), (format!("{kind} shop/x"), field.into(), message.into()));
        assert_eq!(parse(&document).errors[0].key, None);
    }
    for (api_version, kind) in [
        ("apps/v1", "Deployment"),
        ("apps/v1", "StatefulSet"),
        ("apps/v1", "ReplicaSet"),
        ("v1", "ConfigMap"),
        ("v1", "ServiceAccount"),
        ("apiextensions.k8s.io/v1", "CustomResourceDefinition"),
        ("networking.k8s.io/v1", "NetworkPolicy"),
        ("rbac.authorization.k8s.io/v1", "Role"),
        ("gateway.networking.k8s.io/v1", "Gateway"),
    ] {
        let parsed = parse(&json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": "x"}}));
        assert_eq!(parsed, Parsed { ignored: vec![format!("{kind} default/x")], ..Parsed::default() });
    }
    let with_parent = |kind: &str, parent: Value| {
        json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": kind, "metadata": {"name": "x"},
               "spec": {"parentRefs": [parent]}})
    };
    let of_a_gateway = parse(&with_parent("HTTPRoute", json!({"name": "gateway"})));
    assert_eq!(of_a_gateway, Parsed { ignored: vec!["HTTPRoute default/x".into()], ..Parsed::default() });
    let of_a_service = json!({"kind": "Service", "group": "", "name": "web"});
    assert_eq!(parse(&with_parent("HTTPRoute", of_a_service.clone())).objects.len(), 1);
    let message = "TLSRoute is not enforced by this version of weft: no request is routed by it";
    assert_eq!(error(&with_parent("TLSRoute", of_a_service)).2, message);
}

#[test]
fn documents_that_are_no_objects_are_refused() {
    for (document, field) in [
        (json!({"apiVersion": "v1"}), "kind"),
        (json!({"kind": "Pod"}), "apiVersion"),
        (json!({"kind": 1, "apiVersion": "v1"}), "kind"),
        (json!([1]), ""),
        (json!("text"), ""),
        (json!({"apiVersion": "v1", "kind": "Pod"}), "metadata.name"),
        (json!({"apiVersion": "v1", "kind": "Pod", "metadata": []}), "metadata.name"),
        (json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": 1}}), "metadata.name"),
        (json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "UPPER"}}), "metadata.name"),
        (json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a.b"}}), "metadata.name"),
        (json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a".repeat(254)}}), "metadata.name"),
        (
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "a.b"}}),
            "metadata.namespace",
        ),
    ] {
        assert_eq!(error(&document).1, field, "{document}");
    }
    assert_eq!(parse(&Value::Null), Parsed::default());
}

#[test]
fn errors_carry_the_key_of_what_stays_in_force() {
    let parsed = parse(&weights("v1alpha4", &[json!(-1)]));
    assert_eq!(parsed.errors[0].key, Some(ObjectKey::new(Kind::TrafficSplit, "shop", "canary")));
    assert_eq!(
        parsed.errors[0].to_string(),
        "TrafficSplit shop/canary, spec.backends[0].weight: -1 must not be negative"
    );
    let cluster = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a", "labels": {"x": 1}}});
    assert_eq!(parse(&cluster).errors[0].key, Some(ObjectKey::new(Kind::Namespace, "", "a")));
}

#[test]
fn lists_are_taken_apart_and_each_item_stands_for_itself() {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}},
        weights("v1alpha4", &[json!(-1)]),
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}},
        {"apiVersion": "v1", "kind": "PodList", "items": [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}]},
    ]});
    let parsed = parse(&list);
    let keys: Vec<String> = parsed.objects.iter().map(|(object, _)| object.key().to_string()).collect();
    assert_eq!(keys, ["Namespace shop", "Pod default/p"]);
    assert_eq!(parsed.objects[1].1, list["items"][3]["items"][0]);
    assert_eq!(parsed.errors[0].field, "items[1].spec.backends[0].weight");
    assert_eq!(parsed.ignored, ["Deployment default/web"]);
    assert_eq!(parse(&json!({"apiVersion": "v1", "kind": "List", "items": {}})).errors[0].field, "items");
    let nested = (0..9).fold(
        json!({"apiVersion": "v1", "kind": "List", "items": []}),
        |inner, _| json!({"apiVersion": "v1", "kind": "List", "items": [inner]}),
    );
    assert!(parse(&nested).errors[0].message.contains("nested 4 deep"));
}

#[test]
fn pods_are_checked() {
    let pod = |body: Value| {
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}});
        for (key, value) in body.as_object().unwrap() {
            pod[key] = value.clone();
        }
        pod
    };
    for (body, field) in [
        (json!({"status": {"podIPs": [{"ip": "10.0.0.1"}, {"ip": "10.0.0"}]}}), "status.podIPs[1].ip"),
        (json!({"status": {"podIP": "x"}}), "status.podIP"),
        (json!({"status": {"phase": "running"}}), "status.phase"),
        (
            json!({"metadata": {"name": "p", "annotations": {"weft.dev/netns": "relative"}}}),
            "metadata.annotations.weft.dev/netns",
        ),
        (
            json!({"spec": {"containers": [{"name": "c", "ports": [{"containerPort": 70000}]}]}}),
            "spec.containers[0].ports[0].containerPort",
        ),
    ] {
        assert_eq!(error(&pod(body)).1, field);
    }
}

#[test]
fn services_and_slices_are_checked() {
    let service = |spec: Value| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": spec});
    let slice = |body: Value| {
        let mut slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "s"}, "addressType": "IPv4"});
        for (key, value) in body.as_object().unwrap() {
            slice[key] = value.clone();
        }
        slice
    };
    for (document, field) in [
        (service(json!({"clusterIP": "10.0.0"})), "spec.clusterIP"),
        (service(json!({"clusterIPs": ["10.0.0.1", "x"]})), "spec.clusterIPs[1]"),
        (service(json!({"externalIPs": ["x"]})), "spec.externalIPs[0]"),
        (service(json!({"ipFamilies": ["IPv5"]})), "spec.ipFamilies"),
        (service(json!({"ports": [{"port": 0}]})), "spec.ports[0].port"),
        (service(json!({"ports": [{"port": 65536}]})), "spec.ports[0].port"),
        (service(json!({"ports": [{"port": 80, "targetPort": -1}]})), "spec.ports[0].targetPort"),
        (service(json!({"ports": [{"port": 80, "protocol": "tcp"}]})), "spec.ports[0].protocol"),
        (service(json!({"ports": [{"port": 80, "name": "a"}, {"port": 80, "name": "b"}]})), "spec.ports[1].port"),
        (service(json!({"ports": [{"port": 80, "name": "a"}, {"port": 81, "name": "a"}]})), "spec.ports[1].name"),
        (slice(json!({"addressType": "FQDN"})), "addressType"),
        (slice(json!({"endpoints": [{"addresses": []}]})), "endpoints[0].addresses"),
        (slice(json!({"endpoints": [{"addresses": ["::1"]}]})), "endpoints[0].addresses[0]"),
        (slice(json!({"ports": [{"port": 99999}]})), "ports[0].port"),
    ] {
        assert_eq!(error(&document).1, field, "{document}");
    }
    // The same number for TCP and UDP is usual: DNS.
    let both =
        service(json!({"ports": [{"port": 53, "name": "dns-tcp"}, {"port": 53, "name": "dns", "protocol": "UDP"}]}));
    let Object::Service(both) = object(&both) else { panic!("not a Service") };
    assert_eq!(both.ports.len(), 1);
}

fn json_value() -> impl Strategy<Value = Value> {
    let word = prop_oneof![
        Just("apiVersion"),
        Just("kind"),
        Just("metadata"),
        Just("name"),
        Just("namespace"),
        Just("spec"),
        Just("status"),
        Just("items"),
        Just("matches"),
        Just("headers"),
        Just("backends"),
        Just("weight"),
        Just("service"),
        Just("ports"),
        Just("v1"),
        Just("Pod"),
        Just("Service"),
        Just("List"),
        Just("TrafficSplit"),
        Just("split.smi-spec.io/v1alpha1"),
        Just("HTTPRouteGroup"),
        Just("specs.smi-spec.io/v1alpha4"),
        Just("EndpointSlice"),
        Just("discovery.k8s.io/v1"),
        Just("endpoints"),
        Just("addresses"),
        Just("podIPs"),
        Just("10.0.0.1"),
        Just("x"),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        word.clone().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 64, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::vec((word.clone(), inner), 0..8).prop_map(|entries| Value::Object(
                entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
            )),
        ]
    })
}

fn shell() -> impl Strategy<Value = Value> {
    let kinds: Vec<(String, &str)> = Kind::ALL
        .into_iter()
        .flat_map(|kind| {
            kind.versions().iter().map(move |version| {
                let group = if kind.group().is_empty() { String::new() } else { format!("{}/", kind.group()) };
                (format!("{group}{version}"), kind.as_str())
            })
        })
        .collect();
    (proptest::sample::select(kinds), json_value(), json_value(), json_value(), json_value()).prop_map(
        |((api_version, kind), spec, status, matches, endpoints)| {
            json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": "x"}, "spec": spec, "status": status,
                   "matches": matches, "endpoints": endpoints})
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn arbitrary_documents_never_panic(document in prop_oneof![json_value(), shell()]) {
        let parsed = parse(&document);
        for error in parsed.errors {
            prop_assert!(!error.message.is_empty() && !error.object.is_empty());
            let _ = error.to_string();
        }
    }
}
