//! What other gateways do that this one does not see.

use crate::replicas::Sight;

/// Costs that differ by less than this share of a prompt's new tokens are equal, where other gateways
/// say what they do.
///
/// The number of tokens is an estimate from bytes, and is off by about a tenth. So is how much of a
/// prompt before this one is computed by now. A larger share costs waiting time
/// (`bench/policies.md`), and a gateway that is alone has no reason to pay for agreement.
const RESOLUTION: f64 = 0.1;
/// The same where no traffic is seen: what others have queued differs from worker to worker by about
/// two prompts.
const BLIND_RESOLUTION: f64 = 2.0;
/// Gateways that say what they do are seen late: in a few milliseconds a busy fleet takes about as
/// many requests as a gateway of its own sends.
const LATE: f64 = 2.0;

/// The part of the traffic that a gateway sees.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Unseen {
    /// The traffic to the fleet, in multiples of what is seen.
    gateways: f64,
    resolution: f64,
}

impl Unseen {
    /// So many gateways by the options, and this is known of them.
    pub(super) fn new(by_options: u32, sight: Sight) -> Self {
        let gateways = match sight {
            Sight::Shared => {
                return Self {
                    gateways: LATE,
                    resolution: RESOLUTION,
                };
            }
            Sight::Unheard => by_options,
            Sight::Apart(last) => by_options.max(last),
        };
        let gateways = f64::from(gateways.max(1));
        Self {
            gateways,
            resolution: BLIND_RESOLUTION * (1.0 - 1.0 / gateways),
        }
    }

    /// Costs of a prompt with so many tokens that no worker holds are equal if they differ by no more
    /// tokens than this.
    pub(super) fn margin(self, new_tokens: f64) -> f64 {
        self.resolution * new_tokens
    }

    /// The share of workers that prefill, where such a share is seen to: that others have queued
    /// something at a worker does not depend on what this gateway has.
    pub(super) fn utilisation(self, share: f64) -> f64 {
        if self.gateways > 1.0 {
            1.0 - (1.0 - share).powf(self.gateways)
        } else {
            share
        }
    }

    /// Tokens that others have queued at a worker, where so many are seen on average.
    pub(super) fn queued_tokens(self, mean: f64) -> f64 {
        (self.gateways - 1.0) * mean
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateway_that_is_alone_takes_the_fleet_as_it_sees_it() {
        let alone = Unseen::new(1, Sight::Unheard);
        assert_eq!(alone, Unseen::new(0, Sight::Unheard));
        assert!(alone.margin(200.0).abs() < f64::EPSILON);
        assert!((alone.utilisation(0.3) - 0.3).abs() < f64::EPSILON);
        assert!(alone.queued_tokens(70.0).abs() < f64::EPSILON);
    }

    #[test]
    fn the_less_a_gateway_sees_the_busier_it_takes_the_fleet_for_and_the_less_it_resolves() {
        let by_number = [1, 2, 4, 8, 64].map(|number| Unseen::new(number, Sight::Unheard));
        for pair in by_number.windows(2) {
            assert!(pair[0].margin(100.0) < pair[1].margin(100.0));
            assert!(pair[0].utilisation(0.1) < pair[1].utilisation(0.1));
            assert!(pair[0].queued_tokens(5.0) < pair[1].queued_tokens(5.0));
        }
        let [.., last] = by_number;
        assert!(last.utilisation(0.5) <= 1.0 && last.margin(100.0) < 200.0);
    }

    #[test]
    fn others_that_are_heard_are_nearly_seen_and_count_in_full_when_they_fall_silent() {
        let shared = Unseen::new(8, Sight::Shared);
        assert_eq!(shared, Unseen::new(1, Sight::Shared));
        assert!(shared.margin(1.0) < Unseen::new(2, Sight::Unheard).margin(1.0));
        assert_eq!(
            Unseen::new(1, Sight::Apart(8)),
            Unseen::new(8, Sight::Unheard)
        );
        assert_eq!(
            Unseen::new(9, Sight::Apart(8)),
            Unseen::new(9, Sight::Unheard)
        );
    }
}
