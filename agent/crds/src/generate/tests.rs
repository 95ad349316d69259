use std::collections::BTreeSet;

use super::*;
use crate::object::Kind;

#[test]
fn every_version_that_is_understood_is_served_and_stored_in_one() {
    for kind in Kind::ALL.into_iter().filter(|kind| kind.group().ends_with("smi-spec.io")) {
        let definition = DEFINITIONS.into_iter().find(|definition| definition.kind == kind.as_str());
        let definition = definition.unwrap_or_else(|| panic!("no definition of {}", kind.as_str()));
        assert_eq!((definition.group, definition.versions), (kind.group(), kind.versions()));
    }
    for definition in DEFINITIONS {
        let crd = definition.custom_resource_definition();
        assert_eq!(crd["spec"]["conversion"], json!({"strategy": "None"}));
        let versions = crd["spec"]["versions"].as_array().unwrap();
        assert!(versions.iter().all(|version| version["served"] == true));
        let stored: Vec<_> = versions.iter().filter(|version| version["storage"] == true).collect();
        assert_eq!(stored.len(), 1, "{}", definition.kind);
        assert_eq!(stored[0]["name"], definition.storage);
        assert!(versions.iter().all(|version| version["schema"] == versions[0]["schema"]));
    }
}

#[test]
fn no_two_kinds_of_the_definitions_share_a_name() {
    let mut names = BTreeSet::new();
    for definition in DEFINITIONS {
        for name in definition.short_names.iter().chain([&definition.plural, &definition.singular]) {
            assert!(names.insert(*name), "{name} is given twice");
        }
    }
}

/// An API server drops what a schema does not know, unless it says otherwise. A dropped condition is a wider grant.
#[test]
fn no_object_of_a_schema_drops_a_field() {
    fn check(schema: &Value, path: &str) {
        if schema.get("properties").is_some() && !path.contains("conditions") {
            assert_eq!(schema["x-kubernetes-preserve-unknown-fields"], true, "{path}");
        }
        for (name, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            check(property, &format!("{path}.{name}"));
        }
        if let Some(items) = schema.get("items") {
            check(items, &format!("{path}[]"));
        }
    }
    for definition in DEFINITIONS {
        let crd = definition.custom_resource_definition();
        check(&crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"], definition.kind);
    }
}
