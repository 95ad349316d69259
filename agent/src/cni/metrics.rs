//! The metrics of the plugin's socket.

use std::time::Instant;

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use super::protocol::Answer;

/// Upper bounds of the time that plugins wait, seconds: capture takes milliseconds; the last bound is the longest wait.
const WAIT_BUCKETS: [f64; 8] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 2.0];

/// Counters and gauges, in any number of hands.
#[derive(Clone, Debug)]
pub struct CniMetrics {
    /// Answers, by result.
    answers: IntCounterVec,
    late: IntCounter,
    wait: Histogram,
    /// Questions that were not understood.
    pub unreadable: IntCounter,
    /// Connections above [`CNI_CONNECTIONS_MAX`](crate::limits::CNI_CONNECTIONS_MAX).
    pub busy: IntCounter,
    /// Whether the node's network configuration has the plugin.
    pub chained: IntGauge,
}

impl CniMetrics {
    /// Registers them.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let answers = IntCounterVec::new(
            Opts::new("weft_cni_questions_total", "Sandboxes that the CNI plugin announced, by what became of them"),
            &["result"],
        )?;
        let wait = Histogram::with_opts(
            HistogramOpts::new("weft_cni_wait_seconds", "How long the CNI plugin waited for an answer")
                .buckets(WAIT_BUCKETS.to_vec()),
        )?;
        let chained = IntGauge::new("weft_cni_chained", "1 while the node's network configuration has the CNI plugin")?;
        registry.register(Box::new(answers.clone()))?;
        registry.register(Box::new(wait.clone()))?;
        registry.register(Box::new(chained.clone()))?;
        let result = |word| answers.with_label_values(&[word]);
        Ok(Self {
            late: result("late"),
            unreadable: result("unreadable"),
            busy: result("busy"),
            answers,
            wait,
            chained,
        })
    }

    pub(super) fn wait(&self) -> Waiting<'_> {
        Waiting { metrics: self, since: Instant::now(), answered: false }
    }
}

/// A plugin that waits; without an answer until it is dropped it is counted as late.
pub(super) struct Waiting<'a> {
    metrics: &'a CniMetrics,
    since: Instant,
    answered: bool,
}

impl Waiting<'_> {
    pub(super) fn answered(mut self, answer: &Answer) {
        self.answered = true;
        self.metrics.answers.with_label_values(&[answer.as_str()]).inc();
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.metrics.wait.observe(self.since.elapsed().as_secs_f64());
        if !self.answered {
            self.metrics.late.inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_documented() {
        let registry = Registry::new();
        CniMetrics::register(&registry).unwrap();
        let docs = include_str!("../../../docs/metrics.md");
        for family in registry.gather() {
            assert!(docs.contains(&format!("`{}", family.name())), "{} is not in docs/metrics.md", family.name());
        }
    }
}
