//! Whatever is not relayed byte for byte.

mod dialect;
mod rerank;

pub(super) use dialect::Dialect;

use crate::endpoint::Reply;

/// The dialect of an endpoint, if its replies are translated.
pub(super) fn dialect(reply: Reply) -> Option<&'static dyn Dialect> {
    match reply {
        Reply::Verbatim => None,
        Reply::Rerank => Some(&rerank::Rerank),
    }
}
