//! Metrics of what gateways keep together: limits and routing keys.

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::registry::Maker;

/// Counted as it happens; gauges are set once a second.
#[derive(Debug)]
pub(crate) struct SharedStateMetrics {
    limits: IntGauge,
    limits_on_failure: IntGauge,
    units: IntCounterVec,
    slots: IntGaugeVec,
    queue_requests: IntGaugeVec,
    pushed_out: IntCounterVec,
    keys_connected: IntGauge,
    key_claims: IntCounterVec,
    pub(crate) keys_learnt: IntCounter,
}

impl SharedStateMetrics {
    pub(super) fn new(maker: &Maker<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            limits: maker.number(
                "smg_shared_limits",
                "limits that are kept together with other gateways",
            )?,
            limits_on_failure: maker.number(
                "smg_shared_limits_on_failure",
                "1 while limits cannot be kept together, else 0",
            )?,
            units: maker.counter(
                "smg_shared_limit_units_total",
                "units of limits taken from the shared state, and returned",
                &["limit", "direction"],
            )?,
            slots: maker.gauge(
                "smg_shared_slots",
                "requests at a time that this gateway may have of shared limits, and has",
                &["limit", "state"],
            )?,
            queue_requests: maker.gauge(
                "smg_shared_queue_requests",
                "requests that may wait at this gateway, that do, and that wait at others, in shared queues",
                &["queue", "state"],
            )?,
            pushed_out: maker.counter(
                "smg_shared_queue_pushed_out_total",
                "requests that waited and were refused, for more waited at all gateways than may",
                &["queue"],
            )?,
            keys_connected: maker.number(
                "smg_shared_keys_connected",
                "1 while routing keys are shared with other gateways, else 0",
            )?,
            key_claims: maker.counter(
                "smg_shared_key_claims_total",
                "routing keys that other gateways were asked to agree to",
                &["result"],
            )?,
            keys_learnt: maker.sum(
                "smg_shared_keys_learnt_total",
                "routing keys that were read from the shared state",
            )?,
        })
    }

    /// Sets how many limits are shared, and whether they cannot be kept together.
    pub(crate) fn show_limits(&self, count: usize, on_failure: impl Into<i64>) {
        self.limits.set(i64::try_from(count).unwrap_or(i64::MAX));
        self.limits_on_failure.set(on_failure.into());
    }

    /// Counts units of a kind of limit that were taken.
    pub(crate) fn units_taken(&self, limit: &str, units: u64) {
        let family = &self.units;
        family.with_label_values(&[limit, "taken"]).inc_by(units);
    }

    /// Counts units of a kind of limit that were given back.
    pub(crate) fn units_returned(&self, limit: &str, units: u64) {
        let family = &self.units;
        family.with_label_values(&[limit, "returned"]).inc_by(units);
    }

    /// Sets what this gateway may have at a time of a kind of limit, and has.
    pub(crate) fn show_slots(&self, limit: &str, allowed: u64, used: u64) {
        for (state, slots) in [("allowed", allowed), ("used", used)] {
            let gauge = self.slots.with_label_values(&[limit, state]);
            gauge.set(i64::try_from(slots).unwrap_or(i64::MAX));
        }
    }

    /// Sets what a kind of queue has here and elsewhere.
    pub(crate) fn show_queue(&self, queue: &str, states: [(&str, u64); 3]) {
        for (state, requests) in states {
            let gauge = self.queue_requests.with_label_values(&[queue, state]);
            gauge.set(i64::try_from(requests).unwrap_or(i64::MAX));
        }
    }

    /// Counts requests that were pushed out of a kind of queue.
    pub(crate) fn pushed_out(&self, queue: &str, requests: u64) {
        self.pushed_out.with_label_values(&[queue]).inc_by(requests);
    }

    /// Sets whether routing keys are shared.
    pub(crate) fn show_keys(&self, connected: impl Into<i64>) {
        self.keys_connected.set(connected.into());
    }

    /// Counts claims of routing keys with this result.
    pub(crate) fn keys_claimed(&self, result: &str, claims: u64) {
        self.key_claims.with_label_values(&[result]).inc_by(claims);
    }
}
