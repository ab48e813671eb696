//! The scheduler: passes over prompts go first, the batch decodes between them.

use std::collections::VecDeque;
use std::time::Duration;

use super::batch::{DecodeBatch, Progress};
use super::costs::{Picos, StepCosts};
use super::memory::KvMemory;
use super::options::SharedOptions;
use super::pass::{Chunk, Pass};
use super::sequence::Sequence;
use crate::engine::request::{
    EngineLoad, EngineOptions, Event, EventKind, PromptSource, QueueFull, RequestId, SimRequest,
};

const PER_NANO: Picos = 1000;
/// Steps in which the reserve falls to its least.
const DECAY_STEPS: f64 = 600.0;
/// The least reserve, as a share of the first.
const LEAST_RESERVE: f64 = 0.14;
/// Steps of every member that a new reserve allows for.
const RETRACT_STEPS: u64 = 20;
/// Decode steps between two looks at a request that waits for memory.
const LOOK_AGAIN: u64 = 16;

/// Prefill and decode on one device, with one memory.
///
/// Deterministic: the same calls with the same times give the same events.
#[derive(Debug)]
pub(in crate::engine) struct SharedEngine {
    limits: EngineOptions,
    options: SharedOptions,
    costs: StepCosts,
    now: Picos,
    next_id: u64,
    queue: VecDeque<Sequence>,
    /// A prompt that is computed in part.
    chunk: Option<Chunk>,
    pass: Option<Pass>,
    batch: DecodeBatch,
    /// The batch's step after which there is something to do.
    stop_at: u64,
    /// Until this step, unless memory becomes free, the first request in the queue waits.
    blocked_until: u64,
    memory: KvMemory,
    reserve: f64,
    /// Steps since it was set: it falls with each. Counted, for sums of falls would differ with
    /// the steps taken at once.
    reserve_steps: u64,
    totals: EngineLoad,
    events: Vec<Event>,
    progress: Vec<Progress>,
}

impl SharedEngine {
    pub(in crate::engine) fn new(limits: EngineOptions, options: SharedOptions) -> Self {
        Self {
            costs: StepCosts::new(&options),
            now: 0,
            next_id: 0,
            queue: VecDeque::new(),
            chunk: None,
            pass: None,
            batch: DecodeBatch::default(),
            stop_at: 0,
            blocked_until: 0,
            memory: KvMemory::new(
                limits.kv_cache_tokens,
                options.host_cache_tokens,
                limits.page_size,
            ),
            reserve: options.output_reserve,
            reserve_steps: 0,
            totals: EngineLoad::default(),
            events: Vec::new(),
            progress: Vec::new(),
            limits,
            options,
        }
    }

    /// Adds a request.
    pub(in crate::engine) fn submit(
        &mut self,
        now: Duration,
        request: SimRequest,
    ) -> Result<RequestId, QueueFull> {
        self.run_to(now);
        let idle = self.pass.is_none() && self.batch.is_empty();
        let waits = !idle || !self.queue.is_empty();
        if waits && self.queue.len() >= self.limits.max_queued_requests {
            return Err(QueueFull);
        }
        let id = RequestId(self.next_id);
        self.next_id += 1;
        let page = self.limits.page_size;
        let mut sequence = Sequence::new(id, request, page, self.memory.capacity());
        let found = self.memory.find(&sequence.pages[..sequence.reusable_pages]);
        sequence.uncached_tokens = sequence.prompt_tokens - self.tokens(found.anywhere);
        self.queue.push_back(sequence);
        if idle {
            self.schedule();
        } else if self.queue.len() == 1 {
            // The scheduler looks at the queue after each step.
            self.stop_at = self.batch.steps() + 1;
        }
        self.run_to(now);
        Ok(id)
    }

    /// Advances time and returns the events since the last call, in order.
    pub(in crate::engine) fn advance(&mut self, now: Duration) -> std::vec::Drain<'_, Event> {
        self.run_to(now);
        self.events.drain(..)
    }

    /// Time of the next event that [`Self::advance`] may return; `None` while idle.
    pub(in crate::engine) fn next_event(&self) -> Option<Duration> {
        if !self.events.is_empty() {
            return Some(duration(self.now));
        }
        // Rounded up, so that the step has ended then.
        self.step_end().map(|at| duration(at + PER_NANO - 1))
    }

    /// Removes a request from any stage. False if it has already ended.
    pub(in crate::engine) fn abort(&mut self, now: Duration, id: RequestId) -> bool {
        self.run_to(now);
        let queued = self.queue.iter().position(|waiting| waiting.id == id);
        let in_pass = |pass: &mut Pass| pass.remove(id);
        let found = queued
            .and_then(|position| self.queue.remove(position))
            .or_else(|| self.pass.as_mut().and_then(in_pass))
            .or_else(|| {
                let chunk = self.chunk.take_if(|chunk| chunk.sequence.id == id);
                chunk.map(|chunk| chunk.sequence)
            })
            .or_else(|| self.batch.remove(id));
        let Some(mut sequence) = found else {
            return false;
        };
        self.memory.release(&mut sequence);
        self.blocked_until = 0;
        self.totals.aborted_total += 1;
        if self.pass.is_none() {
            self.schedule();
        }
        self.run_to(now);
        true
    }

    /// Empties the prefix cache; false, and no change, while any request is running or waiting.
    pub(in crate::engine) fn flush_cache(&mut self, now: Duration) -> bool {
        self.run_to(now);
        let idle = self.running() == 0 && self.queue.is_empty();
        if idle {
            self.memory.flush();
        }
        idle
    }

    /// Empties the prefix cache of all that no running request uses.
    pub(in crate::engine) fn drop_cache(&mut self, now: Duration) {
        self.run_to(now);
        self.memory.flush();
    }

    /// Makes every further decode step longer by `extra` than the options say.
    pub(in crate::engine) fn slow_down(&mut self, now: Duration, extra: Duration) {
        self.run_to(now);
        self.costs.set_extra(picos(extra));
    }

    /// From now on everything takes so many times as long.
    pub(in crate::engine) fn set_slowness(&mut self, now: Duration, slowness: f64) {
        self.run_to(now);
        self.costs.set_slowness(slowness);
    }

    /// Where the prompts of further requests are computed.
    pub(in crate::engine) fn set_prompt_source(&mut self, now: Duration, source: PromptSource) {
        self.run_to(now);
        self.costs.set_prompt_source(source);
    }

    /// Load of the engine at `now`.
    pub(in crate::engine) fn loads(&mut self, now: Duration) -> EngineLoad {
        self.run_to(now);
        let waiting = self.queue.iter();
        let uncached = waiting.map(|waiting| u64::from(waiting.uncached_tokens));
        let step = self.costs.steps(self.batch.size(), 1);
        let decoding = self.batch.len() as f64;
        EngineLoad {
            running: self.running(),
            waiting: self.queue.len(),
            waiting_uncached_tokens: uncached.sum(),
            used_tokens: self.memory.used(),
            cached_tokens: self.memory.cached(),
            tokens_per_sec: if step > 0 {
                decoding * 1e12 / step as f64
            } else {
                0.0
            },
            ..self.totals
        }
    }

    pub(in crate::engine) fn totals(&self) -> EngineLoad {
        self.totals
    }

    fn running(&self) -> usize {
        let passing = self.pass.as_ref().map_or(0, Pass::len);
        passing + usize::from(self.chunk.is_some()) + self.batch.len()
    }

    /// Tokens of so many pages.
    fn tokens(&self, pages: usize) -> u32 {
        pages as u32 * self.limits.page_size.max(1)
    }

    /// When the pass ends, or the steps up to the next stop.
    fn step_end(&self) -> Option<Picos> {
        if let Some(pass) = &self.pass {
            return Some(pass.ends);
        }
        let steps = self.steps_to_stop()?;
        Some(self.batch.end_of(&self.costs, steps))
    }

    fn steps_to_stop(&self) -> Option<u64> {
        let stop = self.stop_at.saturating_sub(self.batch.steps()).max(1);
        (!self.batch.is_empty()).then(|| stop.min(self.batch.steps_to_event()))
    }

    /// Processes every event up to and including `now`.
    fn run_to(&mut self, now: Duration) {
        let now = picos(now).max(self.now);
        while let Some(at) = self.step_end().filter(|at| *at <= now) {
            self.now = at;
            if let Some(pass) = self.pass.take() {
                self.end_pass(pass);
            } else {
                self.end_steps();
            }
            self.schedule();
        }
        self.now = now;
        if let (None, Some(steps)) = (&self.pass, self.steps_to_stop()) {
            let taken = self.batch.steps_before(&self.costs, now, steps - 1);
            self.take_steps(taken);
        }
    }

    fn end_pass(&mut self, pass: Pass) {
        if pass.decodes {
            let tokens = self.batch.generate(1);
            self.memory.take(tokens);
            self.end_members();
        }
        for mut sequence in pass.ready {
            self.memory.share(&mut sequence);
            let (request, cached_tokens) = (sequence.id, sequence.cached_tokens.unwrap_or(0));
            let is_first = sequence.generated == 0;
            sequence.generated = (sequence.generated + 1).min(sequence.output_tokens);
            let kind = if is_first {
                EventKind::FirstToken { cached_tokens }
            } else {
                EventKind::Progress {
                    tokens: sequence.generated,
                }
            };
            if sequence.generated >= sequence.output_tokens {
                self.finish(sequence);
                continue;
            }
            if is_first || sequence.watched {
                let at = duration(self.now);
                self.events.push(Event { at, request, kind });
            }
            self.batch.join(sequence, self.options.longest_reserve);
        }
    }

    fn end_steps(&mut self) {
        self.take_steps(self.steps_to_stop().unwrap_or(0));
        self.end_members();
    }

    fn take_steps(&mut self, count: u64) {
        let length = self.costs.steps(self.batch.size(), count);
        self.totals.decode_time += duration(length);
        let tokens = self.batch.advance(&self.costs, count);
        self.memory.take(tokens);
        self.reserve_steps += count;
    }

    /// The share of the output that running sequences may still have that is kept free for it.
    fn reserve(&self) -> f64 {
        let first = self.options.output_reserve;
        let fall = first * (1.0 - LEAST_RESERVE) / DECAY_STEPS;
        (self.reserve - fall * self.reserve_steps as f64).max(first * LEAST_RESERVE)
    }

    /// Ends the sequences that have all their tokens, and reports the progress of the others.
    fn end_members(&mut self) {
        while let Some(sequence) = self.batch.take_finished() {
            self.finish(sequence);
        }
        self.batch.watched(&mut self.progress);
        let at = duration(self.now);
        let progress = self.progress.iter().map(|progress| Event {
            at,
            request: progress.id,
            kind: EventKind::Progress {
                tokens: progress.tokens,
            },
        });
        self.events.extend(progress);
    }

    fn finish(&mut self, sequence: Sequence) {
        let kind = EventKind::Finished {
            tokens: sequence.output_tokens,
            cached_tokens: sequence.cached_tokens.unwrap_or(0),
        };
        self.events.push(Event {
            at: duration(self.now),
            request: sequence.id,
            kind,
        });
        self.totals.finished_total += 1;
        self.totals.output_tokens_total += u64::from(sequence.output_tokens);
        self.memory.retire(sequence);
        self.blocked_until = 0;
    }

    /// Begins a pass over prompts if there is any to compute, and else goes on with the batch.
    fn schedule(&mut self) {
        let mut pass = Pass::new(self.options.chunk_tokens);
        if let Some(chunk) = self.chunk.take() {
            pass.reserved += chunk.sequence.reserve(self.options.longest_reserve);
            self.chunk = pass.add(chunk);
        }
        while pass.has_room() && self.chunk.is_none() && !self.queue.is_empty() {
            let running = self.batch.len() + pass.len();
            let is_full = running >= self.limits.max_running_requests.max(1);
            if is_full || self.batch.steps() < self.blocked_until {
                break;
            }
            let Some(chunk) = self.admit(&pass) else {
                self.blocked_until = self.batch.steps() + LOOK_AGAIN;
                break;
            };
            pass.reserved += chunk.sequence.reserve(self.options.longest_reserve);
            self.chunk = pass.add(chunk);
        }
        if !pass.is_empty() {
            self.begin(pass);
            return;
        }
        let retracted = self.retract();
        let room = self.memory.available() / (self.batch.len() as u64).max(1);
        self.stop_at = self.batch.steps().saturating_add(room);
        if self.blocked_until > self.batch.steps() {
            self.stop_at = self.stop_at.min(self.blocked_until);
        } else if retracted {
            // Those that were sent back are looked at after the next step.
            self.stop_at = self.batch.steps() + 1;
        }
        self.batch.resume(self.now);
    }

    fn begin(&mut self, mut pass: Pass) {
        let batch = self.batch.size();
        let mut length = self.costs.pass(pass.work);
        let goes_on = self.options.mixed_chunks && batch.sequences > 0;
        if goes_on && self.memory.available() >= batch.sequences {
            pass.decodes = true;
            length += self.costs.beside_pass(batch);
        }
        pass.ends = self.now + length;
        self.totals.prefill_time += duration(length);
        self.pass = Some(pass);
    }

    /// Takes the first request from the queue, if there is memory for it and for what the running
    /// ones will probably generate.
    fn admit(&mut self, pass: &Pass) -> Option<Chunk> {
        let first = self.queue.front()?;
        let reusable = &first.pages[..first.reusable_pages];
        let found = self.memory.find(reusable);
        let cached = self.tokens(found.anywhere);
        let missing = first.context() - self.tokens(found.here);
        let available = self.memory.available_beside(&reusable[..found.here]);
        let fits = if self.batch.is_empty() && pass.is_empty() {
            u64::from(missing) <= available
        } else {
            let promised = self.batch.reserved() as f64 * self.reserve();
            let own = first.reserve(self.options.longest_reserve) + pass.reserved;
            (u64::from(missing) + own) as f64 + promised < available as f64
        };
        let mut sequence = fits.then(|| self.queue.pop_front()).flatten()?;
        self.memory.admit(&mut sequence, found.here, missing);
        if sequence.cached_tokens.is_none() {
            sequence.cached_tokens = Some(cached);
            self.totals.prompt_tokens_total += u64::from(sequence.prompt_tokens);
            self.totals.cached_tokens_total += u64::from(cached);
        }
        self.totals.computed_tokens_total += u64::from(sequence.context() - cached);
        Some(Chunk {
            done: cached,
            loaded: cached - self.tokens(found.here),
            sequence,
        })
    }

    /// Sends sequences back to the queue until the others have memory for a step; whether there
    /// were some.
    fn retract(&mut self) -> bool {
        let mut retracted = false;
        while self.batch.len() > 1 && (self.memory.available() as usize) < self.batch.len() {
            let Some(mut sequence) = self.batch.remove_youngest() else {
                break;
            };
            self.memory.release(&mut sequence);
            self.blocked_until = 0;
            self.queue.push_back(sequence);
            self.totals.retracted_total += 1;
            retracted = true;
        }
        if retracted {
            let (done, most) = self.batch.outputs();
            let steps = RETRACT_STEPS * self.batch.len() as u64;
            self.reserve = ((done + steps) as f64 / (most + 1) as f64).min(1.0);
            self.reserve_steps = 0;
        }
        retracted
    }
}

fn picos(time: Duration) -> Picos {
    time.as_nanos() * PER_NANO
}

fn duration(time: Picos) -> Duration {
    Duration::from_nanos_u128(time / PER_NANO)
}
