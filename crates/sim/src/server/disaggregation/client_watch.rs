//! Work that outlives its client until the worker notices that the client left.

use std::future::pending;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use crate::server::runtime::scheduler::AbortTarget;
use crate::server::runtime::worker::Worker;

/// Aborts the legs of a request whose client left.
#[derive(Debug)]
pub(crate) struct ClientWatch {
    pub(crate) worker: Arc<Worker>,
    pub(crate) rids: Vec<Arc<str>>,
    /// Time between two looks for the client; zero = it is noticed at once.
    pub(crate) interval: Duration,
}

impl ClientWatch {
    /// Runs work on a task of its own. The client has left when this future is dropped.
    pub(crate) async fn run<T: Send + 'static>(
        self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> T {
        let (to, result) = oneshot::channel();
        tokio::spawn(self.attend(work, to));
        match result.await {
            Ok(result) => result,
            Err(_) => pending().await, // the worker is stopping
        }
    }

    async fn attend<T>(self, work: impl Future<Output = T>, mut to: oneshot::Sender<T>) {
        let started = Instant::now();
        let mut work = pin!(work);
        tokio::select! {
            result = &mut work => {
                let _ = to.send(result); // a client that just left needs no result
                return;
            }
            () = to.closed() => {}
        }
        tokio::select! {
            _ = &mut work => return,
            () = sleep_until(self.next_look(started)) => {}
        }
        for rid in &self.rids {
            self.worker.abort(AbortTarget::Rid(rid));
        }
        work.await;
    }

    fn next_look(&self, started: Instant) -> Instant {
        let interval = self.interval.as_secs_f64();
        if interval == 0.0 {
            return Instant::now();
        }
        let looks = (started.elapsed().as_secs_f64() / interval).floor() + 1.0;
        started + Duration::from_secs_f64(looks * interval)
    }
}
