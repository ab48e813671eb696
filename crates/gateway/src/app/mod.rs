//! The composition root: options in, a running gateway out. Reads top to bottom.

mod listen;

use std::fmt::Display;
use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use routing::Thresholds;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::runtime;
use tokio::time::{Instant, interval, timeout};
use tracing::{error, info, warn};

use crate::config::{ConfigError, Options, WorkerUrl};
use crate::fleet::{
    Connections, Fleet, Identity, PoolLimits, ProbeSettings, Prober, UNKNOWN_MODEL, Worker,
};
use crate::proxy::Proxy;
use crate::server::{Gate, Lanes, Shutdown, serve_metrics};
use crate::telemetry::{Metrics, logging};

/// Pause between sweeps of idle connections.
const SWEEP: Duration = Duration::from_secs(1);

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
}

/// Becomes true once, when everything has ended.
#[derive(Debug, Default)]
struct Stopped {
    is: Mutex<bool>,
    changed: Condvar,
}

/// Everything the control thread runs.
struct Control {
    listener: StdTcpListener,
    metrics_listener: Option<StdTcpListener>,
    fleet: Arc<Fleet>,
    metrics: Arc<Metrics>,
    lanes: Lanes,
    probers: Vec<Prober>,
    shutdown: Shutdown,
    grace: Duration,
    eviction_interval: Duration,
}

impl Gateway {
    /// Binds and starts everything; when it returns, the gateway is listening.
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
        let listener = listen::on("the gateway", &options.host, options.port)?;
        let metrics_listener = listen::metrics(options)?;
        let addr = listen::local_addr(&listener)?;
        let metrics_addr = metrics_listener
            .as_ref()
            .map(listen::local_addr)
            .transpose()?;

        let metrics = Metrics::new(options.prometheus_duration_buckets.as_deref());
        let metrics =
            Arc::new(metrics.map_err(|error| StartError::environment("make metrics", error))?);
        let lane_count = thread::available_parallelism().map_or(1, usize::from);
        let (fleet, policy) = assemble_fleet(options, &metrics, lane_count)?;
        let proxy = Proxy::new(
            options,
            Arc::clone(&fleet),
            Arc::clone(&metrics),
            lane_count,
        );
        let shutdown = Shutdown::default();
        let gate = Gate::new(options, proxy, &metrics, shutdown.clone())
            .map_err(|error| StartError::environment("build the routes", error))?;
        let lanes = Lanes::start(lane_count, &Arc::new(gate), &shutdown)
            .map_err(|error| StartError::environment("start threads", error))?;
        let probers = probers(options, &fleet, &metrics, (policy, lane_count));
        let grace = Duration::from_secs(options.shutdown_grace_period_secs);
        let control = Control {
            listener,
            metrics_listener,
            fleet,
            metrics,
            lanes,
            probers,
            shutdown: shutdown.clone(),
            grace,
            eviction_interval: Duration::from_secs(options.eviction_interval_secs),
        };
        let stopped = control.spawn()?;
        let workers = options.worker_urls.len();
        info!(%addr, metrics = ?metrics_addr, policy, workers, lanes = lane_count, "gateway listening");
        Ok(Self {
            addr,
            metrics_addr,
            shutdown,
            stopped,
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

    /// Begins a graceful stop: no new connections, requests in flight may finish within the
    /// grace period. Returns at once; calling it again changes nothing.
    pub fn drain(&self) {
        self.shutdown.drain();
    }

    /// Ends the drain now; what is in flight is cut.
    pub fn cut(&self) {
        self.shutdown.cut();
    }

    /// Waits up to `patience` for the stop to complete; tells whether it has.
    pub fn wait(&self, patience: Duration) -> bool {
        self.stopped.wait(patience)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.cut();
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
    fn spawn(self) -> Result<Arc<Stopped>, StartError> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| StartError::environment("start a runtime", error))?;
        let stopped = Arc::new(Stopped::default());
        let ending = Arc::clone(&stopped);
        let run = move || {
            if let Err(error) = runtime.block_on(self.run()) {
                error!(%error, "gateway stopped by the system");
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

    async fn run(mut self) -> io::Result<()> {
        let listener = TcpListener::from_std(self.listener)?;
        for prober in self.probers {
            tokio::spawn(prober.run());
        }
        if let Some(listener) = self.metrics_listener {
            let listener = TcpListener::from_std(listener)?;
            let (metrics, fleet) = (Arc::clone(&self.metrics), Arc::clone(&self.fleet));
            tokio::spawn(serve_metrics(listener, metrics, fleet));
        }
        tokio::spawn(sweep(Arc::clone(&self.fleet), self.eviction_interval));
        tokio::select! {
            biased;
            () = self.shutdown.draining() => {}
            // Idle lanes end as soon as a drain begins; before that, none may.
            () = self.lanes.accept(listener) => if !self.shutdown.is_draining() {
                error!("a lane ended before its time");
                self.shutdown.cut();
            },
        }
        let in_flight: usize = self
            .fleet
            .workers()
            .iter()
            .map(|worker| worker.load.requests())
            .sum();
        info!(in_flight, grace_secs = self.grace.as_secs(), "draining");
        if timeout(self.grace, self.lanes.ended()).await.is_err() {
            warn!("grace period is over, cutting what is in flight");
        }
        self.shutdown.cut();
        self.lanes.ended().await;
        self.lanes.join();
        info!("gateway stopped");
        Ok(())
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

async fn sweep(fleet: Arc<Fleet>, eviction_interval: Duration) {
    let mut ticks = interval(SWEEP);
    let mut policy_swept = Instant::now();
    loop {
        ticks.tick().await;
        fleet.sweep_connections();
        if policy_swept.elapsed() >= eviction_interval {
            fleet.sweep_policy();
            policy_swept = Instant::now();
        }
    }
}

/// The fleet, and the name of the policy that picks from it.
fn assemble_fleet(
    options: &Options,
    metrics: &Metrics,
    lanes: usize,
) -> Result<(Arc<Fleet>, &'static str), ConfigError> {
    let name = options.policy.as_str();
    let policy = options.policy.build(&options.policy_params());
    // One more lane than there are threads: the control thread's probes.
    let limits = Arc::new(PoolLimits::new(options, lanes + 1));
    let thresholds = Thresholds {
        failure: options.health_failure_threshold,
        success: options.health_success_threshold,
    };
    let unknown = metrics.model(UNKNOWN_MODEL, name);
    let worker = |text: &String| {
        let url = WorkerUrl::parse(text).map_err(|why| ConfigError::worker_url(text, why))?;
        let identity = Identity {
            model: UNKNOWN_MODEL.to_owned(),
            labels: std::collections::BTreeMap::new(),
            metrics: Arc::clone(&unknown),
        };
        let connections = Connections::new(url.clone(), Arc::clone(&limits));
        let key = options.api_key.as_ref();
        Ok(Arc::new(Worker::new(
            url,
            key,
            connections,
            identity,
            thresholds,
        )))
    };
    let workers: Result<Vec<_>, ConfigError> = options.worker_urls.iter().map(worker).collect();
    Ok((Arc::new(Fleet::new(workers?, policy, name)), name))
}

fn probers(
    options: &Options,
    fleet: &Arc<Fleet>,
    metrics: &Arc<Metrics>,
    (policy, lane): (&'static str, usize),
) -> Vec<Prober> {
    let settings = Arc::new(ProbeSettings::new(options));
    let prober = |worker: &Arc<Worker>| Prober {
        fleet: Arc::clone(fleet),
        worker: Arc::clone(worker),
        metrics: Arc::clone(metrics),
        settings: Arc::clone(&settings),
        policy,
        lane,
    };
    fleet.workers().iter().map(prober).collect()
}
