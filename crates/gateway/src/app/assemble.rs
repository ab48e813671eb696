//! The parts of a gateway, put together from the options.

use std::sync::Arc;
use std::time::Duration;

use routing::Params;
use routing::quota::SharedLimits;
use routing::replicas::Journal;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use super::access;
use super::certificates::Certificates;
use super::error::StartError;
use super::lifecycle::Control;
use super::listen;
use super::maintenance::Maintenance;
use super::reload::{Parts, Reloader};
use super::replicas;
use super::reporting::report;
use super::sources::Sources;
use crate::admission::Admission;
use crate::api::{ApiState, Port};
use crate::balancer::{Balancer, RoleKinds, RolePolicies};
use crate::config::{
    AdmissionSection, ClientSection, Configuration, ConnectionSection, FleetPage, FleetSection,
    Live, LoadSection, Loaded, ModelMatching, Options, ProxySection, Reloads, ServerSection,
    ZoneSection, seconds,
};
use crate::cpu_pool::CpuPool;
use crate::fleet::{
    Fleet, HealthChecks, LoadPolls, LoadPushes, OutlierDetector, Registry, WorkerFactory,
};
use crate::proxy::{Dispatcher, FanOut, Orders, Proxy, WorkerCalls};
use crate::server::{Auth, Lanes, Service};
use crate::shutdown::Shutdown;
use crate::telemetry::Metrics;
use crate::upstream::{ConnectionLimits, ControlClient, Resolver, WorkerTls};
use crate::via::Via;
use crate::watched_file::WatchedFile;

/// What the machine gives to the gateway.
#[derive(Clone, Copy, Debug)]
pub(super) struct Machine {
    pub(super) lanes: usize,
    /// File descriptors that the process may have.
    pub(super) descriptors: u64,
    /// Memory that the process may have, bytes.
    pub(super) memory: u64,
}

/// The options, and the file they were read from, as it was before.
pub(super) struct Read<'a> {
    pub(super) configuration: &'a Configuration,
    pub(super) file: Option<WatchedFile>,
    pub(super) loaded: Loaded,
}

/// The client of the gateway's own calls, and how connections to workers are kept.
struct Upstream {
    client: ControlClient,
    limits: ConnectionLimits,
}

/// The fleet, and what adds, removes and probes its workers.
struct Workers {
    fleet: Arc<Fleet>,
    live: Live,
    registry: Arc<Registry>,
    sources: Sources,
    health_checks: HealthChecks,
}

/// What handlers need, and is made before the rest.
struct Prepared {
    balancer: Arc<Balancer>,
    reloads: Reloads,
    /// Those that other gateways share.
    limits: Option<Arc<SharedLimits>>,
}

/// Puts everything together; nothing is served yet. The gateway's own calls run on `runtime`.
pub(super) fn build(
    read: Read<'_>,
    runtime: &Runtime,
    machine: Machine,
) -> Result<Control, StartError> {
    let options = &read.loaded.options().clone();
    let via = Via::new();
    let (metrics_listeners, (metrics, reporting)) = (listen::metrics(options)?, report(options)?);
    let certificates = Certificates::new(options, &metrics, reporting.collector_tls.clone())?;
    let live = Live::new(read.loaded);
    let (reloads, requests) = Reloads::new(live.clone());
    let upstream = upstream(options, runtime, machine.lanes, &certificates.workers, &via)?;
    let clients = ClientSection::new(options, machine.descriptors);
    let shared = replicas::prepare(options)?;
    let limits = shared.as_ref().map(|shared| Arc::clone(&shared.limits));
    let access = access::build(options, limits.clone(), &metrics, &upstream.client, runtime)?;
    let (audit, audit_writer) = access::audit(options)?;
    let workers = workers(options, live.clone(), upstream, &metrics, runtime)?;
    let journal = shared.as_ref().map(|shared| &shared.journal);
    let balancer = balancer(options, &workers.fleet, journal);
    if let Some(limits) = &limits {
        balancer.share_queues(limits);
    }
    let prepared = Prepared {
        balancer,
        reloads,
        limits,
    };
    let state = state(options, machine, &workers, &via, prepared)?;
    let exchange = shared.map(|shared| shared.exchange(&state, &metrics));
    let auth = Auth::new(access.rules(options), audit);
    let (service, metrics_service) = services(options, &auth, &state, &via)?;
    let tls = certificates.clients.as_ref();
    let lanes = Lanes::start(machine.lanes, &service, tls, &clients, &state.shutdown)
        .map_err(|error| StartError::environment("start threads", error))?;
    Ok(Control {
        metrics_listeners,
        metrics_service,
        reporting,
        audit_writer,
        reloader: Reloader {
            configuration: read.configuration.clone(),
            file: read.file,
            requests,
            parts: Parts {
                metrics: Arc::clone(&metrics),
                state: state.clone(),
                service,
                access,
                sources: workers.sources,
            },
        },
        metrics,
        lanes,
        clients,
        load_pushes: LoadPushes::new(&workers.health_checks, LoadSection::from(options)),
        load_polls: LoadPolls::new(&workers.health_checks, LoadSection::from(options)),
        health_checks: workers.health_checks,
        certificates,
        exchange,
        maintenance: maintenance(live, &state.balancer, &state.admission),
        state,
        grace: Duration::from_secs(options.shutdown_grace_period_secs),
    })
}

fn workers(
    options: &Options,
    live: Live,
    upstream: Upstream,
    metrics: &Arc<Metrics>,
    runtime: &Runtime,
) -> Result<Workers, StartError> {
    let fleet = Fleet::new(FleetSection::from(options));
    let (joining, joined) = mpsc::unbounded_channel();
    let factory = WorkerFactory::new(&fleet, &live, upstream.limits, metrics);
    let registry = Arc::new(Registry::new(Arc::clone(&fleet), factory, joining));
    let sources = {
        let _inside = runtime.enter();
        Sources::start(options, &registry)?
    };
    let health_checks = HealthChecks {
        fleet: Arc::clone(&fleet),
        metrics: Arc::clone(metrics),
        live: live.clone(),
        client: upstream.client,
        registry: Arc::clone(&registry),
        joined,
    };
    Ok(Workers {
        fleet,
        live,
        registry,
        sources,
        health_checks,
    })
}

/// What handlers work with, and lanes with some of it.
fn state(
    options: &Options,
    machine: Machine,
    workers: &Workers,
    via: &Via,
    prepared: Prepared,
) -> Result<ApiState, StartError> {
    let HealthChecks {
        client, metrics, ..
    } = &workers.health_checks;
    let fleet = Arc::clone(&workers.fleet);
    let cpu_pool = CpuPool::new().map_err(|e| StartError::environment("start threads", e))?;
    let section = ProxySection::new(options, machine.memory, machine.lanes);
    let calls = WorkerCalls::new(&section, via, client.clone(), &cpu_pool);
    let balancer = &prepared.balancer;
    let admission = Admission::new(&AdmissionSection::from(options), metrics);
    let dispatcher = Dispatcher::new(&section, calls, workers.live.clone(), balancer, metrics);
    Ok(ApiState {
        balancer: prepared.balancer,
        registry: Arc::clone(&workers.registry),
        proxy: Arc::new(Proxy::new(&section, dispatcher, cpu_pool.clone())),
        orders: Orders::new(client.clone(), seconds(options.engine_control_timeout_secs)),
        fan_out: FanOut::new(Arc::clone(&fleet), client.clone()),
        client: client.clone(),
        cpu_pool,
        reloads: prepared.reloads,
        shared: Arc::default(),
        feed: Arc::default(),
        admission: admission.sharing(prepared.limits),
        replicas: Arc::default(),
        shutdown: Shutdown::default(),
        fleet,
    })
}

fn balancer(
    options: &Options,
    fleet: &Arc<Fleet>,
    journal: Option<&Arc<Journal>>,
) -> Arc<Balancer> {
    let params = Params {
        journal: journal.cloned(),
        ..Params::from(options)
    };
    let policies = RolePolicies::new(RoleKinds::from(options), move |kind| kind.build(&params));
    let policies = policies.with_journal(journal.cloned());
    let matching = ModelMatching::from(options);
    let admission = AdmissionSection::from(options);
    let zones = ZoneSection::from(options);
    Balancer::new(Arc::clone(fleet), policies, &admission, matching, zones)
}

fn maintenance(live: Live, balancer: &Arc<Balancer>, admission: &Arc<Admission>) -> Maintenance {
    Maintenance {
        balancer: Arc::clone(balancer),
        admission: Arc::clone(admission),
        outliers: OutlierDetector::new(&balancer.fleet),
        live,
    }
}

fn upstream(
    options: &Options,
    runtime: &Runtime,
    lanes: usize,
    tls: &Arc<WorkerTls>,
    via: &Via,
) -> Result<Upstream, StartError> {
    let options = ConnectionSection::from(options);
    let resolver = Resolver::new(runtime.handle().clone());
    let (runtime, trust) = (runtime.handle().clone(), Arc::clone(tls));
    let client = ControlClient::new(&options, resolver.clone(), trust, runtime, via)
        .map_err(|error| StartError::environment("make an HTTP client", error))?;
    let limits = ConnectionLimits::new(&options, lanes);
    let limits = limits.with_resolver(resolver).with_tls(Arc::clone(tls));
    Ok(Upstream { client, limits })
}

/// The service of the gateway's own port, and that of metrics, if it has any.
fn services(
    options: &Options,
    auth: &Arc<Auth>,
    state: &ApiState,
    via: &Via,
) -> Result<(Arc<Service>, Option<Arc<Service>>), StartError> {
    let section = ServerSection::from(options);
    let of = |port| {
        let service = Service::new(port, &section, auth, state, via);
        let service = service.map_err(|error| StartError::environment("build the routes", error));
        service.map(Arc::new)
    };
    let on_metrics = section.fleet_page == FleetPage::Metrics;
    let metrics = on_metrics.then(|| of(Port::Metrics)).transpose()?;
    Ok((of(Port::Main)?, metrics))
}
