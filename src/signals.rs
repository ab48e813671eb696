//! Python's signal handlers, for as long as a server blocks the main thread.

use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::PyModule;

/// The signals that end a server.
const NAMES: [&str; 3] = ["SIGINT", "SIGTERM", "SIGQUIT"];

/// Its number everywhere Python runs.
const SIGINT: i32 = 2;

/// A Python handler that writes down what it is called with.
#[pyclass(frozen)]
#[derive(Default)]
struct Recorder(Mutex<Vec<i32>>);

impl Recorder {
    fn received(&self) -> Vec<i32> {
        let received = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        received.clone()
    }
}

#[pymethods]
impl Recorder {
    fn __call__(&self, number: i32, _frame: &Bound<'_, PyAny>) {
        let mut received = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        received.push(number);
    }
}

/// Our handlers in place of the previous ones.
pub(crate) struct Handlers<'py> {
    signal: Bound<'py, PyModule>,
    recorder: Bound<'py, Recorder>,
    previous: Vec<(i32, Bound<'py, PyAny>)>,
}

impl<'py> Handlers<'py> {
    /// Installs them in the main thread; Python allows no other, there this does nothing.
    pub(crate) fn install(py: Python<'py>) -> PyResult<Self> {
        let threading = py.import("threading")?;
        let mut handlers = Self {
            signal: py.import("signal")?,
            recorder: Bound::new(py, Recorder::default())?,
            previous: Vec::new(),
        };
        let here = threading.call_method0("current_thread")?;
        if here.is(&threading.call_method0("main_thread")?) {
            for name in NAMES {
                handlers.replace(name)?;
            }
        }
        Ok(handlers)
    }

    fn replace(&mut self, name: &str) -> PyResult<()> {
        if !self.signal.hasattr(name)? {
            return Ok(()); // no SIGQUIT on Windows
        }
        let number: i32 = self.signal.getattr(name)?.extract()?;
        let before = self.signal.call_method1("getsignal", (number,))?;
        // `None` is a handler that C code installed: Python could not put it back.
        if !before.is_none() {
            self.signal
                .call_method1("signal", (number, &self.recorder))?;
            self.previous.push((number, before));
        }
        Ok(())
    }

    /// The signals that have come in after so many others: whether each is an interrupt.
    pub(crate) fn since(&self, seen: usize) -> Vec<bool> {
        let received = self.recorder.get().received();
        let new = received.into_iter().skip(seen);
        new.map(|number| number == SIGINT).collect()
    }

    /// Puts the previous handlers back, then tells them what came in meanwhile. The default
    /// handlers are not told: the server has done what was asked for.
    pub(crate) fn restore(self) -> PyResult<()> {
        for (number, before) in &self.previous {
            self.signal.call_method1("signal", (*number, before))?;
        }
        let default = self.signal.getattr("default_int_handler")?;
        let received = self.recorder.get().received();
        for (number, before) in &self.previous {
            if received.contains(number) && before.is_callable() && !before.is(&default) {
                before.call1((*number, self.signal.py().None()))?;
            }
        }
        Ok(())
    }
}
