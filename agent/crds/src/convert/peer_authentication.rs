//! PeerAuthentication to the label `weft.dev/mtls` of a namespace.

use serde_json::{Value, json};

use super::{
    access::ISTIO_ROOT_NAMESPACE,
    fields::{Object, Refusals},
};

/// The label.
pub(super) const LABEL: &str = "weft.dev/mtls";

pub(super) fn convert(object: &Object<'_>, refusals: &mut Refusals) -> Vec<Value> {
    let Some(spec) = object.spec(refusals) else { return Vec::new() };
    let reasons = [
        ("selector", "weft has one mode for a whole namespace"),
        ("portLevelMtls", "weft has one mode for all ports; probes of the node pass in each"),
    ];
    refusals.only(spec, "spec", &["mtls"], &reasons);
    let mode = match spec.get("mtls") {
        None => "UNSET",
        Some(Value::Object(mtls)) => {
            refusals.only(mtls, "spec.mtls", &["mode"], &[]);
            match mtls.get("mode") {
                None => "UNSET",
                Some(Value::String(mode)) => mode,
                Some(_) => "",
            }
        }
        Some(_) => {
            refusals.refuse("spec.mtls", "must be a map");
            return Vec::new();
        }
    };
    let everywhere = object.namespace == ISTIO_ROOT_NAMESPACE;
    let label = match (mode, everywhere) {
        ("STRICT", false) => "strict",
        ("STRICT", true) => {
            refusals.refuse(
                "spec.mtls.mode",
                format!("STRICT holds for every namespace: start weft's agents with --mtls strict, or label each with {LABEL}=strict"),
            );
            return Vec::new();
        }
        ("PERMISSIVE" | "DISABLE" | "UNSET", true) => {
            refusals.note(
                "spec.mtls.mode",
                format!("{mode} for every namespace is what weft does where neither a label nor --mtls says otherwise"),
            );
            return Vec::new();
        }
        ("PERMISSIVE", false) => "permissive",
        ("DISABLE", false) => {
            refusals.note(
                "spec.mtls.mode",
                "weft takes plaintext then, as it does without a label, and mutual TLS from pods of other nodes",
            );
            "permissive"
        }
        ("UNSET", false) => {
            refusals.note("spec.mtls.mode", "it says nothing, so nothing comes of it");
            return Vec::new();
        }
        (other, _) => {
            refusals.refuse("spec.mtls.mode", format!("{other:?} is none of STRICT, PERMISSIVE, DISABLE, UNSET"));
            return Vec::new();
        }
    };
    vec![json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": object.namespace, "labels": {LABEL: label}},
    })]
}
