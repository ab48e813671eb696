//! `Router`: the class that scripts use.

use std::net::SocketAddr;
use std::time::Duration;

use gateway::config::Configuration;
use gateway::{Gateway, Options};
use pyo3::exceptions::{PyAttributeError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple, PyType};

use crate::running::{Run, Running, Server, url};
use crate::{contract, convert, errors};

impl Router {
    fn of(keywords: &Bound<'_, PyDict>, given: Vec<String>) -> PyResult<Self> {
        let base: Options = convert::options("Router", contract::overrides(), keywords)?;
        let configuration = Configuration::new(base, given);
        let loaded = keywords.py().detach(|| configuration.load());
        let loaded = loaded.map_err(|error| errors::rule(&error))?;
        Ok(Self {
            configuration,
            options: loaded.options().clone(),
            running: Running::default(),
        })
    }
}

impl Server for Gateway {
    fn addr(&self) -> SocketAddr {
        Self::addr(self)
    }

    fn lame_duck(&self) {
        Self::lame_duck(self);
    }

    fn drain(&self) {
        Self::drain(self);
    }

    fn abort(&self) {
        Self::abort(self);
    }

    fn hang_up(&self) -> bool {
        self.reload_file()
    }

    fn wait(&self, timeout: Duration) -> bool {
        Self::wait(self, timeout)
    }

    fn failure(&self) -> Option<String> {
        Self::failure(self).map(str::to_owned)
    }
}

/// A gateway in this process. Takes every option as a keyword, `worker_urls` first.
///
/// `start()` serves until a signal or `stop()` ends it; `start_background()` and `with` serve
/// while the script goes on. Every option reads as an attribute; one that holds a secret reads
/// as "MASKED".
#[pyclass(frozen, module = "sgl_model_gateway.sgl_model_gateway_rs")]
pub(crate) struct Router {
    configuration: Configuration,
    /// As they were when the router was made; a reload may change those of the gateway.
    options: Options,
    running: Running<Gateway>,
}

#[pymethods]
impl Router {
    #[new]
    #[pyo3(signature = (*args, **kwargs))]
    fn new(args: &Bound<'_, PyTuple>, kwargs: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        let given = convert::arguments("Router", &contract::names(), args, kwargs)?;
        // A file may name them.
        if !given.contains("worker_urls")? && !given.contains("config")? {
            let message = "Router() missing 1 required argument: 'worker_urls'";
            return Err(PyTypeError::new_err(message));
        }
        let names: Vec<String> = given.keys().extract()?;
        Self::of(&given, names)
    }

    /// A router of all options by keyword, of which those in `given` win over the configuration file.
    #[classmethod]
    #[pyo3(name = "_configured")]
    fn configured(
        _class: &Bound<'_, PyType>,
        keywords: &Bound<'_, PyDict>,
        given: Vec<String>,
    ) -> PyResult<Self> {
        let args = PyTuple::empty(keywords.py());
        let names = contract::names();
        let keywords = convert::arguments("Router", &names, &args, Some(keywords))?;
        Self::of(&keywords, given)
    }

    /// Built from the list of all options, so that `help()` and notebooks show them.
    #[classattr]
    fn __signature__(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
        let inspect = py.import("inspect")?;
        let parameter = inspect.getattr("Parameter")?;
        let kind = parameter.getattr("POSITIONAL_OR_KEYWORD")?;
        let defaults: Options =
            convert::options("Router", contract::overrides(), &PyDict::new(py))?;
        let parameters = PyList::empty(py);
        for name in Options::NAMES {
            let more = PyDict::new(py);
            if *name != "worker_urls" {
                more.set_item("default", contract::shown(py, &defaults, name)?)?;
            }
            parameters.append(parameter.call((*name, &kind), Some(&more))?)?;
        }
        inspect.getattr("Signature")?.call1((parameters,))
    }

    /// Serves until SIGINT, SIGTERM, SIGQUIT (in the main thread) or `stop()`. The first one lets
    /// requests in flight finish, the second ends them. SIGHUP reads the configuration file again;
    /// without one it stops, too.
    fn start(&self, py: Python<'_>) -> PyResult<()> {
        self.running.block(
            py,
            || Gateway::start_configured(&self.configuration),
            errors::start,
        )
    }

    /// Starts serving and returns the router.
    fn start_background<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, Self>> {
        let this = slf.get();
        this.running.launch(
            slf.py(),
            || Gateway::start_configured(&this.configuration),
            errors::start,
        )?;
        Ok(slf.clone())
    }

    /// Stops taking requests and lets those in flight finish; a second call ends them. Waits up
    /// to `timeout` seconds (`None`: as long as it takes); true once everything has stopped.
    #[pyo3(signature = (timeout = 0.0))]
    fn stop(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        self.running.stop(py, timeout)
    }

    /// Has the configuration file read again; what comes of it is in the log. False without a file.
    fn reload(&self, py: Python<'_>) -> PyResult<bool> {
        let run = self.running.require(py)?;
        Ok(run.with(false, Gateway::reload_file))
    }

    /// Waits for the end without asking for it; true once everything has stopped.
    #[pyo3(signature = (timeout = None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        self.running.wait(py, timeout)
    }

    /// Marks a worker as suspect: it gets no requests until a probe, sent at once, has passed.
    /// False if there is no such worker, or probes are off.
    fn suspect(&self, py: Python<'_>, worker_url: &str) -> bool {
        let running = self.running.current(py);
        let suspect =
            |run: &Run<_>| run.with(false, |gateway: &Gateway| gateway.suspect(worker_url));
        running.is_some_and(|run| py.detach(|| suspect(&run)))
    }

    /// Whether it is serving or draining.
    #[getter]
    fn running(&self, py: Python<'_>) -> bool {
        self.running.current(py).is_some()
    }

    /// Where it listens, as a URL that works on this machine.
    #[getter]
    fn url(&self, py: Python<'_>) -> PyResult<String> {
        let scheme = if self.options.server_cert_path.is_some() {
            "https"
        } else {
            "http"
        };
        Ok(url(scheme, self.running.require(py)?.addr))
    }

    /// Where Prometheus reads; `None` without a metrics listener.
    #[getter]
    fn metrics_url(&self, py: Python<'_>) -> PyResult<Option<String>> {
        let run = self.running.require(py)?;
        let addr = run.with(None, Gateway::metrics_addr);
        Ok(addr.map(|addr| url("http", addr) + "/metrics"))
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

    fn __getattr__<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
        contract::shown(py, &self.options, name)?.ok_or_else(|| {
            PyAttributeError::new_err(format!("'Router' object has no attribute '{name}'"))
        })
    }

    fn __dir__(slf: &Bound<'_, Self>) -> PyResult<Vec<String>> {
        let mut names: Vec<String> = slf.get_type().dir()?.extract()?;
        names.extend(contract::names());
        Ok(names)
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        match self.url(py) {
            Ok(url) => format!("<Router at {url}>"),
            Err(_) => "<Router, not running>".to_owned(),
        }
    }
}
