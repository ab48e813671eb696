//! What a client's key may take: requests and tokens per minute, and requests at a time.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

use routing::quota::{Bucket, Quota, RateLimit, SharedLimits, SlotCount};
use tokio::time::Instant;

/// The limits of a key, by the names that `LiteLLM`'s keys have for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KeyRules {
    pub(super) rpm_limit: Option<NonZeroU32>,
    pub(super) tpm_limit: Option<NonZeroU32>,
    pub(super) max_parallel_requests: Option<NonZeroU32>,
}

const RPM: &str = "rpm_limit";
const TPM: &str = "tpm_limit";
const PARALLEL: &str = "max_parallel_requests";

/// Where other gateways share the limits of a key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sharing<'a> {
    pub(super) limits: &'a SharedLimits,
    /// The key's name, which is the same in all gateways.
    pub(super) key: &'a str,
}

/// The limits in force, and what is left of them.
#[derive(Debug)]
pub(super) struct KeyLimits {
    pub(super) rules: KeyRules,
    requests: Option<Arc<Counter>>,
    tokens: Option<Arc<Counter>>,
    at_a_time: Option<Arc<SlotCount>>,
}

/// A request's share of its key's limits, given back when dropped.
#[derive(Debug)]
pub(crate) struct KeyShare {
    slot: Option<Arc<SlotCount>>,
}

/// A request's tokens of its key's limit: an estimate, until they are counted. Given back when dropped.
#[derive(Debug)]
pub(crate) struct TokenShare {
    limits: Arc<KeyLimits>,
    taken: u64,
}

/// A limit that is reached, and when it may not be any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reached {
    pub(super) limit: &'static str,
    pub(super) wait: Duration,
}

impl KeyLimits {
    /// `None` where there are none. What has been taken of a limit that was the same before counts.
    pub(super) fn new(
        rules: KeyRules,
        before: Option<&Self>,
        sharing: Option<Sharing<'_>>,
    ) -> Option<Arc<Self>> {
        let new_slots = |most: NonZeroU32| {
            let slots = Arc::new(SlotCount::new(most.get().into()));
            if let Some(Sharing { limits, key }) = sharing {
                limits.add_slots(&format!("{PARALLEL}:{key}"), &slots);
            }
            slots
        };
        let kept = |name, counter: Option<&Arc<Counter>>, limit: Option<NonZeroU32>| {
            let limit = limit?;
            let same = counter.filter(|counter| counter.per_minute() == limit);
            Some(same.map_or_else(|| Counter::new(name, limit, sharing), Arc::clone))
        };
        let requests = before.and_then(|before| before.requests.as_ref());
        let tokens = before.and_then(|before| before.tokens.as_ref());
        let most = rules.max_parallel_requests;
        let slots = before.filter(|before| before.rules.max_parallel_requests == most);
        let slots = slots.and_then(|before| before.at_a_time.clone());
        let limits = Self {
            rules,
            requests: kept(RPM, requests, rules.rpm_limit),
            tokens: kept(TPM, tokens, rules.tpm_limit),
            at_a_time: slots.or_else(|| most.map(new_slots)),
        };
        let some = limits.requests.is_some() || limits.tokens.is_some();
        (some || limits.at_a_time.is_some()).then(|| Arc::new(limits))
    }

    /// Lets a request in, or says which limit is reached; none waits.
    pub(super) fn enter(&self) -> Result<KeyShare, Reached> {
        if self.at_a_time.as_ref().is_some_and(|slots| !slots.take()) {
            return Err(Reached {
                limit: PARALLEL,
                wait: Duration::from_secs(1),
            });
        }
        // From here on it is given back, also where another limit is reached.
        let share = KeyShare {
            slot: self.at_a_time.clone(),
        };
        if let Some(tokens) = &self.tokens {
            // Before the body is read, so that its tokens are not known: only a debt counts.
            tokens.take(0).map_err(Reached::tokens)?;
        }
        if let Some(requests) = &self.requests {
            let limit = RPM;
            requests.take(1).map_err(|wait| Reached { limit, wait })?;
        }
        Ok(share)
    }

    /// Takes so many tokens, or says how long they will be missing; `None` where they are not limited.
    pub(super) fn take_tokens(
        self: &Arc<Self>,
        tokens: u64,
    ) -> Result<Option<TokenShare>, Reached> {
        let Some(rate) = &self.tokens else {
            return Ok(None);
        };
        rate.take(tokens).map_err(Reached::tokens)?;
        Ok(Some(TokenShare {
            limits: Arc::clone(self),
            taken: tokens,
        }))
    }
}

impl Drop for KeyShare {
    fn drop(&mut self) {
        if let Some(slots) = &self.slot {
            slots.give_back();
        }
    }
}

impl Reached {
    fn tokens(wait: Duration) -> Self {
        Self { limit: TPM, wait }
    }
}

impl TokenShare {
    /// The tokens have been counted: more or fewer than were taken.
    pub(crate) fn settle(mut self, counted: u64) {
        if let Some(rate) = &self.limits.tokens {
            rate.add(counted.saturating_sub(self.taken));
        }
        self.taken = self.taken.saturating_sub(counted);
    }
}

impl Drop for TokenShare {
    fn drop(&mut self) {
        if let Some(rate) = &self.limits.tokens {
            rate.give_back(self.taken);
        }
    }
}

/// What counts units of a limit.
#[derive(Debug)]
enum Counter {
    /// This gateway alone.
    Own(Rate),
    /// Several gateways: this one has what it has taken of the limit in advance.
    Shared(NonZeroU32, Arc<Quota>),
}

impl Counter {
    fn new(name: &str, per_minute: NonZeroU32, sharing: Option<Sharing<'_>>) -> Arc<Self> {
        let Some(Sharing { limits, key }) = sharing else {
            return Arc::new(Self::Own(Rate::new(per_minute)));
        };
        let quota = Arc::new(Quota::new(RateLimit {
            units: per_minute.get().into(),
            period: Duration::from_nanos(MINUTE),
        }));
        let bucket: Weak<Quota> = Arc::downgrade(&quota);
        limits.add(&format!("{name}:{key}"), bucket as Weak<dyn Bucket>);
        Arc::new(Self::Shared(per_minute, quota))
    }

    fn per_minute(&self) -> NonZeroU32 {
        match self {
            Self::Own(rate) => rate.per_minute,
            Self::Shared(per_minute, _) => *per_minute,
        }
    }

    fn take(&self, units: u64) -> Result<(), Duration> {
        match self {
            Self::Own(rate) => rate.take(units),
            Self::Shared(_, quota) => quota.take(units),
        }
    }

    fn add(&self, units: u64) {
        match self {
            Self::Own(rate) => rate.add(units),
            Self::Shared(_, quota) => quota.add(units),
        }
    }

    fn give_back(&self, units: u64) {
        match self {
            Self::Own(rate) => rate.give_back(units),
            Self::Shared(_, quota) => quota.give_back(units),
        }
    }
}

/// So many units per minute, up to a minute's worth at once: the generic cell rate algorithm.
#[derive(Debug)]
struct Rate {
    begun: Instant,
    per_minute: NonZeroU32,
    /// When the bucket will be full again, nanoseconds from `begun`; more than a minute ahead where
    /// more was taken than there was.
    full_at: AtomicU64,
}

const MINUTE: u64 = 60_000_000_000;

impl Rate {
    fn new(per_minute: NonZeroU32) -> Self {
        Self {
            begun: Instant::now(),
            per_minute,
            full_at: AtomicU64::new(0),
        }
    }

    fn now(&self) -> u64 {
        self.begun.elapsed().as_nanos() as u64
    }

    /// How long so many units take at the full rate, nanoseconds.
    fn time_of(&self, units: u64) -> u64 {
        let time = u128::from(units) * u128::from(MINUTE) / u128::from(self.per_minute.get());
        u64::try_from(time).unwrap_or(u64::MAX)
    }

    /// Takes so many units, or says how long there will be too few. A full bucket is enough for any
    /// number: what is above a minute's worth is owed.
    fn take(&self, units: u64) -> Result<(), Duration> {
        let (now, time) = (self.now(), self.time_of(units));
        let most = now + MINUTE - time.min(MINUTE);
        let next = |full_at: u64| {
            let full_at = full_at.max(now);
            (full_at <= most).then(|| full_at.saturating_add(time))
        };
        let taken = self.full_at.fetch_update(Relaxed, Relaxed, next);
        taken
            .map(drop)
            .map_err(|full_at| Duration::from_nanos(full_at.max(now) - most))
    }

    /// So many units more have been used, whether there were any or not.
    fn add(&self, units: u64) {
        let (now, time) = (self.now(), self.time_of(units));
        let next = |full_at: u64| Some(full_at.max(now).saturating_add(time));
        let _ = self.full_at.fetch_update(Relaxed, Relaxed, next);
    }

    /// So many units have not been used after all.
    fn give_back(&self, units: u64) {
        let time = self.time_of(units);
        let next = |full_at: u64| Some(full_at.saturating_sub(time));
        let _ = self.full_at.fetch_update(Relaxed, Relaxed, next);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn limits(rpm: u32, at_a_time: u32) -> Option<Arc<KeyLimits>> {
        KeyLimits::new(
            KeyRules {
                rpm_limit: NonZeroU32::new(rpm),
                tpm_limit: None,
                max_parallel_requests: NonZeroU32::new(at_a_time),
            },
            None,
            None,
        )
    }

    #[tokio::test(start_paused = true)]
    async fn minutes_worth_may_come_at_once_and_then_one_per_interval() {
        let limits = limits(60, 0).unwrap();
        assert!((0..60).all(|_| limits.enter().is_ok()));
        let reached = limits.enter().unwrap_err();
        assert_eq!(
            (reached.limit, reached.wait),
            ("rpm_limit", Duration::from_secs(1))
        );
        advance(Duration::from_millis(999)).await;
        assert_eq!(limits.enter().unwrap_err().wait, Duration::from_millis(1));
        advance(Duration::from_millis(1)).await;
        assert!(limits.enter().is_ok() && limits.enter().is_err());
        // What is not used is kept for a minute.
        advance(Duration::from_mins(10)).await;
        assert_eq!((0..100).filter(|_| limits.enter().is_ok()).count(), 60);
    }

    #[test]
    fn place_is_given_back_at_the_end_of_its_request() {
        let limits = limits(0, 2).unwrap();
        let (one, _two) = (limits.enter().unwrap(), limits.enter().unwrap());
        assert_eq!(limits.enter().unwrap_err().limit, "max_parallel_requests");
        drop(one);
        assert!(limits.enter().is_ok());
    }

    #[test]
    fn key_without_limits_has_nothing_to_count() {
        assert!(limits(0, 0).is_none());
    }

    fn tokens(tpm: u32) -> Arc<KeyLimits> {
        let limits = KeyLimits::new(
            KeyRules {
                rpm_limit: None,
                tpm_limit: NonZeroU32::new(tpm),
                max_parallel_requests: None,
            },
            None,
            None,
        );
        limits.unwrap()
    }

    fn take(limits: &Arc<KeyLimits>, tokens: u64) -> Result<TokenShare, u64> {
        let taken = limits.take_tokens(tokens);
        taken
            .map(Option::unwrap)
            .map_err(|reached| reached.wait.as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn counted_tokens_replace_the_estimate() {
        let limits = tokens(600);
        take(&limits, 500).unwrap().settle(100);
        take(&limits, 500).unwrap().settle(500);
        assert_eq!(take(&limits, 10).unwrap_err(), 1);
        advance(Duration::from_secs(1)).await;
        // Ten were there; answers are not known before.
        take(&limits, 10).unwrap().settle(310);
        let reached = limits.enter().unwrap_err();
        assert_eq!((reached.limit, reached.wait.as_secs()), ("tpm_limit", 30));
        advance(Duration::from_secs(30)).await;
        assert!(limits.enter().is_ok());
        assert_eq!(take(&limits, 100).unwrap_err(), 10);
        advance(Duration::from_mins(10)).await;
        drop(take(&limits, 600).unwrap());
        assert!(take(&limits, 600).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn prompt_above_a_minutes_worth_passes_once_the_bucket_is_full_and_is_owed() {
        let limits = tokens(600);
        take(&limits, 1).unwrap().settle(1);
        assert!(take(&limits, 6000).is_err());
        advance(Duration::from_secs(1)).await;
        take(&limits, 6000).unwrap().settle(6000);
        assert_eq!(limits.enter().unwrap_err().wait.as_secs(), 540);
        take(&tokens(1), u64::MAX).unwrap().settle(u64::MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn rate_is_exact_where_a_token_takes_less_than_a_nanosecond() {
        let limits = tokens(u32::MAX);
        take(&limits, u64::from(u32::MAX))
            .unwrap()
            .settle(u64::from(u32::MAX));
        assert!(take(&limits, 1_000_000).is_err());
        advance(Duration::from_millis(14)).await;
        assert!(take(&limits, 1_000_000).is_ok());
    }
}
