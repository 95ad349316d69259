//! BackendPolicy, weft.dev v1alpha1: how the endpoints of a Service are used.

use std::{sync::Arc, time::Duration};

use http::HeaderName;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;
use weft_policy::{
    backend_policy::{self, Balance, HashKey},
    names::ObjectRef,
};

use super::{
    duration,
    target::{self, Target, TargetDocument},
};
use crate::{
    decode::{self, FieldError, Problems},
    limits,
    object::{Kind, Meta},
};

/// What holds for the endpoints of some Services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackendPolicy {
    /// Metadata.
    pub meta: Meta,
    /// The Services, or ports of theirs; at least one, none twice.
    pub targets: Vec<Target>,
    /// What holds.
    pub policy: Arc<backend_policy::BackendPolicy>,
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
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Spec {
    target_refs: Vec<TargetDocument>,
    load_balancing: Option<LoadBalancing>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct LoadBalancing {
    #[serde(rename = "type")]
    kind: Option<String>,
    hash_on: Option<Vec<HashOn>>,
    slow_start: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct HashOn {
    header: Option<String>,
    cookie: Option<String>,
    query: Option<String>,
    source_address: Option<bool>,
}

/// `loadBalancing.type`, in the order of [`Balance::ALL`].
pub(crate) const BALANCES: [&str; Balance::ALL.len()] =
    ["LeastRequest", "RoundRobin", "Random", "PeakEwma", "RingHash", "Maglev"];

impl BackendPolicy {
    /// Reads one.
    pub(crate) fn new(meta: ObjectMeta, document: &Value, problems: &mut Problems) -> Result<Self, FieldError> {
        let Document { spec, .. } = decode::decode(document)?;
        let meta = Meta::new(Kind::BackendPolicy, meta);
        if spec.target_refs.is_empty() {
            problems.push(FieldError::new("spec.targetRefs", "must have at least one target"));
        }
        let targets = target::targets(&spec.target_refs, &meta.namespace, problems);
        let origin = ObjectRef::new(Kind::BackendPolicy.as_str(), &meta.namespace, &meta.name);
        let mut policy = backend_policy::BackendPolicy { origin: Some(origin), ..Default::default() };
        if let Some(balancing) = &spec.load_balancing {
            load_balancing(balancing, &mut policy, problems);
        }
        Ok(Self { meta, targets, policy: Arc::new(policy) })
    }
}

fn load_balancing(document: &LoadBalancing, policy: &mut backend_policy::BackendPolicy, problems: &mut Problems) {
    let at = "spec.loadBalancing";
    let kind = document.kind.as_deref().unwrap_or(BALANCES[0]);
    match BALANCES.iter().position(|known| *known == kind) {
        Some(place) => policy.balance = Balance::ALL[place],
        None => {
            let message = format!("{} is none of {}", decode::quoted(kind), BALANCES.join(", "));
            problems.push(FieldError::new(format!("{at}.type"), message));
            return;
        }
    }
    if let Some(keys) = &document.hash_on {
        if !policy.balance.hashes() {
            let message = format!("has no effect with type {kind}: only RingHash and Maglev go by it");
            problems.push(FieldError::new(format!("{at}.hashOn"), message));
        }
        if keys.len() > limits::HASH_KEYS_MAX {
            let message = format!("{} keys are over the limit of {}", keys.len(), limits::HASH_KEYS_MAX);
            problems.push(FieldError::new(format!("{at}.hashOn"), message));
        }
        for (index, key) in keys.iter().take(limits::HASH_KEYS_MAX).enumerate() {
            policy.hash_on.extend(hash_key(key, &format!("{at}.hashOn[{index}]"), problems));
        }
    }
    if let Some(text) = &document.slow_start {
        let field = format!("{at}.slowStart");
        if policy.balance.hashes() {
            let message = format!("has no effect with type {kind}: an endpoint that comes gets its own keys at once");
            problems.push(FieldError::new(field, message));
        } else {
            let range = (Duration::from_secs(1), limits::SLOW_START_MAX);
            policy.slow_start = duration::between(text, range, &field, problems);
        }
    }
}

fn hash_key(document: &HashOn, at: &str, problems: &mut Problems) -> Option<HashKey> {
    let HashOn { header, cookie, query, source_address } = document;
    let key = match (header, cookie, query, source_address) {
        (Some(name), None, None, None) => name.parse::<HeaderName>().ok().map(HashKey::Header),
        (None, Some(name), None, None) => is_token(name).then(|| HashKey::Cookie(name.as_str().into())),
        (None, None, Some(name), None) => {
            (!name.is_empty() && name.len() <= limits::NAME_BYTES_MAX).then(|| HashKey::Query(name.as_str().into()))
        }
        (None, None, None, Some(true)) => Some(HashKey::SourceAddress),
        _ => {
            let message = "must have exactly one of header, cookie, query and sourceAddress: true";
            problems.push(FieldError::new(at, message));
            return None;
        }
    };
    if key.is_none() {
        let name = header.as_ref().or(cookie.as_ref()).or(query.as_ref()).map_or("", String::as_str);
        let kind = if header.is_some() {
            "header"
        } else if cookie.is_some() {
            "cookie"
        } else {
            "query"
        };
        let message = format!("{} is no name of one", decode::quoted(name));
        problems.push(FieldError::new(format!("{at}.{kind}"), message));
    }
    key
}

/// RFC 6265 4.1.1, RFC 9110 5.6.2.
fn is_token(name: &str) -> bool {
    let is_char = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty() && name.len() <= limits::NAME_BYTES_MAX && name.bytes().all(is_char)
}
