//! The fleet, put together from the options.

use std::collections::BTreeMap;
use std::sync::Arc;

use routing::{Breaker, Health, Thresholds};

use crate::config::{ConfigError, Options, WorkerUrl, seconds};
use crate::fleet::{
    Connections, Fleet, FleetRules, Identity, NewWorker, Policies, PoolLimits, Room, Standing,
    UNKNOWN_MODEL, Worker,
};
use crate::telemetry::Metrics;

/// The fleet.
pub(super) fn fleet(
    options: &Options,
    metrics: &Metrics,
    lanes: usize,
) -> Result<Arc<Fleet>, ConfigError> {
    let params = options.policy_params();
    let policies = Policies::new(options.policy, move |kind| kind.build(&params));
    // One more lane than there are threads: the control thread's probes.
    let limits = Arc::new(PoolLimits::new(options, lanes + 1));
    let rules = rules(options);
    let unknown = metrics.model(UNKNOWN_MODEL);
    let worker = |(slot, text): (usize, &String)| {
        let url = WorkerUrl::parse(text).map_err(|why| ConfigError::worker_url(text, why))?;
        Ok(Arc::new(Worker::new(NewWorker {
            slot,
            connections: Connections::new(url.clone(), Arc::clone(&limits)),
            metrics: metrics.of_worker(url.as_str()),
            url,
            key: options.api_key.as_ref(),
            identity: Identity {
                model: UNKNOWN_MODEL.to_owned(),
                labels: BTreeMap::new(),
                metrics: Arc::clone(&unknown),
            },
            standing: standing(options),
            compared: rules.most_outliers.is_some(),
            room: rules.room.clone(),
        })))
    };
    let workers = options.worker_urls.iter().enumerate().map(worker);
    let workers: Result<Vec<_>, ConfigError> = workers.collect();
    Ok(Fleet::new(workers?, policies, rules))
}

fn rules(options: &Options) -> FleetRules {
    let room = || {
        Arc::new(Room::new(
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
        room: (options.max_requests_per_worker > 0).then(room),
        most_outliers: options
            .outlier_ejection
            .then_some(options.outlier_max_ejected_ratio),
    }
}

fn standing(options: &Options) -> Standing {
    let thresholds = Thresholds {
        failure: options.health_failure_threshold,
        success: options.health_success_threshold,
    };
    Standing::new(
        Health::new(thresholds),
        options.breaker_rules().map(Breaker::new),
    )
}
