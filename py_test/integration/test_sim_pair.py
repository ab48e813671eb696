"""Simulated prefill and decode workers, as processes and as objects."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support.client import call, get_json

from sgl_model_gateway.sgl_model_gateway_rs import SimWorker

PREFILL = ("--disaggregation-mode", "prefill", "--disaggregation-bootstrap-port", "0")


def test_a_pair_of_workers_answers_like_one() -> None:
    prefill = SimWorker(disaggregation_mode="prefill", disaggregation_bootstrap_port=0)
    decode = SimWorker(disaggregation_mode="decode")
    with prefill, decode, SimWorker() as alone, ThreadPoolExecutor() as pool:
        assert decode.bootstrap_port is None
        pair = {"bootstrap_host": "127.0.0.1", "bootstrap_port": prefill.bootstrap_port, "bootstrap_room": 7}
        body = {"text": "once", "sampling_params": {"max_new_tokens": 5}}
        first = pool.submit(call, prefill.url, "POST", "/generate", body | pair)
        _, whole = call(decode.url, "POST", "/generate", body | pair)
        _, same = call(alone.url, "POST", "/generate", body)
        assert whole["text"] == same["text"]
        assert first.result()[1]["meta_info"]["completion_tokens"] == 1
        assert prefill.failure is None


def test_a_prefill_process_names_its_bootstrap_port(run: Any) -> None:
    child = run("-m", "sgl_model_gateway.sim_worker", "--port", "0", *PREFILL)
    url = child.line().split()[-1]
    line = child.line()
    assert line.startswith("bootstrap server listening on port ")
    assert get_json(f"{url}/server_info")["disaggregation_bootstrap_port"] == int(line.split()[-1])


def test_a_process_that_a_request_killed_says_why_and_ends_with_code_1(run: Any) -> None:
    child = run("-m", "sgl_model_gateway.sim_worker", "--port", "0", *PREFILL)
    url = child.line().split()[-1]
    with pytest.raises(OSError):
        call(url, "POST", "/generate", {"text": "a", "bootstrap_host": ["h"], "bootstrap_room": [7]})
    lines, code = child.lines_until_end()
    assert code == 1 and "error: a list of bootstrap fields came with one prompt" in lines


def test_a_killed_worker_object_says_why() -> None:
    worker = SimWorker(disaggregation_mode="decode").start_background()
    with pytest.raises(OSError):
        call(worker.url, "POST", "/generate", {"text": "a", "bootstrap_room": 7})
    assert worker.wait(10) and not worker.running
    assert worker.failure == "a bootstrap room came without a bootstrap host"
