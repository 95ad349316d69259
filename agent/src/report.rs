//! Tables for people.

use comfy_table::{Table, presets};
use serde::Serialize;
use serde_json::Value;

use crate::{
    admin::api::{Detected, Identity, MutualTls, Pod, PodAccess, Route, Service, ServiceRoutes, Status},
    capture::CleanupReport,
    config::OutputFormat,
};

/// A value as JSON, for programs.
#[must_use]
pub fn json(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).unwrap_or_else(|error| format!("{{\"error\": \"{error}\"}}"))
}

/// An empty table in the house's style: columns and no lines, so that it can be cut and grepped.
pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.iter().copied());
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

fn or_dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

/// `weft identity`.
#[must_use]
pub fn identity(identity: &Identity) -> String {
    let Some(authority) = &identity.authority else {
        return "there is no authority (--ca-address): pods have no identity, and there is no mutual TLS between nodes"
            .to_owned();
    };
    let roots = identity.bundle_sha256.as_ref().map_or_else(
        || "none yet".to_owned(),
        |hash| format!("{} ({})", identity.roots, hash.get(..16).unwrap_or(hash)),
    );
    let mut out = format!("trust domain {}  authority {authority}  roots {roots}\n", identity.trust_domain);
    if let Some(problem) = &identity.problem {
        out.push_str(&format!("roots: {problem}\n"));
    }
    let mut rows = table(&["SERVICE ACCOUNT", "PODS", "SERIAL", "ENDS IN", "ASKED FOR IN", "PROBLEM"]);
    for row in &identity.accounts {
        rows.add_row([
            format!("{}/{}", row.namespace, row.service_account),
            row.pods.to_string(),
            row.serial.clone().unwrap_or_else(|| "-".to_owned()),
            row.expires_in_s.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds} s")),
            format!("{} s", row.asks_in_s),
            or_dash(row.problem.as_deref().unwrap_or_default()).to_owned(),
        ]);
    }
    out.push_str(&rows.to_string());
    out
}

/// `weft status`.
#[must_use]
pub fn status(status: &Status) -> String {
    let state = match (status.draining, status.ready) {
        (true, _) => "draining",
        (false, true) => "ready",
        (false, false) => "starting",
    };
    let captured = status.pods.iter().filter(|pod| pod.captured).count();
    let mut out = format!(
        "node {}  {state}  pid {}  version {}  up {} s  generation {}  workers {} (slowest {} ms ago)\npods {captured} of {} captured\n",
        status.node,
        status.pid,
        status.version,
        status.uptime_s,
        status.generation,
        status.workers,
        status.heartbeat_age_ms,
        status.pods.len()
    );
    let identity =
        status.identity.as_deref().unwrap_or("off, no authority (--ca-address): there is no mutual TLS between nodes");
    out.push_str(&format!("identity {identity}\n{}", mutual_tls(&status.mtls, status.pods.len())));
    if !status.pods.is_empty() {
        let mut pods = table(&[
            "NAMESPACE",
            "POD",
            "CAPTURED",
            "FAIL MODE",
            "ACCESS",
            "OUT",
            "IN",
            "DIRECT",
            "REFUSED",
            "BEFORE",
            "ADDRESSES",
        ]);
        for pod in &status.pods {
            let stat = |name: &str| pod.stats.get(name).copied().unwrap_or(0);
            let captured = match &pod.reason {
                None => "yes".to_owned(),
                Some(reason) => format!("no: {reason}"),
            };
            pods.add_row([
                pod.namespace.clone(),
                pod.name.clone(),
                captured,
                fail_mode(pod),
                access(pod),
                stat("outbound_captured").to_string(),
                stat("inbound_captured").to_string(),
                (stat("outbound_direct") + stat("inbound_direct")).to_string(),
                (stat("outbound_refused") + stat("inbound_refused") + stat("outbound_denied")).to_string(),
                pod.connections_before_capture.to_string(),
                pod.ips.join(","),
            ]);
        }
        out.push_str(&format!("\n{pods}\n"));
    }
    if !status.diagnostics.is_empty() {
        let mut findings = table(&["SEVERITY", "OBJECT", "FIELD", "CODE", "WHAT"]);
        for finding in &status.diagnostics {
            let object = format!("{} {}/{}", finding.object.kind, finding.object.namespace, finding.object.name);
            findings.add_row([&finding.severity, &object, or_dash(&finding.field), &finding.code, &finding.message]);
        }
        out.push_str(&format!("\n{findings}\n"));
    }
    if !status.files.is_empty() {
        let mut files = table(&["FILE", "DOCUMENT", "LINE", "OBJECT", "FIELD", "WHAT"]);
        for problem in &status.files {
            files.add_row([
                &problem.file,
                &problem.document.to_string(),
                &problem.line.to_string(),
                or_dash(&problem.object),
                or_dash(&problem.field),
                &problem.message,
            ]);
        }
        out.push_str(&format!("\n{files}\n"));
    }
    if !status.sources.is_empty() {
        let mut sources = table(&["KIND", "VERSION", "STATE", "OBJECTS", "STALE S", "LISTS", "ERRORS", "LAST ERROR"]);
        for source in &status.sources {
            sources.add_row([
                source.kind.clone(),
                or_dash(&source.version).to_owned(),
                source.state.clone(),
                source.objects.to_string(),
                format!("{:.0}", source.stale_s),
                source.relists.to_string(),
                source.errors.values().sum::<u64>().to_string(),
                or_dash(&source.last_error).to_owned(),
            ]);
        }
        out.push_str(&format!("\n{sources}\n"));
    }
    let troubles: Vec<_> = status.capture.counters.iter().filter(|(_, count)| **count > 0).collect();
    for (name, count) in troubles {
        out.push_str(&format!("\ncapture: {name} happened {count} times"));
    }
    for program in &status.capture.foreign_programs {
        out.push_str(&format!("\ncapture: another program runs ahead of weft: {program}"));
    }
    out.trim_end().to_owned()
}

/// What pods take from other nodes, and which of this node's other nodes are told to take mutual TLS.
fn mutual_tls(mtls: &MutualTls, pods: usize) -> String {
    let names = mtls.strict.iter().take(STRICT_SHOWN).map(|strict| match &*strict.by.kind {
        "Namespace" => strict.namespace.clone(),
        _ => format!("{} (by {} {})", strict.namespace, strict.by.kind, strict.by.name),
    });
    let names = names.collect::<Vec<_>>().join(", ");
    let strict = match (mtls.strict.len(), mtls.strict.len().saturating_sub(STRICT_SHOWN)) {
        (0, _) => "no namespace is strict".to_owned(),
        (_, 0) => format!("strict: {names}"),
        (_, more) => format!("strict: {names} and {more} more"),
    };
    let mut out = format!(
        "mutual TLS between nodes: {}, {strict}; {} of {pods} pods published as taking it\n",
        or_dash(&mtls.default),
        mtls.published
    );
    if !mtls.withheld.is_empty() {
        let mut rows = table(&["NAMESPACE", "POD", "NOT PUBLISHED", "WHY"]);
        for pod in &mtls.withheld {
            rows.add_row([&pod.namespace, &pod.name, &pod.reason, &pod.message]);
        }
        out.push_str(&format!("\n{rows}\n"));
    }
    out
}

/// Strict namespaces that are named before the rest is counted.
const STRICT_SHOWN: usize = 10;

/// What becomes of a pod's connections while the agent is gone, and why not yet.
fn fail_mode(pod: &Pod) -> String {
    match &pod.fail_mode_error {
        None => pod.fail_mode.clone(),
        Some(error) => format!("{}, not in force: {error}", pod.fail_mode),
    }
}

/// What decides who may reach a pod: the TrafficTargets that select it, or else its stance.
fn access(pod: &Pod) -> String {
    if pod.targets.is_empty() {
        return format!("{} all", pod.stance);
    }
    // A target is always of its destination's namespace.
    let names: Vec<&str> = pod.targets.iter().take(TARGETS_SHOWN).map(|target| target.name.as_str()).collect();
    match pod.targets.len().saturating_sub(TARGETS_SHOWN) {
        0 => format!("by {}", names.join(",")),
        more => format!("by {} and {more} more", names.join(",")),
    }
}

/// TrafficTargets of one pod that are named before the rest is counted.
const TARGETS_SHOWN: usize = 3;

/// `weft services`.
#[must_use]
pub fn services(services: &[Service]) -> String {
    let mut table = table(&[
        "NAMESPACE",
        "SERVICE",
        "ADDRESSES",
        "PORT",
        "PROTOCOL",
        "DETECTED",
        "READY",
        "DRAINING",
        "BALANCE",
        "ROUTES",
    ]);
    for service in services {
        let addresses = if service.headless { "headless".to_owned() } else { service.addresses.join(",") };
        for port in &service.ports {
            let number =
                if port.name.is_empty() { port.port.to_string() } else { format!("{} ({})", port.port, port.name) };
            table.add_row([
                &service.namespace,
                &service.name,
                &addresses,
                &number,
                &port.protocol,
                &detected(&port.detected),
                &port.ready.to_string(),
                &port.draining.to_string(),
                &match &port.policy {
                    Some(policy) => format!("{} ({policy})", port.balance),
                    None => port.balance.clone(),
                },
                &service.routes.to_string(),
            ]);
        }
    }
    table.to_string()
}

/// `http (client first), 1234 connections`, one line for each thing that a port's connections turned out to be.
fn detected(detected: &[Detected]) -> String {
    let line = |seen: &Detected| {
        let connections = if seen.connections == 1 { "connection" } else { "connections" };
        format!("{} ({} first), {} {connections}", seen.protocol, seen.first, seen.connections)
    };
    or_dash(&detected.iter().map(line).collect::<Vec<_>>().join("\n")).to_owned()
}

/// `weft routes`.
#[must_use]
pub fn routes(services: &[ServiceRoutes]) -> String {
    let mut table = table(&["SERVICE", "PORT", "ORIGIN", "MATCH", "BACKENDS", "ENGINE"]);
    for service in services {
        for route in &service.routes {
            let backends: Vec<_> = route
                .backends
                .iter()
                .map(|b| {
                    format!(
                        "{}:{} weight {} now {:.1}% ready {}",
                        b.service, b.port, b.weight, b.share_percent, b.ready
                    )
                })
                .collect();
            let matches = match &route.matches {
                None => "everything else".to_owned(),
                Some(matches) if matches.is_empty() => "nothing".to_owned(),
                Some(matches) => matches.join("\nor "),
            };
            table.add_row([
                format!("{}/{}", service.namespace, service.service),
                format!("{} {}", service.port, service.protocol),
                origin_of(route),
                matches,
                does(route, backends),
                if route.matches.is_none() { String::new() } else { route.engine.clone() },
            ]);
        }
    }
    table.to_string()
}

/// The object, its rule, and whom it is for.
fn origin_of(route: &Route) -> String {
    let mut text = format!("{} {}", route.origin.kind, route.origin.name);
    if !route.rule.is_empty() {
        text.push_str(&format!(", {}", route.rule));
    }
    if let Some(clients) = &route.clients {
        text.push_str(&format!("\nfor clients of {clients}"));
    }
    text
}

/// Where requests go, and what is done to them.
fn does(route: &Route, mut backends: Vec<String>) -> String {
    if backends.is_empty() && route.does.is_empty() {
        backends.push("none: answers 503".to_owned());
    }
    backends.extend(route.does.iter().cloned());
    backends.join("\n")
}

/// `weft access`.
#[must_use]
pub fn access_of(pods: &[PodAccess]) -> String {
    let mut table = table(&["POD", "ACCOUNT", "BY", "SOURCES", "TCP", "UDP", "REQUESTS", "ENGINE"]);
    let ports = |ports: &Option<Vec<u16>>| match ports {
        None => "all".to_owned(),
        Some(ports) => or_dash(&ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")).to_owned(),
    };
    for pod in pods {
        let name = format!("{}/{}", pod.namespace, pod.name);
        if !pod.meshed || pod.targets.is_empty() {
            let by = match &pod.stance_origin {
                _ if !pod.meshed => "nothing: not captured".to_owned(),
                Some(origin) => format!("{} {}", origin.kind, origin.name),
                None => "default".to_owned(),
            };
            let (sources, said) =
                if !pod.meshed || pod.stance == "allow" { ("anybody", "all") } else { ("nobody", "-") };
            table.add_row([name.as_str(), &pod.account, &by, sources, said, said, "", ""]);
            continue;
        }
        for target in &pod.targets {
            let mut sources = target.accounts.clone();
            if !target.pods.is_empty() {
                sources.push(format!("{} pods by label", target.pods.len()));
            }
            let sources = if sources.is_empty() { "nobody".to_owned() } else { sources.join("\n") };
            let requests = match &target.requests {
                None => String::new(),
                Some(requests) if requests.is_empty() => "none".to_owned(),
                Some(requests) => requests.join("\nor "),
            };
            table.add_row([
                name.as_str(),
                &pod.account,
                &format!("{} {}", target.origin.kind, target.origin.name),
                &sources,
                &ports(&target.tcp_ports),
                &ports(&target.udp_ports),
                &requests,
                target.engine.as_deref().unwrap_or_default(),
            ]);
        }
    }
    table.to_string()
}

/// Columns of `weft flows`, with the fields behind them.
const FLOW_COLUMNS: [(&str, &str); 14] = [
    ("DIRECTION", "direction"),
    ("SOURCE", "source"),
    ("DESTINATION", "destination"),
    ("BACKEND", "backend"),
    ("ENDPOINT", "endpoint"),
    ("PROTOCOL", "protocol"),
    ("ENCRYPTION", "encryption"),
    ("PEER IDENTITY", "peer_identity"),
    ("SERVER NAME", "server_name"),
    ("ALPN", "alpn"),
    ("AGE MS", "age_ms"),
    ("REQUESTS", "requests"),
    ("SENT", "bytes_sent"),
    ("RECEIVED", "bytes_received"),
];

/// `weft flows`.
#[must_use]
pub fn flows(flows: &[Value]) -> String {
    let mut table = table(&FLOW_COLUMNS.map(|(title, _)| title));
    for flow in flows {
        let cell = |name: &str| match flow.get(name) {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Array(list)) if !list.is_empty() => {
                list.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",")
            }
            Some(Value::Null | Value::Array(_)) | None => "-".to_owned(),
            Some(other) => other.to_string(),
        };
        table.add_row(FLOW_COLUMNS.map(|(_, field)| cell(field)));
    }
    table.to_string()
}

/// What `weft-agent cleanup` did.
#[must_use]
pub fn cleanup(report: &CleanupReport, files: &[std::path::PathBuf], format: OutputFormat) -> String {
    let files: Vec<String> = files.iter().map(|path| path.display().to_string()).collect();
    let foreign: Vec<String> = report.foreign.iter().map(|path| path.display().to_string()).collect();
    if format == OutputFormat::Json {
        return json(&serde_json::json!({
            "complete": report.complete(), "pods": report.pods, "pods_without_netns": report.pods_without_netns, "strays": report.strays,
            "links": report.links, "maps": report.maps, "foreign": foreign, "files": files, "errors": report.errors,
        }));
    }
    let mut out = format!(
        "removed {} links and {} maps, and restored {} pods",
        report.links,
        report.maps,
        report.pods + report.strays
    );
    if report.pods_without_netns > 0 {
        out.push_str(&format!("\n{} pods were gone already", report.pods_without_netns));
    }
    for path in &files {
        out.push_str(&format!("\nthe CNI plugin is out of {path}"));
    }
    for path in &foreign {
        out.push_str(&format!("\nleft alone, because it is not weft's: {path}"));
    }
    for error in &report.errors {
        out.push_str(&format!("\nnot undone: {error}"));
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn access_names_the_targets_or_else_the_stance() {
        let pod = |stance: &str, targets: &[&str]| -> Pod {
            let target = |name: &&str| json!({"kind": "TrafficTarget", "namespace": "shop", "name": name});
            serde_json::from_value(json!({
                "namespace": "shop", "name": "web", "uid": "u", "ips": [], "captured": true, "reason": null, "fail_mode": "open",
                "stance": stance, "targets": targets.iter().map(target).collect::<Vec<_>>(),
                "connections_before_capture": 0, "stats": {},
            }))
            .unwrap()
        };
        for (pod, expected) in [
            (pod("allow", &[]), "allow all"),
            (pod("deny", &[]), "deny all"),
            (pod("allow", &["a", "b"]), "by a,b"),
            (pod("allow", &["a", "b", "c", "d", "e"]), "by a,b,c and 2 more"),
        ] {
            assert_eq!(access(&pod), expected);
        }
    }

    #[test]
    fn a_fail_mode_that_is_not_in_force_says_why() {
        let pod = |error: Option<&str>| -> Pod {
            serde_json::from_value(json!({
                "namespace": "shop", "name": "web", "uid": "u", "ips": [], "captured": true, "reason": null, "fail_mode": "closed",
                "fail_mode_error": error, "connections_before_capture": 0, "stats": {},
            }))
            .unwrap()
        };
        assert_eq!(fail_mode(&pod(None)), "closed");
        assert_eq!(fail_mode(&pod(Some("cannot write map PODS"))), "closed, not in force: cannot write map PODS");
    }

    #[test]
    fn mutual_tls_names_strict_namespaces_and_pods_that_are_withheld() {
        let by = |kind: &str, name: &str| json!({"kind": kind, "namespace": "", "name": name});
        let mtls = |strict: Vec<Value>, withheld: Value| -> MutualTls {
            serde_json::from_value(
                json!({"default": "permissive", "strict": strict, "published": 2, "withheld": withheld}),
            )
            .unwrap()
        };
        let none = mutual_tls(&mtls(Vec::new(), json!([])), 2);
        assert_eq!(
            none,
            "mutual TLS between nodes: permissive, no namespace is strict; 2 of 2 pods published as taking it\n"
        );
        let many = (0..12).map(|n| json!({"namespace": format!("n{n}"), "by": by("Namespace", "n")}));
        let text = mutual_tls(&mtls(many.collect(), json!([])), 2);
        assert!(text.contains("strict: n0, n1,") && text.contains("n9 and 2 more;"), "{text}");
        let withheld = json!([{"namespace": "shop", "name": "web", "reason": "unproved", "message": "reset"}]);
        let text = mutual_tls(&mtls(vec![json!({"namespace": "shop", "by": by("Flag", "--x")})], withheld), 3);
        assert!(text.contains("shop (by Flag --x); 2 of 3 pods"), "{text}");
        let row: Vec<&str> = text.lines().last().unwrap().split_whitespace().collect();
        assert_eq!(row, ["shop", "web", "unproved", "reset"]);
    }
}
