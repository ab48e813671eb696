//! The composition root: options in, a running gateway out.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::runtime;
use tracing::{info, warn};

use super::assemble::{self, Machine, Read};
use super::error::StartError;
use super::listen::{self, Port, Sharing};
use super::memory::available_memory;
use super::rlimit::raise_file_limit;
use super::stopped::Stopped;
use crate::api::ApiState;
use crate::config::{Configuration, Mapped, Options, ReloadError, Reloaded, Reloads, mapped};
use crate::fleet::{Fleet, suspect};
use crate::shutdown::Shutdown;
use crate::telemetry::logging;
use crate::watched_file::WatchedFile;

/// A running gateway. Dropping it ends requests in flight.
#[derive(Debug)]
pub struct Gateway {
    addr: SocketAddr,
    metrics_addr: Option<SocketAddr>,
    shutdown: Shutdown,
    stopped: Arc<Stopped>,
    fleet: Arc<Fleet>,
    reloads: Reloads,
}

impl Gateway {
    /// Binds and starts everything; when it returns, the gateway is listening, unless it shares
    /// its port: then it listens as soon as a worker is ready.
    ///
    /// Workers may still be starting: nothing waits for them here.
    ///
    /// # Errors
    /// [`StartError::Config`] for wrong options, [`StartError::Environment`] for what the
    /// machine refuses: a port in use, an unknown host, an unwritable log directory.
    pub fn start(options: &Options) -> Result<Self, StartError> {
        Self::start_configured(&options.into())
    }

    /// The same with options that a file may say, and that are read again by a reload.
    ///
    /// # Errors
    /// As [`start`](Self::start); also for mistakes in the file.
    pub fn start_configured(configuration: &Configuration) -> Result<Self, StartError> {
        // Before it is read: a change meanwhile is seen later.
        let file = configuration.path().map(WatchedFile::new);
        let loaded = configuration.load()?;
        let options = &loaded.options().clone();
        let read = Read {
            configuration,
            file,
            loaded,
        };
        logging::install(options)
            .map_err(|error| StartError::environment("write logs to log_dir", error))?;
        let descriptors = raise_file_limit();
        let port = Port::bind(options)?;
        let addr = port.addr()?;
        let lanes = thread::available_parallelism().map_or(1, usize::from);
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| StartError::environment("start a runtime", error))?;
        let machine = Machine {
            lanes,
            descriptors,
            memory: available_memory(),
        };
        let control = match assemble::build(read, &runtime, machine) {
            Ok(control) => control,
            Err(error) => {
                // The caller may be a task: there a runtime must not be waited for.
                runtime.shutdown_background();
                return Err(error);
            }
        };
        let metrics_listener = control.metrics_listeners.first();
        let metrics_addr = metrics_listener.map(listen::local_addr).transpose()?;
        let ApiState {
            shutdown,
            fleet,
            reloads,
            balancer,
            admission,
            ..
        } = control.state.clone();
        let per_worker = balancer.limits().map(|limits| limits.per_worker);
        let limits = admission.summary(per_worker);
        let what = match port.sharing() {
            Sharing::Exclusive => "gateway listening",
            Sharing::Shared => "gateway started",
        };
        let stopped = control.spawn(runtime, port)?;
        let workers = fleet.workers().len();
        let policy = options.policy.as_str();
        info!(%addr, metrics = ?metrics_addr, policy, workers, lanes, "{what}");
        info!("limits in force: {limits}");
        for Mapped { option, instead } in mapped(options) {
            warn!(option, "its value tunes nothing: {instead}");
        }
        Ok(Self {
            addr,
            metrics_addr,
            shutdown,
            stopped,
            fleet,
            reloads,
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
    /// their connections, but new requests are served; after half the grace period, at most
    /// 5 s, goes on as [`drain`](Self::drain). Returns at once.
    pub fn lame_duck(&self) {
        self.shutdown.lame_duck();
    }

    /// Begins a graceful stop: no new connections, requests in flight may finish within the
    /// grace period. Returns at once; calling it again changes nothing.
    pub fn drain(&self) {
        self.shutdown.stop_accepting();
    }

    /// Ends the drain now, and requests in flight with it.
    pub fn abort(&self) {
        self.shutdown.abort();
    }

    /// The caller knows better than any probe that a worker may be gone: until a
    /// probe, sent at once, has passed, it gets requests only if no other worker can take them. False when there is no such worker, or probes
    /// are off.
    pub fn suspect(&self, worker_url: &str) -> bool {
        suspect(&self.fleet, worker_url)
    }

    /// Puts other options in force for new requests, all or none: an option that differs and cannot
    /// change at run time is an error. Blocks.
    ///
    /// # Errors
    /// Names the option, and why.
    pub fn reload(&self, options: &Options) -> Result<(), ReloadError> {
        let (answer, answered) = std::sync::mpsc::channel();
        let options = Some(Box::new(options.clone()));
        self.reloads.ask(options, move |reloaded: Reloaded| {
            let _ = answer.send(reloaded);
        })?;
        let reloaded = answered.recv().map_err(|_| ReloadError::Stopping)?;
        reloaded.map(|_| ())
    }

    /// Has the configuration file read again; returns at once. False where there is none. The log
    /// says how it ended.
    pub fn reload_file(&self) -> bool {
        self.reloads.ask(None, |_| ()).is_ok()
    }

    /// Why it ended without being asked to: a port that could not be listened on, a lost thread.
    pub fn failure(&self) -> Option<&str> {
        self.stopped.failure()
    }

    /// Waits up to `limit` for the stop to complete; returns whether it has.
    pub fn wait(&self, limit: Duration) -> bool {
        self.stopped.wait(limit)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.abort();
        self.wait(Duration::from_secs(5));
    }
}
