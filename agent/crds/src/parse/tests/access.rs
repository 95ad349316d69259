use super::*;
use crate::smi::{
    identity_binding::IdentityBinding,
    traffic_target::{RouteKind, Subject, TrafficTarget},
};
use weft_policy::names::ServiceAccountKey;

fn target(version: &str, body: Value) -> Value {
    let mut document = json!({"apiVersion": format!("access.smi-spec.io/{version}"), "kind": "TrafficTarget",
                              "metadata": {"name": "t", "namespace": "shop"}});
    for (key, value) in body.as_object().unwrap() {
        document[key] = value.clone();
    }
    document
}

fn spec() -> Value {
    json!({"destination": {"kind": "ServiceAccount", "name": "web"},
           "sources": [{"kind": "ServiceAccount", "name": "client"}],
           "rules": [{"kind": "TCPRoute", "name": "any"}]})
}

fn with(mut spec: Value, pointer: &str, value: Value) -> Value {
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    let at = spec.pointer_mut(parent).unwrap();
    match (at.is_array(), field.parse::<usize>()) {
        (true, Ok(index)) => at[index] = value,
        _ => at[field] = value,
    }
    spec
}

fn read(document: &Value) -> TrafficTarget {
    let Object::TrafficTarget(target) = object(document) else { panic!("not a target") };
    (*target).clone()
}

fn binding(schemes: Value) -> Value {
    json!({"apiVersion": "access.smi-spec.io/v1alpha4", "kind": "IdentityBinding",
           "metadata": {"name": "b", "namespace": "shop"}, "spec": {"schemes": schemes}})
}

fn read_binding(document: &Value) -> IdentityBinding {
    let Object::IdentityBinding(binding) = object(document) else { panic!("not a binding") };
    (*binding).clone()
}

fn ports(kind: &str, version: &str, body: Value) -> Result<Option<Vec<u16>>, String> {
    let mut document = json!({"apiVersion": format!("specs.smi-spec.io/{version}"), "kind": kind,
                              "metadata": {"name": "r", "namespace": "shop"}});
    for (key, value) in body.as_object().unwrap() {
        document[key] = value.clone();
    }
    let parsed = parse(&document);
    match parsed.objects.first() {
        Some((Object::TcpRoute(route), _)) => Ok(route.ports.clone()),
        Some((Object::UdpRoute(route), _)) => Ok(route.ports.clone()),
        _ => Err(parsed.errors[0].field.clone()),
    }
}

#[test]
fn both_shapes_of_targets_are_read_in_every_version() {
    for version in Kind::TrafficTarget.versions() {
        for rules in ["rules", "specs"] {
            for nested in [true, false] {
                let mut body = spec();
                body[rules] = body.as_object_mut().unwrap().remove("rules").unwrap();
                let body = if nested { json!({"spec": body}) } else { body };
                let target = read(&target(version, body));
                assert_eq!(target.destination, Subject::Account(ServiceAccountKey::new("shop", "web")));
                let grant = target.grant.unwrap();
                assert_eq!(grant.sources, [Subject::Account(ServiceAccountKey::new("shop", "client"))]);
                assert_eq!((grant.rules[0].kind, &*grant.rules[0].name, grant.port), (RouteKind::Tcp, "any", None));
                assert_eq!((target.prefix, grant.rules_field), (if nested { "spec." } else { "" }, rules));
            }
        }
    }
}

#[test]
fn the_port_of_a_destination_is_a_number_or_a_string_in_every_version() {
    for version in Kind::TrafficTarget.versions() {
        for (port, expected) in [
            (json!(9091), Ok(Some(9091))),
            (json!("9091"), Ok(Some(9091))),
            (json!(null), Ok(None)),
            (json!(0), Err("0 is no port: it must be 1 to 65535")),
            (json!("http"), Err("\"http\" is no port: it must be 1 to 65535")),
            (json!("+80"), Err("\"+80\" is no port: it must be 1 to 65535")),
            (json!(""), Err("\"\" is no port: it must be 1 to 65535")),
            (json!(65_536), Err("65536 is no port: it must be 1 to 65535")),
            (json!(80.5), Err("80.5 is no port: it must be 1 to 65535")),
            (json!([80]), Err("[80] is no port: it must be 1 to 65535")),
        ] {
            let target = read(&target(version, json!({"spec": with(spec(), "/destination/port", port.clone())})));
            let found = target.grant.map(|grant| grant.port).map_err(|problems| problems[0].message.clone());
            assert_eq!(found, expected.map_err(str::to_owned), "{version} {port}");
        }
    }
}

#[test]
fn namespaces_default_to_the_targets_own() {
    let own = Subject::Account(ServiceAccountKey::new("shop", "web"));
    for namespace in [json!(null), json!(""), json!("shop")] {
        let spec = with(spec(), "/destination/namespace", namespace);
        assert_eq!(read(&target("v1alpha3", json!({"spec": spec}))).destination, own);
    }
    let other = with(spec(), "/sources/0/namespace", json!("else"));
    let grant = read(&target("v1alpha3", json!({"spec": other}))).grant.unwrap();
    assert_eq!(grant.sources, [Subject::Account(ServiceAccountKey::new("else", "client"))]);
}

#[test]
fn a_target_whose_destination_cannot_be_read_is_refused() {
    for (body, field) in [
        (json!({}), "spec.destination"),
        (json!({"spec": null}), "spec.destination"),
        (json!({"spec": []}), "spec.destination"),
        (json!({"spec": {"destination": "web"}}), "spec.destination.kind"),
        (json!({"spec": with(spec(), "/destination/kind", json!("Pod"))}), "spec.destination.kind"),
        (json!({"spec": with(spec(), "/destination/kind", json!(1))}), "spec.destination.kind"),
        (json!({"spec": with(spec(), "/destination/name", json!("Web"))}), "spec.destination.name"),
        (json!({"spec": with(spec(), "/destination/name", json!("a/b"))}), "spec.destination.name"),
        (json!({"spec": with(spec(), "/destination/name", json!(null))}), "spec.destination.name"),
        (json!({"spec": with(spec(), "/destination/namespace", json!("else"))}), "spec.destination.namespace"),
        (json!({"spec": with(spec(), "/destination/namespace", json!("a.b"))}), "spec.destination.namespace"),
        (json!({"spec": with(spec(), "/destination/group", json!("x.io"))}), "spec.destination.group"),
        (json!({"spec": spec(), "sources": []}), "sources"),
        (json!({"destination": {"kind": "ServiceAccount"}}), "destination.name"),
    ] {
        assert_eq!(error(&target("v1alpha3", body.clone())).1, field, "{body}");
    }
}

#[test]
fn a_target_with_a_good_destination_is_kept_whatever_else_is_wrong_and_grants_nothing() {
    let long: Vec<Value> = (0..4097).map(|n| json!({"kind": "ServiceAccount", "name": format!("s{n}")})).collect();
    let rules: Vec<Value> = (0..257).map(|n| json!({"kind": "TCPRoute", "name": format!("r{n}")})).collect();
    for (spec, field) in [
        (json!({"destination": {"kind": "ServiceAccount", "name": "web"}}), "spec.sources"),
        (with(spec(), "/sources", json!([])), "spec.sources"),
        (with(spec(), "/sources", json!(null)), "spec.sources"),
        (with(spec(), "/sources", json!({})), "spec.sources"),
        (with(spec(), "/sources", json!(long)), "spec.sources"),
        (with(spec(), "/sources/0/kind", json!("User")), "spec.sources[0].kind"),
        (with(spec(), "/sources/0/port", json!(80)), "spec.sources[0].port"),
        (with(spec(), "/sources/0/name", json!("")), "spec.sources[0].name"),
        (with(spec(), "/sources/0/namespace", json!("a.b")), "spec.sources[0].namespace"),
        (with(spec(), "/sources/0/group", json!("rbac.authorization.k8s.io")), "spec.sources[0].group"),
        (with(spec(), "/rules", json!([])), "spec.rules"),
        (with(spec(), "/rules", json!(rules)), "spec.rules"),
        (with(spec(), "/specs", json!([])), "spec.specs"),
        (with(spec(), "/rules/0/kind", json!("GRPCRoute")), "spec.rules[0].kind"),
        (with(spec(), "/rules/0/name", json!("a..b")), "spec.rules[0].name"),
        (with(spec(), "/rules/0/matches", json!(["m"])), "spec.rules[0].matches"),
        (with(spec(), "/rules/0/matches", json!("m")), "spec.rules[0].matches"),
        (with(spec(), "/rules/0/metods", json!([])), "spec.rules[0].metods"),
        (with(spec(), "/destination/labels", json!({})), "spec.destination.labels"),
        (with(spec(), "/action", json!("allow")), "spec.action"),
    ] {
        let target = read(&target("v1alpha3", json!({"spec": spec})));
        assert_eq!(target.destination, Subject::Account(ServiceAccountKey::new("shop", "web")), "{spec}");
        let problems = target.grant.unwrap_err();
        assert_eq!(problems.iter().map(|one| one.field.as_str()).collect::<Vec<_>>(), [field], "{spec}");
    }
}

#[test]
fn routes_are_ports_in_every_shape() {
    for version in Kind::TcpRoute.versions() {
        for (body, expected) in [
            (json!({}), Ok(None)),
            (json!({"spec": null}), Ok(None)),
            (json!({"spec": {}}), Ok(None)),
            (json!({"spec": {"matches": {}}}), Ok(None)),
            (json!({"spec": {"matches": null}}), Ok(None)),
            (json!({"spec": {"matches": {"ports": []}}}), Ok(None)),
            (json!({"matches": {"ports": []}}), Ok(None)),
            (json!({"spec": {"matches": {"ports": [8302, "8301", 8301]}}}), Ok(Some(vec![8301, 8302]))),
            (json!({"matches": {"name": "m", "ports": [80]}}), Ok(Some(vec![80]))),
            (json!({"spec": {}, "matches": {"ports": [80]}}), Ok(Some(vec![80]))),
            (json!({"spec": {"matches": {"ports": [80, 0]}}}), Err("spec.matches.ports[1]")),
            (json!({"spec": {"matches": {"ports": ["http"]}}}), Err("spec.matches.ports[0]")),
            (json!({"spec": {"matches": {"ports": 80}}}), Err("spec.matches.ports")),
            (json!({"spec": {"matches": {"port": [80]}}}), Err("spec.matches.port")),
            (json!({"spec": {"matches": [{"ports": [80, 81]}]}}), Err("spec.matches[0]")),
            (json!({"spec": {"ports": [80]}}), Err("spec.ports")),
            (json!({"spec": {"matches": {"ports": vec![80; 1025]}}}), Err("spec.matches.ports")),
            (json!({"spec": {"matches": {"ports": [80]}}, "matches": {}}), Err("matches")),
        ] {
            let expected = expected.map_err(str::to_owned);
            assert_eq!(ports("TCPRoute", version, body.clone()), expected, "{body}");
            if *version == "v1alpha4" {
                assert_eq!(ports("UDPRoute", version, body.clone()), expected, "{body}");
            }
        }
    }
}

#[test]
fn bindings_mean_an_account_or_labels() {
    let labels = json!({"matchLabels": {"app": "a"}});
    let account = read_binding(&binding(json!({"serviceAccount": "a"})));
    assert_eq!(account.accounts().collect::<Vec<_>>(), [ServiceAccountKey::new("shop", "a")]);
    for schemes in [
        json!({"podLabelSelector": labels}),
        json!({"podLabelSelectors": [{"name": "n", "matchLabels": {"app": "a"}}]}),
        json!({"podLabelSelectors": [{"matchLabels": {"app": "x"}}, labels]}),
    ] {
        let binding = read_binding(&binding(schemes));
        assert!(binding.selects(&[("app".to_owned(), "a".to_owned())].into()));
        assert!(!binding.selects(&[("app".to_owned(), "b".to_owned())].into()));
        assert_eq!(binding.accounts().count(), 0);
    }
    let spiffe = read_binding(&binding(json!({"spiffeIdentities": [
        "cluster.local/ns/shop/sa/one", "spiffe://cluster.local/ns/shop/sa/two", "cluster.local/ns/else/sa/three",
        "federated.trustdomain/boundary/boundaryName/identifierType/identifier", ""]})));
    assert_eq!(spiffe.spiffe_accounts, ["one".into(), "two".into()]);
    assert_eq!((spiffe.spiffe_identities, &spiffe.service_account), (5, &None));
    for (schemes, field) in [
        (json!({}), "spec.schemes"),
        (json!({"serviceAccount": "a", "podLabelSelector": labels}), "spec.schemes"),
        (json!({"serviceAccount": "A"}), "spec.schemes.serviceAccount"),
        (json!({"podLabelSelector": {"matchLabels": {}}}), "spec.schemes.podLabelSelector.matchLabels"),
        (json!({"podLabelSelector": {}}), "spec.schemes.podLabelSelector"),
        (json!({"podLabelSelector": {"matchExpressions": []}}), "spec.schemes.podLabelSelector.matchExpressions"),
        (json!({"jwt": {}}), "spec.schemes.jwt"),
    ] {
        assert_eq!(error(&binding(schemes.clone())).1, field, "{schemes}");
    }
}
