//! Namespace.

use k8s_openapi::api::core::v1;

use crate::object::{Kind, Meta};

/// A namespace: only its labels matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Metadata.
    pub meta: Meta,
}

impl From<v1::Namespace> for Namespace {
    fn from(namespace: v1::Namespace) -> Self {
        let mut meta = Meta::new(Kind::Namespace, namespace.metadata);
        meta.labels.retain(|key, _| key.starts_with("weft.dev/"));
        Self { meta }
    }
}
