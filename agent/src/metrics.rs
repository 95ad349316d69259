//! The agent's own metrics. They are read off the kernel's maps and the control side's state when somebody scrapes, so they cost
//! nothing in between.

use std::sync::{Arc, Weak};

use prometheus::{
    GaugeVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    core::{Collector, Desc},
    proto::MetricFamily,
};

use crate::{pods::PodState, state::Shared};

/// Collects on scrape. Holds the agent weakly, because the registry outlives nothing.
pub struct AgentMetrics {
    shared: Weak<Shared>,
    descriptions: Vec<Desc>,
}

/// One scrape's worth of metrics.
struct Scrape {
    generation: IntGauge,
    ready: IntGauge,
    heartbeat_age: GaugeVec,
    pod_captured: IntGaugeVec,
    connections_before: IntGaugeVec,
    pod_connections: IntCounterVec,
    datagrams_denied: IntCounterVec,
    capture_events: IntCounterVec,
    map_entries: IntGaugeVec,
    map_max: IntGaugeVec,
    findings: IntGaugeVec,
    unused_manifests: IntGauge,
    not_cut: IntCounter,
}

impl Scrape {
    fn new() -> Result<Self, prometheus::Error> {
        let pod = &["namespace", "pod"][..];
        Ok(Self {
            generation: IntGauge::new("weft_generation", "Generation of the plans in force")?,
            ready: IntGauge::new("weft_ready", "1 while manifests are applied and the agent takes connections")?,
            heartbeat_age: GaugeVec::new(
                Opts::new("weft_worker_heartbeat_age_seconds", "Age of the slowest worker's last sign of life"),
                &[],
            )?,
            pod_captured: IntGaugeVec::new(
                Opts::new("weft_pod_captured", "1 if the pod's connections are captured; 0, with the reason, if not"),
                &["namespace", "pod", "reason"],
            )?,
            connections_before: IntGaugeVec::new(
                Opts::new(
                    "weft_pod_connections_before_capture",
                    "TCP connections that were open when capture of the pod began",
                ),
                pod,
            )?,
            pod_connections: IntCounterVec::new(
                Opts::new("weft_pod_connections_total", "New connections at the pod's hooks, by what became of them"),
                &["namespace", "pod", "event"],
            )?,
            datagrams_denied: IntCounterVec::new(
                Opts::new(
                    "weft_pod_datagrams_denied_total",
                    "Datagrams that policy denied, at the pod that sent them (outbound) or that they were for (inbound)",
                ),
                &["namespace", "pod", "direction"],
            )?,
            capture_events: IntCounterVec::new(
                Opts::new(
                    "weft_capture_limit_total",
                    "Events in the kernel that mean that a limit was met or a redirect was lost",
                ),
                &["event"],
            )?,
            map_entries: IntGaugeVec::new(Opts::new("weft_capture_map_entries", "Entries of a BPF map"), &["map"])?,
            map_max: IntGaugeVec::new(
                Opts::new("weft_capture_map_entries_max", "Entries that a BPF map can hold"),
                &["map"],
            )?,
            findings: IntGaugeVec::new(
                Opts::new("weft_object_findings", "Findings about objects, by severity"),
                &["severity"],
            )?,
            unused_manifests: IntGauge::new(
                "weft_manifest_problems",
                "Manifest documents or files that are not used as written",
            )?,
            not_cut: IntCounter::new(
                "weft_connections_not_cut_total",
                "Connections that weft does not carry, that policy denies, and that the kernel did not end",
            )?,
        })
    }

    fn families(&self) -> Vec<&dyn Collector> {
        vec![
            &self.generation,
            &self.ready,
            &self.heartbeat_age,
            &self.pod_captured,
            &self.connections_before,
            &self.pod_connections,
            &self.datagrams_denied,
            &self.capture_events,
            &self.map_entries,
            &self.map_max,
            &self.findings,
            &self.unused_manifests,
            &self.not_cut,
        ]
    }

    fn fill(&self, shared: &Shared) {
        self.generation.set(i64::try_from(shared.snapshots.generation().0).unwrap_or(i64::MAX));
        self.ready.set(i64::from(shared.ready()));
        self.heartbeat_age.with_label_values::<&str>(&[]).set(shared.proxy.heartbeat_age().as_secs_f64());
        self.unused_manifests.set(i64::try_from(shared.problems().len()).unwrap_or(i64::MAX));
        self.not_cut.inc_by(shared.not_cut.count());
        for severity in ["warning", "error"] {
            self.findings.with_label_values(&[severity]).set(0);
        }
        for finding in shared.compiler().diagnostics() {
            self.findings.with_label_values(&[crate::admin::view::severity(finding.severity)]).inc();
        }
        let stats = shared.capture().stats();
        for (id, entry) in shared.pods().iter() {
            let (namespace, pod) = (&*entry.workload.namespace, &*entry.workload.name);
            match &entry.state {
                PodState::Captured { connections_before } => {
                    self.pod_captured.with_label_values(&[namespace, pod, ""]).set(1);
                    self.connections_before.with_label_values(&[namespace, pod]).set(i64::from(*connections_before));
                }
                PodState::Failed { reason } => self.pod_captured.with_label_values(&[namespace, pod, reason]).set(0),
                PodState::Waiting => self.pod_captured.with_label_values(&[namespace, pod, "not tried yet"]).set(0),
            }
            if let Some((_, stats)) = stats.pods.iter().find(|(pod, _)| pod == id) {
                for (event, count) in crate::admin::view::pod_events(stats) {
                    let (family, label) = match event.strip_suffix("_udp_denied") {
                        Some(direction) => (&self.datagrams_denied, direction),
                        None => (&self.pod_connections, event),
                    };
                    family.with_label_values(&[namespace, pod, label]).inc_by(count);
                }
            }
        }
        for (event, count) in crate::admin::view::troubles(&stats) {
            self.capture_events.with_label_values(&[event]).inc_by(count);
        }
        for map in &stats.maps {
            self.map_entries.with_label_values(&[map.map]).set(i64::try_from(map.entries).unwrap_or(i64::MAX));
            self.map_max.with_label_values(&[map.map]).set(i64::try_from(map.limit).unwrap_or(i64::MAX));
        }
    }
}

impl AgentMetrics {
    /// Registers the agent's metrics.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn register(registry: &Registry, shared: &Arc<Shared>) -> Result<(), prometheus::Error> {
        let descriptions = Scrape::new()?.families().into_iter().flat_map(Collector::desc).cloned().collect();
        registry.register(Box::new(Self { shared: Arc::downgrade(shared), descriptions }))
    }
}

impl Collector for AgentMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Some(shared) = self.shared.upgrade() else { return Vec::new() };
        let Ok(scrape) = Scrape::new() else { return Vec::new() };
        scrape.fill(&shared);
        scrape.families().into_iter().flat_map(Collector::collect).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_documented() {
        let docs = include_str!("../../docs/metrics.md");
        let scrape = Scrape::new().unwrap();
        for name in scrape.families().into_iter().flat_map(Collector::desc).map(|desc| &desc.fq_name) {
            assert!(docs.contains(&format!("`{name}")), "{name} is not in docs/metrics.md");
        }
        let data_path = include_str!("../proxy/src/metrics.rs");
        for name in data_path.split('"').filter(|text| text.starts_with("weft_")) {
            assert!(docs.contains(&format!("`{name}")), "{name} is not in docs/metrics.md");
        }
    }
}
