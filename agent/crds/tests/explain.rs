//! `explain` on what manifests come to: the answer is the engine's own, with the objects behind it.

#![allow(clippy::needless_pass_by_value, reason = "document literals are passed as they are written")]
#![allow(clippy::unwrap_used, reason = "a test that fails")]

use serde_json::{Value, json};
use weft_crds::{
    lower::lower,
    parse::parse,
    store::{ObjectEvent, ObjectStore},
};
use weft_policy::{
    compile::Compiler,
    explain::{Answer, Outcome, Question, QuestionError, RequestQuestion, explain},
};

fn compiled(documents: Vec<Value>) -> Compiler {
    let parsed = parse(&json!({"apiVersion": "v1", "kind": "List", "items": documents}));
    assert_eq!(parsed.errors, []);
    let mut store = ObjectStore::default();
    let dirty = store.apply(parsed.objects.into_iter().map(|(object, _)| ObjectEvent::Apply(object)));
    let mut compiler = Compiler::default();
    compiler.apply(lower(&store, &dirty));
    compiler
}

fn namespace(name: &str, labels: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

fn pod(name: &str, ip: &str, node: &str) -> Value {
    let app = name.rsplit_once('-').map_or(name, |(app, _)| app);
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "shop", "name": name, "labels": {"app": app}},
        "spec": {"nodeName": node, "serviceAccountName": app, "containers": []},
        "status": {"phase": "Running", "podIPs": [{"ip": ip}], "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

fn service(name: &str, ip: &str, ports: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": name},
        "spec": {"clusterIP": ip, "selector": {"app": name}, "ports": ports},
    })
}

fn http() -> Value {
    json!([{"name": "http", "port": 80, "targetPort": 8080}])
}

fn shop() -> Vec<Value> {
    vec![
        namespace("shop", json!({"weft.dev/mesh": "enabled"})),
        pod("client-1", "10.0.0.1", "n1"),
        pod("other-1", "10.0.0.2", "n1"),
        pod("v1-1", "10.0.1.1", "n1"),
        pod("v2-1", "10.0.2.1", "n1"),
        service("web", "10.96.0.1", http()),
        service("v1", "10.96.0.2", http()),
        service("v2", "10.96.0.3", http()),
        json!({
            "apiVersion": "specs.smi-spec.io/v1alpha4", "kind": "HTTPRouteGroup",
            "metadata": {"namespace": "shop", "name": "testers"},
            "spec": {"matches": [{"name": "tester", "headers": {"cookie": "tester"}}]},
        }),
        json!({
            "apiVersion": "split.smi-spec.io/v1alpha4", "kind": "TrafficSplit",
            "metadata": {"namespace": "shop", "name": "testers"},
            "spec": {
                "service": "web", "matches": [{"kind": "HTTPRouteGroup", "name": "testers"}],
                "backends": [{"service": "v2", "weight": 1}],
            },
        }),
        json!({
            "apiVersion": "split.smi-spec.io/v1alpha4", "kind": "TrafficSplit",
            "metadata": {"namespace": "shop", "name": "everybody"},
            "spec": {"service": "web", "backends": [
                {"service": "v1", "weight": 3}, {"service": "v2", "weight": 1}, {"service": "absent", "weight": 1},
            ]},
        }),
    ]
}

/// Method, path, headers.
type Asked<'a> = Option<(&'a str, &'a str, &'a [(&'a str, &'a str)])>;

fn question(source: &str, destination: &str, request: Asked<'_>) -> Question {
    Question {
        source: source.into(),
        destination: destination.into(),
        namespace: "shop".into(),
        udp: false,
        request: request.map(|(method, path, headers)| RequestQuestion {
            method: method.into(),
            path: path.into(),
            headers: headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        }),
    }
}

fn ask(compiler: &Compiler, source: &str, destination: &str, request: Asked<'_>) -> Answer {
    explain(compiler, &question(source, destination, request)).unwrap()
}

fn shares(answer: &Answer) -> Vec<(String, f64, usize)> {
    let share = |backend: &weft_policy::explain::BackendAnswer| {
        let name = backend.service.as_ref().map_or_else(String::new, |service| service.name.to_string());
        (name, backend.share_percent, backend.endpoints.len())
    };
    answer.backends.iter().map(share).collect()
}

#[test]
fn a_request_is_followed_through_rule_split_and_endpoints() {
    let compiler = compiled(shop());
    let plain = ask(&compiler, "client-1", "web", Some(("GET", "/?a=b", &[])));
    assert_eq!(plain.outcome, Outcome::Allowed);
    let route = plain.route.as_ref().unwrap();
    assert_eq!(route.origin.to_string(), "TrafficSplit shop/everybody");
    assert_eq!(route.passed_over[0].origin.to_string(), "TrafficSplit shop/testers");
    assert_eq!(shares(&plain), [("v1".into(), 75.0, 1), ("v2".into(), 25.0, 1)]);
    assert_eq!(plain.backends[0].endpoints[0].pod.as_deref(), Some("shop/v1-1"));
    assert_eq!(plain.findings[0].code, "BackendNotFound");

    let tester = ask(&compiler, "shop/client-1", "web.shop.svc:http", Some(("GET", "/", &[("Cookie", "a=tester")])));
    assert_eq!(tester.route.unwrap().origin.to_string(), "TrafficSplit shop/testers");
}

#[test]
fn a_connection_and_a_source_outside_of_the_mesh_meet_no_rule_about_requests() {
    let compiler = compiled(shop());
    let connection = ask(&compiler, "client-1", "web:80", None);
    assert_eq!(connection.route.unwrap().origin.to_string(), "TrafficSplit shop/everybody");
    assert!(connection.notes.iter().any(|note| note.contains("METHOD")), "{:?}", connection.notes);
}

#[test]
fn destinations_are_found_by_every_name() {
    let compiler = compiled(shop());
    for (destination, object) in [
        ("web", "Service shop/web"),
        ("shop/web", "Service shop/web"),
        ("svc:web", "Service shop/web"),
        ("web.shop", "Service shop/web"),
        ("web.shop.svc.cluster.local:80", "Service shop/web"),
        ("10.96.0.1:80", "Service shop/web"),
        ("v1-1:8080", "Pod shop/v1-1"),
        ("pod:shop/v1-1:8080", "Pod shop/v1-1"),
        ("10.0.1.1:9", "Pod shop/v1-1"),
    ] {
        assert_eq!(
            ask(&compiler, "outside", destination, None).destination.object.to_string(),
            object,
            "{destination}"
        );
    }
    for destination in [
        "absent",
        "web.other",
        "web:81",
        "web:https",
        "10.9.9.9:80",
        "10.96.0.1",
        "v1-1",
        "pod:web",
        "",
        ":",
        "[",
        "web.shop.x",
    ] {
        let error = explain(&compiler, &question("outside", destination, None)).unwrap_err();
        assert!(matches!(error, QuestionError::Destination(..)), "{destination}: {error}");
    }
    for source in ["absent", "web", "sa:", "other/client-1", ""] {
        let error = explain(&compiler, &question(source, "web", None)).unwrap_err();
        assert!(matches!(error, QuestionError::Source(..)), "{source}: {error}");
    }
    for request in [
        ("G T", "/", ""),
        ("GET", "x", ""),
        ("GET", "/", "a b"),
        ("CONNECT", "/", ""),
        ("GET", "/a%2fb", ""),
        ("GET", "/a/..;/b", ""),
        ("GET", "/a#b", ""),
    ] {
        let headers = [(request.2, "v")];
        let headers: &[(&str, &str)] = if request.2.is_empty() { &[] } else { &headers };
        let error = explain(&compiler, &question("outside", "web", Some((request.0, request.1, headers)))).unwrap_err();
        assert!(matches!(error, QuestionError::Request(..)), "{request:?}: {error}");
    }
}

#[test]
fn an_answer_survives_json() {
    let answer = ask(&compiled(shop()), "client-1", "web", Some(("GET", "/", &[])));
    let text = serde_json::to_string(&answer).unwrap();
    assert_eq!(serde_json::from_str::<Answer>(&text).unwrap(), answer);
}

#[test]
fn each_target_says_why_it_grants_or_what_is_missing() {
    let mut documents = shop();
    documents.push(json!({
        "apiVersion": "specs.smi-spec.io/v1alpha4", "kind": "HTTPRouteGroup",
        "metadata": {"namespace": "shop", "name": "api"},
        "spec": {"matches": [{"name": "read", "pathRegex": "/api", "methods": ["GET"]}]},
    }));
    documents.push(json!({
        "apiVersion": "access.smi-spec.io/v1alpha3", "kind": "TrafficTarget",
        "metadata": {"namespace": "shop", "name": "client-to-v1"},
        "spec": {
            "destination": {"kind": "ServiceAccount", "name": "v1", "namespace": "shop"},
            "sources": [{"kind": "ServiceAccount", "name": "client", "namespace": "shop"}],
            "rules": [{"kind": "HTTPRouteGroup", "name": "api"}],
        },
    }));
    let compiler = compiled(documents);
    for (source, request, outcome, why) in [
        ("client-1", Some(("GET", "/api/x", &[][..])), Outcome::Allowed, "its requests match"),
        ("sa:shop/client", Some(("GET", "/api", &[])), Outcome::Allowed, "its requests match"),
        ("client-1", Some(("POST", "/api", &[])), Outcome::Denied, "the request is none of its own"),
        ("client-1", Some(("GET", "/", &[])), Outcome::Denied, "the request is none of its own"),
        ("client-1", None, Outcome::SomeRequests, "it grants these requests"),
        ("other-1", Some(("GET", "/api", &[])), Outcome::Denied, "service account shop/other is not among its sources"),
        ("outside", Some(("GET", "/api", &[])), Outcome::Denied, "nobody knows who asks"),
    ] {
        for destination in ["v1", "v1-1:8080"] {
            let answer = ask(&compiler, source, destination, request);
            let endpoint = &answer.backends[0].endpoints[0];
            assert_eq!(answer.outcome, outcome, "{source} {request:?} {destination}: {answer:?}");
            assert_eq!(endpoint.targets[0].origin.to_string(), "TrafficTarget shop/client-to-v1");
            assert_eq!(endpoint.targets[0].grants, outcome == Outcome::Allowed);
            assert!(endpoint.targets[0].why.starts_with(why), "{}", endpoint.targets[0].why);
        }
    }
    // The split asks each chosen endpoint: v1 denies, v2 is not selected.
    let split = ask(&compiler, "other-1", "web", Some(("GET", "/", &[])));
    assert_eq!(split.outcome, Outcome::SomeEndpoints);
}

fn target(destination: Value, sources: Value, rules: Value) -> Value {
    json!({
        "apiVersion": "access.smi-spec.io/v1alpha4", "kind": "TrafficTarget",
        "metadata": {"namespace": "shop", "name": "target"},
        "spec": {"destination": destination, "sources": sources, "rules": rules},
    })
}

#[test]
fn a_path_is_asked_for_in_the_form_in_which_the_proxy_would_forward_it() {
    let mut documents = shop();
    documents.push(json!({
        "apiVersion": "specs.smi-spec.io/v1alpha4", "kind": "HTTPRouteGroup",
        "metadata": {"namespace": "shop", "name": "api"},
        "spec": {"matches": [{"name": "read", "pathRegex": "/api/"}]},
    }));
    documents.push(target(
        json!({"kind": "ServiceAccount", "name": "v1"}),
        json!([{"kind": "ServiceAccount", "name": "client"}]),
        json!([{"kind": "HTTPRouteGroup", "name": "api"}]),
    ));
    let compiler = compiled(documents);
    for (path, outcome, seen) in [
        ("/api/x", Outcome::Allowed, None),
        ("/x/..//%61pi/x?y=/../z", Outcome::Allowed, Some("/api/x")),
        ("/api/../admin", Outcome::Denied, Some("/admin")),
        ("/api/%2e%2e/admin", Outcome::Denied, Some("/admin")),
    ] {
        let answer = ask(&compiler, "client-1", "v1", Some(("GET", path, &[])));
        assert_eq!(answer.outcome, outcome, "{path}: {answer:?}");
        let told = answer.notes.iter().find_map(|note| note.strip_prefix("rules and the server see the path "));
        assert_eq!(told, seen, "{path}");
    }
}

#[test]
fn datagrams_are_asked_of_the_engine_and_are_granted_by_udp_routes_alone() {
    let mut documents = shop();
    for (kind, name, ports) in [("UDPRoute", "dns", json!([53])), ("TCPRoute", "dns", json!([53, 54]))] {
        documents.push(json!({
            "apiVersion": "specs.smi-spec.io/v1alpha4", "kind": kind, "metadata": {"namespace": "shop", "name": name},
            "spec": {"matches": {"ports": ports}},
        }));
    }
    documents.push(target(
        json!({"kind": "ServiceAccount", "name": "v1"}),
        json!([{"kind": "ServiceAccount", "name": "client"}]),
        json!([{"kind": "UDPRoute", "name": "dns"}, {"kind": "TCPRoute", "name": "dns"}]),
    ));
    let compiler = compiled(documents);
    let udp = |source: &str, destination: &str, request| {
        explain(&compiler, &Question { udp: true, ..question(source, destination, request) })
    };
    for (source, destination, outcome, why) in [
        ("client-1", "v1-1:53", Outcome::Allowed, "it grants whatever is sent"),
        ("client-1", "10.0.1.1:53", Outcome::Allowed, "it grants whatever is sent"),
        ("client-1", "v1-1:54", Outcome::Denied, "UDP port 54 is not among its UDP ports (53)"),
        ("other-1", "v1-1:53", Outcome::Denied, "service account shop/other is not among its sources (shop/client)"),
        ("outside", "v1-1:53", Outcome::Denied, "nobody knows who asks"),
    ] {
        let answer = udp(source, destination, None).unwrap();
        assert_eq!(answer.outcome, outcome, "{source} {destination}: {answer:?}");
        assert_eq!(answer.backends[0].endpoints[0].targets[0].why, why);
        assert!(answer.destination.udp);
    }
    assert_eq!(udp("client-1", "v2-1:53", None).unwrap().outcome, Outcome::Allowed, "no target selects it");
    assert!(matches!(udp("client-1", "web", None), Err(QuestionError::Destination(..))));
    assert!(matches!(udp("client-1", "v1-1:53", Some(("GET", "/", &[]))), Err(QuestionError::Request(..))));
    assert_eq!(ask(&compiler, "client-1", "v1-1:54", None).outcome, Outcome::Allowed, "TCP has routes of its own");
}

#[test]
fn what_is_granted_by_label_is_told_to_those_who_ask_by_account() {
    let mut documents = shop();
    documents.push(json!({
        "apiVersion": "access.smi-spec.io/v1alpha4", "kind": "IdentityBinding",
        "metadata": {"namespace": "shop", "name": "clients"},
        "spec": {"schemes": {"podLabelSelector": {"matchLabels": {"app": "client"}}}},
    }));
    documents.push(json!({
        "apiVersion": "specs.smi-spec.io/v1alpha4", "kind": "TCPRoute", "metadata": {"namespace": "shop", "name": "all"},
        "spec": {},
    }));
    documents.push(target(
        json!({"kind": "ServiceAccount", "name": "v1"}),
        json!([{"kind": "IdentityBinding", "name": "clients"}]),
        json!([{"kind": "TCPRoute", "name": "all"}]),
    ));
    let compiler = compiled(documents);
    for (source, outcome, why) in [
        ("client-1", Outcome::Allowed, "it grants whatever is said"),
        ("other-1", Outcome::Denied, "and the pod is none of the 1 known here that an IdentityBinding means by label"),
        ("sa:shop/client", Outcome::Denied, "ask with NAMESPACE/POD as the source"),
    ] {
        let answer = ask(&compiler, source, "v1", None);
        assert_eq!(answer.outcome, outcome, "{source}: {answer:?}");
        let told = &answer.backends[0].endpoints[0].targets[0].why;
        assert!(told.contains(why), "{source}: {told}");
    }
}

#[test]
fn plaintext_to_a_strict_namespace_is_refused_and_the_object_that_says_so_is_named() {
    let with_uid = |mut pod: Value, uid: &str| {
        pod["metadata"]["uid"] = uid.into();
        pod
    };
    let elsewhere = |name: &str, mesh: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": "free", "name": name, "labels": {"weft.dev/mesh": mesh}},
            "spec": {"nodeName": "n2", "serviceAccountName": "free", "containers": []},
            "status": {"phase": "Running", "podIPs": [{"ip": if mesh == "enabled" { "10.0.9.1" } else { "10.0.9.2" }}]},
        })
    };
    let published = json!({
        "apiVersion": "weft.dev/v1alpha1", "kind": "NodeWorkloads",
        "metadata": {"name": "n1-0", "labels": {"weft.dev/node": "n1"}},
        "spec": {"node": "n1", "pods": [
            {"uid": "ready-uid", "namespace": "shop", "name": "ready-1", "serviceAccount": "ready", "ips": ["10.0.3.1"]},
        ]},
    });
    let world = |mtls: &str| {
        let mut bare = pod("bare-1", "10.0.4.1", "n1");
        bare["metadata"]["labels"]["weft.dev/mesh"] = "disabled".into();
        compiled(vec![
            namespace("shop", json!({"weft.dev/mesh": "enabled", "weft.dev/mtls": mtls})),
            namespace("free", json!({"weft.dev/mesh": "enabled"})),
            pod("client-1", "10.0.0.1", "n1"),
            pod("v1-1", "10.0.1.1", "n1"),
            with_uid(pod("ready-1", "10.0.3.1", "n1"), "ready-uid"),
            bare,
            elsewhere("meshed", "enabled"),
            elsewhere("plain", "disabled"),
            service("v1", "10.96.0.2", http()),
            published.clone(),
        ])
    };
    let (strict, slip, permissive) = (world("strict"), world("strct"), world("permissive"));
    const AT_POD: &str = "Namespace shop takes mutual TLS only, and this connection brought no certificate";
    const AT_CLIENT: &str = "Namespace shop takes mutual TLS only, and no NodeWorkloads says that";
    for (source, destination, why) in [
        // Nobody vouches for these, and it is at the pod that they are refused.
        ("outside", "v1-1:8080", Some(AT_POD)),
        ("outside", "v1", Some(AT_POD)),
        ("free/plain", "v1-1:8080", Some(AT_POD)),
        ("outside", "ready-1:8080", Some(AT_POD)),
        // From another node: by mutual TLS to a pod that takes it, and not at all to one that does not.
        ("free/meshed", "ready-1:8080", None),
        ("free/meshed", "v1-1:8080", Some(AT_CLIENT)),
        ("free/meshed", "v1", Some(AT_CLIENT)),
        // The kernel vouches for both ends on one node; but weft does not encrypt what goes to a pod outside of it.
        ("client-1", "v1-1:8080", None),
        ("client-1", "v1", None),
        ("client-1", "client-1:80", None),
        ("client-1", "bare-1:8080", Some(AT_CLIENT)),
        ("sa:shop/client", "v1-1:8080", None),
        ("sa:shop/client", "bare-1:8080", Some(AT_CLIENT)),
    ] {
        for compiler in [&strict, &slip] {
            for request in [None, Some(("GET", "/", &[][..]))] {
                let answer = ask(compiler, source, destination, request);
                let what = format!("{source} to {destination}: {answer:#?}");
                match why {
                    Some(why) => assert!(answer.outcome == Outcome::Denied && answer.summary.contains(why), "{what}"),
                    None => assert_eq!(answer.outcome, Outcome::Allowed, "{what}"),
                }
                let told =
                    answer.notes.iter().filter(|note| note.contains("in plaintext from elsewhere is refused")).count();
                let asked_of_pod = why != Some(AT_CLIENT) && (source, destination) != ("client-1", "client-1:80");
                assert_eq!(told, usize::from(asked_of_pod), "{what}");
            }
        }
        let answer = ask(&permissive, source, destination, None);
        assert!(
            answer.outcome == Outcome::Allowed && !format!("{answer:?}").contains("mutual TLS only"),
            "{answer:#?}"
        );
    }
    // What pods of a strict namespace send goes as the other end takes it.
    let out = ask(&strict, "client-1", "free/meshed:80", None);
    assert_eq!(out.outcome, Outcome::Allowed, "{out:#?}");
    assert!(
        out.notes.iter().any(|note| note.starts_with("Namespace shop takes mutual TLS only, which is about")),
        "{out:#?}"
    );
    // Datagrams are not encrypted, in either mode.
    let datagrams = Question { udp: true, ..question("outside", "v1-1:53", None) };
    assert_eq!(explain(&strict, &datagrams).unwrap().outcome, Outcome::Allowed);
}
