//! Access control against the specification, written down as naively as it reads, over every combination of a small world: what the
//! engine allows is what the specification allows, no more and no less.

#![allow(clippy::unwrap_used, reason = "a test may panic in its helpers too")]

use http::{HeaderMap, Method};
use serde_json::{Value, json};
use weft_crds::{
    lower::lower,
    parse::parse,
    store::{ObjectEvent, ObjectStore},
};
use weft_policy::{
    compile::Compiler,
    inbound::{ConnectionVerdict, InboundPlan, Source, Verdict},
    matcher::RequestHead,
    names::{ServiceAccountKey, WorkloadId},
};

/// A TrafficTarget as a reader of the specification sees it.
struct Target {
    destination: &'static str,
    sources: &'static [&'static str],
    /// Ports on which TCP is granted; empty for every port.
    tcp: Option<&'static [u16]>,
    udp: Option<&'static [u16]>,
    /// Matches of the one route group.
    http: Option<&'static [&'static str]>,
    /// Not valid as a whole.
    broken: bool,
}

const NONE: Target = Target { destination: "x", sources: &["a"], tcp: None, udp: None, http: None, broken: false };

/// `port 0` stands for a route that does not exist.
const TARGETS: [Target; 9] = [
    Target { tcp: Some(&[]), ..NONE },
    Target { tcp: Some(&[80]), http: Some(&["get"]), ..NONE },
    Target { sources: &["b"], http: Some(&["get", "admin"]), ..NONE },
    Target { destination: "y", sources: &["a", "b"], tcp: Some(&[0]), ..NONE },
    Target { destination: "y", sources: &["b"], udp: Some(&[80]), ..NONE },
    Target { sources: &["b"], tcp: Some(&[]), broken: true, ..NONE },
    Target { destination: "y", tcp: Some(&[]), http: Some(&["gone"]), ..NONE },
    Target { destination: "y", tcp: Some(&[81]), udp: Some(&[]), ..NONE },
    Target { tcp: Some(&[81]), sources: &["a", "b"], http: Some(&[]), ..NONE },
];

#[derive(Clone, Copy, Debug)]
struct Request {
    method: &'static str,
    path: &'static str,
    admin: bool,
}

const REQUESTS: [Request; 6] = [
    Request { method: "GET", path: "/api", admin: false },
    Request { method: "GET", path: "/api/v2", admin: false },
    Request { method: "POST", path: "/api", admin: false },
    Request { method: "POST", path: "/x", admin: true },
    Request { method: "GET", path: "/x/api", admin: true },
    Request { method: "GET", path: "/", admin: false },
];

/// The matches of the group, as a person reads them.
fn matches(name: &str, request: Request) -> bool {
    match name {
        "get" => request.method == "GET" && request.path.starts_with("/api"),
        "admin" => request.admin,
        _ => false,
    }
}

impl Target {
    fn document(&self, index: usize) -> Value {
        let subject = |name: &&str| json!({"kind": "ServiceAccount", "name": name});
        let mut rules = Vec::new();
        for (kind, ports) in [("TCPRoute", self.tcp), ("UDPRoute", self.udp)] {
            match ports {
                None => {}
                Some([]) => rules.push(json!({"kind": kind, "name": "all"})),
                Some(ports) => rules.extend(ports.iter().map(|port| json!({"kind": kind, "name": format!("p{port}")}))),
            }
        }
        match self.http {
            None => {}
            Some([]) => rules.push(json!({"kind": "HTTPRouteGroup", "name": "group"})),
            Some(names) => rules.push(json!({"kind": "HTTPRouteGroup", "name": "group", "matches": names})),
        }
        let sources: Vec<Value> = self.sources.iter().map(subject).collect();
        let mut spec = json!({"destination": subject(&self.destination), "sources": sources, "rules": rules});
        if self.broken {
            spec["ruls"] = json!([]);
        }
        json!({"apiVersion": "access.smi-spec.io/v1alpha3", "kind": "TrafficTarget",
               "metadata": {"name": format!("t{index}"), "namespace": "shop"}, "spec": spec})
    }

    /// "If a pod which holds the reference service identity makes a call to the destination on one of the defined routes then access
    /// will be allowed."
    fn grants(&self, source: &str, port: u16, request: Option<Request>) -> bool {
        let port = match (self.tcp, self.http) {
            (Some([]), _) | (None, Some(_)) => true,
            (Some(ports), _) => ports.contains(&port),
            (None, None) => false,
        };
        let said = match (self.http, request) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some([]), Some(request)) => ["get", "admin"].iter().any(|name| matches(name, request)),
            (Some(names), Some(request)) => names.iter().any(|name| matches(name, request)),
        };
        !self.broken && self.sources.contains(&source) && port && said
    }

    fn grants_udp(&self, source: &str, port: u16) -> bool {
        let port = self.udp.is_some_and(|ports| ports.is_empty() || ports.contains(&port));
        !self.broken && self.sources.contains(&source) && port
    }
}

/// "All traffic is denied by default" where any target names the destination; else the stance of the namespace holds. Nobody who is
/// not known is named by any target.
fn specified(
    subset: u32,
    deny: bool,
    destination: &str,
    source: Option<&str>,
    grants: impl Fn(&Target, &str) -> bool,
) -> bool {
    let mut here = (0..TARGETS.len()).filter(|index| subset & (1 << index) != 0).map(|index| &TARGETS[index]);
    let here: Vec<&Target> = here.by_ref().filter(|target| target.destination == destination).collect();
    if here.is_empty() { !deny } else { source.is_some_and(|source| here.iter().any(|target| grants(target, source))) }
}

fn apply(store: &mut ObjectStore, compiler: &mut Compiler, events: Vec<ObjectEvent>) {
    let dirty = store.apply(events);
    compiler.apply(lower(store, &dirty));
}

fn read(document: &Value) -> ObjectEvent {
    let mut parsed = parse(document);
    assert_eq!(parsed.errors, [], "{document}");
    ObjectEvent::Apply(parsed.objects.pop().unwrap().0)
}

fn world() -> Vec<ObjectEvent> {
    let pod = |name: &str| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop", "uid": name},
               "spec": {"serviceAccountName": name, "nodeName": "n1"}})
    };
    let route = |kind: &str, name: &str, ports: &[u16]| {
        json!({"apiVersion": "specs.smi-spec.io/v1alpha4", "kind": kind, "metadata": {"name": name, "namespace": "shop"},
               "spec": {"matches": {"ports": ports}}})
    };
    let group = json!({"apiVersion": "specs.smi-spec.io/v1alpha4", "kind": "HTTPRouteGroup", "metadata": {"name": "group", "namespace": "shop"},
        "spec": {"matches": [{"name": "get", "pathRegex": "/api", "methods": ["GET"]}, {"name": "admin", "headers": {"role": "^admin$"}}]}});
    let mut documents = vec![pod("x"), pod("y"), group];
    for kind in ["TCPRoute", "UDPRoute"] {
        documents.extend([route(kind, "all", &[]), route(kind, "p80", &[80]), route(kind, "p81", &[81])]);
    }
    documents.iter().map(read).collect()
}

fn namespace(deny: bool) -> ObjectEvent {
    let stance = if deny { "deny" } else { "allow" };
    read(
        &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"weft.dev/default": stance}}}),
    )
}

/// Asks for everything that can be asked of one destination, and returns how many questions that were.
fn check(plan: &InboundPlan, destination: &str, subset: u32, deny: bool) -> usize {
    let mut asked = 0;
    for source in [None, Some("a"), Some("b"), Some("x")] {
        let account = ServiceAccountKey::new("shop", source.unwrap_or_default());
        let known = source.map(|_| Source { account: &account, workload: None });
        for port in [80, 81] {
            let context = format!("{subset:b} deny {deny}: {source:?} to {destination}:{port}");
            let expected = |request: Option<Request>| {
                specified(subset, deny, destination, source, |target, source| target.grants(source, port, request))
            };
            let connection = plan.connection(known, port);
            let opaque = matches!(connection, ConnectionVerdict::Allow(_));
            assert_eq!(opaque, expected(None), "{context} opaque");
            for request in REQUESTS {
                let mut headers = HeaderMap::new();
                if request.admin {
                    headers.insert("role", "admin".parse().unwrap());
                }
                let method: Method = request.method.parse().unwrap();
                let head = RequestHead { method: &method, path: request.path, query: None, headers: &headers };
                let allowed = matches!(plan.request(known, port, &head), Verdict::Allow(_));
                assert_eq!(allowed, expected(Some(request)), "{context} {request:?}");
                // A connection that is refused is one on which no request would be granted, and the other way about.
                assert!(!allowed || !matches!(connection, ConnectionVerdict::Deny(_)), "{context} {request:?}");
            }
            let udp = matches!(plan.udp(known, port), Verdict::Allow(_));
            let expected =
                specified(subset, deny, destination, source, |target, source| target.grants_udp(source, port));
            assert_eq!(udp, expected, "{context} UDP");
            asked += REQUESTS.len() + 2;
        }
    }
    asked
}

#[test]
fn access_is_what_the_specification_says_for_every_set_of_targets() {
    let mut asked = 0;
    let mut store = ObjectStore::default();
    let mut compiler = Compiler::default();
    apply(&mut store, &mut compiler, world());
    let mut before = 0;
    for deny in [false, true] {
        apply(&mut store, &mut compiler, vec![namespace(deny)]);
        for number in 0..1u32 << TARGETS.len() {
            // Gray code: each set differs from the one before by one target that comes or goes.
            let subset = number ^ (number >> 1);
            let events = (0..TARGETS.len()).filter(|index| (before ^ subset) & (1 << index) != 0).map(|index| {
                let applied = read(&TARGETS[index].document(index));
                match (&applied, subset & (1 << index)) {
                    (ObjectEvent::Apply(object), 0) => ObjectEvent::Delete(object.key()),
                    _ => applied,
                }
            });
            apply(&mut store, &mut compiler, events.collect());
            before = subset;
            for destination in ["x", "y"] {
                let plan = &compiler.snapshot().inbound[&WorkloadId::new(destination)];
                asked += check(plan, destination, subset, deny);
                let selected = TARGETS
                    .iter()
                    .enumerate()
                    .any(|(index, target)| subset & (1 << index) != 0 && target.destination == destination);
                assert_eq!(plan.is_closed(), deny || selected, "{subset:b}");
            }
        }
    }
    assert_eq!(asked, 2 * (1 << TARGETS.len()) * 2 * 4 * 2 * (REQUESTS.len() + 2));
}
