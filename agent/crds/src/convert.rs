//! From Istio's kinds to SMI's: VirtualService and DestinationRule to TrafficSplit and HTTPRouteGroup, AuthorizationPolicy to
//! TrafficTarget, PeerAuthentication to a label of its namespace.
//!
//! An object is carried whole or not at all: what SMI has no words for is refused by name, and nothing comes of its object, unless
//! the caller asks for what is left. What would let more through than the original is never carried.
//! Sources: the API reference of Istio 1.24 (networking.istio.io, security.istio.io).

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

mod access;
mod destination_rule;
mod fields;
mod matches;
mod peer_authentication;
mod virtual_service;

pub(crate) use fields::{Object, Refusals};

/// What came of some documents.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversion {
    /// What to apply, each with the object that it came from.
    pub objects: Vec<Converted>,
    /// What cannot be carried.
    pub refused: Vec<Refused>,
    /// What is carried, but not quite as it was.
    pub notes: Vec<Refused>,
    /// Objects that are none of Istio's: read where an Istio object refers to them, and not converted.
    pub ignored: usize,
}

/// An object to apply.
#[derive(Clone, Debug, PartialEq)]
pub struct Converted {
    /// `VirtualService shop/web`.
    pub from: String,
    /// The manifest.
    pub manifest: Value,
}

/// A field that cannot be carried, or not quite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Index of the document.
    pub document: usize,
    /// `VirtualService shop/web`.
    pub object: String,
    /// Path of the field; empty for the object as a whole.
    pub field: String,
    /// Why, and what to do instead.
    pub why: String,
}

/// What an Istio object may refer to.
#[derive(Default)]
pub(crate) struct World<'a> {
    /// Services by namespace and name.
    pub(crate) services: BTreeMap<(String, String), &'a Value>,
    /// Subsets by namespace, Service and name: labels, or why they cannot be carried.
    pub(crate) subsets: BTreeMap<(String, String, String), destination_rule::Subset>,
    /// AuthorizationPolicies that forbid something, which cannot be carried: what others grant may be what these forbid.
    pub(crate) denying: Vec<(String, String)>,
}

/// Why kinds of Istio's as a whole cannot be carried.
const KINDS_REFUSED: [(&str, &str); 8] = [
    ("Gateway", "SMI has nothing for traffic from outside; weft will take Gateway API's Gateway in a later version"),
    ("ServiceEntry", "SMI has nothing for hosts outside of the cluster; weft leaves such traffic alone"),
    ("RequestAuthentication", "weft does not check tokens"),
    ("Sidecar", "weft has no sidecars: there is nothing to configure"),
    ("EnvoyFilter", "weft has no Envoy"),
    ("WorkloadEntry", "weft carries pods only"),
    ("WorkloadGroup", "weft carries pods only"),
    ("Telemetry", "weft has metrics of its own, without an object"),
];

/// Converts documents together: a VirtualService needs the DestinationRule and the Services that it refers to. With `partial`, what
/// can be carried of routing is given even where a part is refused; access is never carried in part.
#[must_use]
pub fn convert(documents: &[Value], partial: bool) -> Conversion {
    let mut conversion = Conversion::default();
    let mut world = World::default();
    for document in documents {
        let object = Object::new(document);
        if object.group.is_empty() && object.kind == "Service" {
            world.services.insert((object.namespace.clone(), object.name.clone()), document);
        }
    }
    for document in documents {
        let object = Object::new(document);
        if object.is_istio("networking") && object.kind == "DestinationRule" {
            destination_rule::subsets(&object, &mut world);
        }
        if object.kind == "AuthorizationPolicy" && access::forbids(document) {
            world.denying.push((object.namespace.clone(), object.name.clone()));
        }
    }
    for (index, document) in documents.iter().enumerate() {
        let object = Object::new(document);
        if !object.group.ends_with("istio.io") {
            conversion.ignored += 1;
            continue;
        }
        let mut refusals = Refusals::default();
        let manifests = match object.kind.as_str() {
            "VirtualService" if object.is_istio("networking") => {
                virtual_service::convert(&object, &world, &mut refusals)
            }
            "DestinationRule" if object.is_istio("networking") => {
                destination_rule::convert(&object, &world, &mut refusals)
            }
            "AuthorizationPolicy" if object.is_istio("security") => access::convert(&object, &world, &mut refusals),
            "PeerAuthentication" if object.is_istio("security") => peer_authentication::convert(&object, &mut refusals),
            kind => {
                let why = KINDS_REFUSED.iter().find(|(refused, _)| *refused == kind).map(|(_, why)| *why);
                refusals.refuse("kind", why.unwrap_or("unknown: it is not carried").to_owned());
                Vec::new()
            }
        };
        let whole = refusals.refused.is_empty();
        let is_access = matches!(object.kind.as_str(), "AuthorizationPolicy" | "PeerAuthentication");
        if whole || (partial && !is_access) {
            let from = object.to_string();
            conversion.objects.extend(manifests.into_iter().map(|manifest| Converted { from: from.clone(), manifest }));
            conversion.notes.extend(refusals.notes.into_iter().map(|(field, why)| object.refused(index, field, why)));
        }
        conversion.refused.extend(refusals.refused.into_iter().map(|(field, why)| object.refused(index, field, why)));
    }
    merge(&mut conversion);
    conversion
}

/// The same object may come of two: a Service that two subsets need, a Namespace. One of them is enough, and must be the same; a
/// Namespace has the labels of both, because whoever applies one after the other would take those of the first away.
fn merge(conversion: &mut Conversion) {
    let mut seen: Vec<Converted> = Vec::new();
    for mut one in std::mem::take(&mut conversion.objects) {
        let is_same_namespace = |other: &Converted| {
            one.manifest["kind"] == "Namespace"
                && other.manifest["kind"] == "Namespace"
                && other.manifest["metadata"]["name"] == one.manifest["metadata"]["name"]
        };
        if let Some(other) = seen.iter().position(is_same_namespace) {
            let labels = one.manifest["metadata"]["labels"].as_object_mut().map(std::mem::take).unwrap_or_default();
            for (label, value) in labels {
                let into = &mut seen[other].manifest["metadata"]["labels"][&label];
                // Of two that differ the one that lets less through.
                if *into != "strict" {
                    *into = value;
                }
            }
            continue;
        }
        if !seen.iter().any(|other| other.manifest == one.manifest) {
            seen.push(one);
        }
    }
    conversion.objects = seen;
}

/// A manifest.
pub(crate) fn manifest(api_version: &str, kind: &str, namespace: &str, name: &str, spec: Map<String, Value>) -> Value {
    json!({
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {"namespace": namespace, "name": name},
        "spec": Value::Object(spec),
    })
}

#[cfg(test)]
mod tests;
