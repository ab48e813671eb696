//! Several streams of events, joined into one.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use futures_util::stream::{SelectAll, StreamExt};
use http_body::{Body, Frame};

use super::join::{Event, Sample, event, usage_event};
use crate::proxy::events::{data, take_event};
use crate::proxy::relay::Relay;
use crate::proxy::reply_error::ReplyError;

/// Most bytes of one event.
const MAX_EVENT: usize = 64 * 1024 * 1024;

/// The streams of requests for one answer each, as the stream of a request for several. An event
/// passes as soon as it is whole.
pub(crate) struct SampleStream {
    streams: SelectAll<Events>,
    /// The first `id` of a chunk, which all carry.
    id: Option<Vec<u8>>,
    usages: Vec<Bytes>,
    /// Streams that have not said that they are complete.
    unfinished: usize,
    failure: Failure,
}

/// Whether a worker has failed in the middle of its stream.
#[derive(Clone, Copy, Debug)]
enum Failure {
    None,
    /// Its error is on its way to the client.
    Unflushed,
    Flushed,
}

/// The events of one stream.
struct Events {
    sample: Sample,
    body: Box<Relay>,
    held: BytesMut,
}

impl SampleStream {
    /// The streams of `of` requests.
    pub(super) fn new(bodies: impl Iterator<Item = Box<Relay>>, of: usize) -> Self {
        let events = bodies.enumerate().map(|(at, body)| Events {
            sample: Sample { at, of },
            body,
            held: BytesMut::new(),
        });
        Self {
            streams: events.collect(),
            id: None,
            usages: Vec::new(),
            unfinished: of,
            failure: Failure::None,
        }
    }

    /// Whether a client that leaves now has had everything.
    pub(crate) fn is_complete(&self) -> bool {
        self.unfinished == 0
    }

    /// What an event of one stream adds to the joined one.
    fn pass(&mut self, sample: Sample, text: &Bytes) -> Option<Bytes> {
        match event(text, sample, &mut self.id) {
            Event::Piece(piece) => Some(event_of(&piece)),
            Event::Usage(usage) => {
                self.usages.push(usage);
                None
            }
            Event::Failure => {
                self.failure = Failure::Unflushed;
                Some(event_of(text))
            }
            Event::Done => {
                self.unfinished = self.unfinished.saturating_sub(1);
                if self.unfinished > 0 {
                    return None;
                }
                let mut end = Vec::new();
                if let Some(usage) = usage_event(&self.usages, self.id.as_ref()) {
                    end.extend_from_slice(&event_of(&usage));
                }
                end.extend_from_slice(b"data: [DONE]\n\n");
                Some(end.into())
            }
        }
    }
}

fn event_of(data: &[u8]) -> Bytes {
    let mut event = Vec::with_capacity(data.len() + 8);
    for line in data.split(|byte| *byte == b'\n') {
        event.extend_from_slice(b"data: ");
        event.extend_from_slice(line);
        event.push(b'\n');
    }
    event.push(b'\n');
    event.into()
}

impl Stream for Events {
    type Item = Result<(Sample, Bytes), ReplyError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some(event) = take_event(&mut this.held) {
                return Poll::Ready(Some(Ok((this.sample, data(&event).into()))));
            }
            match ready!(Pin::new(&mut *this.body).poll_frame(cx)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                Some(Ok(frame)) => {
                    let piece = frame.into_data().unwrap_or_default();
                    if this.held.len() + piece.len() > MAX_EVENT {
                        return Poll::Ready(Some(Err(ReplyError::NotJoined)));
                    }
                    this.held.extend_from_slice(&piece);
                }
            }
        }
    }
}

impl Body for SampleStream {
    type Data = Bytes;
    type Error = ReplyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ReplyError>>> {
        let this = &mut *self;
        loop {
            match this.failure {
                Failure::None => {}
                Failure::Unflushed => {
                    // Ends the requests of the other samples. The error that was passed on is
                    // written before the reply is broken off.
                    this.streams.clear();
                    this.failure = Failure::Flushed;
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Failure::Flushed => return Poll::Ready(Some(Err(ReplyError::SampleFailed))),
            }
            match ready!(this.streams.poll_next_unpin(cx)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => {
                    this.streams.clear();
                    return Poll::Ready(Some(Err(error)));
                }
                Some(Ok((sample, text))) => {
                    if let Some(passed) = this.pass(sample, &text) {
                        return Poll::Ready(Some(Ok(Frame::data(passed))));
                    }
                }
            }
        }
    }
}

impl std::fmt::Debug for SampleStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SampleStream")
            .field("unfinished", &self.unfinished)
            .finish_non_exhaustive()
    }
}
