"""bench/fit_engine.py finds the costs that a simulated worker runs with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sgl_model_gateway.sgl_model_gateway_rs import SimWorker

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import fit_engine  # noqa: E402

# Large against the jitter of timers and sockets on a busy machine.
COSTS = {
    "prefill_base_ms": 40.0,
    "prefill_token_us": 100.0,
    "prefill_context_ns": 100.0,
    "decode_base_ms": 10.0,
    "decode_sequence_us": 2000.0,
    "decode_context_ns": 2000.0,
}


def test_fit_finds_the_costs_of_a_simulated_worker() -> None:
    with SimWorker(port=0, engine_model="shared", engine=COSTS, kv_cache_tokens=200_000) as worker:
        firsts, steps = fit_engine.measure(worker.url, [1, 2, 4], [200, 1000, 3000], tokens=12, repeats=3)
    found = fit_engine.costs(firsts, steps)
    assert found == pytest.approx(COSTS, rel=0.25)
    worst = max(map(abs, fit_engine.errors(steps, fit_engine.fit(steps))))
    assert worst < 0.15


def test_samples_that_are_all_alike_are_refused() -> None:
    sample = fit_engine.Sample((1.0, 2.0, 4.0), 3.0)
    with pytest.raises(RuntimeError, match="too much alike"):
        fit_engine.fit([sample, sample])


def test_factors_are_never_negative() -> None:
    samples = [fit_engine.Sample((1.0, size, size * size), 10.0 - size) for size in (1.0, 2.0, 3.0, 4.0)]
    assert min(fit_engine.fit(samples)) >= 0
