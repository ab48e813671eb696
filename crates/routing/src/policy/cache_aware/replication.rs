//! How far a prompt's blocks are spread, and what one more copy of them is charged for.

/// Blocks that others have and a worker lacks, each as one over the number of workers that have
/// it.
///
/// To copy what one worker has (a conversation) is work done twice. What many have is asked for
/// by many (a system prompt): one more copy will be used as well, and takes load from the others.
#[derive(Debug, Default)]
pub struct ReplicationDiscount {
    /// By leading blocks that a worker has.
    charged: Vec<f64>,
}

impl ReplicationDiscount {
    /// Takes in how many leading blocks each worker has; what was known before is forgotten.
    pub fn survey(&mut self, matched: impl Iterator<Item = u32>) {
        self.charged.clear();
        for depth in matched.map(|blocks| blocks as usize) {
            if self.charged.len() <= depth {
                self.charged.resize(depth + 1, 0.0);
            }
            self.charged[depth] += 1.0;
        }
        let (mut holders, mut sum) = (0.0, 0.0);
        for charged in self.charged.iter_mut().rev() {
            holders += std::mem::replace(charged, sum);
            sum += 1.0 / holders;
        }
    }

    /// The most leading blocks that any worker has.
    pub fn longest(&self) -> u32 {
        self.charged.len().saturating_sub(1) as u32
    }

    /// What a worker that has `matched` leading blocks lacks of the longest, by how rare it is.
    pub fn lacking(&self, matched: u32) -> f64 {
        self.charged.get(matched as usize).copied().unwrap_or(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_one_has_counts_in_full_and_what_many_have_as_their_share() {
        let mut replication = ReplicationDiscount::default();
        replication.survey([0, 7, 4, 0, 4].into_iter());
        assert_eq!(replication.longest(), 7);
        assert!(replication.lacking(7).abs() < 1e-9);
        assert!((replication.lacking(4) - 3.0).abs() < 1e-9);
        assert!((replication.lacking(0) - (3.0 + 4.0 / 3.0)).abs() < 1e-9);
    }

    #[test]
    fn nobody_lacks_what_nobody_has() {
        let mut replication = ReplicationDiscount::default();
        replication.survey([9].into_iter());
        replication.survey([0, 0].into_iter());
        assert_eq!((replication.longest(), replication.lacking(0)), (0, 0.0));
        replication.survey([].into_iter());
        assert_eq!((replication.longest(), replication.lacking(3)), (0, 0.0));
    }

    proptest! {
        #[test]
        fn it_is_the_sum_over_the_missing_blocks(matched in prop::collection::vec(0u32..40, 1..20)) {
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
