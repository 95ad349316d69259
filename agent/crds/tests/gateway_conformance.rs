//! What the mesh profile of Gateway API's conformance tests asserts (conformance/tests/mesh, v1.4), as far as a model can show it: which rule
//! takes a request, and what it does. What happens to the bytes of a message is the data path's. Each test is named after the one that it follows.

#![allow(clippy::unwrap_used, reason = "a test may panic in its helpers too")]
#![allow(clippy::needless_pass_by_value, reason = "document literals are passed as they are written")]

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde_json::{Value, json};
use weft_crds::{
    lower::lower_all,
    parse::parse,
    store::{ObjectEvent, ObjectStore},
};
use weft_policy::{
    compile::Compiler,
    ir::IrDelta,
    matcher::RequestHead,
    names::ServiceKey,
    plan::OutboundPlan,
    rule::{ActionIr, PathChange, Refusal},
};

/// The namespace of the Services.
const MESH: &str = "gateway-conformance-mesh";

struct Mesh(Compiler);

fn service(name: &str) -> Value {
    let ports = [("http", 80), ("http-alt", 8080), ("grpc", 7070)];
    let ports: Vec<Value> = ports.iter().map(|(name, port)| json!({"name": name, "port": port})).collect();
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": MESH},
           "spec": {"clusterIP": "10.96.0.1", "selector": {"app": name}, "ports": ports}})
}

/// The Services of the suite, with a route for a parent.
fn mesh(kind: &str, namespace: &str, parent: Value, rules: Value) -> Mesh {
    let route = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": kind, "metadata": {"name": "mesh", "namespace": namespace},
                       "spec": {"parentRefs": [parent], "rules": rules}});
    let documents: Vec<Value> = ["echo", "echo-v1", "echo-v2"].into_iter().map(service).chain([route]).collect();
    let parsed = parse(&json!({"apiVersion": "v1", "kind": "List", "items": documents}));
    assert_eq!(parsed.errors, []);
    let mut store = ObjectStore::default();
    store.apply(parsed.objects.into_iter().map(|(object, _)| ObjectEvent::Apply(object)));
    let ir = lower_all(&store);
    let errors: Vec<_> = ir.diagnostics.values().flat_map(|found| found.iter()).collect();
    let bad = errors.iter().filter(|one| one.severity == weft_policy::diagnostic::Severity::Error);
    assert_eq!(bad.count(), 0, "{errors:?}");
    let mut compiler = Compiler::default();
    let services = ir.services.into_iter().map(|(key, service)| (key, Some(service))).collect();
    compiler.apply(IrDelta { services, ..IrDelta::default() });
    Mesh(compiler)
}

fn echo(port: u16) -> Value {
    json!({"group": "", "kind": "Service", "name": "echo", "port": port})
}

fn http(rules: Value) -> Mesh {
    mesh("HTTPRoute", MESH, echo(80), rules)
}

fn to(service: &str) -> Value {
    json!([{"name": service, "port": 8080}])
}

impl Mesh {
    fn plan(&self, service: &str, port: u16) -> &OutboundPlan {
        let plans = &self.0.snapshot().services[&ServiceKey::new(MESH, service)];
        plans.iter().find(|plan| plan.port == port).unwrap()
    }

    /// What happens to a request for `path[?query]` at a port of a Service, from a namespace.
    fn at(&self, (service, port): (&str, u16), from: &str, target: &str, headers: &[(&str, &str)]) -> ActionIr {
        self.rule((service, port), from, target, headers).0
    }

    fn rule(
        &self,
        (service, port): (&str, u16),
        from: &str,
        target: &str,
        headers: &[(&str, &str)],
    ) -> (ActionIr, Value, String) {
        let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        let mut fields = HeaderMap::new();
        for (name, value) in headers {
            fields.append(HeaderName::try_from(*name).unwrap(), HeaderValue::try_from(*value).unwrap());
        }
        let head = RequestHead { method: &Method::GET, path, query, headers: &fields };
        let rule = &self.plan(service, port).table(from).route(&head).rule.ir;
        (rule.action.clone(), serde_json::to_value(&rule.filters).unwrap(), rule.name.to_string())
    }

    /// The only backend that takes a request, or the status that answers it.
    fn answer(&self, target: &str, headers: &[(&str, &str)]) -> String {
        match self.at(("echo", 80), MESH, target, headers) {
            ActionIr::Forward { backends, .. } => {
                backends.iter().map(|one| &*one.service.name).collect::<Vec<_>>().join(",")
            }
            ActionIr::Refuse(refusal) => refusal.status().as_u16().to_string(),
            ActionIr::Redirect(redirect) => redirect.status.to_string(),
        }
    }
}

#[test]
fn httproute_matching() {
    let one = |service: &str, path: &str, version: &str| {
        json!({"matches": [{"path": {"type": "PathPrefix", "value": path}}, {"headers": [{"name": "version", "value": version}]}],
               "backendRefs": to(service)})
    };
    let mesh = http(json!([one("echo-v1", "/", "one"), one("echo-v2", "/v2", "two")]));
    for (path, version, expected) in [
        ("/", "", "echo-v1"),
        ("/example", "", "echo-v1"),
        ("/", "one", "echo-v1"),
        ("/v2", "", "echo-v2"),
        ("/v2/example", "", "echo-v2"),
        ("/", "two", "echo-v2"),
        ("/v2/", "", "echo-v2"),
        ("/v2example", "", "echo-v1"),
        ("/foo/v2/example", "", "echo-v1"),
    ] {
        let headers = [("Version", version)];
        let headers = if version.is_empty() { &[][..] } else { &headers[..] };
        assert_eq!(mesh.answer(path, headers), expected, "{path} {version}");
    }
}

#[test]
fn httproute_query_param_matching() {
    let query = |value: &str| json!([{"name": "animal", "value": value}]);
    let header = |value: &str| json!([{"name": "version", "value": value}]);
    let path = |value: &str| json!({"type": "PathPrefix", "value": value});
    let mesh = http(json!([
        {"matches": [{"queryParams": query("whale")}], "backendRefs": to("echo-v1")},
        {"matches": [{"queryParams": query("dolphin")}], "backendRefs": to("echo-v2")},
        {"matches": [{"path": path("/path1"), "queryParams": query("whale")}], "backendRefs": to("echo-v1")},
        {"matches": [{"headers": header("one"), "queryParams": query("whale")}], "backendRefs": to("echo-v2")},
        {"matches": [{"path": path("/path3"), "queryParams": query("shark")},
                     {"path": path("/path4"), "headers": header("three"), "queryParams": query("kraken")}], "backendRefs": to("echo-v1")},
        {"matches": [{"path": path("/path5")}], "backendRefs": to("echo-v1")},
        {"matches": [{"queryParams": query("hydra")}], "backendRefs": to("echo-v2")},
    ]));
    for (target, version, expected) in [
        ("/?animal=whale", "", "echo-v1"),
        ("/?animal=dolphin", "", "echo-v2"),
        ("/?animal=whale&otherparam=irrelevant", "", "echo-v1"),
        ("/?animal=dolphin&color=yellow", "", "echo-v2"),
        ("/?color=blue", "", "404"),
        ("/?animal=dog", "", "404"),
        ("/?animal=whaledolphin", "", "404"),
        ("/", "", "404"),
        ("/path1?animal=whale", "", "echo-v1"),
        ("/?animal=whale", "one", "echo-v2"),
        ("/path3?animal=shark", "", "echo-v1"),
        ("/path4?animal=kraken", "three", "echo-v1"),
        ("/?animal=shark", "", "404"),
        ("/path4?animal=kraken", "", "404"),
        ("/path5?animal=hydra", "", "echo-v1"),
    ] {
        let headers = [("version", version)];
        let headers = if version.is_empty() { &[][..] } else { &headers[..] };
        assert_eq!(mesh.answer(target, headers), expected, "{target} {version}");
    }
}

#[test]
fn mesh_split_and_httproute_simple_same_namespace() {
    let exact = |path: &str, service: &str| json!({"matches": [{"path": {"type": "Exact", "value": path}}], "backendRefs": [{"name": service, "port": 80}]});
    let parent = json!({"group": "", "kind": "Service", "name": "echo"});
    let split = mesh("HTTPRoute", MESH, parent, json!([exact("/v1", "echo-v1"), exact("/v2", "echo-v2")]));
    assert_eq!(["/v1", "/v2", "/v3"].map(|path| split.answer(path, &[])), ["echo-v1", "echo-v2", "404"]);
    let simple = http(json!([{"backendRefs": to("echo-v1")}]));
    assert_eq!(simple.answer("/", &[]), "echo-v1");
}

#[test]
fn mesh_ports_and_mesh_frontend() {
    let set = json!([{"filters": [{"type": "ResponseHeaderModifier", "responseHeaderModifier": {"set": [{"name": "X-Header-Set", "value": "v"}]}}],
                      "backendRefs": [{"name": "echo-v1", "port": 80}]}]);
    let of = |port: Option<u16>| json!({"group": "", "kind": "Service", "name": "echo-v1", "port": port});
    let sets = |mesh: &Mesh, port: u16| {
        let (_, filters, _) = mesh.rule(("echo-v1", port), MESH, "/", &[]);
        filters["response"]["set"] == json!([["x-header-set", "v"]])
    };
    let one = mesh("HTTPRoute", MESH, of(Some(80)), set.clone());
    assert_eq!((sets(&one, 80), sets(&one, 8080)), (true, false), "only the port that the parent names");
    let all = mesh("HTTPRoute", MESH, of(None), set);
    assert_eq!((sets(&all, 80), sets(&all, 8080)), (true, true), "every port");
}

#[test]
fn mesh_consumer_route() {
    const CONSUMER: &str = "gateway-conformance-mesh-consumer";
    let parent = json!({"group": "", "kind": "Service", "name": "echo-v1", "namespace": MESH});
    let rules = json!([{"filters": [{"type": "ResponseHeaderModifier", "responseHeaderModifier": {"set": [{"name": "X-Header-Set", "value": "set"}]}}],
                        "backendRefs": [{"name": "echo-v1", "namespace": MESH, "port": 80}]}]);
    let mesh = mesh("HTTPRoute", CONSUMER, parent, rules);
    let (action, filters, _) = mesh.rule(("echo-v1", 80), CONSUMER, "/", &[]);
    assert!(matches!(action, ActionIr::Forward { .. }), "{action:?}");
    assert_eq!(filters["response"]["set"], json!([["x-header-set", "set"]]));
    let (action, filters, _) = mesh.rule(("echo-v1", 80), MESH, "/", &[]);
    assert!(
        matches!(action, ActionIr::Forward { .. }) && filters.is_null(),
        "others do not notice: {action:?} {filters}"
    );
}

#[test]
fn httproute_and_grpcroute_weight() {
    for (kind, port, backend) in [("HTTPRoute", 80, 8080), ("GRPCRoute", 7070, 7070)] {
        let one = |name: &str, weight: u16| json!({"name": name, "port": backend, "weight": weight});
        let rules = json!([{"backendRefs": [one("echo-v1", 70), one("echo-v2", 30), one("echo", 0)]}]);
        let mesh = mesh(kind, MESH, echo(port), rules);
        let ActionIr::Forward { backends, .. } = mesh.at(("echo", port), MESH, "/a.B/C", &[]) else { panic!("{kind}") };
        let weights: Vec<_> = backends.iter().map(|one| (&*one.service.name, one.weight)).collect();
        assert_eq!(weights, [("echo-v1", 70), ("echo-v2", 30), ("echo", 0)], "{kind}");
    }
}

#[test]
fn httproute_redirects() {
    let rule = |path: &str, redirect: Value| {
        json!({"matches": [{"path": {"type": "PathPrefix", "value": path}}],
               "filters": [{"type": "RequestRedirect", "requestRedirect": redirect}]})
    };
    let prefix = json!({"type": "ReplacePrefixMatch", "replacePrefixMatch": "/replacement-prefix"});
    let full = json!({"type": "ReplaceFullPath", "replaceFullPath": "/full-path-replacement"});
    let mesh = http(json!([
        rule("/see-other", json!({"statusCode": 303, "path": full})),
        rule("/307", json!({"statusCode": 307, "hostname": "example.org"})),
        rule("/308", json!({"statusCode": 308, "hostname": "example.org"})),
        rule("/host", json!({"hostname": "example.org"})),
        rule("/host-and-status", json!({"hostname": "example.org", "statusCode": 301})),
        rule("/original-prefix", json!({"path": prefix})),
        rule("/path-and-host", json!({"path": prefix, "hostname": "example.org"})),
        rule("/port", json!({"port": 8083})),
        rule("/scheme", json!({"scheme": "https", "statusCode": 301})),
    ]));
    for (path, status, scheme, host, port, changed) in [
        ("/see-other", 303, None, None, None, Some(PathChange::Full("/full-path-replacement".into()))),
        ("/307", 307, None, Some("example.org"), None, None),
        ("/308", 308, None, Some("example.org"), None, None),
        ("/host", 302, None, Some("example.org"), None, None),
        ("/host-and-status", 301, None, Some("example.org"), None, None),
        ("/original-prefix/x", 302, None, None, None, Some(PathChange::Prefix("/replacement-prefix".into()))),
        (
            "/path-and-host",
            302,
            None,
            Some("example.org"),
            None,
            Some(PathChange::Prefix("/replacement-prefix".into())),
        ),
        ("/port", 302, None, None, Some(8083), None),
        ("/scheme", 301, Some("https"), None, None, None),
    ] {
        let ActionIr::Redirect(to) = mesh.at(("echo", 80), MESH, path, &[]) else { panic!("{path}") };
        assert_eq!(
            (to.status, to.scheme.as_deref(), to.host.as_deref(), to.port, to.path),
            (status, scheme, host, port, changed),
            "{path}"
        );
    }
}

#[test]
fn httproute_rewrite_path_and_request_header_modifier() {
    let rule = |path: &str, filters: Value| json!({"matches": [{"path": {"type": "PathPrefix", "value": path}}], "filters": filters, "backendRefs": to("echo-v1")});
    let rewrite = |path: Value| json!({"type": "URLRewrite", "urlRewrite": {"path": path}});
    let headers = json!({"type": "RequestHeaderModifier", "requestHeaderModifier": {
        "set": [{"name": "X-Header-Set", "value": "set-overwrites-values"}], "add": [{"name": "X-Header-Add", "value": "header-val-1"}],
        "remove": ["X-Header-Remove"]}});
    let mesh = http(json!([
        rule("/prefix/one", json!([rewrite(json!({"type": "ReplacePrefixMatch", "replacePrefixMatch": "/one"}))])),
        rule("/strip-prefix", json!([rewrite(json!({"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}))])),
        rule("/full/one", json!([rewrite(json!({"type": "ReplaceFullPath", "replaceFullPath": "/one"})), headers])),
    ]));
    for (path, expected) in [
        ("/prefix/one/two", json!({"Prefix": "/one"})),
        ("/strip-prefix/three", json!({"Prefix": "/"})),
        ("/full/one/two", json!({"Full": "/one"})),
    ] {
        let (_, filters, _) = mesh.rule(("echo", 80), MESH, path, &[]);
        assert_eq!(filters["rewrite"]["path"], expected, "{path}");
    }
    let (_, filters, _) = mesh.rule(("echo", 80), MESH, "/full/one", &[]);
    let edits = json!({"set": [["x-header-set", "set-overwrites-values"]], "add": [["x-header-add", "header-val-1"]], "remove": ["x-header-remove"]});
    assert_eq!(filters["request"], edits);
}

#[test]
fn httproute_named_rule() {
    let rule = |path: &str, service: &str| json!({"matches": [{"path": {"value": path}}], "backendRefs": to(service)});
    let mut named = rule("/named", "echo-v1");
    named["name"] = json!("named-rule");
    let mesh = http(json!([named, rule("/unnamed", "echo-v2")]));
    let name = |path: &str| mesh.rule(("echo", 80), MESH, path, &[]).2;
    assert_eq!((name("/named"), name("/unnamed")), ("named-rule".to_owned(), "rules[1]".to_owned()));
    assert_eq!(
        (mesh.answer("/named", &[]), mesh.answer("/unnamed", &[])),
        ("echo-v1".to_owned(), "echo-v2".to_owned())
    );
    assert!(matches!(mesh.at(("echo", 80), MESH, "/", &[]), ActionIr::Refuse(Refusal::NoRoute)));
}
