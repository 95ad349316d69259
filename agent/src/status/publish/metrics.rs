//! Metrics of publishing pods.

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use crate::{
    readiness::{Readiness, Withheld},
    watch::kube::health::Reason,
};

/// Why a captured pod is not published, beside [`Withheld`]: no object has room for it.
const NO_ROOM: &str = "limit";

/// Counters and gauges, in any number of hands.
#[derive(Clone, Debug)]
pub struct PublishMetrics {
    pub(super) applied: IntCounter,
    pub(super) deleted: IntCounter,
    pub(super) bytes: IntCounter,
    pub(super) failures: IntCounterVec,
    pub(super) published: IntGauge,
    withheld: IntGaugeVec,
    late: IntCounter,
}

impl PublishMetrics {
    /// Registers them.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let writes = IntCounterVec::new(
            Opts::new("weft_publication_writes_total", "NodeWorkloads of this node that were written, by verb"),
            &["verb"],
        )?;
        let bytes = IntCounter::new("weft_publication_bytes_total", "Bytes of NodeWorkloads that were written")?;
        let failures = IntCounterVec::new(
            Opts::new("weft_publication_errors_total", "NodeWorkloads that could not be written or listed, by reason"),
            &["reason"],
        )?;
        let published =
            IntGauge::new("weft_published_pods", "Pods of this node that other nodes are told to take mutual TLS")?;
        let withheld = IntGaugeVec::new(
            Opts::new("weft_withheld_pods", "Captured pods of this node that are not published, by reason"),
            &["reason"],
        )?;
        let late = IntCounter::new(
            "weft_publication_late_total",
            "Pods that were let go of before it was certain that no other node takes them for ready",
        )?;
        registry.register(Box::new(writes.clone()))?;
        registry.register(Box::new(bytes.clone()))?;
        registry.register(Box::new(failures.clone()))?;
        registry.register(Box::new(published.clone()))?;
        registry.register(Box::new(withheld.clone()))?;
        registry.register(Box::new(late.clone()))?;
        for reason in Reason::ALL {
            failures.with_label_values(&[reason.as_str()]);
        }
        let (applied, deleted) = (writes.with_label_values(&["apply"]), writes.with_label_values(&["delete"]));
        Ok(Self { applied, deleted, bytes, failures, published, withheld, late })
    }

    pub(super) fn failed(&self, reason: Reason) {
        self.failures.with_label_values(&[reason.as_str()]).inc();
    }

    pub(super) fn withheld(&self, readiness: &Readiness, left_out: usize) {
        let withheld = readiness.withheld();
        let set = |reason: &str, count: usize| {
            self.withheld.with_label_values(&[reason]).set(count.try_into().unwrap_or(i64::MAX));
        };
        for why in Withheld::ALL {
            set(why.as_str(), withheld.iter().filter(|(_, of, _)| *of == why).count());
        }
        set(NO_ROOM, left_out);
        self.late.inc_by(readiness.late().saturating_sub(self.late.get()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_in_the_documentation() {
        let registry = Registry::new();
        let metrics = PublishMetrics::register(&registry).unwrap();
        metrics.withheld(&Readiness::default(), 0);
        let docs = include_str!("../../../../docs/metrics.md");
        let families = registry.gather();
        assert_eq!(families.len(), 6);
        for family in families {
            assert!(docs.contains(&format!("`{}", family.name())), "{} is not in docs/metrics.md", family.name());
        }
    }
}
