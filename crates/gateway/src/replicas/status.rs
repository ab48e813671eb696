//! What is shown of other gateways.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use routing::replicas::{OutboxTotals, Peer, Peers};
use serde_json::{Value, json};

/// The state of the exchange, as it was at most a second ago; `null` without one.
#[derive(Debug, Default)]
pub(crate) struct ReplicaStatus {
    exchange: Mutex<Value>,
    limits: Mutex<Value>,
    keys: Mutex<Value>,
}

/// What is known of this gateway's own part.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Own {
    pub(super) id: u64,
    pub(super) connected: bool,
    pub(super) round_trip_ms: Option<i64>,
    pub(super) sent: OutboxTotals,
    pub(super) dropped: u64,
    pub(super) warm: bool,
}

impl ReplicaStatus {
    /// As JSON.
    pub(crate) fn to_json(&self) -> Value {
        let mut shown = locked(&self.exchange).clone();
        if shown.is_null() {
            return json!({"shared_state": null, "replicas": []});
        }
        if let Some(shown) = shown.as_object_mut() {
            shown.insert("rate_limits".to_owned(), locked(&self.limits).clone());
            shown.insert("routing_keys".to_owned(), locked(&self.keys).clone());
        }
        shown
    }

    #[cfg(test)]
    pub(super) fn limits(&self) -> Value {
        locked(&self.limits).clone()
    }

    /// Sets what is shown of limits.
    pub(super) fn show_limits(&self, shown: Value) {
        *locked(&self.limits) = shown;
    }

    /// Sets what is shown of routing keys.
    pub(super) fn show_keys(&self, shown: Value) {
        *locked(&self.keys) = shown;
    }

    #[cfg(test)]
    pub(super) fn keys(&self) -> Value {
        locked(&self.keys).clone()
    }

    pub(super) fn show(&self, address: &str, own: Own, peers: &Peers, now: Duration) {
        let rows = peers.iter().map(|(id, peer)| row(id, peer, now));
        let mut replicas: Vec<_> = rows.collect();
        replicas.sort_by_key(|row| row["id"].as_str().map(str::to_owned));
        let shown = json!({
            "id": name(own.id),
            "shared_state": address,
            "connected": own.connected,
            "round_trip_ms": own.round_trip_ms,
            "warmed_up": own.warm,
            "sent": {
                "messages": own.sent.messages,
                "bytes": own.sent.bytes,
                "placements": own.sent.placements,
                "dropped_placements": own.dropped,
            },
            "replicas": replicas,
        });
        *locked(&self.exchange) = shown;
    }
}

fn locked(shown: &Mutex<Value>) -> MutexGuard<'_, Value> {
    shown.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A gateway as people see it.
pub(super) fn name(id: u64) -> String {
    format!("{id:016x}")
}

fn row(id: u64, peer: &Peer, now: Duration) -> Value {
    let version = String::from_utf8_lossy(&peer.version);
    json!({
        "id": name(id),
        "version": version.trim_end_matches('\0'),
        "live": peer.live,
        "last_heard_secs": now.saturating_sub(peer.heard).as_secs_f64(),
        "lag_ms": peer.lag_ms,
        "messages": peer.messages,
        "bytes": peer.bytes,
        "placements": peer.placements,
        "lost_batches": peer.lost,
        "requests": peer.requests(),
    })
}
