use weft_policy::names::ObjectRef;

use super::*;

fn finding(severity: Severity, code: &'static str, field: &str) -> Diagnostic {
    let object = ObjectRef::new("HTTPRoute", "shop", "web");
    Diagnostic { object, severity, code, field: field.into(), message: format!("about {code}") }
}

fn parents(rules: usize, status: &Value) -> Parents {
    let reference = |port: u16| json!({"group": "", "kind": "Service", "name": "web", "port": port});
    let status = status.as_array().cloned().unwrap_or_default();
    Parents { references: vec![(0, reference(80)), (2, reference(90))], rules, status }
}

fn told(findings: &[Diagnostic]) -> Vec<Vec<String>> {
    let outcomes = outcomes(&Note::default(), &parents(2, &json!([])), findings);
    let text = |(name, status, reason, _): &(&str, bool, String, String)| format!("{name}={status} {reason}");
    outcomes.iter().map(|one| one.conditions.iter().map(text).collect()).collect()
}

#[test]
fn each_parent_has_conditions_with_the_reasons_of_the_specification() {
    let fine = ["Accepted=true Accepted", "ResolvedRefs=true ResolvedRefs"];
    let error = |code, field| finding(Severity::Error, code, field);
    for (findings, first, second) in [
        (vec![], fine.to_vec(), fine.to_vec()),
        (vec![finding(Severity::Warning, "UnsupportedValue", "spec.hostnames")], fine.to_vec(), fine.to_vec()),
        (
            vec![error("NoMatchingParent", "spec.parentRefs[2]")],
            fine.to_vec(),
            vec!["Accepted=false NoMatchingParent", fine[1]],
        ),
        (vec![error("Conflicted", "spec.parentRefs[0]")], vec!["Accepted=false Conflicted", fine[1]], fine.to_vec()),
        (
            vec![error("RefNotPermitted", "spec.rules[0].backendRefs[0]")],
            vec![fine[0], "ResolvedRefs=false RefNotPermitted"],
            vec![fine[0], "ResolvedRefs=false RefNotPermitted"],
        ),
        (
            vec![error("UnsupportedValue", "spec.rules[1].filters[0].type")],
            vec![fine[0], fine[1], "PartiallyInvalid=true UnsupportedValue"],
            vec![fine[0], fine[1], "PartiallyInvalid=true UnsupportedValue"],
        ),
        (
            vec![
                error("IncompatibleFilters", "spec.rules[0].filters"),
                error("UnsupportedValue", "spec.rules[1].filters[0].type"),
            ],
            vec!["Accepted=false IncompatibleFilters", fine[1]],
            vec!["Accepted=false IncompatibleFilters", fine[1]],
        ),
    ] {
        assert_eq!(told(&findings), [first, second], "{findings:?}");
    }
}

#[test]
fn what_is_written_reads_back_and_entries_of_others_stay() {
    let others = json!([{"parentRef": {"name": "gateway"}, "controllerName": "example.com/gateway", "conditions": []}]);
    let note = Note { generation: 3, ..Note::default() };
    let before = parents(1, &others);
    let outcomes = outcomes(&note, &before, &[finding(Severity::Error, "NoMatchingParent", "spec.parentRefs[2]")]);
    assert!(!is_written(&before, 3, &outcomes) && is_news(&before, &outcomes));
    let written = render(&before, 3, &outcomes, "2026-01-02T03:04:05Z");
    assert_eq!((written.len(), &written[0]), (3, &others[0]));
    let after = parents(1, &json!(written));
    assert!(is_written(&after, 3, &outcomes) && !is_news(&after, &outcomes));
    assert!(!is_written(&after, 4, &outcomes), "another generation is written anew");
    let again = render(&after, 4, &outcomes, "2026-01-03T00:00:00Z");
    assert_eq!(again[1]["conditions"][0]["lastTransitionTime"], "2026-01-02T03:04:05Z");
    assert_eq!(again[1]["conditions"][0]["observedGeneration"], 4);
}

#[test]
fn a_route_that_cannot_be_read_is_not_accepted() {
    let document = json!({"metadata": {"name": "web"}, "spec": {
        "parentRefs": [{"group": "", "kind": "Service", "name": "web"}], "rules": [{"timeouts": {"request": "1.5s"}}]}});
    let parsed = weft_crds::parse::parse_as(weft_crds::object::Kind::HttpRoute, "v1", &document);
    let note = Note { unusable: parsed.err(), ..Note::default() };
    let outcomes = outcomes(&note, &parents(1, &json!([])), &[]);
    let (name, status, reason, message) = &outcomes[0].conditions[0];
    assert_eq!((*name, *status, reason.as_str()), ("Accepted", false, "UnsupportedValue"));
    assert!(message.contains("spec.rules[0].timeouts.request"), "{message}");
}
