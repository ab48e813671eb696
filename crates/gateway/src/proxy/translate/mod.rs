//! Whatever is not relayed byte for byte.

mod dialect;
mod rerank;

pub(super) use dialect::Dialect;

use crate::endpoint::ReplyFormat;

/// The dialect of an endpoint, if its replies are translated.
pub(super) fn dialect(reply: ReplyFormat) -> Option<&'static dyn Dialect> {
    match reply {
        ReplyFormat::Verbatim => None,
        ReplyFormat::Rerank => Some(&rerank::Rerank),
    }
}
