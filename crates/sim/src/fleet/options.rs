//! Options of a simulated fleet: sizes, speeds, and changes during the run.

use std::time::Duration;

use routing::Params;
use routing::prefix::BLOCK;
use serde::{Deserialize, Serialize};

use super::faults::{Knowledge, WorkerFault};
use crate::engine::{EngineModel, EngineOptions, SharedOptions};
use crate::error::SimError;

/// A change of a worker, at a time of the trace's own clock.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// Milliseconds since the trace's first request, before `speed`.
    pub at_ms: f64,
    /// Index of the worker, counted from 0.
    pub worker: usize,
    /// Kind of change.
    pub kind: ChangeKind,
}

/// Kind of change of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// It dies: waiting requests are rerouted, responses in progress are cut off.
    Leave,
    /// It joins (again) with an empty cache.
    Join,
    /// Its cache is emptied, and the gateway is notified.
    Flush,
}

/// What several gateways in front of the fleet have in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Share {
    /// Nothing.
    None,
    /// How they choose between equal workers.
    #[default]
    Rendezvous,
    /// That, and what each does, as through the gateway's `--shared-state`.
    Redis,
}

/// Options of a fleet. Times are the trace's, divided by `speed`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FleetOptions {
    /// Number of workers.
    pub workers: usize,
    /// Prefill workers of a fleet of pairs, in place of `workers`; 0 = no pairs.
    pub prefill: usize,
    /// Decode workers of a fleet of pairs.
    pub decode: usize,
    /// Milliseconds that the KV cache of 1000 prompt tokens takes to its decode worker.
    pub transfer_ms_per_1k_tokens: f64,
    /// Gateways; each request comes to one at random.
    pub gateways: usize,
    /// What they share.
    pub share: Share,
    /// Milliseconds that a message between them takes.
    pub share_delay_ms: f64,
    /// Share of messages (0..1) that are lost on the way to a gateway.
    pub share_loss: f64,
    /// Arrival rate as a multiple of the recorded rate.
    pub speed: f64,
    /// Prefill speed of a worker, in prompt tokens per second.
    pub prefill_tps: f64,
    /// Capacity of a worker's prefix cache, in prompt tokens.
    pub kv_tokens: usize,
    /// Tokens per block of the trace (`hash_ids`).
    pub block_tokens: u32,
    /// Milliseconds per output token of a sequence that decodes alone.
    pub decode_ms: f64,
    /// Milliseconds per output token that each further sequence of the batch adds.
    pub decode_per_seq_ms: f64,
    /// Share of prefill speed (0..1) that a full decode batch costs.
    pub decode_interference: f64,
    /// Factor on the trace's output lengths.
    pub output_scale: f64,
    /// Sequences in prefill and decode per worker.
    pub max_running: usize,
    /// Requests that may wait per worker; one more is rejected.
    pub max_queued: usize,
    /// Longest time to first token, in milliseconds, that counts as goodput.
    pub ttft_slo_ms: f64,
    /// Longest mean time per output token after the first, in milliseconds, that counts as goodput;
    /// 0 = any.
    pub tpot_slo_ms: f64,
    /// Model of the workers' engines.
    pub engine_model: EngineModel,
    /// What passes cost in the shared model, in place of the speeds above.
    pub engine: SharedOptions,
    /// Memory limit of the policy's prefix index, in bytes.
    pub index_bytes: usize,
    /// Prompt tokens that the index may hold for all workers together; 0 = as many as fit.
    pub index_tokens: u64,
    /// Seed of all random choices.
    pub seed: u64,
    /// Changes of workers during the run.
    pub changes: Vec<Change>,
    /// Faults of workers during the run.
    pub faults: Vec<WorkerFault>,
    /// What is known of faults where requests are routed.
    pub knowledge: Knowledge,
}

impl Default for FleetOptions {
    fn default() -> Self {
        Self {
            workers: 8,
            prefill: 0,
            decode: 0,
            transfer_ms_per_1k_tokens: 1.0,
            gateways: 1,
            share: Share::default(),
            share_delay_ms: 1.0,
            share_loss: 0.0,
            speed: 1.0,
            prefill_tps: 160_000.0,
            kv_tokens: 4000 * 512,
            block_tokens: 512,
            decode_ms: 0.025,
            decode_per_seq_ms: 0.0,
            decode_interference: 0.0,
            output_scale: 1.0,
            max_running: 256,
            max_queued: 65_536,
            ttft_slo_ms: 1000.0,
            tpot_slo_ms: 0.0,
            engine_model: EngineModel::Split,
            engine: SharedOptions::default(),
            index_bytes: Params::default().index_bytes,
            index_tokens: 0,
            seed: 0,
            changes: Vec::new(),
            faults: Vec::new(),
            knowledge: Knowledge::default(),
        }
    }
}

const POSITIVE: &str = "must be above 0 and of sane size";
const COUNT: &str = "must be at least 1 and of sane size";
const SHARE: &str = "must be from 0 to 1";
const AMOUNT: &str = "must be 0 or more and of sane size";
/// The least memory of the shared model.
const FEWEST_BLOCKS: usize = 8;
const WORKER_INDEX: &str = "must be below the number of workers";

impl FleetOptions {
    /// Checks every rule; the first broken one is the error.
    pub fn check(&self) -> Result<(), SimError> {
        let numbers = [
            ("speed", self.speed, 1e-6, 1e9, POSITIVE),
            ("prefill_tps", self.prefill_tps, 1e-3, 1e12, POSITIVE),
            ("decode_ms", self.decode_ms, 0.0, 1e6, AMOUNT),
            (
                "decode_per_seq_ms",
                self.decode_per_seq_ms,
                0.0,
                1e6,
                AMOUNT,
            ),
            (
                "decode_interference",
                self.decode_interference,
                0.0,
                1.0,
                SHARE,
            ),
            ("output_scale", self.output_scale, 0.0, 1e6, AMOUNT),
            (
                "transfer_ms_per_1k_tokens",
                self.transfer_ms_per_1k_tokens,
                0.0,
                1e6,
                AMOUNT,
            ),
            ("share_delay_ms", self.share_delay_ms, 0.0, 1e6, AMOUNT),
            ("share_loss", self.share_loss, 0.0, 1.0, SHARE),
            ("ttft_slo_ms", self.ttft_slo_ms, 0.0, 1e12, AMOUNT),
            ("tpot_slo_ms", self.tpot_slo_ms, 0.0, 1e12, AMOUNT),
        ];
        for (field, value, least, most, why) in numbers {
            if !(least..=most).contains(&value) {
                return Err(SimError::option(field, value, why));
            }
        }
        let sizes = [
            ("workers", self.workers, 65_535),
            ("gateways", self.gateways, 1024),
            ("block_tokens", self.block_tokens as usize, 1 << 20),
            ("max_running", self.max_running, 1_000_000),
            ("index_bytes", self.index_bytes, 4 << 30),
        ];
        for (field, value, most) in sizes {
            if value == 0 || value > most {
                return Err(SimError::option(field, value, COUNT));
            }
        }
        self.check_pairs()?;
        self.check_gateways()?;
        self.check_engine()?;
        for change in &self.changes {
            self.check_change(change)?;
        }
        self.faults
            .iter()
            .try_for_each(|fault| fault.check(self.workers))
    }

    /// Capacity of a worker's cache in whole blocks.
    pub(super) fn cache_blocks(&self) -> usize {
        self.kv_tokens / self.block_tokens.max(1) as usize
    }

    /// Options of each worker's engine.
    pub(super) fn engine_options(&self) -> EngineOptions {
        EngineOptions {
            prefill_tokens_per_sec: self.prefill_tps,
            decode_step_base: Duration::ZERO,
            decode_step_per_seq: Duration::ZERO,
            max_running_requests: self.max_running,
            max_queued_requests: self.max_queued,
            kv_cache_tokens: self.kv_tokens,
            page_size: self.block_tokens,
            shared: Some(self.engine.clone()),
        }
    }

    /// Limit of the index in bytes of prompt text, as the policy counts them.
    pub(super) fn index_text(&self) -> Option<u64> {
        let blocks = self.index_tokens.div_ceil(self.block_tokens.into());
        (self.index_tokens > 0).then_some(blocks.saturating_mul(BLOCK as u64))
    }

    /// Whether there are pairs.
    pub fn has_pairs(&self) -> bool {
        self.prefill > 0
    }

    fn check_pairs(&self) -> Result<(), SimError> {
        for (field, value) in [("prefill", self.prefill), ("decode", self.decode)] {
            if value > 65_535 || (value > 0) != self.has_pairs() {
                let why = "must be 0 for both roles, or for neither, and of sane size";
                return Err(SimError::option(field, value, why));
            }
        }
        if self.has_pairs() && !(self.changes.is_empty() && self.faults.is_empty()) {
            let why = "must be 0 where there are changes or faults: pairs have none";
            return Err(SimError::option("prefill", self.prefill, why));
        }
        Ok(())
    }

    fn check_gateways(&self) -> Result<(), SimError> {
        if self.gateways > 1 && (self.has_pairs() || !self.faults.is_empty()) {
            let why = "must be 1 where there are pairs or faults";
            return Err(SimError::option("gateways", self.gateways, why));
        }
        Ok(())
    }

    fn check_engine(&self) -> Result<(), SimError> {
        if self.engine_model == EngineModel::Shared {
            if self.has_pairs() {
                let why = "must be 0 with the shared model: each worker of a pair has one stage";
                return Err(SimError::option("prefill", self.prefill, why));
            }
            if self.cache_blocks() < FEWEST_BLOCKS {
                let why = "must be 8 blocks or more where running sequences share it";
                return Err(SimError::option("kv_tokens", self.kv_tokens, why));
            }
        }
        self.engine.check()
    }

    fn check_change(&self, change: &Change) -> Result<(), SimError> {
        if change.worker >= self.workers {
            return Err(SimError::option(
                "changes.worker",
                change.worker,
                WORKER_INDEX,
            ));
        }
        if !(0.0..=1e15).contains(&change.at_ms) {
            return Err(SimError::option("changes.at_ms", change.at_ms, AMOUNT));
        }
        Ok(())
    }
}
