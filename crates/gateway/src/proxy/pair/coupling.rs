//! The other leg of a pair while the decode worker's answer is relayed.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http_body::{Body, Frame, SizeHint};
use tokio::time::timeout;

use super::aborts::LegGuard;
use super::merging::Merging;
use super::prefill::{PrefillLeg, amid_answer};
use crate::proxy::reply_error::ReplyError;

/// How long a prefill leg may outlive the reply.
const LINGER: Duration = Duration::from_secs(5);

/// The prefill leg that goes on beside a reply, and what ends the decode leg when the reply is
/// dropped.
pub(crate) struct Coupling {
    /// `None` once it has ended.
    pub(super) prefill: Option<PrefillLeg>,
    pub(super) decode: LegGuard,
    /// The decode worker has not said anything yet, so it may still wait for the prefill worker.
    pub(super) waits: bool,
    /// Puts a part of the prefill worker's answer into the reply, where the client asks for it.
    pub(super) merging: Option<Merging>,
}

impl std::fmt::Debug for Coupling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Coupling").finish_non_exhaustive()
    }
}

impl Coupling {
    /// The decode worker has said something.
    fn begin(&mut self) {
        self.waits = false;
        self.decode.set_begun();
    }

    /// The decode worker has everything, so the prefill worker is about to answer: its leg is not
    /// ended for that.
    fn let_prefill_end(&mut self) {
        if let Some(leg) = self.prefill.take() {
            tokio::spawn(timeout(LINGER, leg));
        }
    }

    /// The failure of the prefill leg, if it has failed and that matters.
    fn poll_failure(&mut self, cx: &mut Context<'_>) -> Option<ReplyError> {
        let leg = self.prefill.as_mut()?;
        match leg.poll_unpin(cx) {
            Poll::Pending => None,
            Poll::Ready(Ok(_)) => {
                self.prefill = None;
                None
            }
            Poll::Ready(Err(mut failure)) => {
                self.prefill = None;
                failure.in_flight.finish(amid_answer(failure.outcome));
                let worker = failure.in_flight.worker.url().to_string();
                self.waits.then_some(ReplyError::PrefillFailed { worker })
            }
        }
    }
}

/// A body that ends with an error when the other leg fails before it can be spared.
#[derive(Debug)]
pub(crate) struct Coupled<B> {
    body: B,
    /// `None` for a body of one worker alone.
    coupling: Option<Box<Coupling>>,
}

impl<B> Coupled<B> {
    pub(in crate::proxy) fn new(body: B, coupling: Option<Box<Coupling>>) -> Self {
        Self { body, coupling }
    }

    fn merging(&self) -> Option<&Merging> {
        self.coupling.as_ref()?.merging.as_ref()
    }
}

impl<B> Body for Coupled<B>
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
        if let Some(coupling) = &mut this.coupling
            && let Some(error) = coupling.poll_failure(cx)
        {
            this.coupling = None;
            return Poll::Ready(Some(Err(error)));
        }
        let merging = this.coupling.as_mut().and_then(|it| it.merging.as_mut());
        let polled = match merging {
            Some(merging) => merging.poll(cx, &mut this.body),
            None => Pin::new(&mut this.body).poll_frame(cx),
        };
        if let (Poll::Ready(Some(Ok(frame))), Some(coupling)) = (&polled, &mut this.coupling)
            && frame
                .data_ref()
                .is_some_and(|piece| !piece.starts_with(b":"))
        {
            coupling.begin();
        }
        let ended = matches!(polled, Poll::Ready(None)) || this.body.is_end_stream();
        if ended && let Some(coupling) = &mut this.coupling {
            coupling.decode.set_ended();
            coupling.let_prefill_end();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match self.merging() {
            Some(merging) => merging.is_done(),
            None => self.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self.merging() {
            Some(_) => SizeHint::default(),
            None => self.body.size_hint(),
        }
    }
}
