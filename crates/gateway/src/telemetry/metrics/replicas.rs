//! Metrics of the exchange with other gateways.

use prometheus::{IntCounter, IntCounterVec, IntGauge};
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

    /// Sets the number of placements that were not sent.
    pub(crate) fn show_dropped(&self, dropped: u64) {
        raise(&self.dropped, dropped);
    }
}

fn raise(counter: &IntCounter, to: u64) {
    counter.inc_by(to.saturating_sub(counter.get()));
}
