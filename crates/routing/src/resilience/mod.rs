//! The consequences of failures: for a request, for a worker's breaker, and for the fleet.

mod breaker;
mod health;
mod outcome;
mod outlier;
mod pair_fault;
mod retry;
mod slow_start;
mod tier;

pub use breaker::{Breaker, BreakerRules, Circuit, Trial};
pub use health::{Health, Probe, Thresholds, Verdict};
pub use outcome::{BreakerSignal, Consequence, Outcome, Retry};
pub use outlier::{Ejection, OutlierReason, Outliers, Window};
pub use pair_fault::PairFault;
pub use retry::{RetryBudget, RetryRules};
pub use slow_start::{Turns, ramp};
pub use tier::{Standing, Tier, is_panicking};
