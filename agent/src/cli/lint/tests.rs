use super::*;

fn lint(text: &str) -> LintReport {
    check(&files::parse("x.yaml", text), false)
}

/// Line, level, rule, field.
fn shape(report: &LintReport) -> Vec<(usize, Level, &str, &str)> {
    report.findings.iter().map(|one| (one.line, one.level, one.rule.as_str(), one.field.as_str())).collect()
}

#[test]
fn a_document_without_a_version_is_told_which_one_and_is_checked_as_if_it_had_it() {
    let report = lint("kind: TrafficSplit\nmetadata:\n  name: canary\nspec:\n  service: web\n  backend: []\n");
    assert_eq!(
        shape(&report),
        [
            (1, Level::Error, "MissingField", "apiVersion"),
            (4, Level::Error, "MissingField", "spec"),
            (6, Level::Error, "UnknownField", "spec.backend"),
        ]
    );
    assert_eq!(report.findings[0].fix, "write apiVersion: split.smi-spec.io/v1alpha4");
    assert_eq!(report.findings[2].fix, "did you mean backends?");
    assert!(report.failed(false));
}

#[test]
fn each_wrong_value_has_its_line_and_rule() {
    let report = lint(
        r#"apiVersion: split.smi-spec.io/v1alpha4
kind: TrafficSplit
metadata: {name: canary, namespace: shop}
spec:
  service: web
  backends:
  - service: web_v1
    weight: 1
  - service: web-v2
    weight: 0.5
---
apiVersion: specs.smi-spec.io/v1alpha4
kind: HTTPRouteGroup
metadata: {name: group, namespace: shop}
spec:
  matches:
  - name: a
    pathRegex: "("
    methods: [GTE]
---
apiVersion: split.smi-spec.io/v9
kind: TrafficSplit
metadata: {name: new, namespace: shop}
"#,
    );
    assert_eq!(
        shape(&report),
        [
            (7, Level::Error, "InvalidName", "spec.backends[0].service"),
            (10, Level::Error, "InvalidWeight", "spec.backends[1].weight"),
            (18, Level::Error, "InvalidRegex", "spec.matches[0].pathRegex"),
            (19, Level::Error, "UnknownMethod", "spec.matches[0].methods[0]"),
            (21, Level::Error, "MissingField", ""),
            (21, Level::Error, "UnknownVersion", "apiVersion"),
        ],
        "{}",
        report.show(OutputFormat::Table)
    );
}

const SPLIT: &str = "apiVersion: split.smi-spec.io/v1alpha4
kind: TrafficSplit
metadata: {name: canary, namespace: shop}
spec:
  service: web
  backends:
  - {service: web-v1, weight: 1}
  - {service: web-v2, weight: 1}
";

fn service(name: &str, port: u16) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{ports: [{{port: {port}}}]}}\n"
    )
}

#[test]
fn what_may_be_elsewhere_is_a_note_unless_the_files_are_complete() {
    let text = format!("{SPLIT}{}{}", service("web", 80), service("web-v1", 80));
    let report = lint(&text);
    assert_eq!(shape(&report), [(8, Level::Note, "BackendNotFound", "spec.backends[1].service")]);
    assert!(!report.failed(true));
    let report = check(&files::parse("x.yaml", &text), true);
    assert_eq!(shape(&report), [(8, Level::Error, "BackendNotFound", "spec.backends[1].service")]);
    assert_ne!(report.findings[0].fix, "");
}

#[test]
fn what_is_among_the_files_but_refused_is_missing_for_good() {
    let text = format!("{SPLIT}{}{}{}", service("web", 80), service("web-v1", 80), service("web-v2", 0));
    let report = lint(&text);
    let rules: Vec<&str> = report.findings.iter().map(|one| one.rule.as_str()).collect();
    assert_eq!(rules, ["BackendNotFound", "InvalidPort"], "{}", report.show(OutputFormat::Table));
    assert!(report.findings.iter().all(|one| one.level == Level::Error));
}

#[test]
fn what_lowering_finds_has_the_line_of_its_field() {
    let text = format!("{SPLIT}{}{}{}", service("web", 80), service("web-v1", 80), service("web-v2", 81));
    let report = lint(&text);
    assert_eq!(shape(&report), [(8, Level::Error, "BackendPortMismatch", "spec.backends[1].service")]);
}

#[test]
fn items_of_a_list_have_lines_and_the_same_object_twice_is_an_error() {
    let report = lint(
        "apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Namespace
  metadata:
    name: shop
- apiVersion: v1
  kind: Namespace
  metadata:
    name: shop
",
    );
    assert_eq!(shape(&report), [(11, Level::Error, "DuplicateObject", "metadata.name")]);
    assert_eq!((report.documents, report.objects), (2, 1));
}

#[test]
fn the_others_are_checked_beside_a_document_that_is_no_yaml() {
    let report = lint(
        "a: [\n---\napiVersion: v1\nkind: Deployment\nmetadata: {name: a}\n---\napiVersion: apps/v1\nkind: Deployment\n",
    );
    let rules: Vec<&str> = report.findings.iter().map(|one| one.rule.as_str()).collect();
    assert_eq!(rules, ["NotYaml", "UnknownKind"]);
    assert_eq!((report.documents, report.ignored), (3, 1));
}

#[test]
fn the_report_is_one_line_and_one_fix_for_each_finding() {
    let report = lint("kind: HTTPRouteGroup\nmetadata: {name: a}\nspec: {matches: [{name: x}]}\n");
    let text = report.show(OutputFormat::Table);
    assert!(text.starts_with("x.yaml:1: error: HTTPRouteGroup default/a, apiVersion: "), "{text}");
    assert!(text.contains("\n    fix: write apiVersion: specs.smi-spec.io/v1alpha4\n"), "{text}");
    let json: Value = serde_json::from_str(&report.show(OutputFormat::Json)).unwrap();
    assert_eq!(json["findings"][0]["level"], "error");
}

#[test]
fn whatever_is_linted_nothing_panics() {
    for text in [
        "",
        "null",
        "[]",
        "x",
        "kind: 1",
        "kind: TrafficSplit\nspec: 1",
        "{apiVersion: v1, kind: List, items: 1}",
        "\u{0}",
    ] {
        let _ = lint(text).show(OutputFormat::Table);
    }
}

/// A TrafficTarget as a course on service meshes teaches it: no apiVersion, a field of an older version, and an indentation that
/// takes the source's name away from it.
const BROKEN_TARGET: &str = r"kind: TrafficTarget
metadata:
  name: path-specific
  namespace: default
spec:
  destination:
    kind: ServiceAccount
    name: service-a
    namespace: default
    port: 8080
  rules:
  - kind: HTTPRouteGroup
    name: m-routes
    matches:
    - metrics
  sources:
  - kind: ServiceAccount
  name: prometheus
  namespace: default
";

#[test]
fn a_target_with_broken_indentation_is_told_where_the_name_belongs() {
    let report = lint(BROKEN_TARGET);
    let text = report.show(OutputFormat::Table);
    for expected in [
        (1, "MissingField", "apiVersion"),
        (18, "UnknownField", "spec.name"),
        (19, "UnknownField", "spec.namespace"),
        (17, "MissingField", "spec.sources[0]"),
    ] {
        let found = report.findings.iter().find(|one| (one.line, one.rule.as_str(), one.field.as_str()) == expected);
        assert!(found.is_some_and(|one| !one.fix.is_empty()), "{expected:?} is not in:\n{text}");
    }
    assert!(text.contains("write apiVersion: access.smi-spec.io/v1alpha3"), "{text}");
    assert!(text.contains("indent spec.name further"), "{text}");
}
