//! The memory that request bodies may take, all together.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use prometheus::IntGauge;

use crate::error::Error;

/// Bodies up to this size are not counted: clients are bounded in number, and most bodies need
/// no shared counter so.
const UNCOUNTED: u64 = 64 * 1024;
/// Bytes that are taken at a time as a body grows.
const STEP: u64 = 256 * 1024;

/// Bytes that bodies may take, and do.
#[derive(Debug)]
pub(crate) struct BodyBudget {
    limit: u64,
    used: AtomicU64,
    /// Shows `used` in the metrics.
    gauge: IntGauge,
}

/// The share of one body, given back when dropped.
#[derive(Debug)]
pub(crate) struct BodyShare {
    budget: Arc<BodyBudget>,
    bytes: u64,
}

impl BodyBudget {
    /// A budget of `limit` bytes; `gauge` shows what is taken of it.
    pub(crate) fn new(limit: u64, gauge: IntGauge) -> Arc<Self> {
        Arc::new(Self {
            limit,
            used: AtomicU64::new(0),
            gauge,
        })
    }

    /// The share of a body that has not begun.
    pub(crate) fn share(self: &Arc<Self>) -> BodyShare {
        BodyShare {
            budget: Arc::clone(self),
            bytes: 0,
        }
    }
}

impl BodyShare {
    /// The body has so many bytes now.
    ///
    /// # Errors
    /// [`Error::BodyMemory`] when all bodies together would take more than they may.
    pub(crate) fn grow_to(&mut self, bytes: u64) -> Result<(), Error> {
        if bytes <= UNCOUNTED || bytes <= self.bytes {
            return Ok(());
        }
        let (wanted, budget) = (bytes.next_multiple_of(STEP), &self.budget);
        let more = wanted - self.bytes;
        let within = |used: u64| {
            let sum = used.saturating_add(more);
            (sum <= budget.limit).then_some(sum)
        };
        let taken = budget.used.fetch_update(Relaxed, Relaxed, within);
        taken.map_err(|_| Error::BodyMemory {
            limit: budget.limit,
        })?;
        budget.gauge.add(more.cast_signed());
        self.bytes = wanted;
        Ok(())
    }
}

impl Drop for BodyShare {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.budget.used.fetch_sub(self.bytes, Relaxed);
            self.budget.gauge.sub(self.bytes.cast_signed());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_together_stay_below_the_limit_and_give_back_what_they_took() {
        let gauge = IntGauge::new("taken", "bytes").unwrap();
        let budget = BodyBudget::new(4 * STEP, gauge.clone());
        let mut one = budget.share();
        one.grow_to(STEP + 1).unwrap();
        one.grow_to(2 * STEP).unwrap();
        let mut other = budget.share();
        other.grow_to(2 * STEP).unwrap();
        assert!(matches!(
            other.grow_to(2 * STEP + 1),
            Err(Error::BodyMemory { .. })
        ));
        assert!(budget.share().grow_to(UNCOUNTED + 1).is_err());
        budget.share().grow_to(UNCOUNTED).unwrap();
        assert_eq!(gauge.get(), 4 * STEP.cast_signed());
        drop(one);
        other.grow_to(4 * STEP).unwrap();
        drop(other);
        assert_eq!((budget.used.load(Relaxed), gauge.get()), (0, 0));
    }
}
