"""For tools that still call setuptools; `pip install .` goes through maturin (pyproject.toml)."""

import os
import re
import warnings
from pathlib import Path

from setuptools import find_packages, setup

version = re.search(r'^version = "(.+)"', Path("Cargo.toml").read_text(), re.M).group(1)
options = {"version": version, "packages": find_packages(include=["sgl_model_gateway", "sgl_model_gateway.*"])}
options["package_data"] = {"sgl_model_gateway": ["py.typed", "*.pyi"]}
if os.environ.get("SGLANG_ROUTER_BUILD_WITH_RUST", "1").lower() in ("0", "false", "no"):
    warnings.warn("building without Rust: no gateway can be started from this installation", stacklevel=1)
else:
    from setuptools_rust import Binding, RustExtension

    options["rust_extensions"] = [RustExtension("sgl_model_gateway.sgl_model_gateway_rs", binding=Binding.PyO3)]
setup(**options)
