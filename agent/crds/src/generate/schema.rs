//! Building blocks of structural schemas.
//!
//! Objects keep fields that they do not know. An API server that dropped them would turn a misspelt condition into no condition,
//! before the agent could refuse it.

use serde_json::{Map, Value, json};

/// A property, with whether every published schema demands it.
pub(super) struct Property {
    name: &'static str,
    schema: Value,
    required: bool,
}

pub(super) fn required(name: &'static str, schema: Value) -> Property {
    Property { name, schema, required: true }
}

pub(super) fn optional(name: &'static str, schema: Value) -> Property {
    Property { name, schema, required: false }
}

pub(super) fn object(description: &str, properties: Vec<Property>) -> Value {
    let demanded: Vec<&str> =
        properties.iter().filter(|property| property.required).map(|property| property.name).collect();
    let mut schema = json!({
        "type": "object",
        "description": description,
        "x-kubernetes-preserve-unknown-fields": true,
    });
    if !demanded.is_empty() {
        schema["required"] = demanded.into();
    }
    let properties: Map<String, Value> =
        properties.into_iter().map(|property| (property.name.to_owned(), property.schema)).collect();
    schema["properties"] = properties.into();
    schema
}

pub(super) fn text(description: &str) -> Value {
    json!({"type": "string", "description": description})
}

pub(super) fn word(description: &str, words: &[&str]) -> Value {
    json!({"type": "string", "description": description, "enum": words})
}

pub(super) fn array(description: &str, items: Value) -> Value {
    let mut schema = json!({"type": "array", "description": description});
    schema["items"] = items;
    schema
}

/// A number in some versions or implementations, text in others.
pub(super) fn number_or_text(description: &str) -> Value {
    json!({"x-kubernetes-int-or-string": true, "description": description})
}

/// Published schemas exclude each other here; the agent reads each of their shapes.
pub(super) fn any_shape(description: &str) -> Value {
    json!({"x-kubernetes-preserve-unknown-fields": true, "description": description})
}

/// The whole object. `fields` is an object schema of what is beside the fields that every kind has.
pub(super) fn root(mut fields: Value, status: Option<Value>) -> Value {
    fields["properties"]["apiVersion"] = json!({"type": "string"});
    fields["properties"]["kind"] = json!({"type": "string"});
    fields["properties"]["metadata"] = json!({"type": "object"});
    if let Some(status) = status {
        fields["properties"]["status"] = status;
    }
    fields
}

/// What weft says about an object. The shape of conditions is that of Kubernetes (`meta/v1` Condition).
pub(super) fn status() -> Value {
    json!({
        "type": "object",
        "description": "What weft made of the object; written by weft.",
        "x-kubernetes-preserve-unknown-fields": true,
        "properties": {
            "conditions": {
                "type": "array",
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
                "items": {
                    "type": "object",
                    "required": ["type", "status"],
                    "properties": {
                        "type": {"type": "string", "description": "Accepted, Conflicted, ResolvedRefs or Programmed."},
                        "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
                        "reason": {"type": "string"},
                        "message": {"type": "string"},
                        "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0},
                        "lastTransitionTime": {"type": "string", "format": "date-time"},
                    },
                },
            },
        },
    })
}
