//! What this build does not have: the one list.

use std::fmt;

macro_rules! features {
    ($($feature:ident: $text:literal $(, instead: $instead:literal)?
        $(, options: [$($option:ident)+])? $(, fields: [$($field:ident)+])?;)+) => {
        /// A feature that is not built.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Feature {
            $(#[doc = $text] $feature,)+
        }

        impl Feature {
            pub(super) const ALL: &[Self] = &[$(Self::$feature),+];

            /// A noun: what is missing.
            fn text(self) -> &'static str {
                match self { $(Self::$feature => $text,)+ }
            }

            /// What there is instead, where there is something.
            fn instead(self) -> Option<&'static str> {
                match self { $($(Self::$feature => Some($instead),)?)+ _ => None }
            }

            /// The options that ask for it unless they are left at their default.
            pub(super) fn options(self) -> &'static [&'static str] {
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
// worker's fields; `api/workers/body.rs` names those.
features! {
    DataParallel: "a choice of ranks per worker",
        instead: "--dp-aware routes to the ranks of every worker that reports some",
        fields: [dp_aware dp_base_url dp_rank dp_size];
    Discovery: "service discovery",
        options: [
            service_discovery
            selector
            service_discovery_port
            service_discovery_namespace
            prefill_selector
            decode_selector
            bootstrap_port_annotation
            model_id_from
            service_discovery_groups
            service_discovery_by
            service_discovery_port_name
            service_discovery_zone_label
        ];
    Encode: "encode-only workers", instead: "SGLang's language servers find them by themselves";
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
    /// The features that this build lacks.
    pub(super) fn missing() -> impl Iterator<Item = Self> {
        let all = Self::ALL.iter().copied();
        all.filter(|feature| *feature != Self::Discovery || cfg!(not(feature = "kubernetes")))
    }

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
