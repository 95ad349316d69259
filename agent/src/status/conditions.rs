//! What an object's conditions should be.

use serde_json::Value;
use weft_policy::diagnostic::{Diagnostic, Severity};

use super::parents::{self, ParentOutcome};
use crate::{
    limits,
    watch::kube::ledger::{Condition, Note},
};

/// weft's own conditions, in the order in which they are written.
pub(super) const TYPES: [&str; 4] = ["Accepted", "ResolvedRefs", "Conflicted", "Programmed"];

/// What became of an object.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Outcome {
    pub(super) generation: i64,
    /// Type, status, reason, message: one for each of [`TYPES`].
    pub(super) conditions: Vec<(String, bool, String, String)>,
    /// For a route of Gateway API, instead of the former: one for each Service that it is for.
    pub(super) parents: Option<Vec<ParentOutcome>>,
}

impl Outcome {
    /// From the findings about an object, and from why it cannot be used at all.
    pub(super) fn new(note: &Note, findings: &[Diagnostic]) -> Self {
        let unusable = note.unusable.as_ref().map(|error| {
            let at = if error.field.is_empty() { String::new() } else { format!("{}: ", error.field) };
            (
                "Invalid".to_owned(),
                format!("{at}{}; the last good version stays in force, if there was one", error.message),
            )
        });
        let said = |wanted: &dyn Fn(&Diagnostic) -> bool| {
            let wanted: Vec<&Diagnostic> = findings.iter().filter(|one| wanted(one)).collect();
            let all: Vec<String> = wanted.iter().map(|one| sentence(one)).collect();
            let code = wanted.first()?.code.to_owned();
            Some((code, shortened(&all.join("; "), limits::STATUS_MESSAGE_BYTES_MAX)))
        };
        let accepted = unusable.clone().or_else(|| said(&|one| one.severity == Severity::Error));
        let unresolved = said(&|one| one.code.ends_with("NotFound"));
        let conflicted = said(&|one| one.code.contains("Conflict"));
        let warnings = said(&|one| one.severity == Severity::Warning);
        let good = warnings.map_or_else(String::new, |(_, message)| format!("with warnings: {message}"));
        let condition = |name: &str, status: bool, said: (String, String)| (name.to_owned(), status, said.0, said.1);
        let programmed = match (&unusable, &accepted) {
            (Some(_), _) => (false, ("Invalid".to_owned(), "this version is not in force".to_owned())),
            (None, Some(_)) => {
                (true, ("PartlyProgrammed".to_owned(), "in force, but for what is not accepted".to_owned()))
            }
            (None, None) => (true, ("Programmed".to_owned(), String::new())),
        };
        let conditions = vec![
            condition(TYPES[0], accepted.is_none(), accepted.unwrap_or_else(|| ("Accepted".to_owned(), good))),
            condition(
                TYPES[1],
                unresolved.is_none(),
                unresolved.unwrap_or_else(|| ("ResolvedRefs".to_owned(), String::new())),
            ),
            condition(
                TYPES[2],
                conflicted.is_some(),
                conflicted.unwrap_or_else(|| ("NoConflict".to_owned(), String::new())),
            ),
            condition(TYPES[3], programmed.0, programmed.1),
        ];
        let parents = note.parents.as_ref().map(|parents| parents::outcomes(note, parents, findings));
        Self { generation: note.generation, conditions, parents }
    }

    /// Whether all is well.
    pub(super) fn is_good(&self) -> bool {
        self.conditions.iter().all(|(name, status, ..)| (name == TYPES[2]) != *status)
            && self.conditions[3].2 == "Programmed"
    }

    /// The worst of it: reason and message.
    pub(super) fn worst(&self) -> (&str, &str) {
        let bad = self.conditions.iter().find(|(name, status, ..)| (name == TYPES[2]) == *status);
        let (_, _, reason, message) = bad.unwrap_or(&self.conditions[3]);
        (reason, message)
    }

    /// As they are written: conditions of others stay, and a status that is the same keeps its time.
    pub(super) fn render(&self, present: &[Value], now: &str) -> Vec<Value> {
        let mine = |value: &&Value| value.get("type").and_then(Value::as_str).is_some_and(|name| TYPES.contains(&name));
        let mut all: Vec<Value> = present.iter().filter(|value| !mine(value)).cloned().collect();
        for (name, status, reason, message) in &self.conditions {
            let status = if *status { "True" } else { "False" };
            let before = present.iter().find(|value| value.get("type").and_then(Value::as_str) == Some(name));
            let since = before
                .filter(|value| value.get("status").and_then(Value::as_str) == Some(status))
                .and_then(|value| value.get("lastTransitionTime").and_then(Value::as_str));
            let condition = Condition {
                type_: name.clone(),
                status: status.to_owned(),
                observed_generation: self.generation,
                last_transition_time: since.unwrap_or(now).to_owned(),
                reason: reason.clone(),
                message: message.clone(),
            };
            all.extend(serde_json::to_value(condition));
        }
        all
    }
}

/// What an object's conditions say now; `None` if weft's are not all there, or are not as weft writes them.
pub(super) fn read(present: &[Value]) -> Option<Outcome> {
    let mut conditions = Vec::new();
    let mut generation = None;
    for name in TYPES {
        let found = present.iter().find(|value| value.get("type").and_then(Value::as_str) == Some(name))?;
        let condition: Condition = serde_json::from_value(found.clone()).ok()?;
        if *generation.get_or_insert(condition.observed_generation) != condition.observed_generation {
            return None;
        }
        conditions.push((name.to_owned(), condition.status == "True", condition.reason, condition.message));
    }
    Some(Outcome { generation: generation?, conditions, parents: None })
}

/// Whether an object says already what it should.
pub(super) fn is_written(note: &Note, outcome: &Outcome) -> bool {
    match (&note.parents, &outcome.parents) {
        (Some(present), Some(wanted)) => parents::is_written(present, outcome.generation, wanted),
        _ => read(&note.conditions).as_ref() == Some(outcome),
    }
}

/// Whether an Event should tell of it: something is wrong that was not said before, or all is well again.
pub(super) fn is_news(note: &Note, now: &Outcome) -> bool {
    if let (Some(present), Some(wanted)) = (&note.parents, &now.parents) {
        return parents::is_news(present, wanted);
    }
    match read(&note.conditions) {
        None => !now.is_good(),
        Some(before) => before.conditions != now.conditions && !(before.is_good() && now.is_good()),
    }
}

pub(super) fn sentence(finding: &Diagnostic) -> String {
    if finding.field.is_empty() { finding.message.clone() } else { format!("{}: {}", finding.field, finding.message) }
}

/// At most so many bytes, ending at a character.
pub(super) fn shortened(text: &str, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    let room = bytes_max.saturating_sub('…'.len_utf8());
    let end = (0..=room).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests;
