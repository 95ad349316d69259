//! Conditions of HTTPRoute on requests, and what both kinds of routes say of headers.

use std::{cmp::Reverse, sync::Arc};

use http::HeaderName;
use serde::Deserialize;
use weft_policy::{
    ir::{PathIr, ValueIr},
    path,
    pattern::Checks,
};

use super::route::{Rank, RouteMatch};
use crate::{
    decode::{self, FieldError, Problems},
    limits,
    smi::http_route_group::METHODS,
};

/// `spec.rules[].matches[]` of an HTTPRoute.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct MatchDocument {
    path: Option<PathDocument>,
    headers: Option<Vec<ValueDocument>>,
    query_params: Option<Vec<ValueDocument>>,
    method: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PathDocument {
    r#type: Option<String>,
    value: Option<String>,
}

/// A header or a query parameter, and what it must be.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ValueDocument {
    r#type: Option<String>,
    name: String,
    value: String,
}

/// What a match that says nothing means: every path.
pub(super) fn any() -> RouteMatch {
    let (path, rank) = (PathIr::Prefix("".into()), Rank { kind: PREFIX, ..Rank::default() });
    RouteMatch { path: Some(path), rank, ..RouteMatch::default() }
}

const EXACT: u8 = 0;
const REGEX: u8 = 1;
const PREFIX: u8 = 2;

/// Reads one.
pub(super) fn http(document: MatchDocument, at: &str, checks: &mut Checks, problems: &mut Problems) -> RouteMatch {
    let mut one = document.path.map_or_else(any, |path| by_path(path, &format!("{at}.path"), checks, problems));
    if let Some(method) = document.method {
        if !METHODS[1..].contains(&method.as_str()) {
            let message = format!("{} is none of {}", decode::quoted(&method), METHODS[1..].join(", "));
            problems.push(FieldError::new(format!("{at}.method"), message));
        }
        one.method = Some(method.into());
        one.rank.method = Reverse(1);
    }
    one.headers = headers(document.headers, at, checks, problems);
    one.query = values(document.query_params, &format!("{at}.queryParams"), checks, problems, |name| name.into());
    one.rank.headers = Reverse(one.headers.len());
    one.rank.query = Reverse(one.query.len());
    one
}

fn by_path(document: PathDocument, at: &str, checks: &mut Checks, problems: &mut Problems) -> RouteMatch {
    let value = document.value.unwrap_or_else(|| "/".to_owned());
    let (path, kind) = match document.r#type.as_deref().unwrap_or("PathPrefix") {
        "Exact" => (PathIr::Exact(canonical(&value, at, problems)), EXACT),
        "PathPrefix" => {
            let canonical = canonical(&value, at, problems);
            (PathIr::Prefix(canonical.strip_suffix('/').unwrap_or(&canonical).into()), PREFIX)
        }
        "RegularExpression" => {
            check(&value, &format!("{at}.value"), checks, problems);
            (PathIr::Regex(value.into()), REGEX)
        }
        other => {
            let message = format!("{} is none of Exact, PathPrefix, RegularExpression", decode::quoted(other));
            problems.push(FieldError::new(format!("{at}.type"), message));
            return any();
        }
    };
    let (PathIr::Exact(text) | PathIr::Prefix(text) | PathIr::Regex(text) | PathIr::Begins(text)) = &path;
    let rank = Rank { kind, characters: Reverse(text.chars().count()), ..Rank::default() };
    RouteMatch { path: Some(path), rank, ..RouteMatch::default() }
}

/// A path as requests have it once they are compared.
fn canonical(value: &str, at: &str, problems: &mut Problems) -> Arc<str> {
    let forbidden = ["//", "/./", "/../", "%2f", "%2F", "#"].into_iter().find(|part| value.contains(part));
    let end = ["/..", "/."].into_iter().find(|end| value.ends_with(end));
    let wrong = if value.chars().count() > limits::GATEWAY_PATH_CHARS_MAX {
        Some(format!("is longer than {} characters", limits::GATEWAY_PATH_CHARS_MAX))
    } else if !value.starts_with('/') {
        Some("must begin with /".to_owned())
    } else if let Some(part) = forbidden {
        Some(format!("must not contain {part}"))
    } else {
        end.map(|end| format!("must not end with {end}"))
    };
    let canonical = path::canonical(value);
    let message = wrong.or_else(|| canonical.as_ref().err().map(ToString::to_string));
    if let Some(message) = message {
        problems.push(FieldError::new(format!("{at}.value"), format!("{}: {message}", decode::quoted(value))));
    }
    canonical.ok().flatten().map_or_else(|| value.into(), Into::into)
}

/// What headers must be.
pub(super) fn headers(
    documents: Option<Vec<ValueDocument>>,
    at: &str,
    checks: &mut Checks,
    problems: &mut Problems,
) -> Vec<(Arc<str>, ValueIr)> {
    let at = format!("{at}.headers");
    for (index, one) in documents.iter().flatten().enumerate() {
        if HeaderName::try_from(&one.name).is_err() {
            let message = format!("{} is no name of a header (RFC 9110 5.1)", decode::quoted(&one.name));
            problems.push(FieldError::new(format!("{at}[{index}].name"), message));
        }
    }
    values(documents, &at, checks, problems, |name| name.to_ascii_lowercase().into())
}

fn values(
    documents: Option<Vec<ValueDocument>>,
    at: &str,
    checks: &mut Checks,
    problems: &mut Problems,
    name: impl Fn(&str) -> Arc<str>,
) -> Vec<(Arc<str>, ValueIr)> {
    let documents = documents.unwrap_or_default();
    if documents.len() > limits::GATEWAY_FIELDS_MAX {
        let message = format!("{} entries are over the limit of {}", documents.len(), limits::GATEWAY_FIELDS_MAX);
        problems.push(FieldError::new(at, message));
    }
    let mut values: Vec<(Arc<str>, ValueIr)> = Vec::new();
    for (index, one) in documents.into_iter().take(limits::GATEWAY_FIELDS_MAX).enumerate() {
        let at = format!("{at}[{index}]");
        if one.name.is_empty() {
            problems.push(FieldError::new(format!("{at}.name"), "must be given"));
        }
        let name = name(&one.name);
        let value = match one.r#type.as_deref().unwrap_or("Exact") {
            "Exact" => ValueIr::Exact(one.value.into()),
            "RegularExpression" => {
                check(&one.value, &format!("{at}.value"), checks, problems);
                ValueIr::Regex(one.value.into())
            }
            other => {
                let message = format!("{} is neither Exact nor RegularExpression", decode::quoted(other));
                problems.push(FieldError::new(format!("{at}.type"), message));
                continue;
            }
        };
        // Of several of one name the first counts, as the specification has it.
        if values.iter().all(|(known, _)| *known != name) {
            values.push((name, value));
        }
    }
    values
}

/// Complains of a regex that is not accepted.
pub(super) fn check(regex: &str, field: &str, checks: &mut Checks, problems: &mut Problems) {
    if let Err(error) = checks.check(regex) {
        problems.push(FieldError::new(field, format!("{}: {error}", decode::quoted(regex))));
    }
}
