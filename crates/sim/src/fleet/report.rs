//! Results of a simulation.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::options::FleetOptions;
use super::service::{At, Service, jain};
use super::trace::Trace;
use crate::engine::{EngineLoad, EngineModel};

/// Intervals of the distribution in a report.
const POINTS: usize = 200;

/// Results of one policy. Times are milliseconds unless the name has another unit.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Name of the policy.
    pub policy: String,
    /// Number of requests in the trace.
    pub requests: usize,
    /// Requests rejected because the worker's queue was full, or there was no worker.
    pub rejected: usize,
    /// Requests sent to another worker because theirs died.
    pub rerouted: usize,
    /// Responses cut off because their worker died.
    pub cut: usize,
    /// Requests that ended with an error.
    pub failed: usize,
    /// Ejections of workers that did far worse than their peers.
    pub ejected: usize,
    /// Those of workers without a fault.
    pub ejected_well: usize,
    /// Share of prompt tokens found in the cache of their worker.
    pub hit_ratio: f64,
    /// Mean time to first token of the requests that had one.
    pub ttft_mean_ms: f64,
    /// Median time to first token.
    pub ttft_p50_ms: f64,
    /// 90th percentile.
    pub ttft_p90_ms: f64,
    /// 99th percentile.
    pub ttft_p99_ms: f64,
    /// Maximum.
    pub ttft_max_ms: f64,
    /// Mean time per output token after the first, of the requests that had two or more.
    pub tpot_mean_ms: f64,
    /// Median time per output token after the first.
    pub tpot_p50_ms: f64,
    /// 99th percentile.
    pub tpot_p99_ms: f64,
    /// Mean time to last token of the requests that had one.
    pub e2e_mean_ms: f64,
    /// Median time to last token.
    pub e2e_p50_ms: f64,
    /// 99th percentile.
    pub e2e_p99_ms: f64,
    /// Output tokens per second, up to the last token.
    pub output_tps: f64,
    /// Share of all requests with a first token within `ttft_slo_ms`, and further tokens within
    /// `tpot_slo_ms` each on average if that is set.
    pub goodput: f64,
    /// Requests sent back to the queue of their worker for lack of memory.
    pub retracted: u64,
    /// Prompt tokens computed again after that.
    pub recomputed_tokens: u64,
    /// Jain's index over the tenants' service; 1 if all have the same, or there is one or none.
    pub fairness: f64,
    /// Service by tenant: the share of the tokens of its requests that were goodput.
    pub tenant_service: BTreeMap<String, f64>,
    /// Largest prefill work of a worker, divided by the mean.
    pub imbalance: f64,
    /// Bytes per second that each gateway sends to the others, on average.
    pub share_bytes_per_sec: f64,
    /// Share of time spent on prefill, up to the last first token.
    pub busy: f64,
    /// Mean duration of a routing decision on this machine, in microseconds.
    pub decision_mean_us: f64,
    /// Maximum duration of a routing decision, in microseconds.
    pub decision_max_us: f64,
    /// Quantiles of the time to first token: 201 values, ascending.
    pub ttft_quantiles_ms: Vec<f64>,
    /// The same of the time per output token.
    pub tpot_quantiles_ms: Vec<f64>,
    /// The same of the time to last token.
    pub e2e_quantiles_ms: Vec<f64>,
}

/// Prefill work of one worker.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PrefillWork {
    /// Prompt tokens of all prefills.
    pub(super) prompt_tokens: u64,
    /// Tokens of them found in the cache.
    pub(super) cached_tokens: u64,
    /// Requests sent back to the queue.
    pub(super) retracted: u64,
    /// Tokens computed again after that.
    pub(super) recomputed_tokens: u64,
    /// Time spent computing; the shared model only.
    pub(super) time: Duration,
}

impl PrefillWork {
    /// This and the totals of an engine.
    pub(super) fn plus(&self, load: &EngineLoad) -> Self {
        Self {
            prompt_tokens: self.prompt_tokens + load.prompt_tokens_total,
            cached_tokens: self.cached_tokens + load.cached_tokens_total,
            retracted: self.retracted + load.retracted_total,
            time: self.time + load.prefill_time + load.decode_time,
            recomputed_tokens: self.recomputed_tokens
                + load
                    .computed_tokens_total
                    .saturating_sub(load.prompt_tokens_total - load.cached_tokens_total),
        }
    }

    fn computed_tokens(&self) -> u64 {
        self.prompt_tokens - self.cached_tokens
    }
}

/// Totals of a run.
#[derive(Debug)]
pub(super) struct RunTotals<'t> {
    trace: &'t Trace,
    options: &'t FleetOptions,
    service: Service,
    last_token_at: f64,
    output_tokens: f64,
    ended_at: f64,
    pub(super) rejected: usize,
    pub(super) rerouted: usize,
    pub(super) cut: usize,
    pub(super) failed: usize,
    pub(super) ejected: usize,
    pub(super) ejected_well: usize,
    pub(super) shared_bytes: u64,
    pub(super) decisions: u32,
    pub(super) decision_time: Duration,
    pub(super) slowest_decision: Duration,
}

impl<'t> RunTotals<'t> {
    pub(super) fn new(trace: &'t Trace, options: &'t FleetOptions) -> Self {
        Self {
            trace,
            options,
            service: Service::default(),
            last_token_at: 0.0,
            output_tokens: 0.0,
            ended_at: 0.0,
            rejected: 0,
            rerouted: 0,
            cut: 0,
            failed: 0,
            ejected: 0,
            ejected_well: 0,
            decisions: 0,
            decision_time: Duration::ZERO,
            slowest_decision: Duration::ZERO,
            shared_bytes: 0,
        }
    }

    /// Adds the duration of one decision.
    pub(super) fn add_decision(&mut self, took: Duration) {
        self.decisions += 1;
        self.decision_time += took;
        self.slowest_decision = self.slowest_decision.max(took);
    }

    pub(super) fn first_token(&mut self, at: At) {
        self.service.first_token(self.trace, self.options, at);
        self.last_token_at = at.now;
    }

    pub(super) fn last_token(&mut self, at: At) {
        self.service.last_token(self.trace, self.options, at);
        self.output_tokens += f64::from(self.trace.output(at.request)) * self.options.output_scale;
        self.ended_at = at.now;
    }

    /// The report, given the prefill work of each worker.
    pub(super) fn report(self, policy: &str, work: &[PrefillWork]) -> Report {
        let trace = self.trace;
        let [ttft, tpot, e2e] = [&self.service.ttft, &self.service.tpot, &self.service.e2e]
            .map(|seconds| Distribution::of(seconds));
        let prompts: u64 = work.iter().map(|work| work.prompt_tokens).sum();
        let cached: u64 = work.iter().map(|work| work.cached_tokens).sum();
        let most = work.iter().map(PrefillWork::computed_tokens).max();
        let computed = (prompts - cached) as f64;
        let tenant_service = self.service.by_tenant(trace);
        Report {
            policy: policy.to_owned(),
            requests: trace.len(),
            rejected: self.rejected,
            rerouted: self.rerouted,
            cut: self.cut,
            failed: self.failed,
            ejected: self.ejected,
            ejected_well: self.ejected_well,
            hit_ratio: ratio(cached as f64, prompts as f64),
            ttft_mean_ms: ttft.mean(),
            ttft_p50_ms: ttft.at(0.5),
            ttft_p90_ms: ttft.at(0.9),
            ttft_p99_ms: ttft.at(0.99),
            ttft_max_ms: ttft.at(1.0),
            tpot_mean_ms: tpot.mean(),
            tpot_p50_ms: tpot.at(0.5),
            tpot_p99_ms: tpot.at(0.99),
            e2e_mean_ms: e2e.mean(),
            e2e_p50_ms: e2e.at(0.5),
            e2e_p99_ms: e2e.at(0.99),
            output_tps: ratio(self.output_tokens, self.ended_at),
            goodput: ratio(self.service.good() as f64, trace.len() as f64),
            retracted: work.iter().map(|work| work.retracted).sum(),
            recomputed_tokens: work.iter().map(|work| work.recomputed_tokens).sum(),
            fairness: jain(tenant_service.values()),
            tenant_service,
            imbalance: ratio(most.unwrap_or(0) as f64 * work.len() as f64, computed),
            share_bytes_per_sec: ratio(
                self.shared_bytes as f64 / self.options.gateways as f64,
                self.ended_at,
            ),
            busy: self.busy(computed, work),
            decision_mean_us: ratio(
                self.decision_time.as_secs_f64() * 1e6,
                self.decisions.into(),
            ),
            decision_max_us: self.slowest_decision.as_secs_f64() * 1e6,
            ttft_quantiles_ms: ttft.curve(),
            tpot_quantiles_ms: tpot.curve(),
            e2e_quantiles_ms: e2e.curve(),
        }
    }

    /// Share of time spent on prefill, or on anything by the shared model.
    fn busy(&self, computed: f64, work: &[PrefillWork]) -> f64 {
        let options = self.options;
        let workers = work.len() as f64;
        match options.engine_model {
            EngineModel::Split => {
                ratio(computed / options.prefill_tps, self.last_token_at * workers)
            }
            EngineModel::Shared => {
                let time: Duration = work.iter().map(|work| work.time).sum();
                ratio(time.as_secs_f64(), self.ended_at * workers)
            }
        }
    }
}

/// Times in seconds, sorted; read in milliseconds.
struct Distribution(Vec<f64>);

impl Distribution {
    fn of(seconds: &[f64]) -> Self {
        let mut sorted = seconds.to_owned();
        sorted.sort_by(f64::total_cmp);
        Self(sorted)
    }

    fn mean(&self) -> f64 {
        ratio(self.0.iter().sum(), self.0.len() as f64) * 1000.0
    }

    fn at(&self, share: f64) -> f64 {
        quantile(&self.0, share) * 1000.0
    }

    fn curve(&self) -> Vec<f64> {
        let shares = (0..=POINTS).map(|at| at as f64 / POINTS as f64);
        shares.map(|share| self.at(share)).collect()
    }
}

/// The value below which a share of the sorted values lie; 0 for an empty list.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    #[expect(clippy::cast_sign_loss, reason = "shares are not negative")]
    let at = (sorted.len() as f64 * share) as usize;
    let last = sorted.len().saturating_sub(1);
    sorted.get(at.min(last)).copied().unwrap_or(0.0)
}

fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::quantile;

    #[test]
    fn quantiles_of_short_lists_are_their_elements() {
        assert!(quantile(&[], 0.5).abs() < 1e-9);
        assert!((quantile(&[3.0], 0.99) - 3.0).abs() < 1e-9);
        assert!((quantile(&[1.0, 2.0, 3.0, 4.0], 0.5) - 3.0).abs() < 1e-9);
    }
}
