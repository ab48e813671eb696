//! Queues that gateways bound together, as the rounds of this gateway speak of them.

use std::sync::Arc;
use std::time::Duration;

use routing::quota::{Part, QueueAnswer, QueueAsk, QueuePlanner, SharedLimits, SharedQueue};
use serde_json::{Value, json};

use super::shares::{Shares, kind};
use super::slot_shares::idle_pause;
use crate::telemetry::Metrics;

/// What this gateway has of each queue.
#[derive(Debug, Default)]
pub(super) struct QueueShares(Shares<dyn SharedQueue, QueuePlanner>);

impl QueueShares {
    /// Queues in which any may wait.
    pub(super) fn count(&self) -> usize {
        self.0.count_of(|queue| queue.total() > 0)
    }

    /// Takes note of queues that have come or gone.
    pub(super) fn follow(&mut self, limits: &SharedLimits) {
        self.0
            .follow(limits.list_queues(), |queue| QueuePlanner::new(&**queue));
    }

    /// Forgets queues that are gone.
    pub(super) fn retain_live(&mut self) {
        self.0.retain_live();
    }

    /// What to say now, of so many queues at most.
    pub(super) fn ask(&mut self, most: usize, now: Duration) -> Vec<(Arc<str>, QueueAsk)> {
        let pause = idle_pause(self.0.count());
        self.0
            .ask(most, |_, planner, queue| planner.ask(queue, now, pause))
    }

    /// Puts in force what the last round has brought.
    pub(super) fn heard(&mut self, answers: Vec<QueueAnswer>, now: Duration, metrics: &Metrics) {
        self.0.granted(answers, |name, planner, queue, answer| {
            let pushed_out = planner.heard(queue, &answer, now);
            metrics.shared_state.pushed_out(kind(name), pushed_out);
        });
    }

    /// There is no server: this gateway has its own part of each.
    pub(super) fn fill(&mut self, part: Part) {
        self.0.each(|planner, queue| planner.fill(queue, part));
    }

    /// All queues, in which nothing waits here any more.
    pub(super) fn leave(&mut self) -> Vec<(Arc<str>, QueueAsk)> {
        self.0.leave(|_, _| QueueAsk::default())
    }

    /// The first ones, as JSON.
    pub(super) fn rows(&self, most: usize) -> Vec<Value> {
        self.0.rows(most, row)
    }

    /// Sets what metrics show, by kinds of queues: also of those out of which none was pushed.
    pub(super) fn show(&self, metrics: &Metrics) {
        let figures = |planner: &QueuePlanner, queue: &(dyn SharedQueue + 'static)| {
            let (room, total) = (planner.room(), queue.total());
            (total > 0).then(|| [room.of(total), queue.usage().waiting, room.elsewhere])
        };
        for (kind, [allowed, waiting, elsewhere]) in self.0.sums(figures) {
            let states = [
                ("allowed", allowed),
                ("waiting", waiting),
                ("elsewhere", elsewhere),
            ];
            metrics.shared_state.show_queue(kind, states);
            metrics.shared_state.pushed_out(kind, 0);
        }
    }
}

fn row(name: &str, planner: &QueuePlanner, queue: &(dyn SharedQueue + 'static)) -> Option<Value> {
    let (room, total) = (planner.room(), queue.total());
    let row = || {
        json!({
            "name": name,
            "size": total,
            "allowed": room.of(total),
            "waiting": queue.usage().waiting,
            "elsewhere": room.elsewhere,
            "short": planner.is_short(),
        })
    };
    (total > 0).then(row)
}
