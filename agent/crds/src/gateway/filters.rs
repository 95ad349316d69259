//! Filters of rules and backends. Each is read by itself: one that is not understood makes its own rule fail, and nothing else.

use std::{sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use weft_policy::rule::{BackendHeaders, Cors, Field, Fraction, HeaderEdits, PathChange, Redirect, Rewrite};

use super::{
    refs::{self, TargetDocument},
    route::{BadFilter, Extension, Mirror, RouteBackend, RouteMatch, RouteRule, RuleFilters},
};
use crate::{decode, limits};

use weft_policy::ir::PathIr;

/// Reasons of conditions.
const UNSUPPORTED: &str = "UnsupportedValue";
const INCOMPATIBLE: &str = "IncompatibleFilters";

/// How long a preflight holds if its author does not say (the CRD's default).
const CORS_MAX_AGE: Duration = Duration::from_secs(5);

/// Which kind of route a filter is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Http,
    Grpc,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct FilterDocument {
    r#type: String,
    request_header_modifier: Option<Value>,
    response_header_modifier: Option<Value>,
    request_mirror: Option<Value>,
    request_redirect: Option<Value>,
    url_rewrite: Option<Value>,
    cors: Option<Value>,
    external_auth: Option<Value>,
    extension_ref: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HeadersDocument {
    set: Option<Vec<HeaderDocument>>,
    add: Option<Vec<HeaderDocument>>,
    remove: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HeaderDocument {
    name: String,
    value: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RedirectDocument {
    scheme: Option<String>,
    hostname: Option<String>,
    path: Option<PathDocument>,
    port: Option<i64>,
    status_code: Option<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RewriteDocument {
    hostname: Option<String>,
    path: Option<PathDocument>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PathDocument {
    r#type: String,
    replace_full_path: Option<String>,
    replace_prefix_match: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct MirrorDocument {
    backend_ref: TargetDocument,
    percent: Option<i64>,
    fraction: Option<FractionDocument>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FractionDocument {
    numerator: i64,
    denominator: Option<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct CorsDocument {
    allow_origins: Option<Vec<String>>,
    allow_credentials: Option<bool>,
    allow_methods: Option<Vec<String>>,
    allow_headers: Option<Vec<String>>,
    expose_headers: Option<Vec<String>>,
    max_age: Option<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExtensionDocument {
    group: String,
    kind: String,
    name: String,
}

/// The filters of a rule.
pub(super) fn of_rule(
    documents: &[Value],
    namespace: &Arc<str>,
    matches: &[RouteMatch],
    place: Place,
) -> Result<RuleFilters, BadFilter> {
    check_count(documents, "filters")?;
    let mut all = RuleFilters::default();
    let mut seen = Vec::new();
    for (index, document) in documents.iter().enumerate() {
        let at = format!("filters[{index}]");
        let (kind, body) = shape(document, &at)?;
        let repeats = matches!(kind.as_str(), "RequestMirror" | "ExtensionRef");
        if seen.contains(&kind) && !repeats {
            return Err(BadFilter::new(format!("{at}.type"), INCOMPATIBLE, format!("{kind} is given twice")));
        }
        match (kind.as_str(), place) {
            ("RequestHeaderModifier", _) => all.filters.request = edits(&body, &at)?,
            ("ResponseHeaderModifier", _) => all.filters.response = edits(&body, &at)?,
            ("RequestMirror", _) => all.mirrors.push(mirror(&body, namespace, &at)?),
            ("ExtensionRef", _) => all.extensions.push(extension(&body, &at)?),
            ("RequestRedirect", Place::Http) => all.redirect = Some(redirect(&body, matches, &at)?),
            ("URLRewrite", Place::Http) => all.filters.rewrite = rewrite(&body, matches, &at)?,
            ("CORS", Place::Http) => all.filters.cors = Some(Arc::new(cors(&body, &at)?)),
            _ => return Err(unknown(&kind, &at)),
        }
        seen.push(kind);
    }
    if all.redirect.is_some() && seen.iter().any(|kind| kind == "URLRewrite") {
        let message = "RequestRedirect and URLRewrite exclude each other";
        return Err(BadFilter::new("filters", INCOMPATIBLE, message));
    }
    Ok(all)
}

/// The filters of a backend: only those that can hold for its share alone.
pub(super) fn of_backend(documents: &[Value], at: &str) -> Result<Option<Arc<BackendHeaders>>, BadFilter> {
    if documents.is_empty() {
        return Ok(None);
    }
    let at = format!("{at}.filters");
    check_count(documents, &at)?;
    let mut headers = BackendHeaders::default();
    let mut seen = Vec::new();
    for (index, document) in documents.iter().enumerate() {
        let at = format!("{at}[{index}]");
        let (kind, body) = shape(document, &at)?;
        if seen.contains(&kind) {
            return Err(BadFilter::new(format!("{at}.type"), INCOMPATIBLE, format!("{kind} is given twice")));
        }
        match kind.as_str() {
            "RequestHeaderModifier" => headers.request = edits(&body, &at)?,
            "ResponseHeaderModifier" => headers.response = edits(&body, &at)?,
            _ => {
                let message =
                    format!("{} cannot be applied to one backend only: give it to the rule", decode::quoted(&kind));
                return Err(BadFilter::new(format!("{at}.type"), UNSUPPORTED, message));
            }
        }
        seen.push(kind);
    }
    Ok(Some(Arc::new(headers)))
}

/// What only the whole rule shows: a redirect has no backend.
pub(super) fn check_backends(
    filters: Result<RuleFilters, BadFilter>,
    backends: &[RouteBackend],
) -> Result<RuleFilters, BadFilter> {
    match filters {
        Ok(filters) if filters.redirect.is_some() && !backends.is_empty() => {
            Err(BadFilter::new("backendRefs", INCOMPATIBLE, "a rule that redirects must not have backends"))
        }
        filters => filters,
    }
}

fn check_count(documents: &[Value], at: &str) -> Result<(), BadFilter> {
    if documents.len() > limits::GATEWAY_FILTERS_MAX {
        let message = format!("{} filters are over the limit of {}", documents.len(), limits::GATEWAY_FILTERS_MAX);
        return Err(BadFilter::new(at, UNSUPPORTED, message));
    }
    Ok(())
}

fn unknown(kind: &str, at: &str) -> BadFilter {
    let message = format!("{} is no filter that this version carries out", decode::quoted(kind));
    BadFilter::new(format!("{at}.type"), UNSUPPORTED, message)
}

/// The type of a filter, and what it says. Only the field that goes with the type may be given.
fn shape(document: &Value, at: &str) -> Result<(String, Body), BadFilter> {
    let one: FilterDocument = read(document, at)?;
    let fields = [
        ("RequestHeaderModifier", "requestHeaderModifier", one.request_header_modifier),
        ("ResponseHeaderModifier", "responseHeaderModifier", one.response_header_modifier),
        ("RequestMirror", "requestMirror", one.request_mirror),
        ("RequestRedirect", "requestRedirect", one.request_redirect),
        ("URLRewrite", "urlRewrite", one.url_rewrite),
        ("CORS", "cors", one.cors),
        ("ExternalAuth", "externalAuth", one.external_auth),
        ("ExtensionRef", "extensionRef", one.extension_ref),
    ];
    let mut body = None;
    for (kind, field, value) in fields {
        match value {
            Some(value) if kind == one.r#type => body = Some(Body { field, value }),
            Some(_) => {
                let message = format!("does not go with type {}", decode::quoted(&one.r#type));
                return Err(BadFilter::new(format!("{at}.{field}"), UNSUPPORTED, message));
            }
            None => {}
        }
    }
    match body {
        Some(body) => Ok((one.r#type, body)),
        None if fields_of(&one.r#type) => {
            let message = format!("{} says nothing: its own field must be given", one.r#type);
            Err(BadFilter::new(at, UNSUPPORTED, message))
        }
        None => Err(unknown(&one.r#type, at)),
    }
}

fn fields_of(kind: &str) -> bool {
    matches!(
        kind,
        "RequestHeaderModifier"
            | "ResponseHeaderModifier"
            | "RequestMirror"
            | "RequestRedirect"
            | "URLRewrite"
            | "CORS"
            | "ExternalAuth"
            | "ExtensionRef"
    )
}

/// What a filter says, under its own field.
struct Body {
    field: &'static str,
    value: Value,
}

impl Body {
    fn read<T: DeserializeOwned>(&self, at: &str) -> Result<T, BadFilter> {
        read(&self.value, &self.at(at))
    }

    fn at(&self, at: &str) -> String {
        format!("{at}.{}", self.field)
    }
}

fn read<T: DeserializeOwned>(value: &Value, at: &str) -> Result<T, BadFilter> {
    decode::decode(value).map_err(|error| {
        let dot = if error.field.is_empty() || error.field.starts_with('[') { "" } else { "." };
        BadFilter::new(format!("{at}{dot}{}", error.field), UNSUPPORTED, error.message)
    })
}

fn edits(body: &Body, at: &str) -> Result<HeaderEdits, BadFilter> {
    let HeadersDocument { set, add, remove } = body.read(at)?;
    let at = body.at(at);
    let fields = |documents: Option<Vec<HeaderDocument>>, of: &str| {
        let mut fields: Vec<Field> = Vec::new();
        for (index, one) in documents.unwrap_or_default().into_iter().enumerate() {
            let at = format!("{at}.{of}[{index}]");
            let name = header(&one.name, &format!("{at}.name"))?;
            let value = HeaderValue::from_str(&one.value).map_err(|_| {
                let message = format!("{} is no value of a header (RFC 9110 5.5)", decode::quoted(&one.value));
                BadFilter::new(format!("{at}.value"), UNSUPPORTED, message)
            })?;
            // The first of several counts, as the specification has it.
            if fields.iter().all(|known| known.name != name) {
                fields.push(Field { name, value });
            }
        }
        Ok(fields)
    };
    let (set, add) = (fields(set, "set")?, fields(add, "add")?);
    let remove = remove.unwrap_or_default().into_iter().enumerate();
    let remove: Result<_, BadFilter> =
        remove.map(|(index, name)| header(&name, &format!("{at}.remove[{index}]"))).collect();
    Ok(HeaderEdits { set, add, remove: remove? })
}

/// A header that may be changed: those that frame a message, or that weft itself speaks by, may not.
fn header(name: &str, at: &str) -> Result<HeaderName, BadFilter> {
    let parsed = HeaderName::try_from(name).map_err(|_| {
        BadFilter::new(at, UNSUPPORTED, format!("{} is no name of a header (RFC 9110 5.1)", decode::quoted(name)))
    })?;
    let framing = [
        "connection",
        "content-length",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    if framing.contains(&parsed.as_str()) || parsed.as_str().starts_with("weft-") {
        let message = format!("{parsed} belongs to the connection or to the mesh, and cannot be changed");
        return Err(BadFilter::new(at, UNSUPPORTED, message));
    }
    Ok(parsed)
}

fn redirect(body: &Body, matches: &[RouteMatch], at: &str) -> Result<Redirect, BadFilter> {
    let document: RedirectDocument = body.read(at)?;
    let at = body.at(at);
    let scheme: Option<Arc<str>> = document.scheme.map(Into::into);
    if let Some(scheme) = scheme.as_ref().filter(|scheme| !matches!(&***scheme, "http" | "https")) {
        let message = format!("{} is neither http nor https", decode::quoted(scheme));
        return Err(BadFilter::new(format!("{at}.scheme"), UNSUPPORTED, message));
    }
    let status = document.status_code.unwrap_or(302);
    let Some(status) = u16::try_from(status).ok().filter(|status| matches!(status, 301 | 302 | 303 | 307 | 308)) else {
        let message = format!("{status} is none of 301, 302, 303, 307, 308");
        return Err(BadFilter::new(format!("{at}.statusCode"), UNSUPPORTED, message));
    };
    let mut problems = Vec::new();
    let port = document.port.and_then(|port| refs::port_of(port, &format!("{at}.port"), &mut problems));
    if let Some(problem) = problems.pop() {
        return Err(BadFilter::new(problem.field, UNSUPPORTED, problem.message));
    }
    let host = document.hostname.map(|host| hostname(host, &at)).transpose()?;
    let path = document.path.map(|path| path_change(path, matches, &at)).transpose()?;
    Ok(Redirect { scheme, host, port, path, status })
}

fn rewrite(body: &Body, matches: &[RouteMatch], at: &str) -> Result<Rewrite, BadFilter> {
    let document: RewriteDocument = body.read(at)?;
    let at = body.at(at);
    let host = document.hostname.map(|host| hostname(host, &at)).transpose()?;
    let path = document.path.map(|path| path_change(path, matches, &at)).transpose()?;
    Ok(Rewrite { host, path })
}

fn hostname(host: String, at: &str) -> Result<Arc<str>, BadFilter> {
    if decode::is_subdomain(&host) {
        return Ok(host.into());
    }
    let message = format!("{} is no host name (RFC 1123)", decode::quoted(&host));
    Err(BadFilter::new(format!("{at}.hostname"), UNSUPPORTED, message))
}

fn path_change(document: PathDocument, matches: &[RouteMatch], at: &str) -> Result<PathChange, BadFilter> {
    let at = format!("{at}.path");
    let PathDocument { r#type, replace_full_path, replace_prefix_match } = document;
    let (change, field) = match (r#type.as_str(), replace_full_path, replace_prefix_match) {
        ("ReplaceFullPath", Some(path), None) => (PathChange::Full(path.into()), "replaceFullPath"),
        ("ReplacePrefixMatch", None, Some(path)) => {
            if !matches!(matches, [RouteMatch { path: Some(PathIr::Prefix(_)), .. }]) {
                let message = "needs a rule with exactly one match, by PathPrefix";
                return Err(BadFilter::new(format!("{at}.replacePrefixMatch"), INCOMPATIBLE, message));
            }
            (PathChange::Prefix(path.into()), "replacePrefixMatch")
        }
        ("ReplaceFullPath" | "ReplacePrefixMatch", _, _) => {
            let message = format!("{} goes with its own field, and no other", r#type);
            return Err(BadFilter::new(at, UNSUPPORTED, message));
        }
        (other, _, _) => {
            let message = format!("{} is neither ReplaceFullPath nor ReplacePrefixMatch", decode::quoted(other));
            return Err(BadFilter::new(format!("{at}.type"), UNSUPPORTED, message));
        }
    };
    let (PathChange::Full(path) | PathChange::Prefix(path)) = &change;
    let fits = |byte: u8| byte.is_ascii_graphic() && !b"\"<>\\^`{|}?#".contains(&byte);
    let absolute = path.starts_with('/') || (path.is_empty() && field == "replacePrefixMatch");
    if !absolute || path.len() > limits::GATEWAY_PATH_CHARS_MAX || !path.bytes().all(fits) {
        let message = format!("{} is no absolute path (RFC 3986 3.3)", decode::quoted(path));
        return Err(BadFilter::new(format!("{at}.{field}"), UNSUPPORTED, message));
    }
    Ok(change)
}

fn mirror(body: &Body, namespace: &Arc<str>, at: &str) -> Result<Mirror, BadFilter> {
    let document: MirrorDocument = body.read(at)?;
    let at = body.at(at);
    let bad = |field: String, message: String| Err(BadFilter::new(field, UNSUPPORTED, message));
    let share = match (document.percent, document.fraction) {
        (Some(_), Some(_)) => return bad(at, "percent and fraction exclude each other".to_owned()),
        (None, None) => Fraction::ALL,
        (Some(percent), None) => match u32::try_from(percent) {
            Ok(numerator) if numerator <= 100 => Fraction { numerator, denominator: 100 },
            _ => return bad(format!("{at}.percent"), format!("{percent} is no percentage: it must be 0 to 100")),
        },
        (None, Some(FractionDocument { numerator, denominator })) => {
            let denominator = denominator.unwrap_or(100);
            match (u32::try_from(numerator), u32::try_from(denominator)) {
                (Ok(numerator), Ok(denominator)) if denominator > 0 && numerator <= denominator => {
                    Fraction { numerator, denominator }
                }
                _ => return bad(format!("{at}.fraction"), format!("{numerator}/{denominator} is no part of a whole")),
            }
        }
    };
    let mut problems = Vec::new();
    let field = format!("{at}.backendRef");
    let target = refs::target(document.backend_ref, namespace, &field, &mut problems);
    match problems.pop() {
        Some(problem) => bad(problem.field, problem.message),
        None => Ok(Mirror { field, target, share }),
    }
}

fn extension(body: &Body, at: &str) -> Result<Extension, BadFilter> {
    let ExtensionDocument { group, kind, name } = body.read(at)?;
    Ok(Extension { field: body.at(at), group: group.into(), kind: kind.into(), name: name.into() })
}

fn cors(body: &Body, at: &str) -> Result<Cors, BadFilter> {
    let document: CorsDocument = body.read(at)?;
    let at = body.at(at);
    let texts = |texts: Option<Vec<String>>| texts.unwrap_or_default().into_iter().map(Arc::from).collect::<Vec<_>>();
    let tokens = |names: Option<Vec<String>>, field: &str| {
        let names = texts(names);
        match names.iter().find(|name| &***name != "*" && HeaderName::try_from(&***name).is_err()) {
            Some(name) => {
                let message = format!("{} is no name (RFC 9110 5.6.2)", decode::quoted(name));
                Err(BadFilter::new(format!("{at}.{field}"), UNSUPPORTED, message))
            }
            None => Ok(names),
        }
    };
    let origins = texts(document.allow_origins);
    if let Some(origin) = origins.iter().find(|origin| !is_origin(origin)) {
        let message = format!("{} is no origin: scheme://host[:port], or *", decode::quoted(origin));
        return Err(BadFilter::new(format!("{at}.allowOrigins"), UNSUPPORTED, message));
    }
    let max_age = match document.max_age {
        None => CORS_MAX_AGE,
        Some(seconds) => match u32::try_from(seconds) {
            Ok(seconds) if seconds > 0 => Duration::from_secs(seconds.into()),
            _ => {
                let message = format!("{seconds} is no number of seconds from 1");
                return Err(BadFilter::new(format!("{at}.maxAge"), UNSUPPORTED, message));
            }
        },
    };
    Ok(Cors {
        origins,
        credentials: document.allow_credentials.unwrap_or(false),
        methods: tokens(document.allow_methods, "allowMethods")?,
        headers: tokens(document.allow_headers, "allowHeaders")?,
        expose: tokens(document.expose_headers, "exposeHeaders")?,
        max_age,
    })
}

fn is_origin(origin: &str) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else { return origin == "*" };
    let scheme = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    let (host, port) = authority.rsplit_once(':').map_or((authority, None), |(host, port)| (host, Some(port)));
    let host = host.strip_prefix("*.").unwrap_or(host);
    let host = host == "*" || decode::is_subdomain(&host.to_ascii_lowercase());
    scheme && host && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

/// Puts the filters of a rule with what else it says.
pub(super) fn with_times(
    filters: Result<RuleFilters, BadFilter>,
    add: impl FnOnce(&mut RuleFilters),
) -> Result<RuleFilters, BadFilter> {
    filters.map(|mut filters| {
        add(&mut filters);
        filters
    })
}

/// Whether a rule sends its clients to where they came from.
pub(crate) fn redirects_to_itself(rule: &RouteRule) -> bool {
    let redirect = rule.filters.as_ref().ok().and_then(|filters| filters.redirect.as_ref());
    redirect.is_some_and(|redirect| {
        let Redirect { scheme, host, port, path, .. } = redirect;
        scheme.as_deref().is_none_or(|scheme| scheme == "http") && host.is_none() && port.is_none() && path.is_none()
    })
}
