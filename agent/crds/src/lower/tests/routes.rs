use super::*;

#[test]
fn a_split_becomes_a_route_of_its_root() {
    let ir = shop_and([split("canary", &[("web-v1", 90), ("web-v2", 10)], &[])]);
    let [route] = &*service_of(&ir, "web").routes else { panic!("one route") };
    assert_eq!(route.rule.origin, ObjectRef::new("TrafficSplit", "shop", "canary"));
    assert_eq!(route.matches, None);
    let shares: Vec<_> =
        route.rule.backends().iter().map(|one| (one.service.to_string(), one.weight, one.ports.clone())).collect();
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
    assert_eq!(matches(0)[2].headers, [("cookie".into(), weft_policy::ir::ValueIr::Search("x".into()))]);
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
    assert_eq!(route.rule.backends().iter().map(|one| one.service.to_string()).collect::<Vec<_>>(), ["shop/web-v2"]);
    assert_eq!(
        findings(&ir),
        [("TrafficSplit shop/canary".into(), "BackendNotFound", "spec.backends[0].service".into())]
    );
}

#[test]
fn the_root_as_a_backend_means_its_own_endpoints_with_a_warning() {
    let ir = shop_and([split("canary", &[("web", 50), ("web-v2", 10)], &[])]);
    assert_eq!(service_of(&ir, "web").routes[0].rule.backends()[0].service, key("web"));
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
    let ports: Vec<_> = service_of(&ir, "web").routes[0].rule.backends().iter().map(|one| one.ports.clone()).collect();
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
    assert!(service_of(&ir, "web").routes[0].rule.backends()[0].ports.is_empty());
}

#[test]
fn weights_of_v1alpha1_keep_their_proportions() {
    let mut old = split("s", &[("web-v1", 0), ("web-v2", 0)], &[]);
    old["apiVersion"] = json!("split.smi-spec.io/v1alpha1");
    old["spec"].as_object_mut().unwrap().remove("matches");
    old["spec"]["backends"][0]["weight"] = json!("1");
    old["spec"]["backends"][1]["weight"] = json!("500m");
    let ir = shop_and([old]);
    assert_eq!(
        service_of(&ir, "web").routes[0].rule.backends().iter().map(|one| one.weight).collect::<Vec<_>>(),
        [1000, 500]
    );
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
