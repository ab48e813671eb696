//! What is shared with other gateways, by the options.

use std::sync::Arc;

use routing::replicas::Journal;

use super::error::StartError;
use crate::api::ApiState;
use crate::config::Options;
use crate::replicas::{Exchange, RedisConnector, Replicas};
use crate::telemetry::Metrics;

/// Bytes of placements that wait for the next batch.
const JOURNAL_BYTES: usize = 1024 * 1024;

/// A way to other gateways, and what is noted for them.
pub(super) struct Shared {
    pub(super) journal: Arc<Journal>,
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
        connector,
    }))
}

impl Shared {
    /// The exchange of this gateway; it has not begun.
    pub(super) fn exchange(
        self,
        state: &ApiState,
        metrics: &Arc<Metrics>,
    ) -> Exchange<RedisConnector> {
        let parts = Replicas {
            balancer: Arc::clone(&state.balancer),
            journal: self.journal,
            status: Arc::clone(&state.replicas),
            metrics: Arc::clone(metrics),
            address: self.connector.address().to_owned(),
        };
        Exchange::new(parts, self.connector)
    }
}
