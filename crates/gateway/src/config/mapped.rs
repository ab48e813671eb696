//! Options of other gateways that are accepted, though what they tune is not tuned here.

use super::error::ConfigError;
use super::options::Options;

/// An option that is set, and what happens instead of what it tunes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapped {
    pub(crate) option: &'static str,
    pub(crate) instead: &'static str,
}

const RATE: &str = "cache_aware_prefill_backlog_rate";
const HOP_FACTOR: &str = "cache_aware_prefill_backlog_hop_factor";
const HOP_SCALE: &str = "cache_aware_prefill_backlog_hop_scale";

/// The backlog that it switches on is always counted; the number is what is not used.
const RATE_INSTEAD: &str = "cache_aware always counts a worker's backlog, by the prompt tokens queued there until the first byte of their \
     replies; no rate is assumed";
const HOP_INSTEAD: &str =
    "cache_aware computes what leaving a warm worker costs from the share of workers that are busy";

/// Checks the values of the backlog options.
pub(super) fn check_backlog(options: &Options) -> Result<(), ConfigError> {
    let rules = [
        (RATE, options.cache_aware_prefill_backlog_rate, 0.0),
        (
            HOP_FACTOR,
            options.cache_aware_prefill_backlog_hop_factor,
            1.0,
        ),
        (
            HOP_SCALE,
            options.cache_aware_prefill_backlog_hop_scale,
            0.0,
        ),
    ];
    for (field, value, low) in rules {
        if !value.is_finite() || value < low {
            let why = format!("must be a finite number of at least {low}");
            return Err(ConfigError::invalid(field, value, why));
        }
    }
    Ok(())
}

/// The options that are set to other than their defaults and tune nothing.
pub(crate) fn mapped(options: &Options) -> Vec<Mapped> {
    let unset = Options::default();
    let differs = |value: f64, default: f64| value.to_bits() != default.to_bits();
    let all = [
        (
            options.cache_aware_prefill_backlog_rate > 0.0,
            RATE,
            RATE_INSTEAD,
        ),
        (
            differs(
                options.cache_aware_prefill_backlog_hop_factor,
                unset.cache_aware_prefill_backlog_hop_factor,
            ),
            HOP_FACTOR,
            HOP_INSTEAD,
        ),
        (
            differs(
                options.cache_aware_prefill_backlog_hop_scale,
                unset.cache_aware_prefill_backlog_hop_scale,
            ),
            HOP_SCALE,
            HOP_INSTEAD,
        ),
    ];
    let set = all.into_iter().filter(|(is_set, ..)| *is_set);
    set.map(|(_, option, instead)| Mapped { option, instead })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::*;

    fn names(change: impl FnOnce(&mut Options)) -> Vec<&'static str> {
        let mut options = Options::default();
        change(&mut options);
        check(&options).unwrap();
        mapped(&options).iter().map(|it| it.option).collect()
    }

    #[test]
    fn backlog_options_are_accepted_and_those_that_are_set_are_named() {
        assert!(names(|_| {}).is_empty());
        assert_eq!(
            names(|o| o.cache_aware_prefill_backlog_rate = 8000.0),
            [RATE]
        );
        let hop = names(|o| {
            o.cache_aware_prefill_backlog_hop_factor = 1.0;
            o.cache_aware_prefill_backlog_hop_scale = 0.0;
        });
        assert_eq!(hop, [HOP_FACTOR, HOP_SCALE]);
    }

    #[test]
    fn backlog_values_out_of_range_are_refused_by_name() {
        type Set = fn(&mut Options, f64);
        let cases: [(&str, Set, f64); 3] = [
            (RATE, |o, to| o.cache_aware_prefill_backlog_rate = to, -1.0),
            (
                HOP_FACTOR,
                |o, to| o.cache_aware_prefill_backlog_hop_factor = to,
                0.9,
            ),
            (
                HOP_SCALE,
                |o, to| o.cache_aware_prefill_backlog_hop_scale = to,
                -0.1,
            ),
        ];
        for (name, set, low) in cases {
            for wrong in [low, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                let mut options = Options::default();
                set(&mut options, wrong);
                let error = check(&options).unwrap_err().to_string();
                assert!(error.contains(name), "{error}");
            }
        }
    }
}
