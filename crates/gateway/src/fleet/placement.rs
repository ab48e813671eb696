//! Which worker gets a request, and its place there.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use routing::{
    Branch, Breaker, Candidate, Candidates, Circuit, PolicyKind, Ranked, Request, SeededRng, ramp,
    thin_out,
};

use super::model_policies::PolicyInstance;
use super::{Fleet, InFlight, ModelPolicies, Worker};
use crate::config::WorkerUrl;

/// What a request asks of its routing.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Constraints<'a> {
    /// The client's `X-SMG-Target-Worker`: index in the list of workers, URL or id.
    pub(crate) target: Option<&'a str>,
    /// Slots of workers where it has failed.
    pub(crate) tried: &'a [usize],
}

/// A routing decision: this request's place at a worker.
#[derive(Debug)]
pub(crate) struct Selection {
    pub(crate) in_flight: InFlight,
    /// The policy that chose.
    pub(crate) policy: PolicyKind,
    /// Prompt tokens believed to be cached there.
    pub(crate) matched_tokens: u64,
    /// How it came about, where there are several ways.
    pub(crate) branch: Option<Branch>,
    /// Prompt tokens that waited there before.
    pub(crate) queued_before: u64,
    /// Requests in flight there before.
    pub(crate) requests_before: usize,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SelectError {
    /// No worker takes requests, or not the one that was asked for.
    NoneReady,
    /// Whoever takes requests has been tried.
    Exhausted,
    /// Whoever takes requests has as many as it may have.
    AtCapacity,
    /// Others took every last place.
    Raced,
}

/// Looks at the fleet for one request when others take its place.
const MAX_RACES: usize = 8;

/// The workers that take requests, at one moment.
#[derive(Debug)]
pub(super) struct Snapshot {
    all: Pool,
    /// Where several models are served, those of each.
    models: BTreeMap<String, Pool>,
    /// All of these workers, by ascending slot.
    workers: Vec<Arc<Worker>>,
    /// Slots of those that came back lately, and when.
    warming_up: Vec<(usize, Duration)>,
}

/// Workers that may serve the same requests, and the policy that chooses among them.
#[derive(Debug)]
struct Pool {
    instance: PolicyInstance,
    /// As policies see them, by ascending slot.
    selectable: Vec<Candidate>,
    /// Those against whom only a probe under way speaks: for requests that nobody else can have.
    fallback: Vec<Candidate>,
}

impl Snapshot {
    /// Of these workers, by ascending slot; the second are the doubtful ones.
    pub(super) fn new(
        policies: &ModelPolicies,
        selectable: &[Arc<Worker>],
        fallback: &[Arc<Worker>],
    ) -> Self {
        let warming_up = |worker: &Arc<Worker>| {
            let recovered_at = worker.with_state(|state| state.recovered_at)?;
            Some((worker.slot, recovered_at))
        };
        let pool = |model: Option<&str>, instance| {
            let of = |workers: &[Arc<Worker>]| {
                let those = workers.iter().filter(|worker| {
                    model.is_none_or(|model| worker.model_info.load().model == model)
                });
                those.map(|worker| worker.candidate()).collect()
            };
            Pool {
                instance,
                selectable: of(selectable),
                fallback: of(fallback),
            }
        };
        let mut workers = [selectable, fallback].concat();
        workers.sort_by_key(|worker| worker.slot);
        let models = policies.by_model().into_iter().map(|(model, instance)| {
            let pool = pool(Some(&model), instance);
            (model, pool)
        });
        Self {
            models: models.collect(),
            all: pool(None, policies.shared()),
            warming_up: selectable.iter().filter_map(warming_up).collect(),
            workers,
        }
    }

    /// The workers for a request: those of its model, where several are served and it names one.
    fn pool(&self, request: &Request<'_>) -> &Pool {
        if self.models.is_empty() {
            return &self.all;
        }
        let named = request.model.and_then(|model| self.models.get(model));
        named.unwrap_or(&self.all)
    }

    fn worker(&self, slot: usize) -> Option<&Arc<Worker>> {
        let in_place = self.workers.get(slot).filter(|found| found.slot == slot);
        in_place.or_else(|| {
            let at = self
                .workers
                .binary_search_by_key(&slot, |worker| worker.slot);
            self.workers.get(at.ok()?)
        })
    }
}

impl Fleet {
    /// Chooses a worker and counts the request there.
    pub(crate) fn select(
        &self,
        request: &Request<'_>,
        constraints: Constraints<'_>,
    ) -> Result<Selection, SelectError> {
        let mut selection = self.try_select(request, constraints);
        for _ in 0..MAX_RACES {
            match selection {
                // What was known of the fleet was out of date.
                Err(SelectError::Raced) => selection = self.try_select(request, constraints),
                selection => return selection,
            }
        }
        selection
    }

    fn try_select(
        &self,
        request: &Request<'_>,
        constraints: Constraints<'_>,
    ) -> Result<Selection, SelectError> {
        let snapshot = self.snapshot.load();
        let pool = snapshot.pool(request);
        let mut from = self.filter_candidates((&snapshot, pool), request, constraints)?;
        loop {
            let candidates = Candidates::new(&from).ok_or(SelectError::Raced)?;
            let pick = pool.instance.policy.pick(candidates, request);
            let (slot, matched_tokens) = (pick.candidate.slot, pick.matched_tokens);
            let worker = snapshot.worker(slot).ok_or(SelectError::NoneReady)?;
            let (queued_before, requests_before) =
                (worker.load.queued_tokens(), worker.load.requests());
            let tokens = request.prompt.tokens();
            let uncached = tokens.saturating_sub(matched_tokens);
            if let Some(in_flight) = self.acquire(worker, tokens, uncached) {
                return Ok(Selection {
                    in_flight,
                    policy: pool.instance.kind,
                    matched_tokens,
                    branch: constraints
                        .target
                        .map(|_| Branch::TargetWorkerHit)
                        .or(pick.branch),
                    queued_before,
                    requests_before,
                });
            }
            // Somebody else took its last place.
            from.to_mut().retain(|candidate| candidate.slot != slot);
        }
    }

    /// What the policy would weigh, best first; where it has no costs, the ready workers as
    /// they stand, all at cost 0.
    pub(crate) fn rank<T>(
        &self,
        request: &Request<'_>,
        use_ranked: impl FnOnce(PolicyKind, &[Ranked<'_>]) -> T,
    ) -> T {
        let snapshot = self.snapshot.load();
        let pool = snapshot.pool(request);
        let PolicyInstance { kind, ref policy } = pool.instance;
        let Some(from) = Candidates::new(&pool.selectable) else {
            return use_ranked(kind, &[]);
        };
        let mut ranked = policy.rank(from, request);
        if ranked.is_empty() {
            let bare = |candidate| Ranked {
                candidate,
                matched_tokens: 0,
                queued_tokens: 0,
                cost: 0.0,
                passed_over: false,
            };
            ranked.extend(from.iter().map(bare));
        }
        use_ranked(kind, &ranked)
    }

    /// The candidates for a request; nothing is copied unless something narrows the choice.
    fn filter_candidates<'r>(
        &self,
        (snapshot, pool): (&'r Snapshot, &'r Pool),
        request: &Request<'_>,
        constraints: Constraints<'_>,
    ) -> Result<Cow<'r, [Candidate]>, SelectError> {
        let mut from = match constraints.target {
            None => Cow::Borrowed(&*pool.selectable),
            Some(target) => Cow::Owned(resolve_target(snapshot, target)),
        };
        let untried = |candidate: &Candidate| !constraints.tried.contains(&candidate.slot);
        if !constraints.tried.is_empty() {
            from.to_mut().retain(untried);
        }
        if from.is_empty() && constraints.target.is_none() {
            // A doubtful worker beats none.
            from = Cow::Borrowed(&pool.fallback);
            from.to_mut().retain(untried);
        }
        if from.is_empty() {
            let tried = !constraints.tried.is_empty();
            return Err(if tried {
                SelectError::Exhausted
            } else {
                SelectError::NoneReady
            });
        }
        if let Some(room) = &self.rules.worker_queue {
            let full = |candidate: &Candidate| candidate.load.requests() >= room.cap();
            if from.iter().any(full) {
                from.to_mut().retain(|candidate| !full(candidate));
                if from.is_empty() {
                    return Err(SelectError::AtCapacity);
                }
            }
        }
        // A sticky policy would hand the keys of a worker that is left out to others.
        let sticky = pool.instance.kind.is_sticky();
        if !snapshot.warming_up.is_empty() && from.len() > 1 && !sticky {
            self.thin_warming_up(snapshot, from.to_mut(), request);
        }
        Ok(from)
    }

    fn thin_warming_up(
        &self,
        snapshot: &Snapshot,
        from: &mut Vec<Candidate>,
        request: &Request<'_>,
    ) {
        let now = self.now();
        // Not the numbers the policy draws: the two choices are independent.
        let mut rng = SeededRng::new(request.seed.rotate_left(32));
        thin_out(from, &mut rng, |candidate| {
            let warming_up = snapshot
                .warming_up
                .iter()
                .find(|(slot, _)| *slot == candidate.slot);
            warming_up.map_or(1.0, |(_, recovered_at)| {
                ramp(now.saturating_sub(*recovered_at), self.rules.slow_start)
            })
        });
    }

    /// A place at this worker, unless its cap or its half-open breaker forbids it.
    fn acquire(&self, worker: &Arc<Worker>, tokens: u64, uncached: u64) -> Option<InFlight> {
        let lease = match &self.rules.worker_queue {
            None => worker.load.lease(uncached),
            Some(room) => worker.load.lease_below(room.cap(), uncached)?,
        };
        if worker.is_draining() {
            // What is known of the fleet is out of date; the lease goes back.
            return None;
        }
        let mut trial = None;
        if !worker.is_clean() {
            let (after, began) = self.update_state(worker, |state| {
                state.breaker.as_mut().and_then(Breaker::begin_trial)
            });
            if began.is_none() && after.circuit != Circuit::Closed {
                return None;
            }
            trial = began;
        }
        Some(InFlight::new(Arc::clone(worker), lease, tokens, trial))
    }
}

/// The ready worker that a client names, alone or not at all.
fn resolve_target(snapshot: &Snapshot, target: &str) -> Vec<Candidate> {
    let index = target.parse().ok();
    let url = index.is_none().then(|| WorkerUrl::parse(target).ok());
    let url = url.flatten();
    let named = |(candidate, worker): &(&Candidate, &Arc<Worker>)| {
        index == Some(candidate.slot) || url.as_ref() == Some(&worker.url) || worker.has_id(target)
    };
    // A client that names a worker knows what it does, whatever the model.
    let known = snapshot.all.selectable.iter().chain(&snapshot.all.fallback);
    let mut known = known.filter_map(|it| Some((it, snapshot.worker(it.slot)?)));
    let found = known.find(named);
    found
        .map(|(candidate, _)| candidate.clone())
        .into_iter()
        .collect()
}
