#![allow(clippy::needless_pass_by_value, reason = "document literals are passed as they are written")]

use serde_json::json;

use super::*;
use crate::parse;

fn virtual_service(spec: Value) -> Value {
    istio("networking", "VirtualService", "web-canary", spec)
}

fn istio(group: &str, kind: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": format!("{group}.istio.io/v1beta1"),
        "kind": kind,
        "metadata": {"name": name, "namespace": "shop"},
        "spec": spec,
    })
}

fn subsets() -> Value {
    let spec = json!({"host": "web", "subsets": [
        {"name": "v1", "labels": {"version": "v1"}},
        {"name": "v2", "labels": {"version": "v2"}},
    ]});
    istio("networking", "DestinationRule", "web-canary", spec)
}

fn service() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"clusterIP": "10.96.0.1", "selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
    })
}

/// What comes of documents that are carried whole, by kind and name; everything must be what weft understands.
fn carried(documents: &[Value]) -> BTreeMap<String, Value> {
    let conversion = convert(documents, false);
    assert_eq!(conversion.refused, []);
    let mut by_name = BTreeMap::new();
    for Converted { manifest, .. } in conversion.objects {
        let parsed = parse::parse(&manifest);
        assert_eq!(parsed.errors, [], "{manifest}");
        let object = Object::new(&manifest);
        by_name.insert(format!("{} {}", object.kind, object.name), manifest);
    }
    by_name
}

/// The fields that are refused. Nothing may come of them.
fn refused(documents: &[Value]) -> Vec<String> {
    let conversion = convert(documents, false);
    assert_eq!(conversion.objects, []);
    conversion.refused.into_iter().map(|one| one.field).collect()
}

#[test]
fn a_weighted_canary_becomes_a_split_and_a_service_for_each_subset() {
    let spec = json!({"hosts": ["web"], "http": [{"route": [
        {"destination": {"host": "web", "subset": "v1"}, "weight": 90},
        {"destination": {"host": "web.shop.svc.cluster.local", "subset": "v2"}, "weight": 10},
    ]}]});
    let out = carried(&[virtual_service(spec), subsets(), service()]);
    assert_eq!(out.keys().collect::<Vec<_>>(), ["Service web-v1", "Service web-v2", "TrafficSplit web-canary"]);
    assert_eq!(
        out["TrafficSplit web-canary"]["spec"],
        json!({"service": "web", "backends": [{"service": "web-v1", "weight": 90}, {"service": "web-v2", "weight": 10}]})
    );
    assert_eq!(
        out["Service web-v2"]["spec"],
        json!({"selector": {"app": "web", "version": "v2"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]})
    );
}

#[test]
fn a_cookie_canary_becomes_two_splits_in_their_order() {
    let spec = json!({"hosts": ["web"], "http": [
        {
            "match": [{"headers": {"cookie": {"regex": "^(.*?;)?(usertype=tester)(;.*)?$"}}}],
            "route": [{"destination": {"host": "web", "subset": "v2"}}],
        },
        {"route": [{"destination": {"host": "web", "subset": "v1"}}]},
    ]});
    let out = carried(&[virtual_service(spec), subsets(), service()]);
    assert_eq!(
        out["TrafficSplit web-canary-01"]["spec"],
        json!({
            "service": "web",
            "matches": [{"kind": "HTTPRouteGroup", "name": "web-canary-01"}],
            "backends": [{"service": "web-v2", "weight": 100}],
        })
    );
    assert_eq!(
        out["HTTPRouteGroup web-canary-01"]["spec"]["matches"],
        json!([{"name": "match-1", "headers": {"cookie": "^(?:^(.*?;)?(usertype=tester)(;.*)?$)$"}}])
    );
    assert_eq!(out["TrafficSplit web-canary-02"]["spec"]["backends"], json!([{"service": "web-v1", "weight": 100}]));
}

#[test]
fn matches_keep_their_meaning() {
    for (given, expected) in [
        (json!({"uri": {"exact": "/a.b"}}), json!({"pathRegex": "/a\\.b$"})),
        (json!({"uri": {"prefix": "/api"}}), json!({"pathRegex": "/api"})),
        (json!({"uri": {"regex": "/a|/b"}}), json!({"pathRegex": "(?:/a|/b)$"})),
        (json!({"uri": {"prefix": "/api"}, "ignoreUriCase": true}), json!({"pathRegex": "(?i:/api)"})),
        (json!({"method": {"exact": "GET"}}), json!({"methods": ["GET"]})),
        (json!({"headers": {"user": {"exact": "a+b"}}}), json!({"headers": {"user": "^a\\+b$"}})),
        (json!({"headers": {"user": {"prefix": "te"}}}), json!({"headers": {"user": "^te"}})),
        (json!({"headers": {"user": {}}}), json!({"headers": {"user": ".*"}})),
    ] {
        let spec = json!({"hosts": ["web"], "http": [
            {"match": [given.clone()], "route": [{"destination": {"host": "web-v2"}}]},
        ]});
        let out = carried(&[virtual_service(spec)]);
        let mut one = out["HTTPRouteGroup web-canary"]["spec"]["matches"][0].clone();
        one.as_object_mut().unwrap().remove("name");
        assert_eq!(one, expected, "{given}");
    }
}

#[test]
fn what_smi_cannot_say_of_routing_is_refused_by_its_field() {
    let route = |extra: Value| {
        let mut route = json!({"route": [{"destination": {"host": "web-v2"}}]});
        for (key, value) in extra.as_object().unwrap() {
            route[key] = value.clone();
        }
        json!({"hosts": ["web"], "http": [route]})
    };
    let destination =
        |destination: Value| json!({"hosts": ["web"], "http": [{"route": [{"destination": destination}]}]});
    for (spec, field) in [
        (route(json!({"timeout": "30s"})), "spec.http[0].timeout"),
        (route(json!({"retries": {"attempts": 30}})), "spec.http[0].retries"),
        (route(json!({"mirror": {"host": "sniffer"}})), "spec.http[0].mirror"),
        (route(json!({"fault": {"abort": {"httpStatus": 500}}})), "spec.http[0].fault"),
        (route(json!({"rewrite": {"uri": "/"}})), "spec.http[0].rewrite"),
        (route(json!({"somethingNew": 1})), "spec.http[0].somethingNew"),
        (route(json!({"match": [{"queryParams": {"a": {"exact": "b"}}}]})), "spec.http[0].match[0].queryParams"),
        (route(json!({"match": [{"withoutHeaders": {"a": {}}}]})), "spec.http[0].match[0].withoutHeaders"),
        (route(json!({"match": [{"uri": {"regex": "("}}]})), "spec.http[0].match[0].uri"),
        (route(json!({"match": [{"method": {"regex": "G.*"}}]})), "spec.http[0].match[0].method"),
        (
            route(json!({"match": [{"headers": {":authority": {"exact": "a"}}}]})),
            "spec.http[0].match[0].headers.:authority",
        ),
        (route(json!({"match": {}})), "spec.http[0].match"),
        (destination(json!({"host": "web", "subset": "v3"})), "spec.http[0].route[0].destination.subset"),
        (destination(json!({"host": "web.other"})), "spec.http[0].route[0].destination.host"),
        (destination(json!({"host": "web-v2", "port": {"number": 80}})), "spec.http[0].route[0].destination.port"),
        (json!({"hosts": ["web.example.com"], "http": []}), "spec.hosts[0]"),
        (json!({"hosts": ["*"], "http": []}), "spec.hosts[0]"),
        (json!({"hosts": ["web"], "gateways": ["edge"], "http": []}), "spec.gateways[0]"),
        (json!({"hosts": ["web"], "tls": []}), "spec.tls"),
        (json!({"hosts": "web"}), "spec.hosts"),
    ] {
        let refused = refused(&[virtual_service(spec.clone())]);
        assert!(refused.contains(&field.to_owned()), "{spec}: {refused:?}");
    }
}

#[test]
fn with_partial_the_rest_of_routing_is_carried_and_the_refusal_is_still_told() {
    let spec = json!({"hosts": ["web"], "http": [{"timeout": "1s", "route": [{"destination": {"host": "web-v2"}}]}]});
    let conversion = convert(&[virtual_service(spec)], true);
    assert_eq!(conversion.objects.len(), 1);
    assert_eq!(conversion.refused.len(), 1);
}

#[test]
fn a_destination_port_is_carried_only_where_it_is_the_only_one() {
    let spec = json!({"hosts": ["web"], "http": [{"match": [{"uri": {"prefix": "/x"}}], "route": [
        {"destination": {"host": "web", "port": {"number": 80}}},
    ]}]});
    carried(&[virtual_service(spec.clone()), service()]);
    let mut two = service();
    two["spec"]["ports"] = json!([{"name": "a", "port": 80}, {"name": "b", "port": 81}]);
    assert_eq!(refused(&[virtual_service(spec), two]), ["spec.http[0].route[0].destination.port"]);
}

#[test]
fn balancing_becomes_an_annotation_and_limits_are_refused() {
    let rule =
        |policy: Value| istio("networking", "DestinationRule", "web", json!({"host": "web", "trafficPolicy": policy}));
    let out = carried(&[rule(json!({"loadBalancer": {"simple": "ROUND_ROBIN"}})), service()]);
    assert_eq!(out["Service web"]["metadata"]["annotations"]["weft.dev/load-balancing"], "round-robin");
    assert_eq!(out["Service web"]["spec"], service()["spec"]);
    for (policy, field) in [
        (json!({"loadBalancer": {"simple": "RANDOM"}}), "spec.trafficPolicy.loadBalancer.simple"),
        (
            json!({"loadBalancer": {"consistentHash": {"httpHeaderName": "User"}}}),
            "spec.trafficPolicy.loadBalancer.consistentHash",
        ),
        (json!({"connectionPool": {}}), "spec.trafficPolicy.connectionPool"),
        (json!({"outlierDetection": {}}), "spec.trafficPolicy.outlierDetection"),
        (json!({"tls": {"mode": "ISTIO_MUTUAL"}}), "spec.trafficPolicy.tls"),
    ] {
        assert_eq!(refused(&[rule(policy), service()]), [field]);
    }
}

fn policy(spec: Value) -> Value {
    istio("security", "AuthorizationPolicy", "api", spec)
}

#[test]
fn an_allow_policy_becomes_targets_of_its_own_pods() {
    let out = carried_access(&policy(json!({
        "selector": {"matchLabels": {"app": "api"}},
        "rules": [
            {
                "from": [{"source": {"principals": ["cluster.local/ns/shop/sa/web", "cluster.local/ns/mon/sa/prometheus"]}}],
                "to": [
                    {"operation": {"methods": ["GET"], "paths": ["/metrics", "/api/*", "*.css"], "ports": ["8080"]}},
                ],
            },
            {"from": [{"source": {"serviceAccounts": ["admin"]}}]},
        ],
    })));
    assert_eq!(
        out["IdentityBinding api"]["spec"],
        json!({"schemes": {"podLabelSelector": {"matchLabels": {"app": "api"}}}})
    );
    assert_eq!(
        out["TrafficTarget api-01"]["spec"],
        json!({
            "destination": {"kind": "IdentityBinding", "name": "api"},
            "sources": [
                {"kind": "ServiceAccount", "namespace": "mon", "name": "prometheus"},
                {"kind": "ServiceAccount", "namespace": "shop", "name": "web"},
            ],
            "rules": [{"kind": "TCPRoute", "name": "api-01"}, {"kind": "HTTPRouteGroup", "name": "api-01"}],
        })
    );
    assert_eq!(out["TCPRoute api-01"]["spec"], json!({"matches": {"ports": [8080]}}));
    assert_eq!(
        out["HTTPRouteGroup api-01"]["spec"]["matches"],
        json!([
            {"name": "match-1", "pathRegex": "/metrics$", "methods": ["GET"]},
            {"name": "match-2", "pathRegex": "/api/", "methods": ["GET"]},
            {"name": "match-3", "pathRegex": ".*\\.css$", "methods": ["GET"]},
        ])
    );
    assert_eq!(out["TrafficTarget api-02"]["spec"]["rules"], json!([{"kind": "TCPRoute", "name": "api-02"}]));
    assert_eq!(out["TCPRoute api-02"]["spec"], json!({"matches": {"ports": []}}));
}

fn carried_access(document: &Value) -> BTreeMap<String, Value> {
    carried(std::slice::from_ref(document))
}

#[test]
fn a_policy_without_rules_is_the_stance_of_its_namespace() {
    let out = carried_access(&policy(json!({})));
    assert_eq!(out["Namespace shop"]["metadata"], json!({"name": "shop", "labels": {"weft.dev/default": "deny"}}));
}

#[test]
fn no_policy_is_carried_in_part() {
    let rule = |rule: Value| json!({"selector": {"matchLabels": {"app": "api"}}, "rules": [rule]});
    let from = json!([{"source": {"principals": ["cluster.local/ns/shop/sa/web"]}}]);
    let source = |source: Value| rule(json!({"from": [{"source": source}]}));
    let operation = |operation: Value| rule(json!({"from": from, "to": [{"operation": operation}]}));
    for (spec, field) in [
        (json!({"action": "DENY", "rules": [{"from": from}]}), "spec.action"),
        (json!({"action": "CUSTOM"}), "spec.action"),
        (json!({"rules": [{"from": from}]}), "spec.selector"),
        (json!({"selector": {"matchLabels": {"app": "api"}}}), "spec.rules"),
        (json!({"targetRefs": [], "rules": []}), "spec.targetRefs"),
        (rule(json!({})), "spec.rules[0]"),
        (rule(json!({"from": from, "when": []})), "spec.rules[0].when"),
        (source(json!({"namespaces": ["shop"]})), "spec.rules[0].from[0].source.namespaces"),
        (source(json!({"principals": ["*"]})), "spec.rules[0].from[0].source.principals[0]"),
        (source(json!({"principals": ["cluster.local/ns/shop/sa/*"]})), "spec.rules[0].from[0].source.principals[0]"),
        (source(json!({"notPrincipals": ["a"]})), "spec.rules[0].from[0].source.notPrincipals"),
        (source(json!({"ipBlocks": ["10.0.0.0/8"]})), "spec.rules[0].from[0].source.ipBlocks"),
        (operation(json!({"hosts": ["a"]})), "spec.rules[0].to[0].operation.hosts"),
        (operation(json!({"notPaths": ["/admin"]})), "spec.rules[0].to[0].operation.notPaths"),
        (operation(json!({"paths": ["/a/{*}"]})), "spec.rules[0].to[0].operation.paths[0]"),
        (operation(json!({"paths": ["*a*"]})), "spec.rules[0].to[0].operation.paths[0]"),
        (operation(json!({"paths": []})), "spec.rules[0].to[0].operation.paths"),
        (operation(json!({"ports": ["http"]})), "spec.rules[0].to[0].operation.ports[0]"),
        (operation(json!({"methods": ["GET*"]})), "spec.rules[0].to[0].operation.methods[0]"),
    ] {
        for partial in [false, true] {
            let conversion = convert(&[policy(spec.clone())], partial);
            assert_eq!(conversion.objects, [], "{spec}");
            let fields: Vec<&str> = conversion.refused.iter().map(|one| one.field.as_str()).collect();
            assert!(fields.contains(&field), "{spec}: {fields:?}");
        }
    }
}

#[test]
fn a_policy_that_forbids_takes_the_others_of_its_namespace_with_it() {
    let allow = policy(json!({
        "selector": {"matchLabels": {"app": "api"}},
        "rules": [{"from": [{"source": {"serviceAccounts": ["web"]}}]}],
    }));
    let deny = istio("security", "AuthorizationPolicy", "never", json!({"action": "DENY", "rules": [{}]}));
    assert_eq!(refused(&[allow, deny]), ["", "spec.action"]);
}

#[test]
fn other_kinds_of_istio_are_refused_by_name_and_what_is_not_istio_is_left_alone() {
    let gateway = istio("networking", "Gateway", "edge", json!({}));
    let old =
        json!({"apiVersion": "config.istio.io/v1alpha2", "kind": "DestinationPolicy", "metadata": {"name": "web"}});
    assert_eq!(refused(&[gateway, old, service()]), ["kind", "kind"]);
    assert_eq!(convert(&[service(), json!(null), json!([]), json!("x")], false).ignored, 4);
}

#[test]
fn broken_documents_never_panic() {
    for spec in
        [json!(null), json!([]), json!("x"), json!({"hosts": [null], "http": [null], "rules": [null], "host": 1})]
    {
        for (group, kind) in
            [("networking", "VirtualService"), ("networking", "DestinationRule"), ("security", "AuthorizationPolicy")]
        {
            for name in ["a", "", "A B"] {
                let conversion = convert(&[istio(group, kind, name, spec.clone())], true);
                let namespace = conversion.objects.iter().all(|one| one.manifest["kind"] == "Namespace");
                assert!(namespace, "{kind} {spec}: {:?}", conversion.objects);
            }
        }
    }
}

#[test]
fn peer_authentication_becomes_the_mode_of_its_namespace() {
    let policy = |spec: Value| istio("security", "PeerAuthentication", "default", spec);
    let strict = || json!({"mtls": {"mode": "STRICT"}});
    let label = |documents: &[Value]| {
        let found = carried(documents);
        found.get("Namespace shop").map(|namespace| namespace["metadata"]["labels"].clone())
    };
    assert_eq!(label(&[policy(strict())]), Some(json!({"weft.dev/mtls": "strict"})));
    assert_eq!(label(&[policy(json!({"mtls": {"mode": "PERMISSIVE"}}))]), Some(json!({"weft.dev/mtls": "permissive"})));
    assert_eq!(label(&[policy(json!({"mtls": {"mode": "DISABLE"}}))]), Some(json!({"weft.dev/mtls": "permissive"})));
    for unset in [json!({}), json!({"mtls": {}}), json!({"mtls": {"mode": "UNSET"}})] {
        assert_eq!(label(&[policy(unset)]), None);
    }
    // With what else comes for the same namespace: whoever applies both keeps both.
    let deny = istio("security", "AuthorizationPolicy", "none", json!({}));
    let both = json!({"weft.dev/mtls": "strict", "weft.dev/default": "deny"});
    assert_eq!(label(&[deny, policy(strict()), policy(json!({"mtls": {"mode": "DISABLE"}}))]), Some(both));
    let mut everywhere = policy(strict());
    everywhere["metadata"]["namespace"] = json!("istio-system");
    for (document, field) in [
        (everywhere, "spec.mtls.mode"),
        (policy(json!({"mtls": {"mode": "STRICT"}, "selector": {"matchLabels": {"app": "web"}}})), "spec.selector"),
        (
            policy(json!({"mtls": {"mode": "STRICT"}, "portLevelMtls": {"80": {"mode": "DISABLE"}}})),
            "spec.portLevelMtls",
        ),
        (policy(json!({"mtls": {"mode": "strict"}})), "spec.mtls.mode"),
        (policy(json!({"mtls": {"mode": 1}})), "spec.mtls.mode"),
        (policy(json!({"mtls": "STRICT"})), "spec.mtls"),
    ] {
        // Not in part either: what is left could let more through.
        let conversion = convert(std::slice::from_ref(&document), true);
        assert_eq!((conversion.objects.len(), conversion.refused.len()), (0, 1), "{document}");
        assert_eq!(conversion.refused[0].field, field, "{document}");
    }
}
