//! specs.smi-spec.io.

use serde_json::{Value, json};

use super::{Field, KindReference, beside, pod};
use crate::generate::{
    Definition,
    specs::{HTTP_ROUTE_GROUP, TCP_ROUTE, UDP_ROUTE},
};

/// A pod, and a TrafficTarget that grants it what the example says.
fn world(rule: &Value) -> Vec<Value> {
    let account = |name: &str| json!({"kind": "ServiceAccount", "name": name});
    let spec = json!({"destination": account("web"), "sources": [account("client")], "rules": [rule]});
    vec![pod("web"), beside("access.smi-spec.io/v1alpha3", "TrafficTarget", "target", &spec)]
}

pub(super) fn http_route_group() -> KindReference {
    const ALL: &str = "v1alpha1 to v1alpha4";
    let one = json!({"name": "read"});
    let body = json!({"matches": [one]});
    let fields = vec![
        Field::new("matches", ALL, &body, json!([one]))
            .against(json!([{"name": "read", "methods": ["GET"]}]))
            .refuse(json!([]))
            .refuse(json!([one, one])),
        Field::new("matches[].name", ALL, &body, json!("read")).against(json!("write")).refuse(json!("")),
        Field::new("matches[].pathRegex", ALL, &body, json!("/api/.*"))
            .refuse(json!("("))
            .refuse(json!(r"\p{Greek}"))
            .refuse(json!("((a{1,100}){1,100}){1,100}"))
            .refuse(json!("a".repeat(1025))),
        Field::new("matches[].methods", ALL, &body, json!(["GET"])).refuse(json!(["get"])),
        Field::new("matches[].headers", "v1alpha2 to v1alpha4", &body, json!({"role": "^admin$"}))
            .also(json!([{"role": "^admin$"}]))
            .refuse(json!([{"role": "a", "user": "b"}]))
            .refuse(json!({"a role": "x"}))
            .refuse(json!({"role": "["})),
    ];
    let world = world(&json!({"kind": "HTTPRouteGroup", "name": "example", "matches": ["read"]}));
    KindReference { definition: &HTTP_ROUTE_GROUP, world, fields }
}

pub(super) fn tcp_route() -> KindReference {
    route(&TCP_ROUTE)
}

pub(super) fn udp_route() -> KindReference {
    route(&UDP_ROUTE)
}

fn route(definition: &'static Definition) -> KindReference {
    let body = json!({"matches": {"ports": [80]}});
    let fields = vec![
        Field::new("matches", "v1alpha4", &body, json!({"ports": [80]})),
        Field::new("matches.name", "", &body, json!("web")),
        Field::new("matches.ports", "v1alpha4", &body, json!([80]))
            .also(json!(["80"]))
            .also(json!([]))
            .refuse(json!([0]))
            .refuse(json!(["http"]))
            .refuse(json!([80, 70000])),
    ];
    KindReference { definition, world: world(&json!({"kind": definition.kind, "name": "example"})), fields }
}
