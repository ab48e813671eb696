//! The replication discount: a prefix that many workers hold is cheaper to replicate.

/// For each worker, the blocks that it lacks and others hold, each counted as one over the
/// number of its holders.
///
/// To replicate a block that one worker holds (a conversation) is work done twice. A block that
/// many hold (a system prompt) is requested often: one more replica will be used as well, and
/// takes load off the others.
#[derive(Debug, Default)]
pub struct ReplicationDiscount {
    /// By number of leading blocks that a worker holds.
    lacking: Vec<f64>,
}

impl ReplicationDiscount {
    /// Reads the number of leading blocks that each worker holds; earlier numbers are dropped.
    pub fn survey(&mut self, matched: impl Iterator<Item = u32>) {
        self.lacking.clear();
        // Most hold nothing: they are counted apart, for a sum in memory is slow.
        let mut without = 0.0;
        for depth in matched.map(|blocks| blocks as usize) {
            if depth == 0 {
                without += 1.0;
                continue;
            }
            if self.lacking.len() <= depth {
                self.lacking.resize(depth + 1, 0.0);
            }
            self.lacking[depth] += 1.0;
        }
        if let Some(first) = self.lacking.first_mut() {
            *first = without;
        }
        // Each entry counts the workers of its depth; from the back they add up to holders.
        let (mut holders, mut share, mut sum) = (0.0, 0.0, 0.0);
        for entry in self.lacking.iter_mut().rev() {
            let ending = std::mem::replace(entry, sum);
            if ending > 0.0 {
                holders += ending;
                share = 1.0 / holders;
            }
            sum += share;
        }
    }

    /// The most leading blocks that any worker holds.
    pub fn longest(&self) -> u32 {
        self.lacking.len().saturating_sub(1) as u32
    }

    /// The discounted number of blocks that a worker with `matched` leading blocks lacks of the
    /// longest match.
    pub fn lacking(&self, matched: u32) -> f64 {
        self.lacking.get(matched as usize).copied().unwrap_or(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn missing_block_counts_as_one_over_its_holders() {
        let mut replication = ReplicationDiscount::default();
        replication.survey([0, 7, 4, 0, 4].into_iter());
        assert_eq!(replication.longest(), 7);
        assert!(replication.lacking(7).abs() < 1e-9);
        assert!((replication.lacking(4) - 3.0).abs() < 1e-9);
        assert!((replication.lacking(0) - (3.0 + 4.0 / 3.0)).abs() < 1e-9);
    }

    #[test]
    fn no_matches_leave_nothing_to_replicate() {
        let mut replication = ReplicationDiscount::default();
        replication.survey([9].into_iter());
        replication.survey([0, 0].into_iter());
        assert_eq!((replication.longest(), replication.lacking(0)), (0, 0.0));
        replication.survey([].into_iter());
        assert_eq!((replication.longest(), replication.lacking(3)), (0, 0.0));
    }

    proptest! {
        #[test]
        fn lacking_is_the_sum_over_missing_blocks(matched in prop::collection::vec(0u32..40, 1..20)) {
            let mut replication = ReplicationDiscount::default();
            replication.survey(matched.iter().copied());
            let most = *matched.iter().max().unwrap();
            for own in &matched {
                let holders = |block| matched.iter().filter(|depth| **depth > block).count();
                let sum: f64 = (*own..most).map(|block| 1.0 / holders(block) as f64).sum();
                prop_assert!((replication.lacking(*own) - sum).abs() < 1e-9);
            }
        }
    }
}
