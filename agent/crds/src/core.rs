//! Kubernetes' own kinds, trimmed.

pub mod endpoint_slice;
pub mod namespace;
pub mod pod;
pub mod service;
