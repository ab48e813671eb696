//! One worker of the fleet, of either model.

use super::options::FleetOptions;
use super::report::PrefillWork;
use super::shared_worker::SharedWorker;
use super::split_worker::SplitWorker;
use super::step::{Lost, Step};
use super::trace::Trace;
use crate::engine::EngineModel;

/// A worker. Times are seconds.
#[derive(Debug)]
pub(super) enum Worker<'t> {
    Split(Box<SplitWorker<'t>>),
    Shared(Box<SharedWorker<'t>>),
}

/// Calls a method of the worker of whichever model.
macro_rules! either {
    ($worker:expr, $inner:ident => $call:expr) => {
        match $worker {
            Worker::Split($inner) => $call,
            Worker::Shared($inner) => $call,
        }
    };
}

impl<'t> Worker<'t> {
    pub(super) fn new(trace: &'t Trace, options: &FleetOptions) -> Self {
        match options.engine_model {
            EngineModel::Split => Self::Split(Box::new(SplitWorker::new(trace, options))),
            EngineModel::Shared => Self::Shared(Box::new(SharedWorker::new(trace, options))),
        }
    }

    /// Prefill work so far.
    pub(super) fn work(&self) -> PrefillWork {
        either!(self, worker => worker.work())
    }

    /// Adds a request; false if the queue is full.
    pub(super) fn submit(&mut self, now: f64, request: usize) -> bool {
        either!(self, worker => worker.submit(now, request))
    }

    /// Time of the next step; infinite while idle.
    pub(super) fn next(&self) -> f64 {
        either!(self, worker => worker.next())
    }

    /// Performs the next step.
    pub(super) fn step(&mut self) -> Option<Step> {
        either!(self, worker => worker.step())
    }

    /// Kills the worker: its cache is empty when it joins again.
    pub(super) fn kill(&mut self, now: f64) -> Lost {
        either!(self, worker => worker.kill(now))
    }

    /// From now on everything takes so many times longer.
    pub(super) fn slow_down(&mut self, now: f64, slowness: f64) {
        either!(self, worker => worker.slow_down(now, slowness));
    }

    /// Empties the cache.
    pub(super) fn flush(&mut self) {
        either!(self, worker => worker.flush());
    }
}
