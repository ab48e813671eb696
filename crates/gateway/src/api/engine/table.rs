//! `SGLang`'s routes that change or show something of an engine, one row each.

use http::Method;

/// What follows at the gateway when a worker has carried out a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    Nothing,
    /// Its prefix cache is empty.
    Flushes,
    /// Its prefix cache is empty, unless the call says `"flush_cache": false`.
    FlushesUnlessKept,
    /// It has other adapters.
    ChangesAdapters,
    /// It takes requests, and answers them once it continues.
    Pauses,
    /// It generates again.
    Continues,
}

/// A path, and what it does.
#[derive(Debug)]
pub(super) struct EngineRoute {
    pub(super) path: &'static str,
    pub(super) methods: &'static [Method],
    pub(super) effect: Effect,
}

use Effect::{ChangesAdapters, Continues, Flushes, FlushesUnlessKept, Nothing, Pauses};

const POST: &[Method] = &[Method::POST];
const GET: &[Method] = &[Method::GET];
const GET_AND_POST: &[Method] = &[Method::GET, Method::POST];
const POST_AND_PUT: &[Method] = &[Method::POST, Method::PUT];
const STORAGE: &[Method] = &[Method::GET, Method::PUT, Method::DELETE];

/// The routes of `SGLang` 0.5.23 (`entrypoints/http_server.py`).
#[rustfmt::skip]
pub(super) const ENGINE: &[EngineRoute] = &[
    route("/pause_generation", POST, Pauses),
    route("/continue_generation", POST, Continues),
    route("/update_weights_from_disk", POST, FlushesUnlessKept),
    route("/update_weights_from_tensor", POST, FlushesUnlessKept),
    route("/update_weights_from_distributed", POST, FlushesUnlessKept),
    route("/update_weights_from_ipc", POST, FlushesUnlessKept),
    route("/begin_weight_update", POST, Nothing),
    route("/end_weight_update", POST, FlushesUnlessKept),
    route("/update_weight_version", POST, Nothing),
    route("/init_weights_update_group", POST, Nothing),
    route("/destroy_weights_update_group", POST, Nothing),
    route("/init_weights_send_group_for_remote_instance", POST, Nothing),
    route("/send_weights_to_remote_instance", POST, Nothing),
    route("/get_remote_instance_transfer_engine_info", GET, Nothing),
    route("/remote_instance_transfer_engine_info", GET, Nothing),
    route("/get_weights_by_name", GET_AND_POST, Nothing),
    route("/weights_checker", GET_AND_POST, Nothing),
    route("/release_memory_occupation", GET_AND_POST, Flushes),
    route("/resume_memory_occupation", GET_AND_POST, Flushes),
    route("/load_lora_adapter", POST, ChangesAdapters),
    route("/load_lora_adapter_from_tensors", POST, ChangesAdapters),
    route("/unload_lora_adapter", POST, ChangesAdapters),
    route("/hicache/storage-backend", STORAGE, Nothing),
    route("/hicache/storage-backend/clear", POST, Nothing),
    route("/get_hicache_l3_cache_layout", GET, Nothing),
    route("/add_external_corpus", POST, Nothing),
    route("/remove_external_corpus", POST, Nothing),
    route("/list_external_corpora", GET, Nothing),
    route("/scale_elastic_ep", POST, Nothing),
    route("/is_scaling_elastic_ep", GET, Nothing),
    route("/set_internal_state", POST_AND_PUT, Nothing),
    route("/configure_logging", GET_AND_POST, Nothing),
    route("/set_trace_level", GET_AND_POST, Nothing),
    route("/freeze_gc", GET_AND_POST, Nothing),
    route("/slow_down", GET_AND_POST, Nothing),
    route("/start_profile", GET_AND_POST, Nothing),
    route("/stop_profile", GET_AND_POST, Nothing),
    route("/start_expert_distribution_record", GET_AND_POST, Nothing),
    route("/stop_expert_distribution_record", GET_AND_POST, Nothing),
    route("/dump_expert_distribution_record", GET_AND_POST, Nothing),
];

const fn route(path: &'static str, methods: &'static [Method], effect: Effect) -> EngineRoute {
    EngineRoute {
        path,
        methods,
        effect,
    }
}
