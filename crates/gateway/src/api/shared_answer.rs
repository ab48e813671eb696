//! One answer for all clients that ask at about the same time.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

/// How long an answer is given again.
const FRESH_FOR: Duration = Duration::from_secs(1);

/// The last answer to a question that costs the workers something.
#[derive(Debug)]
pub(super) struct SharedAnswer<T>(Mutex<Option<Timed<T>>>);

#[derive(Debug)]
struct Timed<T> {
    at: Instant,
    answer: T,
}

impl<T> Default for SharedAnswer<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T: Clone> SharedAnswer<T> {
    /// The last answer while it is fresh; otherwise `ask` is run, once for all that wait.
    pub(super) async fn get(&self, ask: impl Future<Output = T>) -> T {
        let mut last = self.0.lock().await;
        if let Some(timed) = &*last
            && timed.at.elapsed() < FRESH_FOR
        {
            return timed.answer.clone();
        }
        let answer = ask.await;
        *last = Some(Timed {
            at: Instant::now(),
            answer: answer.clone(),
        });
        answer
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use tokio::time::{advance, sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn clients_that_ask_within_a_second_share_one_question() {
        let (shared, asked) = (SharedAnswer::default(), AtomicUsize::new(0));
        let ask = || async {
            sleep(Duration::from_millis(100)).await;
            asked.fetch_add(1, Relaxed)
        };
        let answers = tokio::join!(shared.get(ask()), shared.get(ask()), shared.get(ask()));
        assert_eq!((answers, asked.load(Relaxed)), ((0, 0, 0), 1));
        advance(FRESH_FOR).await;
        assert_eq!(shared.get(ask()).await, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn client_that_leaves_hands_the_question_to_the_next() {
        let shared = SharedAnswer::default();
        let left = tokio::time::timeout(Duration::from_secs(1), shared.get(std::future::pending()));
        assert!(left.await.is_err());
        assert_eq!(shared.get(async { 7 }).await, 7);
    }
}
