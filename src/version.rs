//! The version, the build, and the names of tool-call parsers.

use pyo3::prelude::*;

/// The tool-call parsers that `--tool-call-parser` accepts, sorted.
pub(crate) const TOOL_CALL_PARSERS: [&str; 13] = [
    "deepseek",
    "glm45_moe",
    "glm47_moe",
    "json",
    "kimik2",
    "llama",
    "minimax_m2",
    "mistral",
    "passthrough",
    "pythonic",
    "qwen",
    "qwen_coder",
    "step3",
];

/// Name and version, one line.
#[pyfunction]
pub(crate) fn get_version_string() -> &'static str {
    concat!("sgl-model-gateway ", env!("CARGO_PKG_VERSION"))
}

/// Name and version, then the build's time, mode, target, commit and compiler.
#[pyfunction]
pub(crate) fn get_verbose_version_string() -> &'static str {
    concat!(
        "sgl-model-gateway ",
        env!("CARGO_PKG_VERSION"),
        "\n\nBuild:\n  Time: ",
        env!("BUILD_TIME"),
        "\n  Mode: ",
        env!("BUILD_MODE"),
        "\n  Target: ",
        env!("BUILD_TARGET"),
        "\n\nVersion control:\n  Branch: ",
        env!("BUILD_BRANCH"),
        "\n  Commit: ",
        env!("BUILD_COMMIT"),
        "\n  Status: ",
        env!("BUILD_STATUS"),
        "\n\nCompiler:\n  rustc: ",
        env!("BUILD_RUSTC"),
        "\n  cargo: ",
        env!("BUILD_CARGO"),
    )
}

/// The names of the tool-call parsers, sorted.
#[pyfunction]
pub(crate) fn get_available_tool_call_parsers() -> Vec<&'static str> {
    TOOL_CALL_PARSERS.to_vec()
}
