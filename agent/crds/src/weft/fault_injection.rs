//! FaultInjection, weft.dev v1alpha1: what goes wrong on purpose, for the requests of some Services.

use std::{sync::Arc, time::Duration};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;
use weft_policy::{
    names::{ObjectRef, ServiceAccountKey},
    rule::{Abort, AbortHow, Delay, Fault, Fraction},
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

/// What goes wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultInjection {
    /// Metadata.
    pub meta: Meta,
    /// The Services, all their ports; none where only routes name the object.
    pub targets: Vec<Target>,
    /// What goes wrong.
    pub fault: Arc<Fault>,
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
    #[serde(default)]
    target_refs: Vec<TargetDocument>,
    #[serde(default)]
    sources: Vec<SourceDocument>,
    delay: Option<DelayDocument>,
    abort: Option<AbortDocument>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct SourceDocument {
    namespace: Option<String>,
    service_account: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct DelayDocument {
    fixed: String,
    jitter: Option<String>,
    percent: Option<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct AbortDocument {
    http_status: Option<i64>,
    grpc_status: Option<i64>,
    reset: Option<bool>,
    percent: Option<i64>,
}

impl FaultInjection {
    /// Reads one.
    pub(crate) fn new(meta: ObjectMeta, document: &Value, problems: &mut Problems) -> Result<Self, FieldError> {
        let Document { spec, .. } = decode::decode(document)?;
        let meta = Meta::new(Kind::FaultInjection, meta);
        let targets = target::targets(&spec.target_refs, &meta.namespace, problems);
        if let Some(index) = targets.iter().position(|target| target.port.is_some()) {
            let message = "a fault is for all ports of a Service";
            problems.push(FieldError::new(format!("spec.targetRefs[{index}].port"), message));
        }
        if spec.delay.is_none() && spec.abort.is_none() {
            problems.push(FieldError::new("spec", "must have a delay or an abort, or both"));
        }
        let origin = ObjectRef::new(Kind::FaultInjection.as_str(), &meta.namespace, &meta.name);
        let fault = Fault {
            origin,
            sources: sources(&spec.sources, &meta.namespace, problems),
            delay: spec.delay.and_then(|delay| self::delay(&delay, problems)),
            abort: spec.abort.and_then(|abort| self::abort(&abort, problems)),
        };
        Ok(Self { meta, targets, fault: Arc::new(fault) })
    }
}

fn sources(documents: &[SourceDocument], namespace: &str, problems: &mut Problems) -> Vec<ServiceAccountKey> {
    if documents.len() > limits::FAULT_SOURCES_MAX {
        let message = format!("{} sources are over the limit of {}", documents.len(), limits::FAULT_SOURCES_MAX);
        problems.push(FieldError::new("spec.sources", message));
    }
    let mut sources = Vec::new();
    for (index, source) in documents.iter().take(limits::FAULT_SOURCES_MAX).enumerate() {
        let namespace = source.namespace.as_deref().unwrap_or(namespace);
        if !decode::is_label(namespace) {
            let message = format!("{} is no valid name (RFC 1123 label)", decode::quoted(namespace));
            problems.push(FieldError::new(format!("spec.sources[{index}].namespace"), message));
        }
        if !decode::is_subdomain(&source.service_account) {
            let message = format!("{} is no valid name (RFC 1123 subdomain)", decode::quoted(&source.service_account));
            problems.push(FieldError::new(format!("spec.sources[{index}].serviceAccount"), message));
        }
        sources.push(ServiceAccountKey::new(namespace, &source.service_account));
    }
    sources.sort();
    sources.dedup();
    sources
}

fn delay(document: &DelayDocument, problems: &mut Problems) -> Option<Delay> {
    let range = (Duration::from_millis(1), limits::FAULT_DELAY_MAX);
    let fixed = duration::between(&document.fixed, range, "spec.delay.fixed", problems);
    let jitter = document.jitter.as_ref().map(|jitter| {
        duration::between(jitter, (Duration::ZERO, limits::FAULT_DELAY_MAX), "spec.delay.jitter", problems)
    });
    let share = percent(document.percent, "spec.delay.percent", problems);
    Some(Delay { fixed: fixed?, jitter: jitter.unwrap_or(Some(Duration::ZERO))?, share })
}

fn abort(document: &AbortDocument, problems: &mut Problems) -> Option<Abort> {
    let mut within = |number: i64, (least, most): (u16, u16), field: &str| {
        let found = u16::try_from(number).ok().filter(|number| (least..=most).contains(number));
        if found.is_none() {
            let message = format!("{number} is out of range: it must be {least} to {most}");
            problems.push(FieldError::new(format!("spec.abort.{field}"), message));
        }
        found
    };
    let how = match (document.http_status, document.grpc_status, document.reset) {
        (Some(status), None, None) => within(status, (200, 599), "httpStatus").map(AbortHow::Http),
        // 0 is success.
        (None, Some(status), None) => within(status, (1, 16), "grpcStatus").map(AbortHow::Grpc),
        (None, None, Some(true)) => Some(AbortHow::Reset),
        _ => {
            let message = "must have exactly one of httpStatus, grpcStatus and reset: true";
            problems.push(FieldError::new("spec.abort", message));
            None
        }
    };
    let share = percent(document.percent, "spec.abort.percent", problems);
    Some(Abort { how: how?, share })
}

/// All of them, unless it says otherwise.
fn percent(percent: Option<i64>, field: &str, problems: &mut Problems) -> Fraction {
    let percent = percent.unwrap_or(100);
    match u32::try_from(percent).ok().filter(|percent| *percent <= 100) {
        Some(numerator) => Fraction { numerator, denominator: 100 },
        None => {
            problems.push(FieldError::new(field, format!("{percent} is out of range: it must be 0 to 100")));
            Fraction { numerator: 0, denominator: 100 }
        }
    }
}
