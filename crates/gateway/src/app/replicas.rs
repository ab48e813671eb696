//! What is shared with other gateways, by the options.

use std::sync::Arc;

use routing::quota::SharedLimits;
use routing::replicas::Journal;

use super::error::StartError;
use crate::api::ApiState;
use crate::config::{Options, SharedStateOnFailure};
use crate::replicas::{
    Exchange, KeyParts, Keys, Leaving, QuotaParts, Quotas, RedisConnector, Replicas,
};
use crate::telemetry::Metrics;

/// Bytes of placements that wait for the next batch.
const JOURNAL_BYTES: usize = 1024 * 1024;

/// A way to other gateways, and what is noted for them.
pub(super) struct Shared {
    pub(super) journal: Arc<Journal>,
    pub(super) limits: Arc<SharedLimits>,
    on_failure: SharedStateOnFailure,
    connector: RedisConnector,
}

/// What the options ask for; nothing is connected yet.
pub(super) fn prepare(options: &Options) -> Result<Option<Shared>, StartError> {
    let Some(url) = &options.shared_state else {
        return Ok(None);
    };
    let connector = RedisConnector::new(url)
        .map_err(|error| StartError::environment("use the shared state", error))?;
    Ok(Some(Shared {
        journal: Arc::new(Journal::new(JOURNAL_BYTES)),
        limits: Arc::default(),
        on_failure: options.shared_state_on_failure,
        connector,
    }))
}

impl Shared {
    /// What is exchanged with other gateways; it has not begun.
    pub(super) fn exchange(self, state: &ApiState, metrics: &Arc<Metrics>) -> Exchanges {
        let quotas = QuotaParts {
            limits: self.limits,
            balancer: Some(Arc::clone(&state.balancer)),
            on_failure: self.on_failure,
            status: Arc::clone(&state.replicas),
            metrics: Arc::clone(metrics),
            address: self.connector.address().to_owned(),
        };
        let keys = KeyParts {
            balancer: Arc::clone(&state.balancer),
            status: Arc::clone(&state.replicas),
            metrics: Arc::clone(metrics),
            address: self.connector.address().to_owned(),
        };
        let parts = Replicas {
            balancer: Arc::clone(&state.balancer),
            journal: self.journal,
            status: Arc::clone(&state.replicas),
            metrics: Arc::clone(metrics),
            address: self.connector.address().to_owned(),
        };
        Exchanges {
            quotas: Quotas::new(quotas, self.connector.clone()),
            keys: Keys::new(keys, self.connector.clone()),
            others: Exchange::new(parts, self.connector),
        }
    }
}

/// The tasks that speak with other gateways, or with what they share.
pub(super) struct Exchanges {
    others: Exchange<RedisConnector>,
    quotas: Quotas<RedisConnector>,
    keys: Keys<RedisConnector>,
}

/// The same, while they run.
pub(super) struct Leaves([Leaving; 3]);

impl Exchanges {
    /// They run until they are ended.
    pub(super) fn spawn(self) -> Leaves {
        Leaves([self.quotas.spawn(), self.keys.spawn(), self.others.spawn()])
    }
}

impl Leaves {
    /// Gives back what is held, and lets others know that this gateway stops.
    pub(super) async fn finish(self) {
        for task in self.0 {
            task.finish().await;
        }
    }
}
