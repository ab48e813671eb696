//! Sequences that decode together, and the steps under way.

use std::collections::BTreeMap;

use super::costs::{BatchSize, Picos, StepCosts};
use super::sequence::Sequence;
use crate::engine::request::RequestId;

/// A decode batch. Steps without an event are taken together.
#[derive(Debug, Default)]
pub(super) struct DecodeBatch {
    members: BTreeMap<Key, Member>,
    watched: usize,
    /// Steps taken since the engine's start.
    steps: u64,
    context: u64,
    /// Output that the members may still have, as far as the engine reckons with it.
    reserved: u64,
    /// When the next step began.
    since: Picos,
}

/// In order of their ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    /// The number of the step that ends it.
    ends: u64,
    id: RequestId,
}

#[derive(Debug)]
struct Member {
    sequence: Sequence,
    joined_at: u64,
    reserve: u64,
}

/// A member's progress, as of the last step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Progress {
    pub(super) id: RequestId,
    pub(super) tokens: u32,
}

impl DecodeBatch {
    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Steps taken since the engine's start.
    pub(super) fn steps(&self) -> u64 {
        self.steps
    }

    pub(super) fn size(&self) -> BatchSize {
        BatchSize {
            sequences: self.members.len() as u64,
            context: self.context,
        }
    }

    pub(super) fn reserved(&self) -> u64 {
        self.reserved
    }

    /// Steps are taken from now on.
    pub(super) fn resume(&mut self, now: Picos) {
        self.since = now;
    }

    pub(super) fn join(&mut self, sequence: Sequence, longest_reserve: u32) {
        let left = u64::from(sequence.output_tokens - sequence.generated);
        let reserve = sequence.reserve(longest_reserve).max(left);
        self.context += u64::from(sequence.context());
        self.reserved += reserve;
        self.watched += usize::from(sequence.watched);
        let key = Key {
            ends: self.steps + left,
            id: sequence.id,
        };
        let joined_at = self.steps;
        let member = Member {
            sequence,
            joined_at,
            reserve,
        };
        self.members.insert(key, member);
    }

    pub(super) fn remove(&mut self, id: RequestId) -> Option<Sequence> {
        let mut keys = self.members.keys();
        let key = *keys.find(|key| key.id == id)?;
        self.take(key)
    }

    /// Removes the sequence with the fewest tokens generated; of several, the longest prompt.
    pub(super) fn remove_youngest(&mut self) -> Option<Sequence> {
        let age = |(key, member): (&Key, &Member)| {
            let generated = u64::from(member.sequence.generated) + self.steps - member.joined_at;
            let prompt = u32::MAX - member.sequence.prompt_tokens;
            (generated, prompt, u64::MAX - key.id.0, *key)
        };
        let (.., key) = self.members.iter().map(age).min()?;
        self.take(key)
    }

    /// Output so far and at most, of all members together.
    pub(super) fn outputs(&self) -> (u64, u64) {
        self.members.values().fold((0, 0), |(done, most), member| {
            let generated = u64::from(member.sequence.generated) + self.steps - member.joined_at;
            (
                done + generated,
                most + u64::from(member.sequence.longest_output),
            )
        })
    }

    /// Removes a sequence that ends with the last step taken.
    pub(super) fn take_finished(&mut self) -> Option<Sequence> {
        let (key, _) = self.members.first_key_value()?;
        let key = (key.ends <= self.steps).then_some(*key)?;
        self.take(key)
    }

    fn take(&mut self, key: Key) -> Option<Sequence> {
        let Member {
            mut sequence,
            joined_at,
            reserve,
        } = self.members.remove(&key)?;
        let steps = self.steps - joined_at;
        sequence.generated += steps as u32;
        sequence.owned += steps as u32;
        self.context -= u64::from(sequence.context());
        self.reserved -= reserve.saturating_sub(steps).min(self.reserved);
        self.watched -= usize::from(sequence.watched);
        Some(sequence)
    }

    /// The progress of the watched members, in order of their ids.
    pub(super) fn watched(&self, into: &mut Vec<Progress>) {
        into.clear();
        if self.watched == 0 {
            return;
        }
        let watched = self.members.values();
        let watched = watched.filter(|member| member.sequence.watched);
        into.extend(watched.map(|member| Progress {
            id: member.sequence.id,
            tokens: member.sequence.generated + (self.steps - member.joined_at) as u32,
        }));
        into.sort_unstable_by_key(|progress| progress.id);
    }

    /// Steps until a member ends, or the next if any is watched.
    pub(super) fn steps_to_event(&self) -> u64 {
        let Some((key, _)) = self.members.first_key_value() else {
            return 0;
        };
        if self.watched > 0 {
            1
        } else {
            key.ends - self.steps
        }
    }

    /// When so many further steps have been taken.
    pub(super) fn end_of(&self, costs: &StepCosts, count: u64) -> Picos {
        self.since + costs.steps(self.size(), count)
    }

    /// Further steps that end before `until`, below `most`.
    pub(super) fn steps_before(&self, costs: &StepCosts, until: Picos, most: u64) -> u64 {
        let (mut least, mut most) = (0, most);
        while least < most {
            let middle = least + (most - least).div_ceil(2);
            if self.end_of(costs, middle) < until {
                least = middle;
            } else {
                most = middle - 1;
            }
        }
        least
    }

    /// Takes steps; returns the tokens generated.
    pub(super) fn advance(&mut self, costs: &StepCosts, count: u64) -> u64 {
        self.since = self.end_of(costs, count);
        self.generate(count)
    }

    /// The same without time of their own.
    pub(super) fn generate(&mut self, count: u64) -> u64 {
        let tokens = count * self.members.len() as u64;
        self.steps += count;
        self.context += tokens;
        self.reserved = self.reserved.saturating_sub(tokens);
        tokens
    }
}
