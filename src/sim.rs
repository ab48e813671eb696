//! `SimWorker`: a simulated worker in this process, for demos and tests.

use std::net::SocketAddr;
use std::time::Duration;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyAny, PyDict, PyTuple, PyType};
use pythonize::pythonize;
use serde_json::{Map, Value};

use crate::running::{Running, Server, url};
use crate::{convert, errors};

/// A running simulated worker. It has nothing to drain, so it stops at once.
pub(crate) struct Worker(sim::SimWorker);

impl Server for Worker {
    fn addr(&self) -> SocketAddr {
        self.0.addr()
    }

    fn drain(&self) {
        self.0.stop();
    }

    fn abort(&self) {
        self.0.stop();
    }

    fn wait(&self, timeout: Duration) -> bool {
        self.0.wait(timeout)
    }

    fn failure(&self) -> Option<String> {
        self.0.crash_reason().map(str::to_owned)
    }
}

/// A simulated SGLang worker. Takes the options of `sim_option_defaults()` as keywords.
#[pyclass(frozen, module = "sgl_model_gateway.sgl_model_gateway_rs")]
pub(crate) struct SimWorker {
    options: sim::SimOptions,
    running: Running<Worker>,
}

impl SimWorker {
    fn starter(&self) -> impl FnOnce() -> Result<Worker, sim::SimError> + Send + use<> {
        let options = self.options.clone();
        move || sim::SimWorker::start(options).map(Worker)
    }
}

fn start_error(error: &sim::SimError) -> PyErr {
    PyRuntimeError::new_err(error.to_string())
}

#[pymethods]
impl SimWorker {
    #[new]
    #[pyo3(signature = (**kwargs))]
    fn new(py: Python<'_>, kwargs: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        let defaults = serde_json::to_value(sim::SimOptions::default()).map_err(errors::bug)?;
        let names: Vec<String> = match defaults {
            Value::Object(defaults) => defaults.into_iter().map(|(name, _)| name).collect(),
            _ => Vec::new(),
        };
        let given = convert::arguments("SimWorker", &names, &PyTuple::empty(py), kwargs)?;
        let options: sim::SimOptions = convert::options("SimWorker", Map::new(), &given)?;
        options
            .check()
            .map_err(|error| PyValueError::new_err(error.to_string()))?;
        Ok(Self {
            options,
            running: Running::default(),
        })
    }

    /// Serves until SIGINT, SIGTERM, SIGQUIT (in the main thread) or `stop()`.
    fn start(&self, py: Python<'_>) -> PyResult<()> {
        self.running.block(py, self.starter(), start_error)
    }

    /// Starts serving and returns the worker.
    fn start_background<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, Self>> {
        let this = slf.get();
        this.running.launch(slf.py(), this.starter(), start_error)?;
        Ok(slf.clone())
    }

    /// Stops; waits up to `timeout` seconds (`None`: as long as it takes); true once it is over.
    #[pyo3(signature = (timeout = 0.0))]
    fn stop(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        self.running.stop(py, timeout)
    }

    /// Waits for the end without asking for it; true once it is over.
    #[pyo3(signature = (timeout = None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        self.running.wait(py, timeout)
    }

    /// Whether it is serving.
    #[getter]
    fn running(&self, py: Python<'_>) -> bool {
        self.running.current(py).is_some()
    }

    /// Where it listens, as a URL that works on this machine.
    #[getter]
    fn url(&self, py: Python<'_>) -> PyResult<String> {
        Ok(url("http", self.running.require(py)?.addr))
    }

    /// The port of its bootstrap server; `None` unless it is a prefill worker.
    #[getter]
    fn bootstrap_port(&self, py: Python<'_>) -> PyResult<Option<u16>> {
        let run = self.running.require(py)?;
        Ok(run.with(None, |worker| worker.0.bootstrap_port()))
    }

    /// Why it stopped by itself; `None` unless a request killed it.
    #[getter]
    fn failure(&self, py: Python<'_>) -> Option<String> {
        self.running.failure(py)
    }

    fn __enter__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, Self>> {
        if slf.get().running(slf.py()) {
            return Ok(slf.clone());
        }
        Self::start_background(slf)
    }

    #[pyo3(signature = (_class, _error, _traceback))]
    fn __exit__(
        &self,
        _class: Option<&Bound<'_, PyType>>,
        _error: Option<&Bound<'_, PyAny>>,
        _traceback: Option<&Bound<'_, PyAny>>,
        py: Python<'_>,
    ) -> PyResult<bool> {
        self.running.lame_duck(py).map(|()| false)
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        match self.url(py) {
            Ok(url) => format!("<SimWorker at {url}>"),
            Err(_) => "<SimWorker, not running>".to_owned(),
        }
    }
}

/// Every option of a simulated worker with its default.
#[pyfunction]
pub(crate) fn sim_option_defaults(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    Ok(pythonize(py, &sim::SimOptions::default())?)
}
