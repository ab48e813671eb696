//! The workers of one role, as one request sees them, and acquiring a share of one.

use std::borrow::Cow;
use std::sync::Arc;

use routing::{
    Branch, Candidate, Candidates, Crossing, PolicyKind, Request, Work, ZoneRule, is_near, ramp,
};

use super::balancer::Balancer;
use super::in_flight::{InFlight, PromptLoad};
use super::select_error::SelectError;
use super::slow_start::SlowStart;
use super::snapshot::{Snapshot, Target, WorkerPool};
use crate::fleet::{BreakerPermit, Role, Worker, acquire_breaker_permit};

/// A routing decision.
#[derive(Debug)]
pub(crate) struct Selection {
    pub(crate) in_flight: Box<InFlight>,
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
    /// Why it is in another zone, if it is.
    pub(crate) crossing: Option<Crossing>,
    /// The prefill worker of a pair, where the worker decodes.
    pub(crate) prefill: Option<Box<Selection>>,
}

/// What the client leaves to the policy.
enum Choice<'a> {
    /// Everything.
    Free,
    /// The client names the worker.
    Only(&'a [Candidate]),
    /// The client names a worker that there is not.
    Nothing,
}

/// The fleet, as one request sees it.
pub(super) struct View<'a> {
    pub(super) balancer: &'a Arc<Balancer>,
    pub(super) snapshot: &'a Snapshot,
    pub(super) role: Role,
    pub(super) pool: &'a WorkerPool,
    pub(super) request: &'a Request<'a>,
    pub(super) target: Option<&'a Target>,
}

impl<'a> View<'a> {
    /// Selects one of these, and counts the request there.
    pub(super) fn select(&self, mut from: Cow<'_, [Candidate]>) -> Result<Selection, SelectError> {
        let rule = self.pool.instance.kind.zone_rule();
        if self.snapshot.zones.are_used() && rule.leaves_out_far(&from) {
            from.to_mut().retain(is_near);
        }
        loop {
            let candidates = Candidates::new(&from).ok_or(SelectError::Raced)?;
            let instance = &self.pool.instance;
            let pick = instance.policy.pick(candidates, self.request);
            let (slot, matched_tokens) = (pick.candidate.slot, pick.matched_tokens);
            let worker = self.snapshot.worker(slot).ok_or(SelectError::NoneReady)?;
            let queued_before = worker.load.queued_tokens();
            let requests_before = worker.load.requests();
            if let Some(in_flight) = self.acquire(worker, matched_tokens) {
                return Ok(Selection {
                    in_flight: Box::new(in_flight.with_prediction(pick.prediction)),
                    policy: instance.kind,
                    matched_tokens,
                    branch: match self.targeted() {
                        Choice::Free => pick.branch,
                        Choice::Only(_) | Choice::Nothing => Some(Branch::TargetWorkerHit),
                    },
                    queued_before,
                    requests_before,
                    crossing: self.crossing(&from, slot),
                    prefill: None,
                });
            }
            // Another request took the worker's last share.
            from.to_mut().retain(|candidate| candidate.slot != slot);
        }
    }

    /// Why the request leaves the zone where it is wanted, if it does.
    fn crossing(&self, from: &[Candidate], slot: usize) -> Option<Crossing> {
        let zones = &self.snapshot.zones;
        // A prefill worker pays for partners far away, too, which is no crossing of the request.
        if !zones.are_used() || self.role == Role::Prefill && zones.is_own(slot) {
            return None;
        }
        let rule = match self.targeted() {
            Choice::Free => self.pool.instance.kind.zone_rule(),
            Choice::Only(_) | Choice::Nothing => ZoneRule::Ignored,
        };
        rule.crossing(from, slot)
    }

    /// The worker that the client names, if it is for this role, or if there is none of the name.
    fn targeted(&self) -> Choice<'a> {
        match self.target {
            Some(None) => Choice::Nothing,
            Some(Some((role, candidates))) if *role == self.role => Choice::Only(candidates),
            None | Some(Some(_)) => Choice::Free,
        }
    }

    /// The candidates that have not been tried and are eligible; nothing is copied unless something
    /// narrows the choice.
    pub(super) fn candidates(
        &self,
        tried: &[usize],
        eligible: Option<&dyn Fn(&Candidate) -> bool>,
    ) -> Result<Cow<'a, [Candidate]>, SelectError> {
        let pool = self.pool;
        let untried = |candidate: &Candidate| {
            !tried.contains(&candidate.slot) && eligible.is_none_or(|eligible| eligible(candidate))
        };
        let choice = self.targeted();
        let mut from = match choice {
            Choice::Free => Cow::Borrowed(&*pool.selectable),
            Choice::Only(candidates) => Cow::Borrowed(candidates),
            Choice::Nothing => Cow::Borrowed(&[][..]),
        };
        if !tried.is_empty() || eligible.is_some() {
            from.to_mut().retain(untried);
        }
        if from.is_empty() && matches!(choice, Choice::Free) {
            from = Cow::Borrowed(&pool.fallback);
            from.to_mut().retain(untried);
        }
        if from.is_empty() {
            return Err(if tried.is_empty() {
                SelectError::NoneReady
            } else {
                SelectError::Exhausted
            });
        }
        if let Some(limits) = self.balancer.limits() {
            let is_full = |candidate: &Candidate| {
                let load = &candidate.load;
                let own = load.own_requests();
                load.own_share().is_full(own, limits.per_worker)
            };
            if from.iter().any(is_full) {
                from.to_mut().retain(|candidate| !is_full(candidate));
                if from.is_empty() {
                    return Err(SelectError::AtCapacity);
                }
            }
        }
        // A sticky policy would give the keys of a worker that is left out to others.
        let sticky = pool.instance.kind.is_sticky();
        if !self.snapshot.warming_up.is_empty() && from.len() > 1 && !sticky {
            from = self.thin_warming_up(from);
        }
        Ok(from)
    }

    /// Leaves out the workers in slow start whose turn it is not, unless none would be left.
    fn thin_warming_up(&self, mut from: Cow<'a, [Candidate]>) -> Cow<'a, [Candidate]> {
        let mut has_turn = self.turns(from.len());
        let pool = self.pool;
        if matches!(from, Cow::Borrowed(all) if std::ptr::eq(all, &raw const *pool.selectable)) {
            let SlowStart {
                warming_up,
                settled,
            } = &pool.slow_start;
            let chosen = warming_up.iter().filter(|it| has_turn(it));
            let chosen: Vec<_> = chosen.cloned().collect();
            return match (chosen.len(), settled.len()) {
                (0, 0) => from,
                (0, _) => Cow::Borrowed(settled),
                (all, _) if all == warming_up.len() => from,
                _ => Cow::Owned(pool.slow_start.with(chosen)),
            };
        }
        let kept: Vec<bool> = from.iter().map(has_turn).collect();
        if kept.contains(&true) {
            let mut kept = kept.into_iter();
            from.to_mut().retain(|_| kept.next().unwrap_or(true));
        }
        from
    }

    /// Whether it is a worker's turn, asked by ascending slot of some of so many candidates. It
    /// always is that of one that is not in slow start.
    fn turns(&self, candidates: usize) -> impl FnMut(&Candidate) -> bool {
        let fleet = &self.balancer.fleet;
        let (now, slow_start) = (fleet.now(), fleet.slow_start());
        // By ascending slot.
        let mut warming_up = self.snapshot.warming_up.iter().peekable();
        move |candidate: &Candidate| {
            while warming_up
                .next_if(|(slot, _)| *slot < candidate.slot)
                .is_some()
            {}
            let found = warming_up.next_if(|(slot, _)| *slot == candidate.slot);
            let Some((_, since)) = found else { return true };
            let worker = self.snapshot.worker(candidate.slot);
            let ramp = ramp(now.saturating_sub(*since), slow_start);
            worker.is_none_or(|worker| worker.turns.earn(ramp, candidates))
        }
    }

    /// A share of this worker, unless its limit or its half-open breaker forbids it.
    fn acquire(&self, worker: &Arc<Worker>, matched_tokens: u64) -> Option<InFlight> {
        let tokens = self.request.prompt.tokens();
        let uncached = tokens.saturating_sub(matched_tokens);
        let work = Work {
            uncached,
            output: self.request.output_tokens,
        };
        let lease = match self.balancer.limits() {
            None => worker.load.lease(work),
            Some(limits) => worker.load.lease_below(limits.per_worker, work)?,
        };
        let lease = if self.role == Role::Decode {
            lease.holding_tokens()
        } else {
            lease
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
        if self.snapshot.is_warming_up(worker.slot) {
            worker.turns.spend();
        }
        let prompt = PromptLoad { tokens, lease };
        let in_flight = InFlight::new(self.balancer, worker, prompt, trial);
        Some(in_flight.with_key(self.request.routing_key))
    }
}
