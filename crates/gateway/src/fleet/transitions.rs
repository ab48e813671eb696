//! How probes, requests and time change the state of workers.

use std::sync::Arc;
use std::time::Duration;

use routing::{
    Breaker, BreakerSignal, Circuit, Consequence, Health, Probe, Thresholds, Trial, Verdict,
};
use tokio::time::timeout;
use tracing::info;

use super::endpoint::Endpoint;
use super::fleet::Fleet;
use super::model_info::{ModelInfo, Report};
use super::role::Role;
use super::worker::Worker;
use crate::telemetry::Metrics;

/// A probe of an endpoint ended.
pub(crate) fn record_probe(fleet: &Fleet, endpoint: &Arc<Endpoint>, probe: Probe) {
    let was_lost = endpoint.is_lost();
    let before = endpoint.update_health(|health| {
        health.record(probe);
    });
    let workers = fleet.workers_of(endpoint);
    for worker in &workers {
        follow_verdict(fleet, worker, before);
        if probe == Probe::Passed && !worker.is_clean() {
            fleet.update_state(worker, |state| {
                state.breaker.iter_mut().for_each(Breaker::probe_passed);
            });
        }
    }
    let after = endpoint.verdict();
    let cleared = before == Verdict::Suspect && after == Verdict::Ready;
    if before == after || cleared {
        return;
    }
    if before == Verdict::NotReady && was_lost {
        // Away for several probes: most likely restarted, with nothing cached.
        for worker in &workers {
            invalidate_cache(fleet, worker);
        }
    }
    let model = endpoint.model_info.load().model.clone();
    let status = workers.first().map(|worker| worker.availability().status());
    let to = status.unwrap_or(after.as_str());
    info!(worker = %endpoint.url, model, from = before.as_str(), to, "worker changed");
}

/// A worker's state follows the verdict of its endpoint's probes.
fn follow_verdict(fleet: &Fleet, worker: &Worker, before: Verdict) {
    let now = fleet.now();
    let slow_start = fleet.slow_start();
    fleet.update_state(worker, |state| {
        state.verdict = worker.endpoint.verdict();
        state.lost = worker.endpoint.is_lost();
        let became_ready = state.verdict == Verdict::Ready && before != Verdict::Ready;
        if became_ready && before == Verdict::NotReady {
            // Most likely a new process: failures of the old one are not held against it.
            state.breaker.iter_mut().for_each(Breaker::close);
        }
        // A worker that joins a running fleet is as cold as one that comes back.
        let late = before == Verdict::NotReady || state.joined_at.is_some() || now > slow_start;
        if became_ready && late && before != Verdict::Suspect {
            state.recovered_at = Some(now).filter(|_| !slow_start.is_zero());
            worker.turns.reset();
        }
    });
}

/// A worker did not become ready within its start-up time.
pub(crate) fn mark_failed(fleet: &Fleet, endpoint: &Arc<Endpoint>) {
    let now = fleet.now();
    endpoint.update_health(Health::give_up);
    for worker in fleet.workers_of(endpoint) {
        fleet.update_state(&worker, |state| {
            state.verdict = worker.endpoint.verdict();
            state.failed_at = Some(now);
        });
    }
}

/// The settings of an endpoint's probes have changed: a failed start begins anew.
pub(super) fn restart_health(fleet: &Fleet, endpoint: &Arc<Endpoint>, thresholds: Thresholds) {
    endpoint.update_health(|health| {
        health.set_thresholds(thresholds);
        health.start_over();
    });
    for worker in fleet.workers_of(endpoint) {
        fleet.update_state(&worker, |state| state.verdict = worker.endpoint.verdict());
    }
}

/// An attempt ended in a way that says something about the worker. Returns how long it counts
/// as busy from now on.
pub(crate) fn record_outcome(
    fleet: &Fleet,
    worker: &Worker,
    consequence: Consequence,
    trial: Option<Trial>,
) -> Option<Duration> {
    let now = fleet.now();
    let suspect = consequence.suspect && fleet.is_probed(&worker.endpoint);
    if suspect {
        worker.endpoint.update_health(Health::suspect);
    }
    let (_, busy_for) = fleet.update_state(worker, |state| {
        if let Some(breaker) = &mut state.breaker {
            match trial {
                Some(trial) => breaker.end_trial(trial, consequence.signal, now),
                None => breaker.record(consequence.signal, now),
            }
        }
        state.verdict = worker.endpoint.verdict();
        if consequence.signal == BreakerSignal::Success {
            state.refusals = 0;
        }
        consequence
            .busy
            .then(|| state.record_refusal(now))
            .flatten()
    });
    if suspect {
        suspect_peers(fleet, worker);
        worker.endpoint.probe_now.notify_one();
    }
    busy_for
}

/// An engine has been paused. Where others can take requests it gets none; where none can, they
/// wait in the engine, as `SGLang` has them wait.
pub(crate) fn mark_paused(fleet: &Fleet, endpoint: &Arc<Endpoint>) {
    for worker in fleet.workers_of(endpoint) {
        fleet.update_state(&worker, |state| state.paused = true);
    }
}

/// A paused engine continues.
pub(crate) fn mark_running(fleet: &Fleet, endpoint: &Arc<Endpoint>) {
    for worker in fleet.workers_of(endpoint) {
        fleet.update_state(&worker, |state| state.paused = false);
    }
}

/// The source of an endpoint says that it is not ready: it gets no requests.
pub(super) fn hold_back(fleet: &Fleet, endpoint: &Arc<Endpoint>) {
    for worker in fleet.workers_of(endpoint) {
        fleet.update_state(&worker, |state| state.unready = true);
    }
    info!(worker = %endpoint.url, "worker is not ready, its source says");
}

/// The source of an endpoint says no longer that it is not ready.
pub(super) fn admit(fleet: &Fleet, endpoint: &Arc<Endpoint>) {
    for worker in fleet.workers_of(endpoint) {
        fleet.update_state(&worker, |state| state.unready = false);
    }
    info!(worker = %endpoint.url, "worker is ready, its source says");
}

/// The other workers of an endpoint follow its verdict.
fn suspect_peers(fleet: &Fleet, worker: &Worker) {
    for peer in fleet.workers_of(&worker.endpoint) {
        if peer.id != worker.id {
            fleet.update_state(&peer, |state| state.verdict = peer.endpoint.verdict());
        }
    }
}

/// A worker may be gone: it is probed, and until a probe has passed it gets requests only if no
/// other worker can take them. False when there is no such worker, or it is not probed.
pub(crate) fn suspect(fleet: &Fleet, url: &str) -> bool {
    let named = fleet.find(url);
    let Some(worker) = named.filter(|worker| fleet.is_probed(&worker.endpoint)) else {
        return false;
    };
    mark_suspect(fleet, &worker.endpoint);
    true
}

/// A worker has been silent for long where others answer at once: it is suspect, until the probe
/// that this asks for has passed.
pub(crate) fn suspect_silent(fleet: &Fleet, endpoint: &Arc<Endpoint>) {
    if endpoint.verdict() == Verdict::Ready && fleet.is_probed(endpoint) {
        mark_suspect(fleet, endpoint);
    }
}

fn mark_suspect(fleet: &Fleet, endpoint: &Arc<Endpoint>) {
    endpoint.update_health(Health::suspect);
    for worker in fleet.workers_of(endpoint) {
        fleet.update_state(&worker, |state| state.verdict = worker.endpoint.verdict());
    }
    endpoint.probe_now.notify_one();
}

/// A worker has been silent for long: it is probed, though not for every request that waits.
pub(crate) fn request_probe(fleet: &Fleet, endpoint: &Endpoint) {
    if endpoint.may_request_probe(fleet.now()) && fleet.is_probed(endpoint) {
        endpoint.probe_now.notify_one();
    }
}

/// A worker on trial has begun to respond.
pub(crate) fn trial_answered(fleet: &Fleet, worker: &Worker, trial: &mut Trial) {
    fleet.update_state(worker, |state| {
        if let Some(breaker) = &mut state.breaker {
            breaker.trial_answered(trial);
        }
    });
}

/// Whether a breaker lets a request through.
#[derive(Debug)]
pub(crate) enum BreakerPermit {
    /// It is closed.
    Closed,
    /// It is half-open, and this request decides about it.
    HalfOpen(Trial),
    /// It is open, or half-open with a request on trial already.
    Rejected,
}

/// Asks a worker's breaker; a half-open one may let a request through on trial.
pub(crate) fn acquire_breaker_permit(fleet: &Fleet, worker: &Worker) -> BreakerPermit {
    let (after, trial) = fleet.update_state(worker, |state| {
        state.breaker.as_mut().and_then(Breaker::begin_trial)
    });
    match trial {
        Some(trial) => BreakerPermit::HalfOpen(trial),
        None if after.circuit == Circuit::Closed => BreakerPermit::Closed,
        None => BreakerPermit::Rejected,
    }
}

/// Time passes for every worker.
pub(crate) fn advance_timers(fleet: &Fleet) {
    for worker in fleet.workers().iter() {
        advance_worker(fleet, worker);
    }
}

/// Time passes for one worker.
pub(crate) fn advance_worker(fleet: &Fleet, worker: &Worker) {
    let (now, slow_start) = (fleet.now(), fleet.slow_start());
    let (_, warmed_up) = fleet.update_state(worker, |state| {
        let warming_up = state.recovered_at.is_some();
        state.advance(now, slow_start);
        warming_up && state.recovered_at.is_none()
    });
    if warmed_up {
        fleet.availability_changed();
    }
}

/// A worker's cache is empty: what routing believes of it goes at once.
pub(crate) fn invalidate_cache(fleet: &Fleet, worker: &Worker) {
    worker.bump_generation();
    fleet.membership_changed();
}

/// Sets which model an endpoint serves: the one it is registered with, or the one it reports,
/// now (`reported`) or before.
pub(crate) fn set_model(
    fleet: &Fleet,
    endpoint: &Endpoint,
    reported: Option<Report>,
    metrics: &Metrics,
) {
    let one_at_a_time = fleet.model_lock.lock();
    if endpoint.is_removed() {
        return;
    }
    let (before, config) = (endpoint.model_info.load_full(), endpoint.config.load());
    let registered_anew = reported.is_none();
    let report = reported.unwrap_or_else(|| before.report.clone());
    let registered = config.spec.model.clone();
    let model = registered.unwrap_or_else(|| report.model());
    // An engine in a pair takes no other part: it refuses requests that are not meant for it.
    let role = report.role().or(config.spec.role).unwrap_or_default();
    let moved = before.role != role;
    let renamed = before.model != model;
    let metrics = if renamed {
        metrics.model(&model)
    } else {
        Arc::clone(&before.metrics)
    };
    let info = ModelInfo::new(model, role, report, metrics);
    endpoint.model_info.store(Arc::new(info));
    drop(one_at_a_time);
    if moved {
        info!(worker = %endpoint.url, from = before.role.as_str(), to = role.as_str(), "worker has another role");
    }
    // A changed registration may ask for another policy.
    if !registered_anew && endpoint.is_unseen() {
        fleet.changed.notify_waiters();
    } else if renamed || moved || registered_anew {
        fleet.membership_changed();
    } else {
        fleet.availability_changed();
    }
}

/// An engine has taken another role: nothing that routing learnt of it holds.
pub(crate) fn set_role(fleet: &Fleet, endpoint: &Arc<Endpoint>, role: Role, metrics: &Metrics) {
    let report = endpoint.model_info.load().report.clone().in_role(role);
    set_model(fleet, endpoint, Some(report), metrics);
    for worker in fleet.workers_of(endpoint) {
        invalidate_cache(fleet, &worker);
    }
}

/// Waits for a worker to become ready; false when it takes too long, or drains.
pub(super) async fn wait_ready(fleet: &Fleet, worker: &Worker, limit: Duration) -> bool {
    let ready = fleet.watch(|_| {
        let is_ready = worker.is_ready();
        (is_ready || worker.is_draining()).then_some(is_ready)
    });
    timeout(limit, ready).await.unwrap_or(false)
}

/// Seconds after which asking again may help, when no worker takes requests.
pub(crate) fn retry_after_secs(fleet: &Fleet) -> u64 {
    let now = fleet.now();
    let half_opens = |worker: &Arc<Worker>| {
        worker.with_state(|state| {
            let healthy = state.verdict == Verdict::Ready;
            state.breaker.as_ref().filter(|_| healthy)?.half_opens_at()
        })
    };
    let soonest = fleet.workers().iter().filter_map(half_opens).min();
    let wait = soonest.unwrap_or_default().saturating_sub(now);
    // Rounded up: a client that comes back then is not turned away once more.
    let begun = u64::from(wait.subsec_nanos() > 0);
    (wait.as_secs() + begun).max(1)
}
