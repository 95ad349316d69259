//! When requests are due. The schedule knows nothing of answers: a server that stalls does not make requests late, it makes their
//! latencies long, because those are counted from the due time.

use std::collections::VecDeque;

/// Due times of a Poisson process: gaps are exponential, so that bursts are as likely as among independent clients.
#[derive(Debug)]
pub struct Schedule {
    random: fastrand::Rng,
    mean_gap_ns: f64,
    next_ns: f64,
}

impl Schedule {
    /// `rate` requests a second from `start_ns` on.
    #[must_use]
    pub fn new(rate: u32, start_ns: u64, seed: u64) -> Self {
        let mean_gap_ns = 1e9 / f64::from(rate.max(1));
        let mut schedule = Self { random: fastrand::Rng::with_seed(seed), mean_gap_ns, next_ns: start_ns as f64 };
        schedule.advance();
        schedule
    }

    /// When the next request is due.
    #[must_use]
    pub fn next_ns(&self) -> u64 {
        // Nanoseconds since boot stay far below 2^53, so nothing is lost.
        self.next_ns as u64
    }

    /// The due time of a request that is due by now.
    pub fn take(&mut self, now_ns: u64) -> Option<u64> {
        let due_ns = self.next_ns();
        if due_ns > now_ns {
            return None;
        }
        self.advance();
        Some(due_ns)
    }

    fn advance(&mut self) {
        // f64() is below 1, so the logarithm is finite.
        self.next_ns -= self.mean_gap_ns * (1.0 - self.random.f64()).ln();
    }
}

/// Requests that are due and have no connection yet, oldest first.
#[derive(Debug, Default)]
pub struct Backlog(VecDeque<u64>);

impl Backlog {
    /// One more.
    pub fn push(&mut self, due_ns: u64) {
        self.0.push_back(due_ns);
    }

    /// The one that has waited longest.
    pub fn pop(&mut self) -> Option<u64> {
        self.0.pop_front()
    }

    /// How many were due before a moment and never sent.
    #[must_use]
    pub fn due_before(&self, moment_ns: u64) -> Vec<u64> {
        self.0.iter().copied().filter(|due_ns| *due_ns < moment_ns).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_kept_and_gaps_are_exponential() {
        let mut schedule = Schedule::new(1_000, 0, 7);
        let dues: Vec<u64> = std::iter::from_fn(|| schedule.take(100_000_000_000)).collect();
        // 100 s at 1,000 a second: the standard deviation of a Poisson count is its root, 316.
        assert!((98_700..101_300).contains(&dues.len()), "{}", dues.len());
        let long = dues.windows(2).filter(|pair| pair[1] - pair[0] > 1_000_000).count();
        // A gap is longer than the mean with probability 1/e.
        assert!((36_000..37_600).contains(&long), "{long}");
        assert!(dues.is_sorted());
    }

    #[test]
    fn nothing_is_due_early_and_nothing_is_lost_late() {
        let mut schedule = Schedule::new(1_000, 5_000, 7);
        let first = schedule.next_ns();
        assert!(first >= 5_000);
        assert_eq!(schedule.take(first - 1), None);
        // Asked for late, every request has still the time at which it was due.
        assert_eq!(schedule.take(first + 1_000_000_000), Some(first));
        assert!(schedule.take(first + 1_000_000_000).is_some_and(|second| second < first + 100_000_000));
    }
}
