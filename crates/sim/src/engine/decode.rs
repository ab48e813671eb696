//! Decode as a continuous batch: every step gives each member one token.

use std::time::Duration;

use super::request::{Event, EventKind, RequestId};

/// The sequences that decode together.
///
/// Steps without an event are taken together, so the cost is per event, not per token, unless a
/// member is watched.
#[derive(Debug)]
pub(super) struct DecodeBatch {
    base: Duration,
    per_seq: Duration,
    members: Vec<Member>,
    joining: Vec<Member>,
    step_started: Duration,
    step_length: Duration,
}

/// A sequence in the batch.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) request: RequestId,
    pub(super) steps_left: u64,
    pub(super) tokens: u32,
    pub(super) cached_tokens: u32,
    pub(super) watched: bool,
}

impl DecodeBatch {
    pub(super) fn new(base: Duration, per_seq: Duration) -> Self {
        Self {
            base,
            per_seq,
            members: Vec::new(),
            joining: Vec::new(),
            step_started: Duration::ZERO,
            step_length: Duration::ZERO,
        }
    }

    /// Changes the part of a step's time that does not depend on the batch.
    pub(super) fn set_base(&mut self, base: Duration) {
        // Steps under way need some length.
        let shortest = u64::from(self.len() > 0);
        self.base = base.max(Duration::from_nanos(shortest));
    }

    /// Whether decode takes no time at all.
    pub(super) fn is_instant(&self) -> bool {
        self.base.is_zero() && self.per_seq.is_zero()
    }

    pub(super) fn len(&self) -> usize {
        self.members.len() + self.joining.len()
    }

    /// Tokens made by the members so far, without their prompts.
    pub(super) fn tokens(&self) -> u64 {
        self.members
            .iter()
            .chain(&self.joining)
            .map(|member| u64::from(member.tokens))
            .sum()
    }

    /// Tokens per second of the current batch.
    pub(super) fn tokens_per_sec(&self) -> f64 {
        if self.members.is_empty() {
            return 0.0;
        }
        self.members.len() as f64 / self.step_length.as_secs_f64()
    }

    /// Adds a sequence: now when idle, else when the current step ends.
    pub(super) fn join(&mut self, now: Duration, member: Member) {
        self.joining.push(member);
        if self.members.is_empty() {
            self.start_step(now);
        }
    }

    /// Removes a sequence; the current step keeps its length.
    pub(super) fn remove(&mut self, now: Duration, request: RequestId) -> bool {
        let before = self.len();
        self.members.retain(|member| member.request != request);
        self.joining.retain(|member| member.request != request);
        if self.members.is_empty() {
            self.start_step(now);
        }
        self.len() < before
    }

    /// Time of the next event: a member ends, a watched member advances, or a new member joins.
    pub(super) fn next_event(&self) -> Option<Duration> {
        let steps = self.steps_to_event()?;
        let first_end = self.step_started + self.step_length;
        Some(first_end + self.length_of(self.members.len()) * (steps - 1) as u32)
    }

    /// Takes the steps that end before `until`; none of them has an event.
    pub(super) fn skip_to(&mut self, until: Duration) {
        let first_end = self.step_started + self.step_length;
        if self.members.is_empty() || first_end >= until {
            return;
        }
        let length = self.length_of(self.members.len());
        let more = (until.saturating_sub(first_end).as_nanos() - 1) / length.as_nanos();
        self.take_steps(more as u64 + 1);
        self.step_started = first_end + length * more as u32;
        self.step_length = length;
    }

    /// Takes the steps up to `at`, the time from [`Self::next_event`], and adds their events.
    pub(super) fn run_to_event(&mut self, at: Duration, events: &mut Vec<Event>) {
        let steps = self.steps_to_event().unwrap_or(0);
        self.take_steps(steps);
        self.members.retain(|member| {
            let Member {
                request,
                tokens,
                cached_tokens,
                ..
            } = *member;
            if member.steps_left == 0 {
                let kind = EventKind::Finished {
                    tokens,
                    cached_tokens,
                };
                events.push(Event { at, request, kind });
            } else if member.watched {
                events.push(Event {
                    at,
                    request,
                    kind: EventKind::Progress { tokens },
                });
            }
            member.steps_left > 0
        });
        self.start_step(at);
    }

    /// Steps until the next event; `None` when idle.
    fn steps_to_event(&self) -> Option<u64> {
        let shortest = self.members.iter().map(|member| member.steps_left).min()?;
        let eventful = !self.joining.is_empty() || self.members.iter().any(|member| member.watched);
        Some(if eventful { 1 } else { shortest })
    }

    fn take_steps(&mut self, count: u64) {
        for member in &mut self.members {
            member.steps_left -= count;
            member.tokens += count as u32;
        }
    }

    fn start_step(&mut self, now: Duration) {
        self.members.append(&mut self.joining);
        self.step_started = now;
        self.step_length = self.length_of(self.members.len());
    }

    fn length_of(&self, batch: usize) -> Duration {
        self.base + self.per_seq * batch as u32
    }
}
