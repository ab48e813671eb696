//! A worker of the plain model: a prefill server, a prefix cache, and a batch that decodes.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::options::FleetOptions;
use super::report::PrefillWork;
use super::step::{Lost, Step};
use super::trace::Trace;
use crate::engine::PrefixCache;

/// Speeds and limits, in seconds and tokens.
#[derive(Clone, Copy, Debug)]
struct Model {
    prefill_tps: f64,
    block_tokens: u32,
    decode: f64,
    per_seq: f64,
    interference: f64,
    output_scale: f64,
    max_running: usize,
    max_queued: usize,
}

/// A worker. Its state is that at `now`; all rates are constant between two events.
#[derive(Debug)]
pub(super) struct SplitWorker<'t> {
    trace: &'t Trace,
    model: Model,
    now: f64,
    /// How many times longer everything takes.
    slowness: f64,
    cache: PrefixCache,
    queue: VecDeque<usize>,
    prefill: Option<Prefill>,
    /// Tokens that a member of the batch would have generated since the batch began.
    progress: f64,
    /// Requests that decode, by their progress at the end (positive floats order as their bits).
    batch: BinaryHeap<Reverse<(u64, usize)>>,
    work: PrefillWork,
}

/// The prefill in progress.
#[derive(Clone, Copy, Debug)]
struct Prefill {
    request: usize,
    /// Tokens of its prompt that were cached.
    cached: u64,
    /// Seconds left at full speed.
    left: f64,
}

impl<'t> SplitWorker<'t> {
    pub(super) fn new(trace: &'t Trace, options: &FleetOptions) -> Self {
        let model = Model {
            prefill_tps: options.prefill_tps,
            block_tokens: options.block_tokens,
            decode: options.decode_ms / 1000.0,
            per_seq: options.decode_per_seq_ms / 1000.0,
            interference: options.decode_interference,
            output_scale: options.output_scale,
            max_running: options.max_running,
            max_queued: options.max_queued,
        };
        Self {
            trace,
            model,
            now: 0.0,
            slowness: 1.0,
            cache: PrefixCache::new(options.cache_blocks()),
            queue: VecDeque::new(),
            prefill: None,
            progress: 0.0,
            batch: BinaryHeap::new(),
            work: PrefillWork::default(),
        }
    }

    /// Prefill work so far.
    pub(super) fn work(&self) -> PrefillWork {
        self.work
    }

    /// Adds a request; false if the queue is full.
    pub(super) fn submit(&mut self, now: f64, request: usize) -> bool {
        self.advance(now);
        let must_wait = self.prefill.is_some() || !self.queue.is_empty() || self.is_full();
        if must_wait && self.queue.len() >= self.model.max_queued {
            return false;
        }
        self.queue.push_back(request);
        self.admit();
        true
    }

    /// Time of the next step; infinite while idle.
    pub(super) fn next(&self) -> f64 {
        self.prefill_end().min(self.decode_end())
    }

    /// Performs the next step.
    pub(super) fn step(&mut self) -> Option<Step> {
        let (prefill, decode) = (self.prefill_end(), self.decode_end());
        self.advance(prefill.min(decode));
        // At a tie prefill ends first.
        let step = if let Some(Prefill {
            request, cached, ..
        }) = self.prefill.take_if(|_| prefill <= decode)
        {
            let tokens = f64::from(self.trace.output(request)) * self.model.output_scale;
            let end = self.progress + (tokens - 1.0).max(0.0);
            self.batch.push(Reverse((end.to_bits(), request)));
            Step::FirstToken { request, cached }
        } else {
            let Reverse((end, request)) = self.batch.pop()?;
            self.progress = f64::from_bits(end);
            Step::Finished(request)
        };
        if self.batch.is_empty() {
            self.progress = 0.0;
        }
        self.admit();
        Some(step)
    }

    /// Kills the worker: its cache is empty when it joins again.
    pub(super) fn kill(&mut self, now: f64) -> Lost {
        self.advance(now);
        self.cache.clear();
        let prefill = self.prefill.take().map(|prefill| prefill.request);
        let mut cut: Vec<_> = self
            .batch
            .drain()
            .map(|Reverse((_, request))| request)
            .collect();
        cut.sort_unstable();
        Lost {
            waiting: prefill.into_iter().chain(self.queue.drain(..)).collect(),
            cut,
        }
    }

    /// From now on everything takes so many times longer.
    pub(super) fn slow_down(&mut self, now: f64, slowness: f64) {
        self.advance(now);
        self.slowness = slowness;
    }

    /// Empties the cache.
    pub(super) fn flush(&mut self) {
        self.cache.clear();
    }

    fn is_full(&self) -> bool {
        self.batch.len() >= self.model.max_running
    }

    /// Advances time, up to the next step at most.
    fn advance(&mut self, to: f64) {
        let passed = (to - self.now).max(0.0);
        let (speed, token) = (self.prefill_speed(), self.token_time());
        if let Some(Prefill { left, .. }) = &mut self.prefill {
            *left = (*left - passed * speed).max(0.0);
        }
        if token > 0.0 && !self.batch.is_empty() {
            self.progress += passed / token;
        }
        self.now = self.now.max(to);
    }

    /// Starts the next prefill if a slot is free.
    fn admit(&mut self) {
        if self.prefill.is_some() || self.is_full() {
            return;
        }
        if let Some(request) = self.queue.pop_front() {
            let pages = self.trace.pages(request);
            let tokens = self.trace.tokens(request, self.model.block_tokens);
            let cached = self.cache.matched(pages) as u64 * u64::from(self.model.block_tokens);
            self.cache.touch(pages);
            self.work.prompt_tokens += tokens;
            self.work.cached_tokens += cached;
            let left = (tokens - cached) as f64 / self.model.prefill_tps;
            self.prefill = Some(Prefill {
                request,
                cached,
                left,
            });
        }
    }

    fn prefill_end(&self) -> f64 {
        self.prefill.map_or(f64::INFINITY, |prefill| {
            self.now + prefill.left / self.prefill_speed()
        })
    }

    fn decode_end(&self) -> f64 {
        self.batch
            .peek()
            .map_or(f64::INFINITY, |Reverse((end, _))| {
                self.now + (f64::from_bits(*end) - self.progress).max(0.0) * self.token_time()
            })
    }

    /// Above 0 while a prefill runs, because the prefill occupies a slot of the batch.
    fn prefill_speed(&self) -> f64 {
        let busy = self.batch.len() as f64 / self.model.max_running as f64;
        (1.0 - self.model.interference * busy) / self.slowness
    }

    fn token_time(&self) -> f64 {
        let others = self.batch.len().saturating_sub(1) as f64;
        (self.model.decode + self.model.per_seq * others) * self.slowness
    }
}
