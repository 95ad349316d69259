use std::time::Instant;

use super::*;

const RESULT: &str = r#"{"cniVersion": "1.0.0",  "ips":[{"address":"10.1.2.3/24","interface":0},{"address":"fd00::3/64"}],
  "dns":{}, "aPluginsOwn": [1.50, 12345678901234567890]}"#;
const ARGS: &str =
    "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=c;K8S_POD_UID=u-1";

fn environment(command: &str) -> Environment {
    Environment {
        command: command.to_owned(),
        container_id: "c".to_owned(),
        netns: "/proc/self/ns/net".to_owned(),
        interface: "eth0".to_owned(),
        args: ARGS.to_owned(),
    }
}

fn configuration(version: &str, rest: &str) -> String {
    format!(r#"{{"cniVersion":"{version}","name":"n","type":"weft-cni","socket":"/nonexistent/weft/cni.sock"{rest}}}"#)
}

fn with_result(version: &str) -> String {
    configuration(version, &format!(r#","prevResult":{RESULT}"#))
}

#[test]
fn each_command_is_answered_as_the_specification_says() {
    for version in VERSIONS {
        let added = answer(&environment("ADD"), &with_result(version), limits::CNI_WAIT_MAX).unwrap();
        assert_eq!(added.output, RESULT, "to the byte");
        assert!(added.note.unwrap().contains("shop/web-0 starts without capture"), "there is no agent");
    }
    for (command, text) in [
        ("CHECK", with_result("1.0.0")),
        ("DEL", with_result("1.0.0")),
        ("DEL", configuration("0.4.0", "")),
        ("GC", configuration("1.1.0", r#","cni.dev/valid-attachments":[]"#)),
        ("STATUS", configuration("1.1.0", "")),
    ] {
        assert_eq!(run(&environment(command), text.as_bytes()), Ok(Success::default()), "{command}");
    }
    let version = answer(&environment("VERSION"), r#"{"cniVersion":"1.0.0"}"#, limits::CNI_WAIT_MAX).unwrap();
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&version.output).unwrap(),
        serde_json::json!({"cniVersion": "1.0.0", "supportedVersions": ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]})
    );
}

#[test]
fn what_is_not_understood_is_refused_by_name_and_code() {
    let without = |change: fn(&mut Environment)| {
        let mut environment = environment("ADD");
        change(&mut environment);
        environment
    };
    for (environment, text, code, said) in [
        (environment("ADD"), String::new(), 6, "network configuration cannot be read"),
        (environment("ADD"), "{".to_owned(), 6, "network configuration cannot be read"),
        (environment("ADD"), "[]".to_owned(), 6, "network configuration cannot be read"),
        (environment("VERSION"), "nonsense".to_owned(), 6, "network configuration cannot be read"),
        (environment("ADD"), r#"{"cniVersion":7}"#.to_owned(), 6, "network configuration cannot be read"),
        (environment("ADD"), with_result("0.2.0"), 1, "cniVersion"),
        (environment("ADD"), with_result("2.0.0"), 1, "cniVersion"),
        (environment("DEL"), r#"{"name":"n"}"#.to_owned(), 1, "cniVersion"),
        (environment("ADD"), configuration("1.0.0", ""), 7, "prevResult"),
        (environment("ADD"), configuration("1.0.0", r#","prevResult":null"#), 7, "prevResult"),
        (environment("CHECK"), configuration("1.0.0", ""), 7, "prevResult"),
        (environment("ADD"), configuration("1.0.0", r#","prevResult":"10.0.0.1""#), 6, "prevResult"),
        (environment("ADD"), configuration("1.0.0", r#","prevResult":{"ips":[{"address":7}]}"#), 6, "prevResult"),
        (environment("REMOVE"), with_result("1.0.0"), 4, "CNI_COMMAND"),
        (environment(""), with_result("1.0.0"), 4, "CNI_COMMAND"),
        (without(|e| e.netns.clear()), with_result("1.0.0"), 4, "CNI_NETNS"),
        (without(|e| e.container_id.clear()), with_result("1.0.0"), 4, "CNI_CONTAINERID"),
        (without(|e| e.interface.clear()), with_result("1.0.0"), 4, "CNI_IFNAME"),
        (without(|e| e.netns = "x".repeat(9)), "\u{0}".to_owned(), 6, "network configuration"),
    ] {
        let refusal = run(&environment, text.as_bytes()).expect_err(&text);
        assert_eq!(refusal.code, code, "{text}: {refusal:?}");
        assert!(format!("{} {}", refusal.msg, refusal.details).contains(said), "{text}: {refusal:?}");
        let document = serde_json::to_value(&refusal).unwrap();
        assert_eq!(document["cniVersion"], "1.1.0");
    }
    let refusal = run(&environment("ADD"), &[b'"', 0xff, b'"'][..]).unwrap_err();
    assert_eq!(refusal.code, 6, "no text: {refusal:?}");
    let long = " ".repeat(usize::try_from(limits::CNI_CONFIG_BYTES_MAX).unwrap() + 1);
    assert_eq!(run(&environment("ADD"), long.as_bytes()).unwrap_err().code, 6);
}

#[test]
fn a_sandbox_of_no_pod_asks_nobody() {
    for args in
        ["", "IgnoreUnknown=1", "K8S_POD_NAMESPACE=shop", "K8S_POD_NAME=;K8S_POD_NAMESPACE=shop", ";;==;K8S_POD_NAME"]
    {
        let environment = Environment { args: args.to_owned(), ..environment("ADD") };
        let added = answer(&environment, &with_result("1.0.0"), limits::CNI_WAIT_MAX).unwrap();
        assert_eq!(added, Success { output: RESULT.to_owned(), note: None }, "{args}");
    }
}

#[test]
fn the_agent_is_told_which_pod_and_which_addresses() {
    let network: Network<'_> = serde_json::from_str(RESULT).unwrap();
    let asked = question(ARGS, &network).unwrap();
    assert_eq!((&*asked.namespace, &*asked.name, asked.uid.as_deref()), ("shop", "web-0", Some("u-1")));
    assert_eq!(asked.ips, ["10.1.2.3".parse::<IpAddr>().unwrap(), "fd00::3".parse().unwrap()]);
    let strange: Network<'_> = serde_json::from_str(r#"{"ips":[{"address":"here"},{"address":"10.0.0.1"}]}"#).unwrap();
    assert_eq!(question(ARGS, &strange).unwrap().ips, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
}

#[test]
fn a_namespace_that_is_gone_holds_nobody_up() {
    let environment = Environment { netns: "/nonexistent/netns".to_owned(), ..environment("ADD") };
    let since = Instant::now();
    let added = answer(&environment, &with_result("1.0.0"), limits::CNI_WAIT_MAX).unwrap();
    assert!(since.elapsed() < limits::CNI_WAIT_MAX);
    assert!(added.note.unwrap().contains("CNI_NETNS /nonexistent/netns"));
}
