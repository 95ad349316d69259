//! Bad input, field by field: every field of every kind, version and shape, with everything in it that does not belong there. Each time
//! somebody is told, by object and field; what was in force stays, or less; and nobody else's plans change.

#![allow(clippy::unwrap_used, reason = "a test may panic in its helpers too")]

use std::{cell::OnceCell, collections::BTreeSet, sync::Arc};

use http::{HeaderMap, Method};
use serde_json::{Value, json};
use weft_crds::{
    generate::reference::{self, Field, KindReference},
    limits::OBJECT_MESSAGE_BYTES_MAX,
    lower::lower,
    parse::parse,
    store::{ObjectEvent, ObjectStore},
};
use weft_policy::{
    compile::Compiler,
    diagnostic::Severity,
    inbound::{ConnectionVerdict, Source, Verdict},
    matcher::RequestHead,
    names::{ServiceAccountKey, WorkloadId},
    snapshot::Snapshot,
};

/// What is put where it may not belong.
fn junk() -> Vec<Value> {
    vec![
        Value::Null,
        json!(true),
        json!(3),
        json!(-1),
        json!(1.5),
        json!(1e300),
        json!(""),
        json!(" "),
        json!("a/b"),
        json!("a.b"),
        json!("."),
        json!("ShOp"),
        json!("\u{fc}\u{0}"),
        json!("("),
        json!("((a{1,100}){1,100}){1,100}"),
        json!("x".repeat(20_000)),
        json!([]),
        json!([null]),
        json!([[]]),
        json!([{}]),
        json!(["("]),
        json!([true, 70000, -1]),
        json!({}),
        json!({"": ""}),
        json!({"a b": "("}),
        json!({"kind": {}, "name": []}),
    ]
}

/// Somebody else's objects, with access and a split of their own.
fn neighbours() -> Vec<Value> {
    let account = |name: &str| json!({"kind": "ServiceAccount", "name": name});
    let object = |api_version: &str, kind: &str, name: &str, spec: Value| json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": name, "namespace": "shop"}, "spec": spec});
    let service = |name: &str| object("v1", "Service", name, json!({"clusterIP": "10.9.0.1", "ports": [{"port": 7}]}));
    vec![
        object("v1", "Pod", "neighbour", json!({"serviceAccountName": "neighbour", "containers": []})),
        object(
            "specs.smi-spec.io/v1alpha4",
            "HTTPRouteGroup",
            "neighbour",
            json!({"matches": [{"name": "a", "pathRegex": "/a"}]}),
        ),
        object(
            "access.smi-spec.io/v1alpha3",
            "TrafficTarget",
            "neighbour",
            json!({"destination": account("neighbour"), "sources": [account("client")], "rules": [{"kind": "HTTPRouteGroup", "name": "neighbour"}]}),
        ),
        service("neighbour"),
        object(
            "split.smi-spec.io/v1alpha4",
            "TrafficSplit",
            "neighbour",
            json!({"service": "neighbour", "backends": [{"service": "neighbour", "weight": 3}]}),
        ),
    ]
}

/// A store and the plans made of it.
#[derive(Default)]
struct Mesh {
    store: ObjectStore,
    compiler: Compiler,
}

impl Mesh {
    fn new(documents: &[Value]) -> Self {
        let mut mesh = Self::default();
        let mut events = Vec::new();
        for document in documents {
            let parsed = parse(document);
            assert_eq!(parsed.errors, [], "{document}");
            events.extend(parsed.objects.into_iter().map(|(object, _)| ObjectEvent::Apply(object)));
        }
        mesh.apply(events);
        mesh
    }

    fn apply(&mut self, events: Vec<ObjectEvent>) {
        let dirty = self.store.apply(events);
        self.compiler.apply(lower(&self.store, &dirty));
    }

    fn snapshot(&self) -> &Arc<Snapshot> {
        self.compiler.snapshot()
    }

    /// What is told as an error of one object: the fields.
    fn errors(&self, object: &str) -> Vec<(String, String)> {
        let found = self.compiler.diagnostics().into_iter();
        let found = found.filter(|one| one.severity == Severity::Error && one.object.to_string() == object);
        found.map(|one| (one.field, one.message)).collect()
    }

    /// Everything that anybody may do anywhere.
    fn allowed(&self) -> BTreeSet<String> {
        let mut allowed = BTreeSet::new();
        let mut sources: Vec<(Option<ServiceAccountKey>, Option<WorkloadId>)> = vec![(None, None)];
        for name in ["client", "other", "other-client", "a.b", "x"] {
            sources.push((Some(ServiceAccountKey::new("shop", name)), None));
            sources.push((Some(ServiceAccountKey::new("elsewhere", name)), None));
        }
        for (id, pod) in &self.compiler.ir().workloads {
            sources.push((Some(ServiceAccountKey::new("shop", &pod.service_account)), Some(id.clone())));
        }
        for (id, plan) in &self.snapshot().inbound {
            for (account, workload) in &sources {
                let source = account.as_ref().map(|account| Source { account, workload: workload.as_ref() });
                for port in [3, 53, 80, 81, 82] {
                    let name = format!("{account:?} {workload:?} to {id:?}:{port}");
                    if matches!(plan.connection(source, port), ConnectionVerdict::Allow(_)) {
                        allowed.insert(format!("{name} TCP"));
                    }
                    if matches!(plan.udp(source, port), Verdict::Allow(_)) {
                        allowed.insert(format!("{name} UDP"));
                    }
                    for (method, path) in [(Method::GET, "/"), (Method::POST, "/api/x"), (Method::GET, "/a")] {
                        let headers = HeaderMap::new();
                        let head = RequestHead { method: &method, path, query: None, headers: &headers };
                        if matches!(plan.request(source, port, &head), Verdict::Allow(_)) {
                            allowed.insert(format!("{name} {method} {path}"));
                        }
                    }
                }
            }
        }
        allowed
    }

    /// What the neighbours' objects came to.
    fn neighbours(&self) -> Value {
        let view = self.snapshot().describe();
        let id = self.compiler.ir().workloads.iter().find(|(_, pod)| &*pod.name == "neighbour").unwrap().0;
        json!([view.services["shop/neighbour"], view.inbound[id]])
    }
}

/// Whether a path is told well: it is the field, something in it, or what it is in.
fn is_about(told: &str, field: &str) -> bool {
    let field = field.replace("[]", "[0]");
    told.starts_with(&field) || field.starts_with(told)
}

/// Whether a value has a type that the schema of a field allows. `null` stands for nothing at all.
fn fits(schema: &Value, value: &Value) -> bool {
    match schema["type"].as_str() {
        _ if value.is_null() => true,
        Some("string") => value.is_string(),
        Some("array") => value.is_array(),
        Some("object") => value.is_object(),
        _ => !value.is_boolean(),
    }
}

fn schema_of(kind: &KindReference, path: &str) -> Value {
    let crd = kind.definition.custom_resource_definition();
    let mut at = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    for part in path.split('.') {
        at = &at["properties"][part.trim_end_matches("[]")];
        if part.ends_with("[]") {
            at = &at["items"];
        }
    }
    assert!(at.is_object(), "{path}");
    at.clone()
}

struct Case<'a> {
    kind: &'a KindReference,
    field: &'a Field,
    version: &'a str,
    shape: &'a str,
    world: &'a World,
    /// What is allowed with the good version in force, once it was asked for.
    before: OnceCell<BTreeSet<String>>,
}

/// What there is beside an object, and what comes of it.
struct World {
    documents: Vec<Value>,
    allowed: BTreeSet<String>,
    neighbours: Value,
}

impl World {
    fn new(kind: &KindReference) -> Self {
        let documents: Vec<Value> = kind.world.iter().cloned().chain(neighbours()).collect();
        let mesh = Mesh::new(&documents);
        Self { allowed: mesh.allowed(), neighbours: mesh.neighbours(), documents }
    }
}

impl Case<'_> {
    /// Puts a value into the field. Returns whether it was refused.
    fn check(&self, value: Option<&Value>) -> bool {
        let Self { kind, field, version, shape, world, .. } = self;
        let document = kind.document(version, shape, &field.with(value));
        let object = format!("{} shop/example", kind.definition.kind);
        let path = format!("{shape}{}", field.path);
        // Where a field is missing, what it is missing in is told, or the newer name of it.
        let given = value.is_some_and(|value| !value.is_null() && *value != json!([]));
        let is_told = |told: &str| is_about(told, &path) || (!given && (told.starts_with(shape) || told == "spec"));
        let parsed = parse(&document);
        if let [error] = &*parsed.errors {
            assert!(parsed.objects.is_empty(), "{document}");
            assert_eq!(error.object, object, "{document}");
            assert!(error.key.as_ref().is_some_and(|key| key.to_string() == object), "{document}");
            let fields = &error.fields.0;
            assert!(fields.iter().any(|(told, _)| is_told(told)), "{path} is not what is told: {error}");
            assert!(error.to_string().len() < 2 * OBJECT_MESSAGE_BYTES_MAX, "{document}: {error}");
            return true;
        }
        let applied = || ObjectEvent::Apply(parse(&document).objects.pop().unwrap().0);
        let mut fresh = Mesh::new(&world.documents);
        fresh.apply(vec![applied()]);
        assert_eq!(fresh.neighbours(), world.neighbours, "{document}");
        let errors = fresh.errors(&object);
        if errors.is_empty() {
            if let Some(value) = value {
                assert!(fits(&schema_of(kind, &path), value), "{document}: accepted, and of a wrong type");
            }
            return false;
        }
        assert!(errors.iter().any(|(told, _)| is_told(told)), "{path} is not what is told: {errors:?}");
        let with = fresh.allowed();
        assert!(with.is_subset(&world.allowed), "{document}: wider than without the object");
        // Whoever names another destination no longer protects the old one.
        if !field.path.starts_with("destination") {
            assert!(with.is_subset(self.before()), "{document}: wider than the version before");
        }
        true
    }

    fn before(&self) -> &BTreeSet<String> {
        self.before.get_or_init(|| {
            let mut mesh = Mesh::new(&self.world.documents);
            let good = self.field.with(Some(&self.field.example));
            let parsed = parse(&self.kind.document(self.version, self.shape, &good));
            mesh.apply(parsed.objects.into_iter().map(|(object, _)| ObjectEvent::Apply(object)).collect());
            mesh.allowed()
        })
    }
}

#[test]
fn whatever_is_in_a_field_is_used_or_told_by_object_and_field_and_never_widens_access() {
    let junk = junk();
    for kind in reference::kinds() {
        let world = World::new(&kind);
        for version in kind.definition.versions {
            for shape in kind.shapes() {
                for field in &kind.fields {
                    let case = Case { kind: &kind, field, version, shape, world: &world, before: OnceCell::new() };
                    let values = junk.iter().map(Some).chain([None]);
                    let refused = values.filter(|value| case.check(*value)).count();
                    let context = format!("{} {version} {shape}{}", kind.definition.kind, field.path);
                    // Numbers, booleans, lists or maps, whichever does not belong there.
                    assert!(refused >= 8, "{context}: only {refused} refused");
                }
            }
        }
    }
}

#[test]
fn an_object_without_a_good_name_is_told_and_leaves_the_others_of_its_list() {
    let long = "a".repeat(254);
    for kind in reference::kinds() {
        let body = &kind.fields[0].body;
        for (field, value) in [
            ("name", json!("a/b")),
            ("name", json!("a..b")),
            ("name", json!("Upper")),
            ("name", json!("")),
            ("name", json!(long)),
            ("name", json!(5)),
            ("name", Value::Null),
            ("name", json!({"a": 1})),
            ("namespace", json!("a.b")),
            ("namespace", json!("a/b")),
            ("namespace", json!(["shop"])),
        ] {
            let mut document = kind.document(kind.definition.storage, "spec.", body);
            document["metadata"][field] = value;
            let others = neighbours();
            let items: Vec<&Value> = others.iter().take(2).chain([&document]).chain(&others[2..]).collect();
            let parsed = parse(&json!({"apiVersion": "v1", "kind": "List", "items": items}));
            let told: Vec<(&str, bool)> = parsed
                .errors
                .iter()
                .map(|error| (error.field.as_str(), error.object.starts_with(kind.definition.kind)))
                .collect();
            assert_eq!(told, [(format!("items[2].metadata.{field}").as_str(), true)], "{document}");
            assert_eq!(parsed.objects.len(), others.len());
        }
    }
}

/// Each pattern is within its bounds, and all of them together are not.
#[test]
fn patterns_that_are_too_much_together_match_nothing_and_their_group_is_told() {
    const MATCHES: usize = 250;
    let matches: Vec<Value> = (0..MATCHES)
        .map(|index| json!({"name": format!("m{index}"), "headers": {"x": format!("^{index}x{{4000}}$")}}))
        .collect();
    let group = json!({"apiVersion": "specs.smi-spec.io/v1alpha4", "kind": "HTTPRouteGroup",
                       "metadata": {"name": "example", "namespace": "shop"}, "spec": {"matches": matches}});
    let account = |name: &str| json!({"kind": "ServiceAccount", "name": name});
    let spec = json!({"destination": account("web"), "sources": [account("client")], "rules": [{"kind": "HTTPRouteGroup", "name": "example"}]});
    let mut documents = neighbours();
    documents.push(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "shop"}, "spec": {"serviceAccountName": "web", "containers": []}}));
    documents.push(json!({"apiVersion": "access.smi-spec.io/v1alpha3", "kind": "TrafficTarget",
                          "metadata": {"name": "target", "namespace": "shop"}, "spec": spec}));
    let alone = Mesh::new(&documents);
    documents.push(group);
    let mesh = Mesh::new(&documents);
    let account = ServiceAccountKey::new("shop", "client");
    let id = mesh.compiler.ir().workloads.iter().find(|(_, pod)| &*pod.name == "web").unwrap().0;
    let allows = |index: usize| {
        let mut headers = HeaderMap::new();
        headers.insert("x", format!("{index}{}", "x".repeat(4000)).parse().unwrap());
        let head = RequestHead { method: &Method::GET, path: "/", query: None, headers: &headers };
        let source = Source { account: &account, workload: None };
        matches!(mesh.snapshot().inbound[id].request(Some(source), 80, &head), Verdict::Allow(_))
    };
    let told: BTreeSet<String> =
        mesh.errors("HTTPRouteGroup shop/example").into_iter().map(|(field, _)| field).collect();
    let denied: BTreeSet<String> =
        (0..MATCHES).filter(|index| !allows(*index)).map(|index| format!("matches[m{index}].headers.x")).collect();
    assert_eq!(told, denied, "what is told is what matches nothing");
    assert!(!denied.is_empty() && allows(0), "the first ones hold");
    assert!(!allows(MATCHES));
    assert_eq!(mesh.neighbours(), alone.neighbours());
}
