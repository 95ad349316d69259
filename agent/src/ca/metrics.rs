//! The authority's metrics.

use prometheus::{Gauge, GaugeVec, Histogram, HistogramOpts, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

/// All of them. Clones count together.
#[derive(Clone)]
pub(super) struct CaMetrics {
    pub(super) certificates: IntCounterVec,
    pub(super) refusals: IntCounterVec,
    pub(super) token_reviews: IntCounterVec,
    pub(super) handshakes: IntCounterVec,
    pub(super) sign_seconds: Histogram,
    pub(super) connections: IntGauge,
    pub(super) expiry: GaugeVec,
    pub(super) leader: IntGauge,
    pub(super) phase: IntGaugeVec,
    pub(super) awaited: IntGauge,
    pub(super) problem: IntGaugeVec,
    pub(super) pods: IntGauge,
    pub(super) looked: Gauge,
    pub(super) orders: IntCounterVec,
}

impl CaMetrics {
    /// Registers them.
    ///
    /// # Errors
    /// When a name is taken.
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counters = |name: &str, help: &str, label: &str| IntCounterVec::new(Opts::new(name, help), &[label]);
        // From our own key, in a millisecond, to another controller, in seconds.
        let buckets = vec![0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 20.0];
        let seconds = HistogramOpts::new("weft_ca_sign_seconds", "Time that the signer took for one certificate");
        let metrics = Self {
            certificates: counters("weft_ca_certificates_total", "Certificates that were signed", "signer")?,
            refusals: counters("weft_ca_refusals_total", "Calls and certificates that were refused", "code")?,
            token_reviews: counters(
                "weft_ca_token_reviews_total",
                "Tokens that the API server was asked about, by what came of it",
                "result",
            )?,
            handshakes: counters(
                "weft_ca_handshake_failures_total",
                "Connections of agents that came to nothing, by reason",
                "reason",
            )?,
            sign_seconds: Histogram::with_opts(seconds.buckets(buckets))?,
            connections: IntGauge::new("weft_ca_connections", "Open connections of agents")?,
            expiry: GaugeVec::new(
                Opts::new("weft_ca_expiry_timestamp_seconds", "When a certificate of the authority's own ends"),
                &["certificate"],
            )?,
            leader: IntGauge::new("weft_ca_leader", "1 on the replica that makes and rotates keys")?,
            phase: IntGaugeVec::new(
                Opts::new("weft_ca_rotation_phase", "1 for the phase that a rotation of the root is in; the leader's"),
                &["phase"],
            )?,
            awaited: IntGauge::new(
                "weft_ca_rotation_agents_awaited",
                "Agents whose report a rotation of the root waits for; the leader's",
            )?,
            problem: IntGaugeVec::new(
                Opts::new("weft_ca_problem", "1 while something of the authority is not as it should be"),
                &["part", "reason"],
            )?,
            pods: IntGauge::new("weft_ca_pods", "Pods of the cluster that the authority knows of")?,
            looked: Gauge::new(
                "weft_ca_keys_seen_timestamp_seconds",
                "When the replica has last seen that its keys and the bundle are those in force",
            )?,
            orders: counters(
                "weft_ca_certificate_requests_total",
                "CertificateRequests of cert-manager, by what became of them",
                "outcome",
            )?,
        };
        registry.register(Box::new(metrics.certificates.clone()))?;
        registry.register(Box::new(metrics.refusals.clone()))?;
        registry.register(Box::new(metrics.token_reviews.clone()))?;
        registry.register(Box::new(metrics.handshakes.clone()))?;
        registry.register(Box::new(metrics.sign_seconds.clone()))?;
        registry.register(Box::new(metrics.connections.clone()))?;
        registry.register(Box::new(metrics.expiry.clone()))?;
        registry.register(Box::new(metrics.leader.clone()))?;
        registry.register(Box::new(metrics.phase.clone()))?;
        registry.register(Box::new(metrics.awaited.clone()))?;
        registry.register(Box::new(metrics.problem.clone()))?;
        registry.register(Box::new(metrics.pods.clone()))?;
        registry.register(Box::new(metrics.looked.clone()))?;
        registry.register(Box::new(metrics.orders.clone()))?;
        Ok(metrics)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_documented() {
        let registry = Registry::new();
        let metrics = CaMetrics::register(&registry).unwrap();
        let vectors =
            [&metrics.certificates, &metrics.refusals, &metrics.token_reviews, &metrics.handshakes, &metrics.orders];
        for vector in vectors {
            vector.with_label_values(&["x"]).inc();
        }
        metrics.expiry.with_label_values(&["x"]).set(1.0);
        metrics.phase.with_label_values(&["x"]).set(1);
        metrics.problem.with_label_values(&["x", "y"]).set(1);
        let docs = include_str!("../../../docs/metrics.md");
        let families = registry.gather();
        assert_eq!(families.len(), 14);
        for family in families {
            assert!(docs.contains(&format!("`{}", family.name())), "{} is not in docs/metrics.md", family.name());
        }
    }
}
