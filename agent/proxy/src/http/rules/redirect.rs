//! Answers that send a client elsewhere (RFC 9110 15.4).

use http::{HeaderMap, HeaderValue, StatusCode, header, uri::Scheme};
use weft_policy::rule::{Redirect, Rule};

use crate::{
    http::{canonical, exchange::Outgoing, host, rules::edit},
    reply::{LocalReply, Reason},
};

/// The answer. What the rule does not say stays as the client asked for it; `port` is the one that it asked at.
pub(super) fn reply(
    to: &Redirect,
    outgoing: &Outgoing,
    prefix: Option<&str>,
    port: u16,
    rule: &Rule,
) -> Result<LocalReply, LocalReply> {
    let parts = &outgoing.parts;
    let scheme = match (&to.scheme, &outgoing.origin) {
        (Some(scheme), _) => scheme,
        (None, Some((scheme, _))) => scheme.as_str(),
        (None, None) => Scheme::HTTP.as_str(),
    };
    let asked = parts.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let host = to.host.as_deref().unwrap_or_else(|| host::split(asked).0);
    let usual = if scheme.eq_ignore_ascii_case("https") { 443 } else { 80 };
    let port = match (to.port, &to.scheme) {
        (Some(port), _) => port,
        (None, Some(_)) => usual,
        (None, None) => port,
    };
    let uri = match to.path.as_ref().filter(|_| parts.uri.path() != "*") {
        Some(change) => canonical::rewritten(&edit::changed(parts.uri.path(), change, prefix), parts.uri.query())?,
        None => parts.uri.clone(),
    };
    let port = if port == usual { String::new() } else { format!(":{port}") };
    let location = format!("{scheme}://{host}{port}{uri}");
    let location = HeaderValue::from_str(&location)
        .map_err(|_| LocalReply::new(Reason::RuleInvalid, format_args!("{}: its redirect is no URL", rule.name())))?;
    let status = StatusCode::from_u16(to.status).ok().filter(StatusCode::is_redirection).unwrap_or(StatusCode::FOUND);
    let fields = HeaderMap::from_iter([(header::LOCATION, location)]);
    Ok(LocalReply::bare(Reason::Redirect, status, fields, format_args!("{} sends the client elsewhere", rule.name())))
}
