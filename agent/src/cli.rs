//! What the `weft` CLI does by itself, without an agent: it reads manifests with the very code that the agent reads them with.

pub mod convert;
pub mod explain;
pub mod files;
pub mod lines;
pub mod lint;
