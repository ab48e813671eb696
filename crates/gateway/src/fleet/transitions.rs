//! What happens to workers: probes, outcomes, rests, leaving, and what follows for the fleet.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use routing::{
    Breaker, BreakerSignal, Circuit, Consequence, Health, Outliers, Trial, Verdict, Window,
};
use tokio::runtime::Handle;
use tokio::sync::futures::Notified;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::model_info::{self, Labels};
use super::model_policies::{MembersByModel, ModelMember};
use super::placement::Snapshot;
use super::status::{Availability, WorkerState};
use super::{BYTES_PER_TOKEN, Fleet, ModelInfo, RegistrationStatus, UNKNOWN_MODEL, Worker};
use crate::telemetry::Metrics;

/// Milliseconds between probes for silence.
const MIN_PROBE_GAP_MS: u64 = 5000;
/// A worker that leaves is looked at this often at least.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

impl Fleet {
    /// A probe of a worker ended.
    pub(super) fn record_probe(&self, worker: &Worker, passed: bool) {
        let now = self.now();
        let (after, before) = self.update_state(worker, |state| {
            let before = state.health.verdict();
            let joined_at =
                state.health.record(passed) == Verdict::Ready && before != Verdict::Ready;
            // One that comes up while the others work is as cold as one that comes back.
            let late = before == Verdict::NotReady
                || state.joined_at.is_some()
                || now > self.rules.slow_start;
            if joined_at && before == Verdict::NotReady {
                // Most likely a new process: what the old one did is not held against it.
                state.breaker.iter_mut().for_each(Breaker::close);
            }
            if joined_at && late && before != Verdict::Suspect {
                state.recovered_at = Some(now).filter(|_| !self.rules.slow_start.is_zero());
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
        let model = worker.model_info.load().model.clone();
        info!(worker = %worker.url, model, from = before.as_str(), to = after.status(), "worker changed");
    }

    /// A worker did not come up in time.
    pub(super) fn mark_failed(&self, worker: &Worker) {
        let now = self.now();
        self.update_state(worker, |state| {
            state.health.give_up();
            state.failed_at = Some(now);
        });
    }

    /// A try at a worker ended in a way that says something about it.
    pub(super) fn record_outcome(
        &self,
        worker: &Arc<Worker>,
        consequence: Consequence,
        trial: Option<Trial>,
    ) {
        let now = self.now();
        let suspect = consequence.suspect && self.is_probed(worker);
        let (_, busy_for) = self.update_state(worker, |state| {
            if let Some(breaker) = &mut state.breaker {
                match trial {
                    Some(trial) => breaker.end_trial(trial, consequence.signal, now),
                    None => breaker.record(consequence.signal, now),
                }
            }
            if suspect {
                state.health.suspect();
            }
            if consequence.signal == BreakerSignal::Success {
                state.refusals = 0;
            }
            consequence
                .busy
                .then(|| state.record_refusal(now))
                .flatten()
        });
        if suspect {
            worker.probe_now.notify_one();
        }
        if let (Some(pause), Ok(runtime)) = (busy_for, Handle::try_current()) {
            let worker = Arc::clone(worker);
            runtime.spawn(async move {
                sleep(pause).await;
                if let Some(fleet) = worker.fleet.get().and_then(Weak::upgrade) {
                    fleet.advance_worker(&worker);
                }
            });
        }
    }

    /// A worker may be gone: it is probed, and gets nothing until that has passed. False when
    /// there is no such worker, or nothing could clear it.
    pub(crate) fn suspect(&self, url: &str) -> bool {
        let named = self.find(url);
        let Some(worker) = named.filter(|worker| self.is_probed(worker)) else {
            return false;
        };
        self.update_state(&worker, |state| state.health.suspect());
        worker.probe_now.notify_one();
        true
    }

    /// A worker has been silent for long: it is probed, though not for every request that waits.
    pub(crate) fn request_probe(&self, worker: &Worker) {
        let now = u64::try_from(self.now().as_millis()).unwrap_or(u64::MAX);
        let due = |before| (now.saturating_sub(before) >= MIN_PROBE_GAP_MS).then_some(now);
        let mine = worker
            .last_requested_probe
            .fetch_update(Relaxed, Relaxed, due)
            .is_ok();
        if mine && self.is_probed(worker) {
            worker.probe_now.notify_one();
        }
    }

    /// A worker on trial has begun to answer.
    pub(super) fn trial_answered(&self, worker: &Worker, trial: &mut Trial) {
        self.update_state(worker, |state| {
            if let Some(breaker) = &mut state.breaker {
                breaker.trial_answered(trial);
            }
        });
    }

    /// Lets time go by for every worker.
    pub(crate) fn advance(&self) {
        for worker in self.workers().iter() {
            self.advance_worker(worker);
        }
    }

    fn advance_worker(&self, worker: &Worker) {
        let now = self.now();
        let (_, warmed_up) = self.update_state(worker, |state| {
            let was_warming_up = state.recovered_at.is_some();
            state.advance(now, self.rules.slow_start);
            was_warming_up && state.recovered_at.is_none()
        });
        if warmed_up {
            self.rebuild_snapshot();
        }
    }

    /// Compares every worker with its peers; who does far worse rests for a while.
    pub(crate) fn detect_outliers(&self) {
        let Some(outliers) = &self.outliers else {
            return;
        };
        // Who goes from now on is forgotten after this; who has gone is not looked at.
        let mut outliers = outliers.lock().unwrap_or_else(PoisonError::into_inner);
        let (now, mut workers) = (self.now(), Vec::clone(&self.workers()));
        workers.retain(|worker| !worker.removed.load(Relaxed));
        let windows: BTreeMap<usize, Window> = workers
            .iter()
            .filter_map(|worker| Some((worker.slot, worker.outlier_stats.as_ref()?.take())))
            .collect();
        for ejection in Outliers::detect(&mut outliers, &windows, workers.len(), now) {
            let slot = ejection.slot;
            let Some(worker) = workers.iter().find(|worker| worker.slot == slot) else {
                continue;
            };
            self.update_state(worker, |state| {
                state.ejected_until = Some(ejection.until);
            });
            let rest_secs = ejection.until.saturating_sub(now).as_secs();
            warn!(worker = %worker.url, why = ?ejection.reason, rest_secs, "worker does far worse than its peers, resting it");
        }
    }

    /// No new requests for this worker from now on; false when it was leaving already.
    pub(crate) fn start_drain(&self, worker: &Worker) -> bool {
        let leave = |state: &mut WorkerState| !std::mem::replace(&mut state.draining, true);
        let (_, newly) = self.update_state(worker, leave);
        let in_flight = worker.load.requests();
        info!(worker = %worker.url, in_flight, "worker is leaving");
        newly
    }

    /// Waits for the end of what a leaving worker has, though not for ever; then it is gone.
    pub(crate) async fn finish_drain(&self, worker: &Arc<Worker>) {
        let done = async {
            while worker.load.requests() > 0 {
                // Now and then also unasked: the last one may have left unheard.
                let _ = timeout(LOOK_AGAIN, worker.request_done.notified()).await;
            }
        };
        let _ = timeout(self.rules.drain_timeout, done).await;
        let in_flight = worker.load.requests();
        worker.removed.store(true, Relaxed);
        worker.probe_now.notify_one();
        self.remove(worker);
        info!(worker = %worker.url, in_flight, "worker removed");
    }

    /// Seconds after which asking again may help, when no worker takes requests.
    pub(crate) fn retry_after_secs(&self) -> u64 {
        let now = self.now();
        let half_opens = |worker: &Arc<Worker>| {
            worker.with_state(|state| {
                let healthy = state.health.verdict() == Verdict::Ready;
                state.breaker.as_ref().filter(|_| healthy)?.half_opens_at()
            })
        };
        let soonest = self.workers().iter().filter_map(half_opens).min();
        let wait = soonest.unwrap_or_default().saturating_sub(now);
        // Rounded up: who comes back then is not to be turned away once more.
        let begun = u64::from(wait.subsec_nanos() > 0);
        (wait.as_secs() + begun).max(1)
    }

    /// Changes a worker's standing and draws the consequences.
    pub(super) fn update_state<T>(
        &self,
        worker: &Worker,
        change: impl FnOnce(&mut WorkerState) -> T,
    ) -> (Availability, T) {
        let (before, after, result) = worker.update_state(change);
        if before.circuit != after.circuit {
            let (from, to) = (before.circuit.as_str(), after.circuit.as_str());
            if !worker.removed.load(Relaxed) {
                worker.metrics.transition(from, to);
            }
            if after.circuit == Circuit::Open {
                warn!(worker = %worker.url, from, to, "circuit breaker opened");
            } else {
                info!(worker = %worker.url, from, to, "circuit breaker changed");
            }
        }
        let eligibility = |availability: &Availability| {
            (
                availability.ready,
                availability.selectable,
                availability.fallback,
            )
        };
        if before.serves != after.serves {
            self.rebuild_membership();
        } else if eligibility(&before) != eligibility(&after) {
            self.rebuild_snapshot();
        }
        (after, result)
    }

    /// Takes over the workers' present standings.
    pub(super) fn rebuild_snapshot(&self) {
        let one_at_a_time = self.rebuilding.lock();
        self.store_snapshot();
        drop(one_at_a_time);
        self.changed.notify_waiters();
        if let Some(room) = &self.rules.worker_queue {
            room.wake_all();
        }
    }

    /// One at a time, or an older view might win.
    fn store_snapshot(&self) {
        let workers = self.workers.load();
        // One glance each: a worker that changes meanwhile must not fall between two looks.
        let known: Vec<_> = workers.iter().map(|it| (it, it.availability())).collect();
        let those = |wanted: fn(&Availability) -> bool| -> Vec<Arc<Worker>> {
            let those = known
                .iter()
                .filter(|(_, availability)| wanted(availability));
            those.map(|(worker, _)| Arc::clone(worker)).collect()
        };
        let (selectable, fallback) = (those(|it| it.selectable), those(|it| it.fallback));
        self.snapshot.store(Arc::new(Snapshot::new(
            &self.policies,
            &selectable,
            &fallback,
        )));
        let slots = workers.last().map_or(0, |worker| worker.slot + 1);
        let mut reported = vec![None; slots];
        for worker in workers.iter() {
            let tokens = worker.model_info.load().cache_tokens();
            reported[worker.slot] = tokens.map(|tokens| tokens.saturating_mul(BYTES_PER_TOKEN));
        }
        self.policies.capacity(&reported);
    }

    /// The worker's cache is empty: what is believed of it goes at once.
    pub(crate) fn forget(&self, worker: &Worker) {
        worker.bump_generation();
        self.rebuild_membership();
    }

    /// Tells policies who is there, ready or not, and who serves what: who has never been ready
    /// does not yet, who is leaving does no more. Who has told no model counts where none has.
    pub(super) fn rebuild_membership(&self) {
        let one_at_a_time = self.rebuilding.lock();
        let workers = self.workers.load();
        let mut served = MembersByModel::new();
        for worker in workers.iter().filter(|worker| worker.availability().serves) {
            let model = worker.model_info.load().model.clone();
            served.entry(model).or_default().push(ModelMember {
                id: worker.id,
                label: worker.config.load().spec.policy,
                candidate: worker.candidate(),
            });
        }
        if served.len() > 1 {
            served.remove(UNKNOWN_MODEL);
        }
        let all: Vec<_> = workers.iter().map(|worker| worker.candidate()).collect();
        self.policies.set_members(&all, &served);
        drop(one_at_a_time);
        self.rebuild_snapshot();
    }

    /// Says which model a worker serves: the one in its terms, or what it told of itself, just
    /// now or before.
    pub(super) fn set_model(&self, worker: &Worker, reported: Option<Labels>, metrics: &Metrics) {
        let one_at_a_time = self.model_lock.lock();
        if worker.removed.load(Relaxed) {
            return;
        }
        let (before, config) = (worker.model_info.load_full(), worker.config.load());
        let agreed = reported.is_none();
        let labels = reported.unwrap_or_else(|| before.labels.clone());
        let named = config.spec.model.clone();
        let model = named.unwrap_or_else(|| model_info::model(&labels));
        let renamed = before.model != model;
        let metrics = if renamed {
            metrics.model(&model)
        } else {
            Arc::clone(&before.metrics)
        };
        worker.model_info.store(Arc::new(ModelInfo {
            model,
            labels,
            metrics,
        }));
        drop(one_at_a_time);
        // Other terms may ask for another policy.
        if renamed || agreed {
            self.rebuild_membership();
        } else {
            self.rebuild_snapshot();
        }
    }

    /// Whether a worker is probed once it is up: then it can be suspected, for it can be cleared.
    pub(crate) fn is_probed(&self, worker: &Worker) -> bool {
        let disabled = worker.config.load().spec.health.disabled;
        disabled.map_or(self.rules.suspicion, |disabled| !disabled)
    }

    /// Waits for a worker to get ready; false when it takes too long, or leaves.
    pub(super) async fn wait_ready(&self, worker: &Worker, patience: Duration) -> bool {
        let ready = async {
            loop {
                let mut changed = pin!(self.changed.notified());
                // From here on, no turn is missed.
                Notified::enable(changed.as_mut());
                if worker.is_ready() || worker.is_draining() {
                    return worker.is_ready();
                }
                changed.await;
            }
        };
        timeout(patience, ready).await.unwrap_or(false)
    }

    /// What is being done about a worker that has never been ready.
    pub(crate) fn job(&self, worker: &Worker) -> Option<RegistrationStatus> {
        let now = self.now();
        worker.with_state(|state| state.job(now))
    }

    /// A worker's health, for those who wait for it to change.
    pub(super) fn verdict(worker: &Worker) -> Verdict {
        worker.with_state(|state| Health::verdict(&state.health))
    }
}
