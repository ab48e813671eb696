//! Requests that wait in the order of arrival, of which the last ones may be pushed out.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Requests that wait, by their numbers. Whose turn it is, others decide.
#[derive(Debug, Default)]
pub(super) struct ArrivalLine {
    arrivals: Mutex<Arrivals>,
    waiting: AtomicUsize,
}

#[derive(Debug, Default)]
struct Arrivals {
    last: u64,
    /// What each that waits is notified by when it is pushed out.
    waiting: BTreeMap<u64, Arc<Notify>>,
}

/// A request's place in the line, given up when dropped.
#[derive(Debug)]
pub(super) struct ArrivalPlace<'a> {
    line: &'a ArrivalLine,
    number: u64,
    pushed_out: Arc<Notify>,
}

impl ArrivalLine {
    /// Requests that wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(SeqCst)
    }

    /// A place, where fewer than so many wait, with those that wait elsewhere.
    pub(super) fn enter(&self, elsewhere: usize, most: usize) -> Option<ArrivalPlace<'_>> {
        let mut arrivals = self.lock();
        if arrivals.waiting.len() + elsewhere >= most {
            return None;
        }
        arrivals.last += 1;
        let (number, pushed_out) = (arrivals.last, Arc::new(Notify::new()));
        arrivals.waiting.insert(number, Arc::clone(&pushed_out));
        self.waiting.store(arrivals.waiting.len(), SeqCst);
        drop(arrivals);
        Some(ArrivalPlace {
            line: self,
            number,
            pushed_out,
        })
    }

    /// Pushes out up to so many requests, the last ones. Returns how many.
    pub(super) fn push_out(&self, most: usize) -> usize {
        if most == 0 || self.waiting() == 0 {
            return 0;
        }
        let mut arrivals = self.lock();
        let last = (0..most).map_while(|_| arrivals.waiting.pop_last());
        let pushed_out = last.inspect(|(_, request)| request.notify_one()).count();
        self.waiting.store(arrivals.waiting.len(), SeqCst);
        pushed_out
    }

    fn lock(&self) -> MutexGuard<'_, Arrivals> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ArrivalPlace<'_> {
    /// What the request waits for, or `None` if it is pushed out first. What it has got in the same
    /// moment it keeps.
    pub(super) async fn unless_pushed_out<T>(&self, turn: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            got = turn => Some(got),
            () = self.pushed_out.notified() => None,
        }
    }
}

impl Drop for ArrivalPlace<'_> {
    fn drop(&mut self) {
        let mut arrivals = self.line.lock();
        arrivals.waiting.remove(&self.number);
        self.line.waiting.store(arrivals.waiting.len(), SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test]
    async fn last_ones_are_pushed_out_and_give_their_places_up_at_once() {
        let line = ArrivalLine::default();
        let places: Vec<_> = (0..4).map(|_| line.enter(1, 5).unwrap()).collect();
        assert!(line.enter(1, 5).is_none() && line.enter(0, 4).is_none());
        assert_eq!(line.push_out(2), 2);
        assert_eq!(line.waiting(), 2);
        let [one, two, three, four] = <[_; 4]>::try_from(places).unwrap();
        for place in [three, four] {
            assert_eq!(place.unless_pushed_out(pending::<()>()).await, None);
        }
        assert_eq!(line.waiting(), 2, "places are given up once");
        for place in [&one, &two] {
            let waits =
                futures_util::poll!(std::pin::pin!(place.unless_pushed_out(pending::<()>())));
            assert!(waits.is_pending());
        }
        let five = line.enter(0, 3).unwrap();
        assert_eq!((line.push_out(9), line.waiting()), (3, 0));
        // What was got before counts.
        assert_eq!(five.unless_pushed_out(ready(7)).await, Some(7));
    }

    #[test]
    fn no_place_is_lost_or_left_behind_while_lanes_come_and_go_and_are_pushed_out() {
        let line = ArrivalLine::default();
        let entered = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..2000 {
                        let places: Vec<_> = (0..3).filter_map(|_| line.enter(0, 8)).collect();
                        assert!(line.waiting() <= 8);
                        entered.fetch_add(places.len(), SeqCst);
                    }
                });
            }
            scope.spawn(|| {
                for _ in 0..2000 {
                    assert!(line.push_out(2) <= 2);
                }
            });
        });
        assert!(entered.load(SeqCst) > 2000 && line.waiting() == 0);
        let places: Vec<_> = (0..9).filter_map(|_| line.enter(0, 8)).collect();
        assert_eq!(places.len(), 8);
    }
}
