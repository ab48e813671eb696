//! What a worker's prompts and contexts cost those that decode there, learnt from their times.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// What a sample weighs after the next one, so that about the last hundred count.
const MEMORY: f64 = 0.99;
/// Samples before they count.
const FEWEST_SAMPLES: f64 = 16.0;
/// A prompt that holds up decode for less than this share of its own time does not, and for more
/// than the second holds it up for all of it: what is between may be chance.
const COUPLING: (f64, f64) = (0.1, 0.5);

/// Times of one worker's requests, and the costs that follow.
///
/// Of a request that decoded, the time is taken to be
/// `a × its tokens + b × its tokens × contexts beside it + c × prompt tokens computed meanwhile`.
/// Where prefill and decode do not share a device, `c` is 0.
#[derive(Debug)]
pub(crate) struct ServiceCosts {
    fit: Mutex<Fit>,
    /// Bits of an `f32`, as below; not a number until enough is known.
    coupling: AtomicU32,
    context: AtomicU32,
}

impl Default for ServiceCosts {
    fn default() -> Self {
        Self {
            fit: Mutex::default(),
            coupling: AtomicU32::new(f32::NAN.to_bits()),
            context: AtomicU32::new(0),
        }
    }
}

/// What decode costs there, in tokens of prefill.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DecodeCosts {
    /// Share of a prompt's time for which decode stands still, from 0 to 1.
    pub coupling: f64,
    /// A decode step's time for each token in the contexts of its batch.
    pub context: f64,
}

/// A request that has decoded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Decoded {
    /// From its first token to its last.
    pub(crate) secs: f64,
    /// Tokens generated in that time.
    pub(crate) tokens: f64,
    /// Tokens in memory at that worker, on average.
    pub(crate) contexts: f64,
    /// Prompt tokens that the worker computed meanwhile.
    pub(crate) prefilled: f64,
}

/// Sums over the samples.
#[derive(Debug, Default)]
struct Fit {
    samples: f64,
    /// Products of the three terms with each other.
    squares: [[f64; 3]; 3],
    /// Products of the terms with the time.
    times: [f64; 3],
    prompts: Line,
}

/// Sums over prompts that found no queue, for the line of their times by their tokens.
#[derive(Debug, Default)]
struct Line {
    samples: f64,
    tokens: f64,
    secs: f64,
    squares: f64,
    products: f64,
}

impl ServiceCosts {
    /// The costs so far; none until enough is known.
    pub(crate) fn get(&self) -> Option<DecodeCosts> {
        let read = |bits: &AtomicU32| f64::from(f32::from_bits(bits.load(Relaxed)));
        let coupling = read(&self.coupling);
        (!coupling.is_nan()).then(|| DecodeCosts {
            coupling,
            context: read(&self.context),
        })
    }

    /// A prompt without a queue before it had its first token after so many seconds.
    pub(crate) fn observe_prefill(&self, secs: f64, tokens: f64) {
        // Of two samples at the same moment one is lost: nothing waits for this.
        if let Ok(mut fit) = self.fit.try_lock()
            && secs > 0.0
            && tokens > 0.0
        {
            fit.prompts.add(secs, tokens);
        }
    }

    /// A request has decoded.
    pub(crate) fn observe_decode(&self, decoded: Decoded) {
        let is_sane = decoded.secs > 0.0 && decoded.secs < 86_400.0 && decoded.tokens >= 1.0;
        let Some(mut fit) = self.fit.try_lock().ok().filter(|_| is_sane) else {
            return;
        };
        fit.add(decoded);
        if fit.samples >= FEWEST_SAMPLES
            && let Some(costs) = fit.costs()
        {
            let bits = |cost: f64| (cost as f32).to_bits();
            self.coupling.store(bits(costs.coupling), Relaxed);
            self.context.store(bits(costs.context), Relaxed);
        }
    }
}

impl Fit {
    fn add(&mut self, decoded: Decoded) {
        let Decoded {
            secs,
            tokens,
            contexts,
            prefilled,
        } = decoded;
        // Every request counts alike, long or short.
        let terms = [1.0, contexts, prefilled / tokens];
        self.samples = MEMORY * self.samples + 1.0;
        for (row, one) in self.squares.iter_mut().zip(terms) {
            for (square, other) in row.iter_mut().zip(terms) {
                *square = MEMORY * *square + one * other;
            }
        }
        for (time, term) in self.times.iter_mut().zip(terms) {
            *time = MEMORY * *time + term * secs / tokens;
        }
    }

    /// The costs that fit best; `None` while the samples are too much alike.
    fn costs(&self) -> Option<DecodeCosts> {
        let per_token = self.prompts.slope()?;
        let [_, context, held_up] = solve(&self.squares, &self.times)?;
        let (least, most) = COUPLING;
        let share = (held_up / per_token - least) / (most - least);
        Some(DecodeCosts {
            coupling: share.clamp(0.0, 1.0),
            context: (context / per_token).clamp(0.0, 1.0),
        })
    }
}

impl Line {
    fn add(&mut self, secs: f64, tokens: f64) {
        let sums = [
            (&mut self.samples, 1.0),
            (&mut self.tokens, tokens),
            (&mut self.secs, secs),
            (&mut self.squares, tokens * tokens),
            (&mut self.products, tokens * secs),
        ];
        for (sum, sample) in sums {
            *sum = MEMORY * *sum + sample;
        }
    }

    /// Seconds per token; the mean ratio while all prompts are about as long.
    fn slope(&self) -> Option<f64> {
        let spread = self.samples * self.squares - self.tokens * self.tokens;
        let slope = (self.samples * self.products - self.tokens * self.secs) / spread;
        let mean = self.secs / self.tokens;
        let is_spread = spread > 0.05 * self.tokens * self.tokens && slope > 0.0;
        let slope = if is_spread { slope.min(mean) } else { mean };
        (slope.is_finite() && slope > 0.0).then_some(slope)
    }
}

/// The solution of three linear equations, by Cramer's rule; `None` if there is no single one.
fn solve(squares: &[[f64; 3]; 3], times: &[f64; 3]) -> Option<[f64; 3]> {
    let whole = determinant(squares);
    let scale: f64 = (0..3).map(|at| squares[at][at]).product();
    if whole.is_nan() || whole <= 1e-6 * scale {
        return None;
    }
    let solution = [0, 1, 2].map(|column| {
        let mut replaced = *squares;
        for (row, time) in replaced.iter_mut().zip(times) {
            row[column] = *time;
        }
        determinant(&replaced) / whole
    });
    solution
        .iter()
        .all(|value| value.is_finite())
        .then_some(solution)
}

fn determinant(m: &[[f64; 3]; 3]) -> f64 {
    m[0][0] * (m[1][1] * m[2][2] - m[1][2] * m[2][1])
        - m[0][1] * (m[1][0] * m[2][2] - m[1][2] * m[2][0])
        + m[0][2] * (m[1][0] * m[2][1] - m[1][1] * m[2][0])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SeededRng;

    /// Samples of a worker: 1 ms per prompt token, steps of 5 ms + 10 ns per token in memory.
    fn learn(held_up: f64) -> DecodeCosts {
        let (costs, mut rng) = (ServiceCosts::default(), SeededRng::new(7));
        for _ in 0..200 {
            let prompt = 2000.0 * rng.fraction();
            costs.observe_prefill(0.05 + 0.001 * prompt, prompt);
            let tokens = 10.0 + 500.0 * rng.fraction();
            let contexts = 1e5 * rng.fraction();
            let prefilled = 3000.0 * rng.fraction();
            let secs = tokens * (0.005 + 1e-8 * contexts) + held_up * 0.001 * prefilled;
            costs.observe_decode(Decoded {
                secs,
                tokens,
                contexts,
                prefilled,
            });
        }
        costs.get().unwrap()
    }

    #[test]
    fn costs_of_a_shared_device_are_found() {
        let costs = learn(1.0);
        assert!((costs.coupling - 1.0).abs() < 1e-3, "{costs:?}");
        assert!((costs.context - 1e-5).abs() < 1e-8, "{costs:?}");
    }

    #[test]
    fn prompts_that_hold_nothing_up_have_no_coupling() {
        assert!(learn(0.0).coupling.abs() < 1e-6);
    }

    #[test]
    fn samples_that_are_all_alike_teach_nothing() {
        let costs = ServiceCosts::default();
        for _ in 0..100 {
            costs.observe_prefill(1.0, 1000.0);
            costs.observe_decode(Decoded {
                secs: 1.0,
                tokens: 100.0,
                contexts: 500.0,
                prefilled: 100.0,
            });
        }
        assert_eq!(costs.get(), None);
    }

    #[test]
    fn absurd_samples_are_left_out() {
        let costs = ServiceCosts::default();
        for secs in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            costs.observe_prefill(secs, 0.0);
            costs.observe_decode(Decoded {
                secs,
                tokens: 0.0,
                contexts: 1.0,
                prefilled: 1.0,
            });
        }
        assert_eq!(costs.get(), None);
    }
}
