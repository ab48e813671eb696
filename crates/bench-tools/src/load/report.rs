//! The result of a run.

use std::time::Duration;

use serde::Serialize;

use super::tally::{Samples, Tally};

/// The result of a run, one JSON object. Figures are of the counted seconds only.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whole replies with a 2xx status.
    pub requests: u64,
    /// Replies with another status, of a wrong number of events, cut off, or malformed; refused connections.
    pub errors: u64,
    /// The first error, in words.
    pub first_error: Option<String>,
    /// Requests per second.
    pub rps: f64,
    /// Server-sent events per second.
    pub events_per_s: f64,
    /// Milliseconds from the first byte sent to the last byte read.
    pub latency_ms: Percentiles,
    /// Milliseconds from the first byte sent to the first byte of the body.
    pub ttft_ms: Percentiles,
    /// Milliseconds between two reads of one body.
    pub gap_ms: Percentiles,
    /// CPU time of the gateway in microseconds, per request; absent without `pids` or requests.
    pub cpu_us_per_request: Option<f64>,
    /// The same per server-sent event.
    pub cpu_us_per_event: Option<f64>,
    /// The gateway's share of one core, 0 to 1 for a gateway of one thread.
    pub cpu_share: Option<f64>,
    /// Highest resident memory of the gateway's processes, in MiB.
    pub peak_rss_mib: Option<f64>,
}

/// Two percentiles of a set of samples.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Percentiles {
    /// The median.
    pub p50: f64,
    /// The 99th percentile.
    pub p99: f64,
}

/// What the gateway used during the counted seconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Used {
    pub(crate) cpu: Duration,
    pub(crate) peak_rss_kib: u64,
}

impl Report {
    pub(crate) fn new(mut tally: Tally, elapsed: Duration, used: Option<Used>) -> Self {
        let seconds = elapsed.as_secs_f64();
        let per = |count: u64| {
            let cpu = used?.cpu.as_secs_f64() * 1e6;
            (count > 0).then(|| cpu / count as f64)
        };
        Self {
            requests: tally.requests,
            errors: tally.errors,
            first_error: tally.first_error,
            rps: tally.requests as f64 / seconds,
            events_per_s: tally.events as f64 / seconds,
            latency_ms: Percentiles::new(&mut tally.latency),
            ttft_ms: Percentiles::new(&mut tally.first_byte),
            gap_ms: Percentiles::new(&mut tally.gap),
            cpu_us_per_request: per(tally.requests),
            cpu_us_per_event: per(tally.events),
            cpu_share: used.map(|it| it.cpu.as_secs_f64() / seconds),
            peak_rss_mib: used.map(|it| it.peak_rss_kib as f64 / 1024.0),
        }
    }
}

impl Percentiles {
    fn new(samples: &mut Samples) -> Self {
        Self {
            p50: samples.percentile_ms(50),
            p99: samples.percentile_ms(99),
        }
    }
}
