//! GRPCRoute, gateway.networking.k8s.io v1. A call of a method is a request for `/service/method` (gRPC over HTTP/2, "Requests").

use std::{cmp::Reverse, sync::Arc};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;
use weft_policy::{ir::PathIr, pattern::Checks};

use super::{
    filters::{self, Place},
    http_route::{hostnames, too_many, unique_names},
    matches::{self, ValueDocument},
    refs::{self, BackendDocument, ParentDocument},
    route::{Rank, Route, RouteKind, RouteMatch, RouteRule},
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
    #[serde(rename = "useDefaultGateways")]
    _use_default_gateways: Option<IgnoredAny>,
    hostnames: Option<Vec<String>>,
    rules: Option<Vec<RuleDocument>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RuleDocument {
    name: Option<String>,
    matches: Option<Vec<MatchDocument>>,
    filters: Option<Vec<Value>>,
    backend_refs: Option<Vec<BackendDocument>>,
    session_persistence: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MatchDocument {
    method: Option<MethodDocument>,
    headers: Option<Vec<ValueDocument>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MethodDocument {
    r#type: Option<String>,
    service: Option<String>,
    method: Option<String>,
}

impl Route {
    /// Reads a GRPCRoute.
    pub(crate) fn grpc(meta: ObjectMeta, document: &Value, problems: &mut Problems) -> Result<Self, FieldError> {
        let Document { spec, .. } = decode::decode(document)?;
        let meta = Meta::new(Kind::GrpcRoute, meta);
        let parents = refs::parents(spec.parent_refs.unwrap_or_default(), &meta.namespace, problems);
        let mut ignored = hostnames(spec.hostnames);
        let documents = spec.rules.unwrap_or_default();
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
        Ok(Self { meta, kind: RouteKind::Grpc, parents, rules, ignored })
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
        let at = format!("{at}.matches[{index}]");
        let (path, rank) = one
            .method
            .map_or_else(Default::default, |method| by_method(method, &format!("{at}.method"), checks, problems));
        let headers = matches::headers(one.headers, &at, checks, problems);
        let rank = Rank { headers: Reverse(headers.len()), ..rank };
        all.push(RouteMatch { path, headers, rank, ..RouteMatch::default() });
    }
    if all.is_empty() {
        all.push(RouteMatch::default());
    }
    let backends = document.backend_refs.unwrap_or_default();
    let backends = refs::backends(backends, namespace, at, problems);
    let filters = filters::of_rule(&document.filters.unwrap_or_default(), namespace, &all, Place::Grpc);
    RouteRule { name: document.name.map(Into::into), matches: all, filters, backends }
}

/// The path of calls, and how many characters of it are given.
fn by_method(
    document: MethodDocument,
    at: &str,
    checks: &mut Checks,
    problems: &mut Problems,
) -> (Option<PathIr>, Rank) {
    let MethodDocument { r#type, service, method } = document;
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let (service, method) = (given(service), given(method));
    let count = |text: &Option<String>| Reverse(text.as_ref().map_or(0, |text| text.chars().count()));
    let rank = Rank { characters: count(&service), method: count(&method), ..Rank::default() };
    let parts = [("service", &service), ("method", &method)];
    let path = match r#type.as_deref().unwrap_or("Exact") {
        "Exact" => {
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.';
            for (field, text) in parts.into_iter().filter_map(|(field, text)| Some((field, text.as_ref()?))) {
                if !text.bytes().all(fits) || (field == "method" && text.contains('.')) {
                    let message = format!("{} is no name of a gRPC {field}", decode::quoted(text));
                    problems.push(FieldError::new(format!("{at}.{field}"), message));
                }
            }
            match (&service, &method) {
                (Some(service), Some(method)) => Some(PathIr::Exact(format!("/{service}/{method}").into())),
                (Some(service), None) => Some(PathIr::Prefix(format!("/{service}").into())),
                // Names hold nothing that a regex would take for more than a character.
                (None, Some(method)) => Some(PathIr::Regex(format!("/[^/]+/{method}").into())),
                (None, None) => None,
            }
        }
        "RegularExpression" => {
            for (field, text) in parts.into_iter().filter_map(|(field, text)| Some((field, text.as_ref()?))) {
                matches::check(text, &format!("{at}.{field}"), checks, problems);
            }
            let part =
                |text: &Option<String>| text.as_ref().map_or_else(|| "[^/]+".to_owned(), |text| format!("(?:{text})"));
            (service.is_some() || method.is_some())
                .then(|| PathIr::Regex(format!("/{}/{}", part(&service), part(&method)).into()))
        }
        other => {
            let message = format!("{} is neither Exact nor RegularExpression", decode::quoted(other));
            problems.push(FieldError::new(format!("{at}.type"), message));
            None
        }
    };
    if service.is_none() && method.is_none() {
        problems.push(FieldError::new(at, "must have a service, a method, or both"));
    }
    (path, rank)
}
