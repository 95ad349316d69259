//! What the published schemas of SMI disagree about: whether there is a `spec`, and whether a port is a number or a string.

use std::borrow::Cow;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::decode::{self, FieldError, Problems};

/// The fields that every object has, besides its own.
const COMMON: [&str; 5] = ["apiVersion", "kind", "metadata", "spec", "status"];

/// The part of an object that says something: what is under `spec`, or else at the root, as the first versions had it.
pub(super) struct Body<'a> {
    /// `spec.`, or nothing.
    pub(super) prefix: &'static str,
    value: Cow<'a, Value>,
}

impl<'a> Body<'a> {
    /// Finds it.
    pub(super) fn of(document: &'a Value) -> Result<Self, FieldError> {
        let root: Map<String, Value> = document
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(key, _)| !COMMON.contains(&key.as_str()))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        let spec = document.get("spec").filter(|spec| !spec.is_null());
        let empty = |spec: &Value| spec.as_object().is_some_and(Map::is_empty);
        match (spec, root.keys().next()) {
            (Some(spec), Some(field)) if !empty(spec) => Err(FieldError::new(
                field.clone(),
                "is outside of spec, which is given too: give all of it in one place",
            )),
            (_, Some(_)) => Ok(Self { prefix: "", value: Cow::Owned(Value::Object(root)) }),
            (Some(spec), None) => Ok(Self { prefix: "spec.", value: Cow::Borrowed(spec) }),
            (None, None) => Ok(Self { prefix: "spec.", value: Cow::Owned(Value::Object(Map::new())) }),
        }
    }

    /// A part of it, as it stands.
    pub(super) fn get(&self, field: &str) -> Option<&Value> {
        self.value.get(field)
    }

    /// Reads it, strictly.
    pub(super) fn decode<T: DeserializeOwned>(&self) -> Result<T, FieldError> {
        decode::decode(&self.value).map_err(|error| {
            let field = format!("{}{}", self.prefix, error.field);
            FieldError::new(field.strip_suffix('.').unwrap_or(&field), error.message)
        })
    }
}

/// A port as a number, or as a string of digits, which adapters of v1alpha1 wrote.
pub(super) fn port(value: &Value, field: &str, problems: &mut Problems) -> Option<u16> {
    let number = match value {
        Value::Number(number) => number.as_u64(),
        Value::String(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok(),
        _ => None,
    };
    let port = number.and_then(|number| u16::try_from(number).ok()).filter(|port| *port > 0);
    if port.is_none() {
        problems.push(FieldError::new(field, format!("{value} is no port: it must be 1 to 65535")));
    }
    port
}
