//! The fleet simulator: a trace, options as keywords, a report as a dict.

use std::ops::ControlFlow;
use std::path::PathBuf;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use pythonize::pythonize;
use serde_json::{Map, Value};
use sim::fleet::{
    self, CandidatePolicy, FleetOptions, PairPolicies, Report, TraceError, UnknownPolicy,
};

use crate::{convert, errors};

/// A trace in Mooncake's format; it is read once and can be replayed many times.
#[pyclass(frozen, module = "sgl_model_gateway.sgl_model_gateway_rs")]
pub(crate) struct FleetTrace(fleet::Trace);

#[pymethods]
impl FleetTrace {
    #[new]
    #[pyo3(signature = (path, limit = None))]
    #[expect(
        clippy::needless_pass_by_value,
        reason = "what an argument is extracted to"
    )]
    fn new(py: Python<'_>, path: PathBuf, limit: Option<usize>) -> PyResult<Self> {
        let read = py.detach(|| fleet::Trace::open(&path, limit.unwrap_or(usize::MAX)));
        match read {
            Ok(trace) => Ok(Self(trace)),
            Err(TraceError::Read(error)) => Err(error.into()),
            Err(error) => Err(PyValueError::new_err(error.to_string())),
        }
    }

    /// Whether the lines were in order of time; if not, they have been sorted.
    #[getter]
    fn was_sorted(&self) -> bool {
        self.0.was_sorted()
    }

    /// Seconds from the first request to the last.
    #[getter]
    fn span_secs(&self) -> f64 {
        self.0.span_ms() / 1000.0
    }

    fn __len__(&self) -> usize {
        self.0.len()
    }

    fn __repr__(&self) -> String {
        let (requests, secs) = (self.0.len(), self.span_secs());
        format!("<FleetTrace: {requests} requests in {secs:.1} s>")
    }
}

/// The policies that can be simulated by name. `charge_K` and `sized_K` can be, too, for any
/// number K or `auto`.
#[pyfunction]
pub(crate) fn fleet_policies() -> Vec<String> {
    let all = CandidatePolicy::all();
    all.iter().map(|policy| policy.name().to_owned()).collect()
}

/// Every option of a simulated fleet with its default.
#[pyfunction]
pub(crate) fn fleet_option_defaults(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    Ok(pythonize(py, &FleetOptions::default())?)
}

/// What is replayed.
enum Replay {
    Workers(CandidatePolicy),
    Pairs(PairPolicies),
}

impl Replay {
    fn named(policy: &str, options: &FleetOptions) -> Result<Self, UnknownPolicy> {
        if options.has_pairs() {
            PairPolicies::named(policy).map(Self::Pairs)
        } else {
            CandidatePolicy::named(policy).map(Self::Workers)
        }
    }

    fn run(
        &self,
        trace: &fleet::Trace,
        options: &FleetOptions,
        progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Option<Report> {
        match self {
            Self::Workers(policy) => fleet::simulate(trace, options, policy, progress),
            Self::Pairs(policies) => fleet::simulate_pairs(trace, options, policies, progress),
        }
    }
}

/// Replays a trace under one policy, `prefill+decode` for pairs. `progress` is called with the number of requests that have
/// arrived.
#[pyfunction]
#[pyo3(signature = (trace, policy, progress = None, **options))]
pub(crate) fn simulate_fleet<'py>(
    py: Python<'py>,
    trace: &FleetTrace,
    policy: &str,
    progress: Option<&Bound<'py, PyAny>>,
    options: Option<&Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, PyAny>> {
    let wrong = |error: &dyn std::error::Error| PyValueError::new_err(error.to_string());
    let options = fleet_options(py, options)?;
    options.check().map_err(|error| wrong(&error))?;
    let replay = Replay::named(policy, &options).map_err(|error| wrong(&error))?;
    let progress = progress.map(|progress| progress.clone().unbind());
    let mut raised = None;
    let mut tell = |arrived: usize| {
        let told = Python::attach(|py| {
            py.check_signals()?;
            let call = progress
                .as_ref()
                .map(|progress| progress.call1(py, (arrived,)));
            call.transpose().map(|_| ())
        });
        raised = told.err();
        if raised.is_some() {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    };
    let report = py.detach(|| replay.run(&trace.0, &options, &mut tell));
    if let Some(error) = raised {
        return Err(error);
    }
    match report {
        Some(report) => Ok(pythonize(py, &report)?),
        None => Err(PyRuntimeError::new_err(format!("{policy} cannot be built"))),
    }
}

fn fleet_options(py: Python<'_>, given: Option<&Bound<'_, PyDict>>) -> PyResult<FleetOptions> {
    let defaults = serde_json::to_value(FleetOptions::default()).map_err(errors::bug)?;
    let names: Vec<String> = match defaults {
        Value::Object(defaults) => defaults.into_iter().map(|(name, _)| name).collect(),
        _ => Vec::new(),
    };
    let given = convert::arguments("simulate_fleet", &names, &PyTuple::empty(py), given)?;
    convert::options("simulate_fleet", Map::new(), &given)
}
