//! A worker for a request; where all are at their limit, after a wait.

use std::collections::BTreeSet;

use routing::{Branch, FairRules};
use tokio::time::Instant;

use super::attempts::Attempts;
use super::dispatcher::Dispatcher;
use super::request::{self, ProxyRequest};
use crate::admission::{Asker, QueueError, QueueLimits, WaitFor};
use crate::balancer::{Balancer, Constraints, SelectError, Selection, select};
use crate::error::Error;
use crate::fleet::retry_after_secs;
use crate::telemetry::SERVED;

/// Selects a worker that has not been tried.
///
/// # Errors
/// When no worker takes the request, or none has taken it by the end of the longest wait.
pub(super) async fn select_or_wait(
    dispatcher: &Dispatcher,
    request: &ProxyRequest<'_>,
    attempts: &mut Attempts,
) -> Result<Selection, Error> {
    let balancer = &dispatcher.balancer;
    let constraints = Constraints {
        target: request.target,
        tried: &attempts.tried,
        servers: request.servers(),
        grant: request.grant,
    };
    let restricted = request.target.is_some() || !attempts.tried.is_empty();
    let limits = balancer.limits();
    let queues_first =
        limits.filter(|_| !restricted && balancer.queue_of(request.routing).has_waiters());
    let at_capacity = match queues_first {
        Some(limits) => Some(limits),
        None => match select(balancer, request.routing, constraints) {
            Ok(selection) => return Ok(selection),
            Err(SelectError::AtCapacity) => limits,
            Err(SelectError::NoneReady) => {
                let branch = none_ready(dispatcher, request);
                dispatcher.branches.count(balancer.policy(), branch);
                None
            }
            Err(SelectError::Exhausted | SelectError::Raced) => None,
            Err(SelectError::MissingModel | SelectError::UnknownModel) => {
                let allowed = request.context.principal.models();
                return Err(unknown_model(balancer, request.routing.model, allowed));
            }
            Err(SelectError::NotGranted) => return Err(not_granted(request)),
            Err(SelectError::OnlyPairs) => return Err(only_pairs(request)),
        },
    };
    let none_available = || Error::NoAvailableWorkers {
        retry_after: retry_after_secs(&balancer.fleet),
    };
    let limits = at_capacity.ok_or_else(none_available)?;
    let queue_deadline = Instant::now() + limits.max_wait;
    let queue_deadline = *attempts.queue_deadline.get_or_insert(queue_deadline);
    let until = attempts
        .deadline
        .map_or(queue_deadline, |deadline| deadline.min(queue_deadline));
    let what = if restricted {
        WaitFor::SomeWorkers
    } else {
        WaitFor::AnyWorker
    };
    let queue = balancer.queue_of(request.routing);
    let acquire = || select(balancer, request.routing, constraints).ok();
    // Waits are rare, so boxed: every request's future would be larger.
    let selected = match limits.fair.filter(|_| !restricted) {
        None => Box::pin(queue.wait(what, until, acquire)).await,
        Some(rules) => Box::pin(wait_in_order(dispatcher, request, rules, until, acquire)).await,
    };
    selected.map_err(|why| {
        dispatcher.metrics.rejected();
        queue_error(why, limits, queue.waiting_anywhere())
    })
}

/// Waits for a worker in the fair order.
async fn wait_in_order(
    dispatcher: &Dispatcher,
    request: &ProxyRequest<'_>,
    rules: FairRules,
    until: Instant,
    acquire: impl FnMut() -> Option<Selection>,
) -> Result<Selection, QueueError> {
    let balancer = &dispatcher.balancer;
    let (asker, begun) = (asker(balancer, request), Instant::now());
    let queue = balancer.queue_of(request.routing);
    let waited = queue.wait_in_order(&asker, rules, until, acquire).await;
    let result = waited.as_ref().map_or_else(|why| why.as_str(), |_| SERVED);
    let waits = &dispatcher.metrics.waits;
    waits.ended(asker.class, result, begun.elapsed());
    waited
}

/// The request as the fair order knows it.
fn asker(balancer: &Balancer, request: &ProxyRequest<'_>) -> Asker {
    let routing = request.routing;
    let tokens = routing.prompt.tokens() + routing.output_tokens;
    Asker {
        prefers: balancer.preferred(routing),
        ..request::asker(request.parts, request.context.principal, tokens)
    }
}

/// Workers in pairs do not answer this, or give one answer.
fn only_pairs(request: &ProxyRequest<'_>) -> Error {
    match request.samples() {
        0 | 1 => Error::OnlyPairs(request.row.path),
        several => Error::PairSamples(several),
    }
}

/// Names that an error lists.
const MAX_NAMES: usize = 20;

fn list(names: &[impl AsRef<str>]) -> String {
    let shown = names.iter().take(MAX_NAMES).map(AsRef::as_ref);
    let mut list = shown.collect::<Vec<_>>().join(", ");
    if names.len() > MAX_NAMES {
        list += ", …";
    }
    list
}

/// The model that a request names is not served, or it names none of several. Of those a client
/// reads the ones that it may use.
pub(super) fn unknown_model(
    balancer: &Balancer,
    model: Option<&str>,
    allowed: Option<&BTreeSet<String>>,
) -> Error {
    let served = list(&balancer.served_models(allowed));
    match model.filter(|model| !model.is_empty()) {
        Some(model) => Error::ModelNotFound {
            model: model.to_owned(),
            served,
        },
        None => Error::MissingModel { served },
    }
}

/// The client's key has not the model, or not the adapter.
fn not_granted(request: &ProxyRequest<'_>) -> Error {
    let principal = request.context.principal;
    principal.count_refusal("models");
    let named = request.routing.model.filter(|model| !model.is_empty());
    let allowed: Vec<_> = principal.models().into_iter().flatten().collect();
    Error::ModelNotAllowed {
        model: named.map(str::to_owned),
        allowed: list(&allowed),
    }
}

fn queue_error(why: QueueError, limits: QueueLimits, waiting: usize) -> Error {
    let what = "max_requests_per_worker";
    match why {
        QueueError::Full | QueueError::PushedOut => Error::QueueFull {
            what,
            waiting,
            retry_after: 1,
        },
        QueueError::Timeout => Error::QueueTimeout {
            what,
            seconds: limits.max_wait.as_secs(),
        },
    }
}

/// Why a policy had no candidate.
fn none_ready(dispatcher: &Dispatcher, request: &ProxyRequest<'_>) -> Branch {
    if request.target.is_some() && dispatcher.balancer.fleet.ready_count() > 0 {
        Branch::TargetWorkerMiss
    } else {
        Branch::NoHealthyWorkers
    }
}
