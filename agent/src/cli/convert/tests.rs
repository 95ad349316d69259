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

/// As courses on Istio teach it: a fault for some requests, mutual TLS, and a route of a Gateway.
const LAB: &str = r#"apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata: { name: kvstore-500 }
spec:
  hosts: [ kvstore ]
  http:
    # every 10th request fails
    - match: [ uri: { exact: "/api/list" } ]
      fault: { abort: { httpStatus: 500, percentage: { value: 10 } } }
      route: [ destination: { host: kvstore } ]
    - route: [ destination: { host: kvstore } ]
---
apiVersion: security.istio.io/v1beta1
kind: PeerAuthentication
metadata: { name: default }
spec:
  mtls:
    mode: STRICT
---
apiVersion: gateway.networking.k8s.io/v1beta1
kind: HTTPRoute
metadata:
  name: splitdim
spec:
  parentRefs:
    - name: splitdim
  rules:
    - backendRefs: [{name: splitdim, port: 80}]
---
apiVersion: networking.istio.io/v1alpha3
kind: Gateway
metadata: { name: lab }
spec: { selector: { istio: ingressgateway } }
"#;

#[test]
fn what_no_object_of_smi_can_say_is_refused_by_name_in_manifests_as_courses_have_them() {
    for partial in [false, true] {
        let report = convert(&files::parse("lab.yaml", LAB), partial);
        let refused: Vec<_> =
            report.refused.iter().map(|one| (one.line, one.object.as_str(), one.field.as_str())).collect();
        assert_eq!(
            refused,
            [(9, "VirtualService default/kvstore-500", "spec.http[0].fault"), (31, "Gateway default/lab", "kind"),],
            "{report:?}"
        );
        assert!(report.refused.iter().all(|one| !one.why.is_empty()));
        assert_eq!(report.ignored, 1);
        // The mode of the namespace, which is a label of weft's.
        assert!(partial || report.objects.len() == 1, "{:?}", report.objects);
    }
}
