//! A consistent hash ring over all workers, and walks on it (Karger et al., STOC 1997).

use std::fmt::Write;
use std::iter;
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};

use crate::{Candidate, Candidates};

/// Positions per worker.
const VIRTUAL_NODES: usize = 150;
/// Positions visited one by one; after that the nearest worker is computed.
const LONGEST_WALK: usize = 256;

/// The position of a key on the ring: the first 8 bytes of its BLAKE3 hash, little-endian.
pub(crate) fn position(key: &[u8]) -> u64 {
    let hash = blake3::hash(key);
    let first = hash.as_bytes().first_chunk();
    first.copied().map_or(0, u64::from_le_bytes)
}

/// A ring that many threads read and that a change of members replaces.
///
/// It covers all members, ready or not, so that a worker keeps its keys while it is down. Until
/// the members are known, it covers all candidates seen so far.
#[derive(Debug, Default)]
pub(crate) struct SharedRing {
    current: RwLock<Current>,
}

#[derive(Clone, Debug, Default)]
struct Current {
    ring: Arc<Ring>,
    /// Whether the members are known.
    has_members: bool,
}

impl SharedRing {
    /// Replaces the list of members.
    pub(crate) fn set_members(&self, all: &[Candidate]) {
        let ring = Arc::new(self.current().ring.rebuilt(&[], all.iter()));
        *self.write() = Current {
            ring,
            has_members: true,
        };
    }

    /// The present ring. It is extended by new candidates while the members are unknown.
    pub(crate) fn ring_for(&self, from: Candidates<'_>) -> Arc<Ring> {
        let Current { ring, has_members } = self.current();
        if has_members
            || from
                .iter()
                .all(|candidate| ring.member(candidate).is_some())
        {
            return ring;
        }
        let ring = Arc::new(ring.rebuilt(&ring.members_by_slot, from.iter()));
        let mut current = self.write();
        if !current.has_members {
            current.ring = Arc::clone(&ring);
        }
        ring
    }

    fn current(&self) -> Current {
        let current = self.current.read();
        current.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn write(&self) -> RwLockWriteGuard<'_, Current> {
        self.current.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The worker at which a bounded walk ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Landing<'a> {
    /// The first candidate clockwise.
    Owner(&'a Candidate),
    /// The first candidate clockwise below the bound, because the owner is above it. The owner
    /// itself if all are above.
    Spilled(&'a Candidate),
}

/// The virtual nodes of all workers: `<url>#<i>` for i from 0.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    /// By slot of the fleet.
    members_by_slot: Vec<Option<Arc<RingMember>>>,
    /// Position and slot, ascending.
    points: Vec<(u64, u32)>,
}

#[derive(Debug)]
struct RingMember {
    url: Arc<str>,
    /// Ascending.
    positions: Vec<u64>,
}

impl Ring {
    /// Walks clockwise from `position` to a candidate with at most `max_requests` requests in
    /// flight; `None` if no candidate is on the ring.
    pub(crate) fn bounded<'a>(
        &self,
        from: Candidates<'a>,
        position: u64,
        max_requests: f64,
    ) -> Option<Landing<'a>> {
        let fits = |candidate: &Candidate| candidate.load.requests() as f64 <= max_requests;
        let owner = self.first(from, position, |_| true)?;
        if fits(owner) {
            return Some(Landing::Owner(owner));
        }
        let next = self.first(from, position, fits).unwrap_or(owner);
        Some(Landing::Spilled(next))
    }

    /// The first candidate clockwise from `position` that is acceptable.
    fn first<'a>(
        &self,
        from: Candidates<'a>,
        position: u64,
        acceptable: impl Fn(&Candidate) -> bool,
    ) -> Option<&'a Candidate> {
        let start = self.points.partition_point(|(at, _)| *at < position);
        let (before, after) = self.points.split_at_checked(start)?;
        let near = after.iter().chain(before).take(LONGEST_WALK);
        let is_member = |candidate: &&Candidate| self.member(candidate).is_some();
        near.filter_map(|(_, slot)| from.in_slot(*slot as usize).filter(is_member))
            .find(|candidate| acceptable(candidate))
            .or_else(|| self.nearest(from, position, acceptable))
    }

    /// The same candidate as [`first`](Self::first), in a time that depends on the number of
    /// candidates only.
    fn nearest<'a>(
        &self,
        from: Candidates<'a>,
        position: u64,
        acceptable: impl Fn(&Candidate) -> bool,
    ) -> Option<&'a Candidate> {
        let accepted = from.iter().filter(|candidate| acceptable(candidate));
        let with_distance =
            |candidate| Some((self.member(candidate)?.distance(position)?, candidate));
        let nearest = accepted
            .filter_map(with_distance)
            .min_by_key(|(distance, _)| *distance);
        nearest.map(|(_, candidate)| candidate)
    }

    fn member(&self, candidate: &Candidate) -> Option<&Arc<RingMember>> {
        let member = self.members_by_slot.get(candidate.slot)?.as_ref();
        member.filter(|member| member.url == candidate.url)
    }

    /// A ring over `kept` and `workers`. Workers that are members already are not hashed again.
    fn rebuilt<'c>(
        &self,
        kept: &[Option<Arc<RingMember>>],
        workers: impl Iterator<Item = &'c Candidate>,
    ) -> Self {
        let mut members_by_slot = kept.to_vec();
        for worker in workers {
            if worker.slot >= members_by_slot.len() {
                members_by_slot.resize(worker.slot + 1, None);
            }
            let member = self.member(worker).cloned();
            members_by_slot[worker.slot] =
                Some(member.unwrap_or_else(|| Arc::new(RingMember::new(&worker.url))));
        }
        let mut points: Vec<_> = (0_u32..)
            .zip(&members_by_slot)
            .filter_map(|(slot, member)| Some((slot, member.as_ref()?)))
            .flat_map(|(slot, member)| member.positions.iter().copied().zip(iter::repeat(slot)))
            .collect();
        points.sort_unstable();
        Self {
            members_by_slot,
            points,
        }
    }
}

impl RingMember {
    fn new(url: &Arc<str>) -> Self {
        let mut name = String::new();
        let mut position_of = |node: usize| {
            name.clear();
            // Writing to a string cannot fail.
            let _ = write!(name, "{url}#{node}");
            position(name.as_bytes())
        };
        let mut positions: Vec<_> = (0..VIRTUAL_NODES).map(&mut position_of).collect();
        positions.sort_unstable();
        Self {
            url: Arc::clone(url),
            positions,
        }
    }

    /// The distance clockwise from `position` to the member's nearest virtual node.
    fn distance(&self, position: u64) -> Option<u64> {
        let next = self.positions.partition_point(|at| *at < position);
        let at = self.positions.get(next).or(self.positions.first())?;
        Some(at.wrapping_sub(position))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::candidate::tests::fleet;

    #[test]
    fn position_matches_the_official_test_vector() {
        // The official BLAKE3 test vector of the empty input begins af1349b9f5f9a1a6.
        assert_eq!(position(b""), 0xa6a1_f9f5_b949_13af);
    }

    #[test]
    fn ring_has_all_virtual_nodes_of_every_worker() {
        let ring = Ring::default().rebuilt(&[], fleet(7).iter());
        assert_eq!(ring.points.len(), 7 * VIRTUAL_NODES);
        assert!(ring.points.is_sorted());
    }

    #[test]
    fn change_of_members_keeps_known_positions() {
        let shared = SharedRing::default();
        let all = fleet(4);
        shared.set_members(&all[..3]);
        let before = shared.current().ring;
        shared.set_members(&all);
        let after = shared.current().ring;
        for slot in 0..3 {
            let (old, new) = (&before.members_by_slot[slot], &after.members_by_slot[slot]);
            assert!(Arc::ptr_eq(old.as_ref().unwrap(), new.as_ref().unwrap()));
        }
        assert_eq!(after.points.len(), 4 * VIRTUAL_NODES);
    }

    proptest! {
        #[test]
        fn nearest_finds_the_same_worker_as_a_walk(
            position in any::<u64>(), present in prop::collection::vec(any::<bool>(), 1..9), refused in 0..9_usize,
        ) {
            let all = fleet(present.len());
            let ring = Ring::default().rebuilt(&[], all.iter());
            let some: Vec<_> = all.into_iter().filter(|candidate| present[candidate.slot]).collect();
            let Some(from) = Candidates::new(&some) else { return Ok(()) };
            let acceptable = |candidate: &Candidate| candidate.slot != refused;
            let slot = |found: Option<&Candidate>| found.map(|candidate| candidate.slot);
            prop_assert_eq!(slot(ring.first(from, position, acceptable)), slot(ring.nearest(from, position, acceptable)));
        }
    }
}
