//! The gauges that describe the fleet, set when metrics are read.

use prometheus::IntGaugeVec;

use super::fleet::Fleet;
use crate::telemetry::Metrics;

/// Sets the gauges to what the fleet is now.
pub(crate) fn update_gauges(fleet: &Fleet, metrics: &Metrics) {
    let (gauges, breakers) = (&metrics.worker, &metrics.resilience);
    gauges.pool_size.reset();
    gauges.requests_active.reset();
    gauges.health.reset();
    for breaker in [
        &breakers.cb_state,
        &breakers.cb_failures,
        &breakers.cb_successes,
    ] {
        breaker.reset();
    }
    let mut active = 0;
    for worker in fleet.workers().iter() {
        let name = worker.name();
        let url = &*name;
        let requests = i64::try_from(worker.load.requests()).unwrap_or(i64::MAX);
        active += requests;
        gauges
            .requests_active
            .with_label_values(&[url])
            .add(requests);
        let health = gauges.health.with_label_values(&[url]);
        health.set(health.get().max(worker.is_ready().into()));
        worker.with_state(|state| {
            let Some(breaker) = &state.breaker else {
                return;
            };
            let set = |gauge: &IntGaugeVec, value| gauge.with_label_values(&[url]).set(value);
            let failures = i64::try_from(breaker.failures()).unwrap_or(i64::MAX);
            set(&breakers.cb_state, breaker.circuit().as_number());
            set(&breakers.cb_failures, failures);
            set(&breakers.cb_successes, breaker.successes().into());
        });
        let info = worker.endpoint.model_info.load();
        gauges
            .pool_size
            .with_label_values(&[worker.role().as_str(), "http", &info.model])
            .inc();
    }
    gauges
        .connections_active
        .with_label_values(&["regular", "http"])
        .set(active);
}
