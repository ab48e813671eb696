//! The Python bindings: the only Rust code that knows Python.
//!
//! `router` is the class that scripts use. `convert` makes `gateway::Options` from keywords,
//! `errors` makes exceptions from errors. `running` and `signals` run a server in a Python
//! process. `simulate` and `routing` are routing without a gateway.

mod config;
mod contract;
mod convert;
mod enums;
mod errors;
mod objects;
mod router;
mod routing;
mod running;
mod signals;
mod sim;
mod simulate;
mod version;
mod words;

use pyo3::exceptions::PyImportError;
use pyo3::prelude::*;

/// The extension module of the package.
#[pyo3::pymodule]
mod sgl_model_gateway_rs {
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::config::{check_config, config_schema};
    #[pymodule_export]
    use crate::contract::{
        constructor_defaults, option_choices, option_defaults, option_names, routes,
    };
    #[pymodule_export]
    use crate::enums::{BackendType, HistoryBackendType, PolicyType, Role};
    #[pymodule_export]
    use crate::objects::{
        ApiKeyEntry, ControlPlaneAuthConfig, JwtConfig, OracleConfig, PostgresConfig, RedisConfig,
    };
    #[pymodule_export]
    use crate::router::Router;
    #[pymodule_export]
    use crate::routing::{RoutingLease, RoutingPolicy, routing_option_defaults};
    #[pymodule_export]
    use crate::sim::{SimWorker, sim_option_defaults};
    #[pymodule_export]
    use crate::simulate::{FleetTrace, fleet_option_defaults, fleet_policies, simulate_fleet};
    #[pymodule_export]
    use crate::version::{
        get_available_tool_call_parsers, get_verbose_version_string, get_version_string,
    };

    /// Writes the log lines that are still buffered.
    #[pyfunction]
    #[pyo3(name = "_close_log")]
    fn close_log(py: Python<'_>) {
        py.detach(gateway::close_log);
    }

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        crate::refuse_subinterpreters(module.py())?;
        crate::enums::add_members(module.py())?;
        // One class, two names: programs import `PyRole`, documents say `Role`.
        for name in [
            "Role",
            "ApiKeyEntry",
            "JwtConfig",
            "ControlPlaneAuthConfig",
            "OracleConfig",
            "PostgresConfig",
            "RedisConfig",
        ] {
            module.add(name, module.getattr(format!("Py{name}"))?)?;
        }
        // A background thread writes the lines; the last ones must not be lost at exit.
        let at_exit = module.py().import("atexit")?;
        at_exit.call_method1("register", (module.getattr("_close_log")?,))?;
        let range_error = crate::errors::range_error_type(module.py())?;
        module.add("OptionRangeError", range_error)?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}

/// The extension has threads of its own, which a sub-interpreter would wait for at its end.
fn refuse_subinterpreters(py: Python<'_>) -> PyResult<()> {
    // Named so up to Python 3.12, and since.
    let known = ["_xxsubinterpreters", "_interpreters"];
    let Some(interpreters) = known.iter().find_map(|name| py.import(*name).ok()) else {
        return Ok(());
    };
    let current = interpreters.call_method0("get_current")?;
    let main = interpreters.call_method0("get_main")?;
    if current.eq(main)? {
        return Ok(());
    }
    let message = "sgl_model_gateway works in the main interpreter only; use a process instead";
    Err(PyImportError::new_err(message))
}
