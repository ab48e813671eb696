"""Fixtures for everything that needs a gateway and workers. All ports are free ones, everything is stopped."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from sgl_model_gateway.router import Router
from sgl_model_gateway.sgl_model_gateway_rs import SimWorker

DEADLINE = 20.0
pytest.register_assert_rewrite("pairs")  # fixtures, which tests also import from

# A shell starts background jobs with these ignored, and processes under test would inherit that until they install
# handlers of their own.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _handler)


def wait_for(condition: Callable[[], Any], what: str, deadline: float = DEADLINE) -> Any:
    """Waits until `condition()` is true and returns what it gave; fails loudly after the deadline."""
    end = time.monotonic() + deadline
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {deadline} s: {what}"
        time.sleep(0.01)
    return value


def get_json(url: str) -> Any:
    """The JSON behind a URL."""
    with urllib.request.urlopen(url, timeout=DEADLINE) as response:
        return json.load(response)


def healthy_workers(url: str) -> int:
    """How many workers a gateway considers ready; asks a route that needs no key."""
    try:
        return int(get_json(f"{url}/readiness")["healthy_workers"])
    except urllib.error.HTTPError:
        return 0


@pytest.fixture
def sim_workers() -> Iterator[Callable[..., list[SimWorker]]]:
    """`sim_workers(3, api_key="k")`: running simulated workers; `.url` is where."""
    with ExitStack() as stack:

        def start(count: int = 1, **options: Any) -> list[SimWorker]:
            return [stack.enter_context(SimWorker(**options)) for _ in range(count)]

        yield start


@pytest.fixture
def gateway() -> Iterator[Callable[..., Router]]:
    """`gateway([worker.url], policy="random")`: a running gateway that knows its workers; `.url` is where.

    `ready=False` returns at once instead of waiting for every worker.
    """
    with ExitStack() as stack:

        def start(worker_urls: list[str], *, ready: bool = True, **options: Any) -> Router:
            defaults = {
                "host": "127.0.0.1",
                "port": 0,
                "prometheus_port": 0,
                "worker_startup_check_interval": 1,
                "shutdown_grace_period_secs": 1,
                "log_level": "error",
            }
            router = stack.enter_context(Router(worker_urls=worker_urls, **(defaults | options)))
            if ready:
                wait_for(lambda: healthy_workers(router.url) == len(worker_urls), "all workers ready")
            return router

        yield start


class Child:
    """A process whose lines can be waited for."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.strip())

    def line(self) -> str:
        return self._lines.get(timeout=DEADLINE)

    def lines_until_end(self) -> tuple[list[str], int]:
        code = self.process.wait(DEADLINE)
        rest = []
        while True:
            try:
                rest.append(self._lines.get(timeout=0.2))
            except queue.Empty:
                return rest, code


@pytest.fixture
def run() -> Iterator[Callable[..., Child]]:
    """`run("-m", "package", ...)`: a Python process of its own, killed afterwards."""
    children: list[subprocess.Popen[str]] = []

    def start(*command: str) -> Child:
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        child = subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        children.append(child)
        return Child(child)

    yield start
    for child in children:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()
