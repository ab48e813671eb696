//! The control thread: starts everything, accepts connections, and stops in order.

use std::io;
use std::net::SocketAddr;
use std::net::TcpListener as StdTcpListener;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::time::{Instant, sleep, timeout};
use tracing::{error, info, warn};

use super::certificates::Certificates;
use super::error::StartError;
use super::listen::{self, Port};
use super::maintenance::Maintenance;
use super::reload::Reloader;
use super::replicas::{Exchanges, Leaves};
use super::reporting::Reporting;
use super::stopped::Stopped;
use crate::api::ApiState;
use crate::auth::AuditWriter;
use crate::balancer::Balancer;
use crate::config::ClientSection;
use crate::fleet::{HealthChecks, LoadPolls, LoadPushes};
use crate::server::{Lanes, Listeners, MetricsPage, Service, serve_metrics};
use crate::shutdown::Shutdown;
use crate::telemetry::Metrics;

/// Longest time for which clients are served that do not know yet that the gateway stops. Some
/// supervisors kill after 5 s.
const LAME_DUCK_PERIOD: Duration = Duration::from_secs(4);
/// A gateway without a request for so long has no clients that need to know.
const RECENT: Duration = Duration::from_secs(30);
/// How often it is looked whether a client could still come.
const SETTLE_CHECK: Duration = Duration::from_millis(50);
/// Time for connections that are being made when a shared port is given up.
const HANDSHAKE_GRACE: Duration = Duration::from_millis(100);

/// Everything the control thread runs.
pub(super) struct Control {
    pub(super) metrics_listeners: Vec<StdTcpListener>,
    /// What the metrics port serves besides metrics.
    pub(super) metrics_service: Option<Arc<Service>>,
    pub(super) reporting: Reporting,
    pub(super) audit_writer: Option<AuditWriter>,
    pub(super) reloader: Reloader,
    pub(super) state: ApiState,
    pub(super) metrics: Arc<Metrics>,
    pub(super) lanes: Lanes,
    pub(super) clients: ClientSection,
    pub(super) health_checks: HealthChecks,
    /// `None` where workers are not asked for their loads.
    pub(super) load_polls: Option<LoadPolls>,
    /// `None` where workers that publish their loads are not listened to.
    pub(super) load_pushes: Option<LoadPushes>,
    pub(super) maintenance: Maintenance,
    pub(super) certificates: Certificates,
    pub(super) exchange: Option<Exchanges>,
    pub(super) grace: Duration,
}

/// What is left of it while connections are accepted.
struct Serving {
    balancer: Arc<Balancer>,
    lanes: Lanes,
    shutdown: Shutdown,
    grace: Duration,
    metrics_addr: Option<SocketAddr>,
    reporting: Reporting,
    audit_writer: Option<AuditWriter>,
    exchange: Option<Leaves>,
}

impl Control {
    /// Runs on a thread of its own, by `runtime`; what is returned says when it has ended.
    pub(super) fn spawn(self, runtime: Runtime, port: Port) -> Result<Arc<Stopped>, StartError> {
        let stopped = Arc::new(Stopped::default());
        let ending = Arc::clone(&stopped);
        let run = move || {
            if let Err(error) = runtime.block_on(self.run(port)) {
                error!(%error, "gateway stopped by itself");
                ending.fail(error.to_string());
            }
            // Without waiting for a name look-up that may be under way.
            runtime.shutdown_background();
            ending.set();
        };
        let thread = thread::Builder::new()
            .name("smg-control".to_owned())
            .spawn(run);
        thread.map_err(|error| StartError::environment("start threads", error))?;
        Ok(stopped)
    }

    async fn run(self, port: Port) -> io::Result<()> {
        tokio::spawn(self.health_checks.run());
        if let Some(polls) = self.load_polls {
            tokio::spawn(polls.run());
        }
        if let Some(pushes) = self.load_pushes {
            tokio::spawn(pushes.run());
        }
        self.reloader.parts.access.watch();
        tokio::spawn(self.reloader.run());
        let first = self.metrics_listeners.first();
        let metrics_addr = first.and_then(|listener| listener.local_addr().ok());
        let page = MetricsPage {
            metrics: self.metrics,
            balancer: Arc::clone(&self.state.balancer),
            admission: Arc::clone(&self.state.admission),
            proxy: Some(self.state.proxy),
        };
        let listeners = self.metrics_listeners.into_iter();
        let listeners = listeners.map(TcpListener::from_std);
        let listeners = Listeners(listeners.collect::<io::Result<_>>()?);
        let others = self.metrics_service;
        tokio::spawn(serve_metrics(listeners, page, others, self.clients));
        tokio::spawn(self.maintenance.run());
        tokio::spawn(self.certificates.run());
        let admission = self.state.admission;
        tokio::spawn(async move { admission.refill().await });
        let serving = Serving {
            balancer: self.state.balancer,
            lanes: self.lanes,
            shutdown: self.state.shutdown,
            grace: self.grace,
            metrics_addr,
            reporting: self.reporting,
            audit_writer: self.audit_writer,
            exchange: self.exchange.map(Exchanges::spawn),
        };
        serving.run(port).await
    }
}

impl Serving {
    async fn run(mut self, port: Port) -> io::Result<()> {
        let begun = self.accept(port).await?;
        let left = self.grace.saturating_sub(begun.elapsed());
        if timeout(left, self.lanes.ended()).await.is_err() {
            warn!("grace period is over, ending requests in flight");
        }
        self.shutdown.abort();
        self.lanes.ended().await;
        self.lanes.join();
        if let Some(exchange) = self.exchange.take() {
            exchange.finish().await;
        }
        self.reporting.finish().await;
        if let Some(audit) = self.audit_writer.take() {
            audit.finish().await;
        }
        info!("gateway stopped");
        Ok(())
    }

    /// Accepts connections until a stop has come so far that none are taken; returns when it
    /// began.
    async fn accept(&self, port: Port) -> io::Result<Instant> {
        let (shutdown, sharing) = (&self.shutdown, port.sharing());
        let addr = port.addr().ok();
        let listeners = tokio::select! {
            listeners = port.listen(&self.balancer.fleet) => Some(listeners?),
            () = shutdown.lame_duck_started() => None,
        };
        let shared = sharing == listen::Sharing::Shared;
        if let Some(addr) = addr.filter(|_| shared && listeners.is_some()) {
            info!(%addr, metrics = ?self.metrics_addr, "gateway listening");
        }
        let begun = match listeners {
            Some(listeners) => self.serve(listeners, sharing).await,
            None => Ok(Instant::now()),
        };
        shutdown.drain();
        begun
    }

    /// Whether a client or a load balancer has asked for something a moment ago.
    fn was_asked_lately(&self) -> bool {
        self.lanes.quiet_for().is_some_and(|quiet| quiet < RECENT)
    }

    /// The time in which clients and load balancers learn that the gateway stops.
    async fn settle(&self) {
        let end = Instant::now() + (self.grace / 2).min(LAME_DUCK_PERIOD);
        let can_matter =
            || !self.balancer.fleet.workers().is_empty() || self.lanes.open_connections() > 0;
        while can_matter() && Instant::now() < end {
            sleep(SETTLE_CHECK).await;
        }
    }

    /// Serves until a stop takes no more connections; returns when the stop began.
    async fn serve(&self, listeners: Listeners, sharing: listen::Sharing) -> io::Result<Instant> {
        let (shutdown, lanes) = (&self.shutdown, &self.lanes);
        tokio::select! {
            biased;
            () = shutdown.lame_duck_started() => {}
            () = lanes.accept(&listeners) => {
                self.shutdown.abort();
                return Err(io::Error::other("a lane ended before its time"));
            }
        }
        let begun = Instant::now();
        let workers = self.balancer.fleet.workers();
        let in_flight: usize = workers
            .iter()
            .map(|worker| worker.load.own_requests())
            .sum();
        info!(in_flight, grace_secs = self.grace.as_secs(), "draining");
        let only_local = listeners.are_local() && sharing == listen::Sharing::Exclusive;
        if !only_local && (in_flight > 0 || self.was_asked_lately()) {
            tokio::select! {
                biased;
                () = shutdown.accepting_stopped() => {}
                () = self.settle() => {}
                () = lanes.accept(&listeners) => {}
            }
        }
        let ignored = |listener| listen::ignore_new_connections(listener).is_ok();
        if sharing == listen::Sharing::Shared && listeners.0.iter().all(ignored) {
            let _ = timeout(HANDSHAKE_GRACE, lanes.accept(&listeners)).await;
        }
        lanes.stop_accepting(listeners).await;
        Ok(begun)
    }
}
