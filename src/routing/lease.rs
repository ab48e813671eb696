//! One request in flight at a worker, as a Python object.

use std::sync::{Arc, Mutex, PoisonError};

use ::routing::{Candidate, Lease};
use pyo3::prelude::*;
use pyo3::types::{PyAny, PyType};

/// The worker of a request. The request counts there until `release()`, the end of a `with`
/// block, or the end of this object.
#[pyclass(frozen, module = "sgl_model_gateway.sgl_model_gateway_rs")]
pub(crate) struct RoutingLease {
    worker: Arc<str>,
    matched_tokens: u64,
    prompt_tokens: u64,
    /// `None` once released.
    lease: Mutex<Option<Lease>>,
}

impl RoutingLease {
    pub(super) fn new(candidate: &Candidate, matched_tokens: u64, prompt_tokens: u64) -> Self {
        let uncached = prompt_tokens.saturating_sub(matched_tokens);
        Self {
            worker: Arc::clone(&candidate.url),
            matched_tokens,
            prompt_tokens,
            lease: Mutex::new(Some(candidate.load.lease(uncached))),
        }
    }

    /// Locks for a few instructions only, so the GIL may be held meanwhile.
    fn with<T>(&self, act: impl FnOnce(&mut Option<Lease>) -> T) -> T {
        act(&mut self.lease.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[pymethods]
impl RoutingLease {
    /// The worker's URL.
    #[getter]
    fn worker(&self) -> &str {
        &self.worker
    }

    /// Prompt tokens believed to be cached there.
    #[getter]
    fn matched_tokens(&self) -> u64 {
        self.matched_tokens
    }

    /// Prompt tokens in all: exact for token ids, estimated for text.
    #[getter]
    fn prompt_tokens(&self) -> u64 {
        self.prompt_tokens
    }

    /// Whether the request no longer counts.
    #[getter]
    fn released(&self) -> bool {
        self.with(|lease| lease.is_none())
    }

    /// Records that the response has begun: the prompt is no longer queued. Later calls do nothing.
    fn first_token(&self) {
        self.with(|lease| lease.as_mut().map(Lease::first_byte));
    }

    /// Ends the request. Later calls do nothing.
    fn release(&self) {
        self.with(Option::take);
    }

    fn __enter__<'py>(slf: &Bound<'py, Self>) -> Bound<'py, Self> {
        slf.clone()
    }

    #[pyo3(signature = (_class, _error, _traceback))]
    fn __exit__(
        &self,
        _class: Option<&Bound<'_, PyType>>,
        _error: Option<&Bound<'_, PyAny>>,
        _traceback: Option<&Bound<'_, PyAny>>,
    ) -> bool {
        self.release();
        false
    }

    fn __repr__(&self) -> String {
        let (matched, all) = (self.matched_tokens, self.prompt_tokens);
        format!(
            "<RoutingLease at {}: {matched} of {all} tokens cached>",
            self.worker
        )
    }
}
