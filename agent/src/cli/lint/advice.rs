//! The rule that a finding is about, and what to do.

use serde_json::Value;

use super::strict::{Problem, newest};

/// Findings about objects that may well exist outside of the files.
pub(super) fn is_reference(code: &str) -> bool {
    matches!(
        code,
        "RootNotFound"
            | "BackendNotFound"
            | "RouteGroupNotFound"
            | "RouteNotFound"
            | "IdentityBindingNotFound"
            | "DestinationNotFound"
            | "TargetNotFound"
            | "NoMatchingParent"
            | "RefNotPermitted"
    )
}

/// What to do about what lowering and compilation find.
pub(super) fn of_diagnostic(code: &str) -> &'static str {
    match code {
        "RootNotFound" => "create the Service, or name one that exists in spec.service",
        "BackendNotFound" => "create the Service, or take the backend away",
        "BackendPortMismatch" => "give the backend Service a port of the same number or name as the root's",
        "BackendIsRoot" => "give the root a Service of its own if its pods are not the ones that are meant",
        "RouteGroupNotFound" => "create the HTTPRouteGroup in the same namespace, or correct the name",
        "RouteNotFound" => "create the route in the target's own namespace, or correct the name",
        "MatchNotFound" => "name a match that the HTTPRouteGroup has, or leave matches out for all of them",
        "IdentityBindingNotFound" | "DestinationNotFound" => {
            "create the IdentityBinding in the same namespace, or correct the name"
        }
        "IncompatibleFilters" => "keep one of the filters, or spread them over several rules",
        "InvalidKind" => "name a Service",
        "NoMatchingParent" => "create the Service, or name a port that it has",
        "RedirectsToItself" => "give the redirect a host, a port, a path or another scheme",
        "RefNotPermitted" => "create a ReferenceGrant in the namespace of the Service",
        "UnsupportedValue" => "take it away, or say it in another way",
        "PortMismatch" => "give the port in the TCPRoute alone",
        "EmptyMatches" => "leave matches out for all of them",
        "SpiffeNotProven" => "name service accounts",
        "TooManyTargets" => "put what belongs to one destination into fewer TrafficTargets",
        "Conflicted" => {
            "keep one kind of object for the Service: TrafficSplits, HTTPRoutes or GRPCRoutes; of TrafficSplits without matches only one"
        }
        "TooManySplits" | "TooManyMatches" => "put what belongs together into one match",
        "InvalidMatch" | "TooMuchToMatch" => "make the patterns smaller, or fewer",
        "AddressConflict" | "DuplicatePodIP" => "give each its own address",
        "PodMismatch" => "remove what the agent of another node published; it is made anew if it was right",
        "DuplicateUID" => "give each pod its own UID, or none",
        "UnknownFailMode" => "use open or closed",
        "UnknownMeshLabel" => "use enabled on a Namespace, disabled on a Pod",
        "UnknownLoadBalancing" => "use one of the words that are named",
        "TargetNotFound" => "create the Service, or name one of this namespace, and a port that it has",
        "UnknownMtls" => "use permissive or strict",
        "UnknownDefault" => "use allow or deny",
        "FailModeRefused" => "take the label away, or use closed",
        "Invalid" => "correct the field; docs/smi.md says what each may hold",
        _ => "",
    }
}

/// The rule and the fix for what parsing finds.
pub(super) fn of_field(document: &Value, problem: &Problem) -> (&'static str, String) {
    let Problem { field, message, strays } = problem;
    let kind = document.get("kind").and_then(Value::as_str).unwrap_or_default();
    let last = field.rsplit('.').next().unwrap_or(field);
    if message.starts_with("unknown field") {
        return ("UnknownField", unknown(field, last, message));
    }
    if let Some(name) = between(message, "missing field `", "`") {
        return ("MissingField", missing(field, name, strays));
    }
    if field == "apiVersion" {
        let fix = newest(kind).map_or_else(String::new, |version| format!("write apiVersion: {version}"));
        let given = document.get("apiVersion").is_some();
        return (if given { "UnknownVersion" } else { "MissingField" }, fix);
    }
    if field == "kind" {
        return ("UnknownKind", String::new());
    }
    if message.contains("must be given") || message.contains("must have at least one") {
        return ("MissingField", format!("give {last}"));
    }
    let rule = if field.ends_with("weight") {
        "InvalidWeight"
    } else if last.starts_with("port") {
        "InvalidPort"
    } else if last == "pathRegex" || field.contains(".headers.") {
        "InvalidRegex"
    } else if field.contains("methods") {
        "UnknownMethod"
    } else if last == "name" || last == "namespace" || last == "service" {
        "InvalidName"
    } else if message.contains("invalid type") {
        "WrongType"
    } else {
        "InvalidValue"
    };
    (rule, String::new())
}

fn unknown(field: &str, name: &str, message: &str) -> String {
    if field.ends_with("destination.port") {
        return "leave it out, and give the port in a TCPRoute that rules names (destination.port ended with v1alpha2)"
            .to_owned();
    }
    let expected: Vec<&str> = message.split('`').skip(3).step_by(2).collect();
    let near = expected
        .iter()
        .map(|known| (strsim::jaro_winkler(&name.to_ascii_lowercase(), &known.to_ascii_lowercase()), known))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|(a, _), (b, _)| a.total_cmp(b));
    match near {
        Some((_, known)) => format!("did you mean {known}?"),
        None => format!("take {name} away, or indent it under the field that it belongs to"),
    }
}

fn missing(field: &str, name: &str, strays: &[String]) -> String {
    let parent = if field.is_empty() { "the document" } else { field };
    match strays.iter().find(|stray| stray.rsplit('.').next() == Some(name)) {
        Some(stray) => {
            format!(
                "indent {stray} further, so that it belongs to {parent}: in YAML the indentation says what belongs together"
            )
        }
        None => format!("give {name} in {parent}"),
    }
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    text.strip_prefix(before)?.split(after).next()
}

#[cfg(test)]
mod tests {
    use weft_policy::diagnostic::CODES;

    use super::*;

    #[test]
    fn every_finding_of_lowering_and_compilation_has_a_fix() {
        let mute: Vec<&str> = CODES.into_iter().filter(|code| of_diagnostic(code).is_empty()).collect();
        assert_eq!(mute, [""; 0]);
        assert!(CODES.is_sorted());
    }

    #[test]
    fn findings_about_what_may_be_elsewhere_are_known_codes() {
        let references = CODES.into_iter().filter(|code| is_reference(code)).count();
        let not_found = CODES.into_iter().filter(|code| code.ends_with("NotFound") && *code != "MatchNotFound").count();
        // And the parent and the grant of a route.
        assert_eq!(references, not_found + 2);
    }
}
