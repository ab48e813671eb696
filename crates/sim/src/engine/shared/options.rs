//! What passes cost and how memory is used.

use serde::{Deserialize, Serialize};

use crate::error::SimError;

/// How an engine is modelled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineModel {
    /// Prefill and decode as two stages that do not disturb each other, and a cache of its own.
    #[default]
    Split,
    /// One device and one memory for both.
    Shared,
}

/// A device that computes prompts and decodes in turns, out of one memory. The defaults are those
/// of one H100 with an 8B model in FP8 (`bench/engine.md`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SharedOptions {
    /// Milliseconds of a pass over prompts, whatever their length.
    pub prefill_base_ms: f64,
    /// Microseconds that each prompt token adds to its pass.
    pub prefill_token_us: f64,
    /// Nanoseconds that each prompt token adds for every token before it in its sequence.
    pub prefill_context_ns: f64,
    /// Milliseconds of a decode step, whatever the batch.
    pub decode_base_ms: f64,
    /// Microseconds that each sequence of the batch adds to a decode step.
    pub decode_sequence_us: f64,
    /// Nanoseconds that each token in the batch's contexts adds to a decode step.
    pub decode_context_ns: f64,
    /// Prompt tokens that one pass computes at most.
    pub chunk_tokens: u32,
    /// The batch decodes with each pass over prompts, and does not wait for it.
    pub mixed_chunks: bool,
    /// Share of their longest outputs that is kept free for running sequences after a lack of
    /// memory, at first, and falls to a seventh within 600 steps.
    pub output_reserve: f64,
    /// Tokens of output that are reckoned with at most.
    pub longest_reserve: u32,
    /// Tokens in the host's memory, from which prefixes are loaded back; 0 = none.
    pub host_cache_tokens: usize,
    /// Tokens that are loaded back per second.
    pub host_load_tokens_per_sec: f64,
}

impl Default for SharedOptions {
    fn default() -> Self {
        Self {
            prefill_base_ms: 4.2,
            prefill_token_us: 14.4,
            prefill_context_ns: 1.08,
            decode_base_ms: 4.46,
            decode_sequence_us: 16.5,
            decode_context_ns: 16.2,
            chunk_tokens: 8192,
            mixed_chunks: false,
            output_reserve: 0.7,
            longest_reserve: 4096,
            host_cache_tokens: 0,
            host_load_tokens_per_sec: 400_000.0,
        }
    }
}

impl SharedOptions {
    /// Checks every rule; the first broken one is the error.
    pub(crate) fn check(&self) -> Result<(), SimError> {
        let amounts = [
            ("prefill_base_ms", self.prefill_base_ms, 1e6),
            ("prefill_token_us", self.prefill_token_us, 1e9),
            ("prefill_context_ns", self.prefill_context_ns, 1e9),
            ("decode_base_ms", self.decode_base_ms, 1e6),
            ("decode_sequence_us", self.decode_sequence_us, 1e9),
            ("decode_context_ns", self.decode_context_ns, 1e9),
            ("output_reserve", self.output_reserve, 1.0),
            (
                "host_load_tokens_per_sec",
                self.host_load_tokens_per_sec,
                1e12,
            ),
        ];
        for (field, value, most) in amounts {
            if !(0.0..=most).contains(&value) {
                let why = "must be 0 or more and of sane size";
                return Err(SimError::option(field, value, why));
            }
        }
        if self.chunk_tokens == 0 {
            let why = "must be at least 1";
            return Err(SimError::option("chunk_tokens", self.chunk_tokens, why));
        }
        Ok(())
    }
}
