//! access.smi-spec.io.

use serde_json::{Value, json};

use super::{Field, KindReference, beside, pod};
use crate::generate::access::{IDENTITY_BINDING, TRAFFIC_TARGET};

const ALL: &str = "v1alpha1 to v1alpha4";

fn account(name: &str) -> Value {
    json!({"kind": "ServiceAccount", "name": name})
}

fn binding(name: &str) -> Value {
    json!({"kind": "IdentityBinding", "name": name})
}

fn rule(kind: &str, name: &str) -> Value {
    json!({"kind": kind, "name": name})
}

pub(super) fn traffic_target() -> KindReference {
    let access = "access.smi-spec.io/v1alpha4";
    let specs = "specs.smi-spec.io/v1alpha4";
    let matches = json!([{"name": "read", "methods": ["GET"]}, {"name": "write", "methods": ["POST"]}]);
    let world = vec![
        pod("web"),
        pod("api"),
        beside(
            access,
            "IdentityBinding",
            "web",
            &json!({"schemes": {"podLabelSelector": {"matchLabels": {"app": "api"}}}}),
        ),
        beside(access, "IdentityBinding", "client", &json!({"schemes": {"serviceAccount": "other-client"}})),
        beside(specs, "HTTPRouteGroup", "route", &json!({"matches": matches})),
        beside(specs, "TCPRoute", "route", &json!({"matches": {"ports": [80, 81]}})),
        beside(specs, "TCPRoute", "other", &json!({"matches": {"ports": [82]}})),
        beside(specs, "UDPRoute", "route", &json!({"matches": {"ports": [53]}})),
    ];
    let body = json!({
        "destination": account("web"), "sources": [account("client")], "rules": [rule("TCPRoute", "route")],
    });
    let mut fields = destination(&body);
    fields.extend(sources(&body));
    fields.extend(rules(
        &body,
        ["rules", "rules[].kind", "rules[].name", "rules[].apiGroup", "rules[].matches"],
        "v1alpha2 to v1alpha4",
    ));
    let mut old = body.clone();
    if let Some(map) = old.as_object_mut() {
        map.remove("rules");
    }
    let mut specs =
        rules(&old, ["specs", "specs[].kind", "specs[].name", "specs[].apiGroup", "specs[].matches"], "v1alpha1");
    specs[0].refused.push((body, json!([rule("TCPRoute", "route")])));
    fields.extend(specs);
    KindReference { definition: &TRAFFIC_TARGET, world, fields }
}

fn destination(body: &Value) -> Vec<Field> {
    let mut bound = body.clone();
    bound["destination"] = binding("web");
    let group = json!("access.smi-spec.io");
    vec![
        Field::new("destination", ALL, body, account("web")).against(account("api")),
        Field::new("destination.kind", ALL, body, json!("ServiceAccount"))
            .against(json!("IdentityBinding"))
            .refuse(json!("Group")),
        Field::new("destination.name", ALL, body, json!("web")).against(json!("api")).refuse(json!("shop/web")),
        Field::new("destination.namespace", ALL, body, json!("shop")).refuse(json!("elsewhere")),
        Field::new("destination.group", "v1alpha4", &bound, group.clone()).refuse(json!("apps")),
        Field::new("destination.apiGroup", "", &bound, group).refuse(json!("apps")),
        Field::new("destination.port", "v1alpha1, v1alpha2", body, json!(80))
            .also(json!("80"))
            .refuse(json!(0))
            .refuse(json!("http"))
            .refuse(json!(8080)),
    ]
}

fn sources(body: &Value) -> Vec<Field> {
    let mut bound = body.clone();
    bound["sources"] = json!([binding("client")]);
    let group = json!("access.smi-spec.io");
    vec![
        Field::new("sources", ALL, body, json!([account("client")]))
            .against(json!([account("other")]))
            .refuse(json!([])),
        Field::new("sources[].kind", ALL, body, json!("ServiceAccount"))
            .against(json!("IdentityBinding"))
            .refuse(json!("User")),
        Field::new("sources[].name", ALL, body, json!("client")).against(json!("other")).refuse(json!("Client_1")),
        Field::new("sources[].namespace", ALL, body, json!("elsewhere")).refuse(json!("a.b")),
        Field::new("sources[].group", "v1alpha4", &bound, group.clone()).refuse(json!("apps")),
        Field::new("sources[].apiGroup", "", &bound, group).refuse(json!("apps")),
        Field::new("sources[].port", "", body, json!(80)),
    ]
}

/// The list of rules under either of its names.
fn rules(
    base: &Value,
    [list, kind, name, api_group, matches]: [&'static str; 5],
    published: &'static str,
) -> Vec<Field> {
    let body = |rule: Value| {
        let mut body = base.clone();
        body[list] = json!([rule]);
        body
    };
    let (tcp, http) = (body(rule("TCPRoute", "route")), body(rule("HTTPRouteGroup", "route")));
    vec![
        Field::new(list, published, &tcp, json!([rule("TCPRoute", "route")]))
            .against(json!([rule("UDPRoute", "route")]))
            .refuse(json!([])),
        Field::new(kind, published, &tcp, json!("TCPRoute"))
            .against(json!("HTTPRouteGroup"))
            .also(json!("UDPRoute"))
            .refuse(json!("GRPCRoute")),
        Field::new(name, published, &tcp, json!("route"))
            .against(json!("other"))
            .refuse(json!("gone"))
            .refuse(json!("a/b")),
        Field::new(api_group, "", &tcp, json!("specs.smi-spec.io")).refuse(json!("gateway.networking.k8s.io")),
        Field::new(matches, published, &http, json!(["read"])).refuse(json!(["gone"])).refuse_in(&tcp, json!(["read"])),
    ]
}

pub(super) fn identity_binding() -> KindReference {
    let target = |destination: Value, source: Value| json!({"destination": destination, "sources": [source], "rules": [rule("TCPRoute", "route")]});
    let access = "access.smi-spec.io/v1alpha4";
    let world = vec![
        pod("web"),
        pod("api"),
        beside("specs.smi-spec.io/v1alpha4", "TCPRoute", "route", &json!({})),
        beside(access, "TrafficTarget", "to", &target(binding("example"), account("client"))),
        beside(access, "TrafficTarget", "from", &target(account("api"), binding("example"))),
    ];
    let draft = "v1alpha4";
    let body = json!({"schemes": {"serviceAccount": "web"}});
    let labels = |app: &str| json!({"matchLabels": {"app": app}});
    let one = json!({"schemes": {"podLabelSelector": labels("web")}});
    let list = json!({"schemes": {"podLabelSelectors": [labels("web")]}});
    let spiffe = |account: &str| json!([format!("spiffe://cluster.local/ns/shop/sa/{account}")]);
    let proven = json!({"schemes": {"spiffeIdentities": spiffe("web")}});
    let fields = vec![
        Field::new("schemes", draft, &body, json!({"serviceAccount": "web"}))
            .against(json!({"serviceAccount": "api"}))
            .refuse(json!({}))
            .refuse(json!({"serviceAccount": "web", "podLabelSelector": labels("web")})),
        Field::new("schemes.serviceAccount", draft, &body, json!("web"))
            .against(json!("api"))
            .refuse(json!("shop/web")),
        Field::new("schemes.podLabelSelector", draft, &one, labels("web")).against(labels("api")),
        Field::new("schemes.podLabelSelector.name", "", &one, json!("pods")),
        Field::new("schemes.podLabelSelector.matchLabels", draft, &one, json!({"app": "web"}))
            .against(json!({"app": "api"}))
            .refuse(json!({})),
        Field::new("schemes.podLabelSelectors", draft, &list, json!([labels("web")])).against(json!([labels("api")])),
        Field::new("schemes.podLabelSelectors[].name", draft, &list, json!("pods")),
        Field::new("schemes.podLabelSelectors[].matchLabels", draft, &list, json!({"app": "web"}))
            .against(json!({"app": "api"}))
            .refuse(json!({})),
        Field::new("schemes.spiffeIdentities", draft, &proven, spiffe("web")).against(spiffe("api")),
    ];
    KindReference { definition: &IDENTITY_BINDING, world, fields }
}
