//! Files of certificates, looked at while the gateway runs.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{error, info};

use super::error::StartError;
use crate::config::{Options, ServerTlsSection};
use crate::server::ServerTls;
use crate::telemetry::Metrics;
use crate::tls::Look;
use crate::upstream::WorkerTls;

/// Pause between looks. A change is taken at the second look that finds it.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What is made of files that may change.
pub(super) struct Certificates {
    /// Shown to clients.
    pub(super) clients: Option<Arc<ServerTls>>,
    /// Shown to workers, and wanted of them.
    pub(super) workers: Arc<WorkerTls>,
    /// The same for the collector of traces.
    pub(super) collector: Option<Arc<WorkerTls>>,
    pub(super) metrics: Arc<Metrics>,
}

impl Certificates {
    /// Reads the files that the options name.
    ///
    /// # Errors
    /// The first file that cannot be read or used.
    pub(super) fn new(
        options: &Options,
        metrics: &Arc<Metrics>,
        collector: Option<Arc<WorkerTls>>,
    ) -> Result<Self, StartError> {
        let clients = ServerTlsSection::new(options).map(ServerTls::new);
        Ok(Self {
            clients: clients.transpose()?.map(Arc::new),
            workers: WorkerTls::new(options.into())?,
            collector,
            metrics: Arc::clone(metrics),
        })
    }

    /// Runs until dropped.
    pub(super) async fn run(self) {
        let mut ticks = interval(LOOK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let (clients, workers) = (self.clients.clone(), Arc::clone(&self.workers));
            let collector = self.collector.clone();
            // A volume that does not answer holds up a thread of its own only.
            let look = move || {
                let clients = clients.map_or(Look::Unchanged, |clients| clients.look());
                let collector = collector.map_or(Look::Unchanged, |collector| collector.look());
                [
                    ("clients", clients),
                    ("workers", workers.look()),
                    ("collector", collector),
                ]
            };
            for (side, look) in spawn_blocking(look).await.into_iter().flatten() {
                self.report(side, &look);
            }
        }
    }

    fn report(&self, side: &str, look: &Look) {
        let result = match look {
            Look::Unchanged => return,
            Look::Reloaded => {
                info!(side, "certificates have changed, new ones are in force");
                "success"
            }
            Look::Failed(error) => {
                error!(side, %error, "certificates have changed and cannot be used, the old ones stay in force");
                "failure"
            }
        };
        self.metrics.certificates_reloaded(side, result);
    }
}
