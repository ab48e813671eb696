//! Server-sent events: a stream that breaks off between two of them ends with an event that
//! says why.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{self, HeaderMap};
use http_body::{Body, Frame, SizeHint};
use memchr::memchr2_iter;

use super::reply_error::ReplyError;
use crate::error::final_event;

/// Whether a body with these headers is a stream of events that can be looked into.
pub(super) fn is_event_stream(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.as_bytes().get(..17));
    kind.is_some_and(|kind| kind.eq_ignore_ascii_case(b"text/event-stream"))
        && !headers.contains_key(header::CONTENT_ENCODING)
}

/// The first event of a stream, with the empty line that ends it (WHATWG HTML §9.2.6); `None`
/// if it is not complete.
pub(super) fn first_event(stream: &[u8]) -> Option<&[u8]> {
    memchr2_iter(b'\n', b'\r', stream).find_map(|at| {
        let empty_line = at + line_end(&stream[at..]);
        let length = line_end(&stream[empty_line..]);
        (length > 0).then(|| &stream[..empty_line + length])
    })
}

/// The length of the line end that `text` begins with; 0 if it begins with none.
fn line_end(text: &[u8]) -> usize {
    match text {
        [b'\r', b'\n', ..] => 2,
        [b'\r' | b'\n', ..] => 1,
        _ => 0,
    }
}

/// A body that may be a stream of events.
#[derive(Debug)]
pub(super) struct EventStream<B> {
    body: B,
    /// `None` for a body of another kind.
    events: Option<EventBoundary>,
    failure: Failure,
}

/// How far the end of a body that broke off has come.
#[derive(Debug, Default)]
enum Failure {
    #[default]
    None,
    /// Returned only once what came before has been flushed to the client.
    Unflushed(ReplyError),
    Flushed(ReplyError),
    Returned,
}

/// The longest end of a stream that means something: the last event of OpenAI's streams.
const LONGEST_END: usize = b"[DONE]\r\n\r\n".len();

/// Where in a stream of events the last piece ended.
#[derive(Debug, Default)]
pub(super) struct EventBoundary {
    /// The last bytes, in so far as there are so many.
    tail: [u8; LONGEST_END],
    length: usize,
}

impl EventBoundary {
    pub(super) fn pass(&mut self, piece: &[u8]) {
        let new = &piece[piece.len().saturating_sub(LONGEST_END)..];
        self.tail.copy_within(new.len().., 0);
        self.tail[LONGEST_END - new.len()..].copy_from_slice(new);
        self.length = (self.length + new.len()).min(LONGEST_END);
    }

    fn tail(&self) -> &[u8] {
        &self.tail[LONGEST_END - self.length..]
    }

    /// The stream has said that it is complete.
    pub(super) fn is_done(&self) -> bool {
        let ends = [&b"[DONE]\n\n"[..], b"[DONE]\r\n\r\n", b"[DONE]\r\r"];
        ends.iter().any(|end| self.tail().ends_with(end))
    }

    /// Whether one more event can follow: between two, or before the first.
    pub(super) fn accepts_final_event(&self) -> bool {
        let ends = [&b"\n\n"[..], b"\n\r\n", b"\r\r"];
        let between = ends.iter().any(|end| self.tail().ends_with(end));
        !self.is_done() && (between || self.length == 0)
    }
}

impl<B: Body> EventStream<B> {
    /// The body of a successful reply with these headers: a stream of events, if they say so
    /// and the body may end in one more.
    pub(super) fn of(body: B, headers: &HeaderMap) -> Self {
        let open_ended = body.size_hint().exact().is_none();
        let events = (is_event_stream(headers) && open_ended).then(EventBoundary::default);
        Self {
            events,
            ..Self::opaque(body)
        }
    }

    /// A body that is no stream of events.
    pub(super) fn opaque(body: B) -> Self {
        Self {
            body,
            events: None,
            failure: Failure::None,
        }
    }

    /// Whether it is a stream of events.
    pub(super) fn has_events(&self) -> bool {
        self.events.is_some()
    }

    /// The stream has said that it is complete, whatever may still come.
    pub(super) fn is_done(&self) -> bool {
        self.events.as_ref().is_some_and(EventBoundary::is_done)
    }

    /// Why it broke off, from that moment until the error is returned.
    pub(super) fn failure(&self) -> Option<&ReplyError> {
        match &self.failure {
            Failure::Unflushed(error) | Failure::Flushed(error) => Some(error),
            Failure::None | Failure::Returned => None,
        }
    }
}

impl<B> Body for EventStream<B>
where
    B: Body<Data = Bytes, Error = ReplyError> + Unpin,
{
    type Data = Bytes;
    type Error = ReplyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ReplyError>>> {
        let this = &mut *self;
        match std::mem::replace(&mut this.failure, Failure::None) {
            Failure::None => {}
            Failure::Unflushed(error) => {
                this.failure = Failure::Flushed(error);
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Failure::Flushed(error) => {
                this.failure = Failure::Returned;
                return Poll::Ready(Some(Err(error)));
            }
            Failure::Returned => {
                this.failure = Failure::Returned;
                return Poll::Ready(None);
            }
        }
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        match polled {
            Poll::Ready(Some(Err(error))) => {
                let events = this.events.as_ref();
                let last = events.filter(|events| events.accepts_final_event());
                let last = last.map(|_| final_event(&error));
                this.failure = Failure::Unflushed(error);
                match last {
                    Some(event) => Poll::Ready(Some(Ok(Frame::data(event)))),
                    None => self.poll_frame(cx),
                }
            }
            polled => {
                if let (Poll::Ready(Some(Ok(frame))), Some(events)) = (&polled, &mut this.events)
                    && let Some(data) = frame.data_ref()
                {
                    events.pass(data);
                }
                polled
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boundary_is_found_whatever_ends_lines_and_however_the_stream_is_cut() {
        let after = |pieces: &[&str]| {
            let mut boundary = EventBoundary::default();
            for piece in pieces {
                boundary.pass(piece.as_bytes());
            }
            (boundary.accepts_final_event(), boundary.is_done())
        };
        assert_eq!(after(&[]), (true, false));
        assert_eq!(after(&["data: 1"]), (false, false));
        assert_eq!(after(&["data: 1\n"]), (false, false));
        for end in ["\n\n", "\r\n\r\n", "\r\r"] {
            assert_eq!(after(&["data: 1", end]), (true, false), "{end:?}");
            assert_eq!(after(&["data: [DO", "NE]", end]), (false, true), "{end:?}");
            assert_eq!(
                after(&["data: [DONE]", &end[..1], &end[1..]]),
                (false, true)
            );
        }
        assert_eq!(after(&["data: [DONE]\n\n", "data: 2\n\n"]), (true, false));
    }

    #[test]
    fn first_event_ends_with_its_empty_line_whatever_ends_lines() {
        for (stream, length) in [
            ("data: 1\n\ndata: 2\n\n", 9),
            ("data: 1\r\n\r\ndata: 2", 11),
            ("data: 1\r\rdata: 2\r\r", 9),
            ("id: 7\ndata: 1\n\n", 15),
            ("data: 1\n\r\n", 10),
            ("\n\n", 2),
        ] {
            assert_eq!(
                first_event(stream.as_bytes()).unwrap().len(),
                length,
                "{stream:?}"
            );
        }
        for part in [
            "",
            "data: 1",
            "data: 1\n",
            "data: 1\r\n",
            "id: 7\r\ndata: 1\r\n",
        ] {
            assert_eq!(first_event(part.as_bytes()), None, "{part:?}");
        }
    }
}
