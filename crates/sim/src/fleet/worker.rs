//! One worker of the fleet: a prefill server, a prefix cache, and a batch that decodes.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::options::FleetOptions;
use super::trace::Trace;
use crate::engine::PrefixCache;

/// What happens next at a worker, and to which request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Its prompt is prefilled.
    FirstToken(usize),
    /// Its last token is made.
    Finished(usize),
}

/// Who was at a worker when it died.
#[derive(Debug, Default)]
pub(super) struct Lost {
    /// Without a first token, in order.
    pub(super) waiting: Vec<usize>,
    /// In the middle of their answers.
    pub(super) cut: Vec<usize>,
}

/// Rates, in seconds and tokens.
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

/// A worker. Its state stands at `now`; between two events all rates are constant.
#[derive(Debug)]
pub(super) struct Worker<'t> {
    trace: &'t Trace,
    model: Model,
    now: f64,
    cache: PrefixCache,
    queue: VecDeque<usize>,
    /// Who is being prefilled, and the seconds left at full speed.
    prefill: Option<(usize, f64)>,
    /// Tokens that each member of the batch would have made, had it been there all along.
    progress: f64,
    /// Who decodes, by the progress at which they end (positive floats order as their bits).
    batch: BinaryHeap<Reverse<(u64, usize)>>,
    prompt_tokens: u64,
    cached_tokens: u64,
}

impl<'t> Worker<'t> {
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
            cache: PrefixCache::new(options.cache_blocks()),
            queue: VecDeque::new(),
            prefill: None,
            progress: 0.0,
            batch: BinaryHeap::new(),
            prompt_tokens: 0,
            cached_tokens: 0,
        }
    }

    /// Prompt tokens of all prefills so far.
    pub(super) fn prompt_tokens(&self) -> u64 {
        self.prompt_tokens
    }

    /// Those of them that were in the cache.
    pub(super) fn cached_tokens(&self) -> u64 {
        self.cached_tokens
    }

    /// Takes a request in; false when the queue is full.
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

    /// When the next step comes; infinite while idle.
    pub(super) fn next(&self) -> f64 {
        self.prefill_end().min(self.decode_end())
    }

    /// Takes the next step.
    pub(super) fn step(&mut self) -> Option<Step> {
        let (prefill, decode) = (self.prefill_end(), self.decode_end());
        self.advance(prefill.min(decode));
        // At a tie prefill goes first.
        let step = if let Some((request, _)) = self.prefill.take_if(|_| prefill <= decode) {
            let tokens = f64::from(self.trace.output(request)) * self.model.output_scale;
            let end = self.progress + (tokens - 1.0).max(0.0);
            self.batch.push(Reverse((end.to_bits(), request)));
            Step::FirstToken(request)
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

    /// It dies, and comes back empty if it comes back.
    pub(super) fn kill(&mut self, now: f64) -> Lost {
        self.advance(now);
        self.cache.clear();
        let prefill = self.prefill.take().map(|(request, _)| request);
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

    /// Empties the cache.
    pub(super) fn flush(&mut self) {
        self.cache.clear();
    }

    fn is_full(&self) -> bool {
        self.batch.len() >= self.model.max_running
    }

    /// Lets time pass, up to the next step at most.
    fn advance(&mut self, to: f64) {
        let passed = (to - self.now).max(0.0);
        let (speed, token) = (self.prefill_speed(), self.token_time());
        if let Some((_, left)) = &mut self.prefill {
            *left = (*left - passed * speed).max(0.0);
        }
        if token > 0.0 && !self.batch.is_empty() {
            self.progress += passed / token;
        }
        self.now = self.now.max(to);
    }

    /// Starts the next prefill if there is room for it.
    fn admit(&mut self) {
        if self.prefill.is_some() || self.is_full() {
            return;
        }
        if let Some(request) = self.queue.pop_front() {
            let pages = self.trace.pages(request);
            let tokens = self.trace.tokens(request, self.model.block_tokens);
            let cached = self.cache.matched(pages) as u64 * u64::from(self.model.block_tokens);
            self.cache.touch(pages);
            self.prompt_tokens += tokens;
            self.cached_tokens += cached;
            self.prefill = Some((request, (tokens - cached) as f64 / self.model.prefill_tps));
        }
    }

    fn prefill_end(&self) -> f64 {
        self.prefill.map_or(f64::INFINITY, |(_, left)| {
            self.now + left / self.prefill_speed()
        })
    }

    fn decode_end(&self) -> f64 {
        self.batch
            .peek()
            .map_or(f64::INFINITY, |Reverse((end, _))| {
                self.now + (f64::from_bits(*end) - self.progress).max(0.0) * self.token_time()
            })
    }

    /// Above 0 whenever a prefill runs, because that takes a place of the batch.
    fn prefill_speed(&self) -> f64 {
        1.0 - self.model.interference * self.batch.len() as f64 / self.model.max_running as f64
    }

    fn token_time(&self) -> f64 {
        self.model.decode + self.model.per_seq * self.batch.len().saturating_sub(1) as f64
    }
}
