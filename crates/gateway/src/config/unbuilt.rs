//! What is not built yet: options and fields of a worker that ask for it are refused by name.

use std::fmt;

use serde_json::Value;

use super::{ConfigError, ControlPlaneAuth, Options};

macro_rules! features {
    ($($feature:ident: $text:literal $(, instead: $instead:literal)?
        $(, options: [$($option:ident)+])? $(, fields: [$($field:ident)+])?;)+) => {
        /// A feature that is not built.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Feature {
            $(#[doc = $text] $feature,)+
        }

        impl Feature {
            const ALL: &[Self] = &[$(Self::$feature),+];

            /// A noun: what is missing.
            fn text(self) -> &'static str {
                match self { $(Self::$feature => $text,)+ }
            }

            /// What there is instead, where there is something.
            fn instead(self) -> Option<&'static str> {
                match self { $($(Self::$feature => Some($instead),)?)+ _ => None }
            }

            /// The options that ask for it unless they are left at their default.
            fn options(self) -> &'static [&'static str] {
                match self { $($(Self::$feature => &[$(stringify!($option)),+],)?)+ _ => &[] }
            }

            /// The fields of a worker that ask for it.
            fn fields(self) -> &'static [&'static str] {
                match self { $($(Self::$feature => &[$(stringify!($field)),+],)?)+ _ => &[] }
            }
        }
    };
}

// The one list. A feature that lands deletes its entry. Options are refused in this order, so the
// switch of a feature comes before its details. Some features are asked for by certain values of a
// worker's fields; `worker_body.rs` names those.
features! {
    PrefillBacklog: "a tunable prefill backlog",
        instead: "cache_aware weighs queues by itself",
        options: [
            cache_aware_prefill_backlog_rate
            cache_aware_prefill_backlog_hop_factor
            cache_aware_prefill_backlog_hop_scale
        ];
    DataParallel: "data-parallel routing",
        options: [dp_aware],
        fields: [dp_aware dp_base_url dp_rank dp_size];
    MultiModel: "the multi-model mode",
        instead: "workers are chosen by model without it",
        options: [enable_igw];
    Discovery: "service discovery",
        options: [
            service_discovery
            selector
            service_discovery_port
            service_discovery_namespace
            prefill_selector
            decode_selector
            bootstrap_port_annotation
        ];
    PrefillDecode: "prefill/decode routing",
        options: [pd_disaggregation prefill_urls decode_urls prefill_policy decode_policy];
    Tokenizers: "tokenizers",
        options: [
            model_path
            tokenizer_path
            chat_template
            tokenizer_cache_enable_l0
            tokenizer_cache_l0_max_entries
            tokenizer_cache_enable_l1
            tokenizer_cache_l1_max_memory
        ];
    OutputParsers: "output parsers", options: [reasoning_parser tool_call_parser];
    Mcp: "MCP", options: [mcp_config_path];
    OpenAi: "OpenAI-compatible backends", options: [backend], fields: [provider];
    History: "history storage",
        options: [history_backend oracle_config postgres_config redis_config];
    Tls: "TLS",
        options: [client_cert_path client_key_path ca_cert_paths server_cert_path server_key_path];
    Tracing: "tracing", options: [enable_trace otlp_traces_endpoint];
    ControlPlaneAuth: "control-plane authentication", options: [control_plane_auth];
    Wasm: "WASM middleware", options: [enable_wasm];
    Grpc: "gRPC to workers", instead: "use http";
    Zmq: "ZMQ to workers", fields: [zmq_handshake_address];
    WorkerResilience: "resilience rules per worker",
        instead: "the gateway's own are for all workers",
        fields: [resilience];
    WorkerPools: "connection pools per worker",
        instead: "the gateway's own options are for all workers",
        fields: [http_pool];
    WorkerModels: "several models per worker";
    ModelAliases: "model aliases";
}

impl fmt::Display for Feature {
    /// The end of a refusal: `needs TLS, which this build does not have`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "needs {}, which this build does not have", self.text())?;
        match self.instead() {
            Some(instead) => write!(f, ": {instead}"),
            None => Ok(()),
        }
    }
}

impl Feature {
    /// The feature that a field of a worker asks for.
    pub(crate) fn of_field(name: &str) -> Option<Self> {
        let mut all = Self::ALL.iter().copied();
        all.find(|feature| feature.fields().contains(&name))
    }

    /// Why a field of a worker is refused.
    pub(crate) fn refuses_field(self, name: &str) -> String {
        format!("field '{name}' {self}")
    }
}

/// Refuses the first option that asks for something that is not there.
pub(super) fn refuse(options: &Options) -> Result<(), ConfigError> {
    let as_json = |options: &Options| serde_json::to_value(options).unwrap_or_default();
    let (set, unset) = (as_json(options), as_json(&Options::default()));
    for feature in Feature::ALL {
        for name in feature.options() {
            if set[name] != unset[name] && !harmless(name, &set[name]) {
                let field = typed(name, options);
                return Err(ConfigError::unbuilt(field, flag(name), *feature));
            }
        }
    }
    Ok(())
}

/// Values that ask for nothing, so that refusing them would only get in the way.
fn harmless(option: &str, value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        // No history is kept in any case.
        Value::String(word) => option == "history_backend" && word == "none",
        _ => false,
    }
}

/// The name that the user wrote: whoever gives keys or an issuer knows nothing of the object that
/// is made of them.
fn typed(option: &'static str, options: &Options) -> &'static str {
    match &options.control_plane_auth {
        _ if option != "control_plane_auth" => option,
        Some(ControlPlaneAuth { api_keys, .. }) if !api_keys.is_empty() => "control_plane_api_keys",
        Some(ControlPlaneAuth { jwt: Some(_), .. }) => "jwt_issuer",
        _ => option,
    }
}

/// The flag of an option, where it is called differently.
fn flag(option: &str) -> &'static str {
    match option {
        "prefill_urls" => " (--prefill)",
        "decode_urls" => " (--decode)",
        "server_cert_path" => " (--tls-cert-path)",
        "server_key_path" => " (--tls-key-path)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn error(options: Value) -> String {
        let options: Options = serde_json::from_value(options).unwrap();
        refuse(&options).unwrap_err().to_string()
    }

    #[test]
    fn every_refused_name_is_an_option_and_has_one_feature() {
        let mut seen = Vec::new();
        for name in Feature::ALL.iter().flat_map(|feature| feature.options()) {
            assert!(Options::NAMES.contains(name), "{name}");
            assert!(!seen.contains(&name), "{name}");
            seen.push(name);
        }
    }

    #[test]
    fn defaults_are_never_refused() {
        refuse(&Options::default()).unwrap();
    }

    #[test]
    fn a_refusal_names_the_option_and_the_feature() {
        assert_eq!(
            error(json!({"model_path": "m"})),
            "Configuration error: option 'model_path' needs tokenizers, which this build does not have"
        );
        assert_eq!(
            Feature::WorkerPools.refuses_field("http_pool"),
            "field 'http_pool' needs connection pools per worker, which this build does not have: \
             the gateway's own options are for all workers"
        );
    }

    #[test]
    fn a_refusal_names_what_the_user_wrote() {
        let auth = |jwt: Value, keys: Value| json!({"control_plane_auth": {"jwt": jwt, "api_keys": keys, "audit_enabled": true}});
        let jwt = json!({"issuer": "i", "audience": "a", "role_mapping": {}, "role_claim": "r"});
        let key = json!({"id": "i", "name": "n", "key": "s3cret"});
        for (options, name) in [
            (auth(jwt.clone(), json!([key])), "'control_plane_api_keys' "),
            (auth(jwt, json!([])), "'jwt_issuer' "),
            (auth(Value::Null, json!([])), "'control_plane_auth' "),
            (
                json!({"server_cert_path": "c"}),
                "'server_cert_path' (--tls-cert-path) needs TLS,",
            ),
        ] {
            let error = error(options);
            assert!(
                error.contains(name) && !error.contains("s3cret"),
                "{name}: {error}"
            );
        }
    }

    #[test]
    fn what_asks_for_nothing_is_accepted() {
        for options in [
            json!({"prefill_urls": []}),
            json!({"history_backend": "none"}),
        ] {
            refuse(&serde_json::from_value(options).unwrap()).unwrap();
        }
        assert!(error(json!({"history_backend": "redis"})).contains("'history_backend'"));
    }
}
