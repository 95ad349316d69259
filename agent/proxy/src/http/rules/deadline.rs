//! How long a caller waits, as it says itself: in `grpc-timeout` (grpc/doc/PROTOCOL-HTTP2.md), or in `weft-deadline`, which is for any
//! request and holds the milliseconds that are left. Whoever gets the request is told what is left then.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const DEADLINE: HeaderName = HeaderName::from_static("weft-deadline");
/// Most digits of a `grpc-timeout`.
const DIGITS_MAX: usize = 8;

/// Whether a request says it.
pub(crate) fn is_said(headers: &HeaderMap, grpc: bool) -> bool {
    headers.contains_key(DEADLINE) || (grpc && headers.contains_key(GRPC_TIMEOUT))
}

/// What a request says: the shorter of the two. What cannot be read says nothing.
pub(super) fn said(headers: &HeaderMap, grpc: bool) -> Option<Duration> {
    let call = headers.get(GRPC_TIMEOUT).filter(|_| grpc).and_then(|value| of_call(value.as_bytes()));
    let any = headers.get(DEADLINE).and_then(|value| number(value.as_bytes())).map(Duration::from_millis);
    match (call, any) {
        (Some(call), Some(any)) => Some(call.min(any)),
        (call, any) => call.or(any),
    }
}

/// Says what is left, where the request says something that can be read.
pub(super) fn tell(headers: &mut HeaderMap, grpc: bool, left: Duration) {
    let millis = left.as_millis();
    if let Some(value) = headers.get_mut(DEADLINE).filter(|value| number(value.as_bytes()).is_some()) {
        *value = HeaderValue::from(u64::try_from(millis).unwrap_or(u64::MAX));
    }
    if let Some(value) = headers.get_mut(GRPC_TIMEOUT).filter(|value| grpc && of_call(value.as_bytes()).is_some()) {
        let most = 10_u128.pow(DIGITS_MAX as u32) - 1;
        let text = if millis <= most { format!("{millis}m") } else { format!("{}S", (millis / 1000).min(most)) };
        if let Ok(text) = HeaderValue::from_str(&text) {
            *value = text;
        }
    }
}

fn number(digits: &[u8]) -> Option<u64> {
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn of_call(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    let count = number(digits).filter(|_| digits.len() <= DIGITS_MAX)?;
    Some(match unit {
        b'H' => Duration::from_secs(count * 3600),
        b'M' => Duration::from_secs(count * 60),
        b'S' => Duration::from_secs(count),
        b'm' => Duration::from_millis(count),
        b'u' => Duration::from_micros(count),
        b'n' => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_read_and_the_shorter_one_counts() {
        let ms = Duration::from_millis;
        for (call, any, expect) in [
            (Some("5S"), None, Some(ms(5000))),
            (Some("100m"), Some("50"), Some(ms(50))),
            (Some("1H"), Some("x"), Some(ms(3_600_000))),
            (Some("99999999n"), None, Some(Duration::from_nanos(99_999_999))),
            (Some("0S"), None, Some(ms(0))),
            (Some("100000000m"), None, None),
            (Some("5"), None, None),
            (Some("S"), None, None),
            (Some("-5S"), None, None),
            (Some("5s"), None, None),
            (None, Some("250"), Some(ms(250))),
            (None, Some("+250"), None),
            (None, Some("99999999999999999999"), None),
            (None, Some(""), None),
            (None, None, None),
        ] {
            let fields = [(GRPC_TIMEOUT, call), (DEADLINE, any)];
            let headers: HeaderMap =
                fields.into_iter().filter_map(|(name, value)| Some((name, HeaderValue::from_static(value?)))).collect();
            assert_eq!(said(&headers, true), expect, "{call:?} {any:?}");
        }
    }

    #[test]
    fn what_is_left_is_told_where_something_was_said() {
        let mut headers = HeaderMap::from_iter([(GRPC_TIMEOUT, HeaderValue::from_static("1H"))]);
        tell(&mut headers, true, Duration::from_millis(1234));
        assert_eq!((headers[GRPC_TIMEOUT].as_bytes(), headers.len()), (&b"1234m"[..], 1));
        tell(&mut headers, true, Duration::from_secs(200_000));
        assert_eq!(headers[GRPC_TIMEOUT], "200000S", "eight digits are the most");
    }
}
