//! Results of a simulation.

use std::time::Duration;

use serde::Serialize;

use super::options::FleetOptions;
use super::trace::Trace;

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
    /// Mean time to last token of the requests that had one.
    pub e2e_mean_ms: f64,
    /// 99th percentile.
    pub e2e_p99_ms: f64,
    /// Output tokens per second, up to the last token.
    pub output_tps: f64,
    /// Share of all requests with a first token within `ttft_slo_ms`.
    pub goodput: f64,
    /// Largest prefill work of a worker, divided by the mean.
    pub imbalance: f64,
    /// Share of time spent on prefill, up to the last first token.
    pub busy: f64,
    /// Mean duration of a routing decision on this machine, in microseconds.
    pub decision_mean_us: f64,
    /// Maximum duration of a routing decision, in microseconds.
    pub decision_max_us: f64,
    /// Quantiles of the time to first token: 201 values, ascending.
    pub ttft_quantiles_ms: Vec<f64>,
}

/// Prefill work of one worker.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PrefillWork {
    /// Prompt tokens of all prefills.
    pub(super) prompt_tokens: u64,
    /// Tokens of them found in the cache.
    pub(super) cached_tokens: u64,
}

impl PrefillWork {
    fn computed_tokens(&self) -> u64 {
        self.prompt_tokens - self.cached_tokens
    }
}

/// Totals of a run.
#[derive(Debug, Default)]
pub(super) struct RunTotals {
    /// Times to first token, in seconds.
    pub(super) ttft: Vec<f64>,
    pub(super) last_token_at: f64,
    /// Times to last token, in seconds.
    pub(super) e2e: Vec<f64>,
    output_tokens: f64,
    ended_at: f64,
    pub(super) rejected: usize,
    pub(super) rerouted: usize,
    pub(super) cut: usize,
    pub(super) failed: usize,
    pub(super) ejected: usize,
    pub(super) ejected_well: usize,
    pub(super) decisions: u32,
    pub(super) decision_time: Duration,
    pub(super) slowest_decision: Duration,
}

impl RunTotals {
    /// Adds the duration of one decision.
    pub(super) fn add_decision(&mut self, took: Duration) {
        self.decisions += 1;
        self.decision_time += took;
        self.slowest_decision = self.slowest_decision.max(took);
    }

    /// A request has its last token.
    pub(super) fn finished(
        &mut self,
        trace: &Trace,
        options: &FleetOptions,
        request: usize,
        now: f64,
    ) {
        self.e2e
            .push(now - trace.at_ms(request) / 1000.0 / options.speed);
        self.output_tokens += f64::from(trace.output(request)) * options.output_scale;
        self.ended_at = now;
    }

    /// The report, given the prefill work of each worker.
    pub(super) fn report(
        mut self,
        policy: &str,
        requests: usize,
        work: &[PrefillWork],
        options: &FleetOptions,
    ) -> Report {
        self.ttft.sort_by(f64::total_cmp);
        self.e2e.sort_by(f64::total_cmp);
        let ms = |share: f64| quantile(&self.ttft, share) * 1000.0;
        let prompts: u64 = work.iter().map(|work| work.prompt_tokens).sum();
        let cached: u64 = work.iter().map(|work| work.cached_tokens).sum();
        let most = work.iter().map(PrefillWork::computed_tokens).max();
        let computed = (prompts - cached) as f64;
        let in_time = |ttft: &f64| ttft * 1000.0 <= options.ttft_slo_ms;
        let worker_time = self.last_token_at * work.len() as f64;
        Report {
            policy: policy.to_owned(),
            requests,
            rejected: self.rejected,
            rerouted: self.rerouted,
            cut: self.cut,
            failed: self.failed,
            ejected: self.ejected,
            ejected_well: self.ejected_well,
            hit_ratio: ratio(cached as f64, prompts as f64),
            ttft_mean_ms: ratio(self.ttft.iter().sum(), self.ttft.len() as f64) * 1000.0,
            ttft_p50_ms: ms(0.5),
            ttft_p90_ms: ms(0.9),
            ttft_p99_ms: ms(0.99),
            ttft_max_ms: ms(1.0),
            e2e_mean_ms: ratio(self.e2e.iter().sum(), self.e2e.len() as f64) * 1000.0,
            e2e_p99_ms: quantile(&self.e2e, 0.99) * 1000.0,
            output_tps: ratio(self.output_tokens, self.ended_at),
            goodput: ratio(self.ttft.partition_point(in_time) as f64, requests as f64),
            imbalance: ratio(most.unwrap_or(0) as f64 * work.len() as f64, computed),
            busy: ratio(computed / options.prefill_tps, worker_time),
            decision_mean_us: ratio(
                self.decision_time.as_secs_f64() * 1e6,
                self.decisions.into(),
            ),
            decision_max_us: self.slowest_decision.as_secs_f64() * 1e6,
            ttft_quantiles_ms: (0..=POINTS)
                .map(|at| ms(at as f64 / POINTS as f64))
                .collect(),
        }
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
