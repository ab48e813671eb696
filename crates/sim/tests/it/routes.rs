//! The routes of SGLang 0.5.23 that the worker plays.

use sim::SimOptions;
use testkit::{raw, request};

use crate::support::start;

/// Paths and methods, read from SGLang's application object. Not played: documentation, corpora,
/// hierarchical caches, transfers between instances, `/v1/decisions`, `/v1/systemone` and
/// `/v1/realtime`.
#[rustfmt::skip]
const ROUTES: &[(&str, &str)] = &[
    ("/", "GET"),
    ("/abort_request", "POST"),
    ("/api/chat", "POST"),
    ("/api/generate", "POST"),
    ("/api/show", "POST"),
    ("/api/tags", "GET"),
    ("/begin_weight_update", "POST"),
    ("/classify", "POST PUT"),
    ("/close_session", "GET POST"),
    ("/configure_logging", "GET POST"),
    ("/continue_generation", "POST"),
    ("/destroy_weights_update_group", "POST"),
    ("/detokenize", "POST"),
    ("/dump_expert_distribution_record", "GET POST"),
    ("/encode", "POST PUT"),
    ("/end_weight_update", "POST"),
    ("/flush_cache", "GET POST"),
    ("/freeze_gc", "GET POST"),
    ("/generate", "POST PUT"),
    ("/get_model_info", "GET"),
    ("/get_server_info", "GET"),
    ("/get_weights_by_name", "GET POST"),
    ("/health", "GET"),
    ("/health_generate", "GET"),
    ("/init_weights_send_group_for_remote_instance", "POST"),
    ("/init_weights_update_group", "POST"),
    ("/invocations", "POST"),
    ("/load_lora_adapter", "POST"),
    ("/load_lora_adapter_from_tensors", "POST"),
    ("/model_info", "GET"),
    ("/open_session", "GET POST"),
    ("/parse_function_call", "POST"),
    ("/pause_generation", "POST"),
    ("/pd_role_switch", "POST"),
    ("/ping", "GET"),
    ("/ready", "GET"),
    ("/release_memory_occupation", "GET POST"),
    ("/resume_memory_occupation", "GET POST"),
    ("/send_weights_to_remote_instance", "POST"),
    ("/separate_reasoning", "POST"),
    ("/server_info", "GET"),
    ("/set_internal_state", "POST PUT"),
    ("/set_trace_level", "GET POST"),
    ("/slow_down", "GET POST"),
    ("/start_expert_distribution_record", "GET POST"),
    ("/start_profile", "GET POST"),
    ("/stop_expert_distribution_record", "GET POST"),
    ("/stop_profile", "GET POST"),
    ("/tokenize", "POST"),
    ("/unload_lora_adapter", "POST"),
    ("/update_weight_version", "POST"),
    ("/update_weights_from_disk", "POST"),
    ("/update_weights_from_distributed", "POST"),
    ("/update_weights_from_ipc", "POST"),
    ("/update_weights_from_tensor", "POST"),
    ("/v1/audio/transcriptions", "POST"),
    ("/v1/chat/completions", "POST"),
    ("/v1/classify", "POST"),
    ("/v1/completions", "POST"),
    ("/v1/detokenize", "POST"),
    ("/v1/embeddings", "POST"),
    ("/v1/messages", "POST"),
    ("/v1/messages/count_tokens", "POST"),
    ("/v1/models", "GET"),
    ("/v1/models/sim-model", "GET"),
    ("/v1/rerank", "POST PUT"),
    ("/v1/responses", "POST"),
    ("/v1/responses/resp_1", "GET"),
    ("/v1/responses/resp_1/cancel", "POST"),
    ("/v1/score", "POST"),
    ("/v1/tokenize", "POST"),
    ("/vertex_generate", "POST"),
    ("/weights_checker", "GET POST"),
];

#[tokio::test]
async fn every_route_that_is_played_knows_its_methods_and_no_other() {
    let worker = start(SimOptions::default());
    for (path, methods) in ROUTES {
        for method in ["GET", "POST", "PUT", "DELETE"] {
            let asked = request(&format!("{method} {path}"), "", "");
            let reply = raw(worker.addr(), &asked).await;
            let known = methods.split(' ').any(|known| known == method);
            // A handler may miss what a request is about, and says that in another form.
            let unrouted = reply.text().contains("\"detail\"");
            assert_eq!(
                unrouted,
                !known,
                "{method} {path}: {} {}",
                reply.status,
                reply.text()
            );
            assert_eq!(reply.status == 405, !known, "{method} {path}");
        }
    }
}
