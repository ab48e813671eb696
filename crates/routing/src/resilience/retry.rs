//! Retries: how many, after which pause, and within which budget.

use std::time::Duration;

use crate::SeededRng;

/// The time in which earned retries fade, and over which the floor accumulates.
const MEMORY: Duration = Duration::from_secs(10);

/// The number of attempts and the pauses between them.
#[derive(Clone, Copy, Debug)]
pub struct RetryRules {
    /// Attempts in all, the first included; at least 1.
    pub attempts: u32,
    /// Pause after the first attempt.
    pub initial_backoff: Duration,
    /// Longest pause.
    pub max_backoff: Duration,
    /// Growth from one pause to the next.
    pub multiplier: f64,
    /// The share, 0 to 1, by which a pause is randomly shorter or longer at most.
    pub jitter: f64,
}

impl RetryRules {
    /// The pause after so many attempts (1 after the first).
    pub fn backoff(&self, attempts: u32, rng: &mut SeededRng) -> Duration {
        let exponent = i32::try_from(attempts.saturating_sub(1)).unwrap_or(i32::MAX);
        let grown = self.initial_backoff.as_secs_f64() * self.multiplier.powi(exponent);
        let capped = grown.min(self.max_backoff.as_secs_f64());
        let jitter = 1.0 + self.jitter * (2.0 * rng.fraction() - 1.0);
        Duration::try_from_secs_f64(capped * jitter).unwrap_or(self.max_backoff)
    }
}

/// The limit on the traffic that retries may add.
///
/// A balance like Finagle's retry budget. Every request deposits a share of a retry, which fades
/// unless it is used. Time deposits the floor. A retry withdraws one.
#[derive(Clone, Debug)]
pub struct RetryBudget {
    /// Retries per request.
    share: f64,
    /// Retries per second that are always granted.
    floor: f64,
    /// Retries deposited by requests.
    earned: f64,
    /// Retries deposited by time.
    reserve: f64,
    /// Requests at the last refill.
    requests: u64,
    refilled_at: Duration,
}

impl RetryBudget {
    /// A full budget: retries are at most `share` of the requests, plus `floor` per second.
    pub fn new(share: f64, floor: u32) -> Self {
        let floor = f64::from(floor);
        Self {
            share,
            floor,
            earned: 0.0,
            reserve: floor * MEMORY.as_secs_f64(),
            requests: 0,
            refilled_at: Duration::ZERO,
        }
    }

    /// Withdraws one retry; false if there is none. `requests` counts all requests so far.
    pub fn take(&mut self, requests: u64, now: Duration) -> bool {
        self.refill(requests, now);
        for balance in [&mut self.earned, &mut self.reserve] {
            if *balance >= 1.0 {
                *balance -= 1.0;
                return true;
            }
        }
        false
    }

    /// Retries that would be granted at `now`. `requests` counts all requests so far.
    pub fn available(&self, requests: u64, now: Duration) -> f64 {
        let mut budget = self.clone();
        budget.refill(requests, now);
        budget.earned.floor() + budget.reserve.floor()
    }

    fn refill(&mut self, requests: u64, now: Duration) {
        let new = requests.saturating_sub(self.requests) as f64;
        let elapsed = now.saturating_sub(self.refilled_at).as_secs_f64();
        let memory = MEMORY.as_secs_f64();
        // Deposits fade, so that a quiet day does not allow a storm of retries. The new requests
        // count as spread evenly over the time since the last refill.
        let remaining = (-elapsed / memory).exp();
        let fresh = if elapsed > 0.0 {
            (1.0 - remaining) * memory / elapsed
        } else {
            1.0
        };
        self.earned = self.earned * remaining + self.share * new * fresh;
        self.reserve = (self.reserve + self.floor * elapsed).min(self.floor * memory);
        self.requests = self.requests.max(requests);
        self.refilled_at = self.refilled_at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RULES: RetryRules = RetryRules {
        attempts: 5,
        initial_backoff: Duration::from_millis(50),
        max_backoff: Duration::from_secs(30),
        multiplier: 1.5,
        jitter: 0.2,
    };

    #[test]
    fn pauses_grow_up_to_the_maximum() {
        let rules = RetryRules {
            jitter: 0.0,
            ..RULES
        };
        let pause = |attempts| rules.backoff(attempts, &mut SeededRng::new(1));
        assert_eq!(pause(1), Duration::from_millis(50));
        assert_eq!(pause(2), Duration::from_millis(75));
        assert_eq!(pause(1000), Duration::from_secs(30));
        assert_eq!(pause(u32::MAX), Duration::from_secs(30));
    }

    proptest! {
        #[test]
        fn jitter_stays_within_its_share_of_the_pause(seed: u64, attempts in 1..30_u32) {
            let exact = RetryRules { jitter: 0.0, ..RULES }.backoff(attempts, &mut SeededRng::new(0));
            let pause = RULES.backoff(attempts, &mut SeededRng::new(seed));
            prop_assert!(pause >= exact.mul_f64(0.799) && pause <= exact.mul_f64(1.201));
        }

        #[test]
        fn granted_retries_never_exceed_share_plus_floor(
            steps in prop::collection::vec((0..50_u64, 0..2000_u64, 0..20_u32), 1..200),
        ) {
            let mut budget = RetryBudget::new(0.1, 10);
            let (mut requests, mut now, mut granted) = (0, Duration::ZERO, 0_u32);
            for (more, millis, retries) in steps {
                requests += more;
                now += Duration::from_millis(millis);
                for _ in 0..retries {
                    granted += u32::from(budget.take(requests, now));
                }
                let most = 0.1 * requests as f64 + 10.0 * (now.as_secs_f64() + 10.0);
                prop_assert!(f64::from(granted) <= most + 1e-6);
            }
        }
    }

    #[test]
    fn as_many_are_available_as_are_granted() {
        let mut budget = RetryBudget::new(0.1, 2);
        let (requests, now) = (55, Duration::from_secs(1));
        let available = budget.available(requests, now);
        assert!(available > 20.0, "{available}");
        let granted = (0..100).filter(|_| budget.take(requests, now)).count();
        assert!((granted as f64 - available).abs() < 0.5, "{granted}");
        assert!(budget.available(requests, now) < 1.0);
    }

    #[test]
    fn share_of_traffic_is_granted_without_a_floor() {
        let mut budget = RetryBudget::new(0.1, 0);
        let mut granted = 0;
        for request in 1..=1000_u64 {
            let now = Duration::from_millis(request * 10);
            granted += u32::from(budget.take(request, now));
        }
        assert!((90..=100).contains(&granted), "{granted}");
    }

    #[test]
    fn retries_earned_over_a_quiet_day_have_faded() {
        let mut budget = RetryBudget::new(0.1, 10);
        let day = Duration::from_hours(24);
        let granted = (0..100_000).filter(|_| budget.take(8_640_000, day)).count();
        // 100 requests per second: the share of ten seconds, and the floor of ten seconds.
        assert!((200..=210).contains(&granted), "{granted}");
    }
}
