//! The choice of a backend in the two bounds: random by weight, as weft chooses.

use crate::limits::FIRST_SHARE_PERCENT;

/// Sends [`FIRST_SHARE_PERCENT`] of requests to the first of two backends.
#[derive(Debug)]
pub struct Split(fastrand::Rng);

impl Split {
    /// The same sequence for the same seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed))
    }

    /// Index of the backend for the next request.
    pub fn choose(&mut self) -> usize {
        usize::from(self.0.u32(0..100) >= FIRST_SHARE_PERCENT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_as_configured() {
        let mut split = Split::new(1);
        let choices = 100_000;
        let first = (0..choices).filter(|_| split.choose() == 0).count();
        // Four standard deviations of a binomial with p = 0.9: 0.4 percentage points.
        assert!((89_600..90_400).contains(&first), "{first} of {choices}");
    }
}
