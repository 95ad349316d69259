//! specs.smi-spec.io.

use serde_json::Value;

use super::{
    Column, Definition,
    schema::{any_shape, array, number_or_text, object, optional, required, text, word},
};
use crate::smi::http_route_group::METHODS;

pub(super) const HTTP_ROUTE_GROUP: Definition = Definition {
    kind: "HTTPRouteGroup",
    group: "specs.smi-spec.io",
    plural: "httproutegroups",
    singular: "httproutegroup",
    short_names: &["htr"],
    versions: &["v1alpha1", "v1alpha2", "v1alpha3", "v1alpha4"],
    storage: "v1alpha4",
    cluster_scoped: false,
    categories: &["smi"],
    columns: &[],
    schema: http_route_group,
};

pub(super) const TCP_ROUTE: Definition = Definition {
    kind: "TCPRoute",
    group: "specs.smi-spec.io",
    plural: "tcproutes",
    singular: "tcproute",
    short_names: &["tr"],
    versions: &["v1alpha1", "v1alpha2", "v1alpha3", "v1alpha4"],
    storage: "v1alpha4",
    cluster_scoped: false,
    categories: &["smi"],
    columns: &[Column { name: "Ports", path: ".spec.matches.ports" }],
    schema: tcp_route,
};

pub(super) const UDP_ROUTE: Definition = Definition {
    kind: "UDPRoute",
    group: "specs.smi-spec.io",
    plural: "udproutes",
    singular: "udproute",
    short_names: &["ur"],
    versions: &["v1alpha4"],
    storage: "v1alpha4",
    cluster_scoped: false,
    categories: &["smi"],
    columns: &[Column { name: "Ports", path: ".spec.matches.ports" }],
    schema: udp_route,
};

fn http_route_group() -> Value {
    let one = || {
        object(
            "A condition: all that is given must hold.",
            vec![
                required("name", text("Name inside the group; TrafficTargets refer to it.")),
                optional("pathRegex", text("Regular expression, anchored at the start of the path.")),
                optional("methods", array("Methods; any if absent.", word("A method, or * for any.", &METHODS))),
                optional(
                    "headers",
                    any_shape(
                        "Header names with regular expressions that are searched for in their values: a map, or an array of maps with one entry each.",
                    ),
                ),
            ],
        )
    };
    let matches = || array("Conditions, of which any is enough.", one());
    object(
        "Conditions on HTTP requests, by name.",
        vec![
            optional("matches", matches()),
            optional("spec", object("As published since v1alpha3.", vec![optional("matches", matches())])),
        ],
    )
}

fn tcp_route() -> Value {
    route("TCP connections, by the port of the destination.")
}

fn udp_route() -> Value {
    route("UDP traffic, by the port of the destination.")
}

fn route(description: &str) -> Value {
    let matches = || {
        let ports = array("Ports of the destination; any if empty.", number_or_text("A port, 1 to 65535."));
        object(
            "Which traffic; all of it if absent.",
            vec![optional("name", text("A name of the condition; has no effect.")), optional("ports", ports)],
        )
    };
    let spec = object("Which traffic; all of it if empty.", vec![optional("matches", matches())]);
    object(description, vec![optional("spec", spec), optional("matches", matches())])
}
