//! What TCPRoute and UDPRoute share: the ports that they stand for.
//!
//! v1alpha1 and v1alpha2 have no spec, v1alpha3 an empty one, v1alpha4 `spec.matches.ports`. Without ports all are meant. Every
//! shape is read in every version, because an API server that does not convert serves what was written under any of them.

use serde::Deserialize;
use serde_json::Value;
use weft_policy::limits;

use super::shape::{self, Body};
use crate::decode::{FieldError, Problems};

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Spec {
    matches: Option<Matches>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Matches {
    /// Go's types have it; it says nothing.
    #[serde(rename = "name")]
    _name: Option<String>,
    ports: Option<Vec<Value>>,
}

/// The ports, ascending; `None` for all.
pub(super) fn ports(document: &Value, problems: &mut Problems) -> Result<Option<Vec<u16>>, FieldError> {
    let body = Body::of(document)?;
    let given = body.decode::<Spec>()?.matches.and_then(|matches| matches.ports).unwrap_or_default();
    let field = format!("{}matches.ports", body.prefix);
    if given.is_empty() {
        return Ok(None);
    }
    if given.len() > limits::ACCESS_PORTS_MAX {
        let message = format!("{} ports are over the limit of {}", given.len(), limits::ACCESS_PORTS_MAX);
        return Err(FieldError::new(field, message));
    }
    let mut ports: Vec<u16> = given
        .iter()
        .enumerate()
        .filter_map(|(index, port)| shape::port(port, &format!("{field}[{index}]"), problems))
        .collect();
    ports.sort_unstable();
    ports.dedup();
    Ok(Some(ports))
}
