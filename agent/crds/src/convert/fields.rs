//! Reading foreign objects without overlooking a field.

use std::fmt;

use serde_json::{Map, Value};

use super::Refused;
use crate::decode;

/// An object of any kind.
pub(crate) struct Object<'a> {
    pub(crate) group: String,
    pub(crate) kind: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) document: &'a Value,
}

impl<'a> Object<'a> {
    pub(crate) fn new(document: &'a Value) -> Self {
        let text = |pointer: &str| document.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let api_version = text("/apiVersion");
        let namespace = text("/metadata/namespace");
        Self {
            group: api_version.split_once('/').map_or(String::new(), |(group, _)| group.to_owned()),
            kind: text("/kind"),
            namespace: if namespace.is_empty() { "default".to_owned() } else { namespace },
            name: text("/metadata/name"),
            document,
        }
    }

    /// Whether it is of `networking.istio.io`, `security.istio.io`, in a version that is known.
    pub(crate) fn is_istio(&self, group: &str) -> bool {
        let version = self.document.get("apiVersion").and_then(Value::as_str).and_then(|text| text.split_once('/'));
        self.group == format!("{group}.istio.io")
            && version.is_some_and(|(_, version)| ["v1alpha3", "v1beta1", "v1"].contains(&version))
    }

    /// The fields of `spec`; of its own unless there is one, so that a check of names comes first.
    pub(crate) fn spec(&self, refusals: &mut Refusals) -> Option<&'a Map<String, Value>> {
        if !decode::is_subdomain(&self.name) {
            refusals.refuse("metadata.name", format!("{:?} is no valid name (RFC 1123)", self.name));
            return None;
        }
        match self.document.get("spec") {
            Some(Value::Object(spec)) => Some(spec),
            None | Some(Value::Null) => None,
            Some(_) => {
                refusals.refuse("spec", "must be a map".to_owned());
                None
            }
        }
    }

    pub(crate) fn refused(&self, document: usize, field: String, why: String) -> Refused {
        Refused { document, object: self.to_string(), field, why }
    }
}

impl fmt::Display for Object<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// What cannot be carried of one object, and what is not quite the same.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    pub(crate) refused: Vec<(String, String)>,
    pub(crate) notes: Vec<(String, String)>,
}

impl Refusals {
    pub(crate) fn refuse(&mut self, field: impl Into<String>, why: impl Into<String>) {
        self.refused.push((field.into(), why.into()));
    }

    pub(crate) fn note(&mut self, field: impl Into<String>, why: impl Into<String>) {
        self.notes.push((field.into(), why.into()));
    }

    /// Refuses every field but those that are `carried`, with the reason that `why` knows.
    pub(crate) fn only(&mut self, map: &Map<String, Value>, at: &str, carried: &[&str], why: &[(&str, &str)]) {
        for key in map.keys().filter(|key| !carried.contains(&key.as_str())) {
            let known = why.iter().find(|(field, _)| field == key).map(|(_, why)| *why);
            let field = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
            self.refuse(field, known.unwrap_or("SMI has nothing for it"));
        }
    }

    /// A list of maps; what is something else is refused.
    pub(crate) fn maps<'a>(
        &mut self,
        map: &'a Map<String, Value>,
        key: &str,
        at: &str,
    ) -> Vec<(String, &'a Map<String, Value>)> {
        let mut found = Vec::new();
        for (field, value) in self.list(map, key, at) {
            match value {
                Value::Object(map) => found.push((field, map)),
                Value::Null => self.refuse(field, "is empty: write {} if that is meant"),
                _ => self.refuse(field, "must be a map"),
            }
        }
        found
    }

    /// A list of strings; what is something else is refused.
    pub(crate) fn strings<'a>(&mut self, map: &'a Map<String, Value>, key: &str, at: &str) -> Vec<(String, &'a str)> {
        let mut found = Vec::new();
        for (field, value) in self.list(map, key, at) {
            match value {
                Value::String(text) => found.push((field, text.as_str())),
                _ => self.refuse(field, "must be a string"),
            }
        }
        found
    }

    fn list<'a>(&mut self, map: &'a Map<String, Value>, key: &str, at: &str) -> Vec<(String, &'a Value)> {
        let field = if at.is_empty() { key.to_owned() } else { format!("{at}.{key}") };
        match map.get(key) {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(list)) => {
                list.iter().enumerate().map(|(index, value)| (format!("{field}[{index}]"), value)).collect()
            }
            Some(_) => {
                self.refuse(field, "must be a list");
                Vec::new()
            }
        }
    }
}

/// A text as a regular expression that matches it and nothing else (RE2 syntax).
pub(crate) fn literal(text: &str) -> String {
    let mut regex = String::with_capacity(text.len());
    for character in text.chars() {
        if r"\.+*?()|[]{}^$".contains(character) {
            regex.push('\\');
        }
        regex.push(character);
    }
    regex
}
