//! What is not as it should be, said once in the log and for as long as it lasts in a metric.

use std::fmt::Display;

use super::metrics::CaMetrics;
use crate::watch::kube::wire::Failure;

/// Something that is not as it should be. What was in force before stays so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(super) struct Problem {
    /// One word, for a metric.
    pub(super) reason: &'static str,
    /// For people: the object, and what is wrong with it.
    pub(super) message: String,
}

impl Problem {
    pub(super) fn new(reason: &'static str, message: impl Display) -> Self {
        Self { reason, message: message.to_string() }
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        Self::new("api_server", format_args!("the API server: {}", failure.message))
    }
}

/// The problem of one part of the authority, if it has one.
pub(super) struct Complaint {
    part: &'static str,
    now: Option<Problem>,
    metrics: CaMetrics,
}

impl Complaint {
    pub(super) fn new(part: &'static str, metrics: CaMetrics) -> Self {
        Self { part, now: None, metrics }
    }

    /// Takes note of how it went.
    pub(super) fn note(&mut self, outcome: Result<(), Problem>) {
        let news = outcome.err();
        if news == self.now {
            return;
        }
        if let Some(before) = &self.now {
            self.metrics.problem.with_label_values(&[self.part, before.reason]).set(0);
        }
        match &news {
            Some(problem) => {
                self.metrics.problem.with_label_values(&[self.part, problem.reason]).set(1);
                tracing::error!(part = self.part, reason = problem.reason, error = %problem, "the authority has a problem; what was in force stays so");
            }
            None => tracing::info!(part = self.part, "the authority's problem is over"),
        }
        self.now = news;
    }
}
