use http_body_util::{Full, StreamBody};
use serde_json::json;

use super::*;

/// A body that arrives in the given pieces.
fn body(pieces: &[&'static str]) -> impl http_body::Body<Data = Bytes, Error = std::convert::Infallible> + Unpin {
    let frames: Vec<_> =
        pieces.iter().map(|piece| Ok(http_body::Frame::data(Bytes::from_static(piece.as_bytes())))).collect();
    StreamBody::new(futures_util::stream::iter(frames))
}

async fn lines(pieces: &[&'static str]) -> Vec<String> {
    let mut lines = Lines::new(body(pieces));
    let mut all = Vec::new();
    while let Some(line) = lines.next().await.unwrap() {
        all.push(String::from_utf8(line).unwrap().trim_end().to_owned());
    }
    all
}

#[tokio::test]
async fn lines_are_whole_however_they_arrive() {
    for (pieces, expected) in [
        (&["a\nb\n"][..], &["a", "b"][..]),
        (&["a", "b\nc", "\n"], &["ab", "c"]),
        (&["a\n", "cut off"], &["a"]),
        (&["\n\r\n", "a\r\n"], &["a"]),
        (&[""], &[]),
    ] {
        assert_eq!(lines(pieces).await, expected, "{pieces:?}");
    }
}

#[tokio::test]
async fn an_event_without_an_end_is_given_up() {
    let endless = Bytes::from(vec![b'x'; limits::KUBE_EVENT_BYTES_MAX + 1]);
    let failure = Lines::new(Full::new(endless)).next().await.unwrap_err();
    assert_eq!(failure.reason, Reason::Unreadable);
}

#[test]
fn events_tell_what_happened_and_at_which_version() {
    let object = json!({"metadata": {"name": "a", "resourceVersion": "7"}});
    let read = |kind: &str| event(json!({"type": kind, "object": object}).to_string().as_bytes()).unwrap();
    assert!(matches!(read("ADDED"), Event::Applied(version, _) if version == "7"));
    assert!(matches!(read("MODIFIED"), Event::Applied(..)));
    assert!(matches!(read("DELETED"), Event::Deleted(version, _) if version == "7"));
    let bookmark = json!({"type": "BOOKMARK", "object": {"kind": "Pod", "apiVersion": "v1", "metadata": {"resourceVersion": "9"}}});
    assert!(matches!(event(bookmark.to_string().as_bytes()).unwrap(), Event::Bookmark(version) if version == "9"));
}

#[test]
fn refusals_have_reasons() {
    for (code, reason, expected) in [
        (410, "Expired", Reason::Expired),
        (500, "Expired", Reason::Expired),
        (401, "Unauthorized", Reason::Unauthorized),
        (403, "Forbidden", Reason::Forbidden),
        (404, "NotFound", Reason::NotServed),
        (429, "TooManyRequests", Reason::Throttled),
        (503, "ServiceUnavailable", Reason::Refused),
    ] {
        let status = json!({"type": "ERROR", "object": {"kind": "Status", "code": code, "reason": reason, "message": "no", "details": {"retryAfterSeconds": 3}}});
        let failure = event(status.to_string().as_bytes()).unwrap_err();
        assert_eq!(failure.reason, expected, "{code} {reason}");
        assert_eq!(failure.retry_after, Some(Duration::from_secs(3)));
    }
}

#[test]
fn nonsense_is_unreadable_and_no_panic() {
    for line in ["", "null", "{}", "[]", "{\"type\":\"ADDED\"}", "{\"type\":\"OTHER\",\"object\":{}}", "<html>"] {
        assert_eq!(event(line.as_bytes()).unwrap_err().reason, Reason::Unreadable, "{line}");
    }
    for body in ["", "{}", "{\"items\": 3}", "{\"metadata\": {}, \"items\": []}"] {
        assert_eq!(page(body.as_bytes()).unwrap_err().reason, Reason::Unreadable, "{body}");
    }
}
