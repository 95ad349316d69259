//! What a rule does, in words: for `weft routes` and `weft explain`.

use crate::rule::{
    AbortHow, ActionIr, BackendHeaders, Fault, Filters, Fraction, HeaderEdits, PathChange, Redirect, Retry, Rewrite,
    RuleIr,
};

impl RuleIr {
    /// All that it does beside forwarding, one thing each.
    #[must_use]
    pub fn told(&self) -> Vec<String> {
        let mut all = Vec::new();
        match &self.action {
            ActionIr::Redirect(redirect) => all.push(self::redirect(redirect)),
            ActionIr::Refuse(refusal) => all.push(format!("answers {}: {refusal}", refusal.status().as_u16())),
            ActionIr::Forward { backends, .. } => {
                for backend in backends {
                    let of = format!("Service {}", backend.service);
                    if let Some(why) = &backend.invalid {
                        all.push(format!("answers 500 for the share of {of}: {why}"));
                    }
                    if let Some(headers) = &backend.headers {
                        let BackendHeaders { request, response } = &**headers;
                        all.extend(edits(request, &format!("request to {of}")));
                        all.extend(edits(response, &format!("response of {of}")));
                    }
                }
            }
        }
        if let Some(filters) = &self.filters {
            all.extend(self::filters(filters));
        }
        for mirror in &self.mirrors {
            all.push(format!("copies {} of requests to Service {}", share(mirror.share), mirror.backend.service));
        }
        all
    }
}

fn filters(filters: &Filters) -> Vec<String> {
    let Filters { request, response, rewrite, cors, timeouts, retry, fault } = filters;
    let mut all = edits(request, "request");
    all.extend(edits(response, "response"));
    all.extend(self::rewrite(rewrite));
    if let Some(cors) = cors {
        all.push(format!("answers preflights (CORS) of {}", cors.origins.join(", ")));
    }
    if let Some(time) = timeouts.request {
        all.push(format!("gives up after {time:?} (504)"));
    }
    if let Some(time) = timeouts.backend_request {
        all.push(format!("gives each try up after {time:?}"));
    }
    all.extend(retry.as_deref().map(self::retry));
    all.extend(fault.as_deref().into_iter().flat_map(self::fault));
    all
}

fn edits(edits: &HeaderEdits, of: &str) -> Vec<String> {
    let mut all = Vec::new();
    for (verb, fields) in [("sets", &edits.set), ("adds", &edits.add)] {
        for field in fields {
            let value = String::from_utf8_lossy(field.value.as_bytes());
            all.push(format!("{verb} {}: {value} ({of})", field.name));
        }
    }
    all.extend(edits.remove.iter().map(|name| format!("removes {name} ({of})")));
    all
}

fn redirect(redirect: &Redirect) -> String {
    let Redirect { scheme, host, port, path, status } = redirect;
    let mut to = Vec::new();
    to.extend(scheme.as_ref().map(|scheme| format!("scheme {scheme}")));
    to.extend(host.as_ref().map(|host| format!("host {host}")));
    to.extend(port.map(|port| format!("port {port}")));
    to.extend(path.as_ref().map(self::path));
    format!("redirects ({status}) to {}", if to.is_empty() { "the same place".to_owned() } else { to.join(", ") })
}

fn rewrite(rewrite: &Rewrite) -> Option<String> {
    let host = rewrite.host.as_ref().map(|host| format!("host {host}"));
    let to: Vec<String> = host.into_iter().chain(rewrite.path.as_ref().map(path)).collect();
    (!to.is_empty()).then(|| format!("rewrites to {}", to.join(", ")))
}

fn path(change: &PathChange) -> String {
    match change {
        PathChange::Full(path) => format!("path {path}"),
        PathChange::Prefix(prefix) => format!("path {prefix} in place of the prefix"),
    }
}

fn retry(retry: &Retry) -> String {
    let codes: Vec<String> = retry.codes.iter().map(ToString::to_string).collect();
    let after = if codes.is_empty() { String::new() } else { format!(" after {}", codes.join(", ")) };
    format!("tries {} more times{after}, first after {:?}", retry.attempts, retry.backoff)
}

fn fault(fault: &Fault) -> Vec<String> {
    let by = format!(" ({})", fault.origin);
    let mut all = Vec::new();
    if let Some(delay) = fault.delay {
        all.push(format!("delays {} of requests by {:?}{by}", share(delay.share), delay.fixed));
    }
    if let Some(abort) = fault.abort {
        let how = match abort.how {
            AbortHow::Http(status) => format!("answers {status} to"),
            AbortHow::Grpc(status) => format!("answers gRPC status {status} to"),
            AbortHow::Reset => "resets".to_owned(),
        };
        all.push(format!("{how} {} of requests{by}", share(abort.share)));
    }
    all
}

fn share(share: Fraction) -> String {
    if share == Fraction::ALL {
        return "all".to_owned();
    }
    format!("{:.1} %", f64::from(share.numerator) * 100.0 / f64::from(share.denominator.max(1)))
}
