//! The metrics of the watches.

use std::sync::Arc;

use prometheus::{
    GaugeVec, IntCounter, IntCounterVec, IntGaugeVec, Opts,
    core::{Collector, Desc},
    proto::MetricFamily,
};

use super::{Reason, Sources};

/// Collects on scrape.
pub(super) struct SourceMetrics {
    sources: Arc<Sources>,
    descriptions: Vec<Desc>,
}

struct Scrape {
    stale: GaugeVec,
    relists: IntCounterVec,
    errors: IntCounterVec,
    objects: IntGaugeVec,
    status_writes: IntCounter,
    status_errors: IntCounter,
}

impl Scrape {
    fn new() -> Result<Self, prometheus::Error> {
        Ok(Self {
            stale: GaugeVec::new(
                Opts::new("weft_source_stale_seconds", "For how long no watch of the kind was open: 0 while one is"),
                &["kind"],
            )?,
            relists: IntCounterVec::new(
                Opts::new("weft_source_relists_total", "How often all objects of the kind were listed"),
                &["kind"],
            )?,
            errors: IntCounterVec::new(
                Opts::new("weft_source_errors_total", "Failures to read the kind from the API server, by reason"),
                &["kind", "reason"],
            )?,
            objects: IntGaugeVec::new(
                Opts::new("weft_source_objects", "Objects of the kind that are in use"),
                &["kind"],
            )?,
            status_writes: IntCounter::new(
                "weft_status_writes_total",
                "Statuses and Events that this agent wrote to the API server",
            )?,
            status_errors: IntCounter::new(
                "weft_status_errors_total",
                "Statuses and Events that this agent could not write to the API server",
            )?,
        })
    }

    fn families(&self) -> [&dyn Collector; 6] {
        [&self.stale, &self.relists, &self.errors, &self.objects, &self.status_writes, &self.status_errors]
    }
}

impl SourceMetrics {
    pub(super) fn new(sources: Arc<Sources>) -> Result<Self, prometheus::Error> {
        let descriptions = Scrape::new()?.families().into_iter().flat_map(Collector::desc).cloned().collect();
        Ok(Self { sources, descriptions })
    }
}

impl Collector for SourceMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Ok(scrape) = Scrape::new() else { return Vec::new() };
        let (writes, errors) = self.sources.status_counts();
        scrape.status_writes.inc_by(writes);
        scrape.status_errors.inc_by(errors);
        for source in self.sources.view() {
            let kind = &*source.kind;
            scrape.stale.with_label_values(&[kind]).set(source.stale_s);
            scrape.relists.with_label_values(&[kind]).inc_by(source.relists);
            scrape.objects.with_label_values(&[kind]).set(i64::try_from(source.objects).unwrap_or(i64::MAX));
            for reason in Reason::ALL.map(Reason::as_str) {
                let errors = source.errors.get(reason).copied().unwrap_or(0);
                scrape.errors.with_label_values(&[kind, reason]).inc_by(errors);
            }
        }
        scrape.families().into_iter().flat_map(Collector::collect).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_documented() {
        let docs = include_str!("../../../../../docs/metrics.md");
        for name in Scrape::new().unwrap().families().into_iter().flat_map(Collector::desc).map(|desc| &desc.fq_name) {
            assert!(docs.contains(&format!("`{name}")), "{name} is not in docs/metrics.md");
        }
    }
}
