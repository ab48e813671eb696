//! A line of waiting requests in the fair order.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use routing::{Arrival, FairQueue, FairRules, Served, Ticket};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};

use super::asker::Asker;
use super::queue_error::QueueError;

/// After this time a waiter sees to it that the next one looks: what was freed may have been for
/// another.
const RECHECK_INTERVAL: Duration = Duration::from_millis(250);

/// Requests that wait, and whose turn it is.
#[derive(Debug)]
pub(super) struct FairLine {
    state: Mutex<State>,
    /// Requests that wait or look.
    waiting: AtomicUsize,
    begun: Instant,
}

#[derive(Debug, Default)]
struct State {
    queue: FairQueue<Arc<Waiter>>,
    rules: Option<FairRules>,
    /// Requests that have been called and look now.
    called: usize,
    /// Much may be free: each that finds something calls the next.
    in_turn: bool,
}

/// A request that waits.
#[derive(Debug)]
struct Waiter {
    /// The worker that has most of its prompt.
    prefers: Option<usize>,
    /// What it has yet to hear.
    news: Mutex<Option<News>>,
    /// It has lost its place.
    is_out: AtomicBool,
    woken: Notify,
}

#[derive(Debug)]
enum News {
    /// It may look; what it is to give back if it finds nothing.
    Called(Served<Arc<Waiter>>),
    /// The line is full, and another request goes before it.
    PushedOut,
}

/// How many may wait, how long, and in which order.
#[derive(Clone, Copy, Debug)]
pub(super) struct LineLimits {
    /// Requests that may wait, less those that wait elsewhere.
    size: usize,
    until: Instant,
    rules: FairRules,
}

impl LineLimits {
    pub(super) fn new(rules: FairRules, size: usize, until: Instant) -> Self {
        Self { size, until, rules }
    }
}

/// A request's place in the line, given up when dropped.
struct Place<'a> {
    line: &'a FairLine,
    waiter: Arc<Waiter>,
    ticket: Ticket,
}

impl Default for FairLine {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            waiting: AtomicUsize::new(0),
            begun: Instant::now(),
        }
    }
}

impl FairLine {
    /// Requests that wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(SeqCst)
    }

    /// Something is free: the next request looks, or one close to it that prefers this worker.
    pub(super) fn call_next(&self, worker: Option<usize>) {
        if self.waiting() > 0 {
            let mut state = self.lock();
            self.call(&mut state, worker);
        }
    }

    /// Much may be free: all look in turn, for each that finds something calls the next.
    pub(super) fn call_all(&self) {
        if self.waiting() > 0 {
            let mut state = self.lock();
            state.in_turn = true;
            self.call(&mut state, None);
        }
    }

    /// Pushes out up to so many requests, as a full line does for others. Returns how many.
    pub(super) fn push_out(&self, most: usize) -> usize {
        if most == 0 || self.waiting() == 0 {
            return 0;
        }
        let mut state = self.lock();
        let last = (0..most).map_while(|_| state.queue.push_out_last());
        last.inspect(|waiter| self.dismiss(waiter)).count()
    }

    /// A request that has been taken out of the queue has lost its place.
    fn dismiss(&self, waiter: &Waiter) {
        waiter.is_out.store(true, SeqCst);
        self.waiting.fetch_sub(1, SeqCst);
        waiter.tell(News::PushedOut);
    }

    /// Waits until `acquire` finds something, each in turn.
    pub(super) async fn wait<T>(
        &self,
        asker: &Asker,
        limits: LineLimits,
        mut acquire: impl FnMut() -> Option<T>,
    ) -> Result<T, QueueError> {
        let place = Place::enter(self, asker, limits)?;
        let turns = async {
            loop {
                match place.turn().await {
                    News::PushedOut => return Err(QueueError::PushedOut),
                    News::Called(served) => match acquire() {
                        Some(acquired) => {
                            place.found();
                            return Ok(acquired);
                        }
                        None => place.give_back(served),
                    },
                }
            }
        };
        match timeout_at(limits.until, turns).await {
            Ok(ended) => ended,
            Err(_) => Err(QueueError::Timeout),
        }
    }

    fn call(&self, state: &mut State, worker: Option<usize>) {
        let Some(rules) = state.rules else { return };
        let suits = |waiter: &Arc<Waiter>| worker.is_some() && waiter.prefers == worker;
        if let Some(served) = state.queue.pop(self.begun.elapsed(), &rules, suits) {
            state.called += 1;
            let waiter = Arc::clone(served.item());
            waiter.tell(News::Called(served));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'a> Place<'a> {
    fn enter(line: &'a FairLine, asker: &Asker, limits: LineLimits) -> Result<Self, QueueError> {
        let mut state = line.lock();
        state.rules = Some(limits.rules);
        let arrival = Arrival {
            flow: asker.flow,
            weight: asker.weight,
            class: asker.class,
            cost: asker.cost,
            now: line.begun.elapsed(),
        };
        if state.queue.count() + state.called >= limits.size {
            let out = state.queue.push_out(&arrival).ok_or(QueueError::Full)?;
            line.dismiss(&out);
        }
        let waiter = Arc::new(Waiter {
            prefers: asker.prefers,
            news: Mutex::default(),
            is_out: AtomicBool::new(false),
            woken: Notify::new(),
        });
        let ticket = state.queue.push(arrival, Arc::clone(&waiter));
        line.waiting.fetch_add(1, SeqCst);
        if state.queue.count() == 1 {
            // What was freed while none waited to be called is left.
            line.call(&mut state, None);
        }
        drop(state);
        Ok(Self {
            line,
            waiter,
            ticket,
        })
    }

    /// Waits for its turn.
    async fn turn(&self) -> News {
        loop {
            if let Some(news) = self.waiter.take() {
                return news;
            }
            let woken = timeout(RECHECK_INTERVAL, self.waiter.woken.notified()).await;
            if woken.is_err() {
                let mut state = self.line.lock();
                if state.called == 0 {
                    self.line.call(&mut state, None);
                }
            }
        }
    }

    /// It has found something.
    fn found(&self) {
        let mut state = self.line.lock();
        state.called = state.called.saturating_sub(1);
        if state.in_turn {
            self.line.call(&mut state, None);
        }
    }

    fn give_back(&self, served: Served<Arc<Waiter>>) {
        let mut state = self.line.lock();
        state.called = state.called.saturating_sub(1);
        state.in_turn = false;
        state.queue.put_back(served);
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.line.lock();
        let was_called = matches!(self.waiter.take(), Some(News::Called(_)));
        state.queue.remove(self.ticket);
        if !self.waiter.is_out.load(SeqCst) {
            self.line.waiting.fetch_sub(1, SeqCst);
        }
        if was_called {
            // What it was called for is still there.
            state.called = state.called.saturating_sub(1);
            self.line.call(&mut state, None);
        }
    }
}

impl Waiter {
    fn tell(&self, news: News) {
        *self.news.lock().unwrap_or_else(PoisonError::into_inner) = Some(news);
        self.woken.notify_one();
    }

    fn take(&self) -> Option<News> {
        let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        news.take()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use futures_util::future::join_all;
    use futures_util::poll;
    use routing::{Class, FairShare};

    use super::*;

    fn asker(flow: u64, class: Class) -> Asker {
        let share = FairShare {
            flow,
            max_class: class,
            ..FairShare::default()
        };
        Asker::new(share, None, 100)
    }

    fn limits(size: usize) -> LineLimits {
        LineLimits {
            size,
            until: Instant::now() + Duration::from_secs(3),
            rules: FairRules {
                batch_permille: 100,
                starvation: Duration::from_secs(30),
            },
        }
    }

    /// Takes one of these places.
    fn take(free: &Cell<usize>) -> Option<()> {
        let left = free.get().checked_sub(1)?;
        free.set(left);
        Some(())
    }

    #[tokio::test(start_paused = true)]
    async fn each_place_that_is_freed_goes_to_the_next_in_the_fair_order_at_once() {
        let (line, free) = (FairLine::default(), Cell::new(0));
        let served = RefCell::new(Vec::new());
        let wait = async |flow: u64, class: Class| {
            let asker = asker(flow, class);
            line.wait(&asker, limits(9), || take(&free)).await.unwrap();
            served.borrow_mut().push((flow, class));
        };
        let (batch, interactive) = (Class::Batch, Class::Interactive);
        let waiting = [
            (1, batch),
            (1, interactive),
            (1, interactive),
            (2, interactive),
        ];
        let waiting = join_all(waiting.map(|(flow, class)| wait(flow, class)));
        let freeing = async {
            for _ in 0..4 {
                tokio::time::sleep(Duration::from_millis(1)).await;
                free.set(free.get() + 1);
                line.call_next(None);
            }
        };
        let begun = Instant::now();
        tokio::join!(waiting, freeing);
        assert!(begun.elapsed() < Duration::from_millis(6));
        let served = served.into_inner();
        assert_eq!(served[3], (1, batch), "{served:?}");
        assert!(served[..2].contains(&(2, interactive)), "{served:?}");
        assert_eq!(line.waiting(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn place_that_a_called_request_leaves_goes_to_the_next() {
        let (line, free) = (FairLine::default(), Cell::new(0));
        let next = asker(2, Class::Interactive);
        let mut second = Box::pin(line.wait(&next, limits(9), || take(&free)));
        {
            let asker = asker(1, Class::Interactive);
            let mut first = Box::pin(line.wait(&asker, limits(9), || take(&free)));
            assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
            free.set(1);
            line.call_next(None);
        }
        assert!(second.await.is_ok());
        assert_eq!(line.waiting(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn all_places_are_taken_when_many_become_free_at_a_time() {
        let (line, free) = (FairLine::default(), Cell::new(0));
        let asker = asker(1, Class::Interactive);
        let waits = (0..5).map(|_| line.wait(&asker, limits(9), || take(&free)));
        let freeing = async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            free.set(5);
            line.call_all();
        };
        let begun = Instant::now();
        let (served, ()) = tokio::join!(join_all(waits), freeing);
        assert!(served.iter().all(Result::is_ok));
        assert_eq!(begun.elapsed(), Duration::from_millis(1));
    }

    #[tokio::test(start_paused = true)]
    async fn line_is_bounded_and_waits_end_on_time() {
        let line = FairLine::default();
        let wait = |flow, class| {
            let line = &line;
            async move {
                line.wait(&asker(flow, class), limits(2), || None::<()>)
                    .await
            }
        };
        let mut first = Box::pin(wait(1, Class::Batch));
        let mut second = Box::pin(wait(1, Class::Batch));
        assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
        let begun = Instant::now();
        assert_eq!(wait(1, Class::Batch).await, Err(QueueError::Full));
        let mut third = Box::pin(wait(2, Class::Interactive));
        assert!(poll!(&mut third).is_pending());
        assert_eq!(second.await, Err(QueueError::PushedOut));
        assert_eq!(
            (first.await, third.await),
            (Err(QueueError::Timeout), Err(QueueError::Timeout))
        );
        assert_eq!(begun.elapsed(), Duration::from_secs(3));
        assert_eq!(line.waiting(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn batch_is_pushed_out_first_then_the_key_with_most_and_what_is_called_stays() {
        let (line, free) = (FairLine::default(), Cell::new(0));
        let (batch, interactive) = (Class::Batch, Class::Interactive);
        let waiting = [
            (1, interactive),
            (2, interactive),
            (1, interactive),
            (3, batch),
            (1, interactive),
        ];
        let ended = RefCell::new(Vec::new());
        let wait = async |at: usize| {
            let (flow, class) = waiting[at];
            let asker = asker(flow, class);
            let waited = line.wait(&asker, limits(9), || take(&free)).await;
            ended.borrow_mut().push((at, waited));
        };
        let pushing = async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            // Two flows wait, and one of their requests is called: it is served.
            free.set(1);
            line.call_next(None);
            assert_eq!((line.push_out(2), line.waiting()), (2, 3));
            tokio::time::sleep(Duration::from_millis(1)).await;
            let out = Err(QueueError::PushedOut);
            assert_eq!(ended.take(), [(0, Ok(())), (3, out), (4, out)]);
            assert_eq!((line.push_out(9), line.waiting()), (2, 0));
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert_eq!(ended.take(), [(1, out), (2, out)]);
            assert_eq!((line.push_out(9), line.waiting()), (0, 0));
        };
        tokio::join!(join_all((0..5).map(wait)), pushing);
    }

    #[tokio::test(start_paused = true)]
    async fn place_that_was_freed_unnoticed_is_found() {
        let (line, free) = (FairLine::default(), Cell::new(0));
        let asker = asker(1, Class::Interactive);
        let freeing = async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            free.set(1);
        };
        let begun = Instant::now();
        let (served, ()) = tokio::join!(line.wait(&asker, limits(9), || take(&free)), freeing);
        assert!(served.is_ok() && begun.elapsed() <= RECHECK_INTERVAL);
    }
}
