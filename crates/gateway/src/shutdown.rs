//! The steps of stopping, in order: lame duck, stop accepting, drain, abort.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use tokio_util::sync::CancellationToken;

/// How far a gateway has come in stopping. A later step includes the earlier ones.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shutdown {
    is_lame_duck: Arc<AtomicBool>,
    lame_duck: CancellationToken,
    stop_accepting: CancellationToken,
    drain: CancellationToken,
    abort: CancellationToken,
}

impl Shutdown {
    /// Readiness fails and replies close their connections; new requests are still served.
    pub(crate) fn lame_duck(&self) {
        self.is_lame_duck.store(true, Relaxed);
        self.lame_duck.cancel();
    }

    /// No new connections.
    pub(crate) fn stop_accepting(&self) {
        self.lame_duck();
        self.stop_accepting.cancel();
    }

    /// No new requests; those in flight may finish.
    pub(crate) fn drain(&self) {
        self.stop_accepting();
        self.drain.cancel();
    }

    /// Requests in flight end now.
    pub(crate) fn abort(&self) {
        self.drain();
        self.abort.cancel();
    }

    /// Whether the stop has begun. Read for every reply: no lock.
    pub(crate) fn is_lame_duck(&self) -> bool {
        self.is_lame_duck.load(Relaxed)
    }

    pub(crate) async fn lame_duck_started(&self) {
        self.lame_duck.cancelled().await;
    }

    pub(crate) async fn accepting_stopped(&self) {
        self.stop_accepting.cancelled().await;
    }

    pub(crate) async fn draining(&self) {
        self.drain.cancelled().await;
    }

    pub(crate) async fn aborted(&self) {
        self.abort.cancelled().await;
    }
}
