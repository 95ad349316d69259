//! ReferenceGrant, gateway.networking.k8s.io v1beta1 and v1: who may name objects of its namespace.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;

use super::route::{RouteKind, Target};
use crate::{
    decode::{self, FieldError, Problems},
    limits,
    object::{Kind, Meta},
};

/// A grant, as far as routes and Services are concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReferenceGrant {
    /// Metadata.
    pub meta: Meta,
    /// Routes of these kinds, in these namespaces.
    pub from: Vec<(RouteKind, Arc<str>)>,
    /// Services of these names; `None` for all.
    pub to: Vec<Option<Arc<str>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(rename = "apiVersion")]
    _api_version: Option<IgnoredAny>,
    #[serde(rename = "kind")]
    _kind: Option<IgnoredAny>,
    #[serde(rename = "metadata")]
    _metadata: IgnoredAny,
    spec: Spec,
    #[serde(rename = "status", default)]
    _status: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Spec {
    from: Vec<FromDocument>,
    to: Vec<ToDocument>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FromDocument {
    group: String,
    kind: String,
    namespace: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ToDocument {
    group: String,
    kind: String,
    name: Option<String>,
}

impl ReferenceGrant {
    /// Reads one.
    pub(crate) fn new(meta: ObjectMeta, document: &Value, problems: &mut Problems) -> Result<Self, FieldError> {
        let Document { spec, .. } = decode::decode(document)?;
        let meta = Meta::new(Kind::ReferenceGrant, meta);
        for (field, count) in [("spec.from", spec.from.len()), ("spec.to", spec.to.len())] {
            if count == 0 || count > limits::GATEWAY_GRANT_ENTRIES_MAX {
                let message = format!("must have 1 to {} entries, not {count}", limits::GATEWAY_GRANT_ENTRIES_MAX);
                problems.push(FieldError::new(field, message));
            }
        }
        let mut from = Vec::new();
        for (index, one) in spec.from.into_iter().enumerate() {
            if !decode::is_label(&one.namespace) {
                let message = format!("{} is no valid name (RFC 1123 label)", decode::quoted(&one.namespace));
                problems.push(FieldError::new(format!("spec.from[{index}].namespace"), message));
            }
            let kind = [RouteKind::Grpc, RouteKind::Http].into_iter().find(|kind| kind.kind().as_str() == one.kind);
            // Grants to others are not for us.
            from.extend(kind.filter(|_| one.group == super::GROUP).map(|kind| (kind, one.namespace.into())));
        }
        let services = spec.to.into_iter().filter(|one| one.group.is_empty() && one.kind == "Service");
        let to = services.map(|one| one.name.filter(|name| !name.is_empty()).map(Into::into)).collect();
        Ok(Self { meta, from, to })
    }

    /// Whether it lets a route of `namespace` name a Service of its own namespace.
    #[must_use]
    pub fn allows(&self, kind: RouteKind, namespace: &str, target: &Target) -> bool {
        target.is_service()
            && target.service.namespace == self.meta.namespace
            && self.from.iter().any(|(of, from)| *of == kind && **from == *namespace)
            && self.to.iter().any(|to| to.as_ref().is_none_or(|name| *name == target.service.name))
    }
}
