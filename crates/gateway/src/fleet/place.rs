//! Which worker gets a request, and its place there.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use routing::{
    Branch, Breaker, Candidate, Candidates, Circuit, Draw, PolicyKind, Ranked, Request, thin,
    warmth,
};

use super::policies::Instance;
use super::{Fleet, Policies, Ticket, Worker};
use crate::config::WorkerUrl;

/// What a request asks of its routing.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wish<'a> {
    /// The client's `X-SMG-Target-Worker`: index in the list of workers, URL or id.
    pub(crate) target: Option<&'a str>,
    /// Slots of workers where it has failed.
    pub(crate) tried: &'a [usize],
}

/// A routing decision: this request's place at a worker.
#[derive(Debug)]
pub(crate) struct Placed {
    pub(crate) ticket: Ticket,
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
pub(crate) enum NoPlace {
    /// No worker takes requests, or not the one that was asked for.
    Nobody,
    /// Whoever takes requests has been tried.
    Tried,
    /// Whoever takes requests has as many as it may have.
    Full,
    /// Others took every last place.
    Lost,
}

/// Looks at the fleet for one request when others take its place.
const LOOKS: usize = 8;

/// The workers that take requests, at one moment.
#[derive(Debug)]
pub(super) struct Ready {
    all: Pool,
    /// Where several models are served, those of each.
    models: BTreeMap<String, Pool>,
    /// All of these workers, by ascending slot.
    workers: Vec<Arc<Worker>>,
    /// Slots of those that came back lately, and when.
    cold: Vec<(usize, Duration)>,
}

/// Workers that may serve the same requests, and the policy that chooses among them.
#[derive(Debug)]
struct Pool {
    chosen_by: Instance,
    /// As policies see them, by ascending slot.
    open: Vec<Candidate>,
    /// Those against whom only a probe under way speaks: for requests that nobody else can have.
    doubtful: Vec<Candidate>,
}

impl Ready {
    /// Of these workers, by ascending slot; the second are the doubtful ones.
    pub(super) fn new(policies: &Policies, open: &[Arc<Worker>], doubtful: &[Arc<Worker>]) -> Self {
        let cold = |worker: &Arc<Worker>| {
            let returned = worker.look(|standing| standing.returned)?;
            Some((worker.slot, returned))
        };
        let pool = |model: Option<&str>, chosen_by| {
            let of = |workers: &[Arc<Worker>]| {
                let those = workers.iter().filter(|worker| {
                    model.is_none_or(|model| worker.identity.load().model == model)
                });
                those.map(|worker| worker.candidate()).collect()
            };
            Pool {
                chosen_by,
                open: of(open),
                doubtful: of(doubtful),
            }
        };
        let mut workers = [open, doubtful].concat();
        workers.sort_by_key(|worker| worker.slot);
        let models = policies.by_model().into_iter().map(|(model, chosen_by)| {
            let pool = pool(Some(&model), chosen_by);
            (model, pool)
        });
        Self {
            models: models.collect(),
            all: pool(None, policies.for_any()),
            cold: open.iter().filter_map(cold).collect(),
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
    pub(crate) fn place(&self, request: &Request<'_>, wish: Wish<'_>) -> Result<Placed, NoPlace> {
        let mut placed = self.place_once(request, wish);
        for _ in 0..LOOKS {
            match placed {
                // What was known of the fleet was out of date.
                Err(NoPlace::Lost) => placed = self.place_once(request, wish),
                placed => return placed,
            }
        }
        placed
    }

    fn place_once(&self, request: &Request<'_>, wish: Wish<'_>) -> Result<Placed, NoPlace> {
        let ready = self.ready.load();
        let pool = ready.pool(request);
        let mut from = self.narrow((&ready, pool), request, wish)?;
        loop {
            let candidates = Candidates::new(&from).ok_or(NoPlace::Lost)?;
            let pick = pool.chosen_by.policy.pick(candidates, request);
            let (slot, matched_tokens) = (pick.candidate.slot, pick.matched_tokens);
            let worker = ready.worker(slot).ok_or(NoPlace::Nobody)?;
            let (queued_before, requests_before) =
                (worker.load.queued_tokens(), worker.load.requests());
            let tokens = request.prompt.tokens();
            let uncached = tokens.saturating_sub(matched_tokens);
            if let Some(ticket) = self.enter(worker, tokens, uncached) {
                return Ok(Placed {
                    ticket,
                    policy: pool.chosen_by.kind,
                    matched_tokens,
                    branch: wish.target.map(|_| Branch::TargetWorkerHit).or(pick.branch),
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
        let ready = self.ready.load();
        let pool = ready.pool(request);
        let Instance { kind, ref policy } = pool.chosen_by;
        let Some(from) = Candidates::new(&pool.open) else {
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
    fn narrow<'r>(
        &self,
        (ready, pool): (&'r Ready, &'r Pool),
        request: &Request<'_>,
        wish: Wish<'_>,
    ) -> Result<Cow<'r, [Candidate]>, NoPlace> {
        let mut from = match wish.target {
            None => Cow::Borrowed(&*pool.open),
            Some(target) => Cow::Owned(aim(ready, target)),
        };
        let untried = |candidate: &Candidate| !wish.tried.contains(&candidate.slot);
        if !wish.tried.is_empty() {
            from.to_mut().retain(untried);
        }
        if from.is_empty() && wish.target.is_none() {
            // A doubtful worker beats none.
            from = Cow::Borrowed(&pool.doubtful);
            from.to_mut().retain(untried);
        }
        if from.is_empty() {
            let tried = !wish.tried.is_empty();
            return Err(if tried {
                NoPlace::Tried
            } else {
                NoPlace::Nobody
            });
        }
        if let Some(room) = &self.rules.room {
            let full = |candidate: &Candidate| candidate.load.requests() >= room.cap();
            if from.iter().any(full) {
                from.to_mut().retain(|candidate| !full(candidate));
                if from.is_empty() {
                    return Err(NoPlace::Full);
                }
            }
        }
        // A sticky policy would hand the keys of a worker that is left out to others.
        let sticky = pool.chosen_by.kind.is_sticky();
        if !ready.cold.is_empty() && from.len() > 1 && !sticky {
            self.leave_out_cold(ready, from.to_mut(), request);
        }
        Ok(from)
    }

    fn leave_out_cold(&self, ready: &Ready, from: &mut Vec<Candidate>, request: &Request<'_>) {
        let now = self.now();
        // Not the numbers the policy draws: the two choices are independent.
        let mut draw = Draw::new(request.chance.rotate_left(32));
        thin(from, &mut draw, |candidate| {
            let cold = ready.cold.iter().find(|(slot, _)| *slot == candidate.slot);
            cold.map_or(1.0, |(_, returned)| {
                warmth(now.saturating_sub(*returned), self.rules.slow_start)
            })
        });
    }

    /// A place at this worker, unless its cap or its half-open breaker forbids it.
    fn enter(&self, worker: &Arc<Worker>, tokens: u64, uncached: u64) -> Option<Ticket> {
        let lease = match &self.rules.room {
            None => worker.load.lease(uncached),
            Some(room) => worker.load.lease_below(room.cap(), uncached)?,
        };
        if worker.is_leaving() {
            // What is known of the fleet is out of date; the lease goes back.
            return None;
        }
        let mut trial = None;
        if !worker.is_clean() {
            let (after, began) = self.change(worker, |standing| {
                standing.breaker.as_mut().and_then(Breaker::begin_trial)
            });
            if began.is_none() && after.circuit != Circuit::Closed {
                return None;
            }
            trial = began;
        }
        Some(Ticket::new(Arc::clone(worker), lease, tokens, trial))
    }
}

/// The ready worker that a client names, alone or not at all.
fn aim(ready: &Ready, target: &str) -> Vec<Candidate> {
    let index = target.parse().ok();
    let url = index.is_none().then(|| WorkerUrl::parse(target).ok());
    let url = url.flatten();
    let named = |(candidate, worker): &(&Candidate, &Arc<Worker>)| {
        index == Some(candidate.slot)
            || url.as_ref() == Some(&worker.url)
            || worker.is_called(target)
    };
    // A client that names a worker knows what it does, whatever the model.
    let known = ready.all.open.iter().chain(&ready.all.doubtful);
    let mut known = known.filter_map(|it| Some((it, ready.worker(it.slot)?)));
    let found = known.find(named);
    found
        .map(|(candidate, _)| candidate.clone())
        .into_iter()
        .collect()
}
