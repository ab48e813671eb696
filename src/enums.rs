//! The enums of the option surface. The order of members is their number.

use pyo3::prelude::*;
use serde::Serialize;

/// How a worker is chosen.
#[pyclass(
    eq,
    frozen,
    hash,
    skip_from_py_object,
    module = "sgl_model_gateway.sgl_model_gateway_rs"
)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PolicyType {
    Random,
    RoundRobin,
    CacheAware,
    PowerOfTwo,
    Bucket,
    Manual,
    ConsistentHashing,
    PrefixHash,
    LeastLoad,
}

/// What kind of server stands behind the gateway.
#[pyclass(
    eq,
    frozen,
    hash,
    skip_from_py_object,
    module = "sgl_model_gateway.sgl_model_gateway_rs"
)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum BackendType {
    Sglang,
    Openai,
}

/// Where responses and conversations are kept. `None` is reached with `getattr`.
#[pyclass(
    eq,
    frozen,
    hash,
    skip_from_py_object,
    module = "sgl_model_gateway.sgl_model_gateway_rs"
)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum HistoryBackendType {
    Memory,
    None,
    Oracle,
    Postgres,
    Redis,
}

/// What a control-plane key may do.
#[pyclass(
    name = "PyRole",
    eq,
    frozen,
    hash,
    from_py_object,
    module = "sgl_model_gateway.sgl_model_gateway_rs"
)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    Admin,
    User,
}

/// What `__reduce__` gives back: call this with these.
type Reduced<'py> = (Bound<'py, PyAny>, (Bound<'py, PyAny>, String));

/// A member pickles and copies as `getattr(Class, "Member")`.
fn reduce<'py>(member: &Bound<'py, PyAny>) -> PyResult<Reduced<'py>> {
    let getattr = member.py().import("builtins")?.getattr("getattr")?;
    let shown = member.repr()?.to_string();
    let name = shown
        .rsplit_once('.')
        .map_or(shown.as_str(), |(_, name)| name);
    Ok((getattr, (member.get_type().into_any(), name.to_owned())))
}

macro_rules! copyable {
    ($($class:ident),+) => {$(
        #[pymethods]
        impl $class {
            fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Reduced<'py>> {
                reduce(slf.as_any())
            }
        }
    )+};
}

copyable!(PolicyType, BackendType, HistoryBackendType, Role);
