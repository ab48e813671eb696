//! A decode worker's body that gets a part of the prefill worker's answer on its way.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http_body::{Body, Frame};
use memchr::memmem;

use super::merge::PromptLogprobs;
use crate::cpu_pool::CpuPool;
use crate::proxy::reply_error::ReplyError;

/// An answer larger than this is not merged but refused, bytes.
const MAX_ANSWER: usize = 256 * 1024 * 1024;
/// What ends an event (WHATWG HTML §9.2.6).
const EVENT_ENDS: [&[u8]; 3] = [b"\n\n", b"\r\n\r\n", b"\r\r"];
/// Bytes of an end that may have come without its last one.
const PART_OF_END: usize = 3;

/// Puts the prefill worker's part into an answer: event by event, or into the whole.
pub(super) struct Merging {
    logprobs: Arc<PromptLogprobs>,
    /// What has come and not been given out.
    held: BytesMut,
    /// How much of that has no end of an event.
    searched: usize,
    /// Choices whose prompt has been echoed.
    echoed: BTreeSet<usize>,
    form: Form,
}

/// How an answer comes.
enum Form {
    Events,
    Whole(CpuPool),
    /// The whole has come, and is merged on the CPU pool.
    Merged(BoxFuture<'static, Option<Vec<u8>>>),
    Done,
}

impl std::fmt::Debug for Merging {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Merging").finish_non_exhaustive()
    }
}

impl Merging {
    /// For a stream of events.
    pub(super) fn events(logprobs: PromptLogprobs) -> Self {
        Self {
            logprobs: Arc::new(logprobs),
            held: BytesMut::new(),
            searched: 0,
            echoed: BTreeSet::new(),
            form: Form::Events,
        }
    }

    /// For an answer that is merged as a whole.
    pub(super) fn whole(logprobs: PromptLogprobs, pool: &CpuPool) -> Self {
        Self {
            form: Form::Whole(pool.clone()),
            ..Self::events(logprobs)
        }
    }

    /// Whether nothing is left.
    pub(super) fn is_done(&self) -> bool {
        matches!(self.form, Form::Done)
    }

    /// The next piece of the merged answer.
    pub(super) fn poll<B>(
        &mut self,
        cx: &mut Context<'_>,
        body: &mut B,
    ) -> Poll<Option<Result<Frame<Bytes>, ReplyError>>>
    where
        B: Body<Data = Bytes, Error = ReplyError> + Unpin,
    {
        loop {
            match &mut self.form {
                Form::Done => return Poll::Ready(None),
                Form::Merged(merged) => {
                    let merged = ready!(merged.poll_unpin(cx));
                    self.form = Form::Done;
                    let merged = merged.map(|merged| Frame::data(merged.into()));
                    return Poll::Ready(Some(merged.ok_or(ReplyError::NotMerged)));
                }
                Form::Events => {
                    if let Some(events) = self.whole_events() {
                        return Poll::Ready(Some(Ok(Frame::data(events))));
                    }
                }
                Form::Whole(_) => {}
            }
            match ready!(Pin::new(&mut *body).poll_frame(cx)) {
                Some(Ok(frame)) => self.hold(frame)?,
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => {
                    if let Some(rest) = self.end() {
                        return Poll::Ready(Some(Ok(Frame::data(rest))));
                    }
                }
            }
        }
    }

    fn hold(&mut self, frame: Frame<Bytes>) -> Result<(), ReplyError> {
        let piece = frame.into_data().unwrap_or_default();
        if self.held.len() + piece.len() > MAX_ANSWER {
            return Err(ReplyError::NotMerged);
        }
        self.held.extend_from_slice(&piece);
        Ok(())
    }

    /// The body has ended: the whole is merged now, and a stream may have left an unfinished event.
    fn end(&mut self) -> Option<Bytes> {
        let held = self.held.split().freeze();
        match std::mem::replace(&mut self.form, Form::Done) {
            Form::Whole(pool) => {
                let logprobs = Arc::clone(&self.logprobs);
                let merge = move || logprobs.merge(&held, &mut BTreeSet::new());
                let merging = async move { pool.run(merge).await };
                self.form = Form::Merged(merging.boxed());
                None
            }
            _ => Some(held).filter(|held| !held.is_empty()),
        }
    }

    /// The events that have come whole, merged.
    fn whole_events(&mut self) -> Option<Bytes> {
        let ends = EVENT_ENDS.iter().filter_map(|end| {
            let at = memmem::rfind(&self.held[self.searched..], end)?;
            Some(self.searched + at + end.len())
        });
        let Some(end) = ends.max() else {
            self.searched = self.held.len().saturating_sub(PART_OF_END);
            return None;
        };
        self.searched = 0;
        let events = self.held.split_to(end);
        let mut merged = Vec::with_capacity(events.len());
        for line in events.split_inclusive(|byte| *byte == b'\n') {
            match line.strip_prefix(b"data: ") {
                Some(data) => {
                    merged.extend_from_slice(b"data: ");
                    let data = self.logprobs.merge(data, &mut self.echoed);
                    merged.extend(data);
                }
                None => merged.extend_from_slice(line),
            }
        }
        Some(merged.into())
    }
}
