//! What all exchanges share, and the decision to try again.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use routing::{Outcome, Retry, RetryBudget, SeededRng};
use tokio::time::{Instant, sleep};

use super::attempts::Attempts;
use super::explain::{CandidateRanking, Explainer};
use super::idle_timeout::Supervision;
use super::owners::Owners;
use super::pair::{Aborts, Rooms};
use super::request::ProxyRequest;
use super::request_head::{ForwardedHead, HeaderRules};
use crate::balancer::Balancer;
use crate::config::{Live, LiveSection, PdMetadata, ProxySection, WorkerNames};
use crate::cpu_pool::CpuPool;
use crate::endpoint::{INFERENCE, Inference};
use crate::fleet::Worker;
use crate::telemetry::{BranchMetrics, Metrics};
use crate::upstream::ControlClient;
use crate::via::Via;

/// The settings and the state that all exchanges share. Decides on retries and pauses.
#[derive(Debug)]
pub(crate) struct Dispatcher {
    pub(super) balancer: Arc<Balancer>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) branches: BranchMetrics,
    pub(super) live: Live,
    pub(super) rules: HeaderRules,
    pub(super) explainer: Explainer,
    pub(super) owners: Owners,
    pub(super) aborts: Aborts,
    pub(super) rooms: Rooms,
    pub(super) pd_metadata: PdMetadata,
    pub(super) cpu_pool: CpuPool,
    /// Clients neither see nor choose workers.
    pub(super) hide_routing: bool,
    /// The endpoints that some worker has served: one that does not have them is the exception.
    served: [AtomicBool; INFERENCE.len()],
    budget: Mutex<RetryBudget>,
}

/// How workers are called, and how calls are ended.
#[derive(Debug)]
pub(crate) struct WorkerCalls {
    rules: HeaderRules,
    aborts: Aborts,
    cpu_pool: CpuPool,
}

impl WorkerCalls {
    /// Calls marked with `via`; `client` ends those that are no longer wanted.
    pub(crate) fn new(
        options: &ProxySection,
        via: &Via,
        client: ControlClient,
        cpu_pool: &CpuPool,
    ) -> Self {
        Self {
            cpu_pool: cpu_pool.clone(),
            rules: HeaderRules::new(options, via),
            aborts: Aborts::new(client),
        }
    }
}

impl Dispatcher {
    pub(crate) fn new(
        options: &ProxySection,
        calls: WorkerCalls,
        live: Live,
        balancer: &Arc<Balancer>,
        metrics: &Arc<Metrics>,
    ) -> Self {
        let WorkerCalls {
            rules,
            aborts,
            cpu_pool,
        } = calls;
        let (ratio, floor) = (options.retry_budget_ratio, options.retry_budget_floor);
        Self {
            branches: metrics.branches(balancer.policy()),
            live,
            rules,
            owners: Owners::default(),
            aborts,
            rooms: Rooms::default(),
            pd_metadata: options.pd_metadata,
            cpu_pool,
            hide_routing: options.hide_routing,
            served: Default::default(),
            explainer: Explainer::new(Arc::clone(balancer), options.lanes),
            budget: Mutex::new(RetryBudget::new(ratio, floor)),
            balancer: Arc::clone(balancer),
            metrics: Arc::clone(metrics),
        }
    }

    /// What of a request's head goes to a worker.
    pub(super) fn head(&self, request: &ProxyRequest<'_>, worker: &Worker) -> ForwardedHead<'_> {
        let principal = request.context.principal;
        self.rules
            .head(&worker.endpoint, &request.parts.headers, principal)
    }

    /// Whether clients learn which worker an error is about.
    pub(super) fn worker_names(&self) -> WorkerNames {
        if self.hide_routing {
            WorkerNames::Hidden
        } else {
            WorkerNames::Shown
        }
    }

    /// A worker has served this endpoint.
    pub(super) fn set_served(&self, row: &Inference) {
        if let Some(served) = self.served.get(row.index)
            && !served.load(Relaxed)
        {
            served.store(true, Relaxed);
        }
    }

    /// Whether some worker has ever served this endpoint.
    pub(super) fn is_served(&self, row: &Inference) -> bool {
        let served = self.served.get(row.index);
        served.is_some_and(|served| served.load(Relaxed))
    }

    /// Whether another worker may take what this one refuses with such a status.
    pub(super) fn is_disputed(
        &self,
        request: &ProxyRequest<'_>,
        worker: &Worker,
        status: u16,
    ) -> bool {
        let headers = &request.parts.headers;
        match status {
            401 | 403 => {
                let head = self.head(request, worker);
                !head.shows_clients_key(headers)
            }
            404 => self.is_served(request.row),
            _ => false,
        }
    }

    /// How the body of a worker's response is watched.
    pub(super) fn supervision(&self, worker: &Arc<Worker>, live: &LiveSection) -> Supervision {
        Supervision {
            fleet: Arc::clone(&self.balancer.fleet),
            worker: Arc::clone(worker),
            probe_after: live.probe_after,
            limit: live.request_timeout,
        }
    }

    /// The candidates of a request whose client asks why, and may know.
    pub(super) fn ranking(&self, request: &ProxyRequest<'_>) -> Option<CandidateRanking> {
        if self.hide_routing {
            return None;
        }
        self.explainer.ranking(request)
    }

    /// Whether a request whose last attempt ended so is tried again.
    pub(super) fn should_retry(
        &self,
        request: &ProxyRequest<'_>,
        outcome: Outcome,
        worker: &Worker,
        attempts: &mut Attempts,
    ) -> bool {
        let retry = outcome.consequence().retry;
        let disputed_again = retry == Retry::Once && attempts.was_disputed();
        if retry == Retry::No || disputed_again || request.live.retry.attempts <= 1 {
            return false;
        }
        if outcome == Outcome::NoResponse && attempts.ends_workers() {
            return false;
        }
        let late = attempts.deadline.is_some_and(|at| Instant::now() >= at);
        if late || attempts.count >= request.live.retry.attempts {
            let worker_type = worker.role().worker_type();
            let endpoint = request.row.label;
            self.metrics.retries_exhausted(worker_type, endpoint);
            return false;
        }
        let free = match outcome {
            // Nothing was sent.
            Outcome::NotConnected => true,
            Outcome::Disputed(_) => {
                attempts.dispute();
                return true;
            }
            _ => retry == Retry::Free && !attempts.free_retry_used,
        };
        if free {
            attempts.free_retry_used |= outcome != Outcome::NotConnected;
            return true;
        }
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.balancer.fleet.now();
        let granted = budget.take(self.explainer.decided_requests(), now);
        if !granted {
            let worker_type = worker.role().worker_type();
            self.metrics.retry_denied(worker_type, request.row.label);
        }
        granted
    }

    /// Sets the gauge of the retry budget.
    pub(crate) fn update_gauges(&self) {
        let budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        let (requests, now) = (self.explainer.decided_requests(), self.balancer.fleet.now());
        let available = budget.available(requests, now);
        drop(budget);
        self.metrics.resilience.retry_budget.set(available as i64);
    }

    /// Waits before workers that failed are tried again; false when that makes no sense.
    pub(super) async fn back_off(
        &self,
        request: &ProxyRequest<'_>,
        attempts: &mut Attempts,
    ) -> bool {
        let mut rng = SeededRng::new(request.routing.seed.rotate_left(16));
        let pause = request.live.retry.backoff(attempts.count, &mut rng);
        let end = Instant::now() + pause;
        if attempts.count >= request.live.retry.attempts
            || attempts.deadline.is_some_and(|at| end >= at)
        {
            return false;
        }
        self.metrics.backoff(attempts.count, pause);
        attempts.begin_round();
        // A pause counts as an attempt: a fleet that stays away is not waited for without end.
        attempts.count += 1;
        sleep(pause).await;
        true
    }
}
