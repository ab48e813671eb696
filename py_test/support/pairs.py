"""Fixtures: a balancer between a scripted prefill and a scripted decode backend."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from http.client import HTTPConnection, HTTPResponse
from typing import Any

import pytest
import uvicorn

from sgl_model_gateway import mini_lb
from sgl_model_gateway.mini_lb import MiniLoadBalancer
from sgl_model_gateway.router_args import RouterArgs

from .backend import Backend
from .waiting import DEADLINE, wait_for

GENERATE = "/generate"


class Pair:
    """A prefill and a decode backend behind a balancer, and a client."""

    def __init__(self, stack: ExitStack, port: int, **options: Any) -> None:
        self.prefill, self.decode = Backend(), Backend()
        for backend in (self.prefill, self.decode):
            stack.callback(backend.close)
        args = {"prefill_urls": [(self.prefill.url, 8998)], "decode_urls": [self.decode.url]} | options
        self.balancer = MiniLoadBalancer(RouterArgs(pd_disaggregation=True, policy="random", **args))
        mini_lb.lb = self.balancer
        stack.callback(retire, self.balancer)
        self.port, self._stack = port, stack

    @property
    def backends(self) -> tuple[Backend, Backend]:
        return self.prefill, self.decode

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> HTTPResponse:
        """The response; its head has arrived."""
        connection = self._stack.enter_context(closing(HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)))
        text = body if isinstance(body, bytes) or body is None else json.dumps(body)
        sent = {"content-type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, text, sent)
        self.connection = connection
        return connection.getresponse()

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        response = self.call("POST", path, body, **headers)
        return response.status, json.loads(response.read())


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Where `app` is served, for whichever balancer a test makes the current one."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(mini_lb.app, log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        wait_for(lambda: server.started, "balancer up")
        yield int(listener.getsockname()[1])
        server.should_exit = True
        thread.join(DEADLINE)


def retire(balancer: MiniLoadBalancer) -> None:
    """Closes its session, in the event loop that it belongs to."""
    mini_lb.lb = None
    if balancer._session_and_loop:
        asyncio.run_coroutine_threadsafe(balancer.close(), balancer._session_and_loop[1]).result(DEADLINE)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def make_pair(stack: ExitStack, port: int) -> Callable[..., Pair]:
    """`make_pair(request_timeout_secs=1)`: a pair behind a balancer with these options."""
    return partial(Pair, stack, port)


@pytest.fixture
def pair(make_pair: Callable[..., Pair]) -> Pair:
    return make_pair()


class Backend_closing(closing):  # type: ignore[type-arg]
    def __init__(self) -> None:
        super().__init__(Backend())
