use serde_json::json;
use weft_policy::names::ObjectRef;

use super::*;

fn finding(severity: Severity, code: &'static str) -> Diagnostic {
    let object = ObjectRef::new("TrafficSplit", "shop", "web");
    Diagnostic { object, severity, code, field: "spec.backends[0]".into(), message: format!("about {code}") }
}

fn statuses(outcome: &Outcome) -> Vec<String> {
    outcome.conditions.iter().map(|(name, status, reason, _)| format!("{name}={status} {reason}")).collect()
}

#[test]
fn conditions_follow_from_findings() {
    for (findings, expected) in [
        (
            vec![],
            [
                "Accepted=true Accepted",
                "ResolvedRefs=true ResolvedRefs",
                "Conflicted=false NoConflict",
                "Programmed=true Programmed",
            ],
        ),
        (
            vec![finding(Severity::Warning, "BackendIsRoot")],
            [
                "Accepted=true Accepted",
                "ResolvedRefs=true ResolvedRefs",
                "Conflicted=false NoConflict",
                "Programmed=true Programmed",
            ],
        ),
        (
            vec![finding(Severity::Error, "BackendNotFound")],
            [
                "Accepted=false BackendNotFound",
                "ResolvedRefs=false BackendNotFound",
                "Conflicted=false NoConflict",
                "Programmed=true PartlyProgrammed",
            ],
        ),
        (
            vec![finding(Severity::Error, "Conflicted")],
            [
                "Accepted=false Conflicted",
                "ResolvedRefs=true ResolvedRefs",
                "Conflicted=true Conflicted",
                "Programmed=true PartlyProgrammed",
            ],
        ),
    ] {
        assert_eq!(statuses(&Outcome::new(&Note::default(), &findings)), expected);
    }
}

#[test]
fn an_object_that_cannot_be_used_is_not_programmed() {
    let parsed = weft_crds::parse::parse_as(
        weft_crds::object::Kind::TrafficSplit,
        "v1alpha4",
        &json!({"metadata": {"name": "web"}, "spec": {"service": 7}}),
    );
    let note = Note { unusable: parsed.err(), ..Note::default() };
    let outcome = Outcome::new(&note, &[]);
    assert_eq!(statuses(&outcome)[0], "Accepted=false Invalid");
    assert_eq!(statuses(&outcome)[3], "Programmed=false Invalid");
    assert!(outcome.worst().1.contains("spec.service"), "{outcome:?}");
}

#[test]
fn what_is_written_reads_back_and_is_not_written_again() {
    let outcome = Outcome::new(&Note { generation: 3, ..Note::default() }, &[finding(Severity::Error, "Conflicted")]);
    let written = outcome.render(&[], "2026-01-02T03:04:05Z");
    assert_eq!(read(&written), Some(outcome));
}

#[test]
fn conditions_of_others_stay_and_times_change_with_the_status_alone() {
    let foreign = json!({"type": "Promoted", "status": "True", "reason": "Canary"});
    let bad = Outcome::new(&Note::default(), &[finding(Severity::Error, "BackendNotFound")]);
    let good = Outcome::new(&Note::default(), &[]);
    let before = bad.render(std::slice::from_ref(&foreign), "2026-01-01T00:00:00Z");
    assert_eq!(before[0], foreign);
    let after = good.render(&before, "2026-01-02T00:00:00Z");
    assert_eq!(after[0], foreign);
    let times: Vec<&str> = after[1..].iter().filter_map(|one| one["lastTransitionTime"].as_str()).collect();
    let (old, new) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
    assert_eq!(times, [new, new, old, old], "Accepted and ResolvedRefs changed");
}

#[test]
fn conditions_that_are_not_as_written_are_written_anew() {
    let outcome = Outcome::new(&Note::default(), &[]);
    let good = outcome.render(&[], "t");
    for broken in [
        vec![],
        good[1..].to_vec(),
        vec![json!(null)],
        vec![json!({"type": 7})],
        [&good[..3], &[json!({"type": "Programmed", "status": {}})]].concat(),
    ] {
        assert_eq!(read(&broken), None, "{broken:?}");
    }
}

#[test]
fn only_news_makes_an_event() {
    let good = Outcome::new(&Note::default(), &[]);
    let bad = Outcome::new(&Note::default(), &[finding(Severity::Error, "BackendNotFound")]);
    let again = Outcome { generation: 9, ..bad.clone() };
    for (before, now, expected) in [
        (None, &good, false),
        (None, &bad, true),
        (Some(&good), &bad, true),
        (Some(&bad), &again, false),
        (Some(&bad), &good, true),
        (Some(&good), &good, false),
    ] {
        let conditions = before.map_or_else(Vec::new, |before: &Outcome| before.render(&[], "t"));
        let note = Note { conditions, ..Note::default() };
        assert_eq!(is_news(&note, now), expected, "{before:?} {now:?}");
    }
}

#[test]
fn messages_have_a_bound_and_end_at_a_character() {
    let long = "ü".repeat(limits::STATUS_MESSAGE_BYTES_MAX);
    for bytes_max in [3, 10, 11, 1000] {
        let short = shortened(&long, bytes_max);
        assert!(short.len() <= bytes_max && short.ends_with('…'), "{bytes_max}: {}", short.len());
    }
    assert_eq!(shortened("short", 5), "short");
}
