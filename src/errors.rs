//! Errors as Python exceptions: a wrong type is `TypeError`, a configuration mistake is
//! `ValueError`, a number out of range is `ValueError` and `OverflowError` in one, and a problem
//! of the environment is `RuntimeError`.

use gateway::StartError;
use gateway::config::{ConfigError, plain_words};
use pyo3::exceptions::{PyOverflowError, PyRuntimeError, PySystemError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyType};

/// The exception class for a number out of range.
pub(crate) fn range_error_type(py: Python<'_>) -> PyResult<Bound<'_, PyType>> {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let class = CLASS.get_or_try_init(py, || {
        let bases = (
            py.get_type::<PyValueError>(),
            py.get_type::<PyOverflowError>(),
        );
        let names = PyDict::new(py);
        names.set_item("__module__", "sgl_model_gateway.sgl_model_gateway_rs")?;
        names.set_item("__doc__", "An integer option is out of its range.")?;
        let class = py
            .get_type::<PyType>()
            .call1(("OptionRangeError", bases, names))?;
        PyResult::Ok(class.cast_into::<PyType>()?.unbind())
    })?;
    Ok(class.bind(py).clone())
}

/// The error for a number out of range.
pub(crate) fn range(py: Python<'_>, message: String) -> PyErr {
    match range_error_type(py) {
        Ok(class) => PyErr::from_type(class, message),
        Err(error) => error,
    }
}

/// The error for a configuration that breaks a rule.
pub(crate) fn rule(error: &ConfigError) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// The error for a gateway that could not start.
pub(crate) fn start(error: &StartError) -> PyErr {
    match error {
        StartError::Config(error) => rule(error),
        StartError::Environment { .. } => PyRuntimeError::new_err(error.to_string()),
    }
}

/// Words of messages, and the words for them in Python.
const PYTHON_WORDS: [(&str, &str); 2] = [
    ("invalid type: null", "invalid type: None"),
    ("expected a mapping", "expected a dict"),
];

/// The error for one keyword that serde refused. Serde's errors have no kinds, so the wording
/// decides on the exception class.
pub(crate) fn keyword(py: Python<'_>, place: &str, error: &serde_json::Error) -> PyErr {
    let text = error.to_string();
    let words = PYTHON_WORDS.iter();
    let plain = words.fold(plain_words(&text), |text, (plain, python)| {
        text.replace(plain, python)
    });
    let message = format!("{place}: {plain}");
    if text.starts_with("invalid type") {
        PyTypeError::new_err(message)
    } else if text.starts_with("invalid value: integer") {
        range(py, message)
    } else {
        PyValueError::new_err(message)
    }
}

/// The error for a bug in this package.
pub(crate) fn bug(error: impl std::fmt::Display) -> PyErr {
    PySystemError::new_err(error.to_string())
}
