//! How many requests may be tried again: a part of all requests, so that endpoints which fail get no multiple of their load (Envoy
//! `retry_budget`, Finagle). One worker's, by backend.

use std::{collections::HashMap, time::Instant};

use crate::limits;

const SLOTS: usize = limits::RETRY_BUDGET_SECONDS as usize;

/// What may be tried again, beside what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Allowance {
    /// Of the requests of the last seconds.
    pub(crate) percent: u32,
    /// Beside it, each second.
    pub(crate) per_second: u32,
}

impl Default for Allowance {
    fn default() -> Self {
        Self { percent: limits::RETRY_BUDGET_PERCENT, per_second: limits::RETRY_BUDGET_PER_SECOND }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    second: u64,
    requests: u64,
    retries: u64,
}

/// The budgets of one worker.
#[derive(Debug)]
pub(crate) struct Budgets {
    epoch: Instant,
    by_cell: HashMap<u64, [Slot; SLOTS]>,
}

impl Budgets {
    pub(crate) fn new(epoch: Instant) -> Self {
        Self { epoch, by_cell: HashMap::new() }
    }

    fn second(&self, now: Instant) -> u64 {
        // Not zero: an empty slot is of no second.
        now.duration_since(self.epoch).as_secs() + 1
    }

    fn slot(&mut self, cell: u64, second: u64) -> &mut Slot {
        let slots = self.by_cell.entry(cell).or_default();
        let slot = &mut slots[(second % SLOTS as u64) as usize];
        if slot.second != second {
            *slot = Slot { second, ..Slot::default() };
        }
        slot
    }

    /// Counts a request that may be tried again, to the backend whose endpoints are in the cell.
    pub(crate) fn request(&mut self, cell: u64, now: Instant) {
        let second = self.second(now);
        self.slot(cell, second).requests += 1;
    }

    /// Whether one may be tried again now; counts it if so.
    pub(crate) fn take(&mut self, cell: u64, allowance: Allowance, now: Instant) -> bool {
        let second = self.second(now);
        let slots = self.by_cell.entry(cell).or_default();
        let recent = slots.iter().filter(|slot| slot.second > 0 && second - slot.second.min(second) < SLOTS as u64);
        let (requests, retries) =
            recent.fold((0, 0), |(requests, retries), slot| (requests + slot.requests, retries + slot.retries));
        let share = requests * u64::from(allowance.percent) / 100;
        if retries >= share + u64::from(allowance.per_second) * limits::RETRY_BUDGET_SECONDS {
            return false;
        }
        self.slot(cell, second).retries += 1;
        true
    }

    /// Forgets what nothing was asked of for as long as counts.
    pub(crate) fn sweep(&mut self, now: Instant) {
        let second = self.second(now);
        self.by_cell.retain(|_, slots| slots.iter().any(|slot| slot.second + SLOTS as u64 > second));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn retries_are_a_part_of_requests_and_some_each_second() {
        let epoch = Instant::now();
        let at = |seconds| epoch + Duration::from_secs(seconds);
        let allowance = Allowance { percent: 20, per_second: 1 };
        let mut budgets = Budgets::new(epoch);
        for _ in 0..100 {
            budgets.request(7, at(0));
        }
        let taken =
            |budgets: &mut Budgets, second| (0..1000).filter(|_| budgets.take(7, allowance, at(second))).count();
        assert_eq!(taken(&mut budgets, 0), 20 + 10);
        assert_eq!(taken(&mut budgets, 9), 0, "all of it was spent within ten seconds");
        assert_eq!(taken(&mut budgets, 10), 10, "what is older does not count, on either side");
        assert_eq!((0..1000).filter(|_| budgets.take(8, allowance, at(10))).count(), 10, "each backend has its own");
        budgets.sweep(at(11));
        assert_eq!(budgets.by_cell.len(), 2);
        budgets.sweep(at(20));
        assert_eq!(budgets.by_cell.len(), 0);
    }
}
