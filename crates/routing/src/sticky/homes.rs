//! The workers that keys live at, by URL: there as long as a key lives there.

use std::collections::HashMap;
use std::sync::Arc;

use crate::{Candidate, Candidates};

/// A worker some key lives at.
pub(super) type Home = u32;

/// The home of who has none.
pub(super) const NOWHERE: Home = 0;

/// The homes. A key keeps its home when the worker there goes away, however long: whoever
/// comes back under the same URL is the same to a session.
#[derive(Debug)]
pub(super) struct Homes {
    /// The first is nowhere.
    all: Vec<Place>,
    by_url: HashMap<Arc<str>, Home>,
    free: Vec<Home>,
}

#[derive(Debug, Default)]
struct Place {
    url: Arc<str>,
    /// Where the worker was last seen in the fleet.
    slot: usize,
    /// Keys that may come here.
    keys: usize,
    /// Those of them that last did.
    active: usize,
}

impl Default for Homes {
    fn default() -> Self {
        Self {
            all: vec![Place::default()],
            by_url: HashMap::new(),
            free: Vec::new(),
        }
    }
}

impl Homes {
    /// The candidate that lives there.
    pub(super) fn find<'a>(&self, home: Home, from: Candidates<'a>) -> Option<&'a Candidate> {
        if home == NOWHERE {
            return None;
        }
        let place = &self.all[home as usize];
        let lives = |candidate: &&Candidate| candidate.url == place.url;
        let in_place = from.in_slot(place.slot).filter(lives);
        in_place.or_else(|| from.iter().find(lives))
    }

    /// The home of a worker, for one more key.
    pub(super) fn enter(&mut self, worker: &Candidate) -> Home {
        let home = match self.by_url.get(&worker.url) {
            Some(home) => *home,
            None => self.add(worker),
        };
        let place = &mut self.all[home as usize];
        place.slot = worker.slot;
        place.keys += 1;
        home
    }

    /// One key less; a home without keys is no more.
    pub(super) fn leave(&mut self, home: Home) {
        if home == NOWHERE {
            return;
        }
        let place = &mut self.all[home as usize];
        place.keys -= 1;
        if place.keys == 0 {
            let Place { url, .. } = std::mem::take(place);
            self.by_url.remove(&url);
            self.free.push(home);
        }
    }

    /// A key was served elsewhere than the time before.
    pub(super) fn moved(&mut self, before: Home, now: Home) {
        if before != NOWHERE {
            self.all[before as usize].active -= 1;
        }
        if now != NOWHERE {
            self.all[now as usize].active += 1;
        }
    }

    /// Keys that were served by a worker last.
    pub(super) fn keys(&self, worker: &Candidate) -> usize {
        let home = self.by_url.get(&worker.url).copied();
        home.map_or(0, |home| self.all[home as usize].active)
    }

    /// How many homes there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_url.len()
    }

    fn add(&mut self, worker: &Candidate) -> Home {
        let home = self.free.pop().unwrap_or_else(|| {
            self.all.push(Place::default());
            self.all.len() as Home - 1
        });
        self.all[home as usize].url = Arc::clone(&worker.url);
        self.by_url.insert(Arc::clone(&worker.url), home);
        home
    }
}
