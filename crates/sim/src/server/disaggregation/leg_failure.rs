//! Why a leg of a pair fails, in SGLang's words.

use std::sync::Arc;

use thiserror::Error;

/// A leg that ends without a result.
#[derive(Clone, Debug, Error, PartialEq)]
pub(crate) enum LegFailure {
    #[error(
        "Invalid request: Disaggregated request received without bootstrap room id. recv_req.rid='{rid}'"
    )]
    NoRoom { rid: Arc<str> },
    #[error("Duplicate request ID detected: {rid}")]
    DuplicateRid { rid: Arc<str> },
    /// SGLang's scheduler dies of such a request.
    #[error("{0}")]
    Fatal(&'static str),
    #[error("list index out of range")]
    TooFewRooms,
    #[error(
        "{step} failed for request rank={rank} {prefix}req.rid='{rid}' {prefix}req.bootstrap_room={room} \
         with exception KVTransferError(bootstrap_room={room}): {cause}",
        prefix = step.prefix()
    )]
    Transfer {
        step: Step,
        rank: u32,
        rid: Arc<str>,
        room: i128,
        cause: Cause,
    },
    #[error("Metadata corruption detected - bootstrap_room mismatch")]
    WrongRoom,
}

impl LegFailure {
    /// Whether the request is at fault (400), not the pair (500).
    pub(crate) fn is_clients(&self) -> bool {
        matches!(
            self,
            Self::NoRoom { .. } | Self::DuplicateRid { .. } | Self::Fatal(_)
        )
    }
}

/// What failed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(crate) enum Step {
    #[error("Prefill bootstrap")]
    PrefillBootstrap,
    #[error("Prefill transfer")]
    PrefillTransfer,
    #[error("Decode handshake")]
    DecodeHandshake,
    #[error("Decode transfer")]
    DecodeTransfer,
}

impl Step {
    /// How SGLang's messages get at the request.
    fn prefix(self) -> &'static str {
        match self {
            Self::PrefillBootstrap | Self::PrefillTransfer => "",
            Self::DecodeHandshake | Self::DecodeTransfer => "decode_req.",
        }
    }
}

/// Why it failed.
#[derive(Clone, Debug, Error, PartialEq)]
pub(crate) enum Cause {
    #[error("Request {room} timed out after {seconds:.1}s in KVPoll.{state}")]
    TimedOut {
        room: i128,
        seconds: f64,
        state: &'static str,
    },
    #[error("Aborted by AbortReq.")]
    Aborted,
    #[error("Lost connection with prefill instance (bootstrap_addr: {address})")]
    LostPrefill { address: String },
    #[error("Failed due to an unknown reason from another rank")]
    Partner,
}
