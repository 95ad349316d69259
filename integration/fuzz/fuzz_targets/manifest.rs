//! Manifests: whatever a file holds, it is read, lowered and compiled without a panic, and twice to the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_crds::{
    lower::{lower, lower_all},
    parse::parse,
    store::{ObjectEvent, ObjectStore},
};
use weft_policy::compile::Compiler;

#[allow(dead_code, reason = "where a document stands in its file is for people")]
#[path = "../../../agent/src/watch/yaml.rs"]
mod yaml;

fuzz_target!(|text: &str| {
    let mut store = ObjectStore::default();
    let mut compiler = Compiler::default();
    for document in yaml::documents(text) {
        let Ok(value) = document.value else { continue };
        for (object, _) in parse(&value).objects {
            let dirty = store.apply([ObjectEvent::Apply(object)]);
            compiler.apply(lower(&store, &dirty));
        }
    }
    let (model, diagnostics) = (lower_all(&store), compiler.diagnostics());
    assert_eq!(compiler.ir(), &model, "step by step leads elsewhere than all at once");
    assert_eq!(compiler.diagnostics(), diagnostics);
});
