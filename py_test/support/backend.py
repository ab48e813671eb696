"""A backend that follows a script per path, and notes when its client hangs up."""

from __future__ import annotations

import json
import select
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from .waiting import DEADLINE

Script = Callable[["Exchange"], None]


class Exchange(BaseHTTPRequestHandler):
    """One request, and the means to answer it."""

    server: _Server  # type: ignore[assignment]
    protocol_version = "HTTP/1.1"
    body: Any = None

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:  # the client left, which is what some tests want
            self.close_connection = True
            self.server.backend.hung_up.set()

    def do_GET(self) -> None:
        text = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.body = json.loads(text) if text else None
        backend = self.server.backend
        backend.seen.append(self)
        script = backend.scripts.get(self.path.partition("?")[0])
        if script is None:
            self.answer(404, {"error": "no such path"})
        else:
            script(self)

    do_POST = do_GET

    def answer(self, status: int, value: Any, content_type: str = "application/json") -> None:
        text = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def start_stream(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()

    def send(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def event(self, value: Any) -> None:
        self.send(b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n")

    def end_stream(self) -> None:
        self.wfile.write(b"0\r\n\r\n")

    def break_off(self) -> None:
        """Closes the connection in the middle of whatever it was."""
        self.close_connection = True

    def wait_until_hung_up(self) -> None:
        """Returns when the client has closed the connection; then `backend.hung_up` is set."""
        if select.select([self.connection], [], [], DEADLINE)[0] and not self.connection.recv(1):
            self.server.backend.hung_up.set()
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    backend: Backend
    daemon_threads = True


class Backend:
    """Scripts by path; `seen` are the requests in order."""

    def __init__(self, **scripts: Script) -> None:
        self.scripts: dict[str, Script] = {}
        self.seen: list[Exchange] = []
        self.hung_up = threading.Event()
        self._server = _Server(("127.0.0.1", 0), Exchange)
        self._server.backend = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def on(self, path: str, script: Script) -> None:
        self.scripts[path] = script

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(DEADLINE)


# --- scripts


def says(value: Any, status: int = 200) -> Callable[[Exchange], None]:
    return lambda exchange: exchange.answer(status, value)


def streams(*events: Any) -> Callable[[Exchange], None]:
    def script(exchange: Exchange) -> None:
        exchange.start_stream()
        for event in events:
            exchange.event(event)
        exchange.end_stream()

    return script


def hangs(exchange: Exchange) -> None:
    exchange.wait_until_hung_up()


def streams_then_hangs(*events: Any) -> Callable[[Exchange], None]:
    def script(exchange: Exchange) -> None:
        exchange.start_stream()
        for event in events:
            exchange.event(event)
        exchange.wait_until_hung_up()

    return script


def breaks_off(exchange: Exchange) -> None:
    exchange.break_off()
