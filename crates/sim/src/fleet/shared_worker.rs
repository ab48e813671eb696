//! A worker of the shared model: an engine, and the requests in it.

use std::collections::VecDeque;
use std::time::Duration;

use super::options::FleetOptions;
use super::report::PrefillWork;
use super::step::{Lost, Step};
use super::trace::Trace;
use crate::engine::{Engine, EngineOptions, Event, EventKind, Prompt, SimRequest};

/// A worker. Its state is that at the last call.
#[derive(Debug)]
pub(super) struct SharedWorker<'t> {
    trace: &'t Trace,
    options: EngineOptions,
    block_tokens: u32,
    output_scale: f64,
    engine: Engine,
    now: Duration,
    /// Requests by number in this engine.
    requests: Vec<Entry>,
    steps: VecDeque<(Duration, Step)>,
    /// Totals of engines that died.
    before: PrefillWork,
}

/// A request and how far it has come.
#[derive(Clone, Copy, Debug)]
struct Entry {
    request: usize,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Waiting,
    Decoding,
    Ended,
}

impl<'t> SharedWorker<'t> {
    pub(super) fn new(trace: &'t Trace, options: &FleetOptions) -> Self {
        let engine = options.engine_options();
        Self {
            trace,
            engine: Engine::new(engine.clone()),
            options: engine,
            block_tokens: options.block_tokens,
            output_scale: options.output_scale,
            now: Duration::ZERO,
            requests: Vec::new(),
            steps: VecDeque::new(),
            before: PrefillWork::default(),
        }
    }

    pub(super) fn work(&self) -> PrefillWork {
        self.before.plus(&self.engine.totals())
    }

    pub(super) fn submit(&mut self, now: f64, request: usize) -> bool {
        let now = self.at(now);
        let pages = self.trace.pages(request).to_vec();
        let tokens = self.trace.tokens(request, self.block_tokens) as u32;
        let scaled = f64::from(self.trace.output(request)) * self.output_scale;
        #[expect(clippy::cast_sign_loss, reason = "lengths are not negative")]
        let output_tokens = (scaled.round() as u32).max(1);
        let submitted = self.engine.submit(
            now,
            SimRequest {
                prompt: Prompt::from_pages(pages, tokens),
                output_tokens,
                longest_output: self.trace.longest_output(request),
                watched: false,
            },
        );
        if submitted.is_ok() {
            let stage = Stage::Waiting;
            self.requests.push(Entry { request, stage });
        }
        self.collect(now);
        submitted.is_ok()
    }

    pub(super) fn next(&self) -> f64 {
        let step = self.steps.front().map(|(at, _)| *at);
        let next = step.or_else(|| self.engine.next_event());
        next.map_or(f64::INFINITY, |at| at.as_secs_f64())
    }

    pub(super) fn step(&mut self) -> Option<Step> {
        if self.steps.is_empty() {
            let next = self.engine.next_event()?;
            self.now = self.now.max(next);
            self.collect(next);
        }
        self.steps.pop_front().map(|(_, step)| step)
    }

    pub(super) fn kill(&mut self, now: f64) -> Lost {
        let now = self.at(now);
        self.collect(now);
        self.before = self.work();
        self.engine = Engine::new(self.options.clone());
        let mut lost = Lost::default();
        for Entry { request, stage } in self.requests.drain(..) {
            match stage {
                Stage::Waiting => lost.waiting.push(request),
                Stage::Decoding => lost.cut.push(request),
                Stage::Ended => {}
            }
        }
        // What ended at this very moment is not reported any more.
        for (_, step) in self.steps.drain(..) {
            let (Step::FirstToken { request, .. } | Step::Finished(request)) = step;
            if !lost.waiting.contains(&request) && !lost.cut.contains(&request) {
                lost.cut.push(request);
            }
        }
        lost.cut.sort_unstable();
        lost
    }

    pub(super) fn slow_down(&mut self, now: f64, slowness: f64) {
        let now = self.at(now);
        self.engine.set_slowness(now, slowness);
    }

    pub(super) fn flush(&mut self) {
        self.engine.drop_cache(self.now);
    }

    fn at(&mut self, now: f64) -> Duration {
        self.now = self.now.max(Duration::from_secs_f64(now));
        self.now
    }

    /// Turns the events up to `now` into steps.
    fn collect(&mut self, now: Duration) {
        for Event { at, request, kind } in self.engine.advance(now) {
            let entry = &mut self.requests[request.0 as usize];
            let (first, cached) = match kind {
                EventKind::FirstToken { cached_tokens } => (Stage::Decoding, cached_tokens),
                EventKind::Progress { .. } => continue,
                EventKind::Finished { cached_tokens, .. } => (Stage::Ended, cached_tokens),
            };
            if entry.stage == Stage::Waiting {
                let (request, cached) = (entry.request, cached.into());
                self.steps
                    .push_back((at, Step::FirstToken { request, cached }));
            }
            if first == Stage::Ended {
                self.steps.push_back((at, Step::Finished(entry.request)));
            }
            entry.stage = first;
        }
    }
}
