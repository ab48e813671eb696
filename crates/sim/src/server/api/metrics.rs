//! `/metrics`.

use std::fmt::Write;

use super::ratio::share;
use crate::engine::EngineLoad;
use crate::options::SimOptions;
use crate::server::runtime::worker::Worker;

/// One metric: name, kind, meaning, value of a rank.
type Metric = (
    &'static str,
    &'static str,
    &'static str,
    fn(&EngineLoad, &SimOptions) -> f64,
);

const METRICS: [Metric; 10] = [
    (
        "num_running_reqs",
        "gauge",
        "Running requests.",
        |load, _| load.running as f64,
    ),
    ("num_queue_reqs", "gauge", "Waiting requests.", |load, _| {
        load.waiting as f64
    }),
    (
        "num_used_tokens",
        "gauge",
        "Tokens of running requests.",
        |load, _| load.used_tokens as f64,
    ),
    (
        "token_usage",
        "gauge",
        "Share of the token capacity in use.",
        |load, options| share(load.used_tokens as f64, options.kv_cache_tokens),
    ),
    (
        "gen_throughput",
        "gauge",
        "Tokens per second.",
        |load, _| load.tokens_per_sec,
    ),
    (
        "cache_hit_rate",
        "gauge",
        "Prompt tokens found cached.",
        |load, _| load.cache_hit_rate(),
    ),
    (
        "max_total_num_tokens",
        "gauge",
        "Token capacity.",
        |_, options| options.kv_cache_tokens as f64,
    ),
    (
        "prompt_tokens_total",
        "counter",
        "Prompt tokens.",
        |load, _| load.prompt_tokens_total as f64,
    ),
    (
        "generation_tokens_total",
        "counter",
        "Tokens made.",
        |load, _| load.output_tokens_total as f64,
    ),
    (
        "num_requests_total",
        "counter",
        "Requests finished.",
        |load, _| load.finished_total as f64,
    ),
];

/// `/metrics` in Prometheus text.
pub(crate) fn page(worker: &Worker) -> String {
    let loads = worker.scheduler.loads();
    let model = worker
        .options
        .model
        .replace('\\', "\\\\")
        .replace('"', "\\\"");
    let mut page = String::new();
    for (name, kind, help, value) in METRICS {
        let _ = write!(
            page,
            "# HELP sglang:{name} {help}\n# TYPE sglang:{name} {kind}\n"
        );
        for (rank, load) in loads.iter().enumerate() {
            let value = value(load, &worker.options);
            let _ = writeln!(
                page,
                "sglang:{name}{{model_name=\"{model}\",dp_rank=\"{rank}\"}} {value}"
            );
        }
    }
    page
}
