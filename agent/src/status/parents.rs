//! What becomes of a route of Gateway API at each Service that it is for: `status.parents`. Only the entries with our own controller's
//! name are touched.

use serde_json::{Value, json};
use weft_policy::diagnostic::{Diagnostic, Severity};

use super::conditions::{sentence, shortened};
use crate::{
    limits,
    watch::kube::ledger::{Condition, Note, Parents},
};

/// Who writes: `status.parents[].controllerName`.
pub(super) const CONTROLLER: &str = "weft.dev/mesh";

/// What there is to say of one parent.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ParentOutcome {
    /// The reference, as the route has it.
    pub(super) reference: Value,
    /// Type, status, reason, message.
    pub(super) conditions: Vec<(&'static str, bool, String, String)>,
}

/// What there is to say of a route, for each Service among its parents.
pub(super) fn outcomes(note: &Note, parents: &Parents, findings: &[Diagnostic]) -> Vec<ParentOutcome> {
    let of_parent = |(index, reference): &(usize, Value)| ParentOutcome {
        reference: reference.clone(),
        conditions: conditions(note, *index, parents.rules, findings),
    };
    parents.references.iter().map(of_parent).collect()
}

fn conditions(
    note: &Note,
    parent: usize,
    rules: usize,
    findings: &[Diagnostic],
) -> Vec<(&'static str, bool, String, String)> {
    if let Some(error) = &note.unusable {
        let at = if error.field.is_empty() { String::new() } else { format!("{}: ", error.field) };
        let message = format!("{at}{}; the last good version stays in force, if there was one", error.message);
        return vec![("Accepted", false, "UnsupportedValue".to_owned(), short(&message))];
    }
    let at = format!("spec.parentRefs[{parent}]");
    let errors = |wanted: &dyn Fn(&Diagnostic) -> bool| {
        let wanted = |one: &&Diagnostic| one.severity == Severity::Error && wanted(one);
        findings.iter().filter(wanted).collect::<Vec<_>>()
    };
    let attached = errors(&|one| one.field == at);
    let references = errors(&|one| matches!(one.code, "BackendNotFound" | "InvalidKind" | "RefNotPermitted"));
    let dropped = errors(&|one| {
        matches!(one.code, "UnsupportedValue" | "IncompatibleFilters" | "InvalidMatch" | "TooManyMatches")
    });
    let bad_rules: std::collections::BTreeSet<&str> = dropped.iter().filter_map(|one| rule_of(&one.field)).collect();
    let said = |reason: &str, found: &[&Diagnostic]| {
        let all: Vec<String> = found.iter().map(|one| sentence(one)).collect();
        (found.first().map_or(reason, |one| one.code).to_owned(), short(&all.join("; ")))
    };
    let all_bad = rules > 0 && bad_rules.len() >= rules;
    let refused = if !attached.is_empty() {
        Some(said("NoMatchingParent", &attached))
    } else if all_bad {
        Some(said("UnsupportedValue", &dropped))
    } else {
        None
    };
    let notes: Vec<&Diagnostic> = findings.iter().filter(|one| one.severity == Severity::Warning).collect();
    let mut conditions = vec![match refused.clone() {
        Some((reason, message)) => ("Accepted", false, reason, message),
        None => ("Accepted", true, "Accepted".to_owned(), said("", &notes).1),
    }];
    conditions.push(match references.is_empty() {
        true => ("ResolvedRefs", true, "ResolvedRefs".to_owned(), String::new()),
        false => {
            let (reason, message) = said("", &references);
            ("ResolvedRefs", false, reason, message)
        }
    });
    if refused.is_none() && !dropped.is_empty() {
        // The specification wants these words first.
        let message = short(&format!("Dropped Rule: {}", said("", &dropped).1));
        conditions.push(("PartiallyInvalid", true, "UnsupportedValue".to_owned(), message));
    }
    conditions
}

/// `spec.rules[3]` of a field below it.
fn rule_of(field: &str) -> Option<&str> {
    let rest = field.strip_prefix("spec.rules[")?;
    field.get(..field.len() - rest.len() + rest.find(']')? + 1)
}

fn short(message: &str) -> String {
    shortened(message, limits::STATUS_MESSAGE_BYTES_MAX)
}

fn is_ours(entry: &Value) -> bool {
    entry.get("controllerName").and_then(Value::as_str) == Some(CONTROLLER)
}

/// What is written of our own, as far as it can be told from what should be: generation, and the outcome of each parent.
pub(super) fn read(parents: &Parents) -> Vec<(Value, Vec<Condition>)> {
    let read = |entry: &Value| {
        let conditions = entry.get("conditions").and_then(Value::as_array);
        let conditions =
            conditions.into_iter().flatten().map(|one| serde_json::from_value(one.clone()).unwrap_or_default());
        (entry.get("parentRef").cloned().unwrap_or_default(), conditions.collect())
    };
    parents.status.iter().filter(|entry| is_ours(entry)).map(read).collect()
}

/// Whether that is what is there.
pub(super) fn is_written(parents: &Parents, generation: i64, outcomes: &[ParentOutcome]) -> bool {
    let present = read(parents);
    let same = |(at, conditions): &(Value, Vec<Condition>), wanted: &ParentOutcome| {
        *at == wanted.reference
            && conditions.len() == wanted.conditions.len()
            && conditions.iter().zip(&wanted.conditions).all(|(is, (name, status, reason, message))| {
                is.type_ == *name
                    && is.status == word(*status)
                    && is.observed_generation == generation
                    && is.reason == *reason
                    && is.message == *message
            })
    };
    present.len() == outcomes.len() && present.iter().zip(outcomes).all(|(is, wanted)| same(is, wanted))
}

fn word(status: bool) -> &'static str {
    if status { "True" } else { "False" }
}

/// Whether an Event should tell of it: something is wrong that was not said before, or all is well again.
pub(super) fn is_news(parents: &Parents, outcomes: &[ParentOutcome]) -> bool {
    let good = |name: &str, status: bool| (name == "PartiallyInvalid") != status;
    let is_good = outcomes.iter().flat_map(|one| &one.conditions).all(|(name, status, ..)| good(name, *status));
    let present = read(parents);
    let was_good = present.iter().flat_map(|(_, all)| all).all(|one| good(&one.type_, one.status == "True"));
    let text = |name: &str, status: bool, message: &str| format!("{name} {status} {message}");
    let before =
        present.iter().flat_map(|(_, all)| all).map(|one| text(&one.type_, one.status == "True", &one.message));
    let now = outcomes.iter().flat_map(|one| &one.conditions);
    let now = now.map(|(name, status, _, message)| text(name, *status, message));
    !(is_good && was_good) && before.collect::<Vec<_>>() != now.collect::<Vec<_>>()
}

/// As they are written: entries of other controllers stay, and a status that is the same keeps its time.
pub(super) fn render(parents: &Parents, generation: i64, outcomes: &[ParentOutcome], now: &str) -> Vec<Value> {
    let before = read(parents);
    let mut all: Vec<Value> = parents.status.iter().filter(|entry| !is_ours(entry)).cloned().collect();
    for outcome in outcomes {
        let known = before.iter().find(|(at, _)| *at == outcome.reference).map_or(&[][..], |(_, known)| known);
        let conditions = outcome.conditions.iter().map(|(name, status, reason, message)| {
            let since = known.iter().find(|one| one.type_ == *name && one.status == word(*status));
            json!({
                "type": name,
                "status": word(*status),
                "observedGeneration": generation,
                "lastTransitionTime": since.map_or(now, |one| &one.last_transition_time),
                "reason": reason,
                "message": message,
            })
        });
        all.push(json!({
            "parentRef": outcome.reference,
            "controllerName": CONTROLLER,
            "conditions": conditions.collect::<Vec<_>>(),
        }));
    }
    all
}

#[cfg(test)]
mod tests;
