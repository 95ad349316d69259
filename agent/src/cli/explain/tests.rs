use std::fs;

use clap::Parser;

use super::*;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: ExplainArgs,
}

fn ask(dir: &std::path::Path, args: &[&str]) -> Result<Answer, ExplainError> {
    let dir = dir.to_str().unwrap();
    let manifests = ["--manifests", dir];
    let args = ["explain"].iter().chain(args).chain(&manifests);
    offline(&Cli::parse_from(args).args)
}

const SHOP: &str = r#"apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {weft.dev/mesh: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop}
spec: {nodeName: n1, serviceAccountName: client, containers: []}
status: {phase: Running, podIP: 10.0.0.1, conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}}
spec: {nodeName: n1, serviceAccountName: web, containers: []}
status: {phase: Running, podIP: 10.0.0.2, conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
"#;

#[test]
fn manifests_are_asked_as_the_agent_would_be() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("shop.yaml"), SHOP).unwrap();
    let answer = ask(dir.path(), &["shop/client", "shop/web", "GET", "/", "-H", "user: test"]).unwrap();
    assert!(is_yes(&answer), "{answer:?}");
    let text = show(&answer, OutputFormat::Table);
    for part in
        ["ALLOWED", "Service shop/web, port 80 (http)", "shop/web-1 (10.0.0.2:8080)", "service account shop/web"]
    {
        assert!(text.contains(part), "{part} is missing in:\n{text}");
    }
    let error = ask(dir.path(), &["shop/client", "shop/absent"]).unwrap_err();
    assert!(error.to_string().contains("absent"), "{error}");
}

#[test]
fn a_header_needs_a_colon_and_a_method_a_path() {
    for args in [&["explain", "a", "b", "GET"][..], &["explain", "a", "b", "GET", "/", "-H", "user"], &["explain", "a"]]
    {
        assert!(Cli::try_parse_from(args).is_err(), "{args:?}");
    }
}

#[test]
fn the_default_stance_holds_where_no_target_selects_and_the_namespace_does_not_say() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("shop.yaml"), SHOP).unwrap();
    for (stance, yes) in [("allow", true), ("deny", false)] {
        for udp in [false, true] {
            let mut args = vec!["shop/client", "shop/web-1:8080", "--default-stance", stance];
            args.extend(udp.then_some("--udp"));
            let answer = ask(dir.path(), &args).unwrap();
            assert_eq!(is_yes(&answer), yes, "{stance} {answer:?}");
            let text = show(&answer, OutputFormat::Table);
            assert!(text.contains(&format!("the default is {stance}")), "{text}");
            assert_eq!(text.contains("port 8080 (udp)"), udp, "{text}");
        }
    }
    for (mtls, yes) in [("permissive", true), ("strict", false)] {
        let answer = ask(dir.path(), &["outside", "shop/web-1:8080", "--mtls", mtls]).unwrap();
        assert_eq!(is_yes(&answer), yes, "{mtls} {answer:?}");
        assert_eq!(show(&answer, OutputFormat::Table).contains("Option --mtls=strict takes mutual TLS only"), !yes);
        assert!(is_yes(&ask(dir.path(), &["shop/client", "shop/web-1:8080", "--mtls", mtls]).unwrap()), "{mtls}");
    }
    // The running agent has its own.
    assert!(Cli::try_parse_from(["explain", "a", "b", "--mtls", "strict"]).is_err());
    assert!(Cli::try_parse_from(["explain", "a", "b", "--default-stance", "deny"]).is_err());
    assert!(Cli::try_parse_from(["explain", "a", "b", "GET", "/", "--udp"]).is_err());
}
