//! Metrics of identities. What the store knows is read when somebody scrapes.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::UNIX_EPOCH,
};

use prometheus::{
    Gauge, GaugeVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    core::{Collector, Desc},
    proto::MetricFamily,
};

use super::store::Store;
use crate::limits;

/// Counts what happens.
#[derive(Clone)]
pub struct IdentityMetrics {
    renewals: IntCounter,
    failures: IntCounterVec,
    clock_ahead: Gauge,
    clock_jumps: IntCounter,
    reasons: Arc<Mutex<HashSet<String>>>,
}

impl IdentityMetrics {
    fn new() -> Result<Self, prometheus::Error> {
        Ok(Self {
            renewals: IntCounter::new(
                "weft_certificate_renewals_total",
                "Certificates that came and were put in force",
            )?,
            failures: IntCounterVec::new(
                Opts::new(
                    "weft_certificate_failures_total",
                    "Certificates that did not come or were not taken, by reason",
                ),
                &["reason"],
            )?,
            clock_ahead: Gauge::new(
                "weft_authority_clock_ahead_seconds",
                "By how much the authority's clock was ahead of this node's when it last answered",
            )?,
            clock_jumps: IntCounter::new(
                "weft_clock_jumps_total",
                "How often the wall clock was set by more than 5 s",
            )?,
            reasons: Arc::default(),
        })
    }

    fn families(&self) -> [Box<dyn Collector>; 4] {
        [
            Box::new(self.renewals.clone()),
            Box::new(self.failures.clone()),
            Box::new(self.clock_ahead.clone()),
            Box::new(self.clock_jumps.clone()),
        ]
    }

    /// Registers them, and what is read of the store.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn register(registry: &Registry, store: &Arc<Store>) -> Result<Self, prometheus::Error> {
        let metrics = Self::new()?;
        for family in metrics.families() {
            registry.register(family)?;
        }
        let descriptions = Scrape::new()?.families().into_iter().flat_map(Collector::desc).cloned().collect();
        registry.register(Box::new(StoreMetrics { store: Arc::downgrade(store), descriptions }))?;
        Ok(metrics)
    }

    /// A certificate came.
    pub fn renewed(&self) {
        self.renewals.inc();
    }

    /// None came. The authority chooses words, too, so there are only so many that are told apart.
    pub fn failed(&self, reason: &str) {
        let mut reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known = reasons.contains(reason);
        let is_word =
            || !reason.is_empty() && reason.len() <= 40 && reason.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        if is_known || reasons.len() < limits::IDENTITY_REASONS_MAX && is_word() {
            reasons.insert(reason.to_owned());
            self.failures.with_label_values(&[reason]).inc();
        } else {
            self.failures.with_label_values(&["other"]).inc();
        }
    }

    /// The authority's clock.
    pub fn clock_ahead(&self, milliseconds: i64) {
        #[allow(clippy::cast_precision_loss)]
        self.clock_ahead.set(milliseconds as f64 / 1000.0);
    }

    /// The wall clock was set.
    pub fn clock_jumped(&self) {
        self.clock_jumps.inc();
    }
}

/// Collects on scrape.
struct StoreMetrics {
    store: Weak<Store>,
    descriptions: Vec<Desc>,
}

struct Scrape {
    expiry: GaugeVec,
    accounts: IntGauge,
    without: IntGauge,
    roots: IntGauge,
}

impl Scrape {
    fn new() -> Result<Self, prometheus::Error> {
        Ok(Self {
            expiry: GaugeVec::new(
                Opts::new(
                    "weft_certificate_expiry_timestamp_seconds",
                    "When the certificate in force ends, seconds since 1970",
                ),
                &["namespace", "service_account"],
            )?,
            accounts: IntGauge::new("weft_identities", "Service accounts that pods of this node run as")?,
            without: IntGauge::new(
                "weft_identities_without_certificate",
                "Of these, the ones without a certificate in force",
            )?,
            roots: IntGauge::new("weft_roots", "Roots that peers are checked with")?,
        })
    }

    fn families(&self) -> [&dyn Collector; 4] {
        [&self.expiry, &self.accounts, &self.without, &self.roots]
    }

    fn fill(&self, store: &Store) {
        let (mut accounts, mut without) = (0, 0);
        for (account, entry) in store.book().iter() {
            accounts += 1;
            let Some(held) = &entry.held else {
                without += 1;
                continue;
            };
            let ends = held.credential.svid().not_after.duration_since(UNIX_EPOCH).unwrap_or_default();
            self.expiry.with_label_values(&[&*account.namespace, &*account.name]).set(ends.as_secs_f64());
        }
        self.accounts.set(accounts);
        self.without.set(without);
        let roots = store.trust().bundle.as_ref().map_or(0, |bundle| bundle.roots().len());
        self.roots.set(i64::try_from(roots).unwrap_or(i64::MAX));
    }
}

impl Collector for StoreMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let (Some(store), Ok(scrape)) = (self.store.upgrade(), Scrape::new()) else { return Vec::new() };
        scrape.fill(&store);
        scrape.families().into_iter().flat_map(Collector::collect).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_of_identities_is_documented() {
        let docs = include_str!("../../../docs/metrics.md");
        let (counters, scrape) = (IdentityMetrics::new().unwrap(), Scrape::new().unwrap());
        let mut names: Vec<String> = counters
            .families()
            .iter()
            .flat_map(|family| family.desc().into_iter().map(|desc| desc.fq_name.clone()).collect::<Vec<_>>())
            .collect();
        names.extend(scrape.families().into_iter().flat_map(Collector::desc).map(|desc| desc.fq_name.clone()));
        for name in names {
            assert!(docs.contains(&format!("`{name}")), "{name} is not in docs/metrics.md");
        }
    }

    #[test]
    fn reasons_of_others_are_not_counted_without_end() {
        let metrics = IdentityMetrics::new().unwrap();
        for number in 0..1000_u32 {
            let word: String = number.to_string().bytes().map(|digit| char::from(digit - b'0' + b'a')).collect();
            metrics.failed(&format!("made_up_{word}"));
            metrics.failed("Not a word!");
        }
        let children = metrics.failures.collect()[0].get_metric().len();
        assert_eq!(children, limits::IDENTITY_REASONS_MAX + 1);
    }
}
