//! access.smi-spec.io.

use serde_json::{Value, json};

use super::{
    Column, Definition,
    schema::{array, number_or_text, object, optional, required, text, word},
};

/// v1alpha4 is a draft: it is served, but v1alpha3 is stored.
pub(super) const TRAFFIC_TARGET: Definition = Definition {
    kind: "TrafficTarget",
    group: "access.smi-spec.io",
    plural: "traffictargets",
    singular: "traffictarget",
    short_names: &["tt"],
    versions: &["v1alpha1", "v1alpha2", "v1alpha3", "v1alpha4"],
    storage: "v1alpha3",
    cluster_scoped: false,
    categories: &["smi"],
    columns: &[Column { name: "Destination", path: ".spec.destination.name" }],
    schema: traffic_target,
};

pub(super) const IDENTITY_BINDING: Definition = Definition {
    kind: "IdentityBinding",
    group: "access.smi-spec.io",
    plural: "identitybindings",
    singular: "identitybinding",
    short_names: &["ib"],
    versions: &["v1alpha4"],
    storage: "v1alpha4",
    cluster_scoped: false,
    categories: &["smi"],
    columns: &[],
    schema: identity_binding,
};

/// Every version's shape, under `spec` and beside it.
fn traffic_target() -> Value {
    let fields = || {
        vec![
            optional(
                "destination",
                subject("Whose pods are protected: once selected, they serve only what is granted to somebody."),
            ),
            optional("sources", array("Who is granted access.", subject("A client."))),
            optional("rules", array("What is granted. Sources may do what any rule says.", rule())),
            optional("specs", array("What rules is called in v1alpha1.", rule())),
        ]
    };
    let mut all = vec![optional("spec", object("As published since v1alpha2.", fields()))];
    all.extend(fields());
    object("Grants sources access to a destination.", all)
}

fn subject(description: &str) -> Value {
    object(
        description,
        vec![
            required("kind", word("What it is known by.", &["ServiceAccount", "IdentityBinding"])),
            required("name", text("Its name.")),
            optional("namespace", text("Its namespace; the TrafficTarget's own if absent.")),
            optional("group", text("API group of the kind (v1alpha4).")),
            optional("apiGroup", text("API group of the kind.")),
            optional("port", number_or_text("Only this port of the destination (v1alpha1, v1alpha2).")),
        ],
    )
}

fn rule() -> Value {
    object(
        "A route, or some of its matches.",
        vec![
            required("kind", word("Kind of the route.", &["HTTPRouteGroup", "TCPRoute", "UDPRoute"])),
            required("name", text("Name of the route, in the TrafficTarget's namespace.")),
            optional("apiGroup", text("specs.smi-spec.io")),
            optional(
                "matches",
                array("Names of matches of an HTTPRouteGroup; all of them if absent.", text("Name of a match.")),
            ),
        ],
    )
}

fn identity_binding() -> Value {
    let labels = json!({
        "type": "object",
        "description": "Labels that a pod must have.",
        "additionalProperties": {"type": "string"},
    });
    let selector = || {
        object(
            "Pods of the same namespace, by label.",
            vec![optional("name", text("A name; has no effect.")), optional("matchLabels", labels.clone())],
        )
    };
    let schemes = || {
        object(
            "Ways to know a workload; any is enough.",
            vec![
                optional("podLabelSelector", selector()),
                optional("podLabelSelectors", array("As the draft's text has it.", selector())),
                optional("serviceAccount", text("A service account of the same namespace.")),
                optional("spiffeIdentities", array("SPIFFE IDs.", text("A SPIFFE ID."))),
            ],
        )
    };
    object(
        "A name for workloads, for TrafficTargets to refer to.",
        vec![
            optional("spec", object("Who is meant.", vec![optional("schemes", schemes())])),
            optional("schemes", schemes()),
        ],
    )
}
