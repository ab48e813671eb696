//! What came of a simulation.

use std::time::Duration;

use serde::Serialize;

use super::options::FleetOptions;

/// Points of the distribution that a report carries.
const POINTS: usize = 200;

/// How one policy did. Times in milliseconds unless they say otherwise.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The policy.
    pub policy: String,
    /// Requests of the trace.
    pub requests: usize,
    /// Those turned away: the worker's queue was full, or there was no worker.
    pub rejected: usize,
    /// Requests sent anew because their worker died.
    pub rerouted: usize,
    /// Answers cut because their worker died.
    pub cut: usize,
    /// Share of prompt tokens that were in the cache of their worker.
    pub hit_ratio: f64,
    /// Time to first token: mean, percentiles, maximum, of requests that had one.
    pub ttft_mean_ms: f64,
    /// Half of them were faster.
    pub ttft_p50_ms: f64,
    /// 90 % of them were faster.
    pub ttft_p90_ms: f64,
    /// 99 % of them were faster.
    pub ttft_p99_ms: f64,
    /// The slowest.
    pub ttft_max_ms: f64,
    /// Share of all requests whose first token came in time.
    pub goodput: f64,
    /// Most prefill work of a worker over the mean.
    pub imbalance: f64,
    /// Share of time that workers prefilled, up to the last first token.
    pub busy: f64,
    /// What a decision took, in microseconds of this machine: mean.
    pub decision_mean_us: f64,
    /// And maximum.
    pub decision_max_us: f64,
    /// The distribution: 201 values from fastest to slowest.
    pub ttft_quantiles_ms: Vec<f64>,
}

/// What is counted on the way.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Times to first token, in seconds.
    pub(super) ttft: Vec<f64>,
    pub(super) last_token_at: f64,
    pub(super) rejected: usize,
    pub(super) rerouted: usize,
    pub(super) cut: usize,
    pub(super) decisions: u32,
    pub(super) deciding: Duration,
    pub(super) slowest: Duration,
}

impl Tally {
    /// One decision took so long.
    pub(super) fn decided(&mut self, took: Duration) {
        self.decisions += 1;
        self.deciding += took;
        self.slowest = self.slowest.max(took);
    }

    /// Sums up; `work` is prompt tokens and those of them cached, per worker.
    pub(super) fn report(
        mut self,
        policy: &str,
        requests: usize,
        work: &[(u64, u64)],
        options: &FleetOptions,
    ) -> Report {
        self.ttft.sort_by(f64::total_cmp);
        let ms = |share: f64| quantile(&self.ttft, share) * 1000.0;
        let prompts: u64 = work.iter().map(|(prompt, _)| prompt).sum();
        let cached: u64 = work.iter().map(|(_, cached)| cached).sum();
        let most = work.iter().map(|(prompt, cached)| prompt - cached).max();
        let fresh = (prompts - cached) as f64;
        let in_time = |ttft: &f64| ttft * 1000.0 <= options.ttft_slo_ms;
        let machine_time = self.last_token_at * work.len() as f64;
        Report {
            policy: policy.to_owned(),
            requests,
            rejected: self.rejected,
            rerouted: self.rerouted,
            cut: self.cut,
            hit_ratio: ratio(cached as f64, prompts as f64),
            ttft_mean_ms: ratio(self.ttft.iter().sum(), self.ttft.len() as f64) * 1000.0,
            ttft_p50_ms: ms(0.5),
            ttft_p90_ms: ms(0.9),
            ttft_p99_ms: ms(0.99),
            ttft_max_ms: ms(1.0),
            goodput: ratio(self.ttft.partition_point(in_time) as f64, requests as f64),
            imbalance: ratio(most.unwrap_or(0) as f64 * work.len() as f64, fresh),
            busy: ratio(fresh / options.prefill_tps, machine_time),
            decision_mean_us: ratio(self.deciding.as_secs_f64() * 1e6, self.decisions.into()),
            decision_max_us: self.slowest.as_secs_f64() * 1e6,
            ttft_quantiles_ms: (0..=POINTS)
                .map(|at| ms(at as f64 / POINTS as f64))
                .collect(),
        }
    }
}

/// The value that a share of all are below; 0 of nothing.
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
    fn quantiles_of_little() {
        assert!(quantile(&[], 0.5).abs() < 1e-9);
        assert!((quantile(&[3.0], 0.99) - 3.0).abs() < 1e-9);
        assert!((quantile(&[1.0, 2.0, 3.0, 4.0], 0.5) - 3.0).abs() < 1e-9);
    }
}
