//! The parts of a gateway, put together from the options.

use std::sync::Arc;
use std::time::Duration;

use routing::Params;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::error::StartError;
use super::lifecycle::Control;
use super::listen;
use super::maintenance::Maintenance;
use crate::admission::Admission;
use crate::api::ApiState;
use crate::balancer::{Balancer, ModelPolicies};
use crate::config::{
    AdmissionSection, ConfigError, FleetSection, HealthSection, Options, PoolSection, ProxySection,
    ServerSection, WorkerUrl,
};
use crate::fleet::{
    Fleet, HealthChecks, OutlierDetector, Registry, Source, WorkerFactory, WorkerSpec,
};
use crate::proxy::{FanOut, Proxy};
use crate::server::{Lanes, Service};
use crate::shutdown::Shutdown;
use crate::telemetry::Metrics;
use crate::upstream::{ControlClient, PoolLimits};

/// Puts everything together; nothing is served yet. The gateway's own calls run on `runtime`.
pub(super) fn control(
    options: &Options,
    runtime: Handle,
    lanes: usize,
) -> Result<Control, StartError> {
    let metrics = Metrics::new(options.prometheus_duration_buckets.as_deref());
    let metrics =
        Arc::new(metrics.map_err(|error| StartError::environment("make metrics", error))?);
    let fleet = Fleet::new(FleetSection::from(options));
    let admission_options = AdmissionSection::from(options);
    let params = Params::from(options);
    let policies = ModelPolicies::new(options.policy, move |kind| kind.build(&params));
    let client = ControlClient::new(&PoolSection::from(options), runtime)
        .map_err(|error| StartError::environment("make an HTTP client", error))?;
    let fan_out = FanOut::new(Arc::clone(&fleet), client.clone());
    let factory = factory(options, &metrics, lanes);
    let (joining, joined) = mpsc::unbounded_channel();
    let registry = Registry::new(Arc::clone(&fleet), factory, joining);
    add_configured(options, &registry)?;
    let health_checks = HealthChecks {
        fleet: Arc::clone(&fleet),
        metrics: Arc::clone(&metrics),
        options: Arc::new(HealthSection::from(options)),
        client,
        joined,
    };
    let balancer = Balancer::new(Arc::clone(&fleet), policies, &admission_options);

    let admission = Arc::new(Admission::new(&admission_options, &metrics));
    let (proxy_options, shared) = (ProxySection::from(options), Arc::clone(&metrics));
    let proxy = Proxy::new(&proxy_options, Arc::clone(&balancer), shared, lanes);
    let shutdown = Shutdown::default();
    let state = ApiState {
        fleet: Arc::clone(&fleet),
        balancer: Arc::clone(&balancer),
        registry: Arc::new(registry),
        proxy: Arc::new(proxy),
        fan_out,
        admission: Arc::clone(&admission),
        shutdown: shutdown.clone(),
    };
    let service = Service::new(&ServerSection::from(options), &metrics, state)
        .map_err(|error| StartError::environment("build the routes", error))?;
    let lanes = Lanes::start(lanes, &Arc::new(service), &shutdown)
        .map_err(|error| StartError::environment("start threads", error))?;
    let maintenance = Maintenance {
        balancer: Arc::clone(&balancer),
        admission: Arc::clone(&admission),
        outliers: OutlierDetector::new(&fleet),
        eviction_interval: Duration::from_secs(options.eviction_interval_secs),
    };
    Ok(Control {
        metrics_listener: listen::metrics(options)?,
        balancer,
        metrics,
        admission,
        lanes,
        health_checks,
        maintenance,
        shutdown,
        grace: Duration::from_secs(options.shutdown_grace_period_secs),
    })
}

fn factory(options: &Options, metrics: &Arc<Metrics>, lanes: usize) -> WorkerFactory {
    let health = HealthSection::from(options);
    let limits = PoolLimits::new(&PoolSection::from(options), lanes);
    WorkerFactory::new(&FleetSection::from(options), &health, limits, metrics)
}

/// Adds the workers that the options name.
fn add_configured(options: &Options, registry: &Registry) -> Result<(), StartError> {
    let spec = |text: &String| {
        let url = WorkerUrl::parse(text).map_err(|why| ConfigError::worker_url(text, why))?;
        Ok(WorkerSpec {
            key: options.api_key.clone(),
            ..WorkerSpec::new(url)
        })
    };
    let specs: Result<Vec<_>, ConfigError> = options.worker_urls.iter().map(spec).collect();
    registry
        .reconcile(Source::Static, &specs?)
        .map_err(|error| StartError::environment("add workers", error))
}
