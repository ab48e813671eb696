//! How old the requests in progress are.

use std::array;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::IntGaugeVec;
use slab::Slab;
use tokio::time::Instant;

/// Bounds of ages, seconds.
const BOUNDS: [u64; 11] = [
    30, 60, 180, 300, 600, 1200, 3600, 7200, 14_400, 28_800, 86_400,
];
/// Lists of requests, so that lanes need not wait for each other.
const SHARDS: usize = 16;

/// When the requests in progress began.
#[derive(Debug)]
pub(crate) struct RequestAges([Shard; SHARDS]);

/// A cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Shard(Mutex<Slab<Instant>>);

/// The place of a request in the list.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AgeEntry {
    shard: usize,
    key: usize,
}

impl Default for RequestAges {
    fn default() -> Self {
        Self(array::from_fn(|_| Shard::default()))
    }
}

impl RequestAges {
    /// A request of this lane has begun.
    pub(crate) fn enter(&self, lane: usize, started: Instant) -> AgeEntry {
        let shard = lane % SHARDS;
        let key = self.0[shard].list().insert(started);
        AgeEntry { shard, key }
    }

    /// It has ended.
    pub(crate) fn leave(&self, entry: AgeEntry) {
        self.0[entry.shard].list().try_remove(entry.key);
    }

    /// Sets a gauge for every range of ages.
    pub(super) fn show(&self, gauge: &IntGaugeVec) {
        let now = Instant::now();
        let mut counts = [0; BOUNDS.len() + 1];
        for shard in &self.0 {
            for (_, started) in shard.list().iter() {
                counts[range_of(now.saturating_duration_since(*started))] += 1;
            }
        }
        for (range, count) in counts.into_iter().enumerate() {
            let below = range.checked_sub(1).and_then(|at| BOUNDS.get(at));
            let gt = below.unwrap_or(&0).to_string();
            let le = BOUNDS.get(range).map_or("+Inf".to_owned(), u64::to_string);
            gauge.with_label_values(&[&gt, &le]).set(count);
        }
    }
}

/// The range of an age: above one bound, and at most the next.
fn range_of(age: Duration) -> usize {
    BOUNDS.partition_point(|bound| age > Duration::from_secs(*bound))
}

impl Shard {
    fn list(&self) -> MutexGuard<'_, Slab<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::super::Metrics;
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn requests_are_counted_by_age_until_they_end() {
        let metrics = Metrics::new(None).unwrap();
        let ages = metrics.ages();
        let old = ages.enter(3, Instant::now());
        let shown = |gt: &str, le: &str| {
            metrics.show_ages();
            let page = metrics.render().unwrap();
            let name = format!("smg_http_inflight_request_age_count{{gt=\"{gt}\",le=\"{le}\"}} ");
            let (_, rest) = page.split_once(&name).unwrap();
            rest.split('\n').next().unwrap().to_owned()
        };
        assert_eq!(
            (shown("0", "30"), shown("30", "60")),
            ("1".into(), "0".into())
        );
        advance(Duration::from_secs(30)).await;
        let new = ages.enter(3 + SHARDS, Instant::now());
        assert_eq!(shown("0", "30"), "2");
        advance(Duration::from_secs(1)).await;
        assert_eq!(
            (shown("0", "30"), shown("30", "60")),
            ("1".into(), "1".into())
        );
        advance(Duration::from_hours(24)).await;
        assert_eq!(shown("86400", "+Inf"), "2");
        ages.leave(old);
        ages.leave(new);
        assert_eq!(shown("86400", "+Inf"), "0");
    }
}
