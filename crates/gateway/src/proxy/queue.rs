//! A worker for a request; where all are at their limit, after a wait.

use std::collections::BTreeSet;

use routing::Branch;
use tokio::time::Instant;

use super::attempts::Attempts;
use super::dispatcher::Dispatcher;
use super::request::ProxyRequest;
use crate::admission::{QueueError, QueueLimits, WaitFor};
use crate::balancer::{Balancer, Constraints, SelectError, Selection, select};
use crate::error::Error;
use crate::fleet::retry_after_secs;

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
    let selected = queue.wait(what, limits.size, until, acquire).await;
    selected.map_err(|why| {
        dispatcher.metrics.rejected();
        queue_error(why, limits, queue.waiting())
    })
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
        QueueError::Full => Error::QueueFull {
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
