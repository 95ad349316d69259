//! Changes of the fields of a message, and of what a request is for.

use http::{HeaderMap, HeaderValue, header, uri::Authority};
use weft_policy::rule::{HeaderEdits, PathChange, Rewrite, is_protected};

use crate::{
    http::{canonical, exchange::Outgoing, host},
    reply::{LocalReply, Reason},
};

/// Sets, then adds, then removes. What frames a message, or is the mesh's own, stays.
pub(super) fn fields(headers: &mut HeaderMap, edits: &HeaderEdits) {
    for field in edits.set.iter().filter(|field| !is_protected(&field.name)) {
        headers.insert(field.name.clone(), field.value.clone());
    }
    for field in edits.add.iter().filter(|field| !is_protected(&field.name)) {
        headers.append(field.name.clone(), field.value.clone());
    }
    for name in edits.remove.iter().filter(|name| !is_protected(name)) {
        headers.remove(name);
    }
}

/// Changes host and path of a request. What is authorized and forwarded is what comes of it.
pub(super) fn rewrite(outgoing: &mut Outgoing, rewrite: &Rewrite, prefix: Option<&str>) -> Result<(), LocalReply> {
    if let Some(host) = &rewrite.host {
        let invalid =
            |why: &str| LocalReply::new(Reason::RuleInvalid, format_args!("the host {host:?} of a rule: {why}"));
        let host = host::canonical(host::check(host.as_bytes()).map_err(invalid)?);
        if let Some((_, authority)) = &mut outgoing.origin {
            *authority = Authority::try_from(&*host).map_err(|_| invalid("it is no authority"))?;
        }
        let value = HeaderValue::from_str(&host).map_err(|_| invalid("it is not text"))?;
        outgoing.parts.headers.insert(header::HOST, value);
    }
    let uri = &outgoing.parts.uri;
    // A request for the server as a whole (`OPTIONS *`) has no path.
    if let Some(change) = rewrite.path.as_ref().filter(|_| uri.path() != "*") {
        outgoing.parts.uri = canonical::rewritten(&changed(uri.path(), change, prefix), uri.query())?;
    }
    Ok(())
}

/// A path after a change (Gateway API, `HTTPPathModifier`): what follows a prefix that is replaced begins with a slash, if there is anything.
pub(super) fn changed(path: &str, change: &PathChange, prefix: Option<&str>) -> String {
    let whole = match change {
        PathChange::Full(whole) => whole.to_string(),
        PathChange::Prefix(instead) => {
            let rest = path.strip_prefix(prefix.unwrap_or_default().trim_end_matches('/')).unwrap_or(path);
            format!("{}{rest}", instead.trim_end_matches('/'))
        }
    };
    if whole.starts_with('/') { whole } else { format!("/{whole}") }
}

#[cfg(test)]
mod tests {
    use http::HeaderName;
    use weft_policy::rule::Field;

    use super::*;

    #[test]
    fn prefixes_are_replaced_as_the_specification_says() {
        for (path, prefix, instead, expect) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            ("/bar", "", "/xyz", "/xyz/bar"),
        ] {
            let change = PathChange::Prefix(instead.into());
            assert_eq!(changed(path, &change, Some(prefix)), expect, "{path} {prefix} {instead}");
        }
        assert_eq!(changed("/a/b", &PathChange::Full("/c".into()), None), "/c");
        assert_eq!(changed("/a", &PathChange::Full("".into()), None), "/");
    }

    #[test]
    fn fields_that_frame_or_are_the_meshs_own_are_not_changed() {
        let mut headers = HeaderMap::new();
        for name in
            ["content-length", "transfer-encoding", "connection", "host", "weft-reason", "x-forwarded-client-cert"]
        {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static("1"));
        }
        let before = headers.clone();
        let field = |name: &HeaderName| Field { name: name.clone(), value: HeaderValue::from_static("2") };
        let all: Vec<_> = headers.keys().map(field).collect();
        let edits = HeaderEdits { set: all.clone(), add: all, remove: headers.keys().cloned().collect() };
        fields(&mut headers, &edits);
        assert_eq!(headers, before);
    }
}
