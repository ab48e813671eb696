//! A collector that keeps what it is sent.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use gateway::Options;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::support::{Step, Worker, options, until};

type Requests = Arc<Mutex<Vec<ExportTraceServiceRequest>>>;

/// A collector that takes OTLP over gRPC. Dropped, it ends.
pub(crate) struct Collector {
    addr: SocketAddr,
    requests: Requests,
    task: JoinHandle<()>,
}

struct Receiver(Requests);

#[async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let requests = Requests::default();
        let service = TraceServiceServer::new(Receiver(Arc::clone(&requests)));
        let serving = Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpIncoming::from(listener));
        let task = tokio::spawn(async move { serving.await.unwrap() });
        Self {
            addr,
            requests,
            task,
        }
    }

    /// Options of a gateway that sends its traces here.
    pub(super) fn options(&self, workers: &[&Worker]) -> Options {
        traced(workers, self.addr.to_string())
    }

    /// Where it listens.
    pub(crate) fn port(&self) -> u16 {
        self.addr.port()
    }

    /// The spans of a trace, once there are so many, in order of their start.
    pub(super) async fn spans<const N: usize>(&self, trace_id: &str) -> [Seen; N] {
        let found = || {
            let mut spans = spans(&self.requests.lock().unwrap());
            spans.retain(|span| span.trace_id == trace_id);
            spans
        };
        until(|| async { found().len() >= N }).await;
        let spans = found();
        spans.try_into().unwrap()
    }

    /// All spans so far.
    pub(crate) fn all(&self) -> Vec<Seen> {
        spans(&self.requests.lock().unwrap())
    }

    /// The attributes of what sends.
    pub(super) fn resource(&self) -> BTreeMap<String, Value> {
        let requests = self.requests.lock().unwrap();
        let resource = requests[0].resource_spans[0].resource.as_ref().unwrap();
        attributes(&resource.attributes)
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Options of a gateway that traces its requests.
pub(crate) fn traced(workers: &[&Worker], endpoint: String) -> Options {
    Options {
        enable_trace: true,
        otlp_traces_endpoint: endpoint,
        ..options(workers)
    }
}

/// A collector that takes OTLP over HTTP, and answers so.
pub(crate) async fn over_http(answer: Vec<Step>) -> Worker {
    Worker::listening(0, move |_| answer.clone()).await
}

/// The spans that such a collector has been sent.
pub(crate) fn spans_over_http(collector: &Worker) -> Vec<Seen> {
    let received = collector.received();
    let decoded = received
        .iter()
        .map(|request| ExportTraceServiceRequest::decode(request.body.as_slice()).unwrap());
    spans(&decoded.collect::<Vec<_>>())
}

/// A span, as far as tests look at it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(super) name: String,
    pub(super) trace_id: String,
    pub(super) id: String,
    /// Empty for none.
    pub(super) parent: String,
    pub(super) is_server: bool,
    pub(super) state: String,
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) attributes: BTreeMap<String, Value>,
    pub(super) events: Vec<String>,
    pub(super) error: Option<String>,
}

impl Seen {
    /// An attribute, `null` for none.
    pub(super) fn get(&self, name: &str) -> Value {
        self.attributes.get(name).cloned().unwrap_or_default()
    }
}

fn spans(requests: &[ExportTraceServiceRequest]) -> Vec<Seen> {
    let scopes = requests
        .iter()
        .flat_map(|request| &request.resource_spans)
        .flat_map(|resource| &resource.scope_spans);
    let mut spans: Vec<_> = scopes
        .flat_map(|scope| &scope.spans)
        .map(|span| Seen {
            name: span.name.clone(),
            trace_id: hex(&span.trace_id),
            id: hex(&span.span_id),
            parent: hex(&span.parent_span_id),
            is_server: span.kind() == SpanKind::Server,
            state: span.trace_state.clone(),
            start: span.start_time_unix_nano,
            end: span.end_time_unix_nano,
            attributes: attributes(&span.attributes),
            events: span.events.iter().map(|event| event.name.clone()).collect(),
            error: span
                .status
                .as_ref()
                .filter(|status| status.code == 2)
                .map(|status| status.message.clone()),
        })
        .collect();
    spans.sort_by_key(|span| (span.start, !span.is_server));
    spans
}

fn attributes(
    pairs: &[opentelemetry_proto::tonic::common::v1::KeyValue],
) -> BTreeMap<String, Value> {
    let value = |any: Any| match any {
        Any::StringValue(text) => json!(text),
        Any::IntValue(number) => json!(number),
        Any::DoubleValue(number) => json!(number),
        Any::BoolValue(flag) => json!(flag),
        other => json!(format!("{other:?}")),
    };
    let pair = |pair: &opentelemetry_proto::tonic::common::v1::KeyValue| {
        let any = pair.value.clone().and_then(|any| any.value);
        (pair.key.clone(), any.map(value).unwrap_or_default())
    };
    pairs.iter().map(pair).collect()
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        write!(text, "{byte:02x}").unwrap();
    }
    text
}
