//! A prefill server beside a decode batch: the path of a request through them.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::decode::{DecodeBatch, Member};
use super::prefix_cache::PrefixCache;
use super::prompt::IdentityBuild;
use super::request::{
    EngineLoad, EngineOptions, Event, EventKind, QueueFull, RequestId, SimRequest,
};

/// Prefill and decode as two stages that do not disturb each other.
///
/// Deterministic: the same calls with the same times give the same events.
#[derive(Debug)]
pub(super) struct SplitEngine {
    options: EngineOptions,
    now: Duration,
    next_id: u64,
    queue: VecDeque<Waiting>,
    prefill: Option<Prefill>,
    decode: DecodeBatch,
    prompt_tokens: HashMap<u64, u32, IdentityBuild>, // of running requests, by id
    cache: PrefixCache,
    totals: EngineLoad,
    events: Vec<Event>,
}

#[derive(Debug)]
struct Waiting {
    id: RequestId,
    request: SimRequest,
    uncached_tokens: u32,
}

#[derive(Debug)]
struct Prefill {
    id: RequestId,
    pages: Vec<u64>,
    output_tokens: u32,
    watched: bool,
    cached_tokens: u32,
    ends: Duration,
}

impl SplitEngine {
    /// An idle engine at time zero.
    pub(super) fn new(options: EngineOptions) -> Self {
        let pages = options.kv_cache_tokens / options.page_size.max(1) as usize;
        Self {
            now: Duration::ZERO,
            next_id: 0,
            queue: VecDeque::new(),
            prefill: None,
            decode: DecodeBatch::new(options.decode_step_base, options.decode_step_per_seq),
            prompt_tokens: HashMap::default(),
            cache: PrefixCache::new(pages),
            totals: EngineLoad::default(),
            events: Vec::new(),
            options,
        }
    }

    /// Adds a request; it may finish at once (see [`Self::advance`]).
    pub(super) fn submit(
        &mut self,
        now: Duration,
        request: SimRequest,
    ) -> Result<RequestId, QueueFull> {
        self.run_to(now);
        let must_wait = self.prefill.is_some() || self.is_full() || !self.queue.is_empty();
        if must_wait && self.queue.len() >= self.options.max_queued_requests {
            return Err(QueueFull);
        }
        let id = RequestId(self.next_id);
        self.next_id += 1;
        if must_wait {
            let uncached_tokens = request.prompt.tokens() - self.cached_tokens(&request);
            self.queue.push_back(Waiting {
                id,
                request,
                uncached_tokens,
            });
        } else {
            self.start_prefill(id, request);
            self.run_to(now);
        }
        Ok(id)
    }

    /// Advances time and returns the events since the last call, in order.
    pub(super) fn advance(&mut self, now: Duration) -> std::vec::Drain<'_, Event> {
        self.run_to(now);
        self.events.drain(..)
    }

    /// Time of the next event that [`Self::advance`] returns; `None` while idle.
    pub(super) fn next_event(&self) -> Option<Duration> {
        if !self.events.is_empty() {
            return Some(self.now);
        }
        let prefill = self.prefill.as_ref().map(|prefill| prefill.ends);
        [prefill, self.decode.next_event()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Removes a request from any stage and frees its slot at once. False if it has already ended.
    pub(super) fn abort(&mut self, now: Duration, id: RequestId) -> bool {
        self.run_to(now);
        let queued = self.queue.iter().position(|waiting| waiting.id == id);
        let found = if let Some(position) = queued {
            self.queue.remove(position).is_some()
        } else if self
            .prefill
            .as_ref()
            .is_some_and(|prefill| prefill.id == id)
        {
            self.prefill = None;
            true
        } else {
            self.prompt_tokens.contains_key(&id.0) && self.decode.remove(self.now, id)
        };
        if found {
            self.prompt_tokens.remove(&id.0);
            self.totals.aborted_total += 1;
            self.admit();
            self.run_to(now);
        }
        found
    }

    /// Empties the prefix cache; false, and no change, while any request is running or waiting.
    pub(super) fn flush_cache(&mut self, now: Duration) -> bool {
        self.run_to(now);
        let idle = self.running() == 0 && self.queue.is_empty();
        if idle {
            self.cache.clear();
        }
        idle
    }

    /// Empties the prefix cache, whatever runs: requests that wait compute their prompts anew.
    pub(super) fn drop_cache(&mut self, now: Duration) {
        self.run_to(now);
        self.cache.clear();
    }

    /// Makes every further decode step longer by `extra` than the options say.
    pub(super) fn slow_down(&mut self, now: Duration, extra: Duration) {
        self.run_to(now);
        self.decode.set_base(self.options.decode_step_base + extra);
    }

    /// Computes the prompts of further requests at another speed; 0 = instantly.
    pub(super) fn set_prefill_speed(&mut self, now: Duration, tokens_per_sec: f64) {
        self.run_to(now);
        self.options.prefill_tokens_per_sec = tokens_per_sec;
    }

    /// Load of the engine at `now`.
    pub(super) fn loads(&mut self, now: Duration) -> EngineLoad {
        self.run_to(now);
        let waiting = self
            .queue
            .iter()
            .map(|waiting| u64::from(waiting.uncached_tokens));
        let prompts: u64 = self
            .prompt_tokens
            .values()
            .map(|tokens| u64::from(*tokens))
            .sum();
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

    pub(super) fn totals(&self) -> EngineLoad {
        self.totals
    }

    fn running(&self) -> usize {
        usize::from(self.prefill.is_some()) + self.decode.len()
    }

    fn is_full(&self) -> bool {
        self.running() >= self.options.max_running_requests.max(1)
    }

    /// Processes every event up to and including `now`.
    fn run_to(&mut self, now: Duration) {
        let now = now.max(self.now);
        loop {
            let prefill = self.prefill.as_ref().map(|prefill| prefill.ends);
            let decode = self.decode.next_event();
            match (prefill, decode) {
                // At a tie prefill ends first, so its request joins the step that starts then.
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
        self.decode.skip_to(now);
    }

    fn end_prefill(&mut self, at: Duration) {
        let Some(done) = self.prefill.take() else {
            return;
        };
        self.cache.touch(&done.pages);
        let Prefill {
            id: request,
            cached_tokens,
            output_tokens,
            ..
        } = done;
        if output_tokens <= 1 || self.decode.is_instant() {
            let kind = EventKind::Finished {
                tokens: output_tokens,
                cached_tokens,
            };
            self.events.push(Event { at, request, kind });
            self.count_finished(request, output_tokens);
        } else {
            let kind = EventKind::FirstToken { cached_tokens };
            self.events.push(Event { at, request, kind });
            self.decode.skip_to(at);
            let member = Member {
                request,
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
        self.decode.run_to_event(at, &mut self.events);
        for index in first_new..self.events.len() {
            let event = self.events[index];
            if let EventKind::Finished { tokens, .. } = event.kind {
                self.count_finished(event.request, tokens);
            }
        }
        self.admit();
    }

    fn count_finished(&mut self, request: RequestId, tokens: u32) {
        self.prompt_tokens.remove(&request.0);
        self.totals.finished_total += 1;
        self.totals.output_tokens_total += u64::from(tokens);
    }

    /// Starts the next prefill if a slot is free.
    fn admit(&mut self) {
        if self.prefill.is_some() || self.is_full() {
            return;
        }
        if let Some(Waiting { id, request, .. }) = self.queue.pop_front() {
            self.start_prefill(id, request);
        }
    }

    fn start_prefill(&mut self, id: RequestId, mut request: SimRequest) {
        let cached_tokens = self.cached_tokens(&request);
        let tokens = request.prompt.tokens();
        let pages = request.prompt.take_pages();
        self.cache
            .touch(&pages[..(cached_tokens / self.options.page_size.max(1)) as usize]);
        self.totals.prompt_tokens_total += u64::from(tokens);
        self.totals.cached_tokens_total += u64::from(cached_tokens);
        self.totals.computed_tokens_total += u64::from(tokens - cached_tokens);
        let takes = self.prefill_time(tokens - cached_tokens);
        self.totals.prefill_time += takes;
        self.prompt_tokens.insert(id.0, tokens);
        self.prefill = Some(Prefill {
            id,
            pages,
            output_tokens: request.output_tokens,
            watched: request.watched,
            cached_tokens,
            ends: self.now + takes,
        });
    }

    /// Tokens of whole cached pages.
    fn cached_tokens(&self, request: &SimRequest) -> u32 {
        let page_size = self.options.page_size.max(1);
        let pages = request.prompt.pages();
        let usable = (request.prompt.reusable_tokens() / page_size) as usize;
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
