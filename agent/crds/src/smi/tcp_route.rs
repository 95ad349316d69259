//! TCPRoute, specs.smi-spec.io v1alpha1 to v1alpha4.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use super::l4_route;
use crate::{
    decode::{FieldError, Problems},
    object::{Kind, Meta},
};

/// TCP on some ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TcpRoute {
    /// Metadata.
    pub meta: Meta,
    /// Ascending; `None` for all.
    pub ports: Option<Vec<u16>>,
}

impl TcpRoute {
    /// Reads one.
    pub(crate) fn new(meta: ObjectMeta, document: &Value, problems: &mut Problems) -> Result<Self, FieldError> {
        Ok(Self { ports: l4_route::ports(document, problems)?, meta: Meta::new(Kind::TcpRoute, meta) })
    }
}
