//! Waiting for a worker, where workers have a limit on requests in flight.

use std::time::Duration;

use routing::FairRules;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::{Instant, timeout, timeout_at};

use super::asker::Asker;
use super::fair_line::{FairLine, LineLimits};
use super::queue_error::QueueError;
use super::waiters::Waiters;
use crate::config::AdmissionSection;

/// A waiter looks again after this time at the latest: the worker it was woken for may not
/// have been one for it, but for another.
const RECHECK_INTERVAL: Duration = Duration::from_millis(250);

/// The limit on requests in flight per worker, and on those that wait because of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueueLimits {
    /// Requests in flight per worker.
    pub(crate) per_worker: usize,
    /// Requests that may wait for the workers of one pool.
    pub(crate) size: usize,
    /// Longest wait.
    pub(crate) max_wait: Duration,
    /// How the order is fair; `None` where it is that of arrival.
    pub(crate) fair: Option<FairRules>,
}

impl QueueLimits {
    /// `None` where requests per worker are not limited.
    pub(crate) fn new(options: &AdmissionSection) -> Option<Self> {
        let per_worker = options.max_requests_per_worker?;
        Some(Self {
            per_worker,
            size: options.queue_size,
            max_wait: options.queue_timeout,
            fair: options.fair,
        })
    }
}

/// The requests that wait for the workers of one pool, longest wait first.
///
/// Each pool has its own, so that a busy model holds up no other.
#[derive(Debug, Default)]
pub(crate) struct WorkerQueue {
    /// Requests that any worker of the pool may serve, first come first served.
    shared: WaitList,
    /// Requests that cannot use every worker: they name one, or have tried some. They neither
    /// hold up the others nor are held up by them.
    restricted: WaitList,
    /// Requests that any worker of the pool may serve, in the fair order.
    fair: FairLine,
}

/// Which workers a waiting request may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitFor {
    /// Any of the pool.
    AnyWorker,
    /// Only some.
    SomeWorkers,
}

#[derive(Debug, Default)]
struct WaitList {
    waiting: Waiters,
    freed: Notify,
}

impl WorkerQueue {
    /// Requests that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.shared.waiting.count() + self.restricted.waiting.count() + self.fair.waiting()
    }

    /// Whether a new request has to queue before it may look for a worker.
    pub(crate) fn has_waiters(&self) -> bool {
        self.shared.waiting.count() > 0 || self.fair.waiting() > 0
    }

    /// A request at the worker in this slot has ended.
    pub(crate) fn slot_freed(&self, worker: usize) {
        self.fair.call_next(Some(worker));
        if self.shared.waiting.count() > 0 {
            self.shared.freed.notify_one();
        }
        if self.restricted.waiting.count() > 0 {
            self.restricted.freed.notify_waiters();
        }
    }

    /// Several workers may have become free.
    pub(crate) fn wake_all(&self) {
        self.shared.freed.notify_waiters();
        self.restricted.freed.notify_waiters();
        self.fair.call_all();
    }

    /// The same as [`wait`](Self::wait) in the fair order, for any worker of the pool.
    pub(crate) async fn wait_in_order<T>(
        &self,
        asker: &Asker,
        limits: LineLimits,
        acquire: impl FnMut() -> Option<T>,
    ) -> Result<T, QueueError> {
        let elsewhere = self.shared.waiting.count() + self.restricted.waiting.count();
        self.fair.wait(asker, limits.less(elsewhere), acquire).await
    }

    /// Waits until `acquire` finds something; of those that take any worker, the one that has
    /// waited longest is asked first. At most `limit` may wait already.
    pub(crate) async fn wait<T>(
        &self,
        what: WaitFor,
        limit: usize,
        until: Instant,
        mut acquire: impl FnMut() -> Option<T>,
    ) -> Result<T, QueueError> {
        let others = self.waiting();
        let list = match what {
            WaitFor::AnyWorker => &self.shared,
            WaitFor::SomeWorkers => &self.restricted,
        };
        let (before, _waiting) = list.waiting.enter();
        if others.max(before) >= limit {
            return Err(QueueError::Full);
        }
        // No request overtakes those that wait already.
        let mut may_look = what == WaitFor::SomeWorkers || before == 0;
        timeout_at(until, async {
            loop {
                // Kept until it is notified: a new one would stand at the end of the list.
                let mut freed = std::pin::pin!(list.freed.notified());
                // From here on, nothing that is freed while looking is missed.
                Notified::enable(freed.as_mut());
                loop {
                    if may_look && let Some(acquired) = acquire() {
                        return acquired;
                    }
                    may_look = true;
                    if timeout(RECHECK_INTERVAL, freed.as_mut()).await.is_ok() {
                        break;
                    }
                }
            }
        })
        .await
        .map_err(|_| QueueError::Timeout)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;

    fn end() -> Instant {
        Instant::now() + Duration::from_secs(3)
    }

    #[tokio::test(start_paused = true)]
    async fn first_waiter_is_served_first_however_long_it_waits() {
        let queue = Arc::new(WorkerQueue::default());
        let (slots, served) = (Arc::new(AtomicUsize::new(0)), Arc::default());
        let mut waiting = Vec::new();
        for number in 0..5 {
            let (queue, slots) = (Arc::clone(&queue), Arc::clone(&slots));
            let served: Arc<std::sync::Mutex<Vec<i32>>> = Arc::clone(&served);
            waiting.push(tokio::spawn(async move {
                let take = || {
                    let taken = slots.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1));
                    taken.ok()
                };
                queue
                    .wait(WaitFor::AnyWorker, 9, end(), take)
                    .await
                    .unwrap();
                served.lock().unwrap().push(number);
            }));
            // Different phases of looking again.
            tokio::time::sleep(Duration::from_millis(70)).await;
        }
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_millis(333)).await;
            slots.fetch_add(1, SeqCst);
            queue.slot_freed(0);
        }
        for waiter in waiting {
            waiter.await.unwrap();
        }
        assert_eq!(*served.lock().unwrap(), [0, 1, 2, 3, 4]);
    }

    #[tokio::test(start_paused = true)]
    async fn queue_is_bounded_and_waits_end_on_time() {
        let queue = Arc::new(WorkerQueue::default());
        let started = Instant::now();
        let wait = || {
            let queue = Arc::clone(&queue);
            tokio::spawn(async move {
                queue
                    .wait(WaitFor::AnyWorker, 2, end(), || None::<()>)
                    .await
            })
        };
        let waiting = [wait(), wait()];
        while queue.waiting() < 2 {
            tokio::task::yield_now().await;
        }
        assert_eq!(
            queue
                .wait(WaitFor::AnyWorker, 2, end(), || None::<()>)
                .await,
            Err(QueueError::Full)
        );
        assert_eq!(started.elapsed(), Duration::ZERO);
        for waited in waiting {
            assert_eq!(waited.await.unwrap(), Err(QueueError::Timeout));
        }
        assert_eq!(started.elapsed(), Duration::from_secs(3));
        assert_eq!(queue.waiting(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn waiter_is_woken_at_once() {
        let queue = WorkerQueue::default();
        let (free, started) = (Cell::new(false), Instant::now());
        let freeing = async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            free.set(true);
            queue.slot_freed(0);
        };
        let (selection, ()) = tokio::join!(
            queue.wait(WaitFor::AnyWorker, 2, end(), || free.get().then_some(7)),
            freeing
        );
        assert_eq!(selection, Ok(7));
        assert_eq!(started.elapsed(), Duration::from_millis(1));
    }

    #[tokio::test]
    async fn dropped_wait_frees_its_place() {
        let queue = WorkerQueue::default();
        {
            let mut waiting =
                std::pin::pin!(queue.wait(WaitFor::AnyWorker, 1, end(), || None::<()>));
            assert!(futures_util::poll!(waiting.as_mut()).is_pending());
            assert_eq!(queue.waiting(), 1);
        }
        assert_eq!(queue.waiting(), 0);
    }
}
