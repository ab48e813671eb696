//! Which models and adapters a worker lists: adapters come and go while it runs.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde_json::{Map, Value};
use tokio::time::timeout;

use super::endpoint::Endpoint;
use super::fleet::Fleet;
use super::model_info::Report;
use super::transitions;
use crate::telemetry::Metrics;
use crate::upstream::ControlClient;

/// Longest wait for the list.
const LIMIT: Duration = Duration::from_secs(5);

/// Reads a worker's `GET /v1/models` again; a worker that gives none keeps what it had.
pub(crate) async fn read_adapters(
    fleet: &Fleet,
    endpoint: &Arc<Endpoint>,
    client: &ControlClient,
    metrics: &Metrics,
) {
    let asked = client.send(endpoint.question(&Method::GET, "/v1/models"));
    let Ok(Ok(answer)) = timeout(LIMIT, asked).await else {
        return;
    };
    let list = serde_json::from_slice::<Map<String, Value>>(&answer.body);
    let Some(list) = list.ok().filter(|_| answer.status.is_success()) else {
        return;
    };
    let before = endpoint.model_info.load_full();
    let report = Report::new(before.report.labels.clone(), Some(&list));
    if !report.lists_as(&before.report) {
        transitions::set_model(fleet, endpoint, Some(report), metrics);
    }
}
