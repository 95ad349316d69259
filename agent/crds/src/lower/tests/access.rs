use weft_policy::{
    inbound::Stance,
    ir::{AccessIr, GrantIr},
    names::{ObjectRef, ServiceAccountKey},
};

use super::*;

fn account(name: &str) -> ServiceAccountKey {
    ServiceAccountKey::new("shop", name)
}

fn target(name: &str, destination: &str, sources: &[&str], rules: Value) -> Value {
    let sources: Vec<Value> = sources.iter().map(|name| json!({"kind": "ServiceAccount", "name": name})).collect();
    json!({"apiVersion": "access.smi-spec.io/v1alpha3", "kind": "TrafficTarget", "metadata": {"name": name, "namespace": "shop"},
           "spec": {"destination": {"kind": "ServiceAccount", "name": destination}, "sources": sources, "rules": rules}})
}

fn route(kind: &str, name: &str, ports: &[u16]) -> Value {
    json!({"apiVersion": "specs.smi-spec.io/v1alpha4", "kind": kind, "metadata": {"name": name, "namespace": "shop"},
           "spec": {"matches": {"ports": ports}}})
}

fn binding(name: &str, schemes: Value) -> Value {
    json!({"apiVersion": "access.smi-spec.io/v1alpha4", "kind": "IdentityBinding", "metadata": {"name": name, "namespace": "shop"},
           "spec": {"schemes": schemes}})
}

/// What rules may name: TCP and UDP on all ports, on 80 and on 81 and 82; requests `get` and `post`.
fn routes() -> Vec<Value> {
    vec![
        route("TCPRoute", "all", &[]),
        route("TCPRoute", "p80", &[80]),
        route("TCPRoute", "p81", &[82, 81]),
        route("UDPRoute", "all", &[]),
        route("UDPRoute", "p80", &[80]),
        group("g", json!([{"name": "get", "methods": ["GET"]}, {"name": "post", "methods": ["POST"]}])),
    ]
}

fn with_routes(documents: impl IntoIterator<Item = Value>) -> MeshIr {
    lowered(&routes().into_iter().chain(documents).collect::<Vec<_>>())
}

fn access<'a>(ir: &'a MeshIr, name: &str) -> &'a AccessIr {
    &ir.access[&account(name)]
}

fn told(ir: &MeshIr) -> Vec<(&'static str, String)> {
    let found = ir.access_diagnostics.values().flat_map(|found| found.iter());
    found.map(|one| (one.code, one.field.clone())).collect()
}

fn requests(grant: &GrantIr) -> Option<Vec<&str>> {
    grant.requests.as_ref().map(|requests| requests.iter().map(|one| &*one.name).collect())
}

#[test]
fn rules_of_different_kinds_must_all_hold_and_rules_of_one_kind_add_up() {
    let (tcp, udp, http) = ("TCPRoute", "UDPRoute", "HTTPRouteGroup");
    type Expected = (Option<Vec<u16>>, Option<Vec<u16>>, Option<Vec<&'static str>>);
    let cases: Vec<(Vec<(&str, &str)>, Expected)> = vec![
        (vec![(tcp, "all")], (None, Some(vec![]), None)),
        (vec![(tcp, "p80"), (tcp, "p81")], (Some(vec![80, 81, 82]), Some(vec![]), None)),
        (vec![(tcp, "p80"), (tcp, "all")], (None, Some(vec![]), None)),
        (vec![(http, "g")], (None, Some(vec![]), Some(vec!["get", "post"]))),
        (vec![(http, "g"), (tcp, "p80")], (Some(vec![80]), Some(vec![]), Some(vec!["get", "post"]))),
        (vec![(udp, "p80")], (Some(vec![]), Some(vec![80]), None)),
        (vec![(udp, "all")], (Some(vec![]), None, None)),
        (vec![(udp, "p80"), (tcp, "p81")], (Some(vec![81, 82]), Some(vec![80]), None)),
        (vec![(udp, "p80"), (http, "g")], (None, Some(vec![80]), Some(vec!["get", "post"]))),
        // What does not exist stands for nothing; it never makes the others grant more.
        (vec![(tcp, "gone")], (Some(vec![]), Some(vec![]), None)),
        (vec![(tcp, "gone"), (tcp, "p80")], (Some(vec![80]), Some(vec![]), None)),
        (vec![(http, "gone")], (None, Some(vec![]), Some(vec![]))),
        (vec![(http, "gone"), (tcp, "all")], (None, Some(vec![]), Some(vec![]))),
        (vec![(http, "g"), (tcp, "gone")], (Some(vec![]), Some(vec![]), Some(vec!["get", "post"]))),
        (vec![(udp, "gone")], (Some(vec![]), Some(vec![]), None)),
    ];
    for (rules, (tcp_ports, udp_ports, expected)) in cases {
        let missing = rules.iter().filter(|(_, name)| *name == "gone").count();
        let document: Vec<Value> = rules.iter().map(|(kind, name)| json!({"kind": kind, "name": name})).collect();
        let ir = with_routes([target("t", "web", &["client"], json!(document))]);
        let grant = &access(&ir, "web").grants[0];
        assert_eq!((&grant.tcp_ports, &grant.udp_ports), (&tcp_ports, &udp_ports), "{rules:?}");
        assert_eq!(requests(grant), expected, "{rules:?}");
        assert_eq!(grant.accounts, [account("client")]);
        assert_eq!(told(&ir).len(), missing, "{rules:?}");
    }
}

#[test]
fn matches_that_are_left_out_mean_all_and_those_that_do_not_exist_none() {
    for (matches, expected, findings) in [
        (json!(null), vec!["get", "post"], vec![]),
        (json!(["post"]), vec!["post"], vec![]),
        (json!(["post", "get", "post"]), vec!["get", "post"], vec![]),
        (json!(["gone", "get"]), vec!["get"], vec![("MatchNotFound", "spec.rules[0].matches[0]".to_owned())]),
        (json!(["gone"]), vec![], vec![("MatchNotFound", "spec.rules[0].matches[0]".to_owned())]),
        (json!([]), vec![], vec![("EmptyMatches", "spec.rules[0].matches".to_owned())]),
    ] {
        let rule = json!([{"kind": "HTTPRouteGroup", "name": "g", "matches": matches}]);
        let ir = with_routes([target("t", "web", &["client"], rule)]);
        assert_eq!(requests(&access(&ir, "web").grants[0]), Some(expected), "{matches}");
        assert_eq!(told(&ir), findings, "{matches}");
    }
}

#[test]
fn a_destinations_own_port_narrows_what_routes_say() {
    for (port, rule, expected, findings) in [
        (json!(80), "all", vec![80], 0),
        (json!("80"), "p80", vec![80], 0),
        (json!(81), "p81", vec![81], 0),
        (json!(81), "p80", vec![], 1),
    ] {
        let rules = json!([{"kind": "TCPRoute", "name": rule}]);
        let target = with(target("t", "web", &["client"], rules), "spec.destination.port", port.clone());
        let ir = with_routes([target]);
        assert_eq!(access(&ir, "web").grants[0].tcp_ports, Some(expected), "{port} {rule}");
        assert_eq!(told(&ir).len(), findings, "{port} {rule}");
    }
}

#[test]
fn targets_add_up_and_a_broken_one_selects_and_grants_nothing() {
    let tcp = json!([{"kind": "TCPRoute", "name": "all"}]);
    let broken = with(target("broken", "web", &["x"], tcp.clone()), "spec.action", json!("allow"));
    let ir = with_routes([
        target("b", "web", &["two"], tcp.clone()),
        target("a", "web", &["one"], tcp.clone()),
        target("other", "db", &["one"], tcp),
        broken.clone(),
    ]);
    let web = access(&ir, "web");
    let names: Vec<&str> = web.selected_by.iter().map(|one| &*one.name).collect();
    assert_eq!(names, ["a", "b", "broken"]);
    let granted: Vec<_> = web.grants.iter().map(|grant| (&*grant.origin.name, &*grant.accounts[0].name)).collect();
    assert_eq!(granted, [("a", "one"), ("b", "two")]);
    assert_eq!(told(&ir), [("Invalid", "spec.action".to_owned())]);
    let alone = with_routes([broken]);
    assert_eq!((access(&alone, "web").selected_by.len(), access(&alone, "web").grants.len()), (1, 0));
    assert!(with_routes([]).access.is_empty());
}

#[test]
fn bindings_name_accounts_or_single_pods_on_both_sides() {
    let subject = |name: &str| json!({"kind": "IdentityBinding", "name": name});
    let rules = json!([{"kind": "TCPRoute", "name": "all"}]);
    let between = |from: &str, to: &str| {
        let target = with(target("t", "x", &[], rules.clone()), "spec.sources", json!([subject(from)]));
        with(target, "spec.destination", subject(to))
    };
    let objects = || {
        vec![
            pod("p1", "one", &["10.0.0.1"]),
            pod("p2", "two", &["10.0.0.2"]),
            binding("account", json!({"serviceAccount": "sa"})),
            binding("labels", json!({"podLabelSelector": {"matchLabels": {"app": "one"}}})),
            binding("spiffe", json!({"spiffeIdentities": ["cluster.local/ns/shop/sa/sa", "x/y"]})),
            binding("foreign", json!({"spiffeIdentities": ["x/y"]})),
        ]
    };
    let one = WorkloadId::new("shop/p1");
    for (from, accounts, workloads, findings) in [
        ("account", vec![account("sa")], vec![], vec![]),
        ("labels", vec![], vec![one.clone()], vec![]),
        ("spiffe", vec![], vec![], vec!["SpiffeNotProven"]),
        ("gone", vec![], vec![], vec!["IdentityBindingNotFound"]),
    ] {
        let ir = with_routes(objects().into_iter().chain([between(from, "account")]));
        let grant = &access(&ir, "sa").grants[0];
        assert_eq!((&grant.accounts, &grant.workloads), (&accounts, &workloads), "{from}");
        assert_eq!(told(&ir).into_iter().map(|(code, _)| code).collect::<Vec<_>>(), findings, "{from}");
    }
    for (to, accounts, bindings, findings) in [
        ("account", vec![account("sa")], 0, vec![]),
        ("spiffe", vec![account("sa")], 0, vec![]),
        ("labels", vec![], 1, vec![]),
        ("foreign", vec![], 0, vec!["DestinationNotFound"]),
        ("gone", vec![], 0, vec!["DestinationNotFound"]),
    ] {
        let ir = with_routes(objects().into_iter().chain([between("account", to)]));
        assert_eq!(ir.access.keys().cloned().collect::<Vec<_>>(), accounts, "{to}");
        assert_eq!(ir.bindings.len(), bindings, "{to}");
        assert_eq!(told(&ir).into_iter().map(|(code, _)| code).collect::<Vec<_>>(), findings, "{to}");
        for binding in ir.bindings.values() {
            assert_eq!(binding.workloads, std::slice::from_ref(&one));
            assert_eq!(binding.grants[0].accounts, [account("sa")]);
        }
    }
}

#[test]
fn no_more_targets_grant_at_one_destination_than_may() {
    let max = weft_policy::limits::GRANTS_PER_DESTINATION_MAX;
    let rules = json!([{"kind": "TCPRoute", "name": "all"}]);
    let targets = (0..=max).map(|n| target(&format!("t{n:05}"), "web", &["client"], rules.clone()));
    let ir = with_routes(targets);
    let web = access(&ir, "web");
    assert_eq!((web.selected_by.len(), web.grants.len()), (max + 1, max));
    assert_eq!(told(&ir), [("TooManyTargets", "spec.destination".to_owned())]);
    assert_eq!(ir.access_diagnostics[&ObjectRef::new("ServiceAccount", "shop", "web")][0].object.name, "t01024".into());
}

#[test]
fn a_namespace_says_what_holds_where_nothing_selects_and_nonsense_denies() {
    for (labels, expected, errors) in [
        (json!({}), None, 0),
        (json!({"weft.dev/default": "allow"}), Some(false), 0),
        (json!({"weft.dev/default": "deny"}), Some(true), 0),
        (json!({"weft.dev/default": "Allow"}), Some(true), 1),
        (json!({"weft.dev/default": ""}), Some(true), 1),
    ] {
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": labels}});
        let ir = lowered(&[namespace]);
        let origin = Some(Arc::new(ObjectRef::new("Namespace", "", "shop")));
        let expected = expected.map(|deny| Stance { deny, origin });
        assert_eq!(ir.stances.get("shop"), expected.as_ref(), "{labels}");
        assert_eq!(findings(&ir).len(), errors, "{labels}");
    }
}
