//! What each request got: its times, whether they were within the limits, and its tenant's share.

use std::collections::BTreeMap;

use super::options::FleetOptions;
use super::trace::Trace;

/// The requests' times so far, in seconds.
#[derive(Debug, Default)]
pub(super) struct Service {
    /// Times of first tokens by request, since the run's start.
    first_at: Vec<f64>,
    /// Times to first token.
    pub(super) ttft: Vec<f64>,
    /// Times per output token after the first.
    pub(super) tpot: Vec<f64>,
    /// Times to last token.
    pub(super) e2e: Vec<f64>,
    /// Requests whose first token was in time.
    in_time: Vec<bool>,
    /// Requests that were served within all limits.
    good: Vec<bool>,
}

impl Service {
    pub(super) fn first_token(&mut self, trace: &Trace, options: &FleetOptions, at: At) {
        if self.first_at.is_empty() {
            self.first_at = vec![f64::NAN; trace.len()];
            self.in_time = vec![false; trace.len()];
            self.good = vec![false; trace.len()];
        }
        let ttft = at.now - arrival(trace, options, at.request);
        self.ttft.push(ttft);
        self.first_at[at.request] = at.now;
        self.in_time[at.request] = ttft * 1000.0 <= options.ttft_slo_ms;
        self.good[at.request] = self.in_time[at.request] && options.tpot_slo_ms <= 0.0;
    }

    pub(super) fn last_token(&mut self, trace: &Trace, options: &FleetOptions, at: At) {
        self.e2e.push(at.now - arrival(trace, options, at.request));
        let further = f64::from(trace.output(at.request)) * options.output_scale - 1.0;
        let Some(first_at) = self.first_at.get(at.request) else {
            return;
        };
        let mut tpot = 0.0;
        if further >= 1.0 {
            tpot = (at.now - first_at) / further;
            self.tpot.push(tpot);
        }
        if options.tpot_slo_ms > 0.0 {
            let steady = tpot * 1000.0 <= options.tpot_slo_ms;
            self.good[at.request] = steady && self.in_time[at.request];
        }
    }

    /// Requests served within all limits.
    pub(super) fn good(&self) -> usize {
        self.good.iter().filter(|good| **good).count()
    }

    /// By tenant: the share of the tokens of its requests that were served within all limits.
    pub(super) fn by_tenant(&self, trace: &Trace) -> BTreeMap<String, f64> {
        let names = trace.tenants();
        let mut tokens = vec![(0.0, 0.0); names.len()];
        for request in 0..trace.len() {
            let Some(sum) = trace.tenant(request).and_then(|it| tokens.get_mut(it)) else {
                continue;
            };
            let size = trace.tokens(request, 0) + u64::from(trace.output(request));
            sum.1 += size as f64;
            if self.good.get(request) == Some(&true) {
                sum.0 += size as f64;
            }
        }
        let share = |(good, all): (f64, f64)| if all > 0.0 { good / all } else { 0.0 };
        let shares = tokens.into_iter().map(share);
        names.iter().cloned().zip(shares).collect()
    }
}

/// A request, and a time in seconds since the run's start.
#[derive(Clone, Copy, Debug)]
pub(super) struct At {
    pub(super) request: usize,
    pub(super) now: f64,
}

fn arrival(trace: &Trace, options: &FleetOptions, request: usize) -> f64 {
    trace.at_ms(request) / 1000.0 / options.speed
}

/// Jain's index of fairness: 1 if all shares are equal, 1/n if one has everything.
pub(super) fn jain<'a>(shares: impl Iterator<Item = &'a f64>) -> f64 {
    let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
    for share in shares {
        count += 1.0;
        sum += share;
        squares += share * share;
    }
    if squares > 0.0 {
        sum * sum / (count * squares)
    } else {
        1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jain_index_is_one_for_equal_shares_and_one_over_n_for_a_monopoly() {
        assert!((jain([0.5, 0.5, 0.5].iter()) - 1.0).abs() < 1e-12);
        assert!((jain([1.0, 0.0, 0.0, 0.0].iter()) - 0.25).abs() < 1e-12);
        assert!((jain([].iter()) - 1.0).abs() < 1e-12);
    }
}
