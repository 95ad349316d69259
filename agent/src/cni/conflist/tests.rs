use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const CALICO: &str = r#"{
  "name": "k8s-pod-network",
  "cniVersion": "0.3.1",
  "plugins": [
    {"type": "calico", "mtu": 0, "ipam": {"type": "calico-ipam"}, "a number": 1.50, "a big one": 12345678901234567890123},
    {
      "type": "portmap",
      "snat": true, "capabilities": {"portMappings": true}
    }
  ],
  "unknownHere": ["]", "}"]
}
"#;

fn socket() -> &'static Path {
    Path::new("/run/weft/cni.sock")
}

fn types(text: &str) -> Vec<String> {
    let list: Value = serde_json::from_str(text).unwrap();
    list["plugins"].as_array().unwrap().iter().map(|plugin| plugin["type"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_entry_is_put_last_and_nothing_else_is_touched() {
    let with = chained(CALICO, socket()).unwrap().unwrap();
    assert_eq!(types(&with), ["calico", "portmap", "weft-cni"]);
    let list: Value = serde_json::from_str(&with).unwrap();
    assert_eq!(list["plugins"][2], json!({"type": "weft-cni", "socket": "/run/weft/cni.sock"}));
    assert!(with.contains("1.50") && with.contains("12345678901234567890123"), "numbers stay as they were written");
    assert_eq!(chained(&with, socket()).unwrap(), None);
    assert_eq!(unchained(&with).unwrap().unwrap(), CALICO);
    assert_eq!(unchained(CALICO).unwrap(), None);
}

#[test]
fn an_entry_that_is_not_right_is_made_right() {
    let moved = chained(CALICO, Path::new("/elsewhere/cni.sock")).unwrap().unwrap();
    let compact = |plugins: &[&str]| {
        let plugins: Vec<_> = plugins.iter().map(|kind| json!({"type": kind, "socket": socket()})).collect();
        json!({"cniVersion": "1.0.0", "name": "n", "plugins": plugins}).to_string()
    };
    for (text, expected) in [
        (moved, &["calico", "portmap", "weft-cni"][..]),
        (compact(&["weft-cni", "bridge"]), &["bridge", "weft-cni"]),
        (compact(&["weft-cni", "weft-cni", "bridge"]), &["bridge", "weft-cni"]),
        (compact(&["bridge", "weft-cni", "portmap"]), &["bridge", "portmap", "weft-cni"]),
        (compact(&["bridge", "weft-cni", "weft-cni"]), &["bridge", "weft-cni"]),
        (
            compact(&["weft-cni", "bridge", "weft-cni", "weft-cni", "portmap", "weft-cni"]),
            &["bridge", "portmap", "weft-cni"],
        ),
    ] {
        let with = chained(&text, socket()).unwrap().unwrap();
        assert_eq!(types(&with), expected, "{text}");
        assert_eq!(chained(&with, socket()).unwrap(), None, "{with}");
        let without = unchained(&with).unwrap().unwrap();
        assert_eq!(types(&without), expected[..expected.len() - 1], "{with}");
    }
}

#[test]
fn what_is_no_list_is_left_alone() {
    for text in [
        "",
        "{",
        "[]",
        r#"[[{"type":"bridge"}]]"#,
        r#"{"name":"n","type":"bridge"}"#,
        r#"{"plugins":{}}"#,
        // Which of the two a runtime means is not known.
        r#"{"plugins":[{"type":"a"}],"plugins":[{"type":"b"}]}"#,
    ] {
        assert!(matches!(chained(text, socket()), Err(ConflistError::Unreadable(_))), "{text}");
        assert!(unchained(text).is_err(), "{text}");
    }
    for text in [r#"{"plugins":[]}"#, r#"{"plugins":[{"type":"weft-cni","socket":"/run/weft/cni.sock"}]}"#] {
        assert!(matches!(chained(text, socket()), Err(ConflistError::NoPlugin)), "{text}");
    }
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(any::<String>(), inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn list() -> impl Strategy<Value = String> {
    let plugin = (prop::sample::select(vec!["bridge", "portmap", "weft", "cilium-cni"]), value())
        .prop_map(|(kind, settings)| json!({"type": kind, "settings": settings}));
    (prop::collection::vec(plugin, 1..5), value(), any::<bool>()).prop_map(|(plugins, other, pretty)| {
        let list = json!({"cniVersion": "1.0.0", "name": "n", "plugins": plugins, "other": other});
        if pretty { serde_json::to_string_pretty(&list).unwrap() } else { list.to_string() }
    })
}

proptest! {
    #[test]
    fn putting_in_and_taking_out_gives_the_same_text(text in list()) {
        let with = chained(&text, socket()).unwrap().unwrap();
        let (before, after): (Value, Value) = (serde_json::from_str(&text).unwrap(), serde_json::from_str(&with).unwrap());
        let plugins = after["plugins"].as_array().unwrap();
        prop_assert_eq!(&plugins[..plugins.len() - 1], &before["plugins"].as_array().unwrap()[..]);
        prop_assert_eq!(&after["other"], &before["other"]);
        prop_assert_eq!(chained(&with, socket()).unwrap(), None);
        prop_assert_eq!(unchained(&with).unwrap().unwrap(), text);
    }

    #[test]
    fn no_text_panics(text in ".{0,200}|[\\[\\]{}\",:a-z ]{0,80}") {
        let _ = (chained(&text, socket()).is_ok(), unchained(&text).is_ok());
    }
}
