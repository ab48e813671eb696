//! Slots of limits on requests at a time, as the rounds of this gateway ask for them.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use routing::quota::{Part, SharedLimits, SlotAsk, SlotGrant, SlotPlanner, Slots};
use serde_json::{Value, json};

use crate::telemetry::Metrics;

/// Pause between two questions about a limit of which nothing is used; with many limits, as much
/// longer as they need to take turns.
const IDLE_PAUSE: Duration = Duration::from_millis(100);
const IDLE_PAUSE_PER_LIMIT: Duration = Duration::from_micros(200);

/// What this gateway has of each limit.
#[derive(Debug, Default)]
pub(super) struct SlotShares {
    shares: Vec<Share>,
    /// The share with which the next round begins.
    next: usize,
    /// Those that the last round has asked for.
    asked: Vec<usize>,
}

#[derive(Debug)]
struct Share {
    name: Arc<str>,
    slots: Weak<dyn Slots>,
    planner: SlotPlanner,
}

impl SlotShares {
    pub(super) fn is_empty(&self) -> bool {
        self.shares.is_empty()
    }

    pub(super) fn count(&self) -> usize {
        self.shares.len()
    }

    /// Takes note of limits that have come or gone.
    pub(super) fn follow(&mut self, limits: &SharedLimits) {
        let before = self.shares.drain(..);
        let mut known: BTreeMap<_, _> = before
            .map(|share| (Arc::clone(&share.name), share))
            .collect();
        for (name, slots) in limits.list_slots() {
            let Some(live) = slots.upgrade() else {
                continue;
            };
            let same = known.remove(&name);
            let same = same.filter(|share| share.slots.ptr_eq(&slots));
            self.shares.push(same.unwrap_or_else(|| Share {
                name,
                slots,
                planner: SlotPlanner::new(&*live),
            }));
        }
        self.asked.clear();
    }

    /// Forgets limits that are gone.
    pub(super) fn retain_live(&mut self) {
        self.shares.retain(|share| share.slots.strong_count() > 0);
        self.asked.clear();
    }

    /// What to ask for now, of so many limits at most.
    pub(super) fn ask(&mut self, most: usize, now: Duration) -> Vec<(Arc<str>, SlotAsk)> {
        let (count, mut asks) = (self.shares.len(), Vec::new());
        let of_all = IDLE_PAUSE_PER_LIMIT * u32::try_from(count).unwrap_or(u32::MAX);
        let idle_pause = IDLE_PAUSE.max(of_all);
        self.asked.clear();
        for _ in 0..count {
            if asks.len() == most {
                break;
            }
            self.next = (self.next + 1) % count;
            let Some(share) = self.shares.get_mut(self.next) else {
                break;
            };
            let Some(slots) = share.slots.upgrade() else {
                continue;
            };
            if let Some(ask) = share.planner.ask(&*slots, now, idle_pause) {
                asks.push((Arc::clone(&share.name), ask));
                self.asked.push(self.next);
            }
        }
        asks
    }

    /// Puts in force what the last round got. True if slots are given up, which is to be said soon.
    pub(super) fn granted(&mut self, grants: Vec<SlotGrant>) -> bool {
        let mut gives_up = false;
        for (at, grant) in std::mem::take(&mut self.asked).into_iter().zip(grants) {
            let Some(share) = self.shares.get_mut(at) else {
                continue;
            };
            if let Some(slots) = share.slots.upgrade() {
                gives_up |= share.planner.granted(&*slots, grant);
            }
        }
        gives_up
    }

    /// There is no server: this gateway has its own part of each.
    pub(super) fn fill(&mut self, part: Part) {
        for share in &mut self.shares {
            if let Some(slots) = share.slots.upgrade() {
                share.planner.fill(&*slots, part);
            }
        }
    }

    /// All limits, of which nothing is wanted any more.
    pub(super) fn leave(&mut self) -> Vec<(Arc<str>, SlotAsk)> {
        let shares = std::mem::take(&mut self.shares).into_iter();
        shares
            .map(|share| (share.name, SlotAsk::default()))
            .collect()
    }

    /// The first ones, as JSON.
    pub(super) fn rows(&self, most: usize) -> Vec<Value> {
        self.shares.iter().take(most).filter_map(row).collect()
    }

    /// Sets what metrics show, by kinds of limits.
    pub(super) fn show(&self, metrics: &Metrics) {
        let mut sums: BTreeMap<&str, [u64; 2]> = BTreeMap::new();
        for share in &self.shares {
            if let Some(slots) = share.slots.upgrade() {
                let kind = share.name.split(':').next().unwrap_or(&share.name);
                let [allowed, used] = sums.entry(kind).or_default();
                *allowed += share.planner.allowed();
                *used += slots.usage().used;
            }
        }
        for (kind, [allowed, used]) in sums {
            metrics.shared_state.show_slots(kind, allowed, used);
        }
    }
}

fn row(share: &Share) -> Option<Value> {
    let slots = share.slots.upgrade()?;
    let usage = slots.usage();
    Some(json!({
        "name": &*share.name,
        "slots": slots.total(),
        "allowed": share.planner.allowed(),
        "used": usage.used,
        "waiting": usage.waiting,
        "short": share.planner.is_short(),
    }))
}
