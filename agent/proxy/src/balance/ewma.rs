//! How fast an endpoint answers: a moving average over time that follows a peak at once and forgets it slowly (Finagle's `PeakEwma`,
//! linkerd2-proxy's default).

use std::time::Instant;

use crate::limits;

/// What is assumed of an endpoint that has not answered yet, in seconds: no more than a request across a zone takes (linkerd2-proxy: 30 ms).
const UNKNOWN_SECONDS: f64 = 0.03;
/// What a failure counts as, in seconds: as long as a connect may take.
pub(super) const FAILURE_SECONDS: f64 = limits::CONNECT_TIMEOUT.as_secs() as f64;

/// The average, in seconds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ewma {
    seconds: f64,
    at: Option<Instant>,
}

impl Ewma {
    /// What it is now. Without news it goes back to what is assumed of an unknown endpoint, so that one that was slow gets another chance,
    /// and one that was fast is not taken for fast for ever.
    pub(super) fn value(self, now: Instant) -> f64 {
        let Some(at) = self.at else { return UNKNOWN_SECONDS };
        let kept = kept(at, now);
        self.seconds * kept + UNKNOWN_SECONDS * (1.0 - kept)
    }

    /// Takes a measurement in.
    pub(super) fn observe(&mut self, seconds: f64, now: Instant) {
        self.seconds = match self.at {
            Some(at) if seconds <= self.seconds => {
                let kept = kept(at, now);
                self.seconds * kept + seconds * (1.0 - kept)
            }
            // The first one, or a peak.
            _ => seconds,
        };
        self.at = Some(now);
    }
}

/// How much of an average is left after a while.
fn kept(at: Instant, now: Instant) -> f64 {
    (-now.saturating_duration_since(at).as_secs_f64() / limits::EWMA_DECAY.as_secs_f64()).exp()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_peak_counts_at_once_and_fades() {
        let (start, mut ewma) = (Instant::now(), Ewma::default());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        assert!((ewma.value(start) - UNKNOWN_SECONDS).abs() < 1e-9);
        ewma.observe(0.001, start);
        ewma.observe(2.0, start);
        assert!((ewma.value(start) - 2.0).abs() < 1e-9);
        // After one decay, a third of the way is left.
        ewma.observe(0.001, at(limits::EWMA_DECAY.as_secs()));
        let left = ewma.value(at(limits::EWMA_DECAY.as_secs()));
        assert!((left - 2.0 / std::f64::consts::E).abs() < 0.01, "{left}");
        // And with no news at all, nothing is known any more.
        assert!((ewma.value(at(1000)) - UNKNOWN_SECONDS).abs() < 1e-3);
    }

    proptest! {
        #[test]
        fn the_average_lies_between_what_was_seen(seen in proptest::collection::vec((0.0..10.0_f64, 0..60_u64), 1..40)) {
            let (mut now, mut ewma) = (Instant::now(), Ewma::default());
            let (mut least, mut most) = (UNKNOWN_SECONDS, UNKNOWN_SECONDS);
            for (seconds, pause) in seen {
                now += Duration::from_secs(pause);
                ewma.observe(seconds, now);
                (least, most) = (least.min(seconds), most.max(seconds));
                let value = ewma.value(now);
                prop_assert!(value >= seconds - 1e-9 && value >= least - 1e-9 && value <= most + 1e-9, "{value}");
            }
        }
    }
}
