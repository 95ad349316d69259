//! The weighted choice between backends.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use crate::{endpoints::EndpointCell, names::{ObjectRef, ServiceKey}};

/// A Service port that may be chosen.
#[derive(Clone, Debug)]
pub struct Backend {
    /// The Service.
    pub service: ServiceKey,
    /// The Service's port (not the target port).
    pub port: u16,
    /// Relative to the other backends of the split. Zero is never chosen.
    pub weight: u64,
    /// Its endpoints.
    pub endpoints: Arc<EndpointCell>,
}

/// Backends and their weights. A Service that is not split is a split with itself as the only backend.
#[derive(Debug)]
pub struct Split {
    id: u64,
    /// The object that asked for it: a TrafficSplit, or the Service itself.
    pub origin: ObjectRef,
    /// The backends, in the order of the object.
    pub backends: Box<[Backend]>,
}

/// Why no backend could be chosen; becomes the reason of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoBackend {
    /// Every backend has weight zero, or the split has none that exists.
    #[error("every backend of the split has weight zero or does not exist")]
    SplitZero,
    /// No backend with a weight has a ready endpoint.
    #[error("no backend of the split has a ready endpoint")]
    NoEndpoints,
}

/// One worker's progress through one split: keeps the share of each backend right over any few hundred choices.
#[derive(Debug, Default)]
pub struct SplitState {
    current: Vec<i64>,
}

impl Split {
    /// A split with an id that no other split of this process has.
    #[must_use]
    pub fn new(origin: ObjectRef, backends: Box<[Backend]>) -> Self {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        Self { id: NEXT_ID.fetch_add(1, Ordering::Relaxed), origin, backends }
    }

    /// Unique in this process: keys a worker's [`SplitState`].
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The next backend, by smooth weighted round robin (nginx, `ngx_http_upstream_round_robin`) among those that have a ready endpoint.
    ///
    /// Allocates only the first time that a state is used with a split.
    ///
    /// # Errors
    /// When no backend has both a weight and a ready endpoint.
    pub fn pick(&self, state: &mut SplitState) -> Result<&Backend, NoBackend> {
        if state.current.len() != self.backends.len() {
            state.current = vec![0; self.backends.len()];
        }
        let (mut best, mut total, mut weighted) = (None::<usize>, 0i64, false);
        for (index, backend) in self.backends.iter().enumerate() {
            if backend.weight == 0 {
                continue;
            }
            weighted = true;
            if !backend.endpoints.has_ready() {
                continue;
            }
            let weight = i64::try_from(backend.weight).unwrap_or(i64::MAX >> 16);
            total += weight;
            state.current[index] += weight;
            if best.is_none_or(|best| state.current[index] > state.current[best]) {
                best = Some(index);
            }
        }
        let best = best.ok_or(if weighted { NoBackend::NoEndpoints } else { NoBackend::SplitZero })?;
        state.current[best] -= total;
        Ok(&self.backends[best])
    }
}
