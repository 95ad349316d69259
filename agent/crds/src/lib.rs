//! The Kubernetes kinds that weft reads, the store that holds them, and their lowering to weft's model.
//!
//! Nothing here does I/O: documents come in as JSON values ([`parse`]), objects are kept and indexed ([`store`]), and what a
//! change touches is lowered ([`lower`]) to the model of `weft-policy`.

pub mod convert;
pub mod core;
pub mod gateway;
pub mod generate;
pub mod limits;
pub mod lower;
pub mod object;
pub mod parse;
pub mod smi;
pub mod store;
pub mod weft;

mod decode;
