//! Everything that parsing has against one object. Parsing stops at the first field that it does not know; the same object without
//! that field tells the next one.

use serde_json::Value;
use weft_crds::{
    object::{Kind, Object},
    parse::{self, FieldProblems, ParseError},
};

use super::PROBLEMS_MAX;

/// One thing that parsing has against an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) field: String,
    pub(super) message: String,
    /// Fields found so far that are not known at their place: those that are missing elsewhere may be meant.
    pub(super) strays: Vec<String>,
}

/// All problems of an object whose first ones are known.
pub(super) fn problems(value: &Value, first: &ParseError) -> Vec<Problem> {
    let mut document = value.clone();
    let mut problems: Vec<Problem> = Vec::new();
    let mut strays = Vec::new();
    let mut errors = vec![first.clone()];
    while problems.len() < PROBLEMS_MAX {
        let Some(error) = errors.pop() else { break };
        let mut again = false;
        for (field, message) in &error.fields.0 {
            let problem = Problem { field: field.clone(), message: message.clone(), strays: Vec::new() };
            let known = problems.iter().any(|one| one.field == *field && one.message == *message);
            if !known {
                problems.push(problem);
            }
            if message.starts_with("unknown field") && remove(&mut document, field) {
                strays.push(field.clone());
                again = true;
            } else if field == "apiVersion" && !known {
                again = assume_version(&mut document);
            }
        }
        if again {
            let parsed = parse::parse(&document);
            let of_targets = parsed.objects.iter().filter_map(|(object, _)| of_target(object));
            errors = parsed.errors.into_iter().chain(of_targets).take(1).collect();
        }
    }
    for problem in &mut problems {
        problem.strays.clone_from(&strays);
    }
    problems
}

/// The code of what lowering says of a TrafficTarget that [`of_target`] tells by field.
pub(super) const TARGET_INVALID: &str = "Invalid";

/// What is wrong with a TrafficTarget that is in force all the same: one with a valid destination denies what it does not grant, and
/// grants nothing.
pub(super) fn of_target(object: &Object) -> Option<ParseError> {
    let Object::TrafficTarget(target) = object else { return None };
    let problems = target.grant.as_ref().err()?;
    let first = problems.first()?;
    Some(ParseError {
        key: Some(object.key()),
        object: object.key().to_string(),
        field: first.field.clone(),
        message: first.message.clone(),
        fields: Box::new(FieldProblems(problems.iter().map(|one| (one.field.clone(), one.message.clone())).collect())),
    })
}

/// Goes on as if the version were the newest one of its kind.
fn assume_version(document: &mut Value) -> bool {
    let kind = document.get("kind").and_then(Value::as_str).unwrap_or_default();
    let Some(version) = newest(kind) else { return false };
    document["apiVersion"] = Value::String(version);
    true
}

/// The `apiVersion` that new manifests of a kind should have.
pub(super) fn newest(kind: &str) -> Option<String> {
    let known = Kind::ALL.into_iter().find(|known| known.as_str() == kind)?;
    // Drafts come after what was released.
    let version = match kind {
        "TrafficTarget" => "v1alpha3",
        _ => known.versions().last()?,
    };
    Some(if known.group().is_empty() { version.to_owned() } else { format!("{}/{version}", known.group()) })
}

/// Takes a field away, if it is there.
fn remove(document: &mut Value, path: &str) -> bool {
    let Some((parent, key)) = split(path) else { return false };
    let Some(Value::Object(map)) = document.pointer_mut(&pointer(parent)) else { return false };
    map.remove(key).is_some()
}

/// The parent's path, and the last key; `None` for an entry of a list.
fn split(path: &str) -> Option<(&str, &str)> {
    match path.rsplit_once('.') {
        _ if path.is_empty() || path.ends_with(']') => None,
        Some((parent, key)) => Some((parent, key)),
        None => Some(("", path)),
    }
}

/// `spec.backends[1]` as a JSON pointer (RFC 6901). No field of a strictly read kind has `/` or `~` in its name.
fn pointer(path: &str) -> String {
    let mut pointer = String::new();
    for part in path.split(['.', '[']).filter(|part| !part.is_empty()) {
        pointer.push('/');
        pointer.push_str(part.trim_end_matches(']'));
    }
    pointer
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_are_taken_away_by_their_paths() {
        let mut document = json!({"a": {"b": [{"c": 1, "d": 2}]}, "e": 1});
        assert!(remove(&mut document, "a.b[0].c"));
        assert!(remove(&mut document, "e"));
        for absent in ["", "e", "a.b[1].c", "a.b[0]", "a.b.c", "x.y"] {
            assert!(!remove(&mut document, absent), "{absent}");
        }
        assert_eq!(document, json!({"a": {"b": [{"d": 2}]}}));
    }
}
