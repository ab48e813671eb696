//! Metrics of the exchange with other gateways.

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec};
use routing::replicas::{OutboxTotals, PeerTotals};

use super::registry::Maker;

/// Set from the exchange's own sums, once a second.
#[derive(Debug)]
pub(crate) struct ReplicaMetrics {
    live: IntGauge,
    connected: IntGauge,
    messages: IntCounterVec,
    bytes: IntCounterVec,
    placements: IntCounterVec,
    dropped: IntCounter,
    lost: IntCounter,
    pub(crate) malformed: IntCounter,
    limits: IntGauge,
    limits_on_failure: IntGauge,
    units: IntCounterVec,
    slots: IntGaugeVec,
    keys_connected: IntGauge,
    key_claims: IntCounterVec,
    pub(crate) keys_learnt: IntCounter,
}

impl ReplicaMetrics {
    pub(super) fn new(maker: &Maker<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            live: maker.number("smg_replicas", "other gateways that are heard")?,
            connected: maker.number(
                "smg_shared_state_connected",
                "1 while the shared state is reached, else 0",
            )?,
            messages: maker.counter(
                "smg_replica_messages_total",
                "messages between gateways",
                &["direction"],
            )?,
            bytes: maker.counter(
                "smg_replica_bytes_total",
                "bytes of messages between gateways",
                &["direction"],
            )?,
            placements: maker.counter(
                "smg_replica_placements_total",
                "placements in messages between gateways",
                &["direction"],
            )?,
            dropped: maker.sum(
                "smg_replica_placements_dropped_total",
                "placements that other gateways were not sent",
            )?,
            lost: maker.sum(
                "smg_replica_batches_lost_total",
                "batches of other gateways that did not come",
            )?,
            malformed: maker.sum(
                "smg_replica_messages_malformed_total",
                "messages that were not understood",
            )?,
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

    /// Sets the sums so far.
    pub(crate) fn show(&self, sent: OutboxTotals, received: PeerTotals) {
        self.live
            .set(i64::try_from(received.live).unwrap_or(i64::MAX));
        raise(&self.lost, received.lost);
        let both = [
            (&self.messages, sent.messages, received.messages),
            (&self.bytes, sent.bytes, received.bytes),
            (&self.placements, sent.placements, received.placements),
        ];
        for (family, sent, received) in both {
            raise(&family.with_label_values(&["sent"]), sent);
            raise(&family.with_label_values(&["received"]), received);
        }
    }

    /// Sets whether the shared state is reached.
    pub(crate) fn show_link(&self, connected: impl Into<i64>) {
        self.connected.set(connected.into());
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

    /// Sets whether routing keys are shared.
    pub(crate) fn show_keys(&self, connected: impl Into<i64>) {
        self.keys_connected.set(connected.into());
    }

    /// Counts claims of routing keys with this result.
    pub(crate) fn keys_claimed(&self, result: &str, claims: u64) {
        self.key_claims.with_label_values(&[result]).inc_by(claims);
    }

    /// Sets the number of placements that were not sent.
    pub(crate) fn show_dropped(&self, dropped: u64) {
        raise(&self.dropped, dropped);
    }
}

fn raise(counter: &IntCounter, to: u64) {
    counter.inc_by(to.saturating_sub(counter.get()));
}
