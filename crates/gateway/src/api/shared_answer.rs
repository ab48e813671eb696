//! One answer for all clients that ask at about the same time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

/// How long an answer is given again.
const FRESH_FOR: Duration = Duration::from_secs(1);

/// A question that is being asked. `None` when its task has ended without an answer.
type Question<T> = BoxFuture<'static, Option<T>>;

/// The answer to a question that costs the workers something.
#[derive(Debug)]
pub(super) struct SharedAnswer<T: Clone>(Arc<Mutex<Latest<T>>>);

#[derive(Debug)]
struct Latest<T: Clone> {
    answer: Option<Timed<T>>,
    /// Ends once no client waits for it any more.
    question: Option<WeakShared<Question<T>>>,
}

#[derive(Debug)]
struct Timed<T> {
    at: Instant,
    answer: T,
}

impl<T: Clone> Default for SharedAnswer<T> {
    fn default() -> Self {
        let (answer, question) = (None, None);
        Self(Arc::new(Mutex::new(Latest { answer, question })))
    }
}

impl<T: Clone + Send + Sync + 'static> SharedAnswer<T> {
    /// The last answer while it is fresh; otherwise that to the question that is being asked,
    /// which is `ask` when there is none. It goes on while any client waits for it. `None` when
    /// the gateway stops meanwhile.
    pub(super) async fn get(&self, ask: impl Future<Output = T> + Send + 'static) -> Option<T> {
        let question = {
            let mut latest = self.latest();
            let fresh = |it: &&Timed<T>| it.at.elapsed() < FRESH_FOR;
            if let Some(timed) = latest.answer.as_ref().filter(fresh) {
                return Some(timed.answer.clone());
            }
            let current = latest.question.as_ref().and_then(WeakShared::upgrade);
            current.unwrap_or_else(|| {
                let question = self.begin(ask);
                latest.question = question.downgrade();
                question
            })
        };
        question.await
    }

    fn begin(&self, ask: impl Future<Output = T> + Send + 'static) -> Shared<Question<T>> {
        let shared = Self(Arc::clone(&self.0));
        let asking = AbortOnDropHandle::new(tokio::spawn(async move {
            let answer = ask.await;
            shared.latest().answer = Some(Timed {
                at: Instant::now(),
                answer: answer.clone(),
            });
            answer
        }));
        asking.map(Result::ok).boxed().shared()
    }

    fn latest(&self) -> MutexGuard<'_, Latest<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use tokio::time::{advance, sleep, timeout};

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(50);

    /// A question that takes 100 ms; its answer is how many were answered before.
    fn ask(asked: &Arc<AtomicUsize>) -> impl Future<Output = usize> + Send + 'static {
        let asked = Arc::clone(asked);
        async move {
            sleep(2 * PATIENCE).await;
            asked.fetch_add(1, Relaxed)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn clients_that_ask_within_a_second_share_one_question() {
        let (shared, asked) = (SharedAnswer::default(), Arc::default());
        let get = || shared.get(ask(&asked));
        let answers = tokio::join!(get(), get(), get());
        assert_eq!(answers, (Some(0), Some(0), Some(0)));
        advance(FRESH_FOR / 2).await;
        assert_eq!(get().await, Some(0));
        advance(FRESH_FOR / 2).await;
        assert_eq!(get().await, Some(1));
    }

    #[tokio::test(start_paused = true)]
    async fn question_goes_on_when_the_client_that_began_it_leaves() {
        let (shared, asked) = (SharedAnswer::default(), Arc::default());
        let begun = Instant::now();
        let first = timeout(PATIENCE, shared.get(ask(&asked)));
        let second = shared.get(ask(&asked));
        let (first, second) = tokio::join!(first, second);
        assert!(first.is_err());
        assert_eq!((second, begun.elapsed()), (Some(0), 2 * PATIENCE));
    }

    #[tokio::test(start_paused = true)]
    async fn question_ends_when_no_client_waits_any_more() {
        let (shared, held) = (SharedAnswer::default(), Arc::new(()));
        let holds = Arc::clone(&held);
        let question = async move {
            pending::<()>().await;
            Arc::strong_count(&holds)
        };
        assert!(timeout(PATIENCE, shared.get(question)).await.is_err());
        assert_eq!(shared.get(async { 7 }).await, Some(7));
        assert_eq!(Arc::strong_count(&held), 1);
    }

    #[tokio::test]
    async fn question_that_panics_is_no_answer_and_the_next_client_asks_anew() {
        let shared = SharedAnswer::default();
        assert_eq!(shared.get(async { panic!("on purpose") }).await, None);
        assert_eq!(shared.get(async { 7 }).await, Some(7));
    }
}
