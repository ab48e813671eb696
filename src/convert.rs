//! Makes options from Python keywords: by name, strictly typed; each error names its keyword.

use gateway::Options;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Number, Value};

use crate::enums::{BackendType, HistoryBackendType, PolicyType};
use crate::errors;
use crate::objects::{ControlPlaneAuthConfig, OracleConfig, PostgresConfig, RedisConfig};

/// Makes options from `base`, overridden by the given keywords. `class` is for messages.
pub(crate) fn options<T: DeserializeOwned>(
    class: &str,
    mut base: Map<String, Value>,
    given: &Bound<'_, PyDict>,
) -> PyResult<T> {
    for (name, value) in given {
        let name: String = name.extract()?;
        let place = format!("{class}() argument '{name}'");
        let json = to_json(&value, &place, 0)?;
        let alone = Value::Object(Map::from_iter([(name.clone(), json.clone())]));
        if let Err(error) = serde_path_to_error::deserialize::<_, T>(alone) {
            // Within a structured value, where in it.
            let place = format!("{class}() argument '{}'", error.path());
            return Err(blame(&value, &name, &place, error.inner()));
        }
        base.insert(name, json);
    }
    serde_json::from_value(Value::Object(base)).map_err(errors::bug)
}

/// The error for one keyword that serde refused.
fn blame(value: &Bound<'_, PyAny>, name: &str, place: &str, error: &serde_json::Error) -> PyErr {
    // A member of a wrong enum reaches serde as an unknown word; a secret must not be shown.
    if member(value).is_some() || Options::SECRET.contains(&name) {
        let class = value.get_type();
        return PyTypeError::new_err(format!("{place}: {class} does not fit here"));
    }
    errors::keyword(value.py(), place, error)
}

/// Deepest nesting of lists and dictionaries; a list may contain itself.
const MAX_DEPTH: usize = 64;

/// A Python value, within so many lists and dictionaries, as JSON.
fn to_json(value: &Bound<'_, PyAny>, place: &str, depth: usize) -> PyResult<Value> {
    if depth > MAX_DEPTH {
        let message = format!("{place}: is nested more than {MAX_DEPTH} levels deep");
        return Err(PyValueError::new_err(message));
    }
    if value.is_none() {
        return Ok(Value::Null);
    }
    if let Ok(flag) = value.cast::<PyBool>() {
        return Ok(Value::Bool(flag.is_true()));
    }
    if let Ok(text) = value.cast::<PyString>() {
        return Ok(Value::String(text.extract()?));
    }
    if let Ok(number) = value.cast::<PyFloat>() {
        return Number::from_f64(number.extract()?)
            .map(Value::Number)
            .ok_or_else(|| PyValueError::new_err(format!("{place}: must be a finite number")));
    }
    if let Some(json) = member(value).or_else(|| object(value)) {
        return json.map_err(errors::bug);
    }
    if value.is_instance_of::<PyList>() || value.is_instance_of::<PyTuple>() {
        let items = value
            .try_iter()?
            .map(|item| to_json(&item?, place, depth + 1));
        return items.collect::<PyResult<_>>().map(Value::Array);
    }
    if let Ok(mapping) = value.cast::<PyDict>() {
        let entry = |(key, value): (Bound<'_, PyAny>, Bound<'_, PyAny>)| {
            Ok((key.extract::<String>()?, to_json(&value, place, depth + 1)?))
        };
        let entries = mapping.iter().map(entry);
        return entries.collect::<PyResult<_>>().map(Value::Object);
    }
    integer(value, place)
}

/// An int, or an object that converts to one without loss (`__index__`).
fn integer(value: &Bound<'_, PyAny>, place: &str) -> PyResult<Value> {
    if let Ok(number) = value.extract::<i64>() {
        return Ok(number.into());
    }
    if let Ok(number) = value.extract::<u64>() {
        return Ok(number.into());
    }
    if value.is_instance_of::<PyInt>() {
        let message = format!("{place}: integer {value} is out of range");
        return Err(errors::range(value.py(), message));
    }
    let class = value.get_type();
    Err(PyTypeError::new_err(format!(
        "{place}: {class} does not fit here"
    )))
}

type Json = serde_json::Result<Value>;

fn as_class<T: pyo3::PyClass + Serialize>(value: &Bound<'_, PyAny>) -> Option<Json> {
    let object = value.cast::<T>().ok()?;
    Some(serde_json::to_value(object.as_unbound()))
}

/// A member of an enum of this package.
fn member(value: &Bound<'_, PyAny>) -> Option<Json> {
    as_class::<PolicyType>(value)
        .or_else(|| as_class::<BackendType>(value))
        .or_else(|| as_class::<HistoryBackendType>(value))
}

/// A configuration object of this package.
fn object(value: &Bound<'_, PyAny>) -> Option<Json> {
    as_class::<OracleConfig>(value)
        .or_else(|| as_class::<PostgresConfig>(value))
        .or_else(|| as_class::<RedisConfig>(value))
        .or_else(|| as_class::<ControlPlaneAuthConfig>(value))
}

/// Positional and keyword arguments as one dict, with the errors of a Python function.
pub(crate) fn arguments<'py>(
    class: &str,
    names: &[String],
    args: &Bound<'py, PyTuple>,
    kwargs: Option<&Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, PyDict>> {
    let all = PyDict::new(args.py());
    if args.len() > names.len() {
        return Err(PyTypeError::new_err(format!(
            "{class}() takes at most {} positional arguments ({} given)",
            names.len(),
            args.len()
        )));
    }
    for (name, value) in names.iter().zip(args) {
        all.set_item(name, value)?;
    }
    for (name, value) in kwargs.into_iter().flatten() {
        let text: String = name.extract()?;
        if !names.contains(&text) {
            return Err(unknown(args.py(), class, &text, names)?);
        }
        if all.contains(&name)? {
            return Err(PyTypeError::new_err(format!(
                "{class}() got multiple values for argument '{text}'"
            )));
        }
        all.set_item(name, value)?;
    }
    Ok(all)
}

/// The error for an unexpected keyword, with the most similar name as a hint.
fn unknown(py: Python<'_>, class: &str, name: &str, names: &[String]) -> PyResult<PyErr> {
    let near: Vec<String> = py
        .import("difflib")?
        .call_method1("get_close_matches", (name, names.to_vec(), 1))?
        .extract()?;
    let hint = near
        .first()
        .map(|near| format!(". Did you mean '{near}'?"))
        .unwrap_or_default();
    Ok(PyTypeError::new_err(format!(
        "{class}() got an unexpected keyword argument '{name}'{hint}"
    )))
}
