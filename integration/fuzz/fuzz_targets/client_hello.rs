//! `ClientHello`: pieces of any size give what the whole gives, and what is found is fit to be shown.
//!
//! The first byte of the input says how large the pieces are.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_proxy::fuzzing::{Progress, Reader};

fuzz_target!(|input: &[u8]| {
    let Some((size, bytes)) = input.split_first() else { return };
    let whole = Reader::default().feed(bytes);
    let mut reader = Reader::default();
    let mut pieces = Progress::More;
    for piece in bytes.chunks(usize::from(*size).max(1)) {
        pieces = reader.feed(piece);
        if pieces != Progress::More {
            break;
        }
    }
    assert_eq!(pieces, whole, "in pieces of {size}");
    if let Progress::Done(hello) = whole {
        for shown in hello.server_name.iter().chain(&hello.alpn) {
            assert!(shown.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' '), "{shown:?}");
        }
    }
});
