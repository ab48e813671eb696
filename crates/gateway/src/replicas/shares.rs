//! What this gateway has of the limits of a kind, which its rounds ask for in turns.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use serde_json::Value;

/// Limits of a kind, and what is planned for each.
#[derive(Debug)]
pub(super) struct Shares<T: ?Sized, P> {
    all: Vec<Share<T, P>>,
    /// The share with which the next round begins.
    next: usize,
    /// Those that the last round has asked for.
    asked: Vec<usize>,
}

/// A limit, for as long as it lasts.
#[derive(Debug)]
struct Share<T: ?Sized, P> {
    name: Arc<str>,
    limit: Weak<T>,
    planner: P,
}

impl<T: ?Sized, P> Default for Shares<T, P> {
    fn default() -> Self {
        Self {
            all: Vec::new(),
            next: 0,
            asked: Vec::new(),
        }
    }
}

impl<T: ?Sized, P> Shares<T, P> {
    pub(super) fn count(&self) -> usize {
        self.all.len()
    }

    /// How many are such.
    pub(super) fn count_of(&self, is_such: impl Fn(&T) -> bool) -> usize {
        let live = self.all.iter().filter_map(|share| share.limit.upgrade());
        live.filter(|limit| is_such(limit)).count()
    }

    /// Takes note of limits that have come or gone.
    pub(super) fn follow(
        &mut self,
        listed: Vec<(Arc<str>, Weak<T>)>,
        planner: impl Fn(&Arc<T>) -> P,
    ) {
        let before = self.all.drain(..);
        let mut known: BTreeMap<_, _> = before
            .map(|share| (Arc::clone(&share.name), share))
            .collect();
        for (name, limit) in listed {
            let Some(live) = limit.upgrade() else {
                continue;
            };
            let same = known.remove(&name);
            let same = same.filter(|share| share.limit.ptr_eq(&limit));
            self.all.push(same.unwrap_or_else(|| Share {
                name,
                limit,
                planner: planner(&live),
            }));
        }
        self.asked.clear();
    }

    /// Forgets limits that are gone.
    pub(super) fn retain_live(&mut self) {
        self.all.retain(|share| share.limit.strong_count() > 0);
        self.asked.clear();
    }

    /// What to ask for now, of so many limits at most.
    pub(super) fn ask<A>(
        &mut self,
        most: usize,
        mut ask: impl FnMut(&str, &mut P, &T) -> Option<A>,
    ) -> Vec<(Arc<str>, A)> {
        let (count, mut asks) = (self.all.len(), Vec::new());
        self.asked.clear();
        for _ in 0..count {
            if asks.len() == most {
                break;
            }
            self.next = (self.next + 1) % count;
            let Some(share) = self.all.get_mut(self.next) else {
                break;
            };
            let Some(limit) = share.limit.upgrade() else {
                continue;
            };
            if let Some(ask) = ask(&share.name, &mut share.planner, &limit) {
                asks.push((Arc::clone(&share.name), ask));
                self.asked.push(self.next);
            }
        }
        asks
    }

    /// Hands out what the last round got, in the order of its questions.
    pub(super) fn granted<G>(&mut self, grants: Vec<G>, mut take: impl FnMut(&str, &mut P, &T, G)) {
        for (at, grant) in std::mem::take(&mut self.asked).into_iter().zip(grants) {
            let Some(share) = self.all.get_mut(at) else {
                continue;
            };
            if let Some(limit) = share.limit.upgrade() {
                take(&share.name, &mut share.planner, &limit, grant);
            }
        }
    }

    /// For each that is left.
    pub(super) fn each(&mut self, mut of: impl FnMut(&mut P, &T)) {
        for share in &mut self.all {
            if let Some(limit) = share.limit.upgrade() {
                of(&mut share.planner, &limit);
            }
        }
    }

    /// All of them, for this gateway leaves.
    pub(super) fn leave<A>(&mut self, ask: impl Fn(&mut P, &T) -> A) -> Vec<(Arc<str>, A)> {
        let shares = std::mem::take(&mut self.all).into_iter();
        let asks = shares.filter_map(|mut share| {
            let limit = share.limit.upgrade()?;
            Some((share.name, ask(&mut share.planner, &limit)))
        });
        asks.collect()
    }

    /// The first ones that have something to show, as JSON.
    pub(super) fn rows(
        &self,
        most: usize,
        row: impl Fn(&str, &P, &T) -> Option<Value>,
    ) -> Vec<Value> {
        let rows = self.all.iter().filter_map(|share| {
            let limit = share.limit.upgrade()?;
            row(&share.name, &share.planner, &limit)
        });
        rows.take(most).collect()
    }

    /// Figures of each, summed up by kinds of limits.
    pub(super) fn sums<const COUNT: usize>(
        &self,
        figures: impl Fn(&P, &T) -> Option<[u64; COUNT]>,
    ) -> BTreeMap<&str, [u64; COUNT]> {
        let mut sums: BTreeMap<&str, [u64; COUNT]> = BTreeMap::new();
        for share in &self.all {
            let limit = share.limit.upgrade();
            if let Some(more) = limit.and_then(|limit| figures(&share.planner, &limit)) {
                let sum = sums.entry(kind(&share.name)).or_insert([0; COUNT]);
                sum.iter_mut()
                    .zip(more)
                    .for_each(|(sum, more)| *sum += more);
            }
        }
        sums
    }
}

/// What kind of limit it is, by its name.
pub(super) fn kind(name: &str) -> &str {
    name.split(':').next().unwrap_or(name)
}
