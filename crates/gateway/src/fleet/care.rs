//! What happens to workers: probes, outcomes, rests, leaving, and what follows for the fleet.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use routing::{Breaker, Circuit, Figures, Health, Mark, Meaning, Outliers, Trial, Verdict};
use tokio::runtime::Handle;
use tokio::sync::futures::Notified;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::identity::{self, Labels};
use super::place::Ready;
use super::policies::{Served, Server};
use super::standing::{Glance, Standing};
use super::{BYTES_PER_TOKEN, Fleet, Identity, Job, UNKNOWN_MODEL, Worker};
use crate::telemetry::Metrics;

/// Milliseconds between probes for silence.
const DOUBTS_APART: u64 = 5000;
/// A worker that leaves is looked at this often at least.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

impl Fleet {
    /// A probe of a worker ended.
    pub(super) fn probed(&self, worker: &Worker, passed: bool) {
        let now = self.now();
        let (after, before) = self.change(worker, |standing| {
            let before = standing.health.verdict();
            let came = standing.health.record(passed) == Verdict::Ready && before != Verdict::Ready;
            // One that comes up while the others work is as cold as one that comes back.
            let late = before == Verdict::NotReady
                || standing.came.is_some()
                || now > self.rules.slow_start;
            if came && before == Verdict::NotReady {
                // Most likely a new process: what the old one did is not held against it.
                standing.breaker.iter_mut().for_each(Breaker::close);
            }
            if came && late && before != Verdict::Suspect {
                standing.returned = Some(now).filter(|_| !self.rules.slow_start.is_zero());
            }
            before
        });
        let cleared = before == Verdict::Suspect && after.verdict == Verdict::Ready;
        if before == after.verdict || cleared {
            return;
        }
        if before == Verdict::NotReady {
            // Away for several probes: most likely restarted, with nothing cached.
            self.forget(worker);
        }
        let model = worker.identity.load().model.clone();
        info!(worker = %worker.url, model, from = before.as_str(), to = after.status(), "worker changed");
    }

    /// A worker did not come up in time.
    pub(super) fn give_up(&self, worker: &Worker) {
        let now = self.now();
        self.change(worker, |standing| {
            standing.health.give_up();
            standing.gave_up = Some(now);
        });
    }

    /// A try at a worker ended in a way that says something about it.
    pub(super) fn learn(&self, worker: &Arc<Worker>, meaning: Meaning, trial: Option<Trial>) {
        let now = self.now();
        let suspect = meaning.suspect && self.watches(worker);
        let (_, busy_for) = self.change(worker, |standing| {
            if let Some(breaker) = &mut standing.breaker {
                match trial {
                    Some(trial) => breaker.end_trial(trial, meaning.mark, now),
                    None => breaker.record(meaning.mark, now),
                }
            }
            if suspect {
                standing.health.suspect();
            }
            if meaning.mark == Mark::Success {
                standing.refusals = 0;
            }
            meaning.busy.then(|| standing.refused(now)).flatten()
        });
        if suspect {
            worker.wake.notify_one();
        }
        if let (Some(pause), Ok(runtime)) = (busy_for, Handle::try_current()) {
            let worker = Arc::clone(worker);
            runtime.spawn(async move {
                sleep(pause).await;
                if let Some(fleet) = worker.home.get().and_then(Weak::upgrade) {
                    fleet.let_time_pass(&worker);
                }
            });
        }
    }

    /// A worker may be gone: it is probed, and gets nothing until that has passed. False when
    /// there is no such worker, or nothing could clear it.
    pub(crate) fn suspect(&self, url: &str) -> bool {
        let named = self.find(url);
        let Some(worker) = named.filter(|worker| self.watches(worker)) else {
            return false;
        };
        self.change(&worker, |standing| standing.health.suspect());
        worker.wake.notify_one();
        true
    }

    /// A worker has been silent for long: it is probed, though not for every request that waits.
    pub(crate) fn doubt(&self, worker: &Worker) {
        let now = u64::try_from(self.now().as_millis()).unwrap_or(u64::MAX);
        let due = |before| (now.saturating_sub(before) >= DOUBTS_APART).then_some(now);
        let mine = worker.doubted.fetch_update(Relaxed, Relaxed, due).is_ok();
        if mine && self.watches(worker) {
            worker.wake.notify_one();
        }
    }

    /// A worker on trial has begun to answer.
    pub(super) fn trial_answered(&self, worker: &Worker, trial: &mut Trial) {
        self.change(worker, |standing| {
            if let Some(breaker) = &mut standing.breaker {
                breaker.trial_answered(trial);
            }
        });
    }

    /// Lets time go by for every worker.
    pub(crate) fn pass_time(&self) {
        for worker in self.workers().iter() {
            self.let_time_pass(worker);
        }
    }

    fn let_time_pass(&self, worker: &Worker) {
        let now = self.now();
        let (_, warmed_up) = self.change(worker, |standing| {
            let cold = standing.returned.is_some();
            standing.pass_time(now, self.rules.slow_start);
            cold && standing.returned.is_none()
        });
        if warmed_up {
            self.refresh();
        }
    }

    /// Compares every worker with its peers; who does far worse rests for a while.
    pub(crate) fn compare_peers(&self) {
        let Some(outliers) = &self.outliers else {
            return;
        };
        // Who goes from now on is forgotten after this; who has gone is not looked at.
        let mut outliers = outliers.lock().unwrap_or_else(PoisonError::into_inner);
        let (now, mut workers) = (self.now(), Vec::clone(&self.workers()));
        workers.retain(|worker| !worker.gone.load(Relaxed));
        let figures: BTreeMap<usize, Figures> = workers
            .iter()
            .filter_map(|worker| Some((worker.slot, worker.tally.as_ref()?.take())))
            .collect();
        for ejection in Outliers::judge(&mut outliers, &figures, workers.len(), now) {
            let slot = ejection.slot;
            let Some(worker) = workers.iter().find(|worker| worker.slot == slot) else {
                continue;
            };
            self.change(worker, |standing| {
                standing.rests_until = Some(ejection.until);
            });
            let rest_secs = ejection.until.saturating_sub(now).as_secs();
            warn!(worker = %worker.url, why = ?ejection.misfit, rest_secs, "worker does far worse than its peers, resting it");
        }
    }

    /// No new requests for this worker from now on; false when it was leaving already.
    pub(crate) fn begin_leaving(&self, worker: &Worker) -> bool {
        let leave = |standing: &mut Standing| !std::mem::replace(&mut standing.draining, true);
        let (_, newly) = self.change(worker, leave);
        let in_flight = worker.load.requests();
        info!(worker = %worker.url, in_flight, "worker is leaving");
        newly
    }

    /// Waits for the end of what a leaving worker has, though not for ever; then it is gone.
    pub(crate) async fn finish_leaving(&self, worker: &Arc<Worker>) {
        let done = async {
            while worker.load.requests() > 0 {
                // Now and then also unasked: the last one may have left unheard.
                let _ = timeout(LOOK_AGAIN, worker.left.notified()).await;
            }
        };
        let _ = timeout(self.rules.drain_timeout, done).await;
        let in_flight = worker.load.requests();
        worker.gone.store(true, Relaxed);
        worker.wake.notify_one();
        self.dismiss(worker);
        info!(worker = %worker.url, in_flight, "worker removed");
    }

    /// Seconds after which asking again may help, when no worker takes requests.
    pub(crate) fn retry_after_secs(&self) -> u64 {
        let now = self.now();
        let opens_up = |worker: &Arc<Worker>| {
            worker.look(|standing| {
                let healthy = standing.health.verdict() == Verdict::Ready;
                standing.breaker.as_ref().filter(|_| healthy)?.opens_up_at()
            })
        };
        let soonest = self.workers().iter().filter_map(opens_up).min();
        let wait = soonest.unwrap_or_default().saturating_sub(now);
        // Rounded up: who comes back then is not to be turned away once more.
        let begun = u64::from(wait.subsec_nanos() > 0);
        (wait.as_secs() + begun).max(1)
    }

    /// Changes a worker's standing and draws the consequences.
    pub(super) fn change<T>(
        &self,
        worker: &Worker,
        change: impl FnOnce(&mut Standing) -> T,
    ) -> (Glance, T) {
        let (before, after, result) = worker.change(change);
        if before.circuit != after.circuit {
            let (from, to) = (before.circuit.as_str(), after.circuit.as_str());
            if !worker.gone.load(Relaxed) {
                worker.metrics.transition(from, to);
            }
            if after.circuit == Circuit::Open {
                warn!(worker = %worker.url, from, to, "circuit breaker opened");
            } else {
                info!(worker = %worker.url, from, to, "circuit breaker changed");
            }
        }
        let listed = |glance: &Glance| (glance.ready, glance.open, glance.last_resort);
        if before.serves != after.serves {
            self.introduce();
        } else if listed(&before) != listed(&after) {
            self.refresh();
        }
        (after, result)
    }

    /// Takes over the workers' present standings.
    pub(super) fn refresh(&self) {
        let one_at_a_time = self.refreshing.lock();
        self.take_over();
        drop(one_at_a_time);
        self.turned.notify_waiters();
        if let Some(room) = &self.rules.room {
            room.look_all();
        }
    }

    /// One at a time, or an older view might win.
    fn take_over(&self) {
        let workers = self.workers.load();
        // One glance each: a worker that changes meanwhile must not fall between two looks.
        let known: Vec<_> = workers.iter().map(|it| (it, it.glance())).collect();
        let those = |wanted: fn(&Glance) -> bool| -> Vec<Arc<Worker>> {
            let those = known.iter().filter(|(_, glance)| wanted(glance));
            those.map(|(worker, _)| Arc::clone(worker)).collect()
        };
        let (open, doubtful) = (those(|it| it.open), those(|it| it.last_resort));
        self.ready
            .store(Arc::new(Ready::new(&self.policies, &open, &doubtful)));
        let slots = workers.last().map_or(0, |worker| worker.slot + 1);
        let mut told = vec![None; slots];
        for worker in workers.iter() {
            let tokens = worker.identity.load().cache_tokens();
            told[worker.slot] = tokens.map(|tokens| tokens.saturating_mul(BYTES_PER_TOKEN));
        }
        self.policies.capacity(&told);
    }

    /// The worker's cache is empty: what is believed of it goes at once.
    pub(crate) fn forget(&self, worker: &Worker) {
        worker.begin_anew();
        self.introduce();
    }

    /// Tells policies who is there, ready or not, and who serves what: who has never been ready
    /// does not yet, who is leaving does no more. Who has told no model counts where none has.
    pub(super) fn introduce(&self) {
        let one_at_a_time = self.refreshing.lock();
        let workers = self.workers.load();
        let mut served = Served::new();
        for worker in workers.iter().filter(|worker| worker.glance().serves) {
            let model = worker.identity.load().model.clone();
            served.entry(model).or_default().push(Server {
                id: worker.id,
                label: worker.terms.load().spec.policy,
                candidate: worker.candidate(),
            });
        }
        if served.len() > 1 {
            served.remove(UNKNOWN_MODEL);
        }
        let all: Vec<_> = workers.iter().map(|worker| worker.candidate()).collect();
        self.policies.introduce(&all, &served);
        drop(one_at_a_time);
        self.refresh();
    }

    /// Says which model a worker serves: the one in its terms, or what it told of itself, just
    /// now or before.
    pub(super) fn name(&self, worker: &Worker, told: Option<Labels>, metrics: &Metrics) {
        let one_at_a_time = self.naming.lock();
        if worker.gone.load(Relaxed) {
            return;
        }
        let (before, terms) = (worker.identity.load_full(), worker.terms.load());
        let agreed = told.is_none();
        let labels = told.unwrap_or_else(|| before.labels.clone());
        let named = terms.spec.model.clone();
        let model = named.unwrap_or_else(|| identity::model(&labels));
        let renamed = before.model != model;
        let metrics = if renamed {
            metrics.model(&model)
        } else {
            Arc::clone(&before.metrics)
        };
        worker.identity.store(Arc::new(Identity {
            model,
            labels,
            metrics,
        }));
        drop(one_at_a_time);
        // Other terms may ask for another policy.
        if renamed || agreed {
            self.introduce();
        } else {
            self.refresh();
        }
    }

    /// Whether a worker is probed once it is up: then it can be suspected, for it can be cleared.
    pub(crate) fn watches(&self, worker: &Worker) -> bool {
        let disabled = worker.terms.load().spec.health.disabled;
        disabled.map_or(self.rules.suspicion, |disabled| !disabled)
    }

    /// Waits for a worker to get ready; false when it takes too long, or leaves.
    pub(super) async fn until_ready(&self, worker: &Worker, patience: Duration) -> bool {
        let ready = async {
            loop {
                let mut turned = pin!(self.turned.notified());
                // From here on, no turn is missed.
                Notified::enable(turned.as_mut());
                if worker.is_ready() || worker.is_leaving() {
                    return worker.is_ready();
                }
                turned.await;
            }
        };
        timeout(patience, ready).await.unwrap_or(false)
    }

    /// What is being done about a worker that has never been ready.
    pub(crate) fn job(&self, worker: &Worker) -> Option<Job> {
        let now = self.now();
        worker.look(|standing| standing.job(now))
    }

    /// A worker's health, for those who wait for it to change.
    pub(super) fn verdict(worker: &Worker) -> Verdict {
        worker.look(|standing| Health::verdict(&standing.health))
    }
}
