//! The health checks of the fleet: a prober for each endpoint that joins.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tokio::sync::mpsc;

use super::endpoint::Endpoint;
use super::fleet::Fleet;
use super::health_check::Prober;
use super::registry::Registry;
use crate::config::Live;
use crate::telemetry::{LogLimit, Metrics};
use crate::upstream::ControlClient;

/// Starts a prober for every endpoint.
#[derive(Debug)]
pub(crate) struct HealthChecks {
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) live: Live,
    pub(crate) client: ControlClient,
    pub(crate) registry: Arc<Registry>,
    /// Endpoints that have joined the fleet.
    pub(crate) joined: mpsc::UnboundedReceiver<Arc<Endpoint>>,
}

impl HealthChecks {
    /// Runs for as long as endpoints may join.
    pub(crate) async fn run(mut self) {
        let hints = Arc::new(AtomicBool::default());
        while let Some(endpoint) = self.joined.recv().await {
            let prober = Prober {
                fleet: Arc::clone(&self.fleet),
                endpoint,
                metrics: Arc::clone(&self.metrics),
                live: self.live.clone(),
                client: self.client.clone(),
                registry: Arc::clone(&self.registry),
                loops: LogLimit::default(),
                distrust: LogLimit::default(),
                has_ready: AtomicBool::default(),
                hints: Arc::clone(&hints),
            };
            tokio::spawn(prober.run());
        }
    }
}
