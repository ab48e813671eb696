"""Signals end a blocking gateway: the first one drains it, the second cuts it short."""

from __future__ import annotations

import json
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support.client import get_json
from support.process import Process
from support.waiting import DEADLINE, wait_for

from sgl_model_gateway._demo.load import call

SERVE = """
import signal, sys, threading
from sgl_model_gateway.router import Router
{before}
gateway = Router(
    worker_urls={workers!r}, host="127.0.0.1", port=0, prometheus_port=0, log_level="error",
    worker_startup_check_interval=1, shutdown_grace_period_secs={grace},
)
def announce():
    while not gateway.running:
        pass
    print(gateway.url, flush=True)
threading.Thread(target=announce, daemon=True).start()
print("returned", gateway.start(), flush=True)
{after}
"""


def serve(run: Any, workers: list[str], before: str = "", after: str = "", grace: int = 1) -> tuple[Process, str]:
    child = run("-c", SERVE.format(workers=workers, before=before, after=after, grace=grace))
    return child, child.line()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGQUIT", "SIGHUP"])
def test_a_signal_ends_it_and_start_returns_none(run: Any, name: str) -> None:
    child, url = serve(run, [])
    assert url.startswith("http://127.0.0.1:")
    child.process.send_signal(getattr(signal, name))
    assert child.lines_until_end() == (["returned None"], 0)


def test_default_handlers_are_back_afterwards(run: Any) -> None:
    after = "print([signal.getsignal(n) for n in (2, 15)] == [signal.default_int_handler, signal.SIG_DFL])"
    # A background job of a shell would start with SIGINT ignored.
    child, _ = serve(run, [], before="signal.signal(signal.SIGINT, signal.default_int_handler)", after=after)
    child.process.send_signal(signal.SIGTERM)
    assert child.lines_until_end() == (["returned None", "True"], 0)


def test_a_handler_of_the_program_runs_afterwards(run: Any) -> None:
    before = "signal.signal(signal.SIGTERM, lambda number, frame: print('heard', number))"
    child, _ = serve(run, [], before=before)
    child.process.send_signal(signal.SIGTERM)
    assert child.lines_until_end() == (["heard 15", "returned None"], 0)


def test_an_ignored_signal_that_was_not_sent_stays_ignored(run: Any) -> None:
    before = "signal.signal(signal.SIGQUIT, signal.SIG_IGN)"
    child, _ = serve(run, [], before=before, after="print(signal.getsignal(signal.SIGQUIT).name)")
    child.process.send_signal(signal.SIGTERM)
    assert child.lines_until_end() == (["returned None", "SIG_IGN"], 0)


def long_request(pool: ThreadPoolExecutor, url: str, worker: str, tokens: int) -> Any:
    body = {"text": "a", "sampling_params": {"max_new_tokens": tokens, "ignore_eos": True}}
    wait_for(lambda: get_json(f"{url}/workers")["workers"][0]["is_healthy"], "worker ready")
    answer = pool.submit(lambda: json.load(call(url, "POST", "/generate", body)))
    wait_for(lambda: get_json(f"{worker}/sim/stats")["requests"] == 1, "request at the worker")
    return answer


def test_the_first_signal_lets_a_request_finish(run: Any, sim_workers: Any) -> None:
    (worker,) = sim_workers(1, decode_step_base_ms=50.0)
    child, url = serve(run, [worker.url])
    with ThreadPoolExecutor() as pool:
        answer = long_request(pool, url, worker.url, 20)
        child.process.send_signal(signal.SIGTERM)
        assert answer.result(DEADLINE)["meta_info"]["completion_tokens"] == 20
    assert child.lines_until_end() == (["returned None"], 0)


def test_the_second_signal_ends_a_request(run: Any, sim_workers: Any) -> None:
    (worker,) = sim_workers(1, decode_step_base_ms=50.0)
    child, url = serve(run, [worker.url])
    with ThreadPoolExecutor() as pool:
        answer = long_request(pool, url, worker.url, 1000)
        child.process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            child.process.wait(0.5)
        child.process.send_signal(signal.SIGINT)
        assert child.lines_until_end() == (["returned None"], 0)
        with pytest.raises(OSError):
            answer.result(DEADLINE)


def test_an_exception_from_another_handler_leaves_nothing_running(run: Any) -> None:
    before = """
def alarm(number, frame):
    raise TimeoutError("alarm")
signal.signal(signal.SIGALRM, alarm)
signal.setitimer(signal.ITIMER_REAL, 0.5)
"""
    code = SERVE.format(workers=[], before=before, after="", grace=1).replace(
        'print("returned"', 'try: print("returned"'
    )
    code += "\nexcept TimeoutError as error: print(error, gateway.running)\n"
    child = run("-c", code)
    child.line()
    assert child.lines_until_end() == (["alarm False"], 0)


def test_the_command_line_ends_on_sigterm(run: Any) -> None:
    flags = ["--host", "127.0.0.1", "--port", "0", "--prometheus-port", "0", "--log-level", "info"]
    flags += ["--shutdown-grace-period-secs", "1"]
    child = run("-m", "sgl_model_gateway", "launch", *flags)
    while "gateway listening" not in child.line():
        pass
    child.process.send_signal(signal.SIGTERM)
    assert child.lines_until_end()[1] == 0


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_the_simulated_worker_ends_with_code_0(run: Any, name: str) -> None:
    child = run("-m", "sgl_model_gateway.sim_worker", "--port", "0", "--model", "m")
    url = child.line().split()[-1]
    assert get_json(f"{url}/v1/models")["data"][0]["id"] == "m"
    child.process.send_signal(getattr(signal, name))
    assert child.lines_until_end()[1] == 0
