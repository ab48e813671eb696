//! Which requests are traced, and where their records are handed over.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::SyncSender;

use http::Request;
use http::header::{Entry, HeaderName, HeaderValue};
use prometheus::IntCounter;
use tokio::sync::Notify;

use super::context::SpanRef;
use super::record::TraceRecord;
use super::sampler::Sampler;
use super::trace_log::{TRACEPARENT, TraceLog};

static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Records that are sent at once.
pub(super) const BATCH: usize = 64;
/// Longest `tracestate` that a span shows, bytes: all that must be passed on (W3C §3.3.1.5).
const MAX_STATE: usize = 512;
/// Longest path that a span shows, bytes.
const MAX_PATH: usize = 256;

/// Decides which requests are traced, and takes what is known of them at their end.
#[derive(Debug)]
pub(crate) struct Traces {
    pub(super) sampler: Sampler,
    pub(super) records: SyncSender<Box<TraceRecord>>,
    /// Records handed over so far.
    pub(super) count: AtomicU64,
    /// Wakes the thread that sends when there is a batch.
    pub(super) full_batch: Arc<Notify>,
    /// Records that found no place.
    pub(super) lost: IntCounter,
}

impl Traces {
    /// The log of a request's spans, if it is traced. Otherwise its headers say so to the worker.
    pub(in crate::telemetry) fn begin<B>(&self, request: &mut Request<B>) -> Option<TraceLog> {
        let headers = request.headers_mut();
        let sent = headers.try_entry(&TRACEPARENT).ok()?;
        let parent = parent(&sent);
        let span = match parent {
            // It passes as it is.
            Some(SpanRef { sampled: false, .. }) => return None,
            Some(parent) => SpanRef {
                span_id: fastrand::u64(1..),
                ..parent
            },
            None => self.root(),
        };
        match sent {
            // Every attempt is named to its worker.
            Entry::Occupied(sent) if span.sampled => drop(sent.remove_entry_mult()),
            Entry::Occupied(mut sent) => drop(sent.insert_mult(span.header())),
            Entry::Vacant(_) if span.sampled => {}
            Entry::Vacant(place) => drop(place.try_insert(span.header())),
        }
        if parent.is_none() {
            // What an invalid parent comes with means nothing (W3C §4.3).
            headers.remove(&TRACESTATE);
        }
        if !span.sampled {
            return None;
        }
        let state = request.headers().get(&TRACESTATE);
        let state = state.and_then(|state| state.to_str().ok());
        let state = state.filter(|state| state.len() <= MAX_STATE);
        let path = request.uri().path();
        let path = &path[..path.floor_char_boundary(MAX_PATH)];
        let parent = parent.map(|parent| parent.span_id);
        Some(TraceLog::new(span, parent, state.unwrap_or_default(), path))
    }

    /// The first span of a trace.
    fn root(&self) -> SpanRef {
        let trace_id = fastrand::u128(1..);
        SpanRef {
            trace_id,
            span_id: fastrand::u64(1..),
            sampled: self.sampler.samples(trace_id),
        }
    }

    /// Takes the record of a request that has ended. Never waits.
    pub(in crate::telemetry) fn hand_over(&self, record: Box<TraceRecord>) {
        if self.records.try_send(record).is_err() {
            self.lost.inc();
        } else if (self.count.fetch_add(1, Relaxed) + 1).is_multiple_of(BATCH as u64) {
            self.full_batch.notify_one();
        }
    }
}

/// The client's span, if it sends one as the rules want it: once.
fn parent(sent: &Entry<'_, HeaderValue>) -> Option<SpanRef> {
    let Entry::Occupied(sent) = sent else {
        return None;
    };
    let only = sent.iter().nth(1).is_none();
    only.then(|| SpanRef::parse(sent.get().as_bytes()))
        .flatten()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, sync_channel};

    use futures_util::FutureExt;
    use proptest::prelude::*;

    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn traces(ratio: f64, room: usize) -> (Traces, Receiver<Box<TraceRecord>>) {
        let (records, taken) = sync_channel(room);
        let traces = Traces {
            sampler: Sampler::new(ratio),
            records,
            count: AtomicU64::new(0),
            full_batch: Arc::default(),
            lost: IntCounter::new("lost", "records").unwrap(),
        };
        (traces, taken)
    }

    fn request(parents: &[&str]) -> Request<()> {
        let mut request = Request::post("/generate?a=b").body(()).unwrap();
        let headers = request.headers_mut();
        headers.insert(&TRACESTATE, HeaderValue::from_static("a=b"));
        for parent in parents {
            headers.append(&TRACEPARENT, HeaderValue::from_str(parent).unwrap());
        }
        request
    }

    /// The span that a worker would be named by the headers alone.
    fn sent(request: &Request<()>) -> Option<SpanRef> {
        let headers = request.headers();
        assert!(headers.get_all(&TRACEPARENT).iter().count() < 2);
        SpanRef::parse(headers.get(&TRACEPARENT)?.as_bytes())
    }

    #[test]
    fn sampled_parent_is_continued_whatever_the_ratio() {
        let (traces, _taken) = traces(0.0, 1);
        let mut request = request(&[PARENT]);
        let log = traces.begin(&mut request).unwrap();
        let (facts, parent) = (log.facts(), SpanRef::parse(PARENT.as_bytes()).unwrap());
        assert_eq!(facts.span.trace_id, parent.trace_id);
        assert_eq!(facts.parent, Some(parent.span_id));
        assert_ne!(facts.span.span_id, parent.span_id);
        assert_eq!((&*facts.state, &*facts.path), ("a=b", "/generate"));
        assert_eq!(sent(&request), None, "every attempt names its own");
        assert_eq!(request.headers()[&TRACESTATE], "a=b");
    }

    #[test]
    fn parent_that_is_not_sampled_passes_as_it_is() {
        let (traces, _taken) = traces(1.0, 1);
        let unsampled = PARENT.replace("-01", "-00");
        let mut request = request(&[&unsampled]);
        let before = request.headers().clone();
        assert!(traces.begin(&mut request).is_none());
        assert_eq!(*request.headers(), before);
    }

    #[test]
    fn without_a_usable_parent_the_ratio_decides_and_the_worker_learns_it() {
        for parents in [&[][..], &["t"], &[PARENT, PARENT]] {
            let (all, _taken) = traces(1.0, 1);
            let mut of_all = request(parents);
            let log = all.begin(&mut of_all).unwrap();
            assert_eq!(log.facts().parent, None);
            assert!(of_all.headers().is_empty(), "{of_all:?}");
            let (none, _taken) = traces(0.0, 1);
            let mut of_none = request(parents);
            assert!(none.begin(&mut of_none).is_none());
            assert!(!sent(&of_none).unwrap().sampled);
            assert!(!of_none.headers().contains_key(&TRACESTATE));
        }
    }

    #[test]
    fn records_beyond_the_queue_are_dropped_and_counted_and_a_batch_wakes() {
        let (traces, taken) = traces(1.0, BATCH);
        for _ in 0..BATCH + 3 {
            let log = traces.begin(&mut request(&[])).unwrap();
            traces.hand_over(Box::new(TraceRecord::with_log(log)));
        }
        assert_eq!((traces.lost.get(), taken.try_iter().count()), (3, BATCH));
        assert!(traces.full_batch.notified().now_or_never().is_some());
    }

    proptest! {
        #[test]
        fn any_header_begins_or_continues_a_trace(parent: Vec<u8>, ratio in 0.0..=1.0) {
            let (traces, _taken) = traces(ratio, 1);
            let mut request = request(&[]);
            if let Ok(value) = HeaderValue::from_bytes(&parent) {
                request.headers_mut().insert(&TRACEPARENT, value);
            }
            let traced = traces.begin(&mut request).is_some();
            prop_assert_eq!(sent(&request).is_none(), traced);
        }
    }
}
