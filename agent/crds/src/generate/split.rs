//! split.smi-spec.io.

use serde_json::Value;

use super::{
    Column, Definition,
    schema::{array, number_or_text, object, optional, required, text, word},
};

pub(super) const TRAFFIC_SPLIT: Definition = Definition {
    kind: "TrafficSplit",
    group: "split.smi-spec.io",
    plural: "trafficsplits",
    singular: "trafficsplit",
    short_names: &["ts"],
    versions: &["v1alpha1", "v1alpha2", "v1alpha3", "v1alpha4"],
    storage: "v1alpha4",
    cluster_scoped: false,
    categories: &["smi"],
    columns: &[Column { name: "Service", path: ".spec.service" }],
    schema: traffic_split,
};

fn traffic_split() -> Value {
    let backend = object(
        "A Service that takes a share.",
        vec![
            required("service", text("Name of a Service of the same namespace.")),
            required(
                "weight",
                number_or_text(
                    "Share relative to the other backends: a whole number, or a quantity such as 500m, of which 1 is 1000m.",
                ),
            ),
        ],
    );
    let group = object(
        "A group of conditions on requests.",
        vec![
            required("kind", word("What is referred to.", &["HTTPRouteGroup"])),
            required("name", text("Name of an HTTPRouteGroup of the same namespace.")),
            optional("apiGroup", text("specs.smi-spec.io")),
        ],
    );
    let spec = object(
        "How the traffic of a Service is shared out.",
        vec![
            required("service", text("The Service that clients ask for.")),
            required("backends", array("The Services that take shares.", backend)),
            optional("matches", array("Only requests that meet any of these groups; all requests if absent.", group)),
        ],
    );
    object("Shares out the traffic of a Service between Services.", vec![required("spec", spec)])
}
