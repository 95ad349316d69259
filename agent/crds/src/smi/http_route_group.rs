//! HTTPRouteGroup, specs.smi-spec.io v1alpha1 to v1alpha4.
//!
//! Two published schemas exclude each other: matches at the root or under `spec`, headers as a map or as an array of maps. Both
//! shapes are read in every version.

use std::{collections::BTreeSet, fmt, sync::Arc};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{
    Deserialize, Deserializer,
    de::{self, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;
use weft_policy::{limits, pattern::Checks};

use crate::{
    decode::{self, FieldError, Problems},
    object::{Kind, Meta},
};

/// What `methods` may hold.
pub const METHODS: [&str; 10] = ["*", "GET", "HEAD", "PUT", "POST", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

/// Conditions on requests, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpRouteGroup {
    /// Metadata.
    pub meta: Meta,
    /// Conditions, of which any is enough.
    pub matches: Vec<HttpMatch>,
}

/// One condition: all that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpMatch {
    /// Name inside the group.
    pub name: Arc<str>,
    /// Anchored at the start of the path.
    pub path_regex: Option<Arc<str>>,
    /// Methods; empty for any.
    pub methods: Vec<Arc<str>>,
    /// Lower-case header names with regexes.
    pub headers: Vec<(Arc<str>, Arc<str>)>,
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
    spec: Option<Spec>,
    matches: Option<Vec<MatchDocument>>,
    #[serde(rename = "status", default)]
    _status: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Spec {
    matches: Option<Vec<MatchDocument>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct MatchDocument {
    name: String,
    path_regex: Option<String>,
    methods: Option<Vec<String>>,
    headers: Option<Headers>,
}

/// Header names and regexes, in the order of the document.
struct Headers(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Headers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Shapes;

        impl<'de> Visitor<'de> for Shapes {
            type Value = Headers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of header names to regexes, or an array of maps with one entry each")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Headers, A::Error> {
                let mut headers = Vec::new();
                while let Some(entry) = map.next_entry::<String, String>()? {
                    headers.push(entry);
                }
                Ok(Headers(headers))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Headers, A::Error> {
                let mut headers = Vec::new();
                while let Some(Headers(one)) = seq.next_element::<Headers>()? {
                    if one.len() != 1 {
                        return Err(de::Error::custom(format_args!(
                            "expected maps with one entry each, found one with {}",
                            one.len()
                        )));
                    }
                    headers.extend(one);
                }
                Ok(Headers(headers))
            }
        }

        deserializer.deserialize_any(Shapes)
    }
}

impl HttpRouteGroup {
    /// Reads one.
    pub(crate) fn new(meta: ObjectMeta, document: &Value, problems: &mut Problems) -> Result<Self, FieldError> {
        let Document { spec, matches, .. } = decode::decode(document)?;
        let meta = Meta::new(Kind::HttpRouteGroup, meta);
        let (field, documents) = match (spec.and_then(|spec| spec.matches), matches) {
            (Some(_), Some(_)) => return Err(FieldError::new("matches", "is given under spec too: give one of them")),
            (Some(matches), None) => ("spec.matches", matches),
            (None, Some(matches)) => ("matches", matches),
            (None, None) => return Err(FieldError::new("spec.matches", "must have at least one match")),
        };
        if documents.is_empty() {
            problems.push(FieldError::new(field, "must have at least one match"));
        } else if documents.len() > limits::MATCHES_PER_ROUTE_MAX {
            let message =
                format!("{} matches are over the limit of {}", documents.len(), limits::MATCHES_PER_ROUTE_MAX);
            problems.push(FieldError::new(field, message));
        }
        let mut names = BTreeSet::new();
        let mut matches = Vec::new();
        // What is over the limit is refused with the object, and not looked at: it may be a megabyte of regexes.
        let mut checks = Checks::default();
        for (index, document) in documents.into_iter().take(limits::MATCHES_PER_ROUTE_MAX).enumerate() {
            let at = format!("{field}[{index}]");
            if document.name.is_empty() {
                problems.push(FieldError::new(format!("{at}.name"), "must not be empty"));
            } else if !names.insert(document.name.clone()) {
                problems.push(FieldError::new(
                    format!("{at}.name"),
                    format!("{:?} is given to two matches", document.name),
                ));
            }
            matches.push(one(document, &at, &mut checks, problems));
        }
        Ok(Self { meta, matches })
    }
}

fn one(document: MatchDocument, at: &str, checks: &mut Checks, problems: &mut Problems) -> HttpMatch {
    let mut check = |field: String, regex: &str| {
        if let Err(error) = checks.check(regex) {
            problems.push(FieldError::new(field, format!("{}: {error}", decode::quoted(regex))));
        }
    };
    if let Some(regex) = &document.path_regex {
        check(format!("{at}.pathRegex"), regex);
    }
    let mut headers = document.headers.map_or_else(Vec::new, |headers| headers.0);
    let given = headers.len();
    headers.truncate(limits::HEADERS_PER_MATCH_MAX);
    for (name, regex) in &headers {
        check(format!("{at}.headers.{name}"), regex);
    }
    for (name, _) in &headers {
        if !is_token(name) {
            problems.push(FieldError::new(format!("{at}.headers"), format!("{name:?} is no HTTP header name")));
        }
    }
    if given > limits::HEADERS_PER_MATCH_MAX {
        let message = format!("{given} headers are over the limit of {}", limits::HEADERS_PER_MATCH_MAX);
        problems.push(FieldError::new(format!("{at}.headers"), message));
    }
    let methods = document.methods.unwrap_or_default();
    for (index, method) in methods.iter().enumerate() {
        if !METHODS.contains(&method.as_str()) {
            let message = format!("{method:?} is none of {}", METHODS.join(", "));
            problems.push(FieldError::new(format!("{at}.methods[{index}]"), message));
        }
    }
    HttpMatch {
        name: document.name.into(),
        path_regex: document.path_regex.map(Into::into),
        methods: methods.into_iter().map(Into::into).collect(),
        headers: headers.into_iter().map(|(name, regex)| (name.to_ascii_lowercase().into(), regex.into())).collect(),
    }
}

/// RFC 9110, 5.6.2.
fn is_token(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}
