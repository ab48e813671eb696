//! The gauges that describe the fleet, set when metrics are read.

use prometheus::IntGaugeVec;

use super::fleet::Fleet;
use super::worker::Worker;
use crate::telemetry::Metrics;

/// Sets the gauges to what the fleet is now.
pub(crate) fn update_gauges(fleet: &Fleet, metrics: &Metrics) {
    let (gauges, breakers) = (&metrics.worker, &metrics.resilience);
    for gauge in [
        &gauges.pool_size,
        &gauges.connections_active,
        &gauges.requests_active,
        &gauges.queued_tokens,
        &gauges.routing_keys_active,
        &gauges.reports.requests,
        &gauges.reports.queued_tokens,
        &gauges.reports.kv_tokens,
        &gauges.reports.prefill_speed,
        &gauges.health,
        &gauges.drained,
        &breakers.cb_state,
        &breakers.cb_failures,
        &breakers.cb_successes,
    ] {
        gauge.reset();
    }
    // It is there without a worker, too.
    let all = gauges
        .connections_active
        .with_label_values(&["regular", "http"]);
    all.set(0);
    for worker in fleet.workers().iter() {
        show_load(worker, metrics);
        show_report(worker, metrics);
        show_state(worker, metrics);
    }
}

fn show_load(worker: &Worker, metrics: &Metrics) {
    let (gauges, name) = (&metrics.worker, worker.name());
    let (url, load) = ([&**name], worker.load.own());
    let requests = as_gauge(load.requests as u64);
    let requests_active = gauges.requests_active.with_label_values(&url);
    requests_active.add(requests);
    let all = [worker.role().as_str(), "http"];
    gauges
        .connections_active
        .with_label_values(&all)
        .add(requests);
    let queued = gauges.queued_tokens.with_label_values(&url);
    queued.add(as_gauge(load.queued_tokens));
    if let Some(keys) = worker.active_keys.count() {
        let active = gauges.routing_keys_active.with_label_values(&url);
        active.add(as_gauge(keys as u64));
    }
}

fn show_report(worker: &Worker, metrics: &Metrics) {
    let Some(last) = worker.reported.last() else {
        return;
    };
    let (gauges, name, report) = (&metrics.worker, worker.name(), last.report);
    let add = |gauge: &IntGaugeVec, count| {
        gauge.with_label_values(&[&*name]).add(as_gauge(count));
    };
    let requests = report.running.saturating_add(report.waiting);
    add(&gauges.reports.requests, requests);
    add(&gauges.reports.queued_tokens, report.waiting_tokens);
    add(&gauges.reports.kv_tokens, report.used_tokens);
    if let Some(speed) = last.prefill_speed {
        #[expect(clippy::cast_sign_loss, reason = "speeds are not negative")]
        let speed = speed.round() as u64;
        add(&gauges.reports.prefill_speed, speed);
    }
}

fn show_state(worker: &Worker, metrics: &Metrics) {
    let (gauges, breakers, name) = (&metrics.worker, &metrics.resilience, worker.name());
    let url = [&**name];
    let health = gauges.health.with_label_values(&url);
    health.set(health.get().max(worker.is_ready().into()));
    let drained = gauges.drained.with_label_values(&url);
    worker.with_state(|state| {
        drained.set(state.drained.into());
        let Some(breaker) = &state.breaker else {
            return;
        };
        let set = |gauge: &IntGaugeVec, value| gauge.with_label_values(&url).set(value);
        set(&breakers.cb_state, breaker.circuit().as_number());
        set(&breakers.cb_failures, as_gauge(breaker.failures() as u64));
        set(&breakers.cb_successes, breaker.successes().into());
    });
    let info = worker.endpoint.model_info.load();
    let pool = [worker.role().as_str(), "http", &*info.metrics.name];
    gauges.pool_size.with_label_values(&pool).inc();
}

fn as_gauge(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
