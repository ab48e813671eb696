//! The replay of a trace, from its first request to its last token.

use std::ops::ControlFlow;

use super::candidate_policy::{CandidatePolicy, PairPolicies};
use super::options::FleetOptions;
use super::pairs::Pairs;
use super::report::Report;
use super::run::Fleet;
use super::trace::Trace;

/// Requests between two calls of `progress`.
const TICK: usize = 512;

/// Replays a trace. `progress` is called with the number of requests so far and may stop the run;
/// then the result is `None`. The options must be valid.
pub fn simulate(
    trace: &Trace,
    options: &FleetOptions,
    candidate: &CandidatePolicy,
    progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Option<Report> {
    let mut fleet = Fleet::new(trace, options, candidate);
    replay(trace, options, progress, |now, request| {
        fleet.run_until(now);
        if let Some(request) = request {
            fleet.route(request, now);
        }
    })?;
    Some(fleet.report(candidate.name()))
}

/// The same over prefill and decode workers.
pub fn simulate_pairs(
    trace: &Trace,
    options: &FleetOptions,
    policies: &PairPolicies,
    progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Option<Report> {
    let mut fleet = Pairs::new(trace, options, policies);
    replay(trace, options, progress, |now, request| {
        fleet.run_until(now);
        if let Some(request) = request {
            fleet.route(request, now);
        }
    })?;
    Some(fleet.report(policies.name()))
}

/// Calls `advance` with the time of each request and the request, then once with the end of time;
/// `None` when `progress` stops the run.
fn replay(
    trace: &Trace,
    options: &FleetOptions,
    progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
    mut advance: impl FnMut(f64, Option<usize>),
) -> Option<()> {
    for request in 0..trace.len() {
        if request % TICK == 0 && progress(request).is_break() {
            return None;
        }
        let now = trace.at_ms(request) / 1000.0 / options.speed;
        advance(now, Some(request));
    }
    advance(f64::MAX, None);
    progress(trace.len()).is_continue().then_some(())
}
