//! How long to wait before an API server that failed is asked again.

use std::time::Duration;

use crate::limits;

/// Doubles with each failure, and is never the same on two nodes.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Something worked.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Something failed: the pause to make now. `asked` is what the API server wants (Retry-After), as far as it says.
    pub(super) fn next(&mut self, asked: Option<Duration>) -> Duration {
        let doubled = limits::KUBE_BACKOFF_FIRST.saturating_mul(2_u32.saturating_pow(self.failures));
        self.failures = self.failures.saturating_add(1);
        let bound = doubled.min(limits::KUBE_BACKOFF_MAX);
        // Between half of it and all of it, so that the nodes of a cluster do not come back at one time.
        let pause = bound.mul_f64(0.5 + fastrand::f64() / 2.0);
        pause.max(asked.unwrap_or_default()).min(limits::KUBE_BACKOFF_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_limit() {
        let mut backoff = Backoff::default();
        let mut bound = limits::KUBE_BACKOFF_FIRST;
        for _ in 0..100 {
            let pause = backoff.next(None);
            assert!(pause <= bound && pause >= bound / 2, "{pause:?} is not within half of {bound:?}");
            bound = (bound * 2).min(limits::KUBE_BACKOFF_MAX);
        }
        backoff.reset();
        assert!(backoff.next(None) <= limits::KUBE_BACKOFF_FIRST);
    }

    #[test]
    fn the_api_server_may_ask_for_more_but_not_for_ever() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.next(Some(Duration::from_secs(7))), Duration::from_secs(7));
        assert_eq!(backoff.next(Some(Duration::from_secs(7000))), limits::KUBE_BACKOFF_MAX);
    }
}
