//! What scripts of other origins may do with the answers of a Service (Fetch Standard, 3.2). A preflight is answered by the mesh; what a
//! Service says itself is replaced.

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode,
    header::{
        ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
        ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
        ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
    },
    request,
};
use weft_policy::rule::Cors;

use crate::reply::{LocalReply, Reason};

/// Fields by which a Service would say the same.
const SAID: [HeaderName; 6] = [
    ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_ALLOW_CREDENTIALS,
    ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_HEADERS,
    ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_EXPOSE_HEADERS,
];
const ANY: &str = "*";

/// A request that a script of some origin has made.
#[derive(Debug)]
pub(super) struct Cross {
    /// The origin, if it may.
    allowed: Option<HeaderValue>,
}

impl Cross {
    /// `None` if no script has.
    pub(super) fn new(cors: &Cors, headers: &HeaderMap) -> Option<Self> {
        let origin = headers.get(ORIGIN)?;
        let text = origin.to_str().unwrap_or_default();
        let allowed = cors.origins.iter().any(|pattern| is_origin(pattern, text));
        Some(Self { allowed: allowed.then(|| origin.clone()) })
    }

    /// The answer to a preflight, if the request is one. It is the same for origins that may not, with nothing allowed.
    pub(super) fn preflight(&self, cors: &Cors, parts: &request::Parts) -> Option<LocalReply> {
        let method = parts.headers.get(ACCESS_CONTROL_REQUEST_METHOD).filter(|_| parts.method == Method::OPTIONS)?;
        let mut fields = HeaderMap::new();
        self.allow_origin(cors, &mut fields);
        fields.append(VARY, HeaderValue::from_static("access-control-request-method, access-control-request-headers"));
        if self.allowed.is_some() {
            list(&mut fields, ACCESS_CONTROL_ALLOW_METHODS, &cors.methods, Some(method));
            let asked = parts.headers.get(ACCESS_CONTROL_REQUEST_HEADERS);
            list(&mut fields, ACCESS_CONTROL_ALLOW_HEADERS, &cors.headers, asked);
            fields.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from(cors.max_age.as_secs()));
        }
        Some(LocalReply::bare(Reason::CorsPreflight, StatusCode::NO_CONTENT, fields, "a preflight"))
    }

    /// Says in a response what the script may see of it.
    pub(super) fn respond(&self, cors: &Cors, fields: &mut HeaderMap) {
        for name in SAID {
            fields.remove(name);
        }
        let all: Vec<&str> = fields.keys().map(HeaderName::as_str).collect();
        // With credentials `*` is the name of a field (Fetch Standard, 3.2.5), so all of them are named.
        let named = HeaderValue::from_str(&all.join(", ")).ok().filter(|_| cors.credentials);
        self.allow_origin(cors, fields);
        if self.allowed.is_some() {
            list(fields, ACCESS_CONTROL_EXPOSE_HEADERS, &cors.expose, named.as_ref());
        }
    }

    fn allow_origin(&self, cors: &Cors, fields: &mut HeaderMap) {
        let any = !cors.credentials && cors.origins.iter().any(|pattern| **pattern == *ANY);
        if !any {
            fields.append(VARY, HeaderValue::from_static("origin"));
        }
        let Some(origin) = &self.allowed else { return };
        fields.insert(ACCESS_CONTROL_ALLOW_ORIGIN, if any { HeaderValue::from_static(ANY) } else { origin.clone() });
        if cors.credentials {
            fields.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
    }
}

/// Says what is allowed; instead of anything, what was asked for.
fn list<T: AsRef<str>>(fields: &mut HeaderMap, name: HeaderName, allowed: &[T], asked: Option<&HeaderValue>) {
    let any = allowed.iter().any(|item| item.as_ref() == ANY);
    let value = if any {
        Some(asked.cloned().unwrap_or(HeaderValue::from_static(ANY)))
    } else {
        let all: Vec<&str> = allowed.iter().map(AsRef::as_ref).collect();
        HeaderValue::from_str(&all.join(", ")).ok().filter(|value| !value.is_empty())
    };
    if let Some(value) = value {
        fields.insert(name, value);
    }
}

/// Whether an origin is what a pattern says: any, this one, or one whose host ends like that.
fn is_origin(pattern: &str, origin: &str) -> bool {
    if pattern == ANY || pattern.eq_ignore_ascii_case(origin) {
        return true;
    }
    let (Some((scheme, host)), Some((other_scheme, other_host))) =
        (pattern.split_once("://"), origin.split_once("://"))
    else {
        return false;
    };
    if !scheme.eq_ignore_ascii_case(other_scheme) {
        return false;
    }
    let Some(end) = host.strip_prefix('*') else { return false };
    let Some(front) = other_host.len().checked_sub(end.len()) else { return false };
    // `*` stands for at least one character of a name.
    front > 0
        && !other_host.starts_with('.')
        && other_host.get(front..).is_some_and(|rest| rest.eq_ignore_ascii_case(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_told_from_those_that_look_alike() {
        for (pattern, origin, is) in [
            ("*", "https://a.example", true),
            ("https://a.example", "https://a.example", true),
            ("https://a.example", "https://A.example", true),
            ("https://a.example", "http://a.example", false),
            ("https://a.example", "https://a.example:8443", false),
            ("https://a.example", "https://a.example.evil", false),
            ("https://*.example.com", "https://a.example.com", true),
            ("https://*.example.com", "https://a.b.example.com", true),
            ("https://*.example.com", "https://example.com", false),
            ("https://*.example.com", "https://.example.com", false),
            ("https://*.example.com", "https://a.example.com:8443", false),
            ("https://*.example.com", "https://a.example.com.evil", false),
            ("https://*.example.com", "https://notexample.com", false),
            ("https://*", "https://a", true),
            ("https://a.example", "null", false),
        ] {
            assert_eq!(is_origin(pattern, origin), is, "{pattern} {origin}");
        }
    }
}
