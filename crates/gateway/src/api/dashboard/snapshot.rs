//! The fleet at one moment, as JSON.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::Value;

use super::feed::Number;
use crate::api::debug;
use crate::api::state::ApiState;
use crate::balancer::PoolSummary;
use crate::fleet::Worker;

/// Decisions shown.
const DECISIONS: usize = 12;

#[derive(Serialize)]
struct Snapshot<'a> {
    #[serde(rename = "snapshot")]
    number: Number,
    /// Seconds since 1970.
    time: f64,
    uptime_secs: f64,
    version: &'static str,
    policy: &'static str,
    draining: bool,
    workers: Vec<WorkerRow<'a>>,
    pools: Vec<PoolRow>,
    limits: Value,
    decisions: Value,
}

/// A worker. Counts are sums since it joined: a rate is the difference of two snapshots.
#[derive(Serialize)]
struct WorkerRow<'a> {
    id: String,
    index: usize,
    /// Its URL, and its rank where it has several.
    name: String,
    url: &'a str,
    rank: Option<usize>,
    role: &'static str,
    model: String,
    status: &'static str,
    selectable: bool,
    paused: bool,
    circuit_breaker: &'static str,
    breaker_failures: usize,
    requests: usize,
    decoding: usize,
    queued_tokens: u64,
    successes: u64,
    failures: u64,
    prompt_tokens: u64,
    predicted_tokens: u64,
    reported_prompt_tokens: u64,
    reported_tokens: u64,
    streams: u64,
    ttft_secs: f64,
}

/// Workers that may serve the same requests.
#[derive(Serialize)]
struct PoolRow {
    model: Option<String>,
    role: &'static str,
    policy: &'static str,
    selectable: usize,
    fallback: usize,
    panicking: bool,
    queued: usize,
}

impl From<PoolSummary> for PoolRow {
    fn from(pool: PoolSummary) -> Self {
        Self {
            model: pool.model,
            role: pool.role.as_str(),
            policy: pool.policy.as_str(),
            selectable: pool.selectable,
            fallback: pool.fallback,
            panicking: pool.panicking,
            queued: pool.waiting,
        }
    }
}

/// Appends the snapshot of this number to `json`.
pub(super) fn write(state: &ApiState, number: Number, json: &mut Vec<u8>) {
    let (balancer, workers) = (&state.balancer, state.fleet.workers());
    let mut decisions = state.proxy.explainer().recent_decisions(DECISIONS);
    let snapshot = Snapshot {
        number,
        time: since_epoch().as_secs_f64(),
        uptime_secs: state.fleet.now().as_secs_f64(),
        version: env!("CARGO_PKG_VERSION"),
        policy: balancer.policy().as_str(),
        draining: state.shutdown.is_lame_duck(),
        workers: workers.iter().map(|worker| row(worker)).collect(),
        pools: balancer.pools().into_iter().map(PoolRow::from).collect(),
        limits: debug::limits_in_force(balancer, &state.admission),
        decisions: decisions["decisions"].take(),
    };
    // Nothing in it can fail to be written.
    let written = serde_json::to_writer(json, &snapshot);
    debug_assert!(written.is_ok(), "a snapshot is JSON");
}

fn row(worker: &Worker) -> WorkerRow<'_> {
    let (info, availability) = (worker.endpoint.model_info.load(), worker.availability());
    let (metrics, totals) = (worker.metrics(), worker.totals.read());
    let load = worker.load.own();
    WorkerRow {
        id: worker.id.to_string(),
        index: worker.slot,
        name: worker.name().to_string(),
        url: worker.url().as_str(),
        rank: worker.rank(),
        role: info.role.as_str(),
        model: info.model.clone(),
        status: availability.status(),
        selectable: availability.selectable,
        paused: availability.paused,
        circuit_breaker: availability.circuit.as_str(),
        breaker_failures: worker.breaker_failures(),
        requests: load.requests,
        decoding: load.requests.saturating_sub(load.waiting),
        queued_tokens: load.queued_tokens,
        successes: metrics.successes.get(),
        failures: metrics.failures.get(),
        prompt_tokens: totals.prompt_tokens,
        predicted_tokens: totals.predicted_tokens,
        reported_prompt_tokens: totals.reported_prompt_tokens,
        reported_tokens: totals.reported_tokens,
        streams: totals.first_events,
        ttft_secs: totals.first_event_wait.as_secs_f64(),
    }
}

fn since_epoch() -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default()
}
