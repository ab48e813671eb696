//! The thread that sends spans.

use std::env;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
use opentelemetry_sdk::trace::SpanExporter;
use prometheus::IntCounter;
use tokio::runtime;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;
use uuid::Uuid;

use super::collector::{self, EXPORT_TIMEOUT, TraceError};
use super::record::TraceRecord;
use super::sampler::Sampler;
use super::spans::SpanMaker;
use super::traces::{BATCH, Traces};
use crate::config::{Otlp, TraceSection};
use crate::telemetry::log_limit::LogLimit;
use crate::upstream::{ConnectionLimits, Connector, Resolver, Spoken, WorkerTls};

/// Records that wait to be sent; more are dropped rather than hold up a request.
const WAITING_RECORDS: usize = 4096;
/// Longest time for which a record waits for a whole batch.
const INTERVAL: Duration = Duration::from_millis(500);
/// Longest time for the last records at a stop.
const LAST_RECORDS: Duration = Duration::from_millis(1500);
/// The service's name where the environment gives none.
const SERVICE: &str = "smg";

/// What becomes of traces.
#[derive(Clone, Debug)]
pub(crate) struct TraceCounters {
    /// A collector has taken them.
    pub(crate) sent: IntCounter,
    /// Too many waited.
    pub(crate) queue_full: IntCounter,
    /// No collector has taken them.
    pub(crate) not_sent: IntCounter,
}

/// The thread that sends. Dropped, it sends what waits and ends.
#[derive(Debug)]
pub(crate) struct TraceExporter {
    thread: JoinHandle<()>,
    closing: CancellationToken,
}

/// Its work.
struct Export<E> {
    records: Receiver<Box<TraceRecord>>,
    full_batch: Arc<Notify>,
    exporter: E,
    scope: InstrumentationScope,
    counters: TraceCounters,
    failures: LogLimit,
}

/// Records that are being sent, counted as lost unless they are known to have come.
struct Batch<'a> {
    records: u64,
    lost: &'a IntCounter,
}

impl TraceExporter {
    /// Starts the thread that sends to the collector of `section`, over this TLS.
    ///
    /// # Errors
    /// When the environment asks for what there is not, or there is no thread.
    pub(crate) fn start(
        section: &TraceSection,
        tls: Arc<WorkerTls>,
        counters: TraceCounters,
    ) -> Result<(Traces, Self), TraceError> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let limits = ConnectionLimits::new(&section.connections, 1)
            .with_resolver(Resolver::new(runtime.handle().clone()))
            .with_tls(tls);
        let collector = &section.collector;
        let connector = Connector::new(collector.url.clone(), limits, spoken(section));
        let exporter = {
            let _entered = runtime.enter();
            collector::exporter(collector, connector)
        };
        let mut exporter = match exporter {
            Ok(exporter) => exporter,
            Err(error) => {
                // The caller's thread may be one that must not wait for tasks to end.
                runtime.shutdown_background();
                return Err(error);
            }
        };
        exporter.set_resource(&resource());
        let (traces, records) = traces(section.sample_ratio, counters.queue_full.clone());
        let export = Export {
            records,
            full_batch: Arc::clone(&traces.full_batch),
            exporter,
            scope: scope(),
            counters,
            failures: LogLimit::default(),
        };
        let closing = CancellationToken::new();
        let asked = closing.clone();
        let thread = thread::Builder::new().name("smg-traces".to_owned());
        let thread = thread.spawn(move || {
            runtime.block_on(export.run(&asked));
            // Without waiting for a name look-up that may be under way.
            runtime.shutdown_background();
        })?;
        Ok((traces, Self { thread, closing }))
    }

    /// Waits for the last records, though not for ever: the collector may hang.
    pub(crate) async fn finish(self) {
        self.closing.cancel();
        let sent = async {
            while !self.thread.is_finished() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        let _ = timeout(LAST_RECORDS + INTERVAL, sent).await;
    }
}

impl Drop for TraceExporter {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

fn spoken(section: &TraceSection) -> Spoken {
    match section.collector.otlp {
        Otlp::Grpc => Spoken::Http2,
        Otlp::Http => Spoken::Http1,
    }
}

fn traces(sample_ratio: f64, lost: IntCounter) -> (Traces, Receiver<Box<TraceRecord>>) {
    let (sender, records) = sync_channel(WAITING_RECORDS);
    let traces = Traces {
        sampler: Sampler::new(sample_ratio),
        records: sender,
        count: AtomicU64::new(0),
        full_batch: Arc::default(),
        lost,
    };
    (traces, records)
}

/// What all spans are of. The environment has the last word.
fn resource() -> Resource {
    let resource = Resource::builder_empty()
        .with_attributes([
            KeyValue::new("service.name", SERVICE),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", Uuid::new_v4().to_string()),
        ])
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_detector(Box::new(EnvResourceDetector::new()));
    let name = env::var("OTEL_SERVICE_NAME").ok();
    match name.filter(|name| !name.is_empty()) {
        Some(name) => resource.with_service_name(name).build(),
        None => resource.build(),
    }
}

fn scope() -> InstrumentationScope {
    InstrumentationScope::builder("sgl-model-gateway")
        .with_version(env!("CARGO_PKG_VERSION"))
        .build()
}

impl<E: SpanExporter> Export<E> {
    /// Sends until it is to close, then what waits.
    async fn run(self, closing: &CancellationToken) {
        let last = async {
            closing.cancelled().await;
            sleep(LAST_RECORDS).await;
        };
        tokio::select! {
            () = self.send_all(closing) => {}
            () = last => {}
        }
        let left = self.records.try_iter().count();
        self.counters.not_sent.inc_by(left as u64);
    }

    async fn send_all(&self, closing: &CancellationToken) {
        while !closing.is_cancelled() {
            tokio::select! {
                () = closing.cancelled() => {}
                () = self.full_batch.notified() => {}
                () = sleep(INTERVAL) => {}
            }
            while self.send_batch().await {}
        }
    }

    /// Sends a batch; false where nothing waits.
    async fn send_batch(&self) -> bool {
        let maker = SpanMaker::new(&self.scope);
        let (mut spans, mut records) = (Vec::new(), 0);
        for record in self.records.try_iter().take(BATCH) {
            maker.spans(&record, &mut spans);
            records += 1;
        }
        if records == 0 {
            return false;
        }
        let mut batch = Batch {
            records,
            lost: &self.counters.not_sent,
        };
        let sent = timeout(EXPORT_TIMEOUT, self.exporter.export(spans)).await;
        let error = match sent {
            Ok(Ok(())) => {
                batch.records = 0;
                self.counters.sent.inc_by(records);
                return true;
            }
            Ok(Err(error)) => error.to_string(),
            Err(late) => late.to_string(),
        };
        if let Some(left_out) = self.failures.pass() {
            warn!(%error, left_out, "cannot send traces");
        }
        true
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        self.lost.inc_by(self.records);
    }
}
