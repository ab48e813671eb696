//! What is reported of requests: metrics, the access log, traces, the recording.

use std::sync::Arc;

use tracing::info;

use super::error::StartError;
use crate::config::{Options, RecordSection, TraceSection};
use crate::recorder::{self, Recorder};
use crate::telemetry::{AccessLog, Metrics, RequestLines, TraceExporter, Traces};
use crate::upstream::WorkerTls;
use crate::writer_thread::WriterThread;

/// The threads that write and send, and what they need.
#[derive(Debug, Default)]
pub(super) struct Reporting {
    access_log: Option<WriterThread>,
    traces: Option<TraceExporter>,
    recording: Option<WriterThread>,
    /// Towards the collector of traces.
    pub(super) collector_tls: Option<Arc<WorkerTls>>,
}

/// Starts what the options ask for.
///
/// # Errors
/// The first part that cannot be had.
pub(super) fn report(options: &Options) -> Result<(Arc<Metrics>, Reporting), StartError> {
    let metrics = Metrics::new(options.prometheus_duration_buckets.as_deref());
    let metrics = metrics.map_err(|error| StartError::environment("make metrics", error))?;
    let mut reporting = Reporting::default();
    let access = reporting.start_access_log(options, &metrics)?;
    let traces = reporting.start_traces(options, &metrics)?;
    let recorder = reporting.start_recording(options, &metrics)?;
    let lines = RequestLines::new(access, traces, recorder);
    Ok((Arc::new(metrics.with_lines(lines)), reporting))
}

impl Reporting {
    fn start_access_log(
        &mut self,
        options: &Options,
        metrics: &Metrics,
    ) -> Result<Option<AccessLog>, StartError> {
        let Some(path) = &options.access_log else {
            return Ok(None);
        };
        let kept = options.log_max_files;
        let kept = kept.map(|kept| usize::try_from(kept).unwrap_or(usize::MAX));
        let started = AccessLog::start(path, kept, metrics.dropped_lines("access"));
        let (log, writer) =
            started.map_err(|error| StartError::environment("write the access_log", error))?;
        self.access_log = Some(writer);
        Ok(Some(log))
    }

    fn start_traces(
        &mut self,
        options: &Options,
        metrics: &Metrics,
    ) -> Result<Option<Traces>, StartError> {
        let Some(section) = TraceSection::new(options) else {
            return Ok(None);
        };
        let tls = WorkerTls::new(section.tls.clone())?;
        let started = TraceExporter::start(&section, Arc::clone(&tls), metrics.trace_counters());
        let (traces, exporter) =
            started.map_err(|error| StartError::environment("send traces", error))?;
        let (collector, sample_ratio) = (&section.collector, section.sample_ratio);
        info!(%collector, sample_ratio, "traces are sent");
        self.collector_tls = Some(tls);
        self.traces = Some(exporter);
        Ok(Some(traces))
    }

    fn start_recording(
        &mut self,
        options: &Options,
        metrics: &Metrics,
    ) -> Result<Option<Recorder>, StartError> {
        let Some(section) = RecordSection::new(options) else {
            return Ok(None);
        };
        let (path, sample) = (section.path.display().to_string(), section.sample);
        let started = recorder::start(section, metrics.record_counters());
        let (recorder, writer) =
            started.map_err(|error| StartError::environment("write the file of record", error))?;
        info!(path, sample, "requests are recorded");
        self.recording = Some(writer);
        Ok(Some(recorder))
    }

    /// Waits until what is left has been written and sent, though not for ever.
    pub(super) async fn finish(&mut self) {
        let (access_log, traces) = (self.access_log.take(), self.traces.take());
        let recording = self.recording.take();
        let write = async {
            if let Some(access_log) = access_log {
                access_log.finish().await;
            }
        };
        let send = async {
            if let Some(traces) = traces {
                traces.finish().await;
            }
        };
        let record = async {
            if let Some(recording) = recording {
                recording.finish().await;
            }
        };
        tokio::join!(write, send, record);
    }
}
