use weft_policy::{
    ir::{MatchIr, PathIr, ValueIr},
    rule::{ActionIr, PathChange, Redirect, Refusal},
};

use super::*;

const V1: &str = "gateway.networking.k8s.io/v1";

/// An HTTPRoute of namespace `shop` for Service `web`.
fn route(name: &str, rules: Value) -> Value {
    json!({"apiVersion": V1, "kind": "HTTPRoute", "metadata": {"name": name, "namespace": "shop"},
           "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "web"}], "rules": rules}})
}

fn grpc(name: &str, rules: Value) -> Value {
    with(route(name, rules), "kind", json!("GRPCRoute"))
}

fn to(service: &str) -> Value {
    json!([{"name": service, "port": 80}])
}

fn created(document: Value, time: &str) -> Value {
    with(document, "metadata.creationTimestamp", json!(time))
}

fn rules(ir: &MeshIr) -> Vec<String> {
    let routes = &service_of(ir, "web").routes;
    routes.iter().map(|route| format!("{} {}", route.rule.origin.name, route.rule.name)).collect()
}

fn one_match(route: &RouteIr) -> &MatchIr {
    let Some([one]) = route.matches.as_deref() else { panic!("one match: {route:?}") };
    one
}

/// Which rule is first for each of several matches, in order of precedence.
fn order(matches: Value) -> Vec<String> {
    let rules: Vec<Value> = matches
        .as_array()
        .unwrap()
        .iter()
        .enumerate()
        .map(|(index, one)| json!({"name": index.to_string(), "matches": [one], "backendRefs": to("web-v1")}))
        .collect();
    let ir = shop_and([route("r", json!(rules))]);
    assert_eq!(findings(&ir), []);
    let routes = &service_of(&ir, "web").routes;
    routes[..routes.len() - 1].iter().map(|route| route.rule.name.to_string()).collect()
}

#[test]
fn a_route_shares_out_what_it_takes_and_refuses_the_rest() {
    let ir = shop_and([route(
        "canary",
        json!([{"matches": [{"path": {"value": "/api"}}, {"headers": [{"name": "User", "value": "test"}]}],
                "backendRefs": [{"name": "web-v1", "port": 80, "weight": 90}, {"name": "web-v2", "port": 80, "weight": 10}]}]),
    )]);
    assert_eq!(findings(&ir), []);
    let routes = &service_of(&ir, "web").routes;
    assert_eq!(rules(&ir), ["canary rules[0]", "canary rules[0]", "web "]);
    assert!(Arc::ptr_eq(&routes[0].rule, &routes[1].rule), "matches of one rule share it");
    assert_eq!(one_match(&routes[0]).path, Some(PathIr::Prefix("/api".into())));
    assert_eq!(one_match(&routes[1]).headers, [("user".into(), ValueIr::Exact("test".into()))]);
    assert_eq!(&*one_match(&routes[1]).name, "rules[0].matches[1]");
    assert!(routes.iter().all(|route| route.requests_only && route.clients.is_none() && route.ports.is_none()));
    let ActionIr::Forward { backends, keeps_shares: true } = &routes[0].rule.action else { panic!("{routes:?}") };
    let shares: Vec<_> = backends.iter().map(|one| (&*one.service.name, one.weight, one.ports.clone())).collect();
    assert_eq!(shares, [("web-v1", 90, vec![(80, 80)]), ("web-v2", 10, vec![(80, 80)])]);
    assert_eq!(routes[2].matches, None);
    assert_eq!(routes[2].rule.action, ActionIr::Refuse(Refusal::NoRoute));
}

#[test]
fn precedence_of_matches_is_that_of_the_specification() {
    for (what, matches, expected) in [
        (
            "exact path, regex, longest prefix",
            json!([{"path": {"value": "/"}}, {"path": {"value": "/a/b"}}, {"path": {"value": "/a"}},
                   {"path": {"type": "Exact", "value": "/a"}}, {"path": {"type": "RegularExpression", "value": "/[a-z]+"}}]),
            ["3", "4", "1", "2", "0"].as_slice(),
        ),
        ("method before headers", json!([{"headers": [{"name": "a", "value": "x"}]}, {"method": "GET"}]), &["1", "0"]),
        (
            "most headers, then most query parameters",
            json!([{"queryParams": [{"name": "q", "value": "x"}, {"name": "r", "value": "x"}]},
                   {"headers": [{"name": "a", "value": "x"}]},
                   {"headers": [{"name": "a", "value": "x"}, {"name": "b", "value": "x"}]},
                   {"headers": [{"name": "c", "value": "x"}], "queryParams": [{"name": "q", "value": "x"}]}]),
            &["2", "3", "1", "0"],
        ),
        (
            "a longer path before a method",
            json!([{"method": "GET", "path": {"value": "/a"}}, {"path": {"value": "/ab"}}]),
            &["1", "0"],
        ),
        ("first rule of one route", json!([{"method": "GET"}, {"method": "PUT"}]), &["0", "1"]),
        (
            "a slash at the end of a prefix says nothing",
            json!([{"path": {"value": "/a"}}, {"path": {"value": "/a/"}}]),
            &["0", "1"],
        ),
    ] {
        assert_eq!(order(matches), expected, "{what}");
    }
}

#[test]
fn the_older_route_comes_first_and_then_the_first_by_name() {
    let rules_of = json!([{"backendRefs": to("web-v1")}]);
    let ir = shop_and([
        created(route("a-young", rules_of.clone()), "2026-01-02T00:00:00Z"),
        created(route("z-old", rules_of.clone()), "2026-01-01T00:00:00Z"),
        route("c-ageless", rules_of.clone()),
        route("b-ageless", rules_of),
    ]);
    assert_eq!(rules(&ir), ["z-old rules[0]", "a-young rules[0]", "b-ageless rules[0]", "c-ageless rules[0]", "web "]);
}

#[test]
fn calls_of_grpc_are_ranked_by_service_and_method() {
    let by = |method: Value| json!({"matches": [{"method": method}], "backendRefs": to("web-v1")});
    let ir = shop_and([grpc(
        "g",
        json!([
            {"backendRefs": to("web-v1")},
            by(json!({"method": "Get"})),
            by(json!({"service": "shop.Cart"})),
            by(json!({"service": "shop.Cart", "method": "Get"})),
            by(json!({"type": "RegularExpression", "service": "shop\\..*"})),
        ]),
    )]);
    assert_eq!(findings(&ir), []);
    let routes = &service_of(&ir, "web").routes;
    let paths: Vec<_> = routes[..5].iter().map(|route| one_match(route).path.clone()).collect();
    assert_eq!(
        paths,
        [
            Some(PathIr::Exact("/shop.Cart/Get".into())),
            Some(PathIr::Prefix("/shop.Cart".into())),
            Some(PathIr::Regex("/(?:shop\\..*)/[^/]+".into())),
            Some(PathIr::Regex("/[^/]+/Get".into())),
            None,
        ]
    );
}

#[test]
fn a_parent_means_all_ports_or_those_that_it_names() {
    let web = service("web", json!({"ports": [{"port": 80, "name": "http"}, {"port": 90, "name": "admin"}]}));
    for (parent, ports, found) in [
        (json!({}), None, None),
        (json!({"port": 90}), Some(vec![90]), None),
        (json!({"sectionName": "http"}), Some(vec![80]), None),
        (json!({"sectionName": "admin", "port": 90}), Some(vec![90]), None),
        (json!({"sectionName": "admin", "port": 80}), Some(vec![]), Some("NoMatchingParent")),
        (json!({"port": 91}), Some(vec![]), Some("NoMatchingParent")),
        (json!({"namespace": "gone"}), Some(vec![]), Some("NoMatchingParent")),
    ] {
        let mut parent = parent;
        parent["kind"] = json!("Service");
        parent["group"] = json!("core");
        parent["name"] = json!("web");
        let document = route("r", json!([{"backendRefs": to("web-v1")}]));
        let ir = lowered(&[
            web.clone(),
            super::web("web-v1", "10.96.0.2"),
            with(document, "spec.parentRefs", json!([{"name": "a-gateway"}, parent])),
        ]);
        let routes = &service_of(&ir, "web").routes;
        match &ports {
            Some(none) if none.is_empty() => assert_eq!(routes.len(), 0, "{parent}"),
            ports => assert!(routes.iter().all(|route| route.ports == *ports) && routes.len() == 2, "{parent}"),
        }
        let expected = found.map(|code| ("HTTPRoute shop/r".to_owned(), code, "spec.parentRefs[1]".to_owned()));
        assert_eq!(findings(&ir), Vec::from_iter(expected), "{parent}");
    }
}

#[test]
fn a_route_of_another_namespace_is_for_the_clients_of_that_namespace() {
    let mut consumer = with(route("own", json!([{"backendRefs": to("web-v2")}])), "metadata.namespace", json!("else"));
    consumer["spec"]["parentRefs"][0]["namespace"] = json!("shop");
    consumer["spec"]["rules"][0]["backendRefs"][0]["namespace"] = json!("shop");
    let ir = shop_and([route("all", json!([{"backendRefs": to("web-v1")}])), consumer]);
    assert_eq!(findings(&ir), [], "the parent's own namespace needs no grant");
    let routes = &service_of(&ir, "web").routes;
    let seen: Vec<_> = routes.iter().map(|route| (route.clients.as_deref(), &*route.rule.origin.name)).collect();
    assert_eq!(seen, [(None, "all"), (None, "web"), (Some("else"), "own"), (Some("else"), "web")]);
}

#[test]
fn a_backend_that_may_not_or_cannot_answer_keeps_its_share_as_errors() {
    let grant = |from: &str, kind: &str, to: Value| {
        json!({"apiVersion": "gateway.networking.k8s.io/v1beta1", "kind": "ReferenceGrant",
               "metadata": {"name": "g", "namespace": "else"},
               "spec": {"from": [{"group": "gateway.networking.k8s.io", "kind": kind, "namespace": from}], "to": [to]}})
    };
    let any = json!({"group": "", "kind": "Service"});
    let there = with(web("there", "10.96.0.9"), "metadata.namespace", json!("else"));
    let other = json!({"name": "there", "namespace": "else", "port": 80});
    for (backend, grants, invalid) in [
        (json!({"name": "web-v1", "port": 80}), vec![], None),
        (json!({"name": "gone", "port": 80}), vec![], Some("BackendNotFound")),
        (json!({"name": "web-v1", "port": 81}), vec![], Some("BackendNotFound")),
        (json!({"name": "x", "kind": "Bucket", "group": "s3.example", "port": 80}), vec![], Some("InvalidKind")),
        (json!({"name": "x", "kind": "Pod"}), vec![], Some("InvalidKind")),
        (other.clone(), vec![], Some("RefNotPermitted")),
        (other.clone(), vec![grant("shop", "HTTPRoute", any.clone())], None),
        (
            other.clone(),
            vec![grant("shop", "HTTPRoute", json!({"group": "", "kind": "Service", "name": "there"}))],
            None,
        ),
        (
            other.clone(),
            vec![grant("shop", "HTTPRoute", json!({"group": "", "kind": "Service", "name": "x"}))],
            Some("RefNotPermitted"),
        ),
        (
            other.clone(),
            vec![grant("shop", "HTTPRoute", json!({"group": "", "kind": "Secret"}))],
            Some("RefNotPermitted"),
        ),
        (other.clone(), vec![grant("shop", "GRPCRoute", any.clone())], Some("RefNotPermitted")),
        (other, vec![grant("third", "HTTPRoute", any)], Some("RefNotPermitted")),
        (
            json!({"name": "web-v1", "port": 80, "filters": [{"type": "URLRewrite", "urlRewrite": {"hostname": "x"}}]}),
            vec![],
            Some("UnsupportedValue"),
        ),
    ] {
        let rule = json!([{"backendRefs": [backend, {"name": "web-v2", "port": 80}]}]);
        let ir = shop_and(grants.into_iter().chain([there.clone(), route("r", rule)]));
        let [bad, good] = service_of(&ir, "web").routes[0].rule.backends() else { panic!("{backend}") };
        assert_eq!((bad.invalid.as_deref(), bad.weight, good.invalid.as_deref()), (invalid, 1, None), "{backend}");
        assert_eq!(bad.ports.len(), 1, "it takes its share at every port: {backend}");
        let codes: Vec<_> = findings(&ir).into_iter().map(|(_, code, _)| code).collect();
        assert_eq!(codes, Vec::from_iter(invalid), "{backend}");
    }
}

#[test]
fn a_rule_that_cannot_be_carried_out_refuses_what_it_takes_and_the_others_go_on() {
    let filter = |filter: Value| json!({"filters": [filter], "backendRefs": to("web-v1")});
    let headers = |edits: Value| filter(json!({"type": "RequestHeaderModifier", "requestHeaderModifier": edits}));
    for (rule, code, field) in [
        (filter(json!({"type": "Later", "later": {}})), "UnsupportedValue", "filters[0].later"),
        (filter(json!({"type": "Later"})), "UnsupportedValue", "filters[0].type"),
        (filter(json!("x")), "UnsupportedValue", "filters[0]"),
        (filter(json!({"type": "RequestMirror"})), "UnsupportedValue", "filters[0]"),
        (
            filter(json!({"type": "CORS", "cors": {"allowOrigins": ["x"]}})),
            "UnsupportedValue",
            "filters[0].cors.allowOrigins",
        ),
        (
            filter(json!({"type": "ExternalAuth", "externalAuth": {"protocol": "HTTP"}})),
            "UnsupportedValue",
            "filters[0].type",
        ),
        (
            filter(json!({"type": "ExtensionRef", "extensionRef": {"group": "x.dev", "kind": "Y", "name": "z"}})),
            "UnsupportedValue",
            "filters[0].extensionRef",
        ),
        (
            headers(json!({"set": [{"name": "a b", "value": "x"}]})),
            "UnsupportedValue",
            "filters[0].requestHeaderModifier.set[0].name",
        ),
        (headers(json!({"remove": ["Connection"]})), "UnsupportedValue", "filters[0].requestHeaderModifier.remove[0]"),
        (
            headers(json!({"add": [{"name": "weft-id", "value": "x"}]})),
            "UnsupportedValue",
            "filters[0].requestHeaderModifier.add[0].name",
        ),
        (
            headers(json!({"set": [{"name": "a", "value": "x\ny"}]})),
            "UnsupportedValue",
            "filters[0].requestHeaderModifier.set[0].value",
        ),
        (
            filter(json!({"type": "RequestRedirect", "requestRedirect": {"hostname": "x"}})),
            "IncompatibleFilters",
            "backendRefs",
        ),
        (
            json!({"filters": [{"type": "RequestRedirect", "requestRedirect": {"statusCode": 304}}]}),
            "UnsupportedValue",
            "filters[0].requestRedirect.statusCode",
        ),
        (
            json!({"matches": [{"path": {"type": "Exact", "value": "/a"}}], "backendRefs": to("web-v1"), "filters": [
                {"type": "URLRewrite", "urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}}}]}),
            "IncompatibleFilters",
            "filters[0].urlRewrite.path.replacePrefixMatch",
        ),
        (
            filter(
                json!({"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "web-v1", "port": 80}, "percent": 101}}),
            ),
            "UnsupportedValue",
            "filters[0].requestMirror.percent",
        ),
        (json!({"matches": [{}]}), "BackendNotFound", "backendRefs"),
        (json!({"backendRefs": [{"name": "web-v1", "port": 80, "weight": 0}]}), "BackendNotFound", "backendRefs"),
    ] {
        let rules = json!([rule, {"matches": [{"path": {"value": "/fine"}}], "backendRefs": to("web-v1")}]);
        let ir = shop_and([route("r", rules)]);
        assert_eq!(findings(&ir), [("HTTPRoute shop/r".into(), code, format!("spec.rules[0].{field}"))], "{rule}");
        let routes = &service_of(&ir, "web").routes;
        let action = |name: &str| &routes.iter().find(|route| &*route.rule.name == name).unwrap().rule.action;
        assert!(matches!(action("rules[0]"), ActionIr::Refuse(Refusal::Invalid(_))), "{rule}");
        assert!(matches!(action("rules[1]"), ActionIr::Forward { .. }), "{rule}");
    }
}

#[test]
fn filters_say_what_is_done() {
    let ir = shop_and([route(
        "r",
        json!([
            {"name": "edit", "matches": [{"path": {"value": "/p/"}}], "timeouts": {"request": "10s", "backendRequest": "1s"},
             "retry": {"codes": [503, 500, 503], "attempts": 30, "backoff": "100ms"},
             "filters": [
                {"type": "RequestHeaderModifier", "requestHeaderModifier":
                    {"set": [{"name": "X-A", "value": "1"}, {"name": "x-a", "value": "2"}], "add": [{"name": "b", "value": "3"}], "remove": ["C"]}},
                {"type": "URLRewrite", "urlRewrite": {"hostname": "h.example", "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/q"}}},
                {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "web-v2", "port": 80}, "fraction": {"numerator": 1, "denominator": 3}}},
                {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "gone", "port": 80}, "percent": 5}},
                {"type": "CORS", "cors": {"allowOrigins": ["https://*.example", "*"], "allowMethods": ["GET"], "maxAge": 60}}],
             "backendRefs": [{"name": "web-v1", "port": 80, "filters": [
                {"type": "ResponseHeaderModifier", "responseHeaderModifier": {"set": [{"name": "v", "value": "1"}]}}]}]},
            {"name": "away", "matches": [{"path": {"value": "/away"}}], "filters": [
                {"type": "RequestRedirect", "requestRedirect": {"scheme": "https", "port": 8443, "statusCode": 308,
                    "path": {"type": "ReplaceFullPath", "replaceFullPath": "/x"}}}]}
        ]),
    )]);
    assert_eq!(
        findings(&ir),
        [("HTTPRoute shop/r".into(), "BackendNotFound", "spec.rules[0].filters[3].requestMirror.backendRef".into())]
    );
    let routes = &service_of(&ir, "web").routes;
    let rule = |name: &str| &routes.iter().find(|route| &*route.rule.name == name).unwrap().rule;
    let edit = rule("edit");
    let filters = edit.filters.as_ref().unwrap();
    let shown = serde_json::to_value(filters).unwrap();
    assert_eq!(shown["request"], json!({"set": [["x-a", "1"]], "add": [["b", "3"]], "remove": ["c"]}));
    assert_eq!(filters.rewrite.host.as_deref(), Some("h.example"));
    assert_eq!(filters.rewrite.path, Some(PathChange::Prefix("/q".into())));
    assert_eq!(filters.timeouts.request, Some(std::time::Duration::from_secs(10)));
    assert_eq!(filters.timeouts.backend_request, Some(std::time::Duration::from_secs(1)));
    let retry = filters.retry.as_ref().unwrap();
    assert_eq!((&*retry.codes, retry.attempts, retry.backoff.as_millis()), ([500, 503].as_slice(), 30, 100));
    assert_eq!(filters.cors.as_ref().unwrap().origins.len(), 2);
    let [mirror] = &*edit.mirrors else { panic!("one mirror") };
    assert_eq!((&*mirror.backend.service.name, mirror.share.numerator, mirror.share.denominator), ("web-v2", 1, 3));
    assert_eq!(edit.backends()[0].headers.as_ref().unwrap().response.set.len(), 1);
    assert_eq!(
        rule("away").action,
        ActionIr::Redirect(Redirect {
            scheme: Some("https".into()),
            host: None,
            port: Some(8443),
            path: Some(PathChange::Full("/x".into())),
            status: 308
        })
    );
}

#[test]
fn what_has_no_effect_is_told_and_does_no_harm() {
    let ir = shop_and([with(
        route(
            "r",
            json!([{"backendRefs": to("web-v1"), "retry": {"attempts": 5000}, "sessionPersistence": {"type": "Cookie"}},
                   {"matches": [{"path": {"value": "/x"}}], "filters": [{"type": "RequestRedirect", "requestRedirect": {}}]}]),
        ),
        "spec.hostnames",
        json!(["web.example"]),
    )]);
    let found: Vec<_> = findings(&ir).into_iter().map(|(_, code, field)| (code, field)).collect();
    assert_eq!(
        found,
        [
            ("RedirectsToItself", "spec.rules[1].filters".into()),
            ("UnsupportedValue", "spec.hostnames".into()),
            ("UnsupportedValue", "spec.rules[0].retry.attempts".into()),
            ("UnsupportedValue", "spec.rules[0].sessionPersistence".into()),
        ]
    );
    assert!(ir.diagnostics[&key("web")].iter().all(|found| found.severity == Severity::Warning));
    let filters = service_of(&ir, "web").routes[1].rule.filters.as_ref().unwrap();
    assert_eq!(filters.retry.as_ref().unwrap().attempts, 100);
}

#[test]
fn the_oldest_object_decides_whether_splits_or_routes_hold() {
    let document = || route("r", json!([{"backendRefs": to("web-v1")}]));
    let (old, young) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
    let ir = shop_and([created(document(), young), created(split("s", &[("web-v2", 1)], &[]), old)]);
    assert_eq!(names(&service_of(&ir, "web").routes), ["s"]);
    assert_eq!(findings(&ir), [("HTTPRoute shop/r".into(), "Conflicted", "spec.parentRefs[0]".into())]);
    let ir = shop_and([created(document(), old), created(split("s", &[("web-v2", 1)], &[]), young)]);
    assert_eq!(names(&service_of(&ir, "web").routes), ["r", "web"]);
    assert_eq!(findings(&ir), [("TrafficSplit shop/s".into(), "Conflicted", "spec.service".into())]);
    // Each port by itself.
    let web = service("web", json!({"ports": [{"port": 80, "name": "http"}, {"port": 90, "name": "admin"}]}));
    let at_80 = with(created(document(), old), "spec.parentRefs.0.port", json!(80));
    let ir = lowered(&[web, super::web("web-v1", "10.96.0.2"), at_80, created(split("s", &[("web", 1)], &[]), young)]);
    let seen: Vec<_> =
        service_of(&ir, "web").routes.iter().map(|route| (&*route.rule.origin.name, route.ports.clone())).collect();
    assert_eq!(seen, [("s", Some(vec![90])), ("r", Some(vec![80])), ("web", Some(vec![80]))]);
}

#[test]
fn at_one_port_routes_of_grpc_come_before_those_of_http() {
    let web = service("web", json!({"ports": [{"port": 80, "name": "http"}, {"port": 90, "name": "grpc"}]}));
    let at_90 = with(grpc("g", json!([{"backendRefs": to("web-v1")}])), "spec.parentRefs.0.port", json!(90));
    let http = route("h", json!([{"backendRefs": to("web-v1")}]));
    let ir = lowered(&[web, super::web("web-v1", "10.96.0.2"), at_90, http]);
    let routes = &service_of(&ir, "web").routes;
    let seen: Vec<_> = routes.iter().map(|route| (&*route.rule.origin.name, route.ports.clone())).collect();
    assert_eq!(seen, [("g", Some(vec![90])), ("h", Some(vec![80])), ("web", None)]);
    assert_eq!(findings(&ir), [("HTTPRoute shop/h".into(), "Conflicted", "spec.parentRefs[0]".into())]);
    assert_eq!(ir.diagnostics[&key("web")][0].severity, Severity::Warning, "it holds at the other port");
}

#[test]
fn matches_over_the_limit_hold_for_no_request() {
    let rule = json!({"matches": vec![json!({}); 64], "backendRefs": to("web-v1")});
    let routes = (0..5).map(|n| route(&format!("r{n}"), json!(vec![rule.clone(); 4])));
    let ir = shop_and(routes);
    assert_eq!(service_of(&ir, "web").routes.len(), 1024 + 1);
    assert_eq!(findings(&ir), [("HTTPRoute shop/r4".into(), "TooManyMatches", "spec.rules".into())]);
}
