use super::*;

#[test]
fn weights_of_every_version_are_exact() {
    for (version, given, expected) in [
        ("v1alpha1", vec![json!("900m"), json!("100m")], vec![900, 100]),
        ("v1alpha1", vec![json!("1"), json!(1), json!(0.5), json!("500m")], vec![1000, 1000, 500, 500]),
        ("v1alpha1", vec![json!("1"), json!(0)], vec![1000, 0]),
        ("v1alpha2", vec![json!(90), json!(10)], vec![90, 10]),
        ("v1alpha3", vec![json!(0), json!(1)], vec![0, 1]),
        ("v1alpha4", vec![json!(1.0), json!(1e2)], vec![1, 100]),
        // Written as v1alpha1, and served as another version by an API server that does not convert.
        ("v1alpha4", vec![json!("900m"), json!("100m")], vec![900, 100]),
        ("v1alpha2", vec![json!("500m"), json!(1), json!("1")], vec![500, 1000, 1000]),
        ("v1alpha4", vec![json!(weft_policy::limits::WEIGHT_MAX)], vec![weft_policy::limits::WEIGHT_MAX]),
    ] {
        let split = read_split(&weights(version, &given));
        assert_eq!(
            split.backends.iter().map(|backend| backend.weight).collect::<Vec<_>>(),
            expected,
            "{version} {given:?}"
        );
    }
}

#[test]
fn weights_that_are_no_weights_are_refused() {
    for (version, given, field, message) in [
        ("v1alpha4", vec![json!(1), json!(-1)], "spec.backends[1].weight", "-1 must not be negative"),
        ("v1alpha4", vec![json!(0.5)], "spec.backends[0].weight", "0.5 must be a whole number"),
        ("v1alpha4", vec![json!(-0.5)], "spec.backends[0].weight", "-0.5 must not be negative"),
        ("v1alpha2", vec![json!("half")], "spec.backends[0].weight", "\"half\" is no quantity"),
        ("v1alpha4", vec![json!("1"), json!(0.5)], "spec.backends[1].weight", "0.5 must be a whole number"),
        (
            "v1alpha4",
            vec![json!("1"), json!(1u64 << 63)],
            "spec.backends[1].weight",
            "9223372036854775808 is over the limit of 1099511627",
        ),
        ("v1alpha3", vec![json!(null)], "spec.backends[0].weight", "null is no whole number"),
        ("v1alpha4", vec![json!(0), json!(0)], "spec.backends", "every weight is zero: no request could be answered"),
        ("v1alpha1", vec![json!("0"), json!(0)], "spec.backends", "every weight is zero: no request could be answered"),
        ("v1alpha1", vec![json!("-1")], "spec.backends[0].weight", "\"-1\" must not be negative"),
        ("v1alpha1", vec![json!("1x")], "spec.backends[0].weight", "\"1x\" is no quantity"),
        ("v1alpha1", vec![json!("0.0001")], "spec.backends[0].weight", "\"0.0001\" is finer than a thousandth"),
        (
            "v1alpha4",
            vec![json!(1u64 << 41)],
            "spec.backends[0].weight",
            "2199023255552 is over the limit of 1099511627776",
        ),
        ("v1alpha4", vec![json!(1e300)], "spec.backends[0].weight", "1e+300 is over the limit of 1099511627776"),
        ("v1alpha1", vec![json!("2G")], "spec.backends[0].weight", "\"2G\" is over the limit of 1099511627"),
        ("v1alpha4", vec![], "spec.backends", "must have at least one backend"),
    ] {
        let found = error(&weights(version, &given));
        assert_eq!(found, ("TrafficSplit shop/canary".into(), field.into(), message.into()), "{version} {given:?}");
    }
    assert!(error(&weights("v1alpha4", &vec![json!(1); 129])).2.contains("129 backends are over the limit of 128"));
}

#[test]
fn every_problem_of_an_object_is_named() {
    let (_, field, message) = error(&weights("v1alpha4", &[json!(-1), json!(0.5)]));
    assert_eq!(field, "spec.backends[0].weight");
    assert_eq!(message, "-1 must not be negative; spec.backends[1].weight: 0.5 must be a whole number");
}

#[test]
fn services_of_a_split_are_in_its_own_namespace() {
    let with = |root: &str| split("v1alpha4", json!({"service": root, "backends": [{"service": "b", "weight": 1}]}));
    for root in
        ["web", "web.shop", "web.shop.svc", "web.shop.svc.cluster.local", "web.shop.svc.cluster.local.", "shop/web"]
    {
        assert_eq!(&*read_split(&with(root)).root, "web", "{root}");
    }
    for (root, message) in [
        ("web.other", "names a Service of namespace \"other\"; a TrafficSplit reaches only its own, \"shop\""),
        (
            "web.other.svc.cluster.local",
            "names a Service of namespace \"other\"; a TrafficSplit reaches only its own, \"shop\"",
        ),
        ("other/web", "names a Service of namespace \"other\"; a TrafficSplit reaches only its own, \"shop\""),
        ("", "must name a Service"),
        ("Web", "\"Web\" is no valid name of a Service (RFC 1123 label)"),
        (".shop", "\".shop\" is no valid name of a Service (RFC 1123 label)"),
        (
            "www.example.com",
            "\"www.example.com\" names no Service of a cluster: after name and namespace must come \"svc\"",
        ),
    ] {
        assert_eq!(
            error(&with(root)),
            ("TrafficSplit shop/canary".into(), "spec.service".into(), message.into()),
            "{root}"
        );
    }
    let backend = split("v1alpha4", json!({"service": "web", "backends": [{"service": "b.other", "weight": 1}]}));
    assert_eq!(error(&backend).1, "spec.backends[0].service");
}

#[test]
fn matches_of_a_split_need_a_version_and_a_kind_that_have_them() {
    let with = |version: &str, one: Value| {
        split(version, json!({"service": "w", "backends": [{"service": "b", "weight": 1}], "matches": [one]}))
    };
    let plain = json!({"kind": "HTTPRouteGroup", "name": "g"});
    for version in ["v1alpha3", "v1alpha4"] {
        assert_eq!(read_split(&with(version, plain.clone())).groups, ["g".into()]);
    }
    let grouped = json!({"kind": "HTTPRouteGroup", "name": "g", "apiGroup": "specs.smi-spec.io"});
    assert_eq!(read_split(&with("v1alpha4", grouped)).groups, ["g".into()]);
    for (version, one, field) in [
        ("v1alpha1", plain.clone(), "spec.matches"),
        ("v1alpha2", plain, "spec.matches"),
        ("v1alpha4", json!({"kind": "TCPRoute", "name": "g"}), "spec.matches[0].kind"),
        ("v1alpha4", json!({"kind": "HTTPRouteGroup", "name": "g", "apiGroup": "x.io"}), "spec.matches[0].apiGroup"),
        ("v1alpha4", json!({"kind": "HTTPRouteGroup", "name": "G_"}), "spec.matches[0].name"),
    ] {
        assert_eq!(error(&with(version, one)).1, field);
    }
}

#[test]
fn both_shapes_of_route_groups_are_read_in_every_version() {
    let map = json!([{"name": "m", "pathRegex": "/api", "methods": ["GET"], "headers": {"User-Agent": ".*Android.*"}}]);
    let array =
        json!([{"name": "m", "pathRegex": "/api", "methods": ["GET"], "headers": [{"user-agent": ".*Android.*"}]}]);
    for version in Kind::HttpRouteGroup.versions() {
        for matches in [&map, &array] {
            for body in [json!({"matches": matches}), json!({"spec": {"matches": matches}})] {
                let mut document = group(body);
                document["apiVersion"] = json!(format!("specs.smi-spec.io/{version}"));
                let one = &read_group(&document).matches[0];
                assert_eq!((&*one.name, one.path_regex.as_deref()), ("m", Some("/api")));
                assert_eq!(one.methods, ["GET".into()]);
                assert_eq!(one.headers, [("user-agent".into(), ".*Android.*".into())]);
            }
        }
    }
    let several = group(json!({"matches": [{"name": "m", "headers": [{"a": "1"}, {"b": "2"}]}]}));
    assert_eq!(read_group(&several).matches[0].headers.len(), 2);
}

#[test]
fn route_groups_that_cannot_work_are_refused() {
    let long = "a".repeat(1025);
    for (matches, field, message) in [
        (json!([]), "spec.matches", "must have at least one match"),
        (json!([{"name": ""}]), "spec.matches[0].name", "must not be empty"),
        (json!([{"name": "m"}, {"name": "m"}]), "spec.matches[1].name", "\"m\" is given to two matches"),
        (
            json!([{"name": "m", "pathRegex": "/("}]),
            "spec.matches[0].pathRegex",
            "\"/(\": the regex does not compile: unclosed group",
        ),
        (
            json!([{"name": "m", "headers": {"x": "["}}]),
            "spec.matches[0].headers.x",
            "\"[\": the regex does not compile: unclosed character class",
        ),
        (json!([{"name": "m", "headers": {"x y": "1"}}]), "spec.matches[0].headers", "\"x y\" is no HTTP header name"),
        (
            json!([{"name": "m", "methods": ["GET", "get"]}]),
            "spec.matches[0].methods[1]",
            "\"get\" is none of *, GET, HEAD, PUT, POST, DELETE, CONNECT, OPTIONS, TRACE, PATCH",
        ),
        (
            json!([{"name": "m", "headers": [{"a": "1", "b": "2"}]}]),
            "spec.matches[0].headers",
            "expected maps with one entry each, found one with 2",
        ),
    ] {
        let found = error(&group(json!({"spec": {"matches": matches}})));
        assert_eq!(found.1, field);
        assert_eq!(found.2, message);
    }
    let over = error(&group(json!({"matches": [{"name": "m", "pathRegex": long}]})));
    assert!(over.2.ends_with("the regex has 1025 bytes, over the limit of 1024"), "{over:?}");
    let large = error(&group(json!({"matches": [{"name": "m", "pathRegex": "(?:a{1000}){1000}"}]})));
    assert!(large.2.ends_with("the regex compiles to more than 1048576 bytes"), "{large:?}");
    assert_eq!(error(&group(json!({"matches": [], "spec": {"matches": []}}))).1, "matches");
    assert_eq!(error(&group(json!({}))).1, "spec.matches");
    let many: Vec<Value> = (0..257).map(|n| json!({"name": format!("m{n}")})).collect();
    assert!(error(&group(json!({"matches": many}))).2.contains("257 matches are over the limit of 256"));
}
