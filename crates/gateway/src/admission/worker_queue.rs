//! Waiting for a worker, where workers have a limit on requests in flight.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use routing::FairRules;
use routing::quota::{QueueRoom, QueueUse, SharedQueue};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::{Instant, timeout, timeout_at};

use super::arrival_line::ArrivalLine;
use super::asker::Asker;
use super::fair_line::{FairLine, LineLimits};
use super::queue_bound::QueueBound;
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
            max_wait: options.queue_timeout,
            fair: options.fair,
        })
    }
}

/// The requests that wait for the workers of one pool, longest wait first.
///
/// Each pool has its own, so that a busy model holds up no other.
#[derive(Debug)]
pub(crate) struct WorkerQueue {
    /// How many may wait.
    bound: QueueBound,
    /// Whether workers have a limit, so that any may have to.
    is_used: AtomicBool,
    /// Those of both lists.
    arrivals: ArrivalLine,
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
    /// A queue in which so many may wait; `None` where workers have no limit.
    pub(crate) fn new(size: Option<usize>) -> Self {
        Self {
            bound: QueueBound::new(size.unwrap_or(0)),
            is_used: AtomicBool::new(size.is_some()),
            arrivals: ArrivalLine::default(),
            shared: WaitList::default(),
            restricted: WaitList::default(),
            fair: FairLine::default(),
        }
    }

    /// Sets how many may wait. Those that do stay. A limit that is gone may still be the reason why a
    /// request begins to wait in this moment: it finds its place, and its worker soon.
    pub(crate) fn set_size(&self, size: Option<usize>) {
        self.is_used.store(size.is_some(), SeqCst);
        if let Some(size) = size {
            self.bound.set_size(size);
        }
    }

    /// Requests that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.arrivals.waiting() + self.fair.waiting()
    }

    /// Requests that wait, with those at other gateways that are known of.
    pub(crate) fn waiting_anywhere(&self) -> usize {
        self.waiting().saturating_add(self.bound.elsewhere())
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
        rules: FairRules,
        until: Instant,
        acquire: impl FnMut() -> Option<T>,
    ) -> Result<T, QueueError> {
        let size = self.bound.here().saturating_sub(self.arrivals.waiting());
        let limits = LineLimits::new(rules, size, until);
        let waited = self.fair.wait(asker, limits, acquire).await;
        waited.inspect_err(|why| self.note(*why))
    }

    /// Waits until `acquire` finds something; of those that take any worker, the one that has
    /// waited longest is asked first.
    pub(crate) async fn wait<T>(
        &self,
        what: WaitFor,
        until: Instant,
        acquire: impl FnMut() -> Option<T>,
    ) -> Result<T, QueueError> {
        let waited = self.wait_in_turn(what, until, acquire).await;
        waited.inspect_err(|why| self.note(*why))
    }

    async fn wait_in_turn<T>(
        &self,
        what: WaitFor,
        until: Instant,
        mut acquire: impl FnMut() -> Option<T>,
    ) -> Result<T, QueueError> {
        let place = self.arrivals.enter(self.fair.waiting(), self.bound.here());
        let place = place.ok_or(QueueError::Full)?;
        let list = match what {
            WaitFor::AnyWorker => &self.shared,
            WaitFor::SomeWorkers => &self.restricted,
        };
        let (before, _waiting) = list.waiting.enter();
        // No request overtakes those that wait already.
        let mut may_look = what == WaitFor::SomeWorkers || before == 0;
        let turn = timeout_at(until, async {
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
        });
        match place.unless_pushed_out(turn).await {
            Some(acquired) => acquired.map_err(|_| QueueError::Timeout),
            None => Err(QueueError::PushedOut),
        }
    }

    /// Takes note of why a request has not been served.
    fn note(&self, why: QueueError) {
        if why != QueueError::Timeout {
            self.bound.note_refusal();
        }
    }
}

/// Where several gateways bound the queue together.
impl SharedQueue for WorkerQueue {
    fn total(&self) -> u64 {
        self.bound.total(self.is_used.load(SeqCst))
    }

    fn usage(&self) -> QueueUse {
        self.bound.usage(self.waiting())
    }

    fn set_room(&self, room: QueueRoom) {
        self.bound.set_room(room);
    }

    fn shrink(&self, most: u64) -> u64 {
        let excess = || self.waiting().saturating_sub(most as usize);
        let in_order = self.fair.push_out(excess());
        (in_order + self.arrivals.push_out(excess())) as u64
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    fn end() -> Instant {
        Instant::now() + Duration::from_secs(3)
    }

    #[tokio::test(start_paused = true)]
    async fn first_waiter_is_served_first_however_long_it_waits() {
        let queue = Arc::new(WorkerQueue::new(Some(9)));
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
                queue.wait(WaitFor::AnyWorker, end(), take).await.unwrap();
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
        let queue = Arc::new(WorkerQueue::new(Some(2)));
        let started = Instant::now();
        let wait = || {
            let queue = Arc::clone(&queue);
            tokio::spawn(async move { queue.wait(WaitFor::AnyWorker, end(), || None::<()>).await })
        };
        let waiting = [wait(), wait()];
        while queue.waiting() < 2 {
            tokio::task::yield_now().await;
        }
        assert_eq!(
            queue.wait(WaitFor::AnyWorker, end(), || None::<()>).await,
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
        let queue = WorkerQueue::new(Some(2));
        let (free, started) = (Cell::new(false), Instant::now());
        let freeing = async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            free.set(true);
            queue.slot_freed(0);
        };
        let (selection, ()) = tokio::join!(
            queue.wait(WaitFor::AnyWorker, end(), || free.get().then_some(7)),
            freeing
        );
        assert_eq!(selection, Ok(7));
        assert_eq!(started.elapsed(), Duration::from_millis(1));
    }

    #[tokio::test]
    async fn dropped_wait_frees_its_place() {
        let queue = WorkerQueue::new(Some(1));
        {
            let mut waiting = std::pin::pin!(queue.wait(WaitFor::AnyWorker, end(), || None::<()>));
            assert!(futures_util::poll!(waiting.as_mut()).is_pending());
            assert_eq!(queue.waiting(), 1);
        }
        assert_eq!(queue.waiting(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn last_ones_are_pushed_out_and_a_worker_that_is_freed_then_goes_to_one_that_stays() {
        let (queue, free) = (WorkerQueue::new(Some(9)), Cell::new(0_usize));
        let take = || {
            let left = free.get().checked_sub(1)?;
            free.set(left);
            Some(())
        };
        let wait = |what| queue.wait(what, end(), take);
        let (any, some) = (WaitFor::AnyWorker, WaitFor::SomeWorkers);
        let waits = futures_util::future::join_all([any, any, some, any].map(wait));
        let pushing = async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            free.set(1);
            // The one that waits longest is woken, and both others go in the same moment.
            queue.slot_freed(0);
            assert_eq!((queue.shrink(2), queue.waiting()), (2, 2));
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert_eq!((free.get(), queue.waiting()), (0, 1));
            free.set(1);
            queue.slot_freed(0);
        };
        let begun = Instant::now();
        let (ended, ()) = tokio::join!(waits, pushing);
        let out = Err(QueueError::PushedOut);
        assert_eq!(ended, [Ok(()), Ok(()), out, out]);
        assert_eq!(begun.elapsed(), Duration::from_millis(2));
        assert_eq!((queue.waiting(), queue.usage().refused), (0, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn request_that_is_woken_and_pushed_out_in_one_moment_loses_no_worker() {
        let (queue, free) = (WorkerQueue::new(Some(9)), Cell::new(true));
        free.set(false);
        let take = || free.take().then_some(());
        let wait = || queue.wait(WaitFor::AnyWorker, end(), take);
        let waits = futures_util::future::join_all([wait(), wait()]);
        let pushing = async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            free.set(true);
            queue.slot_freed(0);
            assert_eq!(queue.shrink(0), 2);
        };
        let begun = Instant::now();
        let (ended, ()) = tokio::join!(waits, pushing);
        assert_eq!(ended, [Ok(()), Err(QueueError::PushedOut)]);
        assert_eq!(begun.elapsed(), Duration::from_millis(1));
        assert!(!free.get());
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_elsewhere_takes_places_here_in_both_orders() {
        let queue = WorkerQueue::new(Some(3));
        let rules = FairRules {
            batch_permille: 100,
            starvation: Duration::from_secs(30),
        };
        let asker = Asker::new(routing::FairShare::default(), None, 1);
        queue.set_room(QueueRoom {
            elsewhere: 1,
            most: u64::MAX,
        });
        let mut first = Box::pin(queue.wait(WaitFor::AnyWorker, end(), || None::<()>));
        let mut second = Box::pin(queue.wait_in_order(&asker, rules, end(), || None::<()>));
        assert!(futures_util::poll!(&mut first).is_pending());
        assert!(futures_util::poll!(&mut second).is_pending());
        assert_eq!((queue.waiting(), queue.waiting_anywhere()), (2, 3));
        for what in [WaitFor::AnyWorker, WaitFor::SomeWorkers] {
            let refused = queue.wait(what, end(), || None::<()>).await;
            assert_eq!(refused, Err(QueueError::Full));
        }
        let refused = queue.wait_in_order(&asker, rules, end(), || None::<()>);
        assert_eq!(refused.await, Err(QueueError::Full));
        // Of those in the fair order first.
        assert_eq!(queue.shrink(1), 1);
        assert_eq!(second.await, Err(QueueError::PushedOut));
        assert_eq!(
            (first.await, queue.waiting()),
            (Err(QueueError::Timeout), 0)
        );
        assert_eq!(queue.usage().refused, 4);
    }
}
