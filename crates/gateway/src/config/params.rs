//! The options that policies read, as policies want them.

use std::time::Duration;

use routing::policy::Balance;
use routing::{BreakerRules, Params, RetryRules};

use super::Options;

/// No time is longer: "never" is spelt with large numbers, and sums of times must not overflow.
const LONGEST: Duration = Duration::from_hours(24 * 365);

/// An option in seconds as a time that can be counted with.
pub(crate) fn seconds(option: u64) -> Duration {
    Duration::from_secs(option).min(LONGEST)
}

impl Options {
    /// How often a request is tried, and after which pauses.
    pub(crate) fn retry_rules(&self) -> RetryRules {
        RetryRules {
            attempts: if self.disable_retries {
                1
            } else {
                self.retry_max_retries.max(1)
            },
            initial_backoff: Duration::from_millis(self.retry_initial_backoff_ms),
            max_backoff: Duration::from_millis(self.retry_max_backoff_ms),
            multiplier: self.retry_backoff_multiplier,
            jitter: self.retry_jitter_factor,
        }
    }

    /// When circuit breakers open and close; `None` when they are off.
    pub(crate) fn breaker_rules(&self) -> Option<BreakerRules> {
        (!self.disable_circuit_breaker).then(|| BreakerRules {
            failures: self.cb_failure_threshold,
            successes: self.cb_success_threshold,
            open_for: Duration::from_secs(self.cb_timeout_duration_secs),
            window: Duration::from_secs(self.cb_window_duration_secs),
        })
    }

    /// The tunables of all policies.
    ///
    /// The guards of `cache_aware` are on only when somebody set them: left at their defaults
    /// they would cost latency and gain nothing, because its costs already weigh both.
    pub(crate) fn policy_params(&self) -> Params {
        let unset = Self::default();
        #[expect(
            clippy::float_cmp,
            reason = "asks whether the value was touched, not how near it is"
        )]
        let threshold_set = self.cache_threshold != unset.cache_threshold;
        #[expect(
            clippy::float_cmp,
            reason = "asks whether the value was touched, not how near it is"
        )]
        let balance_set = self.balance_rel_threshold != unset.balance_rel_threshold
            || self.balance_abs_threshold != unset.balance_abs_threshold;
        Params {
            index_bytes: usize::try_from(self.prefix_index_bytes).unwrap_or(usize::MAX),
            index_text: (self.max_tree_size != unset.max_tree_size).then_some(self.max_tree_size),
            cache_threshold: threshold_set.then_some(self.cache_threshold),
            balance: balance_set.then_some(Balance {
                relative: self.balance_rel_threshold,
                absolute: self.balance_abs_threshold,
            }),
            bucket_adjust_interval: Duration::from_secs(self.bucket_adjust_interval_secs),
            assignment: self.assignment_mode,
            max_idle: Duration::from_secs(self.max_idle_secs),
            ..Params::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_are_off_until_they_are_set() {
        let params = Options::default().policy_params();
        assert_eq!((params.cache_threshold, params.balance), (None, None));
        let options = Options {
            cache_threshold: 0.5,
            balance_abs_threshold: 8,
            ..Options::default()
        };
        let params = options.policy_params();
        assert_eq!(params.cache_threshold, Some(0.5));
        assert_eq!(
            params.balance,
            Some(Balance {
                relative: 1.5,
                absolute: 8
            })
        );
    }
}
