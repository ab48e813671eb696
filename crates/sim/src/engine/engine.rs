//! Queue, prefill, decode: how jobs move through an engine.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::decode::{DecodeBatch, Member};
use super::job::{EngineLoad, EngineOptions, Event, EventKind, Job, JobId, QueueFull};
use super::prefix_cache::PrefixCache;
use super::prompt::AsIsBuild;

/// One simulated inference engine (one data-parallel rank).
///
/// Deterministic: the same calls with the same times give the same events.
#[derive(Debug)]
pub struct Engine {
    options: EngineOptions,
    now: Duration,
    next_id: u64,
    queue: VecDeque<Waiting>,
    prefill: Option<Prefill>,
    decode: DecodeBatch,
    prompts: HashMap<u64, u32, AsIsBuild>, // lengths of running jobs' prompts
    cache: PrefixCache,
    totals: EngineLoad,
    events: Vec<Event>,
}

#[derive(Debug)]
struct Waiting {
    id: JobId,
    job: Job,
    uncached_tokens: u32,
}

#[derive(Debug)]
struct Prefill {
    id: JobId,
    pages: Vec<u64>,
    output_tokens: u32,
    watched: bool,
    cached_tokens: u32,
    ends: Duration,
}

impl Engine {
    /// An idle engine at time zero.
    pub fn new(options: EngineOptions) -> Self {
        let pages = options.kv_cache_tokens / options.page_size.max(1) as usize;
        Self {
            now: Duration::ZERO,
            next_id: 0,
            queue: VecDeque::new(),
            prefill: None,
            decode: DecodeBatch::new(options.decode_step_base, options.decode_step_per_seq),
            prompts: HashMap::default(),
            cache: PrefixCache::new(pages),
            totals: EngineLoad::default(),
            events: Vec::new(),
            options,
        }
    }

    /// Takes a job in; it may be over at once (see [`Self::advance`]).
    pub fn submit(&mut self, now: Duration, job: Job) -> Result<JobId, QueueFull> {
        self.run_to(now);
        let must_wait = self.prefill.is_some() || self.is_full() || !self.queue.is_empty();
        if must_wait && self.queue.len() >= self.options.max_queued_requests {
            return Err(QueueFull);
        }
        let id = JobId(self.next_id);
        self.next_id += 1;
        if must_wait {
            let uncached_tokens = job.prompt.tokens() - self.cached_tokens(&job);
            self.queue.push_back(Waiting {
                id,
                job,
                uncached_tokens,
            });
        } else {
            self.start_prefill(id, job);
            self.run_to(now);
        }
        Ok(id)
    }

    /// Moves time on and hands out what has happened since the last call, in order.
    pub fn advance(&mut self, now: Duration) -> std::vec::Drain<'_, Event> {
        self.run_to(now);
        self.events.drain(..)
    }

    /// When [`Self::advance`] will next have something to tell; `None` while idle.
    pub fn next_event(&self) -> Option<Duration> {
        if !self.events.is_empty() {
            return Some(self.now);
        }
        let prefill = self.prefill.as_ref().map(|prefill| prefill.ends);
        [prefill, self.decode.next()].into_iter().flatten().min()
    }

    /// Drops a job wherever it is; its slot is free at once. False if it is over already.
    pub fn abort(&mut self, now: Duration, id: JobId) -> bool {
        self.run_to(now);
        let queued = self.queue.iter().position(|waiting| waiting.id == id);
        let found = if let Some(place) = queued {
            self.queue.remove(place).is_some()
        } else if self
            .prefill
            .as_ref()
            .is_some_and(|prefill| prefill.id == id)
        {
            self.prefill = None;
            true
        } else {
            self.prompts.contains_key(&id.0) && self.decode.remove(self.now, id)
        };
        if found {
            self.prompts.remove(&id.0);
            self.totals.aborted_total += 1;
            self.admit();
            self.run_to(now);
        }
        found
    }

    /// Empties the prefix cache; refused (false) while any job is running or waiting.
    pub fn flush_cache(&mut self, now: Duration) -> bool {
        self.run_to(now);
        let idle = self.running() == 0 && self.queue.is_empty();
        if idle {
            self.cache.clear();
        }
        idle
    }

    /// What the engine is doing at `now`.
    pub fn loads(&mut self, now: Duration) -> EngineLoad {
        self.run_to(now);
        let waiting = self
            .queue
            .iter()
            .map(|waiting| u64::from(waiting.uncached_tokens));
        let prompts: u64 = self.prompts.values().map(|tokens| u64::from(*tokens)).sum();
        EngineLoad {
            running: self.running(),
            waiting: self.queue.len(),
            waiting_uncached_tokens: waiting.sum(),
            used_tokens: prompts + self.decode.tokens(),
            cached_tokens: self.cache.len() as u64 * u64::from(self.options.page_size),
            tokens_per_sec: self.decode.tokens_per_sec(),
            ..self.totals
        }
    }

    fn running(&self) -> usize {
        usize::from(self.prefill.is_some()) + self.decode.len()
    }

    fn is_full(&self) -> bool {
        self.running() >= self.options.max_running_requests.max(1)
    }

    /// Lets everything up to and including `now` happen.
    fn run_to(&mut self, now: Duration) {
        let now = now.max(self.now);
        loop {
            let prefill = self.prefill.as_ref().map(|prefill| prefill.ends);
            let decode = self.decode.next();
            match (prefill, decode) {
                // At a tie prefill goes first, so its job joins the step that starts then.
                (Some(at), decode) if at <= now && decode.is_none_or(|step| at <= step) => {
                    self.now = at;
                    self.end_prefill(at);
                }
                (_, Some(at)) if at <= now => {
                    self.now = at;
                    self.end_steps(at);
                }
                _ => break,
            }
        }
        self.now = now;
        self.decode.settle(now);
    }

    fn end_prefill(&mut self, at: Duration) {
        let Some(done) = self.prefill.take() else {
            return;
        };
        self.cache.touch(&done.pages);
        let Prefill {
            id: job,
            cached_tokens,
            output_tokens,
            ..
        } = done;
        if output_tokens <= 1 || self.decode.is_instant() {
            let kind = EventKind::Finished {
                tokens: output_tokens,
                cached_tokens,
            };
            self.events.push(Event { at, job, kind });
            self.count_finished(job, output_tokens);
        } else {
            let kind = EventKind::FirstToken { cached_tokens };
            self.events.push(Event { at, job, kind });
            self.decode.settle(at);
            let member = Member {
                job,
                steps_left: u64::from(output_tokens) - 1,
                tokens: 1,
                cached_tokens,
                watched: done.watched,
            };
            self.decode.join(at, member);
        }
        self.admit();
    }

    fn end_steps(&mut self, at: Duration) {
        let first_new = self.events.len();
        self.decode.arrive(at, &mut self.events);
        for place in first_new..self.events.len() {
            let event = self.events[place];
            if let EventKind::Finished { tokens, .. } = event.kind {
                self.count_finished(event.job, tokens);
            }
        }
        self.admit();
    }

    fn count_finished(&mut self, job: JobId, tokens: u32) {
        self.prompts.remove(&job.0);
        self.totals.finished_total += 1;
        self.totals.output_tokens_total += u64::from(tokens);
    }

    /// Starts the next prefill if there is room for it.
    fn admit(&mut self) {
        if self.prefill.is_some() || self.is_full() {
            return;
        }
        if let Some(Waiting { id, job, .. }) = self.queue.pop_front() {
            self.start_prefill(id, job);
        }
    }

    fn start_prefill(&mut self, id: JobId, mut job: Job) {
        let cached_tokens = self.cached_tokens(&job);
        let tokens = job.prompt.tokens();
        let pages = job.prompt.take_pages();
        self.cache
            .touch(&pages[..(cached_tokens / self.options.page_size.max(1)) as usize]);
        self.totals.prompt_tokens_total += u64::from(tokens);
        self.totals.cached_tokens_total += u64::from(cached_tokens);
        self.prompts.insert(id.0, tokens);
        self.prefill = Some(Prefill {
            id,
            pages,
            output_tokens: job.output_tokens,
            watched: job.watched,
            cached_tokens,
            ends: self.now + self.prefill_time(tokens - cached_tokens),
        });
    }

    /// Whole cached pages; the last token is always computed, since it yields the first output.
    fn cached_tokens(&self, job: &Job) -> u32 {
        let page_size = self.options.page_size.max(1);
        let pages = job.prompt.pages();
        let usable = (job.prompt.tokens().saturating_sub(1) / page_size) as usize;
        self.cache.matched(&pages[..usable.min(pages.len())]) as u32 * page_size
    }

    fn prefill_time(&self, tokens: u32) -> Duration {
        if self.options.prefill_tokens_per_sec > 0.0 {
            Duration::from_secs_f64(f64::from(tokens) / self.options.prefill_tokens_per_sec)
        } else {
            Duration::ZERO
        }
    }
}
