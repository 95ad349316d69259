//! A token bucket: so many at once, and so many a second after that.

use tokio::time::Instant;

#[derive(Debug)]
pub(super) struct Bucket {
    left: f64,
    at: Instant,
    burst: u32,
    per_second: u32,
}

impl Bucket {
    pub(super) fn new(burst: u32, per_second: u32) -> Self {
        Self { left: f64::from(burst), at: Instant::now(), burst, per_second }
    }

    /// Whether it is as full as a new one.
    pub(super) fn is_full(&mut self) -> bool {
        self.take(0) && self.left >= f64::from(self.burst)
    }

    /// Takes as many as asked, or none.
    pub(super) fn take(&mut self, count: usize) -> bool {
        self.take_at(count, Instant::now())
    }

    fn take_at(&mut self, count: usize, now: Instant) -> bool {
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * f64::from(self.per_second);
        (self.left, self.at) = ((self.left + earned).min(f64::from(self.burst)), now);
        // A batch is at most 64: exact as a float.
        let count = count as f64;
        if self.left < count {
            return false;
        }
        self.left -= count;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_passes_and_then_what_a_second_earns() {
        let mut bucket = Bucket::new(10, 2);
        let begin = bucket.at;
        assert!(bucket.take_at(10, begin));
        assert!(!bucket.take_at(1, begin));
        let later = begin + Duration::from_secs(1);
        assert!(!bucket.take_at(3, later), "all or none");
        assert!(bucket.take_at(2, later));
        let later = begin + Duration::from_secs(1000);
        assert!(!bucket.take_at(11, later), "never more than the burst");
        assert!(bucket.take_at(10, later));
    }
}
