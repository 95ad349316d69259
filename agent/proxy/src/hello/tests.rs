//! Real hellos, captured as hex: from `openssl s_client` 3, curl and rustls 0.23, the last one also cut into records of 64 bytes.

use proptest::{collection::vec, prelude::*, sample::Index};

use super::*;

const CAPTURED: [(&str, &str, Option<&str>, &[&str]); 6] = [
    ("openssl", include_str!("openssl_s_client.hex"), Some("web.shop.svc.cluster.local"), &["h2", "http/1.1"]),
    ("openssl, TLS 1.2", include_str!("openssl_s_client_tls12.hex"), Some("web.shop.example"), &[]),
    ("openssl, no name", include_str!("openssl_s_client_no_name.hex"), None, &[]),
    ("curl", include_str!("curl.hex"), Some("api.shop.example"), &["h2", "http/1.1"]),
    ("rustls", include_str!("rustls.hex"), Some("grpc.shop.svc"), &["h2", "http/1.1"]),
    ("rustls, fragmented", include_str!("rustls_fragmented.hex"), Some("grpc.shop.svc"), &["h2", "http/1.1"]),
];

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<_> = hex.chars().filter_map(|c| c.to_digit(16)).collect();
    digits.chunks(2).map(|two| u8::try_from(two[0] * 16 + two[1]).unwrap()).collect()
}

fn expected(name: Option<&str>, alpn: &[&str]) -> Hello {
    Hello { server_name: name.map(Into::into), alpn: alpn.iter().map(|name| (*name).into()).collect() }
}

/// What comes out when the bytes come in pieces.
fn fed<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Progress {
    let mut reader = Reader::default();
    pieces
        .into_iter()
        .map(|piece| reader.feed(piece))
        .find(|progress| *progress != Progress::More)
        .unwrap_or(Progress::More)
}

fn record(message: &[u8]) -> Vec<u8> {
    [&[HANDSHAKE, 3, 1][..], &u16::try_from(message.len()).unwrap().to_be_bytes(), message].concat()
}

fn long(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

/// A hello with these extensions, in one record.
fn hello(extensions: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let extensions: Vec<u8> =
        extensions.iter().flat_map(|(kind, data)| [&kind.to_be_bytes()[..], &long(data)].concat()).collect();
    let body = [&[3, 3][..], &[7; 32], &[0], &[0, 2, 0x13, 1], &[1, 0], &long(&extensions)].concat();
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    record(&[&[CLIENT_HELLO], &length[1..], &body].concat())
}

fn named(names: &[(u8, &[u8])]) -> (u16, Vec<u8>) {
    let list: Vec<u8> = names.iter().flat_map(|(kind, name)| [&[*kind][..], &long(name)].concat()).collect();
    (SERVER_NAME, long(&list))
}

fn offering(names: &[&[u8]]) -> (u16, Vec<u8>) {
    let list: Vec<u8> =
        names.iter().flat_map(|name| [&[u8::try_from(name.len()).unwrap()][..], name].concat()).collect();
    (ALPN, long(&list))
}

#[test]
fn real_hellos_are_read_at_once_and_byte_by_byte() {
    for (what, hex, name, alpn) in CAPTURED {
        let bytes = bytes(hex);
        assert_eq!(crate::detect::classify(&bytes[..32], false), Some(crate::detect::Detected::Tls), "{what}");
        assert_eq!(fed([&bytes[..]]), Progress::Done(expected(name, alpn)), "{what}");
        assert_eq!(fed(bytes.chunks(1)), Progress::Done(expected(name, alpn)), "{what}");
        let with_more = [&bytes[..], b"\x14\x03\x03\x00\x01\x01"].concat();
        assert_eq!(fed([&with_more[..]]), Progress::Done(expected(name, alpn)), "{what}");
    }
}

#[test]
fn hello_cut_anywhere_into_two_segments_or_two_records_is_the_same() {
    for (what, hex, name, alpn) in CAPTURED {
        let bytes = bytes(hex);
        for cut in 0..bytes.len() {
            let (one, two) = bytes.split_at(cut);
            assert_eq!(fed([one]), Progress::More, "{what} at {cut}");
            assert_eq!(fed([one, two]), Progress::Done(expected(name, alpn)), "{what} at {cut}");
        }
        if what.contains("fragmented") {
            continue;
        }
        for cut in 6..bytes.len() {
            let records = [record(&bytes[RECORD_HEADER_BYTES..cut]), record(&bytes[cut..])].concat();
            assert_eq!(fed([&records[..]]), Progress::Done(expected(name, alpn)), "{what} at {cut}");
        }
    }
}

#[test]
fn hello_with_any_byte_changed_or_missing_is_refused_or_read_but_never_a_panic() {
    for (_, hex, _, _) in CAPTURED {
        let whole = bytes(hex);
        for at in 0..whole.len() {
            for change in [0x01, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] ^= change;
                let _ = fed([&bytes[..]]);
                let _ = fed(bytes.chunks(7));
            }
            let mut bytes = whole.clone();
            bytes.remove(at);
            let _ = fed([&bytes[..]]);
        }
        // Cut short, with the lengths in front that say it is whole.
        let body = &whole[9..];
        let read: Vec<_> = (0..body.len()).filter_map(|end| parse(&body[..end])).collect();
        assert!(read.is_empty() || read == [Hello::default()], "only where extensions begin it may end: {read:?}");
    }
}

proptest! {
    #[test]
    fn what_is_read_does_not_depend_on_the_cuts(
        which in 0..CAPTURED.len(),
        changes in vec((any::<Index>(), any::<u8>()), 0..4),
        cuts in vec(any::<Index>(), 0..12),
    ) {
        let mut bytes = bytes(CAPTURED[which].1);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len())).chain([0, bytes.len()]).collect();
        cuts.sort_unstable();
        prop_assert_eq!(fed(cuts.windows(2).map(|two| &bytes[two[0]..two[1]])), fed([&bytes[..]]));
    }
}

#[test]
fn names_that_are_no_dns_names_are_none() {
    let long_name = [
        "a".repeat(63).as_bytes(),
        b".",
        "b".repeat(63).as_bytes(),
        b".",
        "c".repeat(63).as_bytes(),
        b".",
        "d".repeat(63).as_bytes(),
    ]
    .concat();
    let rows: [(&[u8], Option<&str>); 13] = [
        (b"a", Some("a")),
        (b"WEB.Shop", Some("web.shop")),
        (b"_dmarc.a-b.xn--bcher-kva.example", Some("_dmarc.a-b.xn--bcher-kva.example")),
        (b"", None),
        (b"web.shop.", None),
        (b".web", None),
        (b"web..shop", None),
        (b"-web", None),
        (b"10.0.0.1", None),
        (b"::1", None),
        (b"web\0shop", None),
        ("b\u{fc}cher".as_bytes(), None),
        (&long_name, None),
    ];
    for (name, expected) in rows {
        let Progress::Done(read) = fed([&hello(&[named(&[(0, name)])])[..]]) else { panic!("{name:?}") };
        assert_eq!(read.server_name.as_deref(), expected, "{:?}", String::from_utf8_lossy(name));
    }
}

#[test]
fn what_could_mean_two_things_means_none() {
    let done = |extensions: &[(u16, Vec<u8>)]| fed([&hello(extensions)[..]]);
    let none = Progress::Done(Hello::default());
    assert_eq!(done(&[named(&[(0, b"a.example"), (0, b"b.example")])]), none);
    assert_eq!(done(&[named(&[(0, b"a.example")]), named(&[(0, b"b.example")])]), Progress::Invalid);
    assert_eq!(done(&[offering(&[b"h2"]), offering(&[b"h2"])]), Progress::Invalid);
    assert_eq!(done(&[named(&[(9, b"x"), (0, b"a.example")])]), Progress::Done(expected(Some("a.example"), &[])));
    assert_eq!(done(&[(SERVER_NAME, vec![0, 9, 0])]), Progress::Invalid);
    assert_eq!(done(&[]), none);
}

#[test]
fn offers_leave_grease_out_and_are_bounded() {
    let many: Vec<_> = (0..100).map(|n| format!("proto-{n:02}")).collect();
    let many: Vec<&[u8]> = many.iter().map(String::as_bytes).collect();
    let Progress::Done(read) = fed([&hello(&[offering(&many)])[..]]) else { panic!() };
    assert_eq!(read.alpn.len(), HELLO_ALPN_BYTES_MAX / "proto-00".len());
    let offered = offering(&[b"\x0a\x0a", b"h2", b"\xff\n"]);
    assert_eq!(fed([&hello(&[offered])[..]]), Progress::Done(expected(None, &["h2", "\\xff\\n"])));
}

#[test]
fn hello_is_read_up_to_its_bound() {
    let padded = |count: usize| {
        let whole = hello(&[named(&[(0, b"a.example")]), (21, vec![0; count])]);
        let records: Vec<u8> = whole[RECORD_HEADER_BYTES..].chunks(TLS_RECORD_BYTES_MAX).flat_map(record).collect();
        fed(records.chunks(1400))
    };
    let empty = hello(&[named(&[(0, b"a.example")]), (21, vec![])]).len() - RECORD_HEADER_BYTES - MESSAGE_HEADER_BYTES;
    assert_eq!(padded(HELLO_BYTES_MAX - empty - 1000), Progress::Done(expected(Some("a.example"), &[])));
    // A message that says it is longer is not waited for.
    let endless = record(&[CLIENT_HELLO, 1, 0, 0, 3, 3]);
    assert_eq!(fed([&endless[..]]), Progress::TooLong);
}

#[test]
fn records_that_are_not_a_hello_are_refused() {
    let rows: [&[u8]; 5] = [
        b"\x16\x03\x01\x00\x00",
        b"\x17\x03\x03\x00\x01\x01",
        b"\x16\x03\x01\x40\x01\x01",
        b"\x16\x03\x01\x00\x01\x02",
        b"GET / HTTP/1.1\r\n",
    ];
    for bytes in rows {
        assert_eq!(fed([bytes]), Progress::Invalid, "{bytes:?}");
        assert_eq!(fed(bytes.chunks(1)), Progress::Invalid, "{bytes:?}");
    }
}
