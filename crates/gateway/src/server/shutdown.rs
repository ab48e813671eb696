//! The steps of stopping, in order: leave, close, drain, cut.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use tokio_util::sync::CancellationToken;

/// How far a gateway has come in stopping. A later step includes the earlier ones.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shutdown {
    leaving: Arc<AtomicBool>,
    leave: CancellationToken,
    close: CancellationToken,
    drain: CancellationToken,
    cut: CancellationToken,
}

impl Shutdown {
    /// Clients are told to go elsewhere; those who do not know yet are still served.
    pub(crate) fn leave(&self) {
        self.leaving.store(true, Relaxed);
        self.leave.cancel();
    }

    /// No new connections.
    pub(crate) fn close(&self) {
        self.leave();
        self.close.cancel();
    }

    /// No new requests; those in flight may finish.
    pub(crate) fn drain(&self) {
        self.close();
        self.drain.cancel();
    }

    /// Nothing may finish any more.
    pub(crate) fn cut(&self) {
        self.drain();
        self.cut.cancel();
    }

    /// Whether clients are to go elsewhere. Asked for every reply: no lock.
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(Relaxed)
    }

    pub(crate) async fn left(&self) {
        self.leave.cancelled().await;
    }

    pub(crate) async fn closed(&self) {
        self.close.cancelled().await;
    }

    pub(super) async fn draining(&self) {
        self.drain.cancelled().await;
    }

    pub(super) async fn cut_short(&self) {
        self.cut.cancelled().await;
    }
}
