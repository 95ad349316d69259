//! The weighted choice between backends.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use crate::{
    endpoints::EndpointCell,
    limits,
    names::{ObjectRef, ServiceKey},
    rule::BackendHeaders,
};

/// A Service port that may be chosen.
#[derive(Clone, Debug)]
pub struct Backend {
    /// The Service.
    pub service: ServiceKey,
    /// The Service's port (not the target port).
    pub port: u16,
    /// Relative to the other backends of the split. Zero is never chosen; more than [`limits::WEIGHT_MAX`] counts as that.
    pub weight: u64,
    /// Its endpoints.
    pub endpoints: Arc<EndpointCell>,
    /// Why its share is answered with an error instead.
    pub invalid: Option<Arc<str>>,
    /// What is changed in the fields of its share only.
    pub headers: Option<Arc<BackendHeaders>>,
}

/// Backends and their weights. A Service that is not split is a split with itself as the only backend.
#[derive(Debug)]
pub struct Split {
    id: u64,
    /// The object that asked for it: a TrafficSplit, or the Service itself.
    pub origin: ObjectRef,
    /// The backends, in the order of the object.
    pub backends: Box<[Backend]>,
    /// Whether a backend's share is its own even while it has no ready endpoint.
    pub keeps_shares: bool,
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
    /// By how much each backend is owed (positive) or ahead (negative), in units of weight.
    credit: Vec<i64>,
    skipped: usize,
    /// Choices that were counted and not used, by backend.
    returned: Vec<usize>,
}

impl SplitState {
    /// How many backends with a weight the last pick passed over because none of their endpoints was ready: above zero, the
    /// shares were those of the other backends only.
    #[must_use]
    pub fn skipped(&self) -> usize {
        self.skipped
    }

    /// Takes a choice back that was not used; the next pick makes it again. Without that, what is chosen in vain would skew the
    /// shares of what is not. Those beyond [`limits::RETURNED_CHOICES_MAX`] are forgotten.
    pub fn give_back(&mut self, backend: usize) {
        if self.returned.len() < limits::RETURNED_CHOICES_MAX {
            self.returned.push(backend);
        }
    }
}

impl Backend {
    /// One that takes its share as it is.
    #[must_use]
    pub fn new(service: ServiceKey, port: u16, weight: u64, endpoints: Arc<EndpointCell>) -> Self {
        Self { service, port, weight, endpoints, invalid: None, headers: None }
    }

    fn is_usable(&self) -> bool {
        self.weight > 0 && self.endpoints.has_ready()
    }

    /// The weight as the choice counts it: bounded, so that no sum over the backends of a split can overflow.
    fn counted_weight(&self) -> i64 {
        self.weight.min(limits::WEIGHT_MAX).cast_signed()
    }
}

impl Split {
    /// A split with an id that no other split of this process has.
    #[must_use]
    pub fn new(origin: ObjectRef, backends: Box<[Backend]>) -> Self {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        Self { id: NEXT_ID.fetch_add(1, Ordering::Relaxed), origin, backends, keeps_shares: false }
    }

    /// The same, with the share of a backend being its own even while it has no ready endpoint.
    #[must_use]
    pub fn keeping_shares(self) -> Self {
        Self { keeps_shares: true, ..self }
    }

    /// Unique in this process: keys a worker's [`SplitState`].
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Whether any backend can take a connection now.
    #[must_use]
    pub fn has_ready(&self) -> bool {
        self.backends.iter().any(Backend::is_usable)
    }

    /// The next backend, by smooth weighted round robin (nginx, `ngx_http_upstream_round_robin`) among those that have a ready endpoint.
    /// A split that keeps shares skips nothing. What is skipped for want of ready endpoints is told by [`SplitState::skipped`] of the same state afterwards.
    ///
    /// Allocates only the first time that a state is used with a split.
    ///
    /// # Errors
    /// When no backend has both a weight and a ready endpoint.
    pub fn pick(&self, state: &mut SplitState) -> Result<&Backend, NoBackend> {
        if state.credit.len() != self.backends.len() {
            state.credit = vec![0; self.backends.len()];
        }
        while let Some(returned) = state.returned.pop() {
            if let Some(backend) =
                self.backends.get(returned).filter(|backend| self.keeps_shares || backend.is_usable())
            {
                state.skipped = 0;
                return Ok(backend);
            }
        }
        let (mut best, mut ready_weight, mut total_weight) = (None::<usize>, 0i64, 0i64);
        state.skipped = 0;
        for (index, backend) in self.backends.iter().enumerate() {
            let weight = backend.counted_weight();
            if weight == 0 {
                continue;
            }
            total_weight = total_weight.saturating_add(weight);
            if !self.keeps_shares && !backend.endpoints.has_ready() {
                // Its credit waits with it: a backend that flaps gets its share of the turns at which it was ready.
                state.skipped += 1;
                continue;
            }
            ready_weight = ready_weight.saturating_add(weight);
            state.credit[index] = state.credit[index].saturating_add(weight);
            if best.is_none_or(|best| state.credit[index] > state.credit[best]) {
                best = Some(index);
            }
        }
        let Some(best) = best else {
            return Err(if total_weight > 0 { NoBackend::NoEndpoints } else { NoBackend::SplitZero });
        };
        // While the same backends stay ready no credit leaves this range. The bound limits the burst or the pause that changes
        // of readiness can add up to, to one round.
        state.credit[best] = state.credit[best].saturating_sub(ready_weight).clamp(-total_weight, total_weight);
        Ok(&self.backends[best])
    }
}

#[cfg(test)]
mod tests;
