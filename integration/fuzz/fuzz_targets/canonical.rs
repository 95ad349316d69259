//! Canonical requests: what is forwarded reads, for another parser and a server that walks directories, as what was routed and
//! authorized; and a second pass changes nothing.
#![no_main]

use http::{Request, Version, header};
use libfuzzer_sys::fuzz_target;
use weft_proxy::fuzzing::canonical;

/// Fields of a request; the data path lets fewer through.
const FIELDS_MAX: usize = 100;
/// Fields of what is forwarded: `Host` is put in where the target alone says it.
const FORWARDED_MAX: usize = FIELDS_MAX + 1;

/// A head as `httparse` has it, as hyper would hand it over; `None` if hyper would refuse it.
fn read(bytes: &[u8], fields_max: usize) -> Option<Request<()>> {
    let mut fields = vec![httparse::EMPTY_HEADER; fields_max];
    let mut head = httparse::Request::new(&mut fields);
    let Ok(httparse::Status::Complete(_)) = head.parse(bytes) else { return None };
    let version = if head.version? == 0 { Version::HTTP_10 } else { Version::HTTP_11 };
    let mut request = Request::builder().method(head.method?).uri(head.path?).version(version);
    for field in head.headers.iter() {
        request = request.header(field.name, field.value);
    }
    request.body(()).ok()
}

/// The head as it goes to an endpoint.
fn written(request: &Request<()>) -> Vec<u8> {
    let mut bytes = format!("{} {} HTTP/1.1\r\n", request.method(), request.uri()).into_bytes();
    for (name, value) in request.headers() {
        bytes.extend(name.as_str().bytes());
        bytes.extend(b": ");
        bytes.extend(value.as_bytes());
        bytes.extend(b"\r\n");
    }
    bytes.extend(b"\r\n");
    bytes
}

/// Where a server comes to that decodes each segment and goes from directory to directory.
fn walked(path: &str) -> Vec<Vec<u8>> {
    let mut place = Vec::new();
    for segment in path.split('/') {
        let (mut bytes, mut decoded) = (segment.bytes(), Vec::new());
        while let Some(byte) = bytes.next() {
            let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16)).expect("a digit");
            decoded.push(match byte {
                b'%' => u8::try_from(digit(bytes.next()) * 16 + digit(bytes.next())).expect("a byte"),
                byte => byte,
            });
        }
        match decoded.as_slice() {
            b"" | b"." => {}
            b".." => _ = place.pop(),
            _ => place.push(decoded),
        }
    }
    place
}

fuzz_target!(|bytes: &[u8]| {
    let Some(mut request) = read(bytes, FIELDS_MAX) else { return };
    for version in [request.version(), Version::HTTP_2] {
        let mut request = request.clone();
        *request.version_mut() = version;
        _ = canonical(&mut request);
    }
    let sent = request.uri().clone();
    if canonical(&mut request).is_err() {
        return;
    }
    let text = written(&request);
    let shown = String::from_utf8_lossy(&text);
    let mut fields = [httparse::EMPTY_HEADER; FORWARDED_MAX];
    let mut head = httparse::Request::new(&mut fields);
    assert_eq!(head.parse(&text).expect("it was read once"), httparse::Status::Complete(text.len()), "{shown}");
    let target = head.path.expect("a target");
    let path = target.split('?').next().unwrap_or_default();
    // What rules look at is what is sent.
    assert_eq!(request.uri().path(), path, "{shown}");
    assert_eq!(request.uri().query(), sent.query(), "{shown}");
    if path != "*" {
        assert_eq!(walked(path), walked(sent.path()), "{shown}");
        assert!(path.starts_with('/') && !path.contains("//"), "{shown}");
        assert!(path.split('/').all(|segment| segment != "." && segment != ".."), "{shown}");
        let lower = path.to_ascii_lowercase();
        for refused in ["%2f", "%5c", "%00", "\\", "#", "/;", "/.;", "/..;", "/..%3b", "%2e"] {
            assert!(!lower.contains(refused), "{refused} in {shown}");
        }
    }
    let values = |name: &str| head.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name)).count();
    let hosts = usize::from(request.version() != Version::HTTP_10 || request.headers().contains_key(header::HOST));
    assert_eq!(values("host"), hosts, "{shown}");
    assert!(values("content-length") <= 1 && values("expect") <= 1, "{shown}");
    assert_eq!(values("transfer-encoding") + values("keep-alive") + values("proxy-connection"), 0, "{shown}");
    for field in head.headers.iter() {
        let name = field.name.replace('_', "-");
        assert!(!name.starts_with("weft-") && !name.starts_with("x-weft-"), "{shown}");
        assert!(name != "x-forwarded-client-cert" && (name == field.name || values(&name) == 0), "{shown}");
    }
    // Once more, as a second proxy would.
    let mut again = read(&text, FORWARDED_MAX).expect("it was read once");
    *again.version_mut() = request.version();
    canonical(&mut again).unwrap_or_else(|reason| panic!("{reason:?}: {shown}"));
    // Fields of different names have no order.
    let lines = |text: &[u8]| {
        let mut lines: Vec<Vec<u8>> = text.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
        lines.sort();
        lines
    };
    assert_eq!(lines(&written(&again)), lines(&text), "{shown}");
});
