//! An endpoint that has just come gets less than the others for a while: its caches are cold, and all clients find it at once.

use std::time::Duration;

/// The least part that an endpoint gets (Envoy `min_weight_percent`: 10): with nothing at all it would never warm up.
const LEAST: f64 = 0.1;

/// The part of its share that an endpoint gets, in proportion to how long it has been there.
pub(super) fn warmth(age: Duration, window: Duration) -> f64 {
    if age >= window { 1.0 } else { (age.as_secs_f64() / window.as_secs_f64()).max(LEAST) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warmth_grows_from_a_tenth_to_all() {
        let of = |age, window| warmth(Duration::from_secs(age), Duration::from_secs(window));
        assert!((of(0, 60) - LEAST).abs() < 1e-9 && (of(30, 60) - 0.5).abs() < 1e-9);
        for (age, window) in [(60, 60), (61, 60), (0, 0)] {
            assert!((of(age, window) - 1.0).abs() < 1e-9, "{age} of {window}");
        }
    }
}
