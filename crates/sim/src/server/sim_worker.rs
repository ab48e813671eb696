//! A running worker: its thread, its address and the interface for tests.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Notify;

use super::disaggregation::state::bootstrap_listener;
use super::http::bind::bind;
use super::http::listener;
use super::load_publisher;
use super::runtime::request_log::{Recorded, SimStats};
use super::runtime::worker::Worker;
use crate::error::SimError;
use crate::faults::Faults;
use crate::options::SimOptions;

/// A simulated SGLang worker, running on a thread of its own until stopped or dropped.
#[derive(Debug)]
pub struct SimWorker {
    worker: Arc<Worker>,
    addr: SocketAddr,
    lifecycle: Arc<Lifecycle>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// State shared by the thread and its owner.
#[derive(Debug, Default)]
struct Lifecycle {
    stop: Notify,
    stopped: Mutex<bool>,
    ended: Condvar,
}

impl SimWorker {
    /// Starts a worker; it is listening when this returns.
    pub fn start(options: SimOptions) -> Result<Self, SimError> {
        options.check()?;
        let listener = bind(&options.host, options.port)?;
        let role = options.disaggregation_mode;
        let bootstrap = bootstrap_listener(&options, role)?;
        let addr = listener.local_addr()?;
        let publishers = load_publisher::listeners(&options)?;
        let mut worker = Worker::new(options, addr.port());
        worker.load_port = match publishers.first() {
            None => None,
            Some(first) => Some(first.local_addr()?.port()),
        };
        let worker = Arc::new(worker);
        let lifecycle = Arc::new(Lifecycle::default());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (shared, ending) = (Arc::clone(&worker), Arc::clone(&lifecycle));
        let listener = {
            let _inside = runtime.enter();
            worker.disaggregation.set_role(role, bootstrap)?;
            for (rank, listener) in publishers.into_iter().enumerate() {
                let listener = TcpListener::from_std(listener)?;
                runtime.spawn(load_publisher::publish(Arc::clone(&worker), rank, listener));
            }
            TcpListener::from_std(listener)?
        };
        let thread = std::thread::Builder::new().name(format!("sim-{}", addr.port()));
        let thread = thread.spawn(move || {
            let mark_stopped = MarkStopped(Arc::clone(&ending));
            runtime.block_on(async {
                tokio::select! {
                    () = listener::accept(Arc::clone(&shared), listener) => {}
                    () = shared.scheduler.run() => {}
                    () = ending.stop.notified() => {}
                    () = shared.disaggregation.until_crashed() => report_crash(&shared),
                }
            });
            // Closes every connection, and waits for no look-up of a host.
            runtime.shutdown_background();
            drop(mark_stopped);
        })?;
        Ok(Self {
            worker,
            addr,
            lifecycle,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// The address it listens on.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `http://` and the address.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The port of its bootstrap server; `None` unless it is a prefill worker.
    pub fn bootstrap_port(&self) -> Option<u16> {
        self.worker.disaggregation.bootstrap_port()
    }

    /// Why it stopped by itself; `None` unless a request killed it.
    pub fn crash_reason(&self) -> Option<&'static str> {
        self.worker.disaggregation.crash_reason()
    }

    /// Stops listening and closes every connection; returns at once.
    pub fn stop(&self) {
        self.lifecycle.stop.notify_one();
    }

    /// Waits for the end, at most `timeout`; true once it has stopped.
    pub fn wait(&self, timeout: Duration) -> bool {
        let stopped = self
            .lifecycle
            .stopped
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let waited = self
            .lifecycle
            .ended
            .wait_timeout_while(stopped, timeout, |stopped| !*stopped);
        let (stopped, _) = waited.unwrap_or_else(PoisonError::into_inner);
        *stopped
    }

    /// The counts so far.
    pub fn stats(&self) -> SimStats {
        self.worker.counts.snapshot()
    }

    /// Waits at most `limit` until the counts meet a condition; false if they do not.
    pub async fn until(&self, limit: Duration, condition: impl Fn(&SimStats) -> bool) -> bool {
        let met = async {
            while !condition(&self.stats()) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(limit, met).await.is_ok()
    }

    /// The last `record_requests` requests except `/sim/*`, oldest first.
    pub fn recorded(&self) -> Vec<Recorded> {
        self.worker.log.snapshot()
    }

    /// Replaces the active faults; [`Faults::default`] clears them.
    pub fn set_faults(&self, faults: Faults) -> Result<(), SimError> {
        faults.check()?;
        self.worker.faults.set(faults);
        Ok(())
    }
}

/// Says why the worker stops. A pipe that nothing reads does not matter.
fn report_crash(worker: &Worker) {
    let why = worker.disaggregation.crash_reason().unwrap_or_default();
    let _ = writeln!(io::stderr(), "simulated worker crashed: {why}");
}

/// Marks the thread as stopped, even if it panics.
struct MarkStopped(Arc<Lifecycle>);

impl Drop for MarkStopped {
    fn drop(&mut self) {
        *self
            .0
            .stopped
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = true;
        self.0.ended.notify_all();
    }
}

impl Drop for SimWorker {
    fn drop(&mut self) {
        self.stop();
        let thread = self
            .thread
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let _ = thread.map(JoinHandle::join);
    }
}
