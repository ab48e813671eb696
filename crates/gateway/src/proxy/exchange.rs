//! One request's way: attempt after attempt, until a worker answers or trying on makes no sense.

use std::sync::Arc;

use routing::{Branch, Outcome};

use super::attempt::{self, AttemptResult};
use super::attempts::Attempts;
use super::dispatcher::Dispatcher;
use super::explain::CandidateRanking;
use super::pair::{self, PairInFlight};
use super::queue;
use super::request::ProxyRequest;
use super::request_timer::RequestTimer;
use crate::balancer::Selection;
use crate::error::Error;
use crate::telemetry::{Choice, Route};

/// A request under way.
pub(super) struct Exchange<'a> {
    dispatcher: &'a Dispatcher,
    request: &'a ProxyRequest<'a>,
    attempts: Attempts,
    /// Begins with the first attempt.
    timer: Option<RequestTimer>,
}

/// What the client gets, and what measures the rest of it.
pub(super) struct Finished {
    pub(super) result: AttemptResult,
    pub(super) timer: Option<RequestTimer>,
}

impl<'a> Exchange<'a> {
    pub(super) fn new(dispatcher: &'a Dispatcher, request: &'a ProxyRequest<'a>) -> Self {
        Self {
            dispatcher,
            request,
            attempts: Attempts::default(),
            timer: None,
        }
    }

    /// Sends the request, again where that may help. The last attempt's answer is the client's.
    ///
    /// # Errors
    /// When no worker could be selected at all.
    pub(super) async fn run(mut self) -> Result<Finished, Error> {
        let result = self.attempt_in_turn().await;
        self.attempts.assign_blame(&self.dispatcher.balancer.fleet);
        if result.is_err() {
            let ProxyRequest {
                context, routing, ..
            } = self.request;
            context.log.not_routed(routing.model);
        }
        result.map(|result| Finished {
            result,
            timer: self.timer,
        })
    }

    async fn attempt_in_turn(&mut self) -> Result<AttemptResult, Error> {
        let (dispatcher, request) = (self.dispatcher, self.request);
        let mut last: Option<AttemptResult> = None;
        loop {
            let ranking = dispatcher.ranking(request);
            let entered = request.context.log.enter_queue();
            let selected = queue::select_or_wait(dispatcher, request, &mut self.attempts).await;
            request.context.log.leave_queue(entered);
            let selection = match selected {
                Ok(selection) => selection,
                Err(error) => {
                    let result = last.ok_or(error)?;
                    // Without another worker, a refusal stands. Otherwise every worker left has
                    // failed already: later, perhaps.
                    if self.attempts.is_refused_by_all()
                        || !dispatcher.back_off(request, &mut self.attempts).await
                    {
                        return Ok(result);
                    }
                    last = Some(result);
                    continue;
                }
            };
            if let Some(last) = &last {
                let failed = last.worker.role().worker_type();
                dispatcher.metrics.retry(failed, request.row.label);
            }
            let (result, outcome) = self.attempt(selection, ranking).await;
            if result.in_flight.is_some() {
                // A worker's refusal says more to a client than that another one was
                // unreachable; but not more than a response that broke off.
                let final_failure = matches!(outcome, Outcome::Truncated | Outcome::Malformed)
                    || self.attempts.ends_workers();
                let unreachable = result.answer.is_err() && !final_failure;
                let refused = last.filter(|last| unreachable && last.answer.is_ok());
                return Ok(refused.unwrap_or(result));
            }
            self.attempts.tried.push(result.worker.slot);
            last = Some(result);
        }
    }

    /// One attempt; its guard is kept when no other follows.
    async fn attempt(
        &mut self,
        selection: Selection,
        ranking: Option<CandidateRanking>,
    ) -> (AttemptResult, Outcome) {
        let (dispatcher, request) = (self.dispatcher, self.request);
        for chosen in selection.prefill.as_deref().into_iter().chain([&selection]) {
            if let Some(branch) = chosen.branch {
                dispatcher.branches.count(chosen.policy, branch);
            }
            if let Some(reason) = chosen.crossing {
                dispatcher.metrics.zones.crossed(reason);
            }
        }
        self.set_model(&selection);
        let explanation =
            dispatcher
                .explainer
                .explain(request, &selection, ranking, self.attempts.count);
        let attempt = match selection.prefill {
            None => {
                attempt::send(dispatcher, request, selection.in_flight, &mut self.attempts).await
            }
            Some(prefill) => {
                let pair = PairInFlight {
                    prefill: prefill.in_flight,
                    decode: selection.in_flight,
                };
                // Rare, so boxed: every attempt's future would be larger.
                Box::pin(pair::send(dispatcher, request, pair, &mut self.attempts)).await
            }
        };
        self.attempts.count += 1;
        if matches!(attempt.outcome, Outcome::Answered(101 | 200..=399)) {
            self.attempts.set_served();
            dispatcher.set_served(request.row);
        }
        let (outcome, attempts) = (attempt.outcome, &mut self.attempts);
        let again = dispatcher.should_retry(request, outcome, &attempt.worker, attempts);
        let answer = match attempt.answer {
            Err(_) if self.attempts.ends_workers() => Err(Error::RequestEndsWorkers),
            answer => answer,
        };
        let result = AttemptResult {
            answer,
            worker: attempt.worker,
            explanation,
            // The share of one worker is given back before another is asked for.
            in_flight: Some(attempt.in_flight).filter(|_| !again),
            coupling: attempt.coupling,
        };
        (result, attempt.outcome)
    }

    /// Counts the request, for the model of the worker it goes to now.
    fn set_model(&mut self, selection: &Selection) {
        if let Some(prefill) = selection.prefill.as_deref() {
            let info = prefill.in_flight.worker.endpoint.model_info.load();
            let worker_type = info.role.worker_type();
            info.metrics.selected(worker_type, prefill.policy);
        }
        let info = selection.in_flight.worker.endpoint.model_info.load();
        let worker_type = info.role.worker_type();
        info.metrics.selected(worker_type, selection.policy);
        let log = self.request.context.log;
        match &mut self.timer {
            Some(timer) => timer.restart(&info.metrics, selection, log),
            timer => *timer = Some(RequestTimer::start(self.request, &info.metrics, selection)),
        }
        if log.is_begun() {
            log.routed(Route {
                model: Arc::clone(&info.metrics.name),
                answer: choice(selection),
                prefill: selection.prefill.as_deref().map(choice),
                streaming: self.request.streaming,
            });
        }
    }
}

/// A decision, as log and spans show it.
fn choice(selection: &Selection) -> Choice {
    let worker = &selection.in_flight.worker;
    Choice {
        worker: Arc::clone(&worker.metrics().name),
        worker_type: worker.role().worker_type().as_str(),
        policy: selection.policy.as_str(),
        branch: selection.branch.map(Branch::as_str),
        matched_tokens: selection.matched_tokens,
        requests_before: selection.requests_before,
    }
}
