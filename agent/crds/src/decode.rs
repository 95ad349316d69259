//! From a JSON value to a typed one, with the path of the field that does not fit; and checks that kinds share.

use std::net::IpAddr;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::limits;

/// Something about one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FieldError {
    pub(crate) field: String,
    pub(crate) message: String,
}

impl FieldError {
    pub(crate) fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            field: shortened(field.into(), limits::FIELD_BYTES_MAX),
            message: shortened(message.into(), limits::MESSAGE_BYTES_MAX),
        }
    }
}

/// A text that may quote what an object says, and so be as long as an object: its beginning, with how much is left out.
pub(crate) fn shortened(mut text: String, bytes_max: usize) -> String {
    if text.len() > bytes_max {
        let end = (0..=bytes_max).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        let left_out = text.len() - end;
        text.truncate(end);
        text.push_str(&format!("... ({left_out} bytes more)"));
    }
    text
}

/// Everything that is wrong with one object.
pub(crate) type Problems = Vec<FieldError>;

pub(crate) fn decode<T: DeserializeOwned>(value: &Value) -> Result<T, FieldError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        FieldError::new(if path == "." { String::new() } else { path }, error.into_inner().to_string())
    })
}

/// A port number, as JSON has it.
pub(crate) fn port(number: i32, field: &str, problems: &mut Problems) -> u16 {
    match u16::try_from(number) {
        Ok(port) if port > 0 => port,
        _ => {
            problems.push(FieldError::new(field, format!("{number} is no port: it must be 1 to 65535")));
            0
        }
    }
}

pub(crate) fn ip(text: &str, field: &str, problems: &mut Problems) -> Option<IpAddr> {
    let ip = text.parse().ok();
    if ip.is_none() {
        problems.push(FieldError::new(field, format!("{text:?} is no IP address")));
    }
    ip
}

/// A text in quotes, as much of it as a message needs.
pub(crate) fn quoted(text: &str) -> String {
    match text.char_indices().nth(limits::QUOTED_CHARS_MAX) {
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// Whether a name is an RFC 1123 label: what namespaces and Services are called.
pub(crate) fn is_label(name: &str) -> bool {
    let alphanumeric = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let bytes = name.as_bytes();
    bytes.len() <= limits::LABEL_BYTES_MAX
        && alphanumeric(bytes.first())
        && alphanumeric(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-')
}

/// Whether a name is an RFC 1123 subdomain: what all else is called.
pub(crate) fn is_subdomain(name: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    name.len() <= limits::NAME_BYTES_MAX
        && name.split('.').all(|label| {
            let bytes = label.as_bytes();
            bytes.first().copied().is_some_and(alphanumeric)
                && bytes.last().copied().is_some_and(alphanumeric)
                && bytes.iter().all(|&byte| alphanumeric(byte) || byte == b'-')
        })
}
