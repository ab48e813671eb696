//! What the options say of the fair order.

use std::time::Duration;

use routing::FairRules;

use super::error::ConfigError;
use super::options::Options;
use super::queue_order::QueueOrder;

/// How the order is fair; `None` where it is that of arrival.
pub(super) fn fair_rules(options: &Options) -> Option<FairRules> {
    #[expect(clippy::cast_sign_loss, reason = "shares below 0 are refused")]
    let batch_permille = (options.queue_batch_share * 1000.0).round() as u32;
    (options.queue_order == QueueOrder::Fair).then(|| FairRules {
        batch_permille,
        starvation: Duration::from_secs(options.queue_starvation_secs),
    })
}

/// Checks the shares and bounds of classes.
pub(super) fn check_fairness(options: &Options) -> Result<(), ConfigError> {
    let share = options.queue_batch_share;
    if !(0.0..=0.5).contains(&share) {
        let why = "must be between 0 and 0.5";
        return Err(ConfigError::invalid("queue_batch_share", share, why));
    }
    if options.queue_starvation_secs == 0 {
        let why = "must be at least 1";
        return Err(ConfigError::invalid("queue_starvation_secs", 0, why));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_that_of_arrival_unless_it_is_to_be_fair() {
        assert_eq!(fair_rules(&Options::default()), None);
        let fair = Options {
            queue_order: QueueOrder::Fair,
            queue_batch_share: 0.25,
            queue_starvation_secs: 7,
            ..Options::default()
        };
        let rules = FairRules {
            batch_permille: 250,
            starvation: Duration::from_secs(7),
        };
        assert_eq!(fair_rules(&fair), Some(rules));
    }

    #[test]
    fn shares_and_bounds_out_of_range_are_refused_by_name() {
        for share in [-0.1, 0.6, f64::NAN] {
            let options = Options {
                queue_batch_share: share,
                ..Options::default()
            };
            let error = check_fairness(&options).unwrap_err().to_string();
            assert!(error.contains("'queue_batch_share'"), "{error}");
        }
        let options = Options {
            queue_starvation_secs: 0,
            ..Options::default()
        };
        let error = check_fairness(&options).unwrap_err().to_string();
        assert!(error.contains("'queue_starvation_secs'"), "{error}");
    }
}
