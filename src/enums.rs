//! The enums of the options. Each takes its members, their order and their names from a Rust
//! enum, so that a new variant there needs no change here or in Python.

use std::hash::{Hash, Hasher};
use std::mem::discriminant;

use gateway::config;
use pyo3::PyClass;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyDict;
use serde::Serialize;

use crate::{errors, words};

/// The result of `__reduce__`: a callable and its arguments.
type Reduced<'py> = (Bound<'py, PyAny>, (Bound<'py, PyAny>, String));

/// A Python enum whose members are those of a Rust enum.
pub(crate) trait Enum: PyClass {
    /// The only objects of this class, each with the word that options use for it.
    fn all(py: Python<'_>) -> PyResult<&[(String, Py<Self>)]>;

    /// The member that an option's word stands for.
    fn named<'py>(py: Python<'py>, word: &str) -> PyResult<Bound<'py, PyAny>> {
        let mut all = Self::all(py)?.iter();
        let (_, member) = all
            .find(|(known, _)| known == word)
            .ok_or_else(|| errors::bug(format!("no member is called {word}")))?;
        Ok(member.bind(py).clone().into_any())
    }
}

macro_rules! enums {
    ($($(#[doc = $doc:literal])+ $class:ident($python:literal) of $rust:ty;)+) => {
        /// Puts the members into their classes: `PolicyType.RoundRobin`.
        pub(crate) fn add_members(py: Python<'_>) -> PyResult<()> {
            $(for (word, member) in $class::all(py)? {
                py.get_type::<$class>().setattr(camel(word), member)?;
            })+
            Ok(())
        }

        $(
            $(#[doc = $doc])+
            #[pyclass(
                name = $python,
                eq,
                frozen,
                hash,
                from_py_object,
                module = "sgl_model_gateway.sgl_model_gateway_rs"
            )]
            #[derive(Clone, Copy, PartialEq, Eq, Serialize)]
            #[serde(transparent)]
            pub(crate) struct $class(pub(crate) $rust);

            impl Hash for $class {
                fn hash<H: Hasher>(&self, state: &mut H) {
                    discriminant(&self.0).hash(state);
                }
            }

            impl Enum for $class {
                fn all(py: Python<'_>) -> PyResult<&[(String, Py<Self>)]> {
                    static ALL: PyOnceLock<Vec<(String, Py<$class>)>> = PyOnceLock::new();
                    let all = ALL.get_or_try_init(py, || {
                        let values = words::of::<$rust>().into_iter();
                        let object = |(word, value)| Ok((word, Py::new(py, Self(value))?));
                        values.map(object).collect::<PyResult<_>>()
                    })?;
                    Ok(all)
                }
            }

            #[pymethods]
            impl $class {
                /// Every member by the name that options take, in the order of their numbers.
                #[staticmethod]
                fn members(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
                    let members = PyDict::new(py);
                    for (word, member) in Self::all(py)? {
                        members.set_item(word, member)?;
                    }
                    Ok(members)
                }

                fn __int__(&self, py: Python<'_>) -> PyResult<usize> {
                    let mut all = Self::all(py)?.iter();
                    all.position(|(_, member)| member.get() == self)
                        .ok_or_else(|| errors::bug(format!("{} is no member", self.__repr__())))
                }

                fn __repr__(&self) -> String {
                    let word = words::word(&self.0).unwrap_or_default();
                    format!("{}.{}", $python, camel(&word))
                }

                /// A member pickles and copies as `getattr(Class, "Member")`.
                fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<Reduced<'py>> {
                    let word = words::word(&self.0).unwrap_or_default();
                    let getattr = py.import("builtins")?.getattr("getattr")?;
                    Ok((getattr, (py.get_type::<Self>().into_any(), camel(&word))))
                }
            }
        )+
    };
}

enums! {
    /// How the gateway chooses a worker.
    PolicyType("PolicyType") of ::routing::PolicyKind;
    /// The kind of server behind the gateway.
    BackendType("BackendType") of config::Backend;
    /// Where responses and conversations are stored. `getattr` reaches the member `None`.
    HistoryBackendType("HistoryBackendType") of config::HistoryBackend;
    /// The rights of a control-plane key.
    Role("PyRole") of config::Role;
}

/// A word as the name of a member: `round_robin` is `RoundRobin`.
fn camel(word: &str) -> String {
    let parts = word.split('_').map(|part| {
        let (first, rest) = part.split_at(part.len().min(1));
        first.to_uppercase() + rest
    });
    parts.collect()
}
