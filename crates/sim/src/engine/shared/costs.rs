//! How long a forward pass takes.

use super::options::SharedOptions;
use crate::engine::PromptSource;

/// A length of time in picoseconds. Steps add up exactly, however many are taken together.
pub(super) type Picos = u128;

const PER_MS: f64 = 1e9;
const PER_US: f64 = 1e6;
const PER_NS: f64 = 1e3;

/// Prompt tokens of a pass.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PassWork {
    pub(super) tokens: u64,
    /// Pairs of a token and one before it in its sequence.
    pub(super) pairs: u64,
    /// Tokens that come from the host's memory.
    pub(super) loaded: u64,
}

/// A decode batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct BatchSize {
    pub(super) sequences: u64,
    /// Tokens in the contexts of all sequences.
    pub(super) context: u64,
}

/// Costs in picoseconds.
#[derive(Debug)]
pub(super) struct StepCosts {
    options: SharedOptions,
    slowness: f64,
    extra: Picos,
    /// Whether prompts arrive with their KV cache.
    received: bool,
    pass: Picos,
    token: Picos,
    pair: Picos,
    loaded: Picos,
    step: Picos,
    sequence: Picos,
    context: Picos,
}

impl StepCosts {
    pub(super) fn new(options: &SharedOptions) -> Self {
        let mut costs = Self {
            options: options.clone(),
            slowness: 1.0,
            extra: 0,
            received: false,
            pass: 0,
            token: 0,
            pair: 0,
            loaded: 0,
            step: 0,
            sequence: 0,
            context: 0,
        };
        costs.compute();
        costs
    }

    /// Everything takes so many times as long.
    pub(super) fn set_slowness(&mut self, slowness: f64) {
        self.slowness = slowness;
        self.compute();
    }

    /// Every decode step takes this much longer.
    pub(super) fn set_extra(&mut self, extra: Picos) {
        self.extra = extra;
        self.compute();
    }

    /// A pass over prompts that arrive with their KV cache takes no time.
    pub(super) fn set_prompt_source(&mut self, source: PromptSource) {
        self.received = source == PromptSource::Received;
        self.compute();
    }

    fn compute(&mut self) {
        let options = &self.options;
        let decode = |amount: f64| picos(amount * self.slowness);
        let prefill = |amount: f64| if self.received { 0 } else { decode(amount) };
        let load_ns = match options.host_load_tokens_per_sec {
            speed if speed > 0.0 => 1e9 / speed,
            _ => 0.0,
        };
        (self.pass, self.token, self.pair, self.loaded) = (
            prefill(options.prefill_base_ms * PER_MS),
            prefill(options.prefill_token_us * PER_US),
            prefill(options.prefill_context_ns * PER_NS),
            prefill(load_ns * PER_NS),
        );
        (self.step, self.sequence, self.context) = (
            decode(options.decode_base_ms * PER_MS) + self.extra,
            decode(options.decode_sequence_us * PER_US),
            decode(options.decode_context_ns * PER_NS),
        );
    }

    /// A pass over prompt tokens. What comes from the host is copied meanwhile, layer by layer.
    pub(super) fn pass(&self, work: PassWork) -> Picos {
        let computed =
            self.pass + self.token * Picos::from(work.tokens) + self.pair * Picos::from(work.pairs);
        computed.max(self.loaded * Picos::from(work.loaded))
    }

    /// What a batch adds to a pass with which it decodes.
    pub(super) fn beside_pass(&self, batch: BatchSize) -> Picos {
        self.sequence * Picos::from(batch.sequences) + self.context * Picos::from(batch.context)
    }

    /// `count` decode steps, in each of which every context grows by a token.
    pub(super) fn steps(&self, batch: BatchSize, count: u64) -> Picos {
        let count = Picos::from(count);
        let grown = count * count.saturating_sub(1) / 2 * Picos::from(batch.sequences);
        (self.step + self.beside_pass(batch)) * count + self.context * grown
    }
}

fn picos(amount: f64) -> Picos {
    #[expect(clippy::cast_sign_loss, reason = "costs are not negative")]
    let whole = amount.max(0.0).round() as u64;
    whole.into()
}
