//! An inference request, ready to go to workers.

use http::request;

use super::request::BufferedRequest;
use super::request_body::{self, WholeBody};
use super::request_head;
use super::translate::dialect;
use crate::config::LiveSection;
use crate::endpoint::Inference;
use crate::error::Error;

/// An inference request whose head may go to a worker.
#[derive(Debug)]
pub(super) struct PreparedRequest {
    pub(super) row: &'static Inference,
    pub(super) parts: request::Parts,
    /// Its share of the memory is held as long as the request.
    pub(super) body: WholeBody,
    /// The options in force when it came.
    pub(super) live: LiveSection,
}

impl PreparedRequest {
    /// Prepares the head of a request for workers.
    ///
    /// # Errors
    /// A body that cannot be read.
    pub(super) fn new(
        row: &'static Inference,
        buffered: BufferedRequest,
        live: LiveSection,
    ) -> Result<Self, Error> {
        let BufferedRequest { mut parts, body } = buffered;
        request_head::prepare(&mut parts);
        if let Some(dialect) = dialect(row.reply) {
            dialect.request(&mut parts);
        }
        request_body::check_declared(row.undeclared, &parts.headers)?;
        request_body::check_encoding(&parts.headers)?;
        Ok(Self {
            row,
            parts,
            body,
            live,
        })
    }
}
