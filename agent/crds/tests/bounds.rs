//! Objects that are as large, as many or as contradictory as an API server lets them be: what they cost is bounded, they are told by name,
//! and what stands beside them is as it was.
#![allow(missing_docs, reason = "a test")]
#![allow(clippy::print_stdout, reason = "figures are printed for people")]

use std::time::{Duration, Instant};

use http::{HeaderMap, Method};
use serde_json::{Value, json};
use weft_crds::{
    lower::lower,
    object::Kind,
    parse::{parse, parse_as},
    store::{ObjectEvent, ObjectStore},
};
use weft_policy::{
    compile::Compiler,
    diagnostic::Diagnostic,
    inbound::{Source, Verdict},
    limits,
    matcher::RequestHead,
    names::{ServiceAccountKey, ServiceKey, WorkloadId},
};

/// What an API server takes at most, bytes (etcd's default request limit).
const OBJECT_BYTES: usize = 1_500_000;
/// For everything that is done at once here. Far above the two seconds that it takes at most, for machines that are busy or slow.
const TIME_MAX: Duration = Duration::from_secs(300);
const HTTP: u16 = 8080;

/// Objects, and what is in force of them.
#[derive(Default)]
struct World {
    store: ObjectStore,
    compiler: Compiler,
}

impl World {
    fn apply(&mut self, documents: &[Value]) -> Duration {
        let events: Vec<ObjectEvent> = documents.iter().map(object).collect();
        let begin = Instant::now();
        let dirty = self.store.apply(events);
        self.compiler.apply(lower(&self.store, &dirty));
        begin.elapsed()
    }

    fn found(&self, code: &str) -> Vec<Diagnostic> {
        self.compiler.diagnostics().into_iter().filter(|found| found.code == code).collect()
    }

    /// Whether the client's `GET` of a path of the server is allowed.
    fn allows(&self, path: &str) -> bool {
        let account = ServiceAccountKey::new("shop", "client");
        let source = Source { account: &account, workload: None };
        let head = RequestHead { method: &Method::GET, path, query: None, headers: &HeaderMap::new() };
        let plan = &self.compiler.snapshot().inbound[&WorkloadId::new("u-web")];
        matches!(plan.request(Some(source), HTTP, &head), Verdict::Allow(_))
    }
}

fn object(document: &Value) -> ObjectEvent {
    let mut parsed = parse(document);
    assert!(parsed.errors.is_empty(), "{:?}", parsed.errors);
    ObjectEvent::Apply(parsed.objects.pop().expect("one object").0)
}

fn service(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": name},
        "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": 80, "targetPort": HTTP}]}})
}

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "shop", "name": name, "uid": format!("u-{name}")},
        "spec": {"serviceAccountName": name, "containers": []}, "status": {"phase": "Running", "podIP": "10.0.0.1"}})
}

fn group(name: &str, matches: &Value) -> Value {
    json!({"apiVersion": "specs.smi-spec.io/v1alpha4", "kind": "HTTPRouteGroup", "metadata": {"namespace": "shop", "name": name},
        "spec": {"matches": matches}})
}

fn target(name: &str, group: &str) -> Value {
    let account = |name: &str| json!({"kind": "ServiceAccount", "name": name, "namespace": "shop"});
    json!({"apiVersion": "access.smi-spec.io/v1alpha3", "kind": "TrafficTarget", "metadata": {"namespace": "shop", "name": name},
        "spec": {"destination": account("web"), "sources": [account("client")], "rules": [{"kind": "HTTPRouteGroup", "name": group}]}})
}

fn split(name: &str, backend: &str) -> Value {
    json!({"apiVersion": "split.smi-spec.io/v1alpha4", "kind": "TrafficSplit", "metadata": {"namespace": "shop", "name": name},
        "spec": {"service": "root", "backends": [{"service": backend, "weight": 1}]}})
}

/// A regex that is as large as one may be, and different from that of every other number.
fn dear(number: usize) -> String {
    format!("/{number}/(a|b|[^c]{{2}}){{1000}}x")
}

#[test]
fn an_object_of_a_megabyte_is_refused_in_bounded_time_and_told() {
    let regexes = |count: usize| -> Vec<Value> {
        (0..count).map(|number| json!({"name": format!("m{number}"), "pathRegex": dear(number)})).collect()
    };
    let headers = |count: usize| -> Value {
        (0..count)
            .map(|number| (format!("h{number}"), Value::from(dear(number))))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    let many = OBJECT_BYTES / 60;
    let cases = [
        (
            "thousands of matches",
            group("g", &regexes(many).into()),
            "spec.matches",
            "matches are over the limit of 256",
        ),
        (
            "thousands of headers",
            group("g", &json!([{"name": "m", "headers": headers(many)}])),
            "spec.matches[0].headers",
            "headers are over the limit of 64",
        ),
        (
            "one regex of a megabyte",
            group("g", &json!([{"name": "m", "pathRegex": "(a|b)".repeat(OBJECT_BYTES / 5)}])),
            "spec.matches[0].pathRegex",
            "over the limit of 1024",
        ),
        (
            "thousands of backends",
            {
                let mut split = split("s", "b");
                split["spec"]["backends"] = (0..OBJECT_BYTES / 40)
                    .map(|number| json!({"service": format!("b{number}"), "weight": 1}))
                    .collect();
                split
            },
            "spec.backends",
            "over the limit of 128",
        ),
    ];
    for (what, document, field, message) in cases {
        let begin = Instant::now();
        let parsed = parse(&document);
        let took = begin.elapsed();
        println!("{what}: {} bytes, {took:?}", document.to_string().len());
        let [error] = &parsed.errors[..] else { panic!("{what}: {} errors", parsed.errors.len()) };
        let said = |(at, text): &(String, String)| at.starts_with(field) && text.contains(message);
        assert!(error.fields.0.iter().any(said), "{what}: {:?}", error.fields.0.iter().take(5).collect::<Vec<_>>());
        assert!(error.message.len() < OBJECT_BYTES / 4, "{what}: a message of {} bytes", error.message.len());
        assert!(error.key.is_some(), "{what}: it is named");
        assert!(took < TIME_MAX, "{what}: {took:?}");
    }
}

#[test]
fn targets_whose_regexes_take_too_much_together_grant_nothing_and_the_others_stay() {
    let mut world = World::default();
    world.apply(&[
        pod("web"),
        group("cheap", &json!([{"name": "m", "pathRegex": "/cheap"}])),
        target("a-cheap", "cheap"),
    ]);
    assert!(world.allows("/cheap") && !world.allows("/0/"));
    let count = limits::GRANTS_PER_DESTINATION_MAX - 1;
    // Each looks for a name in front of much else, which takes a large automaton, and is cheap to check.
    let regex = |number: usize| format!("/{number}/.*[ab].{{9}}");
    let groups: Vec<Value> = (0..count)
        .map(|number| group(&format!("g{number}"), &json!([{"name": "m", "pathRegex": regex(number)}])))
        .collect();
    world.apply(&groups);
    let targets: Vec<Value> =
        (0..count).map(|number| target(&format!("t{number:04}"), &format!("g{number}"))).collect();
    let took = world.apply(&targets);
    let refused = world.found("TooMuchToMatch");
    println!("{count} targets took {took:?}; {} are too much", refused.len());
    assert!(took < TIME_MAX, "{took:?}");
    assert!(!refused.is_empty() && refused.len() < count, "{} of {count}", refused.len());
    let first = count - refused.len();
    assert_eq!(&*refused[0].object.name, format!("t{first:04}"), "those that come last");
    let path = |number: usize| format!("/{number}/a123456789");
    assert!(world.allows("/cheap") && world.allows(&path(0)) && world.allows(&path(first - 1)));
    assert!(!world.allows(&path(first)) && !world.allows(&path(count - 1)));

    // A change among them compiles only what is new.
    let took = world.apply(&[group("cheap", &json!([{"name": "m", "pathRegex": "/other"}]))]);
    println!("one changed among them took {took:?}");
    assert!(world.allows("/other") && !world.allows("/cheap") && world.allows(&path(0)));
    assert_eq!(world.found("TooMuchToMatch"), refused);
    // Whatever came first: the targets alone decide.
    let mut other = World::default();
    let all: Vec<Value> = targets.iter().rev().chain(&groups).cloned().collect();
    other.apply(&all);
    other.apply(&[
        pod("web"),
        group("cheap", &json!([{"name": "m", "pathRegex": "/other"}])),
        target("a-cheap", "cheap"),
    ]);
    assert_eq!(other.compiler.snapshot().describe(), world.compiler.snapshot().describe());
    assert_eq!(other.compiler.diagnostics(), world.compiler.diagnostics());
    // And those that go make room for others.
    let gone = targets.iter().take(first).map(|target| ObjectEvent::Delete(key(target)));
    let dirty = world.store.apply(gone);
    world.compiler.apply(lower(&world.store, &dirty));
    assert!(world.allows("/other") && !world.allows(&path(0)) && world.allows(&path(first)));
}

fn key(document: &Value) -> weft_crds::object::ObjectKey {
    parse_as(Kind::TrafficTarget, "v1alpha3", document).expect("a target").key()
}

#[test]
fn ten_thousand_splits_of_one_root_are_told_and_disturb_no_other() {
    let mut world = World::default();
    world.apply(&[service("root"), service("good"), service("bad")]);
    let took = world.apply(&(0..10_000).map(|number| split(&format!("s{number:05}"), "bad")).collect::<Vec<_>>());
    println!("10,000 splits took {took:?}");
    assert!(took < TIME_MAX, "{took:?}");
    let losers = world.found("Conflicted");
    assert_eq!(losers.len(), 9_999);
    assert!(losers.iter().all(|loser| &*loser.object.name != "s00000"));
    let took = world.apply(&[split("a", "good")]);
    println!("one more took {took:?}");
    let plan = &world.compiler.snapshot().services[&ServiceKey::new("shop", "root")][0];
    assert_eq!(plan.connection.origin.name.as_ref(), "a", "the first by name");
    assert_eq!(plan.connection.backends[0].service, ServiceKey::new("shop", "good"));
    assert!(took < TIME_MAX, "{took:?}");
}
