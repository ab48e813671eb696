//! Threads for work that would hold up a lane and all its streams.

use std::num::NonZero;
use std::sync::Arc;
use std::{io, thread};

use tokio::runtime::{Builder, Runtime};

/// Runs blocking work, as many pieces at a time as there are cores; others wait in a queue that is
/// bounded by the requests in progress.
#[derive(Clone, Debug)]
pub(crate) struct CpuPool {
    runtime: Arc<Threads>,
}

/// A runtime that is used for its blocking threads only.
#[derive(Debug)]
struct Threads(Option<Runtime>);

impl CpuPool {
    /// A pool whose threads start when they are first needed.
    pub(crate) fn new() -> io::Result<Self> {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        let runtime = Builder::new_current_thread()
            .max_blocking_threads(cores)
            .thread_name("smg-cpu")
            .build()?;
        Ok(Self {
            runtime: Arc::new(Threads(Some(runtime))),
        })
    }

    /// Runs `work`; `None` when it panicked.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let runtime = self.runtime.0.as_ref()?;
        runtime.spawn_blocking(work).await.ok()
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // The last owner may be a task, which must not wait.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_runs_on_another_thread_and_a_panic_is_no_result() {
        let pool = CpuPool::new().unwrap();
        let here = thread::current().id();
        let there = pool.run(|| thread::current().id()).await;
        assert!(there.is_some_and(|there| there != here));
        assert_eq!(pool.run(|| panic!("on purpose")).await, None::<()>);
    }
}
