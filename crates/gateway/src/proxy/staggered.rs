//! One question to several workers, one after another: the first good answer counts.

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, sleep_until};

use super::worker_query::STAGGER;

/// The first good answer of the workers, which are asked in turn until the deadline: the next one
/// at once after another answer, or beside a worker that has been silent for a second. `ask` ends
/// by the deadline. The others are dropped with the first good answer; where there is none, all
/// others are returned.
pub(super) async fn first_good<W, T, F: Future<Output = T>>(
    workers: impl IntoIterator<Item = W>,
    deadline: Instant,
    ask: impl Fn(W) -> F,
    is_good: impl Fn(&T) -> bool,
) -> Result<T, Vec<T>> {
    let mut workers = workers.into_iter();
    let (mut asked, mut others) = (FuturesUnordered::new(), Vec::new());
    loop {
        let now = Instant::now();
        let next = workers.next().filter(|_| now < deadline);
        let more = next.is_some();
        asked.extend(next.map(&ask));
        tokio::select! {
            answer = asked.next() => match answer {
                Some(answer) if is_good(&answer) => return Ok(answer),
                Some(answer) => others.push(answer),
                None => return Err(others),
            },
            () = sleep_until(now + STAGGER), if more => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Duration;

    use tokio::time::{sleep, timeout_at};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A worker that answers after some milliseconds, or never.
    type Delay = Option<u64>;

    /// The first success, if there is one, the milliseconds it took, and how many were asked.
    async fn ask(workers: &[(Delay, bool)]) -> (Option<usize>, u128, usize) {
        let (begun, asked) = (Instant::now(), Cell::new(0));
        let deadline = begun + 5 * SECOND;
        let ask = |at: usize| {
            asked.set(asked.get() + 1);
            let (delay, good) = workers[at];
            let delay = delay.map_or(Duration::MAX, Duration::from_millis);
            async move {
                let answered = timeout_at(deadline, sleep(delay)).await.is_ok();
                (at, answered && good)
            }
        };
        let answer = first_good(0..workers.len(), deadline, ask, |(_, good)| *good).await;
        let first = answer.ok().map(|(at, _)| at);
        (first, begun.elapsed().as_millis(), asked.get())
    }

    #[tokio::test(start_paused = true)]
    async fn worker_that_answers_at_once_is_the_only_one_asked() {
        let workers = [(Some(10), true), (Some(10), true)];
        assert_eq!(ask(&workers).await, (Some(0), 10, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn next_worker_is_asked_beside_a_silent_one_after_a_second() {
        let workers = [(None, true), (Some(10), true), (Some(0), true)];
        assert_eq!(ask(&workers).await, (Some(1), 1010, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn slow_worker_still_wins_when_it_answers_before_the_next_one() {
        let workers = [(Some(1500), true), (Some(1000), true)];
        assert_eq!(ask(&workers).await, (Some(0), 1500, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn next_worker_is_asked_at_once_after_an_answer_that_is_not_good() {
        let workers = [(Some(10), false), (Some(10), false), (Some(10), true)];
        assert_eq!(ask(&workers).await, (Some(2), 30, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn question_to_many_silent_workers_ends_at_its_deadline() {
        let (first, took, asked) = ask(&[(None, true); 300]).await;
        assert_eq!((first, asked), (None, 5));
        assert!((5000..5100).contains(&took), "{took}");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_good_answer_all_others_are_returned() {
        assert_eq!(ask(&[]).await, (None, 0, 0));
        assert_eq!(ask(&[(Some(5), false), (Some(5), false)]).await.0, None);
    }
}
