//! Sources of truth. Each turns what it watches into [`ObjectEvent`]s for the same store, so that nothing downstream
//! knows where an object came from.

pub mod directory;
pub mod kube;
pub mod notify;
pub mod yaml;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use weft_crds::store::ObjectEvent;

/// One atomic change: all of it is applied before anything acts on it.
#[derive(Debug)]
pub struct Change {
    /// What to apply and delete.
    pub events: Vec<ObjectEvent>,
    /// Everything that the source cannot use at this time; replaces the list before.
    pub problems: Arc<[SourceProblem]>,
}

/// Something in the source that is not used, and what stays in force instead.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SourceProblem {
    /// File, or `API server`.
    pub file: String,
    /// Document inside the file, from 1; 0 for the whole file, and for what comes from the API server.
    pub document: usize,
    /// Line inside the file, from 1; 0 for the whole file, and for what comes from the API server.
    pub line: usize,
    /// The object, as far as it could be read: `TrafficSplit shop/canary`.
    pub object: String,
    /// Path of the field, as far as known.
    pub field: String,
    /// What is wrong, and what stays in force.
    pub message: String,
}
