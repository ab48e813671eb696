//! Options of a simulated worker: names, types and defaults.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::engine::{EngineModel, EngineOptions, PromptSource, SharedOptions};
use crate::error::SimError;
use crate::faults::Faults;

/// Queue limit when `max_queued_requests` is 0: a bound above any real load.
const UNBOUNDED_QUEUE: usize = 1 << 16;
const LONGEST_STEP_MS: f64 = 3_600_000.0;
/// Context length that is reported if none is set.
const CONTEXT_LENGTH: u32 = 131_072;
const LONGEST_WAIT_S: f64 = 3_600.0;
/// The least memory of the shared model.
const FEWEST_PAGES: usize = 8;

/// The worker's role in prefill/decode disaggregation (`disaggregation_mode`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Runs prefill and decode.
    #[default]
    Null,
    /// Runs prefill only: every response is one token, sent once the decode worker has the KV cache.
    Prefill,
    /// Runs decode only: it waits for the KV cache of the prefill worker that a request names.
    Decode,
}

impl Role {
    /// The value of `disaggregation_mode`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

/// Options of one simulated worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SimOptions {
    /// Address to listen on, a name or an IP.
    pub host: String,
    /// Port to listen on; 0 = any free port.
    pub port: u16,
    /// Name of the served model.
    pub model: String,
    /// Bearer key that every request except health and metrics must carry.
    pub api_key: Option<String>,
    /// Number of data-parallel ranks: independent engines behind one port.
    pub dp_size: u32,
    /// First of the ports on which ranks publish their loads over `ZeroMQ`; 0 = any free ones,
    /// unset = none.
    pub load_publish_port: Option<u16>,
    /// Role in prefill/decode disaggregation at start.
    pub disaggregation_mode: Role,
    /// Port of a prefill worker's bootstrap server; 0 = any free port. A decode worker asks there
    /// if a request names no port.
    pub disaggregation_bootstrap_port: u16,
    /// Seconds that a prefill worker waits for a request's decode worker.
    pub bootstrap_timeout_s: f64,
    /// Seconds that a decode worker waits for a request's KV cache.
    pub waiting_timeout_s: f64,
    /// Seconds after which a decode worker gives up a bootstrap server that does not respond.
    pub handshake_timeout_s: f64,
    /// Seconds after which a decode worker notices that its prefill worker is gone.
    pub lost_connection_s: f64,
    /// Seconds between two looks for clients that left, in either role.
    pub disconnect_check_s: f64,
    /// Milliseconds that the KV cache of 1000 prompt tokens takes to the decode worker.
    pub kv_transfer_ms_per_1k_tokens: f64,
    /// Accept `POST /pd_role_switch`.
    pub enable_pd_role_switch: bool,
    /// Obey the request headers `x-override-rid`, `x-override-bootstrap-host`, `-port`, `-room`,
    /// `x-override-routed-dp-rank` and `x-override-disagg-prefill-dp-rank`.
    pub enable_request_header_overrides: bool,
    /// Stop, as SGLang does, at bootstrap fields that kill its scheduler; otherwise they are 400.
    pub crash_on_bad_bootstrap: bool,
    /// Longest prompt in tokens, and the length reported; unset = any prompt is accepted.
    pub context_length: Option<u32>,
    /// Model of the engine.
    pub engine_model: EngineModel,
    /// What passes cost in the shared model; the speeds below are those of the other.
    pub engine: SharedOptions,
    /// Prompt tokens computed per second and rank; 0 = instant.
    pub prefill_tokens_per_sec: f64,
    /// Milliseconds of a decode step, independent of the batch; 0 here and below = instant.
    pub decode_step_base_ms: f64,
    /// Milliseconds that each sequence of the batch adds to a decode step.
    pub decode_step_per_seq_ms: f64,
    /// Sequences in prefill and decode per rank.
    pub max_running_requests: usize,
    /// Sequences that may wait per rank; further ones get 503; 0 = 65,536.
    pub max_queued_requests: usize,
    /// Capacity of a rank's prefix cache in prompt tokens; 0 = no cache.
    pub kv_cache_tokens: usize,
    /// Tokens per cache page.
    pub page_size: u32,
    /// Tokens generated if a request sets no maximum; the finish reason is then "stop".
    pub default_output_tokens: u32,
    /// Milliseconds that a weight update takes; nothing is generated meanwhile.
    pub weight_update_ms: u64,
    /// Milliseconds after start during which health and inference return 503.
    pub startup_delay_ms: u64,
    /// Size of the request log of `recorded()` and `GET /sim/requests`; the oldest is dropped first.
    pub record_requests: usize,
    /// Seed of request ids and of `fault_rate`.
    pub seed: u64,
    /// Faults at start.
    pub faults: Faults,
}

impl Default for SimOptions {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            port: 0,
            model: "sim-model".to_owned(),
            api_key: None,
            dp_size: 1,
            load_publish_port: None,
            disaggregation_mode: Role::Null,
            disaggregation_bootstrap_port: 8998,
            bootstrap_timeout_s: 300.0,
            waiting_timeout_s: 300.0,
            handshake_timeout_s: 14.0,
            lost_connection_s: 6.4,
            disconnect_check_s: 4.0,
            kv_transfer_ms_per_1k_tokens: 0.0,
            enable_pd_role_switch: false,
            enable_request_header_overrides: false,
            crash_on_bad_bootstrap: true,
            context_length: None,
            engine_model: EngineModel::Split,
            engine: SharedOptions::default(),
            prefill_tokens_per_sec: 0.0,
            decode_step_base_ms: 0.0,
            decode_step_per_seq_ms: 0.0,
            max_running_requests: 256,
            max_queued_requests: 0,
            kv_cache_tokens: 262_144,
            page_size: 16,
            default_output_tokens: 32,
            weight_update_ms: 0,
            startup_delay_ms: 0,
            record_requests: 0,
            seed: 0,
            faults: Faults::default(),
        }
    }
}

impl SimOptions {
    /// Checks every rule; the first broken one is the error.
    pub fn check(&self) -> Result<(), SimError> {
        for (field, value, most) in self.durations() {
            if !(0.0..=most).contains(&value) {
                let why = "must be 0 or more (steps and waits: at most an hour)";
                return Err(SimError::option(field, value, why));
            }
        }
        if self.prefill_tokens_per_sec > 0.0 && self.prefill_tokens_per_sec < 1e-3 {
            let (field, why) = ("prefill_tokens_per_sec", "must be 0 or at least 0.001");
            return Err(SimError::option(field, self.prefill_tokens_per_sec, why));
        }
        let sizes = [
            ("dp_size", self.dp_size as usize, 1024),
            ("max_running_requests", self.max_running_requests, 1_000_000),
            ("page_size", self.page_size as usize, 65_536),
        ];
        for (field, value, most) in sizes {
            if value == 0 || value > most {
                return Err(SimError::option(
                    field,
                    value,
                    "must be at least 1 and of sane size",
                ));
            }
        }
        let pages = self.kv_cache_tokens / self.page_size.max(1) as usize;
        if self.engine_model == EngineModel::Shared && pages < FEWEST_PAGES {
            let why = "must be 8 pages or more where running sequences share it";
            return Err(SimError::option(
                "kv_cache_tokens",
                self.kv_cache_tokens,
                why,
            ));
        }
        self.engine.check()?;
        self.faults.check()
    }

    /// The context length that the worker reports.
    pub(crate) fn reported_context_length(&self) -> u32 {
        self.context_length.unwrap_or(CONTEXT_LENGTH)
    }

    /// Speeds and times with their maximum.
    fn durations(&self) -> [(&'static str, f64, f64); 9] {
        let (steps, waits) = (LONGEST_STEP_MS, LONGEST_WAIT_S);
        [
            ("prefill_tokens_per_sec", self.prefill_tokens_per_sec, 1e12),
            ("decode_step_base_ms", self.decode_step_base_ms, steps),
            ("decode_step_per_seq_ms", self.decode_step_per_seq_ms, steps),
            ("bootstrap_timeout_s", self.bootstrap_timeout_s, waits),
            ("waiting_timeout_s", self.waiting_timeout_s, waits),
            ("handshake_timeout_s", self.handshake_timeout_s, waits),
            ("lost_connection_s", self.lost_connection_s, waits),
            ("disconnect_check_s", self.disconnect_check_s, waits),
            (
                "kv_transfer_ms_per_1k_tokens",
                self.kv_transfer_ms_per_1k_tokens,
                steps,
            ),
        ]
    }

    /// Where prompts are computed in this role: a decode worker gets its prompts computed.
    pub(crate) fn prompt_source(&self, role: Role) -> PromptSource {
        match role {
            Role::Decode => PromptSource::Received,
            Role::Null | Role::Prefill => PromptSource::Computed(self.prefill_tokens_per_sec),
        }
    }

    /// Options of the engine of one rank.
    pub(crate) fn engine(&self) -> EngineOptions {
        EngineOptions {
            prefill_tokens_per_sec: self.prefill_tokens_per_sec,
            decode_step_base: millis(self.decode_step_base_ms),
            decode_step_per_seq: millis(self.decode_step_per_seq_ms),
            max_running_requests: self.max_running_requests,
            max_queued_requests: match self.max_queued_requests {
                0 => UNBOUNDED_QUEUE,
                limit => limit,
            },
            kv_cache_tokens: self.kv_cache_tokens,
            page_size: self.page_size,
            shared: match self.engine_model {
                EngineModel::Split => None,
                EngineModel::Shared => Some(self.engine.clone()),
            },
        }
    }
}

fn millis(value: f64) -> Duration {
    Duration::from_secs_f64(value / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_survive_json() {
        let options = SimOptions::default();
        options.check().unwrap();
        let json = serde_json::to_string(&options).unwrap();
        assert_eq!(serde_json::from_str::<SimOptions>(&json).unwrap(), options);
        assert_eq!(serde_json::from_str::<SimOptions>("{}").unwrap(), options);
    }

    #[test]
    fn an_unknown_option_is_an_error() {
        assert!(serde_json::from_str::<SimOptions>(r#"{"speed": 1}"#).is_err());
    }

    #[test]
    fn a_broken_rule_names_its_option() {
        let why = |options: SimOptions| options.check().unwrap_err().to_string();
        let size = SimOptions {
            page_size: 0,
            ..SimOptions::default()
        };
        assert!(why(size).contains("page_size"));
        let step = SimOptions {
            decode_step_base_ms: f64::NAN,
            ..SimOptions::default()
        };
        assert!(why(step).contains("decode_step_base_ms"));
        let wait = SimOptions {
            waiting_timeout_s: -1.0,
            ..SimOptions::default()
        };
        assert!(why(wait).contains("waiting_timeout_s"));
    }

    #[test]
    fn a_role_serializes_as_sglang_spells_it() {
        for role in [Role::Null, Role::Prefill, Role::Decode] {
            assert_eq!(serde_json::to_value(role).unwrap(), role.as_str());
        }
    }
}
