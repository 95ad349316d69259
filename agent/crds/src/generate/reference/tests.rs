use std::collections::BTreeSet;

use super::*;
use crate::generate::DEFINITIONS;

fn each(mut check: impl FnMut(&KindReference, &Field, &str, &str)) {
    for kind in kinds() {
        for version in kind.definition.versions {
            for shape in kind.shapes() {
                for field in &kind.fields {
                    check(&kind, field, version, shape);
                }
            }
        }
    }
}

#[test]
fn every_field_of_every_schema_has_an_example_and_no_example_is_of_no_field() {
    let known: Vec<&str> = kinds().iter().map(|kind| kind.definition.kind).collect();
    for definition in DEFINITIONS.into_iter().filter(|definition| definition.group.ends_with(".smi-spec.io")) {
        assert!(known.contains(&definition.kind), "{} is missing", definition.kind);
    }
    for kind in kinds() {
        let schema: BTreeSet<String> = kind.schema_paths().into_iter().collect();
        let shapes = kind.shapes();
        let fields =
            kind.fields.iter().flat_map(|field| shapes.iter().map(move |shape| format!("{shape}{}", field.path)));
        let fields: BTreeSet<String> = fields.collect();
        assert_eq!(fields, schema, "{}", kind.definition.kind);
    }
}

/// What the page says of every field, where it is not "supported".
#[test]
fn a_field_changes_plans_unless_it_is_listed_here() {
    let mut found = BTreeSet::new();
    each(|kind, field, version, shape| {
        let (outcome, _) = kind.outcome(field, version, shape);
        let word = match outcome {
            Outcome::Supported => return,
            Outcome::Checked => "checked",
            Outcome::Ignored => "no effect",
            Outcome::Demanded(_) => "demanded",
            Outcome::Refused(_) => "refused",
        };
        let versions = if version < "v1alpha3" { "old" } else { "new" };
        let versions = if kind.definition.kind == "TrafficSplit" { versions } else { "all" };
        found.insert((kind.definition.kind, field.path, versions, word));
    });
    let expected = [
        ("HTTPRouteGroup", &[][..]),
        (
            "IdentityBinding",
            &[
                ("schemes.podLabelSelector.name", "all", "no effect"),
                ("schemes.podLabelSelectors[].name", "all", "no effect"),
            ],
        ),
        ("TCPRoute", &[("matches.name", "all", "no effect")]),
        (
            "TrafficSplit",
            &[
                ("matches", "old", "refused"),
                ("matches[].apiGroup", "new", "checked"),
                ("matches[].apiGroup", "old", "refused"),
                ("matches[].kind", "new", "demanded"),
                ("matches[].kind", "old", "refused"),
                ("matches[].name", "old", "refused"),
            ],
        ),
        (
            "TrafficTarget",
            &[
                ("destination.apiGroup", "all", "checked"),
                ("destination.group", "all", "checked"),
                ("destination.namespace", "all", "checked"),
                ("rules[].apiGroup", "all", "checked"),
                ("sources[].apiGroup", "all", "checked"),
                ("sources[].group", "all", "checked"),
                ("sources[].port", "all", "refused"),
                ("specs[].apiGroup", "all", "checked"),
            ],
        ),
        ("UDPRoute", &[("matches.name", "all", "no effect")]),
    ];
    let expected = expected
        .iter()
        .flat_map(|(kind, fields)| fields.iter().map(move |(path, versions, word)| (*kind, *path, *versions, *word)));
    assert_eq!(found, expected.collect());
}

#[test]
fn both_shapes_of_a_kind_are_read_alike() {
    each(|kind, field, version, shape| {
        let first = kind.shapes()[0];
        assert_eq!(
            kind.outcome(field, version, shape),
            kind.outcome(field, version, first),
            "{} {version}",
            field.path
        );
        let without = |shape| kind.without(field, version, shape);
        assert_eq!(without(shape), without(first), "{} {version}", field.path);
    });
}

#[test]
fn what_is_shown_as_rejected_is_rejected_in_some_version_and_other_forms_are_accepted() {
    for kind in kinds() {
        for field in &kind.fields {
            for (body, value) in &field.refused {
                let body = set(body, field.path, Some(value));
                let refused = |version: &&str| kind.ask(&kind.document(version, "spec.", &body)).is_err();
                assert!(kind.definition.versions.iter().any(refused), "{} {value}", field.path);
            }
            for value in &field.also {
                let newest = kind.definition.storage;
                let asked = kind.ask(&kind.document(newest, "spec.", &field.with(Some(value))));
                assert!(asked.is_ok(), "{} {value}: {:?}", field.path, asked.err());
            }
        }
        for (at, body) in kind.containers() {
            let path = if at.is_empty() { "extra".to_owned() } else { format!("{at}.extra") };
            let extra = set(&body, &path, Some(&json!(1)));
            assert_ne!(extra, body, "{at}");
            for version in kind.definition.versions {
                for shape in kind.shapes() {
                    assert!(kind.ask(&kind.document(version, shape, &extra)).is_err(), "{version} {path}");
                }
            }
        }
    }
}
