//! The parts of a gateway, put together from the options.

use std::sync::Arc;
use std::time::Duration;

use routing::Params;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use super::access;
use super::certificates::Certificates;
use super::error::StartError;
use super::lifecycle::Control;
use super::listen;
use super::maintenance::Maintenance;
use super::reporting::report;
use super::sources;
use crate::admission::Admission;
use crate::api::ApiState;
use crate::balancer::{Balancer, RoleKinds, RolePolicies};
use crate::config::{
    AdmissionSection, ClientSection, ConnectionSection, FleetSection, HealthSection, Live,
    ModelMatching, Options, ProxySection, ServerSection, seconds,
};
use crate::cpu_pool::CpuPool;
use crate::fleet::{Endpoint, Fleet, HealthChecks, OutlierDetector, Registry, WorkerFactory};
use crate::proxy::{Dispatcher, FanOut, Orders, Proxy, WorkerCalls};
use crate::server::{Auth, Lanes, Service};
use crate::shutdown::Shutdown;
use crate::telemetry::Metrics;
use crate::upstream::{ConnectionLimits, ControlClient, Resolver, WorkerTls};
use crate::via::Via;

/// What the machine gives to the gateway.
#[derive(Clone, Copy, Debug)]
pub(super) struct Machine {
    pub(super) lanes: usize,
    /// File descriptors that the process may have.
    pub(super) descriptors: u64,
    /// Memory that the process may have, bytes.
    pub(super) memory: u64,
}

/// Puts everything together; nothing is served yet. The gateway's own calls run on `runtime`.
pub(super) fn build(
    options: &Options,
    runtime: &Runtime,
    machine: Machine,
) -> Result<Control, StartError> {
    let (lanes, via, shutdown) = (machine.lanes, Via::new(), Shutdown::default());
    let (metrics_listeners, (metrics, reporting)) = (listen::metrics(options)?, report(options)?);
    let certificates = Certificates::new(options, &metrics, reporting.collector_tls.clone())?;
    let (fleet, live) = (Fleet::new(FleetSection::from(options)), Live::new(options));
    let (client, limits) = upstream(options, runtime, lanes, &certificates.workers, &via)?;
    let clients = ClientSection::new(options, machine.descriptors);
    let (auth, access) = access::build(options, &metrics, &client, runtime)?;
    let (joining, joined) = mpsc::unbounded_channel();
    let registry = registry(options, &metrics, &fleet, limits, joining);
    sources::start(options, &registry, runtime.handle())?;
    let health_checks = HealthChecks {
        fleet: Arc::clone(&fleet),
        metrics: Arc::clone(&metrics),
        options: Arc::new(HealthSection::from(options)),
        live: live.clone(),
        client: client.clone(),
        registry: Arc::clone(&registry),
        joined,
    };
    let balancer = balancer(options, &fleet);
    let admission = Arc::new(Admission::new(&AdmissionSection::from(options), &metrics));
    let cpu_pool = CpuPool::new().map_err(|e| StartError::environment("start threads", e))?;
    let section = ProxySection::new(options, machine.memory, lanes);
    let calls = WorkerCalls::new(&section, &via, client.clone(), &cpu_pool);
    let dispatcher = Dispatcher::new(&section, calls, live.clone(), &balancer, &metrics);
    let proxy = Arc::new(Proxy::new(&section, dispatcher, cpu_pool.clone()));
    let state = ApiState {
        fleet: Arc::clone(&fleet),
        balancer: Arc::clone(&balancer),
        registry,
        proxy: Arc::clone(&proxy),
        orders: Orders::new(client.clone(), seconds(options.engine_control_timeout_secs)),
        fan_out: FanOut::new(Arc::clone(&fleet), client.clone()),
        client,
        cpu_pool,
        shared: Arc::default(),
        admission: Arc::clone(&admission),
        shutdown: shutdown.clone(),
    };
    let service = service(options, auth, &metrics, state, via)?;
    let tls = certificates.clients.as_ref();
    let lanes = Lanes::start(lanes, &service, tls, &clients, &shutdown)
        .map_err(|error| StartError::environment("start threads", error))?;
    Ok(Control {
        metrics_listeners,
        reporting,
        access,
        live,
        metrics,
        lanes,
        clients,
        health_checks,
        certificates,
        proxy,
        maintenance: maintenance(options, &balancer, &admission),
        balancer,
        admission,
        shutdown,
        grace: Duration::from_secs(options.shutdown_grace_period_secs),
    })
}

fn balancer(options: &Options, fleet: &Arc<Fleet>) -> Arc<Balancer> {
    let params = Params::from(options);
    let (prefill, decode) = (options.prefill_policy, options.decode_policy);
    let kinds = RoleKinds::new(options.policy, prefill, decode);
    let policies = RolePolicies::new(kinds, move |kind| kind.build(&params));
    let matching = ModelMatching::from(options);
    let admission = AdmissionSection::from(options);
    Balancer::new(Arc::clone(fleet), policies, &admission, matching)
}

fn maintenance(
    options: &Options,
    balancer: &Arc<Balancer>,
    admission: &Arc<Admission>,
) -> Maintenance {
    Maintenance {
        balancer: Arc::clone(balancer),
        admission: Arc::clone(admission),
        outliers: OutlierDetector::new(&balancer.fleet),
        eviction_interval: Duration::from_secs(options.eviction_interval_secs),
    }
}

/// The client of the gateway's own calls, and how connections to workers are kept.
fn upstream(
    options: &Options,
    runtime: &Runtime,
    lanes: usize,
    tls: &Arc<WorkerTls>,
    via: &Via,
) -> Result<(ControlClient, ConnectionLimits), StartError> {
    let options = ConnectionSection::from(options);
    let resolver = Resolver::new(runtime.handle().clone());
    let (runtime, trust) = (runtime.handle().clone(), Arc::clone(tls));
    let client = ControlClient::new(&options, resolver.clone(), trust, runtime, via)
        .map_err(|error| StartError::environment("make an HTTP client", error))?;
    let limits = ConnectionLimits::new(&options, lanes);
    let limits = limits.with_resolver(resolver).with_tls(Arc::clone(tls));
    Ok((client, limits))
}

fn registry(
    options: &Options,
    metrics: &Arc<Metrics>,
    fleet: &Arc<Fleet>,
    limits: ConnectionLimits,
    joining: mpsc::UnboundedSender<Arc<Endpoint>>,
) -> Arc<Registry> {
    let health = HealthSection::from(options);
    let factory = WorkerFactory::new(&FleetSection::from(options), &health, limits, metrics);
    Arc::new(Registry::new(Arc::clone(fleet), factory, joining))
}

fn service(
    options: &Options,
    auth: Auth,
    metrics: &Arc<Metrics>,
    state: ApiState,
    via: Via,
) -> Result<Arc<Service>, StartError> {
    let service = Service::new(&ServerSection::from(options), auth, metrics, state, via);
    let service = service.map_err(|error| StartError::environment("build the routes", error))?;
    Ok(Arc::new(service))
}
