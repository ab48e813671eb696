"""Fixtures for everything that needs a gateway and workers. All ports are free ones, everything is stopped."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from sgl_model_gateway.router import Router
from sgl_model_gateway.sgl_model_gateway_rs import SimWorker

pytest.register_assert_rewrite("support")

from support.gateway import healthy_workers  # noqa: E402
from support.process import Process  # noqa: E402
from support.summary import pytest_terminal_summary as pytest_terminal_summary  # noqa: E402
from support.waiting import wait_for  # noqa: E402

# A shell starts background jobs with some of these ignored, nohup with SIGHUP, and processes under test would inherit
# that until they install handlers of their own.
_HANDLERS = {signal.SIGINT: signal.default_int_handler, signal.SIGQUIT: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
for _number, _handler in _HANDLERS.items():
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _handler)


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


@pytest.fixture
def run() -> Iterator[Callable[..., Process]]:
    """`run("-m", "package", ...)`: a Python process of its own, killed afterwards."""
    with ExitStack() as stack:

        def start(*command: str) -> Process:
            process = Process(*command)
            stack.callback(process.destroy)
            return process

        yield start
