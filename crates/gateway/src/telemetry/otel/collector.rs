//! The SDK's exporter to a collector, over connections of ours.

use std::io;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{
    ExporterBuildError, Protocol, RetryPolicy, SpanExporter, WithExportConfig, WithHttpConfig,
    WithTonicConfig,
};
use tokio::time::timeout;
use tonic::transport::Endpoint;

use crate::config::{Collector, Otlp};
use crate::upstream::Connector;

/// Longest time for a batch, another try after a failure included.
pub(super) const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// Tries after the first one: they outlast the restart of a collector.
const RETRIES: usize = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(4);
/// More of a collector's answer is not read, bytes.
const MAX_ANSWER: usize = 64 * 1024;

/// Why there are no traces.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TraceError {
    #[error(transparent)]
    Endpoint(tonic::transport::Error),
    #[error(transparent)]
    Exporter(ExporterBuildError),
    #[error(transparent)]
    Thread(#[from] io::Error),
}

/// OTLP over HTTP/1.1.
#[derive(Debug)]
struct Http(Client<Connector, Full<Bytes>>);

/// The exporter; its tasks run on the runtime that this is called on.
///
/// # Errors
/// When the environment (`OTEL_EXPORTER_OTLP_…`) asks for what there is not.
pub(super) fn exporter(
    collector: &Collector,
    connector: Connector,
) -> Result<SpanExporter, TraceError> {
    let retry = RetryPolicy::recommended()
        .with_max_retries(RETRIES)
        .with_initial_delay(FIRST_PAUSE)
        .with_max_delay(LONGEST_PAUSE);
    let url = collector.to_string();
    let built: Result<_, ExporterBuildError> = match collector.otlp {
        Otlp::Grpc => {
            let endpoint = Endpoint::from_shared(url).map_err(TraceError::Endpoint)?;
            let endpoint = endpoint.timeout(EXPORT_TIMEOUT);
            SpanExporter::builder()
                .with_tonic()
                .with_channel(endpoint.connect_with_connector_lazy(connector))
                .with_timeout(EXPORT_TIMEOUT)
                .with_retry_policy(retry)
                .build()
        }
        Otlp::Http => {
            let client = Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .build(connector);
            SpanExporter::builder()
                .with_http()
                .with_protocol(Protocol::HttpBinary)
                .with_endpoint(url)
                .with_http_client(Http(client))
                .with_timeout(EXPORT_TIMEOUT)
                .with_retry_policy(retry)
                .build()
        }
    };
    built.map_err(TraceError::Exporter)
}

#[async_trait]
impl HttpClient for Http {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let exchange = async {
            let (parts, body) = self.0.request(request.map(Full::new)).await?.into_parts();
            let body = Limited::new(body, MAX_ANSWER).collect().await?;
            Ok(Response::from_parts(parts, body.to_bytes()))
        };
        timeout(EXPORT_TIMEOUT, exchange).await?
    }
}
