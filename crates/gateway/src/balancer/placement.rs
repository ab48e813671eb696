//! Selecting a worker for one request, and acquiring a share of it.

use std::borrow::Cow;
use std::sync::Arc;

use routing::{Branch, Candidate, Candidates, PolicyKind, Request, ramp};

use super::balancer::Balancer;
use super::in_flight::{InFlight, PromptLoad};
use super::select_error::SelectError;
use super::snapshot::{Snapshot, WorkerPool};
use crate::config::WorkerUrl;
use crate::fleet::{BreakerPermit, Worker, acquire_breaker_permit};

/// What narrows the choice for a request.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Constraints<'a> {
    /// The client's `X-SMG-Target-Worker`: a worker's index, URL or id.
    pub(crate) target: Option<&'a str>,
    /// Slots of workers where the request has failed.
    pub(crate) tried: &'a [usize],
}

/// A routing decision.
#[derive(Debug)]
pub(crate) struct Selection {
    pub(crate) in_flight: InFlight,
    /// The policy that chose.
    pub(crate) policy: PolicyKind,
    /// Prompt tokens believed to be cached at the worker.
    pub(crate) matched_tokens: u64,
    /// Which way the choice came about, where there are several.
    pub(crate) branch: Option<Branch>,
    /// Prompt tokens that waited there before.
    pub(crate) queued_before: u64,
    /// Requests in flight there before.
    pub(crate) requests_before: usize,
}

/// Times a request looks at the fleet when others take its share.
const MAX_RACES: usize = 8;

/// Selects a worker and counts the request there.
pub(crate) fn select(
    balancer: &Arc<Balancer>,
    request: &Request<'_>,
    constraints: Constraints<'_>,
) -> Result<Selection, SelectError> {
    let mut selection = try_select(balancer, request, constraints);
    for _ in 0..MAX_RACES {
        match selection {
            // The snapshot was out of date.
            Err(SelectError::Raced) => selection = try_select(balancer, request, constraints),
            selection => return selection,
        }
    }
    selection
}

fn try_select(
    balancer: &Arc<Balancer>,
    request: &Request<'_>,
    constraints: Constraints<'_>,
) -> Result<Selection, SelectError> {
    let snapshot = balancer.snapshot();
    let pool = match (snapshot.pool(request), constraints.target) {
        (Ok(pool), _) => pool,
        // The client names the worker itself.
        (Err(_), Some(_)) => &snapshot.any_model,
        (Err(why), None) => return Err(why),
    };
    let view = View {
        balancer,
        snapshot: &snapshot,
        pool,
        request,
    };
    let mut from = view.candidates(constraints)?;
    loop {
        let candidates = Candidates::new(&from).ok_or(SelectError::Raced)?;
        let instance = &view.pool.instance;
        let pick = instance.policy.pick(candidates, request);
        let (slot, matched_tokens) = (pick.candidate.slot, pick.matched_tokens);
        let worker = snapshot.worker(slot).ok_or(SelectError::NoneReady)?;
        let queued_before = worker.load.queued_tokens();
        let requests_before = worker.load.requests();
        if let Some(in_flight) = view.acquire(worker, matched_tokens) {
            let targeted = constraints.target.map(|_| Branch::TargetWorkerHit);
            return Ok(Selection {
                in_flight,
                policy: instance.kind,
                matched_tokens,
                branch: targeted.or(pick.branch),
                queued_before,
                requests_before,
            });
        }
        // Another request took the worker's last share.
        from.to_mut().retain(|candidate| candidate.slot != slot);
    }
}

/// The fleet, as one request sees it.
struct View<'a> {
    balancer: &'a Arc<Balancer>,
    snapshot: &'a Snapshot,
    pool: &'a WorkerPool,
    request: &'a Request<'a>,
}

impl<'a> View<'a> {
    /// The candidates; nothing is copied unless something narrows the choice.
    fn candidates(
        &self,
        constraints: Constraints<'_>,
    ) -> Result<Cow<'a, [Candidate]>, SelectError> {
        let pool = self.pool;
        let mut from = match constraints.target {
            None => Cow::Borrowed(&*pool.selectable),
            Some(target) => Cow::Owned(self.resolve_target(target)),
        };
        let untried = |candidate: &Candidate| !constraints.tried.contains(&candidate.slot);
        if !constraints.tried.is_empty() {
            from.to_mut().retain(untried);
        }
        if from.is_empty() && constraints.target.is_none() {
            from = Cow::Borrowed(&pool.fallback);
            from.to_mut().retain(untried);
        }
        if from.is_empty() {
            return Err(if constraints.tried.is_empty() {
                SelectError::NoneReady
            } else {
                SelectError::Exhausted
            });
        }
        if let Some(limits) = self.balancer.limits() {
            let full = |candidate: &Candidate| candidate.load.requests() >= limits.per_worker;
            if from.iter().any(full) {
                from.to_mut().retain(|candidate| !full(candidate));
                if from.is_empty() {
                    return Err(SelectError::AtCapacity);
                }
            }
        }
        // A sticky policy would give the keys of a worker that is left out to others.
        let sticky = pool.instance.kind.is_sticky();
        if !self.snapshot.warming_up.is_empty() && from.len() > 1 && !sticky {
            self.thin_warming_up(from.to_mut());
        }
        Ok(from)
    }

    /// Leaves out the workers in slow start whose turn it is not, unless none would be left.
    fn thin_warming_up(&self, from: &mut Vec<Candidate>) {
        let fleet = &self.balancer.fleet;
        let (now, slow_start) = (fleet.now(), fleet.slow_start());
        let candidates = from.len();
        let has_turn = |candidate: &Candidate| {
            let mut warming_up = self.snapshot.warming_up.iter();
            let found = warming_up.find(|(slot, _)| *slot == candidate.slot);
            let worker = self.snapshot.worker(candidate.slot);
            found.zip(worker).is_none_or(|((_, since), worker)| {
                let ramp = ramp(now.saturating_sub(*since), slow_start);
                worker.turns.earn(ramp, candidates)
            })
        };
        let kept: Vec<bool> = from.iter().map(has_turn).collect();
        if kept.contains(&true) {
            let mut kept = kept.into_iter();
            from.retain(|_| kept.next().unwrap_or(true));
        }
    }

    /// The worker that a client names, whatever its model; or none.
    fn resolve_target(&self, target: &str) -> Vec<Candidate> {
        let index = target.parse().ok();
        let url = index.is_none().then(|| WorkerUrl::parse(target).ok());
        let url = url.flatten();
        let named = |(candidate, worker): &(&Candidate, &Arc<Worker>)| {
            index == Some(candidate.slot)
                || url.as_ref() == Some(worker.url())
                || worker.has_id(target)
        };
        let any_model = &self.snapshot.any_model;
        let known = any_model.selectable.iter().chain(&any_model.fallback);
        let mut known = known.filter_map(|it| Some((it, self.snapshot.worker(it.slot)?)));
        let found = known.find(named);
        found
            .map(|(candidate, _)| candidate.clone())
            .into_iter()
            .collect()
    }

    /// A share of this worker, unless its limit or its half-open breaker forbids it.
    fn acquire(&self, worker: &Arc<Worker>, matched_tokens: u64) -> Option<InFlight> {
        let tokens = self.request.prompt.tokens();
        let uncached = tokens.saturating_sub(matched_tokens);
        let lease = match self.balancer.limits() {
            None => worker.load.lease(uncached),
            Some(limits) => worker.load.lease_below(limits.per_worker, uncached)?,
        };
        if worker.is_draining() {
            // The snapshot was out of date; the lease is given back.
            return None;
        }
        let trial = if worker.is_clean() {
            None
        } else {
            match acquire_breaker_permit(&self.balancer.fleet, worker) {
                BreakerPermit::Closed => None,
                BreakerPermit::HalfOpen(trial) => Some(trial),
                // Not on trial: its success says little while so many fail.
                BreakerPermit::Rejected if self.pool.panicking => None,
                BreakerPermit::Rejected => return None,
            }
        };
        let mut warming_up = self.snapshot.warming_up.iter();
        if warming_up.any(|(slot, _)| *slot == worker.slot) {
            worker.turns.spend();
        }
        let prompt = PromptLoad { tokens, lease };
        Some(InFlight::new(self.balancer, worker, prompt, trial))
    }
}
