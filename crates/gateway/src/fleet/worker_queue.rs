//! Waiting for a place at a worker, where workers have a cap on requests in flight.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::{Instant, timeout, timeout_at};

/// A waiter looks again after this time at the latest: the place it was woken for may not
/// have been one for it, but for another.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// The cap, and who waits because of it, longest wait first.
#[derive(Debug)]
pub(crate) struct WorkerQueue {
    /// Requests in flight per worker.
    cap: usize,
    /// Requests that may wait.
    limit: usize,
    max_wait: Duration,
    /// Those whom any worker serves, first come first served.
    shared: WaitList,
    /// Those who cannot use every place: they aim at one worker, or have tried some. They
    /// neither hold up the others nor are held up by them.
    targeted: WaitList,
}

#[derive(Debug, Default)]
struct WaitList {
    waiting: Waiters,
    freed: Notify,
}

/// Why nobody waits any longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QueueError {
    /// Too many wait already.
    Full,
    /// The wait took too long.
    Timeout,
}

/// How many wait.
#[derive(Debug, Default)]
pub(crate) struct Waiters(AtomicUsize);

/// Counts as one who waits until dropped.
pub(crate) struct Waiting<'a>(&'a Waiters);

impl Waiters {
    pub(crate) fn count(&self) -> usize {
        self.0.load(SeqCst)
    }

    /// One more waits; how many there were before.
    pub(crate) fn enter(&self) -> (usize, Waiting<'_>) {
        (self.0.fetch_add(1, SeqCst), Waiting(self))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, SeqCst);
    }
}

impl WorkerQueue {
    pub(crate) fn new(cap: usize, limit: usize, max_wait: Duration) -> Self {
        Self {
            cap,
            limit,
            max_wait,
            shared: WaitList::default(),
            targeted: WaitList::default(),
        }
    }

    /// Requests that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.shared.waiting.count() + self.targeted.waiting.count()
    }

    /// Whether a newcomer has to stand in line before it may look for a place.
    pub(crate) fn has_waiters(&self) -> bool {
        self.shared.waiting.count() > 0
    }

    /// Requests in flight per worker.
    pub(crate) fn cap(&self) -> usize {
        self.cap
    }

    /// The longest wait.
    pub(crate) fn max_wait(&self) -> Duration {
        self.max_wait
    }

    /// A request has left its worker.
    pub(super) fn slot_freed(&self) {
        if self.shared.waiting.count() > 0 {
            self.shared.freed.notify_one();
        }
        if self.targeted.waiting.count() > 0 {
            self.targeted.freed.notify_waiters();
        }
    }

    /// There may be room for several.
    pub(super) fn wake_all(&self) {
        self.shared.freed.notify_waiters();
        self.targeted.freed.notify_waiters();
    }

    /// Waits until `place` finds something; of those who take any place, whoever waited longer
    /// is asked first.
    pub(crate) async fn wait<T>(
        &self,
        targeted: bool,
        until: Instant,
        mut acquire: impl FnMut() -> Option<T>,
    ) -> Result<T, QueueError> {
        let others = self.waiting();
        let list = if targeted {
            &self.targeted
        } else {
            &self.shared
        };
        let (before, _waiting) = list.waiting.enter();
        if others.max(before) >= self.limit {
            return Err(QueueError::Full);
        }
        // Nobody jumps the queue.
        let mut may_look = targeted || before == 0;
        timeout_at(until, async {
            loop {
                // Kept until it is rung: whoever makes a new one stands at the end of the line.
                let mut freed = std::pin::pin!(list.freed.notified());
                // From here on, what is freed while looking is not missed.
                Notified::enable(freed.as_mut());
                loop {
                    if may_look && let Some(selection) = acquire() {
                        return selection;
                    }
                    may_look = true;
                    if timeout(LOOK_AGAIN, freed.as_mut()).await.is_ok() {
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

    use super::*;

    fn end() -> Instant {
        Instant::now() + Duration::from_secs(3)
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_came_first_is_served_first_however_long_they_wait() {
        let room = Arc::new(WorkerQueue::new(1, 9, Duration::from_secs(3)));
        let (places, served) = (Arc::new(AtomicUsize::new(0)), Arc::default());
        let mut waiting = Vec::new();
        for number in 0..5 {
            let (room, places) = (Arc::clone(&room), Arc::clone(&places));
            let served: Arc<std::sync::Mutex<Vec<i32>>> = Arc::clone(&served);
            waiting.push(tokio::spawn(async move {
                let take = || {
                    let taken = places.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1));
                    taken.ok()
                };
                room.wait(false, end(), take).await.unwrap();
                served.lock().unwrap().push(number);
            }));
            // Different phases of looking again.
            tokio::time::sleep(Duration::from_millis(70)).await;
        }
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_millis(333)).await;
            places.fetch_add(1, SeqCst);
            room.slot_freed();
        }
        for waiter in waiting {
            waiter.await.unwrap();
        }
        assert_eq!(*served.lock().unwrap(), [0, 1, 2, 3, 4]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_queue_is_bounded_and_its_waits_are_exact() {
        let room = Arc::new(WorkerQueue::new(1, 2, Duration::from_secs(3)));
        let started = Instant::now();
        let wait = || {
            let room = Arc::clone(&room);
            tokio::spawn(async move { room.wait(false, end(), || None::<()>).await })
        };
        let waiting = [wait(), wait()];
        while room.waiting() < 2 {
            tokio::task::yield_now().await;
        }
        assert_eq!(
            room.wait(false, end(), || None::<()>).await,
            Err(QueueError::Full)
        );
        assert_eq!(started.elapsed(), Duration::ZERO);
        for waited in waiting {
            assert_eq!(waited.await.unwrap(), Err(QueueError::Timeout));
        }
        assert_eq!(started.elapsed(), Duration::from_secs(3));
        assert_eq!(room.waiting(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_told_at_once() {
        let room = WorkerQueue::new(1, 2, Duration::from_secs(3));
        let (free, started) = (Cell::new(false), Instant::now());
        let freeing = async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            free.set(true);
            room.slot_freed();
        };
        let (selection, ()) =
            tokio::join!(room.wait(false, end(), || free.get().then_some(7)), freeing);
        assert_eq!(selection, Ok(7));
        assert_eq!(started.elapsed(), Duration::from_millis(1));
    }

    #[tokio::test]
    async fn who_leaves_the_queue_frees_a_place() {
        let room = WorkerQueue::new(1, 1, Duration::from_secs(3));
        {
            let mut waiting = std::pin::pin!(room.wait(false, end(), || None::<()>));
            assert!(futures_util::poll!(waiting.as_mut()).is_pending());
            assert_eq!(room.waiting(), 1);
        }
        assert_eq!(room.waiting(), 0);
    }
}
