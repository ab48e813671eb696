//! Python's signal handlers, for as long as a server blocks the main thread.

use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::PyModule;

/// The signals that end a server.
const NAMES: [&str; 4] = ["SIGINT", "SIGTERM", "SIGQUIT", "SIGHUP"];

/// The number of SIGHUP on every platform that has it.
const SIGHUP: i32 = 1;
/// The number of SIGINT on every platform of Python.
const SIGINT: i32 = 2;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// Options are to be read again, or else a stop.
    HangUp,
    /// A stop by a person at a terminal.
    Interrupt,
    /// A stop.
    Stop,
}

/// A Python signal handler that records the signals it gets.
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

/// The recorder installed as handler, and the handlers it replaced.
pub(crate) struct Handlers<'py> {
    signal: Bound<'py, PyModule>,
    recorder: Bound<'py, Recorder>,
    previous: Vec<(i32, Bound<'py, PyAny>)>,
}

impl<'py> Handlers<'py> {
    /// Installs the recorder in the main thread. In another thread it does nothing, because
    /// Python does not allow handlers there.
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
            return Ok(()); // no SIGQUIT or SIGHUP on Windows
        }
        let number: i32 = self.signal.getattr(name)?.extract()?;
        let before = self.signal.call_method1("getsignal", (number,))?;
        if name == "SIGHUP" && before.eq(self.signal.getattr("SIG_IGN")?)? {
            return Ok(()); // `nohup` asks to outlive the terminal
        }
        // `None` is a handler that C code installed; Python cannot restore it.
        if !before.is_none() {
            self.signal
                .call_method1("signal", (number, &self.recorder))?;
            self.previous.push((number, before));
        }
        Ok(())
    }

    /// The signals after the first `seen` ones.
    pub(crate) fn since(&self, seen: usize) -> Vec<Signal> {
        let received = self.recorder.get().received();
        let signal = |number| match number {
            SIGHUP => Signal::HangUp,
            SIGINT => Signal::Interrupt,
            _ => Signal::Stop,
        };
        received.into_iter().skip(seen).map(signal).collect()
    }

    /// Restores the previous handlers, then calls them with the recorded signals. The default
    /// handlers are not called, because the server has already stopped as the signal demands.
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
