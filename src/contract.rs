//! The options as data: for the signature, for attributes, and for the test that compares flags,
//! `RouterArgs`, `Router` keywords and `gateway::Options`.

use std::collections::BTreeMap;

use gateway::{Access, Options};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use pythonize::pythonize;
use serde_json::{Map, Value, json};

use crate::enums::{BackendType, Enum, HistoryBackendType, PolicyType};
use crate::version::TOOL_CALL_PARSERS;
use crate::{errors, words};

/// The defaults of the constructor that differ from the command line, for compatibility. A
/// `Router` built in a script listens on port 3001, waits ten minutes for its workers, and uses
/// `round_robin`.
pub(crate) fn overrides() -> Map<String, Value> {
    Map::from_iter([
        ("policy".to_owned(), json!("round_robin")),
        ("port".to_owned(), json!(3001)),
        ("worker_startup_timeout_secs".to_owned(), json!(600)),
    ])
}

/// The names of all options, in positional order.
pub(crate) fn names() -> Vec<String> {
    Options::NAMES.iter().map(ToString::to_string).collect()
}

/// One option as Python sees it: enums as members, secrets as `"MASKED"` or `None`.
pub(crate) fn shown<'py>(
    py: Python<'py>,
    options: &Options,
    name: &str,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let mut all = serde_json::to_value(options).map_err(errors::bug)?;
    let Some(value) = all.get_mut(name).map(Value::take) else {
        return Ok(None);
    };
    let object = match (name, value.as_str()) {
        _ if value.is_null() => py.None().into_bound(py),
        ("policy" | "prefill_policy" | "decode_policy", Some(word)) => PolicyType::named(py, word)?,
        ("backend", Some(word)) => BackendType::named(py, word)?,
        ("history_backend", Some(word)) => HistoryBackendType::named(py, word)?,
        _ if Options::SECRET.contains(&name) => "MASKED".into_pyobject(py)?.into_any(),
        _ => pythonize(py, &value)?,
    };
    Ok(Some(object))
}

/// The names of all options, in the positional order of `Router(...)`.
#[pyfunction]
pub(crate) fn option_names() -> Vec<String> {
    names()
}

/// Every route: method, path, and the right that it needs, as the documents name it.
#[pyfunction]
pub(crate) fn routes() -> Vec<(String, &'static str, &'static str)> {
    let right = |access| match access {
        Access::Probe => "probe",
        Access::Info => "info",
        Access::Inference => "inference",
        Access::Control => "control",
        Access::Engine => "engine",
    };
    let routes = gateway::route_table().into_iter();
    let row = |route: gateway::Route| (route.method.to_string(), route.path, right(route.access));
    routes.map(row).collect()
}

/// Every option's default, as plain values.
#[pyfunction]
pub(crate) fn option_defaults(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    Ok(pythonize(py, &Options::default())?)
}

/// The words of every option that can only be set to one of several: the choices of its flag.
#[pyfunction]
pub(crate) fn option_choices() -> BTreeMap<&'static str, Vec<String>> {
    let typed = Options::NAMES
        .iter()
        .map(|name| (*name, words::of_option(name)));
    // A parser's name is a plain string for Rust, because none is built yet.
    let parsers = TOOL_CALL_PARSERS.map(str::to_owned).to_vec();
    typed
        .filter(|(_, words)| !words.is_empty())
        .chain([("tool_call_parser", parsers)])
        .collect()
}

/// Those defaults of `Router(...)` that differ from `option_defaults()`.
#[pyfunction]
pub(crate) fn constructor_defaults(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    Ok(pythonize(py, &overrides())?.cast_into()?)
}
