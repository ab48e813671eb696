//! What the gateway answers by itself about itself and its fleet.

use std::collections::BTreeSet;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode, Uri};
use http_body_util::Full;
use serde_json::{Value, json};

use crate::admission::Admission;
use crate::balancer::Balancer;
use crate::error::Error;
use crate::fleet::Fleet;
use crate::proxy::ReplyBody;

/// A JSON reply.
pub(super) fn json(status: StatusCode, value: &Value) -> Response<ReplyBody> {
    fixed(status, "application/json", value.to_string())
}

/// A plain-text reply.
pub(super) fn text(text: impl Into<Bytes>) -> Response<ReplyBody> {
    fixed(StatusCode::OK, "text/plain; charset=utf-8", text)
}

/// A reply of the gateway's own.
pub(super) fn fixed(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<ReplyBody> {
    let mut response = Response::new(Full::new(body.into()).into());
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static(content_type);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    response
}

/// The `limit` of a query; 100 when there is none that is a number.
pub(super) fn limit(uri: &Uri) -> usize {
    let mut pairs = uri.query().unwrap_or_default().split('&');
    let limit = pairs.find_map(|pair| pair.strip_prefix("limit="));
    limit.and_then(|limit| limit.parse().ok()).unwrap_or(100)
}

/// Whether requests can be served: probe this one before sending traffic.
pub(super) fn readiness(fleet: &Fleet, draining: bool) -> Response<ReplyBody> {
    let healthy = fleet.ready_count();
    let reason = match (draining, healthy) {
        (true, _) => "draining",
        (false, 0) => "insufficient healthy workers",
        _ => {
            let total = fleet.workers().len();
            let ready =
                json!({"status": "ready", "healthy_workers": healthy, "total_workers": total});
            return json(StatusCode::OK, &ready);
        }
    };
    json(
        StatusCode::SERVICE_UNAVAILABLE,
        &json!({"status": "not ready", "reason": reason}),
    )
}

/// The models of the ready workers, in the shape of `OpenAI`'s list.
pub(super) fn models(fleet: &Fleet) -> Result<Response<ReplyBody>, Error> {
    let workers = fleet.workers();
    let ready = workers.iter().filter(|worker| worker.is_ready());
    let ids: BTreeSet<_> = ready
        .map(|worker| worker.endpoint.model_info.load().model.clone())
        .collect();
    if ids.is_empty() {
        return Err(Error::NoWorkers);
    }
    let card = |id| json!({"id": id, "object": "model", "created": 0, "owned_by": "local"});
    let data: Vec<_> = ids.into_iter().map(card).collect();
    Ok(json(
        StatusCode::OK,
        &json!({"object": "list", "data": data}),
    ))
}

/// What limits are in force, and how far they are used up.
pub(super) fn limits(balancer: &Balancer, admission: &Admission) -> Response<ReplyBody> {
    let mut limits = admission.to_json();
    limits["max_requests_per_worker"] = json!(balancer.limits().map(|limits| limits.per_worker));
    limits["queued_for_a_worker"] = json!(balancer.waiting());
    json(StatusCode::OK, &limits)
}
