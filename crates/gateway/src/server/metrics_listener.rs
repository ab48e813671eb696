//! The metrics listener: `GET /metrics` for Prometheus.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::time::{Duration, sleep};
use tracing::{debug, warn};

use super::Admission;
use crate::fleet::Fleet;
use crate::telemetry::Metrics;

const TEXT_FORMAT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4");

/// Serves metrics until dropped.
pub(crate) async fn serve_metrics(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    (fleet, admission): (Arc<Fleet>, Arc<Admission>),
) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "cannot accept a connection for metrics");
                sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (metrics, fleet) = (Arc::clone(&metrics), Arc::clone(&fleet));
        let admission = Arc::clone(&admission);
        let page = service_fn(move |request: Request<Incoming>| {
            admission.observe(&metrics, &fleet);
            let response = page(&request, &metrics, &fleet);
            async move { Ok::<_, Infallible>(response) }
        });
        tokio::spawn(async move {
            let served = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), page)
                .await;
            if let Err(error) = served {
                debug!(%error, "metrics connection ended abnormally");
            }
        });
    }
}

fn page(request: &Request<Incoming>, metrics: &Metrics, fleet: &Fleet) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    if request.uri().path() != "/metrics" {
        *response.status_mut() = StatusCode::NOT_FOUND;
        return response;
    }
    fleet.observe(metrics);
    match metrics.render() {
        Ok(page) => {
            *response.body_mut() = Full::new(page.into());
            response
                .headers_mut()
                .insert(header::CONTENT_TYPE, TEXT_FORMAT);
        }
        Err(error) => {
            warn!(%error, "cannot render metrics");
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        }
    }
    response
}
