//! `crates/routing` as a library for Python: policies that place requests without a gateway.

mod asked;
mod fleet;
mod lease;
mod tunables;

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use ::routing::{Candidate, Candidates, Pick, Policy, PolicyKind, Request};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::{PyDict, PyList};
use pythonize::pythonize;

use asked::Asked;
use fleet::Fleet;
pub(crate) use lease::RoutingLease;
use tunables::Tunables;

/// A routing policy and the workers it chooses from. Safe to use from many threads.
#[pyclass(frozen, module = "sgl_model_gateway.sgl_model_gateway_rs")]
pub(crate) struct RoutingPolicy {
    kind: PolicyKind,
    policy: Box<dyn Policy>,
    fleet: RwLock<Fleet>,
    seed: u64,
    decisions: AtomicU64,
    started: Instant,
}

impl RoutingPolicy {
    fn request<'a>(&self, asked: &'a Asked, key: Option<&'a str>, seed: u64) -> Request<'a> {
        Request {
            prompt: asked.prompt(),
            routing_key: key,
            now: self.started.elapsed(),
            seed: self.seed ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            ..Request::default()
        }
    }

    /// Changes the fleet, for the policy and all later decisions.
    fn change(
        &self,
        py: Python<'_>,
        change: impl FnOnce(&mut Fleet) -> PyResult<()> + Send,
    ) -> PyResult<()> {
        py.detach(|| {
            let mut fleet = self.fleet.write().unwrap_or_else(PoisonError::into_inner);
            change(&mut fleet)?;
            fleet.publish();
            self.policy.set_members(&fleet.all());
            Ok(())
        })
    }

    fn read<T>(&self, look: impl FnOnce(&Fleet) -> T) -> T {
        look(&self.fleet.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn candidates(&self, exclude: &[PyBackedStr]) -> Arc<[Candidate]> {
        let ready = self.read(Fleet::ready);
        if exclude.is_empty() {
            return ready;
        }
        let excluded = |url: &str| exclude.iter().any(|excluded| &**excluded == url);
        let left = ready.iter().filter(|candidate| !excluded(&candidate.url));
        left.cloned().collect()
    }
}

#[pymethods]
impl RoutingPolicy {
    #[new]
    #[pyo3(signature = (policy = "cache_aware", **tunables))]
    fn new(py: Python<'_>, policy: &str, tunables: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        let tunables = Tunables::new(py, tunables)?;
        let names: Vec<_> = PolicyKind::ALL.iter().map(|kind| kind.as_str()).collect();
        let place = names
            .iter()
            .position(|name| *name == policy)
            .ok_or_else(|| {
                let choices = names.join(", ");
                PyValueError::new_err(format!("unknown policy '{policy}' (choose from {choices})"))
            })?;
        let kind = PolicyKind::ALL[place];
        Ok(Self {
            kind,
            policy: kind.build(&tunables.params()),
            fleet: RwLock::default(),
            seed: tunables
                .seed
                .unwrap_or_else(|| RandomState::new().hash_one(0)),
            decisions: AtomicU64::new(0),
            started: now(),
        })
    }

    /// The policy's name.
    #[getter]
    fn name(&self) -> &'static str {
        self.kind.as_str()
    }

    /// The workers' URLs, in order.
    #[getter]
    fn workers(&self, py: Python<'_>) -> Vec<String> {
        let urls = |fleet: &Fleet| {
            fleet
                .all()
                .iter()
                .map(|known| known.url.to_string())
                .collect()
        };
        py.detach(|| self.read(urls))
    }

    /// Adds a worker: ready, with an empty cache.
    fn add_worker(&self, py: Python<'_>, url: &str) -> PyResult<()> {
        self.change(py, |fleet| fleet.add(url))
    }

    /// Removes a worker and all knowledge of its cache. Its leases may be released later.
    fn remove_worker(&self, py: Python<'_>, url: &str) -> PyResult<()> {
        self.change(py, |fleet| fleet.remove(url))
    }

    /// Sets whether a worker is ready. Only ready workers are chosen.
    fn set_ready(&self, py: Python<'_>, url: &str, ready: bool) -> PyResult<()> {
        self.change(py, |fleet| fleet.set_ready(url, ready))
    }

    /// Records that a worker's cache is empty: it restarted, was flushed, or has new weights.
    fn flush_worker(&self, py: Python<'_>, url: &str) -> PyResult<()> {
        self.change(py, |fleet| fleet.flush(url))
    }

    /// Chooses a worker for text (a `str`), token ids or no prompt, and counts the request there.
    #[pyo3(signature = (prompt = None, key = None, exclude = Vec::new()))]
    #[expect(
        clippy::needless_pass_by_value,
        reason = "what an argument is extracted to"
    )]
    fn route(
        &self,
        py: Python<'_>,
        prompt: Option<&Bound<'_, PyAny>>,
        key: Option<&str>,
        exclude: Vec<PyBackedStr>,
    ) -> PyResult<RoutingLease> {
        let asked = Asked::new(prompt)?;
        let placed = py.detach(|| {
            let candidates = self.candidates(&exclude);
            let from = Candidates::new(&candidates)?;
            let seed = self.decisions.fetch_add(1, Relaxed);
            let request = self.request(&asked, key, seed);
            let Pick {
                candidate,
                matched_tokens,
                ..
            } = self.policy.pick(from, &request);
            Some(RoutingLease::new(
                candidate,
                matched_tokens,
                request.prompt.tokens(),
            ))
        });
        placed.ok_or_else(|| PyRuntimeError::new_err("no worker is ready"))
    }

    /// The costs that `route` would compare, best first, without a change of state. Empty for
    /// policies without costs.
    #[pyo3(signature = (prompt = None, key = None))]
    fn explain<'py>(
        &self,
        py: Python<'py>,
        prompt: Option<&Bound<'py, PyAny>>,
        key: Option<&str>,
    ) -> PyResult<Bound<'py, PyList>> {
        let asked = Asked::new(prompt)?;
        let rows = py.detach(|| {
            let candidates = self.candidates(&[]);
            let from = Candidates::new(&candidates)?;
            let seed = self.decisions.load(Relaxed);
            let request = self.request(&asked, key, seed);
            let ranked = self.policy.rank(from, &request);
            Some(ranked.iter().map(fleet::Row::from).collect::<Vec<_>>())
        });
        Ok(pythonize(py, &rows.unwrap_or_default())?.cast_into()?)
    }

    /// The requests in flight at every worker.
    fn loads<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let loads = py.detach(|| self.read(Fleet::loads));
        let all = PyDict::new(py);
        for (url, load) in loads {
            all.set_item(&*url, pythonize(py, &load)?)?;
        }
        Ok(all)
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        let workers = py.detach(|| self.read(|fleet| fleet.all().len()));
        format!("<RoutingPolicy {}: {workers} workers>", self.kind.as_str())
    }
}

/// The tunables of policies with their defaults.
#[pyfunction]
pub(crate) fn routing_option_defaults(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    Ok(pythonize(py, &Tunables::default())?)
}

#[expect(
    clippy::disallowed_methods,
    reason = "the moment that `now` of requests counts from"
)]
fn now() -> Instant {
    Instant::now()
}
