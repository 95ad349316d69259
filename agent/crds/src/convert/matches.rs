//! HTTPMatchRequest to a match of an HTTPRouteGroup.
//!
//! Istio's `exact` and `regex` cover the whole text, its `prefix` the beginning. SMI anchors `pathRegex` at the beginning only and
//! searches header patterns anywhere, so the other ends are written out.

use serde_json::{Map, Value, json};
use weft_policy::pattern;

use super::fields::{Refusals, literal};
use crate::smi::http_route_group::METHODS;

const REASONS: [(&str, &str); 11] = [
    ("authority", "an SMI route has no authority: its root Service is the one that clients ask for"),
    ("gateways", "SMI routes traffic inside the mesh only"),
    ("ignoreUriCase", "must be true or false"),
    ("port", "a TrafficSplit holds for every port of its root"),
    ("queryParams", "SMI does not look at the query"),
    ("scheme", "SMI does not look at the scheme"),
    ("sourceLabels", "a TrafficSplit holds for every client"),
    ("sourceNamespace", "a TrafficSplit holds for every client"),
    ("statPrefix", "weft names its metrics itself; take it away"),
    ("withoutHeaders", "SMI cannot say that a header must be absent"),
    ("headers", "must be a map"),
];

/// What a text must be like.
enum Text<'a> {
    Exact(&'a str),
    Prefix(&'a str),
    Regex(&'a str),
    Present,
}

/// One match, with its name. `None` if it takes every request.
pub(super) fn convert(one: &Map<String, Value>, at: &str, name: String, refusals: &mut Refusals) -> Option<Value> {
    refusals.only(one, at, &["name", "uri", "method", "headers", "ignoreUriCase"], &REASONS);
    let mut out = Map::from_iter([("name".to_owned(), Value::String(name))]);
    let ignore_case = match one.get("ignoreUriCase") {
        None | Some(Value::Bool(false)) => false,
        Some(Value::Bool(true)) => true,
        Some(_) => {
            refusals.refuse(format!("{at}.ignoreUriCase"), "must be true or false");
            false
        }
    };
    if let Some(uri) = one.get("uri") {
        let field = format!("{at}.uri");
        let regex = match text(uri, &field, refusals) {
            Some(Text::Exact(path)) => Some(format!("{}$", literal(path))),
            Some(Text::Prefix(path)) => Some(literal(path)),
            Some(Text::Regex(regex)) => Some(format!("(?:{regex})$")),
            Some(Text::Present) => Some("/".to_owned()),
            None => None,
        };
        let regex = regex.map(|regex| if ignore_case { format!("(?i:{regex})") } else { regex });
        out.extend(regex.and_then(|regex| checked(regex, &field, refusals)).map(|regex| ("pathRegex".into(), regex)));
    }
    if let Some(method) = one.get("method") {
        let field = format!("{at}.method");
        match text(method, &field, refusals) {
            Some(Text::Exact(method)) if METHODS[1..].contains(&method) => {
                out.insert("methods".into(), json!([method]));
            }
            Some(Text::Exact(method)) => {
                refusals.refuse(field, format!("{method:?} is no method that SMI knows ({})", METHODS[1..].join(", ")));
            }
            Some(Text::Present) => {}
            Some(_) => refusals.refuse(field, "SMI takes whole methods only: write one match for each"),
            None => {}
        }
    }
    match one.get("headers") {
        None => {}
        Some(Value::Object(headers)) => {
            let mut patterns = Map::new();
            for (name, value) in headers {
                let field = format!("{at}.headers.{name}");
                if name.starts_with(':') {
                    refusals.refuse(field, "is a part of the request line: use uri and method");
                    continue;
                }
                let regex = match text(value, &field, refusals) {
                    Some(Text::Exact(value)) => format!("^{}$", literal(value)),
                    Some(Text::Prefix(value)) => format!("^{}", literal(value)),
                    Some(Text::Regex(regex)) => format!("^(?:{regex})$"),
                    Some(Text::Present) => ".*".to_owned(),
                    None => continue,
                };
                patterns.extend(checked(regex, &field, refusals).map(|regex| (name.clone(), regex)));
            }
            if !patterns.is_empty() {
                out.insert("headers".into(), Value::Object(patterns));
            }
        }
        Some(_) => refusals.refuse(format!("{at}.headers"), "must be a map"),
    }
    (out.len() > 1).then_some(Value::Object(out))
}

fn checked(regex: String, field: &str, refusals: &mut Refusals) -> Option<Value> {
    match pattern::check(&regex) {
        Ok(()) => Some(Value::String(regex)),
        Err(error) => {
            refusals.refuse(field, format!("{regex:?}: {error}"));
            None
        }
    }
}

fn text<'a>(value: &'a Value, field: &str, refusals: &mut Refusals) -> Option<Text<'a>> {
    let Value::Object(map) = value else {
        refusals.refuse(field, "must be a map with exact, prefix or regex");
        return None;
    };
    let mut entries = map.iter();
    match (entries.next(), entries.next()) {
        (None, _) => Some(Text::Present),
        (Some((key, Value::String(text))), None) => match key.as_str() {
            "exact" => Some(Text::Exact(text)),
            "prefix" => Some(Text::Prefix(text)),
            "regex" => Some(Text::Regex(text)),
            _ => {
                refusals.refuse(format!("{field}.{key}"), "is none of exact, prefix and regex");
                None
            }
        },
        _ => {
            refusals.refuse(field, "must be one of exact, prefix and regex, with a string");
            None
        }
    }
}
