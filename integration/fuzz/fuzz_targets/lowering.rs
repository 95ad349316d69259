//! Lowering and compilation: any stream of objects, applied, changed and deleted in any order, leads step by step where starting over
//! leads. The input chooses the objects and their fields, good and bad.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};
use weft_crds::{
    lower::{lower, lower_all},
    object::Object,
    parse::parse,
    store::{ObjectEvent, ObjectStore},
};
use weft_policy::compile::Compiler;

/// Longest stream.
const EVENTS_MAX: usize = 64;

/// What the input still holds; zeroes when it is used up.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn below(&mut self, end: usize) -> usize {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        usize::from(*first) % end
    }

    fn of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len())]
    }

    fn some<T>(&mut self, most: usize, mut one: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.below(most + 1)).map(|_| one(self)).collect()
    }

    fn is_rare(&mut self) -> bool {
        self.below(8) == 7
    }
}

const NAMESPACES: [&str; 2] = ["shop", "else"];
const ACCOUNTS: [&str; 4] = ["default", "web", "a.b", ""];
const GROUPS: [&str; 3] = ["g0", "g1", "gone"];
const ALPHAS: [&str; 5] = ["v1alpha1", "v1alpha2", "v1alpha3", "v1alpha4", "v1alpha9"];

fn metadata(input: &mut Input<'_>, names: &[&str]) -> Value {
    let mut metadata = json!({"name": input.of(names), "namespace": input.of(&NAMESPACES)});
    if input.is_rare() {
        metadata["creationTimestamp"] = json!(input.of(&["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", "x"]));
    }
    metadata
}

fn namespace(input: &mut Input<'_>) -> Value {
    let mut labels = json!({"weft.dev/mesh": input.of(&["enabled", "disabled", "x"])});
    if input.below(2) == 1 {
        labels["weft.dev/default"] = json!(input.of(&["allow", "deny", "x"]));
    }
    if input.below(2) == 1 {
        labels["weft.dev/fail-mode"] = json!(input.of(&["open", "closed", "x"]));
    }
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": input.of(&NAMESPACES), "labels": labels}})
}

fn pod(input: &mut Input<'_>) -> Value {
    let mut metadata = metadata(input, &["p0", "p1", "p2"]);
    metadata["uid"] = json!(input.of(&["u0", "u1", "u2"]));
    metadata["labels"] = json!({"app": input.of(&["web", "v1"]), "weft.dev/fail-mode": input.of(&["open", "closed", "x"])});
    let ips: Vec<Value> = input.some(2, |input| json!({"ip": format!("10.0.0.{}", input.below(4))}));
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata,
           "spec": {"nodeName": "n1", "hostNetwork": input.is_rare(), "serviceAccountName": input.of(&ACCOUNTS),
                    "containers": [{"name": "c", "ports": [{"name": "main", "containerPort": 9000}]}]},
           "status": {"phase": input.of(&["Running", "Pending"]), "podIPs": ips,
                      "conditions": [{"type": "Ready", "status": input.of(&["True", "False"])}]}})
}

fn service(input: &mut Input<'_>) -> Value {
    let ports: Vec<Value> = input.some(2, |input| {
        json!({"port": 80 + input.below(3), "name": input.of(&["http", "tcp", "x"]), "targetPort": input.of(&["main", "gone"])})
    });
    json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata(input, &["web", "v1", "v2"]),
           "spec": {"clusterIP": input.of(&["10.96.0.1", "10.96.0.2", "None"]), "ports": ports,
                    "selector": {"app": input.of(&["web", "v1", "none"])}}})
}

fn slice(input: &mut Input<'_>) -> Value {
    let mut metadata = metadata(input, &["s0", "s1"]);
    metadata["labels"] = json!({"kubernetes.io/service-name": input.of(&["web", "v1"])});
    let endpoints: Vec<Value> = input.some(3, |input| {
        json!({"addresses": [format!("10.0.0.{}", input.below(4))], "conditions": {"ready": input.below(3) > 0},
               "targetRef": {"kind": "Pod", "name": input.of(&["p0", "p1"]), "uid": input.of(&["u0", "u1"])}})
    });
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "metadata": metadata,
           "ports": [{"name": "http", "port": 7070}], "endpoints": endpoints})
}

fn split(input: &mut Input<'_>) -> Value {
    let backends: Vec<Value> =
        input.some(3, |input| json!({"service": input.of(&["web", "v1", "gone"]), "weight": input.below(4)}));
    let matches: Vec<Value> = input.some(2, |input| json!({"kind": "HTTPRouteGroup", "name": input.of(&GROUPS)}));
    json!({"apiVersion": format!("split.smi-spec.io/{}", input.of(&ALPHAS)), "kind": "TrafficSplit",
           "metadata": metadata(input, &["t0", "t1"]),
           "spec": {"service": input.of(&["web", "v1", "gone"]), "backends": backends, "matches": matches}})
}

fn matches(input: &mut Input<'_>) -> Value {
    let matches: Vec<Value> = input.some(3, |input| {
        let mut one = json!({"name": input.of(&["m0", "m1", "m.2"])});
        if input.below(2) == 1 {
            one["pathRegex"] = json!(input.of(&["/a", "/b.*", "(", "", "/x{9999}"]));
        }
        if input.below(2) == 1 {
            one["methods"] = json!([input.of(&["GET", "*", "get"])]);
        }
        match input.below(5) {
            3 => one["headers"] = json!({"x-user": input.of(&["^a$", "["])}),
            4 => one["headers"] = json!([{"x-user": "a"}, {"cookie": "b"}]),
            _ => {}
        }
        one
    });
    json!(matches)
}

fn group(input: &mut Input<'_>) -> Value {
    let mut group = json!({"apiVersion": format!("specs.smi-spec.io/{}", input.of(&ALPHAS)), "kind": "HTTPRouteGroup",
                           "metadata": metadata(input, &GROUPS[..2])});
    let matches = matches(input);
    match input.below(3) {
        0 => group["matches"] = matches,
        _ => group["spec"] = json!({"matches": matches}),
    }
    group
}

fn port_route(input: &mut Input<'_>) -> Value {
    let ports = match input.below(4) {
        0 => json!([]),
        1 => json!([8080, 9000]),
        2 => json!(["8080", 70000]),
        _ => json!([9000]),
    };
    json!({"apiVersion": format!("specs.smi-spec.io/{}", input.of(&ALPHAS)), "kind": input.of(&["TCPRoute", "UDPRoute"]),
           "metadata": metadata(input, &["r0", "r1"]), "spec": {"matches": {"name": "m", "ports": ports}}})
}

fn subject(input: &mut Input<'_>) -> Value {
    let kind = input.of(&["ServiceAccount", "ServiceAccount", "IdentityBinding", "Group"]);
    let mut subject = json!({"kind": kind, "name": if kind == "IdentityBinding" { "b0" } else { input.of(&ACCOUNTS) }});
    if input.below(2) == 1 {
        subject["namespace"] = json!(input.of(&NAMESPACES));
    }
    if input.is_rare() {
        subject["port"] = input.of(&[0usize, 1, 2]).checked_sub(1).map_or(json!("8080"), |port| json!(port * 8080));
    }
    subject
}

fn target(input: &mut Input<'_>) -> Value {
    let mut target = json!({"apiVersion": format!("access.smi-spec.io/{}", input.of(&ALPHAS)), "kind": "TrafficTarget",
                            "metadata": metadata(input, &["a0", "a1", "a2"])});
    let sources: Vec<Value> = input.some(2, subject);
    let rules: Vec<Value> = input.some(2, |input| {
        let kind = input.of(&["HTTPRouteGroup", "TCPRoute", "UDPRoute", "Gone"]);
        let name = if kind == "HTTPRouteGroup" { input.of(&GROUPS) } else { input.of(&["r0", "r1", "gone"]) };
        let mut rule = json!({"kind": kind, "name": name});
        if input.below(2) == 1 {
            rule["matches"] = json!([input.of(&["m0", "m1", "gone"])]);
        }
        rule
    });
    let destination = subject(input);
    match input.below(4) {
        // As the first versions have it.
        0 => {
            target["destination"] = destination;
            target["sources"] = json!(sources);
            target["specs"] = json!(rules);
        }
        _ => target["spec"] = json!({"destination": destination, "sources": sources, "rules": rules}),
    }
    target
}

fn binding(input: &mut Input<'_>) -> Value {
    let schemes = match input.below(3) {
        0 => json!({"podLabelSelector": {"matchLabels": {"app": input.of(&["web", "v1"])}}}),
        1 => json!({"serviceAccount": input.of(&ACCOUNTS)}),
        _ => json!({"spiffeIdentities": ["cluster.local/ns/shop/sa/web"]}),
    };
    json!({"apiVersion": "access.smi-spec.io/v1alpha4", "kind": "IdentityBinding", "metadata": metadata(input, &["b0"]),
           "spec": {"schemes": schemes}})
}

/// An object, unless it is refused.
fn object(input: &mut Input<'_>) -> Option<Object> {
    let document = match input.below(13) {
        0 => namespace(input),
        1 | 2 => pod(input),
        3 => service(input),
        4 => slice(input),
        5 => split(input),
        6 | 7 => group(input),
        8 => port_route(input),
        9 => binding(input),
        _ => target(input),
    };
    parse(&document).objects.into_iter().next().map(|(object, _)| object)
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let (mut store, mut compiler) = (ObjectStore::default(), Compiler::default());
    for _ in 0..EVENTS_MAX {
        if input.0.is_empty() {
            break;
        }
        let delete = input.below(4) == 3;
        let Some(object) = object(&mut input) else { continue };
        let event = if delete { ObjectEvent::Delete(object.key()) } else { ObjectEvent::Apply(object) };
        let dirty = store.apply([event]);
        compiler.apply(lower(&store, &dirty));
    }
    assert_eq!(compiler.ir(), &lower_all(&store), "step by step leads elsewhere than all at once");
    let mut fresh = Compiler::default();
    fresh.apply(lower(&store, &store.all()));
    assert_eq!(compiler.diagnostics(), fresh.diagnostics());
    assert_eq!(compiler.snapshot().describe(), fresh.snapshot().describe());
});
