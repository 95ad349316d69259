//! TrafficSplit, split.smi-spec.io v1alpha1 to v1alpha4.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;
use weft_policy::{limits, names::ServiceKey};

use super::quantity;
use crate::{
    decode::{self, FieldError, Problems},
    object::{Kind, Meta},
};

/// How the traffic of a root Service is shared out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrafficSplit {
    /// Metadata.
    pub meta: Meta,
    /// The Service that clients ask for, in the split's own namespace.
    pub root: Arc<str>,
    /// Backends with their weights; in thousandths if any is written as a quantity.
    pub backends: Vec<SplitBackend>,
    /// HTTPRouteGroups in the split's own namespace, of whose matches any must hold; none for every request.
    pub groups: Vec<Arc<str>>,
}

/// A Service that takes a share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitBackend {
    /// Its name, in the split's own namespace.
    pub service: Arc<str>,
    /// Its share, relative to the others.
    pub weight: u64,
}

impl TrafficSplit {
    /// The root Service.
    #[must_use]
    pub fn root_key(&self) -> ServiceKey {
        self.sibling(&self.root)
    }

    /// A Service of the split's own namespace.
    #[must_use]
    pub fn sibling(&self, service: &Arc<str>) -> ServiceKey {
        ServiceKey { namespace: self.meta.namespace.clone(), name: Arc::clone(service) }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Document {
    #[serde(rename = "apiVersion")]
    _api_version: IgnoredAny,
    #[serde(rename = "kind")]
    _kind: IgnoredAny,
    #[serde(rename = "metadata")]
    _metadata: IgnoredAny,
    spec: Spec,
    #[serde(rename = "status", default)]
    _status: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Spec {
    service: String,
    backends: Vec<BackendDocument>,
    matches: Option<Vec<MatchDocument>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BackendDocument {
    service: String,
    weight: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct MatchDocument {
    kind: String,
    name: String,
    api_group: Option<String>,
}

impl TrafficSplit {
    /// Reads one of a version that is understood.
    pub(crate) fn new(
        version: &str,
        meta: ObjectMeta,
        document: &Value,
        problems: &mut Problems,
    ) -> Result<Self, FieldError> {
        let Document { spec, .. } = decode::decode(document)?;
        let meta = Meta::new(Kind::TrafficSplit, meta);
        let root = own_service(&spec.service, &meta.namespace, "spec.service", problems);
        if spec.backends.is_empty() {
            problems.push(FieldError::new("spec.backends", "must have at least one backend"));
        } else if spec.backends.len() > limits::SPLIT_BACKENDS_MAX {
            let message =
                format!("{} backends are over the limit of {}", spec.backends.len(), limits::SPLIT_BACKENDS_MAX);
            problems.push(FieldError::new("spec.backends", message));
        }
        let before = problems.len();
        let unit = if version == "v1alpha1" || spec.backends.iter().any(|backend| backend.weight.is_string()) {
            1000
        } else {
            1
        };
        let mut backends = Vec::new();
        for (index, backend) in spec.backends.iter().enumerate() {
            let service =
                own_service(&backend.service, &meta.namespace, &format!("spec.backends[{index}].service"), problems);
            match weight(version, unit, &backend.weight) {
                Ok(weight) => backends.push(SplitBackend { service, weight }),
                Err(message) => problems.push(FieldError::new(format!("spec.backends[{index}].weight"), message)),
            }
        }
        if problems.len() == before && !backends.is_empty() && backends.iter().all(|backend| backend.weight == 0) {
            problems.push(FieldError::new("spec.backends", "every weight is zero: no request could be answered"));
        }
        let groups = groups(version, spec.matches.unwrap_or_default(), problems);
        Ok(Self { meta, root, backends, groups })
    }
}

fn groups(version: &str, matches: Vec<MatchDocument>, problems: &mut Problems) -> Vec<Arc<str>> {
    if !matches.is_empty() && (version == "v1alpha1" || version == "v1alpha2") {
        problems.push(FieldError::new("spec.matches", format!("{version} has no matches: they came with v1alpha3")));
    }
    let mut groups: Vec<Arc<str>> = Vec::new();
    for (index, one) in matches.into_iter().enumerate() {
        if one.kind != "HTTPRouteGroup" {
            let message = format!("{:?} cannot be matched on: only HTTPRouteGroup can", one.kind);
            problems.push(FieldError::new(format!("spec.matches[{index}].kind"), message));
        }
        if let Some(group) = one.api_group.filter(|group| group.split('/').next() != Some(Kind::HttpRouteGroup.group()))
        {
            let message = format!("{group:?} is not the group of HTTPRouteGroup, which is specs.smi-spec.io");
            problems.push(FieldError::new(format!("spec.matches[{index}].apiGroup"), message));
        }
        if !decode::is_subdomain(&one.name) {
            let message = format!("{:?} is no valid name (RFC 1123)", one.name);
            problems.push(FieldError::new(format!("spec.matches[{index}].name"), message));
        }
        groups.push(one.name.into());
    }
    groups
}

/// A Service of the split's own namespace, named in short or as `name.namespace`, `name.namespace.svc` or with a cluster domain
/// behind that.
fn own_service(text: &str, namespace: &str, field: &str, problems: &mut Problems) -> Arc<str> {
    let mut complain = |message: String| problems.push(FieldError::new(field, message));
    let (name, other) = if let Some((other, name)) = text.split_once('/') {
        (name, Some(other))
    } else {
        let fqdn = text.strip_suffix('.').unwrap_or(text);
        let mut labels = fqdn.splitn(3, '.');
        let (name, other, rest) = (labels.next().unwrap_or_default(), labels.next(), labels.next());
        let svc = rest.is_none_or(|rest| rest == "svc" || rest.strip_prefix("svc.").is_some_and(decode::is_subdomain));
        if !svc {
            complain(format!("{text:?} names no Service of a cluster: after name and namespace must come \"svc\""));
            return name.into();
        }
        (name, other)
    };
    if text.is_empty() {
        complain("must name a Service".to_owned());
    } else if !decode::is_label(name) {
        complain(format!("{text:?} is no valid name of a Service (RFC 1123 label)"));
    } else if let Some(other) = other.filter(|other| *other != namespace) {
        complain(format!("names a Service of namespace {other:?}; a TrafficSplit reaches only its own, {namespace:?}"));
    }
    name.into()
}

/// Quantities are what v1alpha1 has. As text they are read in every version: an API server that does not convert serves what was
/// written as v1alpha1 under any of them. Beside one, a whole number means as many thousands of its `unit`s.
fn weight(version: &str, unit: u64, value: &Value) -> Result<u64, String> {
    let weight = if version == "v1alpha1" || value.is_string() {
        quantity::milli_of_json(value).map_err(|error| format!("{value} {error}"))?
    } else {
        whole(value)?.saturating_mul(unit)
    };
    if weight > limits::WEIGHT_MAX {
        return Err(format!("{value} is over the limit of {}", limits::WEIGHT_MAX / unit));
    }
    Ok(weight)
}

fn whole(value: &Value) -> Result<u64, String> {
    let Value::Number(number) = value else {
        return Err(format!("{value} is no whole number"));
    };
    if let Some(weight) = number.as_u64() {
        return Ok(weight);
    }
    match number.as_f64() {
        Some(weight) if weight < 0.0 => Err(format!("{value} must not be negative")),
        Some(weight) if weight.fract() != 0.0 => Err(format!("{value} must be a whole number")),
        // Written as 1.0 or 1e2; 2^53 is where this stops being exact.
        Some(weight) if weight <= 9_007_199_254_740_992.0 => Ok(weight as u64),
        _ => Err(format!("{value} is over the limit of {}", limits::WEIGHT_MAX)),
    }
}
