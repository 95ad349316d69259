use super::*;
use crate::cli::lint;

/// A canary with subsets and a cookie, and a kind that cannot be carried.
const CANARY: &str = r#"apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.1
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata: {name: canary, namespace: shop}
spec:
  hosts: [web]
  http:
  - match:
    - headers:
        cookie:
          regex: "^(.*?;)?(usertype=tester)(;.*)?$"
    route:
    - destination: {host: web, subset: v2}
  - route:
    - destination: {host: web, subset: v1}
---
apiVersion: networking.istio.io/v1alpha3
kind: DestinationRule
metadata: {name: canary, namespace: shop}
spec:
  host: web
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
"#;

const RETRIES: &str = r"apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata:
  name: retries
  namespace: shop
spec:
  hosts: [web]
  http:
  - route:
    - destination:
        host: web
    timeout: 30s
    retries:
      attempts: 30
      perTryTimeout: 1s
";

#[test]
fn what_is_converted_passes_lint_with_what_was_there_before() {
    let report = convert(&files::parse("canary.yaml", CANARY), false);
    assert!(report.complete(), "{:?}", report.refused);
    let out = report.show(OutputFormat::Table);
    assert!(out.contains("# from VirtualService shop/canary"), "{out}");
    // The converted Services stand beside the one that was there.
    let before: String = CANARY.split("---\n").take(1).collect();
    let lint = lint::check(&files::parse("out.yaml", &format!("{before}\n{out}")), true);
    assert_eq!(lint.findings, [], "{out}");
    assert_eq!(lint.objects, 6);
}

#[test]
fn what_is_refused_is_named_with_file_line_and_field_and_nothing_comes_of_it() {
    let report = convert(&files::parse("retries.yaml", RETRIES), false);
    assert_eq!(report.objects, [] as [Value; 0]);
    let refused: Vec<_> = report.refused.iter().map(|one| (one.line, one.field.as_str())).collect();
    assert_eq!(refused, [(13, "spec.http[0].retries"), (12, "spec.http[0].timeout")]);
    assert!(
        report.remarks()[0]
            .starts_with("retries.yaml:13: refused: VirtualService shop/retries, spec.http[0].retries: "),
        "{:?}",
        report.remarks()
    );
}

#[test]
fn a_document_that_is_no_yaml_is_refused_too() {
    let report = convert(&files::parse("x.yaml", "a: [\n"), true);
    assert_eq!(report.refused.len(), 1);
    assert!(!report.complete());
}
