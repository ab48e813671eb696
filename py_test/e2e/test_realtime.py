"""`/v1/realtime` through the gateway, with the WebSocket client and server of the `websockets` package."""

from __future__ import annotations

import http
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from support.client import get_json
from support.waiting import wait_for
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import Request, Response, Server, ServerConnection, serve

LARGE = 3_000_000


class Worker:
    """Echoes messages; answers what the gateway asks of a worker."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.ends: list[tuple[int, str]] = []
        self.server: Server = serve(
            self.talk,
            "127.0.0.1",
            0,
            process_request=self.answer,
            select_subprotocol=lambda _, offered: offered[0] if offered else None,
            max_size=2 * LARGE,
        )
        host, port = self.server.socket.getsockname()
        self.url = f"http://{host}:{port}"

    def answer(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.path == "/health":
            return connection.respond(http.HTTPStatus.OK, "")
        if not request.path.startswith("/v1/realtime"):
            return connection.respond(http.HTTPStatus.NOT_FOUND, "")
        self.requests.append(request)
        if "refuse" in request.path:
            return connection.respond(http.HTTPStatus.FORBIDDEN, "not you")
        return None

    def talk(self, connection: ServerConnection) -> None:
        with suppress(ConnectionClosed):
            while (message := connection.recv()) != "leave":
                connection.send(message)
            connection.close(4000, "asked to")
        self.ends.append((connection.close_code or 0, connection.close_reason or ""))


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    thread = threading.Thread(target=worker.server.serve_forever)
    thread.start()
    yield worker
    worker.server.shutdown()
    thread.join()


@contextmanager
def opened(door: Any, query: str = "", **options: Any) -> Iterator[ClientConnection]:
    url = door.url.replace("http", "ws", 1) + "/v1/realtime" + query
    with connect(url, max_size=2 * LARGE, proxy=None, **options) as connection:
        yield connection


def in_flight(door: Any) -> int:
    return sum(one["load"] for one in get_json(f"{door.url}/workers")["workers"])


def test_messages_of_every_size_pings_and_the_close_pass(worker: Worker, gateway: Any) -> None:
    door = gateway([worker.url])
    with opened(door, "?model=m", subprotocols=["realtime"]) as connection:
        assert connection.subprotocol == "realtime"
        for message in ("", "hé", b"\0\xff" * 70_000, "x" * LARGE):
            connection.send(message)
            assert connection.recv(timeout=30) == message
        assert connection.ping().wait(30)
        assert in_flight(door) == 1
        connection.close(4321, "done")
    wait_for(lambda: worker.ends == [(4321, "done")], "the client's close at the worker")
    wait_for(lambda: in_flight(door) == 0, "the worker's share given back")
    assert worker.requests[0].path == "/v1/realtime?model=m"


def test_close_of_the_worker_reaches_the_client(worker: Worker, gateway: Any) -> None:
    door = gateway([worker.url])
    with opened(door) as connection:
        connection.send("leave")
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(timeout=30)
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4000, "asked to")


def test_refusal_of_the_worker_is_the_clients(worker: Worker, gateway: Any) -> None:
    door = gateway([worker.url])
    with pytest.raises(InvalidStatus) as refused, opened(door, "?refuse=1"):
        pass
    assert refused.value.response.status_code == 403
    assert refused.value.response.body == b"not you"


def test_stop_of_the_gateway_ends_the_connection(worker: Worker, gateway: Any) -> None:
    door = gateway([worker.url])
    with opened(door) as connection:
        connection.send("hello")
        assert connection.recv(timeout=30) == "hello"
        door.stop()
        with pytest.raises(ConnectionClosed):
            connection.recv(timeout=30)
    wait_for(lambda: len(worker.ends) == 1, "the end at the worker")
