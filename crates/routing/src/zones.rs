//! Zones: workers of the gateway's own zone come before those of others.

use crate::Candidate;

/// How a policy heeds the zones of workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZoneRule {
    /// Its cost has the price of crossing in it.
    ByCost,
    /// It chooses among the workers of the own zone, while there are some.
    NearFirst,
    /// It does not: keys and lengths of prompts decide.
    Ignored,
}

/// Why a request crosses to another zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crossing {
    /// The cost there is lower by more than the price.
    Cost,
    /// No worker of the own zone takes it.
    Unavailable,
    /// Zones did not matter to the choice.
    Policy,
}

impl Crossing {
    /// Every reason.
    pub const ALL: [Self; 3] = [Self::Cost, Self::Unavailable, Self::Policy];

    /// The name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cost => "cost",
            Self::Unavailable => "unavailable",
            Self::Policy => "policy",
        }
    }
}

impl ZoneRule {
    /// Whether the workers of other zones are to be left out.
    pub fn leaves_out_far(self, from: &[Candidate]) -> bool {
        self == Self::NearFirst && from.iter().any(is_near) && !from.iter().all(is_near)
    }

    /// Why a request goes to the candidate in this slot of another zone; `None` where it stays.
    pub fn crossing(self, from: &[Candidate], slot: usize) -> Option<Crossing> {
        let chosen = from.iter().find(|candidate| candidate.slot == slot)?;
        if is_near(chosen) {
            return None;
        }
        Some(match self {
            Self::Ignored => Crossing::Policy,
            Self::ByCost | Self::NearFirst if from.iter().any(is_near) => Crossing::Cost,
            Self::ByCost | Self::NearFirst => Crossing::Unavailable,
        })
    }
}

/// Whether a request gets there without leaving the own zone.
pub fn is_near(candidate: &Candidate) -> bool {
    candidate.crossing_tokens == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PolicyKind;
    use crate::candidate::tests::fleet;

    fn zoned(far: &[bool]) -> Vec<Candidate> {
        let mut all = fleet(far.len());
        for (candidate, far) in all.iter_mut().zip(far) {
            candidate.crossing_tokens = if *far { 500 } else { 0 };
        }
        all
    }

    #[test]
    fn policies_heed_zones_by_kind() {
        assert_eq!(PolicyKind::CacheAware.zone_rule(), ZoneRule::ByCost);
        assert_eq!(PolicyKind::LeastLoad.zone_rule(), ZoneRule::NearFirst);
        assert_eq!(PolicyKind::RoundRobin.zone_rule(), ZoneRule::NearFirst);
        for kind in [
            PolicyKind::Manual,
            PolicyKind::PrefixHash,
            PolicyKind::Bucket,
        ] {
            assert_eq!(kind.zone_rule(), ZoneRule::Ignored);
        }
    }

    #[test]
    fn far_workers_are_left_out_only_while_some_are_near() {
        let rule = ZoneRule::NearFirst;
        assert!(rule.leaves_out_far(&zoned(&[true, false])));
        assert!(!rule.leaves_out_far(&zoned(&[true, true])));
        assert!(!rule.leaves_out_far(&zoned(&[false, false])));
        assert!(!ZoneRule::ByCost.leaves_out_far(&zoned(&[true, false])));
        assert!(!ZoneRule::Ignored.leaves_out_far(&zoned(&[true, false])));
    }

    #[test]
    fn crossing_has_a_reason_and_staying_has_none() {
        let mixed = zoned(&[true, false]);
        assert_eq!(ZoneRule::ByCost.crossing(&mixed, 0), Some(Crossing::Cost));
        assert_eq!(ZoneRule::ByCost.crossing(&mixed, 1), None);
        assert_eq!(
            ZoneRule::Ignored.crossing(&mixed, 0),
            Some(Crossing::Policy)
        );
        let far = zoned(&[true, true]);
        for rule in [ZoneRule::ByCost, ZoneRule::NearFirst] {
            assert_eq!(rule.crossing(&far, 1), Some(Crossing::Unavailable));
        }
        assert_eq!(ZoneRule::ByCost.crossing(&far, 7), None);
    }
}
