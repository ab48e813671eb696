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
    let mut fleet = Fleet::new(trace, options, candidate.build(options));
    for request in 0..trace.len() {
        if request % TICK == 0 && progress(request).is_break() {
            return None;
        }
        let now = trace.at_ms(request) / 1000.0 / options.speed;
        fleet.run_until(now);
        fleet.route(request, now);
    }
    fleet.run_until(f64::MAX);
    progress(trace.len())
        .is_continue()
        .then(|| fleet.report(candidate.name()))
}

/// The same over prefill and decode workers.
pub fn simulate_pairs(
    trace: &Trace,
    options: &FleetOptions,
    policies: &PairPolicies,
    progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Option<Report> {
    let mut fleet = Pairs::new(trace, options, policies);
    for request in 0..trace.len() {
        if request % TICK == 0 && progress(request).is_break() {
            return None;
        }
        let now = trace.at_ms(request) / 1000.0 / options.speed;
        fleet.run_until(now);
        fleet.route(request, now);
    }
    fleet.run_until(f64::MAX);
    progress(trace.len())
        .is_continue()
        .then(|| fleet.report(policies.name()))
}
