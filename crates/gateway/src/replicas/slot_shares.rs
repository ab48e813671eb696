//! Slots of limits on requests at a time, as the rounds of this gateway ask for them.

use std::sync::Arc;
use std::time::Duration;

use routing::quota::{Part, SharedLimits, SlotAsk, SlotGrant, SlotPlanner, Slots};
use serde_json::{Value, json};

use super::shares::Shares;
use crate::telemetry::Metrics;

/// Pause between two questions about a limit of which nothing is used; with many limits, as much
/// longer as they need to take turns.
const IDLE_PAUSE: Duration = Duration::from_millis(100);
const IDLE_PAUSE_PER_LIMIT: Duration = Duration::from_micros(200);

/// What this gateway has of each limit.
#[derive(Debug, Default)]
pub(super) struct SlotShares(Shares<dyn Slots, SlotPlanner>);

impl SlotShares {
    pub(super) fn count(&self) -> usize {
        self.0.count()
    }

    /// Takes note of limits that have come or gone.
    pub(super) fn follow(&mut self, limits: &SharedLimits) {
        self.0
            .follow(limits.list_slots(), |slots| SlotPlanner::new(&**slots));
    }

    /// Forgets limits that are gone.
    pub(super) fn retain_live(&mut self) {
        self.0.retain_live();
    }

    /// What to ask for now, of so many limits at most.
    pub(super) fn ask(&mut self, most: usize, now: Duration) -> Vec<(Arc<str>, SlotAsk)> {
        let pause = idle_pause(self.count());
        self.0
            .ask(most, |_, planner, slots| planner.ask(slots, now, pause))
    }

    /// Puts in force what the last round got. True if slots are given up, which is to be said soon.
    pub(super) fn granted(&mut self, grants: Vec<SlotGrant>) -> bool {
        let mut gives_up = false;
        self.0.granted(grants, |_, planner, slots, grant| {
            gives_up |= planner.granted(slots, grant);
        });
        gives_up
    }

    /// There is no server: this gateway has its own part of each.
    pub(super) fn fill(&mut self, part: Part) {
        self.0.each(|planner, slots| planner.fill(slots, part));
    }

    /// All limits, of which nothing is wanted any more.
    pub(super) fn leave(&mut self) -> Vec<(Arc<str>, SlotAsk)> {
        self.0.leave(|_, _| SlotAsk::default())
    }

    /// The first ones, as JSON.
    pub(super) fn rows(&self, most: usize) -> Vec<Value> {
        let rows = |name: &str, planner: &_, limit: &_| Some(row(name, planner, limit));
        self.0.rows(most, rows)
    }

    /// Sets what metrics show, by kinds of limits.
    pub(super) fn show(&self, metrics: &Metrics) {
        let figures = |planner: &SlotPlanner, slots: &(dyn Slots + 'static)| {
            Some([planner.allowed(), slots.usage().used])
        };
        for (kind, [allowed, used]) in self.0.sums(figures) {
            metrics.shared_state.show_slots(kind, allowed, used);
        }
    }
}

/// Pause between two questions about a limit of which nothing is used, among so many.
pub(super) fn idle_pause(count: usize) -> Duration {
    let of_all = IDLE_PAUSE_PER_LIMIT * u32::try_from(count).unwrap_or(u32::MAX);
    IDLE_PAUSE.max(of_all)
}

fn row(name: &str, planner: &SlotPlanner, slots: &(dyn Slots + 'static)) -> Value {
    let usage = slots.usage();
    json!({
        "name": name,
        "slots": slots.total(),
        "allowed": planner.allowed(),
        "used": usage.used,
        "waiting": usage.waiting,
        "short": planner.is_short(),
    })
}
