//! The configuration file, without a gateway: what it says, what it may say.

use gateway::Options;
use gateway::config::{self, Configuration};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::{contract, convert, errors};

/// Checks a configuration file together with options by keyword, of which those in `given` win over
/// the file. Nothing is opened or connected to.
///
/// Raises `ValueError`, a line for each mistake with its place in the file.
#[pyfunction]
pub(crate) fn check_config(keywords: &Bound<'_, PyDict>, given: Vec<String>) -> PyResult<()> {
    let py = keywords.py();
    let names = contract::names();
    let keywords = convert::arguments("Router", &names, &PyTuple::empty(py), Some(keywords))?;
    let base: Options = convert::options("Router", contract::overrides(), &keywords)?;
    let configuration = Configuration::new(base, given);
    let loaded = py.detach(|| configuration.load());
    loaded.map(|_| ()).map_err(|error| errors::rule(&error))
}

/// The JSON Schema of the configuration file, as text.
#[pyfunction]
pub(crate) fn config_schema() -> String {
    format!("{:#}", config::schema())
}
