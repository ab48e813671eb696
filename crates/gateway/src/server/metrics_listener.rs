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

use crate::admission::Admission;
use crate::balancer::Balancer;
use crate::fleet::observe;
use crate::telemetry::Metrics;

const TEXT_FORMAT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4");

/// What the page is made of.
#[derive(Clone)]
pub(crate) struct MetricsPage {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) balancer: Arc<Balancer>,
    pub(crate) admission: Arc<Admission>,
}

impl MetricsPage {
    fn render(&self) -> prometheus::Result<String> {
        let (metrics, balancer) = (&self.metrics, &self.balancer);
        self.admission.observe(metrics, balancer.waiting());
        metrics.sticky_keys(balancer.sticky_keys());
        observe(&balancer.fleet, metrics);
        metrics.render()
    }
}

/// Serves metrics until dropped.
pub(crate) async fn serve_metrics(listener: TcpListener, page: MetricsPage) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "cannot accept a connection for metrics");
                sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let page = page.clone();
        let page = service_fn(move |request: Request<Incoming>| {
            let response = respond(&request, &page);
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

fn respond(request: &Request<Incoming>, page: &MetricsPage) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    if request.uri().path() != "/metrics" {
        *response.status_mut() = StatusCode::NOT_FOUND;
        return response;
    }
    match page.render() {
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
