//! DestinationRule: subsets become Services of their own, and balancing an annotation of the Service.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{
    World,
    fields::{Object, Refusals},
    virtual_service,
};
use crate::lower::BALANCE_ANNOTATION;

/// A subset of a Service's pods.
#[derive(Clone, Debug)]
pub(crate) struct Subset {
    /// What is added to the Service's own selector.
    pub(crate) labels: BTreeMap<String, String>,
    /// Why it cannot be carried.
    pub(crate) refused: Option<&'static str>,
}

const REASONS: [(&str, &str); 3] = [
    ("exportTo", "SMI holds for every client"),
    ("workloadSelector", "SMI holds for every client"),
    ("subsets", "must be a list"),
];

const POLICY_REASONS: [(&str, &str); 6] = [
    ("connectionPool", "SMI has no limits; weft will have them in a later version"),
    ("outlierDetection", "SMI has no circuit breaking; weft will have it in a later version"),
    ("portLevelSettings", "SMI has no settings for a port"),
    ("tls", "weft has no TLS of its own in this version"),
    ("tunnel", "weft has no tunnels"),
    ("warmup", "weft has no slow start in this version"),
];

/// Gathers the subsets that VirtualServices may refer to.
pub(super) fn subsets(object: &Object<'_>, world: &mut World<'_>) {
    let mut ignored = Refusals::default();
    let Some(spec) = object.spec(&mut ignored) else { return };
    let Some(host) = spec.get("host").and_then(Value::as_str) else { return };
    let Ok(service) = virtual_service::own_service(host, &object.namespace) else { return };
    for (_, subset) in ignored.maps(spec, "subsets", "spec") {
        let Some(name) = subset.get("name").and_then(Value::as_str) else { continue };
        let labels = labels(subset);
        let refused = match &labels {
            None => Some("its labels are no map of strings"),
            Some(labels) if labels.is_empty() => Some("it has no labels, so it is the whole Service"),
            Some(_) if subset.contains_key("trafficPolicy") => Some("it has a trafficPolicy of its own"),
            Some(_) => None,
        };
        let key = (object.namespace.clone(), service.clone(), name.to_owned());
        world.subsets.insert(key, Subset { labels: labels.unwrap_or_default(), refused });
    }
}

fn labels(subset: &Map<String, Value>) -> Option<BTreeMap<String, String>> {
    match subset.get("labels") {
        None => Some(BTreeMap::new()),
        Some(Value::Object(labels)) => {
            labels.iter().map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
        }
        Some(_) => None,
    }
}

pub(super) fn convert(object: &Object<'_>, world: &World<'_>, refusals: &mut Refusals) -> Vec<Value> {
    let Some(spec) = object.spec(refusals) else {
        refusals.refuse("spec", "must be given");
        return Vec::new();
    };
    refusals.only(spec, "spec", &["host", "subsets", "trafficPolicy"], &REASONS);
    let service = match spec.get("host").and_then(Value::as_str) {
        Some(host) => virtual_service::own_service(host, &object.namespace),
        None => Err("must be given".to_owned()),
    };
    let service = match service {
        Ok(service) => service,
        Err(why) => {
            refusals.refuse("spec.host", why);
            return Vec::new();
        }
    };
    for (at, subset) in refusals.maps(spec, "subsets", "spec") {
        refusals.only(
            subset,
            &at,
            &["name", "labels"],
            &[("trafficPolicy", "SMI has no policy for a part of a Service")],
        );
        if labels(subset).is_none() {
            refusals.refuse(format!("{at}.labels"), "must be a map of strings");
        }
    }
    let Some(policy) = spec.get("trafficPolicy") else { return Vec::new() };
    let Value::Object(policy) = policy else {
        refusals.refuse("spec.trafficPolicy", "must be a map");
        return Vec::new();
    };
    refusals.only(policy, "spec.trafficPolicy", &["loadBalancer"], &POLICY_REASONS);
    let at = "spec.trafficPolicy.loadBalancer";
    let balancing = match policy.get("loadBalancer") {
        None => return Vec::new(),
        Some(Value::Object(balancer)) => {
            let hash = [("consistentHash", "weft does not choose endpoints by hash in this version")];
            refusals.only(balancer, at, &["simple"], &hash);
            match balancer.get("simple").and_then(Value::as_str) {
                None => return Vec::new(),
                Some("ROUND_ROBIN") => "round-robin",
                Some("LEAST_REQUEST" | "LEAST_CONN" | "UNSPECIFIED") => "least-request",
                Some(other) => {
                    refusals.refuse(
                        format!("{at}.simple"),
                        format!("weft has no {other}; it has LEAST_REQUEST and ROUND_ROBIN"),
                    );
                    return Vec::new();
                }
            }
        }
        Some(_) => {
            refusals.refuse(at, "must be a map");
            return Vec::new();
        }
    };
    let Some(document) = world.services.get(&(object.namespace.clone(), service.clone())) else {
        let why = format!(
            "is an annotation of the Service in weft: give Service {}/{service} among the files, or annotate it with {BALANCE_ANNOTATION}: {balancing}",
            object.namespace
        );
        refusals.refuse(format!("{at}.simple"), why);
        return Vec::new();
    };
    let mut annotated = (*document).clone();
    annotate(&mut annotated, balancing);
    vec![annotated]
}

/// Puts the annotation into a Service's manifest.
fn annotate(service: &mut Value, balancing: &str) {
    let Some(metadata) = service.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
    if !annotations.is_object() {
        *annotations = json!({});
    }
    annotations[BALANCE_ANNOTATION] = Value::String(balancing.to_owned());
}
