//! Signs of life in a stream of events whose worker is silent: comments, which clients skip and
//! load balancers count as traffic. The first may come before any worker has answered.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Limited};
use tokio::time::{Instant, Sleep, sleep, timeout};

use super::events::BYTE_ORDER_MARK;
use super::refusal::message_in;
use super::relayed::Relayed;
use super::reply_error::ReplyError;
use super::sse::is_event_stream;
use crate::config::WorkerNames;
use crate::endpoint::Vendor;
use crate::error::{Error, ErrorContext};
use crate::telemetry::RequestLog;

/// A comment, and the empty line that ends what is before the next event.
const COMMENT: &[u8] = b": keep-alive\n\n";
/// Most of a worker's refusal that is read for its message, bytes.
const MAX_REFUSAL_BYTES: usize = 64 * 1024;
/// Longest wait for that.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// All attempts of a request, and the reply they end with.
type Exchange = BoxFuture<'static, Result<Response<Relayed>, Error>>;

/// A piece of a body, or its end.
type Piece = Option<Result<Frame<Bytes>, ReplyError>>;

/// How a client reads that its stream has failed.
#[derive(Debug)]
pub(super) struct StreamErrors {
    pub(super) vendor: Vendor,
    pub(super) names: WorkerNames,
    pub(super) request_id: HeaderValue,
    pub(super) log: RequestLog,
}

/// A reply with comments in its silences.
pub(crate) struct KeepAlive {
    state: State,
    head: Head,
    silence: Silence,
    errors: StreamErrors,
}

/// Whose head the client has got.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Head {
    Workers,
    /// The gateway's, and no piece of the worker's body yet.
    Own,
    /// The gateway's, and a piece of the worker's body.
    OwnBegun,
}

enum State {
    /// No worker has answered yet, and the client has a head of the gateway's.
    Waiting(BoxFuture<'static, Result<Relayed, Error>>),
    Relaying(Relayed),
    /// The client knows why there is no reply, by a code.
    Failed(&'static str),
}

/// How long nothing has come. The timer is set once and looked at again only when it fires.
struct Silence {
    interval: Duration,
    timer: Pin<Box<Sleep>>,
    since: Option<Instant>,
}

impl Silence {
    fn begin(interval: Duration) -> Self {
        Self {
            interval,
            timer: Box::pin(sleep(interval)),
            since: Some(Instant::now()),
        }
    }

    /// Ready whenever nothing has come for the interval.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let since = *self.since.get_or_insert_with(Instant::now);
        while self.timer.as_mut().poll(cx).is_ready() {
            let (now, due) = (Instant::now(), since + self.interval);
            if now >= due {
                self.since = Some(now);
                self.timer.as_mut().reset(now + self.interval);
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(due);
        }
        Poll::Pending
    }
}

/// The reply of an exchange: with the worker's head, if that comes within the interval or
/// `streams` finds that no stream was asked for; else with a head of the gateway's.
///
/// # Errors
/// Those of the exchange, while a status can say them.
pub(super) async fn keep_alive(
    mut exchange: Exchange,
    interval: Duration,
    streams: impl FnOnce() -> bool,
    errors: StreamErrors,
) -> Result<Response<Box<KeepAlive>>, Error> {
    let mut silence = Silence::begin(interval);
    let answered = tokio::select! {
        biased;
        answered = &mut exchange => Some(answered),
        () = silence.timer.as_mut() => None,
    };
    let answered = match answered {
        None if !streams() => Some((&mut exchange).await),
        answered => answered,
    };
    let reply = |state, head| {
        Box::new(KeepAlive {
            state,
            head,
            silence,
            errors,
        })
    };
    if let Some(answered) = answered {
        return Ok(answered?.map(|relay| reply(State::Relaying(relay), Head::Workers)));
    }
    let waiting = State::Waiting(Box::pin(only_events(exchange)));
    let mut response = Response::new(reply(waiting, Head::Own));
    let headers = response.headers_mut();
    let events = HeaderValue::from_static("text/event-stream; charset=utf-8");
    headers.insert(header::CONTENT_TYPE, events);
    let no_cache = HeaderValue::from_static("no-cache");
    headers.insert(header::CACHE_CONTROL, no_cache);
    Ok(response)
}

/// The events of an exchange. Any other answer is an error: its head cannot be sent any more.
async fn only_events(exchange: Exchange) -> Result<Relayed, Error> {
    let response = exchange.await?;
    let (status, headers) = (response.status(), response.headers());
    if !status.is_success() {
        return Err(Error::WorkerRefused {
            status: Some(status)
                .filter(|status| status.is_client_error() || status.is_server_error())
                .unwrap_or(StatusCode::BAD_GATEWAY),
            message: refusal(response).await,
        });
    }
    if !is_event_stream(headers) {
        return Err(Error::WorkerRefused {
            status: StatusCode::BAD_GATEWAY,
            message: "the worker's reply is no stream of events".to_owned(),
        });
    }
    Ok(response.into_body())
}

/// The message of a worker that refused a request.
async fn refusal(response: Response<Relayed>) -> String {
    let (parts, body) = response.into_parts();
    let body = Limited::new(body, MAX_REFUSAL_BYTES).collect();
    let body = match timeout(REFUSAL_TIMEOUT, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        _ => Bytes::new(),
    };
    let message = message_in(&body);
    message.unwrap_or_else(|| format!("the worker answered {}", parts.status))
}

impl KeepAlive {
    /// Whether a client that leaves now has had everything.
    pub(crate) fn is_complete(&self) -> bool {
        match &self.state {
            State::Waiting(_) => false,
            State::Relaying(relay) => relay.is_complete(),
            State::Failed(_) => true,
        }
    }

    /// Notes which worker broke off.
    pub(super) fn note_failure(&self, error: &ReplyError, log: &RequestLog) {
        if let State::Relaying(relay) = &self.state {
            relay.note_failure(error, log);
        }
    }

    /// The code of the failure that the stream itself reports.
    pub(crate) fn failure(&self) -> Option<&'static str> {
        match self.state {
            State::Failed(code) => Some(code),
            _ => None,
        }
    }

    /// A piece of the worker's has come.
    fn pass(&mut self, piece: Piece) -> Piece {
        self.silence.since = None;
        if self.head != Head::Own {
            return piece;
        }
        self.head = Head::OwnBegun;
        piece.map(|frame| frame.map(without_mark))
    }

    /// The last event of a stream without a reply.
    fn fail(&mut self, error: &Error) -> Bytes {
        let StreamErrors {
            vendor,
            names,
            request_id,
            log,
        } = &self.errors;
        log.failed(error.status(), error.log_text());
        self.state = State::Failed(error.code());
        error.event(ErrorContext {
            vendor: *vendor,
            names: *names,
            request_id: Some(request_id),
        })
    }
}

/// A stream's first piece, without what may stand at the start of a stream only.
fn without_mark(frame: Frame<Bytes>) -> Frame<Bytes> {
    frame.map_data(|mut data| {
        if data.starts_with(BYTE_ORDER_MARK) {
            drop(data.split_to(BYTE_ORDER_MARK.len()));
        }
        data
    })
}

impl Body for KeepAlive {
    type Data = Bytes;
    type Error = ReplyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ReplyError>>> {
        let this = &mut *self;
        if let State::Waiting(exchange) = &mut this.state
            && let Poll::Ready(answered) = exchange.as_mut().poll(cx)
        {
            match answered {
                Ok(relay) => this.state = State::Relaying(relay),
                Err(error) => return Poll::Ready(Some(Ok(Frame::data(this.fail(&error))))),
            }
        }
        match &mut this.state {
            State::Waiting(_) => {}
            State::Failed(_) => return Poll::Ready(None),
            State::Relaying(relay) => {
                if let Poll::Ready(frame) = Pin::new(&mut *relay).poll_frame(cx) {
                    return Poll::Ready(this.pass(frame));
                }
                // Within an event there is nothing to do until the worker goes on.
                if !relay.accepts_event() {
                    return Poll::Pending;
                }
            }
        }
        ready!(this.silence.poll(cx));
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(COMMENT)))))
    }

    fn is_end_stream(&self) -> bool {
        match &self.state {
            State::Waiting(_) => false,
            State::Relaying(relay) => relay.is_end_stream(),
            State::Failed(_) => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.state {
            State::Relaying(relay) if self.head == Head::Workers && !relay.has_events() => {
                relay.size_hint()
            }
            // Comments may come between.
            _ => SizeHint::default(),
        }
    }
}

impl fmt::Debug for KeepAlive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeepAlive").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use std::future::pending;

    use futures_util::FutureExt;

    use super::*;

    const INTERVAL: Duration = Duration::from_secs(5);

    async fn reply(
        exchange: impl Future<Output = Result<Response<Relayed>, Error>> + Send + 'static,
        streams: bool,
    ) -> Result<Response<Box<KeepAlive>>, Error> {
        let errors = StreamErrors {
            vendor: Vendor::Anthropic,
            names: WorkerNames::Hidden,
            request_id: HeaderValue::from_static("id-7"),
            log: RequestLog::default(),
        };
        keep_alive(exchange.boxed(), INTERVAL, || streams, errors).await
    }

    /// An exchange that fails after this many seconds.
    async fn failing(seconds: u64) -> Result<Response<Relayed>, Error> {
        sleep(Duration::from_secs(seconds)).await;
        let worker = "http://gpu-7".to_owned();
        Err(Error::UpstreamTimeout { worker, seconds })
    }

    async fn piece(body: &mut KeepAlive) -> Option<Bytes> {
        let frame = body.frame().await?;
        Some(frame.unwrap().into_data().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn silent_request_gets_a_head_and_a_comment_per_interval() {
        let begun = Instant::now();
        let mut response = reply(pending(), true).await.unwrap();
        assert_eq!(response.status(), 200);
        assert!(is_event_stream(response.headers()));
        for intervals in 1..4 {
            let comment = piece(response.body_mut()).await.unwrap();
            assert_eq!(comment, COMMENT);
            let (due, now) = (INTERVAL * intervals, begun.elapsed());
            assert!(
                due <= now && now < due + Duration::from_millis(10),
                "{now:?}"
            );
        }
        assert!(!response.body().is_complete() && !response.body().is_end_stream());
    }

    #[tokio::test(start_paused = true)]
    async fn failure_behind_the_head_is_one_event_and_the_end() {
        let mut response = reply(failing(12), true).await.unwrap();
        let body = response.body_mut();
        for _ in 0..2 {
            assert_eq!(piece(body).await.unwrap(), COMMENT);
        }
        assert_eq!(body.failure(), None);
        let event = piece(body).await.unwrap();
        let event = std::str::from_utf8(&event).unwrap();
        let data = event.strip_prefix("event: error\ndata: ").unwrap();
        let data: Value = serde_json::from_str(data.trim_end()).unwrap();
        assert_eq!(data["error"]["type"], "timeout_error");
        assert_eq!(data["request_id"], "id-7");
        assert!(!event.contains("gpu-7"), "{event}");
        assert_eq!(body.failure(), Some("call_upstream_timeout"));
        assert!(body.is_complete() && piece(body).await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn failure_within_the_interval_or_of_no_stream_keeps_its_status() {
        for (seconds, streams) in [(3, true), (60, false)] {
            let error = reply(failing(seconds), streams).await.unwrap_err();
            assert_eq!(error.status(), 504);
        }
    }

    #[test]
    fn message_of_a_worker_is_found_in_every_form() {
        for body in [
            r#"{"error":{"message":"too long"}}"#,
            r#"{"object":"error","message":"too long","code":400}"#,
            r#"{"detail":"too long"}"#,
            r#"{"error":"too long"}"#,
            " too long\n",
        ] {
            assert_eq!(message_in(body.as_bytes()).as_deref(), Some("too long"));
        }
        assert_eq!(message_in(b""), None);
        assert_eq!(message_in(b"\xff"), None);
    }

    #[test]
    fn byte_order_mark_passes_at_the_start_of_a_stream_only() {
        let marked = Frame::data(Bytes::from("\u{feff}data: 1\n\n"));
        let bare = without_mark(marked).into_data().unwrap();
        assert_eq!(bare, "data: 1\n\n");
        let bare = without_mark(Frame::data(bare)).into_data().unwrap();
        assert_eq!(bare, "data: 1\n\n");
    }
}
