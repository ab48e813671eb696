"""Factories of processes that are gone when the test is over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from support.gateway import Gateway
from support.process import Process
from support.workers import Scripted, Worker


@pytest.fixture
def start() -> Iterator[Callable[..., Any]]:
    """`start(Worker, decode_step_base_ms=5)`: a process, ended afterwards whatever it is doing."""
    with ExitStack() as stack:

        def begin(kind: type[Process], *args: Any, **options: Any) -> Any:
            process = kind(*args, **options)
            stack.callback(process.destroy)
            return process

        yield begin


@pytest.fixture
def workers(start: Callable[..., Any]) -> Callable[..., list[Worker]]:
    """`workers(4, decode_step_base_ms=5)`: simulated workers."""
    return lambda count=1, **options: [start(Worker, **options) for _ in range(count)]


@pytest.fixture
def scripted(start: Callable[..., Any]) -> Callable[..., Scripted]:
    """`scripted(2, refuse=0.5)`: workers scripted in Python, in one process."""
    return lambda ports=1, **script: start(Scripted, ports, **script)


@pytest.fixture
def gateway(start: Callable[..., Any]) -> Callable[..., Gateway]:
    """`gateway(urls, "--policy", "random")`: a gateway with all its workers ready."""

    def begin(urls: list[str], *flags: str, **options: Any) -> Gateway:
        door: Gateway = start(Gateway, urls, *flags, **options)
        return door.wait_ready(len(urls))

    return begin
