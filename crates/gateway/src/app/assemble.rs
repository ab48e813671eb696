//! The fleet, put together from the options.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::config::{ConfigError, Options, WorkerUrl, seconds};
use crate::fleet::{
    Fleet, FleetRules, ModelPolicies, PoolLimits, Registry, Slot, Worker, WorkerFactory,
    WorkerQueue, WorkerSpec,
};
use crate::telemetry::Metrics;

/// Workers that may be registered before their probers have started.
const JOIN_QUEUE: usize = 64;

/// The fleet, and who may join it.
pub(super) struct Assembled {
    pub(super) fleet: Arc<Fleet>,
    pub(super) registry: Arc<Registry>,
    /// Workers that come at run time, and want to be probed.
    pub(super) joined: mpsc::Receiver<Arc<Worker>>,
}

/// Puts the fleet together.
pub(super) fn fleet(
    options: &Options,
    metrics: &Arc<Metrics>,
    lanes: usize,
) -> Result<Assembled, ConfigError> {
    let params = options.policy_params();
    let policies = ModelPolicies::new(options.policy, move |kind| kind.build(&params));
    // One more lane than there are threads: the control thread's probes.
    let limits = PoolLimits::new(options, lanes + 1);
    let rules = rules(options);
    let factory = WorkerFactory::new(options, metrics, limits, rules.worker_queue.clone());
    let worker = |(number, text): (usize, &String)| {
        let url = WorkerUrl::parse(text).map_err(|why| ConfigError::worker_url(text, why))?;
        let spec = WorkerSpec {
            key: options.api_key.clone(),
            ..WorkerSpec::new(url)
        };
        let slot = Slot {
            number,
            generation: 0,
        };
        Ok(factory.build(spec, slot, None))
    };
    let workers = options.worker_urls.iter().enumerate().map(worker);
    let workers: Result<Vec<_>, ConfigError> = workers.collect();
    let fleet = Fleet::new(workers?, policies, rules);
    let (sender, joined) = mpsc::channel(JOIN_QUEUE);
    let registry = Registry::new(Arc::clone(&fleet), factory, sender);
    Ok(Assembled {
        fleet,
        registry: Arc::new(registry),
        joined,
    })
}

fn rules(options: &Options) -> FleetRules {
    let worker_queue = || {
        Arc::new(WorkerQueue::new(
            usize::try_from(options.max_requests_per_worker).unwrap_or(usize::MAX),
            usize::try_from(options.queue_size).unwrap_or(usize::MAX),
            seconds(options.queue_timeout_secs),
        ))
    };
    FleetRules {
        slow_start: seconds(options.slow_start_secs),
        // Without probes nothing could clear a suspect; the breaker watches alone.
        suspicion: !options.disable_health_check,
        drain_timeout: seconds(options.worker_drain_timeout_secs),
        worker_queue: (options.max_requests_per_worker > 0).then(worker_queue),
        most_outliers: options
            .outlier_ejection
            .then_some(options.outlier_max_ejected_ratio),
    }
}
