//! The Prometheus pages of all workers, merged into one.

use std::sync::Arc;

use axum::extract::State;
use bytes::Bytes;
use http::StatusCode;
use http::header::{self, HeaderName};

use super::exposition::merge;
use super::routes::Routes;
use super::state::{Page, SharedAnswers};
use crate::auth::Access;
use crate::cpu_pool::CpuPool;
use crate::proxy::{FanOut, WorkerAnswer, WorkerQuery};

const PLAIN_TEXT: [(HeaderName, &str); 1] = [(header::CONTENT_TYPE, "text/plain")];

pub(super) fn routes() -> Routes {
    Routes::default().get("/engine_metrics", Access::Info, engine_metrics)
}

/// Every worker's metrics, distinguished by a `worker_addr` label, for all clients that ask within
/// a second.
async fn engine_metrics(
    State(fan_out): State<FanOut>,
    State(pool): State<CpuPool>,
    State(shared): State<Arc<SharedAnswers>>,
) -> Page {
    let page = shared.engine_metrics.get(merged_page(fan_out, pool)).await;
    page.unwrap_or_else(|| failure("Asking the workers failed"))
}

async fn merged_page(fan_out: FanOut, pool: CpuPool) -> Page {
    let asked = fan_out.ask_all(&WorkerQuery::get(&["/metrics"])).await;
    if asked.is_empty() {
        return failure("No available workers");
    }
    let pages: Vec<_> = asked.into_iter().filter_map(page).collect();
    if pages.is_empty() {
        return failure("All backend requests failed");
    }
    // Pages of many engines take long to merge: not on a lane.
    match pool.run(move || merge(&pages)).await {
        Some(merged) => (StatusCode::OK, PLAIN_TEXT, merged.into()),
        None => failure("Merging the metrics failed"),
    }
}

fn failure(why: &'static str) -> Page {
    let page = Bytes::from_static(why.as_bytes());
    (StatusCode::INTERNAL_SERVER_ERROR, PLAIN_TEXT, page)
}

/// A worker's page with the worker's URL, if it gave one.
fn page(asked: WorkerAnswer) -> Option<(String, Bytes)> {
    let answer = asked.answer.ok()?;
    let url = asked.worker.url().to_string();
    answer.status.is_success().then_some((url, answer.body))
}
