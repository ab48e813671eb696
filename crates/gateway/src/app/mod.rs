//! The composition root: options in, a running gateway out. Reads top to bottom.

mod assemble;
mod listen;

use std::fmt::Display;
use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::runtime;
use tokio::sync::mpsc;
use tokio::time::{Instant, interval, sleep, timeout};
use tracing::{error, info, warn};

use crate::config::{ConfigError, Options};
use crate::fleet::{Fleet, ProbeSettings, Prober, Worker};
use crate::proxy::Proxy;
use crate::server::{Admission, AppState, Lanes, Service, serve_metrics};
use crate::shutdown::Shutdown;
use crate::telemetry::{Metrics, logging};
use listen::Port;

/// Pause between sweeps of idle connections.
const SWEEP: Duration = Duration::from_secs(1);

/// Longest time for which clients are served that do not know yet that it is stopping.
const LAME_DUCK_PERIOD: Duration = Duration::from_secs(5);
/// Time for connections that are being made when a shared port is given up.
const HANDSHAKE_GRACE: Duration = Duration::from_millis(100);
/// Pause between comparisons of workers with their peers.
const OUTLIER_INTERVAL: Duration = Duration::from_secs(10);

/// Why a gateway did not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The options are wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The machine does not give what the options ask for.
    #[error("cannot {what}: {why}")]
    Environment {
        /// What was tried.
        what: String,
        /// What the system said.
        why: String,
    },
}

impl StartError {
    fn environment(what: impl Into<String>, why: impl Display) -> Self {
        Self::Environment {
            what: what.into(),
            why: why.to_string(),
        }
    }
}

/// A running gateway. Dropping it cuts it short.
#[derive(Debug)]
pub struct Gateway {
    addr: SocketAddr,
    metrics_addr: Option<SocketAddr>,
    shutdown: Shutdown,
    stopped: Arc<Stopped>,
    fleet: Arc<Fleet>,
}

/// Becomes true once, when everything has ended.
#[derive(Debug, Default)]
struct Stopped {
    is: Mutex<bool>,
    changed: Condvar,
    /// Why it ended, when nobody had asked for it.
    failure: OnceLock<String>,
}

/// Everything the control thread runs.
struct Control {
    metrics_listener: Option<StdTcpListener>,
    fleet: Arc<Fleet>,
    metrics: Arc<Metrics>,
    admission: Arc<Admission>,
    lanes: Lanes,
    health_checks: Option<HealthChecks>,
    shutdown: Shutdown,
    grace: Duration,
    eviction_interval: Duration,
    metrics_addr: Option<SocketAddr>,
}

impl Gateway {
    /// Binds and starts everything; when it returns, the gateway is listening, unless it shares
    /// its port: then it listens as soon as a worker is ready.
    ///
    /// Workers may still be coming up: nothing waits for them here.
    ///
    /// # Errors
    /// [`StartError::Config`] for wrong options, [`StartError::Environment`] for what the
    /// machine refuses: a port in use, an unknown host, an unwritable log directory.
    pub fn start(options: &Options) -> Result<Self, StartError> {
        options.check()?;
        logging::install(options)
            .map_err(|error| StartError::environment("write logs to log_dir", error))?;
        raise_file_limit();
        let listener = Port::bind(options)?;
        let metrics_listener = listen::metrics(options)?;
        let addr = listener.addr()?;
        let metrics_addr = metrics_listener
            .as_ref()
            .map(listen::local_addr)
            .transpose()?;

        let metrics = Metrics::new(options.prometheus_duration_buckets.as_deref());
        let metrics =
            Arc::new(metrics.map_err(|error| StartError::environment("make metrics", error))?);
        let lane_count = thread::available_parallelism().map_or(1, usize::from);
        let assembled = assemble::fleet(options, &metrics, lane_count)?;
        let fleet = assembled.fleet;
        let shared = (Arc::clone(&fleet), Arc::clone(&metrics));
        let proxy = Proxy::new(options, shared, lane_count);
        let shutdown = Shutdown::default();
        let admission = Arc::new(Admission::new(options, &metrics));
        let state = AppState {
            shutdown: shutdown.clone(),
            admission: Arc::clone(&admission),
            registry: assembled.registry,
        };
        let service = Service::new(options, proxy, &metrics, state)
            .map_err(|error| StartError::environment("build the routes", error))?;
        let lanes = Lanes::start(lane_count, &Arc::new(service), &shutdown)
            .map_err(|error| StartError::environment("start threads", error))?;
        let health_checks =
            HealthChecks::new(options, (&fleet, &metrics), lane_count, assembled.joined);
        let grace = Duration::from_secs(options.shutdown_grace_period_secs);
        let control = Control {
            metrics_listener,
            fleet: Arc::clone(&fleet),
            metrics,
            admission,
            lanes,
            health_checks: Some(health_checks),
            shutdown: shutdown.clone(),
            grace,
            eviction_interval: Duration::from_secs(options.eviction_interval_secs),
            metrics_addr,
        };
        let limits = control.admission.summary(&control.fleet);
        let later = listener.is_shared();
        let stopped = control.spawn(listener)?;
        let workers = options.worker_urls.len();
        // A port that is shared is listened on later.
        let what = ["gateway listening", "gateway started"][usize::from(later)];
        let policy = options.policy.as_str();
        info!(%addr, metrics = ?metrics_addr, policy, workers, lanes = lane_count, "{what}");
        info!("limits in force: {limits}");
        Ok(Self {
            addr,
            metrics_addr,
            shutdown,
            stopped,
            fleet,
        })
    }

    /// Where the gateway listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where metrics are served, when they are.
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.metrics_addr
    }

    /// Begins a stop that clients can follow: `/readiness` says `draining` and replies close
    /// their connections, but who comes nevertheless is served; after half the grace period,
    /// at most 5 s, goes on as [`drain`](Self::drain). Returns at once.
    pub fn lame_duck(&self) {
        self.shutdown.lame_duck();
    }

    /// Begins a graceful stop: no new connections, requests in flight may finish within the
    /// grace period. Returns at once; calling it again changes nothing.
    pub fn drain(&self) {
        self.shutdown.stop_accepting();
    }

    /// Ends the drain now; what is in flight is cut.
    pub fn abort(&self) {
        self.shutdown.abort();
    }

    /// Somebody knows better than any probe that a worker may be gone: it gets no requests
    /// until a probe, sent at once, has passed. False when there is no such worker, or probes
    /// are off.
    pub fn suspect(&self, worker_url: &str) -> bool {
        self.fleet.suspect(worker_url)
    }

    /// Why it ended by itself, if it did: a port that could not be listened on, a lost thread.
    pub fn failure(&self) -> Option<&str> {
        self.stopped.failure.get().map(String::as_str)
    }

    /// Waits up to `patience` for the stop to complete; tells whether it has.
    pub fn wait(&self, patience: Duration) -> bool {
        self.stopped.wait(patience)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.abort();
        self.wait(Duration::from_secs(5));
    }
}

impl Stopped {
    fn set(&self) {
        *self.is.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    fn wait(&self, patience: Duration) -> bool {
        let is = self.is.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(is, patience, |is| !*is);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Control {
    /// Runs on a thread of its own; what is returned tells when it has ended.
    fn spawn(self, port: Port) -> Result<Arc<Stopped>, StartError> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| StartError::environment("start a runtime", error))?;
        let stopped = Arc::new(Stopped::default());
        let ending = Arc::clone(&stopped);
        let run = move || {
            if let Err(error) = runtime.block_on(self.run(port)) {
                error!(%error, "gateway stopped by itself");
                let _ = ending.failure.set(error.to_string());
            }
            // Not waiting for a name look-up that may be under way.
            runtime.shutdown_background();
            ending.set();
        };
        let thread = thread::Builder::new()
            .name("smg-control".to_owned())
            .spawn(run);
        thread.map_err(|error| StartError::environment("start threads", error))?;
        Ok(stopped)
    }

    async fn run(mut self, port: Port) -> io::Result<()> {
        if let Some(health_checks) = self.health_checks.take() {
            tokio::spawn(health_checks.run());
        }
        if let Some(listener) = self.metrics_listener.take() {
            let listener = TcpListener::from_std(listener)?;
            let (metrics, fleet) = (Arc::clone(&self.metrics), Arc::clone(&self.fleet));
            let admission = Arc::clone(&self.admission);
            tokio::spawn(serve_metrics(listener, metrics, (fleet, admission)));
        }
        let maintenance = Maintenance {
            fleet: Arc::clone(&self.fleet),
            admission: Arc::clone(&self.admission),
            eviction_interval: self.eviction_interval,
            waiting_since: None,
        };
        tokio::spawn(maintenance.run());
        let admission = Arc::clone(&self.admission);
        tokio::spawn(async move { admission.refill().await });
        let begun = self.accept(port).await?;
        let left = self.grace.saturating_sub(begun.elapsed());
        if timeout(left, self.lanes.ended()).await.is_err() {
            warn!("grace period is over, cutting what is in flight");
        }
        self.shutdown.abort();
        self.lanes.ended().await;
        self.lanes.join();
        info!("gateway stopped");
        Ok(())
    }

    /// Takes connections until a stop has come so far that none are taken; tells when it began.
    async fn accept(&self, port: Port) -> io::Result<Instant> {
        let (shutdown, shared) = (&self.shutdown, port.is_shared());
        let listener = tokio::select! {
            listener = port.listen(&self.fleet) => Some(listener?),
            () = shutdown.lame_duck_started() => None,
        };
        if let Some(Ok(addr)) = listener
            .as_ref()
            .filter(|_| shared)
            .map(TcpListener::local_addr)
        {
            info!(%addr, metrics = ?self.metrics_addr, "gateway listening");
        }
        let begun = match listener {
            Some(listener) => self.serve(listener, shared).await,
            None => Ok(Instant::now()),
        };
        shutdown.drain();
        begun
    }

    /// Serves until told to take no more connections; tells when the stop began.
    async fn serve(&self, listener: TcpListener, shared: bool) -> io::Result<Instant> {
        let (shutdown, lanes) = (&self.shutdown, &self.lanes);
        tokio::select! {
            biased;
            () = shutdown.lame_duck_started() => {}
            () = lanes.accept(&listener) => {
                self.shutdown.abort();
                return Err(io::Error::other("a lane ended before its time"));
            }
        }
        let begun = Instant::now();
        let lame_duck = (self.grace / 2).min(LAME_DUCK_PERIOD);
        let workers = self.fleet.workers();
        let in_flight: usize = workers.iter().map(|worker| worker.load.requests()).sum();
        info!(in_flight, grace_secs = self.grace.as_secs(), "draining");
        tokio::select! {
            biased;
            () = shutdown.accepting_stopped() => {}
            () = sleep(lame_duck) => {}
            () = lanes.accept(&listener) => {}
        }
        if shared && listen::ignore_newcomers(&listener).is_ok() {
            let _ = timeout(HANDSHAKE_GRACE, lanes.accept(&listener)).await;
        }
        lanes.stop_accepting(listener).await;
        Ok(begun)
    }
}

/// As many sockets as the system grants: a stream takes two.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current < limit.maximum {
        let raised = Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            warn!(%error, limit = ?limit.current, "cannot raise the limit of open files");
        }
    }
}

/// What is done now and then while the gateway runs.
struct Maintenance {
    fleet: Arc<Fleet>,
    admission: Arc<Admission>,
    eviction_interval: Duration,
    /// When requests were first seen to wait, and when that was last told.
    waiting_since: Option<(Instant, Instant)>,
}

impl Maintenance {
    async fn run(mut self) {
        let mut ticks = interval(SWEEP);
        let (mut policy_swept, mut compared) = (Instant::now(), Instant::now());
        loop {
            let now = ticks.tick().await;
            self.fleet.sweep_connections();
            self.fleet.advance();
            self.log_waiting(now);
            if now - compared >= OUTLIER_INTERVAL {
                self.fleet.detect_outliers();
                compared = now;
            }
            if now - policy_swept >= self.eviction_interval {
                self.fleet.sweep_policy();
                policy_swept = now;
            }
        }
    }

    /// Nothing waits unseen: a queue that stays is told of, though not every second.
    fn log_waiting(&mut self, now: Instant) {
        let waiting = self.admission.waiting() + self.fleet.waiting();
        if waiting == 0 {
            self.waiting_since = None;
            return;
        }
        let (since, told) = *self.waiting_since.get_or_insert((now, now));
        if now - since >= SWEEP && (told == since || now - told >= OUTLIER_INTERVAL) {
            info!(
                waiting,
                since_secs = (now - since).as_secs(),
                "requests wait for a place"
            );
            self.waiting_since = Some((since, now));
        }
    }
}

/// Probes every worker, also those that come later.
struct HealthChecks {
    fleet: Arc<Fleet>,
    metrics: Arc<Metrics>,
    settings: Arc<ProbeSettings>,
    /// The lane whose thread runs the probers.
    lane: usize,
    joined: mpsc::Receiver<Arc<Worker>>,
}

impl HealthChecks {
    fn new(
        options: &Options,
        (fleet, metrics): (&Arc<Fleet>, &Arc<Metrics>),
        lane: usize,
        joined: mpsc::Receiver<Arc<Worker>>,
    ) -> Self {
        Self {
            fleet: Arc::clone(fleet),
            metrics: Arc::clone(metrics),
            settings: Arc::new(ProbeSettings::new(options)),
            lane,
            joined,
        }
    }

    async fn run(mut self) {
        // Whoever was here from the start; who came since is among the arrivals.
        let configured = |worker: &&Arc<Worker>| !worker.joined_at_runtime();
        for worker in self.fleet.workers().iter().filter(configured) {
            self.probe(Arc::clone(worker));
        }
        while let Some(worker) = self.joined.recv().await {
            self.probe(worker);
        }
    }

    fn probe(&self, worker: Arc<Worker>) {
        let prober = Prober {
            fleet: Arc::clone(&self.fleet),
            worker,
            metrics: Arc::clone(&self.metrics),
            settings: Arc::clone(&self.settings),
            lane: self.lane,
        };
        tokio::spawn(prober.run());
    }
}
