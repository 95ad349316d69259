//! weft's own kinds, weft.dev.

pub mod node_workloads;
