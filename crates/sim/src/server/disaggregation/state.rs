//! The role of a worker, and what its legs share.

use std::io;
use std::net::TcpListener;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::Notify;

use super::bootstrap_server::BootstrapServer;
use super::legs::Legs;
use super::rooms::Rooms;
use crate::error::SimError;
use crate::options::{Role, SimOptions};
use crate::server::http::bind::bind;

const ROLES: [Role; 3] = [Role::Null, Role::Prefill, Role::Decode];

/// Disaggregation on one worker.
#[derive(Debug)]
pub(crate) struct Disaggregation {
    role: AtomicU8, // a place in `ROLES`
    server: Mutex<Option<BootstrapServer>>,
    pub(crate) rooms: Arc<Rooms>,
    pub(crate) legs: Arc<Legs>,
    crash: OnceLock<&'static str>,
    crashed: Notify,
}

impl Disaggregation {
    pub(crate) fn new(role: Role) -> Self {
        Self {
            role: AtomicU8::new(place(role)),
            server: Mutex::default(),
            rooms: Arc::default(),
            legs: Arc::default(),
            crash: OnceLock::new(),
            crashed: Notify::new(),
        }
    }

    /// The role now.
    pub(crate) fn role(&self) -> Role {
        ROLES[usize::from(self.role.load(Relaxed)) % ROLES.len()]
    }

    /// Takes another role. A prefill worker needs a listener for its bootstrap server; needs a
    /// runtime.
    pub(crate) fn set_role(&self, role: Role, listener: Option<TcpListener>) -> io::Result<()> {
        let start = |listener| BootstrapServer::start(listener, &self.rooms);
        let server = listener.map(start).transpose()?;
        *self.lock_server() = server;
        self.role.store(place(role), Relaxed);
        Ok(())
    }

    /// The port of the bootstrap server, if it runs.
    pub(crate) fn bootstrap_port(&self) -> Option<u16> {
        self.lock_server().as_ref().map(|server| server.port)
    }

    /// Stops the worker for good, as SGLang's scheduler dies; the first reason is kept.
    pub(crate) fn crash(&self, why: &'static str) {
        let _ = self.crash.set(why);
        self.crashed.notify_one();
    }

    /// Why it crashed, if it did.
    pub(crate) fn crash_reason(&self) -> Option<&'static str> {
        self.crash.get().copied()
    }

    /// Waits for a crash.
    pub(crate) async fn until_crashed(&self) {
        self.crashed.notified().await;
    }

    fn lock_server(&self) -> MutexGuard<'_, Option<BootstrapServer>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn place(role: Role) -> u8 {
    let place = ROLES.iter().position(|known| *known == role);
    place.unwrap_or_default() as u8
}

/// The listener of a bootstrap server, if the role has one.
pub(crate) fn bootstrap_listener(
    options: &SimOptions,
    role: Role,
) -> Result<Option<TcpListener>, SimError> {
    let bound = || bind(&options.host, options.disaggregation_bootstrap_port);
    (role == Role::Prefill).then(bound).transpose()
}
