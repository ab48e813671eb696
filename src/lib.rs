//! The Python door: the only Rust that knows Python exists.
//!
//! `router` is the class scripts use, `convert` brings keywords into `gateway::Options`,
//! `errors` brings errors out, `running` and `signals` are the life of a server in a process
//! that belongs to Python. `simulate` and `routing` are routing without a gateway.

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

/// The extension module of the package.
#[pyo3::pymodule]
mod sgl_model_gateway_rs {
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::contract::{constructor_defaults, option_choices, option_defaults, option_names};
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

    /// Writes out the log lines that still wait.
    #[pyfunction]
    #[pyo3(name = "_close_log")]
    fn close_log(py: Python<'_>) {
        py.detach(gateway::close_log);
    }

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        crate::enums::add_members(module.py())?;
        // One class, two names: `PyRole` is what programs import, `Role` what documents say.
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
        // Lines are written in the background; the last ones must not be lost at exit.
        let at_exit = module.py().import("atexit")?;
        at_exit.call_method1("register", (module.getattr("_close_log")?,))?;
        let range_error = crate::errors::range_error_type(module.py())?;
        module.add("OptionRangeError", range_error)?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
