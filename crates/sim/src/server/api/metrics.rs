//! `/metrics`.

use std::fmt::Write;

use axum::extract::State;

use super::ratio::share;
use crate::engine::EngineLoad;
use crate::options::SimOptions;
use crate::server::runtime::worker::{AppState, Worker};

/// A metric of one rank.
struct Metric {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    value: f64,
}

fn gauge(name: &'static str, help: &'static str, value: f64) -> Metric {
    Metric {
        name,
        kind: "gauge",
        help,
        value,
    }
}

fn counter(name: &'static str, help: &'static str, value: f64) -> Metric {
    let kind = "counter";
    Metric {
        kind,
        ..gauge(name, help, value)
    }
}

fn metrics_of(load: &EngineLoad, options: &SimOptions) -> [Metric; 10] {
    let capacity = options.kv_cache_tokens;
    [
        gauge("num_running_reqs", "Running requests.", load.running as f64),
        gauge("num_queue_reqs", "Waiting requests.", load.waiting as f64),
        gauge(
            "num_used_tokens",
            "Tokens of running requests.",
            load.used_tokens as f64,
        ),
        gauge(
            "token_usage",
            "Share of the token capacity in use.",
            share(load.used_tokens as f64, capacity),
        ),
        gauge("gen_throughput", "Tokens per second.", load.tokens_per_sec),
        gauge(
            "cache_hit_rate",
            "Prompt tokens found cached.",
            load.cache_hit_rate(),
        ),
        gauge("max_total_num_tokens", "Token capacity.", capacity as f64),
        counter(
            "prompt_tokens_total",
            "Prompt tokens.",
            load.prompt_tokens_total as f64,
        ),
        counter(
            "generation_tokens_total",
            "Tokens made.",
            load.output_tokens_total as f64,
        ),
        counter(
            "num_requests_total",
            "Requests finished.",
            load.finished_total as f64,
        ),
    ]
}

pub(crate) async fn metrics(State(worker): AppState) -> String {
    page(&worker)
}

/// All metrics in Prometheus text format.
pub(crate) fn page(worker: &Worker) -> String {
    let escaped = worker.options.model.replace('\\', "\\\\");
    let model = escaped.replace('"', "\\\"");
    let loads = worker.loads();
    let ranks = loads.iter().map(|load| metrics_of(load, &worker.options));
    let ranks: Vec<[Metric; 10]> = ranks.collect();
    let mut page = String::new();
    for (index, metric) in ranks.first().into_iter().flatten().enumerate() {
        let Metric {
            name, kind, help, ..
        } = metric;
        let _ = write!(
            page,
            "# HELP sglang:{name} {help}\n# TYPE sglang:{name} {kind}\n"
        );
        for (rank, metrics) in ranks.iter().enumerate() {
            let value = metrics[index].value;
            let _ = writeln!(
                page,
                "sglang:{name}{{model_name=\"{model}\",dp_rank=\"{rank}\"}} {value}"
            );
        }
    }
    page
}
