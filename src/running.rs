//! A server inside a Python process: at most one at a time per object, started and stopped from
//! any thread, never holding the GIL while it waits.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;

use crate::signals::{Handlers, Signal};

/// Longest time between two checks of Python's signals.
const SLICE: Duration = Duration::from_millis(50);
/// The time that an aborted server has to stop before an exception is passed on.
const AFTER_CUT: Duration = Duration::from_secs(5);

/// A server that runs on its own threads until it is stopped.
pub(crate) trait Server: Send + Sync {
    /// The address on which it listens.
    fn addr(&self) -> SocketAddr;
    /// Stops after clients have moved to another gateway and requests in flight have finished.
    fn lame_duck(&self) {
        self.drain();
    }
    /// Stops accepting connections and lets requests in flight finish.
    fn drain(&self);
    /// Stops at once.
    fn abort(&self);
    /// Reads its options again, where it knows from where; otherwise false.
    fn hang_up(&self) -> bool {
        false
    }
    /// Waits up to `timeout` for the end; true once it has stopped.
    fn wait(&self, timeout: Duration) -> bool;
    /// The reason for a stop that was not requested.
    fn failure(&self) -> Option<String> {
        None
    }
}

/// One server from its start to its stop.
pub(crate) struct Run<S> {
    /// Always there, until the run is dropped.
    server: Option<S>,
    stopping: AtomicBool,
    /// The process that has its threads; a forked child has none of them.
    process: u32,
    /// Where the server listens.
    pub(crate) addr: SocketAddr,
}

impl<S> Run<S> {
    fn is_forked(&self) -> bool {
        self.process != std::process::id()
    }
}

impl<S> Drop for Run<S> {
    /// In a forked child nothing is stopped or waited for: the server lives in the parent, and
    /// locks that its threads held at the fork are never released here.
    fn drop(&mut self) {
        if self.is_forked() {
            std::mem::forget(self.server.take());
        }
    }
}

impl<S: Server> Run<S> {
    fn new(server: S) -> Self {
        Self {
            addr: server.addr(),
            server: Some(server),
            stopping: AtomicBool::new(false),
            process: std::process::id(),
        }
    }

    /// Uses the server; `gone` is the answer where there is none, in a forked child.
    pub(crate) fn with<T>(&self, gone: T, use_server: impl FnOnce(&S) -> T) -> T {
        match &self.server {
            Some(server) if !self.is_forked() => use_server(server),
            _ => gone,
        }
    }

    fn wait_for(&self, limit: Duration) -> bool {
        self.with(true, |server| server.wait(limit))
    }

    fn abort(&self) {
        self.with((), Server::abort);
    }

    /// Passes a signal on. After Ctrl-C the server drains at once, without time for clients to
    /// move to another gateway.
    fn signal(&self, signal: Signal) {
        if signal == Signal::HangUp && self.with(false, Server::hang_up) {
            return;
        }
        if signal == Signal::Interrupt || self.stopping.load(Ordering::Acquire) {
            self.stop();
        } else {
            self.stopping.store(true, Ordering::Release);
            self.with((), Server::lame_duck);
        }
    }

    /// Stops the server: the first call drains it, the second aborts it.
    fn stop(&self) {
        if self.stopping.swap(true, Ordering::AcqRel) {
            self.abort();
        } else {
            self.with((), Server::drain);
        }
    }

    fn drain(&self) {
        if !self.stopping.swap(true, Ordering::AcqRel) {
            self.with((), Server::drain);
        }
    }

    fn over(&self) -> bool {
        self.wait_for(Duration::ZERO)
    }

    /// Waits until the server has stopped (`true`) or `limit` has passed, and checks Python's
    /// signals meanwhile.
    fn wait(&self, py: Python<'_>, limit: Option<Duration>) -> PyResult<bool> {
        let mut left = limit;
        loop {
            let slice = left.map_or(SLICE, |left| left.min(SLICE));
            if py.detach(|| self.wait_for(slice)) {
                return Ok(true);
            }
            py.check_signals()?;
            left = left.map(|left| left.saturating_sub(slice));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(false);
            }
        }
    }

    /// Waits until the server has stopped, and passes every signal on to it.
    fn serve(&self, py: Python<'_>, signals: &Handlers<'_>) -> PyResult<()> {
        let mut seen = 0;
        loop {
            for signal in signals.since(seen) {
                self.signal(signal);
                seen += 1;
            }
            match self.wait(py, Some(SLICE)) {
                Ok(true) => {
                    let failure = self.with(None, Server::failure);
                    return failure.map_or(Ok(()), |why| Err(PyRuntimeError::new_err(why)));
                }
                Ok(false) => {}
                Err(error) => return Err(self.abandon(py, error)),
            }
        }
    }

    /// Aborts the server before an exception is passed on, so that nothing is left running.
    fn abandon(&self, py: Python<'_>, error: PyErr) -> PyErr {
        self.abort();
        py.detach(|| self.wait_for(AFTER_CUT));
        error
    }
}

/// The place for one running server.
pub(crate) struct Running<S>(Mutex<Option<Arc<Run<S>>>>);

impl<S> Default for Running<S> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<S: Server> Running<S> {
    /// Starts a server; an error if one is running already.
    pub(crate) fn launch<E: Send>(
        &self,
        py: Python<'_>,
        start: impl FnOnce() -> Result<S, E> + Send,
        to_python: impl FnOnce(&E) -> PyErr,
    ) -> PyResult<Arc<Run<S>>> {
        let started = py.detach(|| {
            let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if slot.as_ref().is_some_and(|run| !run.over()) {
                return None;
            }
            let run = start().map(|server| Arc::new(Run::new(server)));
            *slot = run.as_ref().ok().cloned();
            Some(run)
        });
        match started {
            Some(run) => run.map_err(|error| to_python(&error)),
            None => Err(PyRuntimeError::new_err("already running; stop it first")),
        }
    }

    /// Starts a server and waits for its end. In the main thread SIGINT, SIGTERM, SIGQUIT and SIGHUP end it.
    pub(crate) fn block<E: Send>(
        &self,
        py: Python<'_>,
        start: impl FnOnce() -> Result<S, E> + Send,
        to_python: impl FnOnce(&E) -> PyErr,
    ) -> PyResult<()> {
        let signals = Handlers::install(py)?;
        let outcome = self
            .launch(py, start, to_python)
            .and_then(|run| run.serve(py, &signals));
        let restored = signals.restore();
        outcome.and(restored)
    }

    /// The reason why the last server stopped, if that was not requested.
    pub(crate) fn failure(&self, py: Python<'_>) -> Option<String> {
        py.detach(|| {
            let slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            slot.as_ref()?.with(None, Server::failure)
        })
    }

    /// The server, if one is running.
    pub(crate) fn current(&self, py: Python<'_>) -> Option<Arc<Run<S>>> {
        py.detach(|| {
            let slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            slot.clone().filter(|run| !run.over())
        })
    }

    /// The server, or an error if none is running. In a forked child it is the parent's, which may run still.
    pub(crate) fn require(&self, py: Python<'_>) -> PyResult<Arc<Run<S>>> {
        let run = py.detach(|| {
            let slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            slot.clone().filter(|run| run.is_forked() || !run.over())
        });
        run.ok_or_else(|| PyRuntimeError::new_err("not running; start it first"))
    }

    /// Drains at the first call, aborts at the second, then waits up to `timeout` seconds. `true`
    /// once the server has stopped.
    pub(crate) fn stop(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let limit = limit(timeout)?;
        match self.current(py) {
            Some(run) => {
                py.detach(|| run.stop());
                run.wait(py, limit)
            }
            None => Ok(true),
        }
    }

    /// Waits for the end without causing it.
    pub(crate) fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let limit = limit(timeout)?;
        self.current(py).map_or(Ok(true), |run| run.wait(py, limit))
    }

    /// The end of a `with` block: drains and waits. An interrupt ends the drain early.
    pub(crate) fn lame_duck(&self, py: Python<'_>) -> PyResult<()> {
        let Some(run) = self.current(py) else {
            return Ok(());
        };
        py.detach(|| run.drain());
        match run.wait(py, None) {
            Ok(_) => Ok(()),
            Err(error) => Err(run.abandon(py, error)),
        }
    }
}

fn limit(timeout: Option<f64>) -> PyResult<Option<Duration>> {
    let to_duration = |seconds| {
        Duration::try_from_secs_f64(seconds)
            .map_err(|_| PyValueError::new_err("timeout must be a number of seconds, 0 or more"))
    };
    timeout.map(to_duration).transpose()
}

/// A URL that reaches `addr` from this machine: an address that means "all" becomes loopback.
pub(crate) fn url(scheme: &str, mut addr: SocketAddr) -> String {
    if addr.ip().is_unspecified() {
        addr.set_ip(match addr.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    format!("{scheme}://{addr}")
}
