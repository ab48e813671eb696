//! A prompt from Python: text or token ids.

use ::routing::Prompt;
use pyo3::exceptions::{PyOverflowError, PyTypeError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::{PyByteArray, PyBytes};

use crate::errors;

/// A prompt from Python.
pub(super) enum Asked {
    /// A `str`, borrowed.
    Text(PyBackedStr),
    /// Token ids, four bytes each. Equal prefixes of tokens are equal prefixes of bytes, and the
    /// estimate for text, four bytes per token, is exact.
    Ids(Vec<u8>),
    /// No prompt.
    Nothing,
}

impl Asked {
    /// A `str` is text; any other iterable is token ids.
    pub(super) fn new(prompt: Option<&Bound<'_, PyAny>>) -> PyResult<Self> {
        let Some(prompt) = prompt else {
            return Ok(Self::Nothing);
        };
        if let Ok(text) = prompt.extract() {
            return Ok(Self::Text(text));
        }
        if prompt.is_instance_of::<PyBytes>() || prompt.is_instance_of::<PyByteArray>() {
            return Err(PyTypeError::new_err(
                "a prompt is text or token ids, not bytes",
            ));
        }
        ids(prompt).map(Self::Ids)
    }

    pub(super) fn prompt(&self) -> Prompt<'_> {
        let bytes = match self {
            Self::Text(text) => text.as_bytes(),
            Self::Ids(ids) => ids,
            Self::Nothing => b"",
        };
        Prompt::text([bytes, b"", b""])
    }
}

fn ids(tokens: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
    let mut bytes = Vec::with_capacity(tokens.len().unwrap_or(0).saturating_mul(4).min(1 << 24));
    for token in tokens.try_iter()? {
        let token = token?;
        let id = token.extract::<u32>().map_err(|error| {
            if error.is_instance_of::<PyOverflowError>(tokens.py()) {
                let message = format!("token id {token} is not from 0 to 2^32-1");
                return errors::range(tokens.py(), message);
            }
            error
        })?;
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    Ok(bytes)
}
