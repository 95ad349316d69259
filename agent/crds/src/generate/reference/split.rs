//! split.smi-spec.io.

use serde_json::{Value, json};

use super::{Field, KindReference, beside};
use crate::generate::split::TRAFFIC_SPLIT;

pub(super) fn traffic_split() -> KindReference {
    const ALL: &str = "v1alpha1 to v1alpha4";
    const NEW: &str = "v1alpha3, v1alpha4";
    let service = |name: &str| beside("v1", "Service", name, &json!({"ports": [{"port": 80}]}));
    let group = |name: &str, method: &str| {
        let spec = json!({"matches": [{"name": "some", "methods": [method]}]});
        beside("specs.smi-spec.io/v1alpha4", "HTTPRouteGroup", name, &spec)
    };
    let world = vec![
        service("web"),
        service("other"),
        service("web-v1"),
        service("web-v2"),
        group("readers", "GET"),
        group("writers", "POST"),
    ];
    let share = |name: &str, weight: Value| json!({"service": name, "weight": weight});
    let body = json!({"service": "web", "backends": [share("web-v1", json!(1)), share("web-v2", json!(1))]});
    let mut matched = body.clone();
    matched["matches"] = json!([{"kind": "HTTPRouteGroup", "name": "readers"}]);
    let fields = vec![
        Field::new("service", ALL, &body, json!("web"))
            .against(json!("other"))
            .also(json!("web.shop.svc.cluster.local"))
            .refuse(json!("elsewhere/web"))
            .refuse(json!("web.example.com"))
            .refuse(json!("web_1"))
            .refuse(json!("gone")),
        Field::new("backends", ALL, &body, json!([share("web-v1", json!(1))]))
            .against(json!([share("web-v2", json!(1))]))
            .refuse(json!([]))
            .refuse(json!([share("web-v1", json!(0)), share("web-v2", json!(0))])),
        Field::new("backends[].service", ALL, &body, json!("web-v1"))
            .against(json!("other"))
            .refuse(json!("web-v1.elsewhere"))
            .refuse(json!("gone")),
        Field::new("backends[].weight", ALL, &body, json!(3))
            .against(json!(1))
            .also(json!("500m"))
            .refuse(json!(0.5))
            .refuse(json!("0.1m"))
            .refuse(json!(-1))
            .refuse(json!("half"))
            .refuse(json!(1e300)),
        Field::new("matches", NEW, &body, matched["matches"].clone()),
        Field::new("matches[].kind", NEW, &matched, json!("HTTPRouteGroup")).refuse(json!("TCPRoute")),
        Field::new("matches[].name", NEW, &matched, json!("readers"))
            .against(json!("writers"))
            .refuse(json!("gone"))
            .refuse(json!("a/b")),
        Field::new("matches[].apiGroup", NEW, &matched, json!("specs.smi-spec.io"))
            .refuse(json!("gateway.networking.k8s.io")),
    ];
    KindReference { definition: &TRAFFIC_SPLIT, world, fields }
}
