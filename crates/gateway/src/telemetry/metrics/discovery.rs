//! Metrics of the sources that workers come from.

use std::time::Duration;

use prometheus::{HistogramVec, IntCounterVec, IntGaugeVec};

use super::registry::Maker;

/// By the source of workers.
#[derive(Debug)]
pub(crate) struct DiscoveryMetrics {
    registrations: IntCounterVec,
    deregistrations: IntCounterVec,
    discovered: IntGaugeVec,
    syncs: HistogramVec,
    up: IntGaugeVec,
    errors: IntCounterVec,
}

impl DiscoveryMetrics {
    pub(super) fn new(maker: &Maker<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            registrations: maker.counter(
                "smg_discovery_registrations_total",
                "workers registered at run time",
                &["source", "result"],
            )?,
            deregistrations: maker.counter(
                "smg_discovery_deregistrations_total",
                "workers that began to leave",
                &["source", "reason"],
            )?,
            discovered: maker.gauge(
                "smg_discovery_workers_discovered",
                "workers that a source lists",
                &["source"],
            )?,
            syncs: maker.seconds(
                "smg_discovery_sync_duration_seconds",
                "time to make the workers of a source those of its list",
                &["source"],
            )?,
            up: maker.gauge(
                "smg_discovery_up",
                "1 while the list of a source is up to date, else 0",
                &["source"],
            )?,
            errors: maker.counter(
                "smg_discovery_errors_total",
                "times that a source could not be read",
                &["source", "reason"],
            )?,
        })
    }

    /// What became of a registration at run time.
    pub(crate) fn registered(&self, source: &str, result: &str) {
        self.registrations
            .with_label_values(&[source, result])
            .inc();
    }

    /// The removal of a worker began.
    pub(crate) fn deregistered(&self, source: &str, reason: &str) {
        let deregistrations = &self.deregistrations;
        deregistrations.with_label_values(&[source, reason]).inc();
    }

    /// The workers of a source have been made those of its list.
    pub(crate) fn synced(&self, source: &str, listed: usize, took: Duration) {
        let discovered = self.discovered.with_label_values(&[source]);
        discovered.set(i64::try_from(listed).unwrap_or(i64::MAX));
        let times = self.syncs.with_label_values(&[source]);
        times.observe(took.as_secs_f64());
    }
}

impl DiscoveryMetrics {
    /// A source has yielded no list yet.
    pub(crate) fn waits(&self, source: &str) {
        self.up.with_label_values(&[source]).set(0);
    }

    /// The list of a source is up to date.
    pub(crate) fn follows(&self, source: &str) {
        self.up.with_label_values(&[source]).set(1);
    }

    /// A source is no more.
    pub(crate) fn ended(&self, source: &str) {
        let _ = self.up.remove_label_values(&[source]);
    }

    /// A source could not be read.
    pub(crate) fn failed(&self, source: &str, reason: &str) {
        self.waits(source);
        self.errors.with_label_values(&[source, reason]).inc();
    }
}
