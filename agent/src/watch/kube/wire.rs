//! Requests to the API server and what it answers, as far as watching needs it.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use kube::{
    Client,
    client::Body,
    core::{Status, WatchEvent},
};
use serde::Deserialize;
use serde_json::{Value, value::RawValue};
use tokio::time::timeout;

use super::health::Reason;
use crate::{limits, telemetry::Chain};

/// Why a request or a watch failed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) reason: Reason,
    /// Status code of the answer; 0 if there was none.
    pub(crate) code: u16,
    /// For people.
    pub(crate) message: String,
    /// The pause that the API server asks for.
    pub(crate) retry_after: Option<Duration>,
    /// The answer was longer than what is read of one.
    pub(super) too_large: bool,
}

impl Failure {
    pub(crate) fn new(reason: Reason, message: String) -> Self {
        Self { reason, code: 0, message, retry_after: None, too_large: false }
    }

    pub(crate) fn unreadable(error: &serde_json::Error) -> Self {
        Self::new(Reason::Unreadable, error.to_string())
    }

    /// A request that cannot even be written; only a mistake of ours makes one.
    pub(super) fn request(error: &kube::core::request::Error) -> Self {
        Self::new(Reason::Refused, Chain(error).to_string())
    }

    fn unreachable(error: &dyn std::error::Error) -> Self {
        Self::new(Reason::Unreachable, Chain(error).to_string())
    }

    fn timeout() -> Self {
        Self::new(Reason::Timeout, format!("no answer within {} s", limits::KUBE_REQUEST_TIMEOUT.as_secs()))
    }

    /// From the status that an API server answers with, or puts into a watch.
    pub(super) fn status(status: &Status) -> Self {
        let reason = match (status.code, &*status.reason) {
            (401, _) => Reason::Unauthorized,
            (403, _) => Reason::Forbidden,
            (404, _) => Reason::NotServed,
            (410, _) | (_, "Expired" | "Gone") => Reason::Expired,
            (429, _) => Reason::Throttled,
            _ => Reason::Refused,
        };
        let asked = status.details.as_ref().map(|details| details.retry_after_seconds).filter(|seconds| *seconds > 0);
        Self {
            code: status.code,
            retry_after: asked.map(|seconds| Duration::from_secs(seconds.into())),
            ..Self::new(reason, format!("{} {}: {}", status.code, status.reason, status.message))
        }
    }
}

/// Sends a request and reads the whole answer.
pub(crate) async fn ask(client: &Client, request: http::Request<Vec<u8>>) -> Result<Bytes, Failure> {
    let answer = async {
        let body = open(client, request).await?;
        collect(body, limits::KUBE_PAGE_BYTES_MAX).await
    };
    timeout(limits::KUBE_REQUEST_TIMEOUT, answer).await.unwrap_or_else(|_| Err(Failure::timeout()))
}

/// Sends a request, and returns the body of an answer that is no error.
pub(super) async fn open(client: &Client, request: http::Request<Vec<u8>>) -> Result<Body, Failure> {
    let answer = async {
        let response = client.send(request.map(Body::from)).await.map_err(|error| Failure::unreachable(&error))?;
        let (head, body) = response.into_parts();
        if head.status.is_success() {
            return Ok(body);
        }
        let retry_after =
            head.headers.get(http::header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let body = collect(body, limits::KUBE_ERROR_BYTES_MAX).await.unwrap_or_default();
        let mut failure = Failure::status(&status(head.status, &body));
        failure.retry_after = failure.retry_after.or(retry_after.map(Duration::from_secs));
        Err(failure)
    };
    timeout(limits::KUBE_REQUEST_TIMEOUT, answer).await.unwrap_or_else(|_| Err(Failure::timeout()))
}

/// What stands between may answer something else than a Status, or with another code in it.
fn status(code: StatusCode, body: &[u8]) -> Status {
    let mut status: Status = serde_json::from_slice(body).unwrap_or_default();
    status.code = code.as_u16();
    if status.message.is_empty() {
        code.canonical_reason().unwrap_or("unknown status").clone_into(&mut status.message);
    }
    status
}

async fn collect(body: Body, bytes_max: usize) -> Result<Bytes, Failure> {
    match Limited::new(body, bytes_max).collect().await {
        Ok(whole) => Ok(whole.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            let message = format!("an answer of more than {bytes_max} bytes is not read");
            Err(Failure { too_large: true, ..Failure::new(Reason::Unreadable, message) })
        }
        Err(error) => Err(Failure::unreachable(&*error)),
    }
}

/// A page of a list. Items are read one by one: as values they are many times as large as their text.
#[derive(Debug, Deserialize)]
pub(super) struct Page<'a> {
    pub(super) metadata: PageMeta,
    #[serde(borrow, default)]
    pub(super) items: Vec<&'a RawValue>,
}

/// Metadata of a page.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PageMeta {
    pub(super) resource_version: String,
    #[serde(rename = "continue", default)]
    pub(super) next: Option<String>,
}

pub(super) fn page(body: &[u8]) -> Result<Page<'_>, Failure> {
    serde_json::from_slice(body).map_err(|error| Failure::unreadable(&error))
}

/// One event of a watch: the version of the object, and the object.
#[derive(Debug)]
pub(super) enum Event {
    Applied(String, Value),
    Deleted(String, Value),
    Bookmark(String),
}

pub(super) fn event(line: &[u8]) -> Result<Event, Failure> {
    let version =
        |object: &Value| object.pointer("/metadata/resourceVersion").and_then(Value::as_str).unwrap_or_default().into();
    Ok(match serde_json::from_slice(line).map_err(|error| Failure::unreadable(&error))? {
        WatchEvent::Added(object) | WatchEvent::Modified(object) => Event::Applied(version(&object), object),
        WatchEvent::Deleted(object) => Event::Deleted(version(&object), object),
        WatchEvent::Bookmark(bookmark) => Event::Bookmark(bookmark.metadata.resource_version),
        WatchEvent::Error(status) => return Err(Failure::status(&status)),
    })
}

/// The lines of a watch.
pub(super) struct Lines<B> {
    body: B,
    buffer: Vec<u8>,
    /// Up to here there is no end of a line.
    searched: usize,
}

impl<B> Lines<B>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    pub(super) fn new(body: B) -> Self {
        Self { body, buffer: Vec::new(), searched: 0 }
    }

    /// The next line; `None` at the end. A line that the end cut off is none.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        loop {
            if let Some(end) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') {
                let rest = self.buffer.split_off(self.searched + end + 1);
                let line = std::mem::replace(&mut self.buffer, rest);
                self.searched = 0;
                if line.iter().any(|byte| !byte.is_ascii_whitespace()) {
                    return Ok(Some(line));
                }
                continue;
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > limits::KUBE_EVENT_BYTES_MAX {
                let message = format!("an event of more than {} bytes is not read", limits::KUBE_EVENT_BYTES_MAX);
                return Err(Failure::new(Reason::Unreadable, message));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => self.buffer.extend(frame.into_data().unwrap_or_default()),
                Some(Err(error)) => return Err(Failure::new(Reason::Unreachable, error.to_string())),
            }
        }
    }
}

#[cfg(test)]
mod tests;
