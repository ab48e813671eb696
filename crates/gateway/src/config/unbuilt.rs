//! Options whose feature is not built yet: refused by name unless left at their default.

use serde_json::Value;

use super::{ConfigError, Options};

/// Option and the feature it waits for. A line leaves this list when its feature lands.
const UNBUILT: &[(&str, &str)] = &[
    (
        "cache_aware_prefill_backlog_rate",
        "a tunable prefill backlog (cache_aware weighs queues by itself)",
    ),
    (
        "cache_aware_prefill_backlog_hop_factor",
        "a tunable prefill backlog (cache_aware weighs queues by itself)",
    ),
    (
        "cache_aware_prefill_backlog_hop_scale",
        "a tunable prefill backlog (cache_aware weighs queues by itself)",
    ),
    ("dp_aware", "data-parallel routing"),
    ("enable_igw", "multi-model routing"),
    ("service_discovery", "service discovery"),
    ("selector", "service discovery"),
    ("service_discovery_port", "service discovery"),
    ("service_discovery_namespace", "service discovery"),
    ("prefill_selector", "service discovery"),
    ("decode_selector", "service discovery"),
    ("bootstrap_port_annotation", "service discovery"),
    ("pd_disaggregation", "prefill/decode routing"),
    ("prefill_urls", "prefill/decode routing"),
    ("decode_urls", "prefill/decode routing"),
    ("prefill_policy", "prefill/decode routing"),
    ("decode_policy", "prefill/decode routing"),
    ("model_path", "tokenizers"),
    ("tokenizer_path", "tokenizers"),
    ("chat_template", "tokenizers"),
    ("tokenizer_cache_enable_l0", "tokenizers"),
    ("tokenizer_cache_l0_max_entries", "tokenizers"),
    ("tokenizer_cache_enable_l1", "tokenizers"),
    ("tokenizer_cache_l1_max_memory", "tokenizers"),
    ("reasoning_parser", "output parsers"),
    ("tool_call_parser", "output parsers"),
    ("mcp_config_path", "MCP"),
    ("backend", "OpenAI-compatible backends"),
    ("history_backend", "history storage"),
    ("oracle_config", "history storage"),
    ("postgres_config", "history storage"),
    ("redis_config", "history storage"),
    ("client_cert_path", "TLS"),
    ("client_key_path", "TLS"),
    ("ca_cert_paths", "TLS"),
    ("server_cert_path", "TLS"),
    ("server_key_path", "TLS"),
    ("enable_trace", "tracing"),
    ("otlp_traces_endpoint", "tracing"),
    ("control_plane_auth", "control-plane authentication"),
    ("enable_wasm", "WASM middleware"),
];

/// Values that mean "off", so that refusing them would only get in the way.
fn harmless(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

/// Refuses the first option that asks for something that is not there.
pub(super) fn refuse(options: &Options) -> Result<(), ConfigError> {
    let as_json = |options: &Options| serde_json::to_value(options).unwrap_or_default();
    let (set, unset) = (as_json(options), as_json(&Options::default()));
    for (name, feature) in UNBUILT {
        if set[name] != unset[name] && !harmless(&set[name]) {
            return Err(ConfigError::unbuilt(name, feature));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refused_name_is_an_option() {
        for (name, _) in UNBUILT {
            assert!(Options::NAMES.contains(name), "{name}");
        }
    }

    #[test]
    fn defaults_are_never_refused() {
        refuse(&Options::default()).unwrap();
    }

    #[test]
    fn a_refusal_names_the_option_and_the_feature() {
        let options = Options {
            dp_aware: true,
            ..Options::default()
        };
        let error = refuse(&options).unwrap_err().to_string();
        assert!(
            error.contains("dp_aware") && error.contains("data-parallel"),
            "{error}"
        );
    }

    #[test]
    fn empty_lists_ask_for_nothing() {
        let options = Options {
            prefill_urls: Some(Vec::new()),
            ..Options::default()
        };
        refuse(&options).unwrap();
    }
}
