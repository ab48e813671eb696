//! What a worker reports of its load: traffic that this gateway has not sent there.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// What a worker has to do, in requests and tokens: as it reports, or as this gateway knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadFigures {
    /// Requests that run or wait.
    pub requests: u64,
    /// Prompt tokens to compute, of requests that wait.
    pub queued_tokens: u64,
    /// Memory that running requests take.
    pub kv_tokens: u64,
}

/// What a worker reported beyond what this gateway knew at that time: the traffic of others. 0
/// where nothing has been reported lately.
///
/// Added to what this gateway knows now, it makes the larger of both at the time of the report,
/// and follows this gateway's own requests from then on.
#[derive(Debug, Default)]
pub(crate) struct OthersLoad {
    requests: AtomicU32,
    queued_tokens: AtomicU32,
    kv_tokens: AtomicU32,
}

impl LoadFigures {
    /// The larger of both, each for itself.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            requests: self.requests.max(other.requests),
            queued_tokens: self.queued_tokens.max(other.queued_tokens),
            kv_tokens: self.kv_tokens.max(other.kv_tokens),
        }
    }
}

impl OthersLoad {
    pub(crate) fn set(&self, reported: LoadFigures, own: LoadFigures) {
        let beyond = |reported: u64, own: u64| {
            u32::try_from(reported.saturating_sub(own)).unwrap_or(u32::MAX)
        };
        let requests = beyond(reported.requests, own.requests);
        let queued_tokens = beyond(reported.queued_tokens, own.queued_tokens);
        self.requests.store(requests, Relaxed);
        self.queued_tokens.store(queued_tokens, Relaxed);
        let kv_tokens = beyond(reported.kv_tokens, own.kv_tokens);
        self.kv_tokens.store(kv_tokens, Relaxed);
    }

    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Relaxed) as usize
    }

    pub(crate) fn queued_tokens(&self) -> u64 {
        self.queued_tokens.load(Relaxed).into()
    }

    pub(crate) fn kv_tokens(&self) -> u64 {
        self.kv_tokens.load(Relaxed).into()
    }
}

/// What counts of the time before, after another second of prefill: about ten seconds do.
const MEMORY: f64 = 0.9;
/// Time computing prompts below which a difference says little, microseconds.
const LEAST_BUSY: u64 = 1000;

/// How fast a worker computes prompts, from two counters that only grow.
#[derive(Debug, Default)]
pub struct PrefillSpeed {
    last: Option<PrefillCounters>,
    tokens: f64,
    secs: f64,
}

/// Prompt tokens that a worker has computed since its start, and the time it took for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefillCounters {
    /// Tokens that were not cached.
    pub tokens: u64,
    /// Microseconds.
    pub busy_us: u64,
}

impl PrefillSpeed {
    /// The counters are so high now; lower ones than before are those of a new process.
    pub fn observe(&mut self, now: PrefillCounters) {
        let Some(before) = self.last else {
            self.last = Some(now);
            return;
        };
        if now.tokens < before.tokens || now.busy_us < before.busy_us {
            *self = Self {
                last: Some(now),
                ..Self::default()
            };
            return;
        }
        let (tokens, busy_us) = (now.tokens - before.tokens, now.busy_us - before.busy_us);
        if busy_us < LEAST_BUSY {
            // They add up until they say something.
            return;
        }
        let secs = busy_us as f64 / 1e6;
        // By the time, not by the report: engines publish after every step.
        let memory = MEMORY.powf(secs);
        self.tokens = memory * self.tokens + tokens as f64;
        self.secs = memory * self.secs + secs;
        self.last = Some(now);
    }

    /// Prompt tokens per second of prefill, once that has been seen.
    pub fn tokens_per_sec(&self) -> Option<f64> {
        (self.secs > 0.0).then(|| self.tokens / self.secs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observe(speed: &mut PrefillSpeed, tokens: u64, busy_us: u64) {
        speed.observe(PrefillCounters { tokens, busy_us });
    }

    #[test]
    fn speed_is_that_of_the_time_in_which_prompts_were_computed() {
        let mut speed = PrefillSpeed::default();
        observe(&mut speed, 500, 7);
        assert_eq!(speed.tokens_per_sec(), None, "where it began says nothing");
        observe(&mut speed, 500, 7);
        assert_eq!(speed.tokens_per_sec(), None);
        for round in 1..5 {
            observe(&mut speed, 500 + 8000 * round, 7 + 1_000_000 * round);
        }
        let found = speed.tokens_per_sec().unwrap();
        assert!((found - 8000.0).abs() < 1e-6, "{found}");
        for round in 1..200 {
            observe(
                &mut speed,
                40_000 + 2000 * round,
                5_000_000 + 1_000_000 * round,
            );
        }
        let found = speed.tokens_per_sec().unwrap();
        assert!((found - 2000.0).abs() < 1.0, "{found}");
    }

    #[test]
    fn speed_does_not_depend_on_how_often_it_is_reported() {
        let (mut often, mut seldom) = (PrefillSpeed::default(), PrefillSpeed::default());
        // Twenty seconds at 1000 tokens a second, then two at 9000, in steps of 10 ms.
        for step in 0..=2200_u64 {
            let tokens = step.min(2000) * 10 + step.saturating_sub(2000) * 90;
            observe(&mut often, tokens, step * 10_000);
            if step % 50 == 0 {
                observe(&mut seldom, tokens, step * 10_000);
            }
        }
        let (often, seldom) = (often.tokens_per_sec(), seldom.tokens_per_sec());
        let (often, seldom) = (often.unwrap(), seldom.unwrap());
        assert!((often / seldom - 1.0).abs() < 0.02, "{often} {seldom}");
        assert!((2000.0..4000.0).contains(&often), "{often}");
    }

    #[test]
    fn counters_that_begin_anew_make_no_speed() {
        let mut speed = PrefillSpeed::default();
        observe(&mut speed, 0, 0);
        observe(&mut speed, 10_000, 1_000_000);
        observe(&mut speed, 10, 20);
        assert_eq!(speed.tokens_per_sec(), None);
        observe(&mut speed, 5010, 1_000_020);
        assert!((speed.tokens_per_sec().unwrap() - 5000.0).abs() < 1e-6);
    }

    #[test]
    fn short_times_add_up() {
        let mut speed = PrefillSpeed::default();
        for round in 0..100 {
            observe(&mut speed, round, 100 * round);
        }
        assert!((speed.tokens_per_sec().unwrap() - 10_000.0).abs() < 1e-6);
    }
}
