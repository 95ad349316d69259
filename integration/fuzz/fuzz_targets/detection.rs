//! Detection: what a client's first bytes are taken for never depends on how they were cut.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_proxy::fuzzing::classify;

fuzz_target!(|bytes: &[u8]| {
    for declared_http in [false, true] {
        let mut verdict = None;
        for end in 0..=bytes.len() {
            let now = classify(&bytes[..end], declared_http);
            if verdict.is_some() {
                assert_eq!(now, verdict, "after {end} bytes, declared: {declared_http}");
            }
            verdict = now;
        }
    }
});
