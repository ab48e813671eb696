//! An engine of either model.

use std::time::Duration;

use super::request::{
    EngineLoad, EngineOptions, Event, PromptSource, QueueFull, RequestId, SimRequest,
};
use super::shared::SharedEngine;
use super::split::SplitEngine;

/// One simulated inference engine (one data-parallel rank).
///
/// Deterministic: the same calls with the same times give the same events.
#[derive(Debug)]
pub struct Engine(Model);

#[derive(Debug)]
enum Model {
    Split(Box<SplitEngine>),
    Shared(Box<SharedEngine>),
}

/// Calls a method of the engine of whichever model.
macro_rules! either {
    ($engine:expr, $inner:ident => $call:expr) => {
        match &mut $engine.0 {
            Model::Split($inner) => $call,
            Model::Shared($inner) => $call,
        }
    };
}

impl Engine {
    /// An idle engine at time zero.
    pub fn new(options: EngineOptions) -> Self {
        Self(match options.shared.clone() {
            None => Model::Split(Box::new(SplitEngine::new(options))),
            Some(shared) => Model::Shared(Box::new(SharedEngine::new(options, shared))),
        })
    }

    /// Adds a request; it may finish at once (see [`Self::advance`]).
    pub fn submit(&mut self, now: Duration, request: SimRequest) -> Result<RequestId, QueueFull> {
        either!(self, engine => engine.submit(now, request))
    }

    /// Advances time and returns the events since the last call, in order.
    pub fn advance(&mut self, now: Duration) -> std::vec::Drain<'_, Event> {
        either!(self, engine => engine.advance(now))
    }

    /// Time of the next event that [`Self::advance`] may return; `None` while idle.
    pub fn next_event(&self) -> Option<Duration> {
        match &self.0 {
            Model::Split(engine) => engine.next_event(),
            Model::Shared(engine) => engine.next_event(),
        }
    }

    /// Removes a request from any stage and frees its slot at once. False if it has already ended.
    pub fn abort(&mut self, now: Duration, id: RequestId) -> bool {
        either!(self, engine => engine.abort(now, id))
    }

    /// Empties the prefix cache; false, and no change, while any request is running or waiting.
    pub fn flush_cache(&mut self, now: Duration) -> bool {
        either!(self, engine => engine.flush_cache(now))
    }

    /// Empties the prefix cache, whatever runs: requests that wait compute their prompts anew.
    pub(crate) fn drop_cache(&mut self, now: Duration) {
        either!(self, engine => engine.drop_cache(now));
    }

    /// Makes every further decode step longer by `extra` than the options say.
    pub(crate) fn slow_down(&mut self, now: Duration, extra: Duration) {
        either!(self, engine => engine.slow_down(now, extra));
    }

    /// Makes everything take so many times as long as the options say; the shared model only.
    pub(crate) fn set_slowness(&mut self, now: Duration, slowness: f64) {
        if let Model::Shared(engine) = &mut self.0 {
            engine.set_slowness(now, slowness);
        }
    }

    /// Where the prompts of further requests are computed.
    pub(crate) fn set_prompt_source(&mut self, now: Duration, source: PromptSource) {
        match (&mut self.0, source) {
            (Model::Split(engine), PromptSource::Computed(speed)) => {
                engine.set_prefill_speed(now, speed);
            }
            (Model::Split(engine), PromptSource::Received) => engine.set_prefill_speed(now, 0.0),
            (Model::Shared(engine), source) => {
                engine.set_prompt_source(now, source);
            }
        }
    }

    /// Its totals since start, and nothing of its present load.
    pub(crate) fn totals(&self) -> EngineLoad {
        match &self.0 {
            Model::Split(engine) => engine.totals(),
            Model::Shared(engine) => engine.totals(),
        }
    }

    /// Load of the engine at `now`.
    pub fn loads(&mut self, now: Duration) -> EngineLoad {
        either!(self, engine => engine.loads(now))
    }
}
