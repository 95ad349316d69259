//! HTTPRoute, gateway.networking.k8s.io v1beta1 and v1, with the fields of the experimental channel that weft carries out.

use std::{sync::Arc, time::Duration};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;
use weft_policy::{
    pattern::Checks,
    rule::{Retry, Timeouts},
};

use super::{
    duration,
    filters::{self, Place},
    matches::{self, MatchDocument},
    refs::{self, BackendDocument, ParentDocument},
    route::{Route, RouteKind, RouteRule, RuleFilters},
};
use crate::{
    decode::{self, FieldError, Problems},
    limits,
    object::{Kind, Meta},
};

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
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Spec {
    parent_refs: Option<Vec<ParentDocument>>,
    /// For Gateways.
    #[serde(rename = "useDefaultGateways")]
    _use_default_gateways: Option<IgnoredAny>,
    hostnames: Option<Vec<String>>,
    rules: Option<Vec<RuleDocument>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RuleDocument {
    name: Option<String>,
    matches: Option<Vec<MatchDocument>>,
    filters: Option<Vec<Value>>,
    backend_refs: Option<Vec<BackendDocument>>,
    timeouts: Option<TimeoutsDocument>,
    retry: Option<RetryDocument>,
    session_persistence: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct TimeoutsDocument {
    request: Option<String>,
    backend_request: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RetryDocument {
    codes: Option<Vec<i64>>,
    attempts: Option<i64>,
    backoff: Option<String>,
}

impl Route {
    /// Reads an HTTPRoute.
    pub(crate) fn http(meta: ObjectMeta, document: &Value, problems: &mut Problems) -> Result<Self, FieldError> {
        let Document { spec, .. } = decode::decode(document)?;
        let meta = Meta::new(Kind::HttpRoute, meta);
        let parents = refs::parents(spec.parent_refs.unwrap_or_default(), &meta.namespace, problems);
        let mut ignored = hostnames(spec.hostnames);
        // What the CRD puts where nothing is given.
        let documents = spec.rules.unwrap_or_else(|| vec![RuleDocument::default()]);
        if documents.is_empty() {
            problems.push(FieldError::new("spec.rules", "must have at least one rule"));
        }
        too_many(documents.len(), limits::GATEWAY_RULES_MAX, "spec.rules", problems);
        let mut checks = Checks::default();
        let mut rules = Vec::new();
        for (index, document) in documents.into_iter().take(limits::GATEWAY_RULES_MAX).enumerate() {
            let at = format!("spec.rules[{index}]");
            if document.session_persistence.is_some() {
                ignored
                    .push((format!("{at}.sessionPersistence"), "sessions are not kept to one endpoint by it".into()));
            }
            rules.push(rule(document, &meta.namespace, &at, &mut checks, problems));
        }
        unique_names(&rules, problems);
        Ok(Self { meta, kind: RouteKind::Http, parents, rules, ignored })
    }
}

/// Hosts mean nothing for a Service (GEP-1426).
pub(super) fn hostnames(hostnames: Option<Vec<String>>) -> Vec<(String, String)> {
    let given = hostnames.is_some_and(|hostnames| !hostnames.is_empty());
    let message = "host names say nothing where the parent is a Service (GEP-1426): match on the header Host instead";
    if given { vec![("spec.hostnames".to_owned(), message.to_owned())] } else { Vec::new() }
}

pub(super) fn too_many(count: usize, max: usize, field: &str, problems: &mut Problems) {
    if count > max {
        problems.push(FieldError::new(field, format!("{count} entries are over the limit of {max}")));
    }
}

pub(super) fn unique_names(rules: &[RouteRule], problems: &mut Problems) {
    for (index, rule) in rules.iter().enumerate() {
        let Some(name) = &rule.name else { continue };
        if rules[..index].iter().any(|other| other.name.as_ref() == Some(name)) {
            let message = format!("{} is given to two rules", decode::quoted(name));
            problems.push(FieldError::new(format!("spec.rules[{index}].name"), message));
        }
    }
}

fn rule(
    document: RuleDocument,
    namespace: &Arc<str>,
    at: &str,
    checks: &mut Checks,
    problems: &mut Problems,
) -> RouteRule {
    let given = document.matches.unwrap_or_default();
    too_many(given.len(), limits::GATEWAY_MATCHES_MAX, &format!("{at}.matches"), problems);
    let mut all = Vec::new();
    for (index, one) in given.into_iter().take(limits::GATEWAY_MATCHES_MAX).enumerate() {
        all.push(matches::http(one, &format!("{at}.matches[{index}]"), checks, problems));
    }
    if all.is_empty() {
        all.push(matches::any());
    }
    let backends = document.backend_refs.unwrap_or_default();
    let backends = refs::backends(backends, namespace, at, problems);
    let timeouts = document.timeouts.map(|timeouts| self::timeouts(timeouts, &format!("{at}.timeouts"), problems));
    let retry = document.retry.map(|retry| self::retry(retry, &format!("{at}.retry"), problems));
    let filters = filters::of_rule(&document.filters.unwrap_or_default(), namespace, &all, Place::Http);
    let filters = filters::with_times(filters::check_backends(filters, &backends), |all: &mut RuleFilters| {
        all.filters.timeouts = timeouts.unwrap_or_default();
        if let Some((retry, note)) = retry {
            all.filters.retry = Some(Arc::new(retry));
            all.notes.extend(note);
        }
    });
    RouteRule { name: document.name.map(Into::into), matches: all, filters, backends }
}

/// GEP-1742. Zero means none.
fn timeouts(document: TimeoutsDocument, at: &str, problems: &mut Problems) -> Timeouts {
    let mut one = |text: Option<String>, field: &str| {
        let read = duration::parse(&text?);
        let read = read.map_err(|message| problems.push(FieldError::new(format!("{at}.{field}"), message)));
        read.ok().filter(|time| *time > Duration::ZERO)
    };
    let (request, backend_request) =
        (one(document.request, "request"), one(document.backend_request, "backendRequest"));
    if let (Some(whole), Some(part)) = (request, backend_request)
        && part > whole
    {
        let message = format!("{part:?} is longer than the {whole:?} that the whole request may take");
        problems.push(FieldError::new(format!("{at}.backendRequest"), message));
    }
    Timeouts { request, backend_request }
}

/// GEP-1731. The note tells what is changed of what was asked for.
fn retry(document: RetryDocument, at: &str, problems: &mut Problems) -> (Retry, Option<(String, String)>) {
    let given = document.codes.unwrap_or_default();
    too_many(given.len(), limits::GATEWAY_RETRY_CODES_MAX, &format!("{at}.codes"), problems);
    let mut codes = Vec::new();
    for (index, code) in given.into_iter().take(limits::GATEWAY_RETRY_CODES_MAX).enumerate() {
        match u16::try_from(code) {
            Ok(code) if (400..600).contains(&code) => codes.push(code),
            _ => {
                let message = format!("{code} is no status of an error: it must be 400 to 599");
                problems.push(FieldError::new(format!("{at}.codes[{index}]"), message));
            }
        }
    }
    codes.sort_unstable();
    codes.dedup();
    let mut note = None;
    let attempts = match document.attempts {
        None => limits::RETRY_ATTEMPTS_DEFAULT,
        Some(attempts) if attempts < 1 => {
            let message = format!("{attempts} is no number of attempts from 1");
            problems.push(FieldError::new(format!("{at}.attempts"), message));
            limits::RETRY_ATTEMPTS_DEFAULT
        }
        Some(attempts) => {
            let kept = u32::try_from(attempts).unwrap_or(u32::MAX).min(limits::RETRY_ATTEMPTS_MAX);
            if i64::from(kept) != attempts {
                let message = format!("{attempts} attempts are over the limit of {kept}, which is taken instead");
                note = Some(("retry.attempts".to_owned(), message));
            }
            kept
        }
    };
    let backoff = document.backoff.map_or(Ok(limits::RETRY_BACKOFF_DEFAULT), |text| duration::parse(&text));
    let backoff = backoff.unwrap_or_else(|message| {
        problems.push(FieldError::new(format!("{at}.backoff"), message));
        limits::RETRY_BACKOFF_DEFAULT
    });
    (Retry { codes, attempts, backoff }, note)
}
