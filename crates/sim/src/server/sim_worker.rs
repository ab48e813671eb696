//! A running worker: its thread, its address and what tests ask of it.

use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Notify;

use super::http::listener;
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
    life: Arc<Life>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What the thread and its owner tell each other.
#[derive(Debug, Default)]
struct Life {
    stop: Notify,
    stopped: Mutex<bool>,
    ended: Condvar,
}

impl SimWorker {
    /// Starts a worker; it is listening when this returns.
    pub fn start(options: SimOptions) -> Result<Self, SimError> {
        options.check()?;
        let listener = listener::bind(&options.host, options.port)?;
        let addr = listener.local_addr()?;
        let worker = Arc::new(Worker::new(options, addr.port()));
        let life = Arc::new(Life::default());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (shared, lived) = (Arc::clone(&worker), Arc::clone(&life));
        let listener = {
            let _inside = runtime.enter();
            TcpListener::from_std(listener)?
        };
        let thread = std::thread::Builder::new().name(format!("sim-{}", addr.port()));
        let thread = thread.spawn(move || {
            let ending = Ending(Arc::clone(&lived));
            runtime.block_on(async {
                tokio::select! {
                    () = listener::accept(Arc::clone(&shared), listener) => {}
                    () = shared.scheduler.run() => {}
                    () = lived.stop.notified() => {}
                }
            });
            drop(runtime); // closes every connection
            drop(ending);
        })?;
        Ok(Self {
            worker,
            addr,
            life,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `http://` and the address.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Stops listening and closes every connection; returns at once.
    pub fn stop(&self) {
        self.life.stop.notify_one();
    }

    /// Waits for the end, at most `timeout`; true once it has stopped.
    pub fn wait(&self, timeout: Duration) -> bool {
        let stopped = self
            .life
            .stopped
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let waited = self
            .life
            .ended
            .wait_timeout_while(stopped, timeout, |stopped| !*stopped);
        let (stopped, _) = waited.unwrap_or_else(PoisonError::into_inner);
        *stopped
    }

    /// What it has seen so far.
    pub fn stats(&self) -> SimStats {
        self.worker.counts.snapshot()
    }

    /// Waits until the counts are as wished, at most `limit`; whether they came to be.
    pub async fn until(&self, limit: Duration, wished: impl Fn(&SimStats) -> bool) -> bool {
        let met = async {
            while !wished(&self.stats()) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(limit, met).await.is_ok()
    }

    /// The last `record_requests` requests, oldest first (without `/sim/*`).
    pub fn recorded(&self) -> Vec<Recorded> {
        self.worker.log.snapshot()
    }

    /// Replaces the faults in force; [`Faults::default`] clears them.
    pub fn set_faults(&self, faults: Faults) -> Result<(), SimError> {
        faults.check()?;
        self.worker.faults.set(faults);
        Ok(())
    }
}

/// Tells that the thread is over, even if it panicked.
struct Ending(Arc<Life>);

impl Drop for Ending {
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
