//! One prompt's leg, with all that it needs.

use std::sync::Arc;
use std::time::Duration;

use super::leg_failure::{Cause, LegFailure, Step};
use super::legs::Leg;
use super::protocol::KvCache;
use super::target::Target;
use crate::server::http::error_response::{ErrorResponse, Shape};
use crate::server::runtime::sequence::{InferenceRequest, PromptStart, Sequence};
use crate::server::runtime::worker::Worker;

/// A leg to run.
#[derive(Debug)]
pub(crate) struct LegJob {
    pub(crate) worker: Arc<Worker>,
    pub(crate) request: Arc<InferenceRequest>,
    pub(crate) prompt_index: usize,
    pub(crate) copies: usize,
    pub(crate) target: Target,
    pub(crate) shape: Shape,
    pub(crate) leg: Leg,
}

impl LegJob {
    /// Starts the prompt's sequences; `computed` is its KV cache if another worker computed it.
    pub(crate) fn start(&self, computed: Option<KvCache>) -> Result<Vec<Sequence>, ErrorResponse> {
        let start = PromptStart {
            prompt_index: self.prompt_index,
            copies: self.copies,
            rank: Some(self.leg.about().rank),
            computed,
        };
        let mut sequences = Vec::with_capacity(self.copies);
        self.request
            .start_prompt(&self.worker, &start, self.shape, &mut sequences)?;
        Ok(sequences)
    }

    /// The sequences, the first of which holds the leg.
    pub(crate) fn finish(self, mut sequences: Vec<Sequence>) -> Vec<Sequence> {
        if let Some(first) = sequences.first_mut() {
            first.set_leg(self.leg);
        }
        sequences
    }

    /// The leg's end by a failure.
    pub(crate) fn failure(&self, step: Step, cause: Cause) -> ErrorResponse {
        let about = self.leg.about();
        let failure = LegFailure::Transfer {
            step,
            rank: about.rank,
            rid: Arc::clone(&about.rid),
            room: about.room,
            cause,
        };
        to_response(&failure, self.shape)
    }

    /// A time-out of this length.
    pub(crate) fn timed_out(&self, seconds: f64, state: &'static str) -> Cause {
        let room = self.leg.about().room;
        Cause::TimedOut {
            room,
            seconds,
            state,
        }
    }
}

/// The response to a request whose leg failed: 400 in the endpoint's shape, 500 mostly in OpenAI's.
pub(crate) fn to_response(failure: &LegFailure, shape: Shape) -> ErrorResponse {
    if failure.is_clients() {
        return ErrorResponse::bad_request(shape, failure);
    }
    let shape = match shape {
        Shape::Anthropic => shape,
        _ => Shape::Flat,
    };
    ErrorResponse::internal(shape, failure)
}

/// A time of the options.
pub(crate) fn seconds(value: f64) -> Duration {
    Duration::from_secs_f64(value)
}
