//! weft.dev.

use serde_json::{Value, json};

use super::{
    Column, Definition,
    schema::{array, object, optional, required, text, word},
};
use crate::{
    limits,
    weft::{backend_policy::BALANCES, duration},
};

pub(super) const NODE_WORKLOADS: Definition = Definition {
    kind: "NodeWorkloads",
    group: "weft.dev",
    plural: "nodeworkloads",
    singular: "nodeworkload",
    short_names: &["nwl"],
    versions: &["v1alpha1"],
    storage: "v1alpha1",
    cluster_scoped: true,
    categories: &["weft"],
    columns: &[Column { name: "Node", path: ".spec.node" }, Column { name: "Pods", path: ".spec.pods[*].name" }],
    schema: node_workloads,
};

fn node_workloads() -> Value {
    let mut ips = array("Its addresses.", text("An IP address."));
    ips["minItems"] = 1.into();
    ips["maxItems"] = limits::POD_IPS_MAX.into();
    let mut uid = text("Its UID.");
    uid["minLength"] = 1.into();
    uid["maxLength"] = limits::UID_BYTES_MAX.into();
    let pod = object(
        "A pod that takes mutual TLS.",
        vec![
            required("uid", uid),
            required("namespace", text("Its namespace.")),
            required("name", text("Its name.")),
            required("serviceAccount", text("Its service account: what its certificate must name.")),
            required("ips", ips),
        ],
    );
    let mut pods = array("Pods of the node, each in one object only.", pod);
    pods["maxItems"] = limits::NODE_SHARD_PODS_MAX.into();
    let spec =
        object("What the agent of the node says.", vec![required("node", text("The node.")), optional("pods", pods)]);
    object(
        "Pods of one node that take mutual TLS. Written by the agent of that node, read by all others; not for people to write.",
        vec![required("spec", spec)],
    )
}

pub(super) const BACKEND_POLICY: Definition = Definition {
    kind: "BackendPolicy",
    group: "weft.dev",
    plural: "backendpolicies",
    singular: "backendpolicy",
    short_names: &["bpol"],
    versions: &["v1alpha1"],
    storage: "v1alpha1",
    cluster_scoped: false,
    categories: &["weft"],
    columns: &[
        Column { name: "Targets", path: ".spec.targetRefs[*].name" },
        Column { name: "Balancing", path: ".spec.loadBalancing.type" },
    ],
    schema: backend_policy,
};

fn backend_policy() -> Value {
    let mut targets = targets("The Services, or single ports of theirs, whose endpoints it is for.", true);
    targets["minItems"] = 1.into();
    let spec = object(
        "What holds for the endpoints of the targets, wherever requests to them were routed from.",
        vec![required("targetRefs", targets), optional("loadBalancing", load_balancing())],
    );
    object("How the endpoints of Services are used.", vec![required("spec", spec)])
}

fn load_balancing() -> Value {
    let mut key = object(
        "One thing that requests are known by.",
        vec![
            optional("header", name("A field of the request, all its values.")),
            optional("cookie", name("A cookie.")),
            optional("query", name("A parameter of the query, its first value.")),
            optional(
                "sourceAddress",
                json!({"type": "boolean", "enum": [true], "description": "The client's address."}),
            ),
        ],
    );
    rule(
        &mut key,
        "[has(self.header), has(self.cookie), has(self.query), has(self.sourceAddress)].filter(given, given).size() == 1",
        "exactly one of header, cookie, query and sourceAddress must be given",
    );
    let mut keys = array(
        "What RingHash and Maglev go by: the first of these that a request has. The client's address if there are none.",
        key,
    );
    keys["maxItems"] = limits::HASH_KEYS_MAX.into();
    let mut kind = word("How an endpoint is chosen.", &BALANCES);
    kind["default"] = BALANCES[0].into();
    let mut balancing = object(
        "How an endpoint is chosen.",
        vec![
            optional("type", kind),
            optional("hashOn", keys),
            optional("slowStart", time("How long an endpoint that comes takes until it gets as much as the others.")),
        ],
    );
    rule(&mut balancing, "!has(self.hashOn) || self.type in ['RingHash', 'Maglev']", "hashOn needs RingHash or Maglev");
    rule(
        &mut balancing,
        "!has(self.slowStart) || !(self.type in ['RingHash', 'Maglev'])",
        "slowStart has no effect with RingHash and Maglev",
    );
    balancing
}

pub(super) const FAULT_INJECTION: Definition = Definition {
    kind: "FaultInjection",
    group: "weft.dev",
    plural: "faultinjections",
    singular: "faultinjection",
    short_names: &["fault"],
    versions: &["v1alpha1"],
    storage: "v1alpha1",
    cluster_scoped: false,
    categories: &["weft"],
    columns: &[Column { name: "Targets", path: ".spec.targetRefs[*].name" }],
    schema: fault_injection,
};

fn fault_injection() -> Value {
    let source = object(
        "A service account.",
        vec![
            optional("namespace", name("Its namespace; the object's own if it is not given.")),
            required("serviceAccount", name("Its name.")),
        ],
    );
    let mut sources = array("Only requests of these service accounts; all requests if there are none.", source);
    sources["maxItems"] = limits::FAULT_SOURCES_MAX.into();
    let delay = object(
        "A pause before anything else.",
        vec![
            required("fixed", time("At least so long.")),
            optional("jitter", time("And at most so much longer, each time another.")),
            optional("percent", percent()),
        ],
    );
    let mut abort = object(
        "An end instead of an answer.",
        vec![
            optional("httpStatus", number("A response with this status.", 200, 599)),
            optional("grpcStatus", number("A gRPC response with this status.", 1, 16)),
            optional(
                "reset",
                json!({"type": "boolean", "enum": [true], "description": "The connection or stream is reset."}),
            ),
            optional("percent", percent()),
        ],
    );
    rule(
        &mut abort,
        "[has(self.httpStatus), has(self.grpcStatus), has(self.reset)].filter(given, given).size() == 1",
        "exactly one of httpStatus, grpcStatus and reset must be given",
    );
    let mut spec = object(
        "What goes wrong on purpose.",
        vec![
            optional(
                "targetRefs",
                targets("Services, all of whose requests it is for. None where only rules of routes name it.", false),
            ),
            optional("sources", sources),
            optional("delay", delay),
            optional("abort", abort),
        ],
    );
    rule(&mut spec, "has(self.delay) || has(self.abort)", "a delay or an abort must be given");
    object("Faults for some requests, to see what becomes of them.", vec![required("spec", spec)])
}

/// `targetRefs`.
fn targets(description: &str, with_ports: bool) -> Value {
    let mut kind = word("What is referred to.", &["Service"]);
    kind["default"] = "Service".into();
    let mut properties = vec![
        optional("group", word("API group of Services.", &["", "core"])),
        required("kind", kind),
        required("name", name("Name of a Service of the same namespace.")),
    ];
    if with_ports {
        properties.push(optional(
            "port",
            number("Only this port of the Service; all that are not named elsewhere if it is not given.", 1, 65535),
        ));
    }
    let mut targets = array(description, object("A Service.", properties));
    targets["maxItems"] = limits::TARGETS_MAX.into();
    targets
}

fn name(description: &str) -> Value {
    json!({"type": "string", "description": description, "minLength": 1, "maxLength": limits::NAME_BYTES_MAX})
}

fn number(description: &str, least: i64, most: i64) -> Value {
    json!({"type": "integer", "format": "int32", "description": description, "minimum": least, "maximum": most})
}

fn percent() -> Value {
    let mut percent = number("Of how many requests, in percent.", 0, 100);
    percent["default"] = 100.into();
    percent
}

fn time(description: &str) -> Value {
    json!({"type": "string", "description": description, "pattern": duration::PATTERN})
}

/// Adds a rule in the Common Expression Language.
fn rule(schema: &mut Value, rule: &str, message: &str) {
    let rule = json!({"rule": rule, "message": message});
    match schema.get_mut("x-kubernetes-validations").and_then(Value::as_array_mut) {
        Some(rules) => rules.push(rule),
        None => schema["x-kubernetes-validations"] = json!([rule]),
    }
}
