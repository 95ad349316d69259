//! weft's policy model: what front ends lower to ([`ir`]), how that is compiled ([`compile`]) and what the proxy executes
//! ([`plan`], [`snapshot`]). Everything here is pure: no I/O, no clock, no async runtime, nothing of Kubernetes' client crates.

pub mod backend_policy;
pub mod compile;
pub mod diagnostic;
pub mod endpoints;
pub mod explain;
pub mod few;
pub mod hash;
pub mod inbound;
pub mod ir;
pub mod limits;
pub mod matcher;
mod matches;
pub mod names;
pub mod path;
pub mod pattern;
pub mod peer;
pub mod plan;
mod query;
pub mod rule;
pub mod shared_map;
pub mod snapshot;
pub mod split;
mod told;
pub mod view;
