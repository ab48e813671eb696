"""The real SGLang on a CPU: where it is and how it is started. `make test-sglang` sets SGLANG_VENV."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

VENV = os.environ.get("SGLANG_VENV", "")
REPOSITORY = Path(__file__).parents[2]
SHIM = REPOSITORY / "py_test" / "real_sglang" / "shim"
LOADING = 400.0  # seconds
FLAGS = (
    "--device cpu --dtype float32 --attention-backend torch_native --sampling-backend pytorch --skip-server-warmup "
    "--disable-overlap-schedule --max-total-tokens 8192 --served-model-name tiny"
)
ENVIRONMENT = {
    "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{SHIM}",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}
ONLY_WITH_SGLANG = [
    pytest.mark.skipif(not VENV, reason="SGLANG_VENV is not set; see `make test-sglang`"),
    pytest.mark.timeout(2 * LOADING),
]
