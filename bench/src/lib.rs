//! What a request costs: through weft, through its peers on the same hooks, and through two bounds that show what is possible.
//!
//! `cargo xtask bench` builds what is needed and starts the binary; docs/benchmarks.md tells the method. Nothing depends on this crate.
//! It uses the agent's own capture as a library, to put the peers where the agent would be.

pub mod accounting;
pub mod clock;
pub mod limits;
pub mod load;
pub mod map_sync;
pub mod measure;
pub mod message;
pub mod peer;
pub mod place;
pub mod poll;
pub mod relay;
pub mod report;
pub mod responder;
pub mod row;
pub mod run;
pub mod schedule;
pub mod split;
pub mod stand;
pub mod steer;
pub mod tls;
pub mod tpc;

#[cfg(test)]
mod bounds_tests;
