//! The active faults: their counts, expiry and chance.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use crate::engine::mix;
use crate::faults::Faults;

/// Faults as set, and the number of hits left.
#[derive(Debug)]
pub(crate) struct FaultInjector {
    inactive: AtomicBool, // no fault is set: spares the lock
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    faults: Faults,
    hits_left: Option<u32>,
    statuses_left: Option<u32>,
    expires: Option<SystemTime>,
    random: u64,
}

impl FaultInjector {
    pub(crate) fn new(faults: Faults, seed: u64) -> Self {
        let state = State {
            faults: Faults::default(),
            hits_left: None,
            statuses_left: None,
            expires: None,
            random: seed,
        };
        let this = Self {
            inactive: AtomicBool::new(true),
            state: Mutex::new(state),
        };
        this.set(faults);
        this
    }

    /// Replaces all faults and restarts their counts.
    pub(crate) fn set(&self, faults: Faults) {
        let mut state = self.lock();
        let some = |count: u32| (count > 0).then_some(count);
        state.hits_left = some(faults.count);
        state.statuses_left = some(faults.status_count);
        let lifetime = Duration::from_millis(faults.for_ms);
        state.expires = (faults.for_ms > 0).then(|| SystemTime::now() + lifetime);
        state.faults = faults;
        self.inactive
            .store(state.faults == Faults::default(), Relaxed);
    }

    /// The active faults.
    pub(crate) fn current(&self) -> Faults {
        let mut state = self.lock();
        state.expire();
        state.faults.clone()
    }

    /// The faults that hit an inference request with this body, if any.
    pub(crate) fn draw(&self, body: &[u8]) -> Option<Box<Faults>> {
        if self.inactive.load(Relaxed) {
            return None;
        }
        let mut state = self.lock();
        state.expire();
        let named = state.faults.only_text.as_deref();
        if named.is_some_and(|text| !contains(body, text.as_bytes())) {
            return None;
        }
        if !state.faults.hits_inference() || !state.hits_by_chance() {
            return None;
        }
        let drawn = Box::new(state.faults.clone());
        state.count_hit();
        Some(drawn)
    }

    /// Whether this new connection is reset.
    pub(crate) fn refuses_connection(&self) -> bool {
        if self.inactive.load(Relaxed) {
            return false;
        }
        let mut state = self.lock();
        state.expire();
        state.faults.refuse_connections && state.hits_by_chance()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn contains(body: &[u8], text: &[u8]) -> bool {
    text.is_empty() || body.windows(text.len()).any(|window| window == text)
}

impl State {
    fn expire(&mut self) {
        if self.expires.is_some_and(|at| SystemTime::now() >= at) {
            self.faults = Faults::default();
            self.expires = None;
        }
    }

    fn hits_by_chance(&mut self) -> bool {
        self.random = mix(self.random, 1);
        let fraction = (self.random >> 11) as f64 / (1_u64 << 53) as f64;
        fraction < self.faults.fault_rate
    }

    fn count_hit(&mut self) {
        if self.faults.status.is_some() && count_down(&mut self.statuses_left) {
            self.faults.status = None;
        }
        if count_down(&mut self.hits_left) {
            self.faults = Faults {
                health_status: self.faults.health_status,
                health_hang: self.faults.health_hang,
                refuse_connections: self.faults.refuse_connections,
                ..Faults::default()
            };
        }
    }
}

/// Subtracts one; true if that was the last.
fn count_down(left: &mut Option<u32>) -> bool {
    match left {
        Some(count) => {
            *count -= 1;
            let last = *count == 0;
            if last {
                *left = None;
            }
            last
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_ends_after_its_count_and_other_faults_stay() {
        let faults = Faults {
            status: Some(500),
            status_count: 2,
            duplicate_set_cookie: true,
            ..Faults::default()
        };
        let faults = FaultInjector::new(faults, 0);
        let drawn: Vec<Option<u16>> = (0..3).map(|_| faults.draw(b"").unwrap().status).collect();
        assert_eq!(drawn, [Some(500), Some(500), None]);
    }

    #[test]
    fn inference_faults_end_after_their_count_and_health_faults_stay() {
        let faults = Faults {
            count: 1,
            close_before_headers: true,
            health_status: Some(503),
            ..Faults::default()
        };
        let faults = FaultInjector::new(faults, 0);
        assert!(faults.draw(b"").is_some());
        assert!(faults.draw(b"").is_none());
        assert_eq!(faults.current().health_status, Some(503));
    }

    #[test]
    fn hits_follow_the_rate_and_equal_seeds_hit_equally() {
        let faults = Faults {
            status: Some(500),
            fault_rate: 0.3,
            ..Faults::default()
        };
        let draw = |seed| -> Vec<bool> {
            let faults = FaultInjector::new(faults.clone(), seed);
            (0..1000).map(|_| faults.draw(b"").is_some()).collect()
        };
        let hits = draw(1).into_iter().filter(|hit| *hit).count();
        assert!((230..370).contains(&hits), "{hits} of 1000");
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }
}
