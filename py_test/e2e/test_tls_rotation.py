"""Certificates and authorities of both sides swapped again and again while real clients send requests."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import requests
import trustme
import uvicorn
from cryptography.x509 import load_pem_x509_certificate
from support.certificates import Secret, pair
from support.waiting import DEADLINE, wait_for

from sgl_model_gateway.router import Router

ROTATIONS = 5
EVENTS = 10
# A client rests so long between two requests.
PAUSE = 0.02
WHOLE = {"text": "hi"}
STREAM = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}


async def engine(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """A worker: health, what it serves, a whole reply, and a stream that takes a while."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body", False):
        pass
    streams = scope["path"] == "/v1/chat/completions"
    kind = b"text/event-stream" if streams else b"application/json"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
    if streams:
        for number in range(EVENTS):
            await send({"type": "http.response.body", "body": b'data: {"n":%d}\n\n' % number, "more_body": True})
            await asyncio.sleep(0.03)
        body = b"data: [DONE]\n\n"
    else:
        body = {"/server_info": b'{"served_model_name":"m"}', "/generate": b'{"text":"hello"}'}.get(scope["path"], b"")
    await send({"type": "http.response.body", "body": body})


class Worker:
    """A worker over TLS that asks for certificates; its own may be changed while it runs."""

    def __init__(self, folder: Path, authority: trustme.CA, clients: trustme.CA) -> None:
        self.folder = folder
        folder.mkdir()
        clients.cert_pem.write_to_path(str(folder / "clients.pem"))
        self.config = uvicorn.Config(
            engine,
            log_level="error",
            lifespan="off",
            ssl_certfile=str(folder / "tls.crt"),
            ssl_keyfile=str(folder / "tls.key"),
            ssl_ca_certs=str(folder / "clients.pem"),
            ssl_cert_reqs=ssl.CERT_REQUIRED,
        )
        self._write(authority)
        self.server = uvicorn.Server(self.config)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self.listener.getsockname()[1]}"
        run = {"sockets": [self.listener]}
        self.thread = threading.Thread(target=self.server.run, kwargs=run, daemon=True)
        self.thread.start()
        wait_for(lambda: self.server.started, "uvicorn")

    def _write(self, authority: trustme.CA) -> None:
        for name, content in pair(authority, "127.0.0.1").items():
            (self.folder / name).write_bytes(content)

    def show(self, authority: trustme.CA) -> None:
        """Shows a new certificate of this authority from now on."""
        self._write(authority)
        assert self.config.ssl is not None
        self.config.ssl.load_cert_chain(self.folder / "tls.crt", self.folder / "tls.key")

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(DEADLINE)
        self.listener.close()


class Load:
    """Clients that ask again and again."""

    def __init__(self) -> None:
        self.answered: Counter[str] = Counter()
        self.failures: list[str] = []
        self._stop = threading.Event()

    def _ask(self, name: str, ask: Callable[[], Any]) -> None:
        while not self._stop.wait(PAUSE):
            try:
                ask()
                self.answered[name] += 1
            except Exception as error:
                self.failures.append(f"{name}: {error!r}")

    def wait_for_all(self, names: Iterable[str]) -> None:
        """Returns once each client has had an answer to a request that it sent after now."""
        before = Counter(self.answered)
        # The first one may have been on its way.
        wait_for(lambda: all(self.answered[name] > before[name] + 1 for name in names), "all clients go on")

    @contextmanager
    def of(self, clients: dict[str, Callable[[], Any]]) -> Iterator[None]:
        threads = [threading.Thread(target=self._ask, args=each, daemon=True) for each in clients.items()]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(DEADLINE)
        assert not any(thread.is_alive() for thread in threads)


def check_stream(text: str) -> None:
    events = text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""] and len(events) == EVENTS + 2, text


def clients(url: str, ca: str, stack: ExitStack) -> dict[str, Callable[[], Any]]:
    """Real clients: with kept connections, with a new one each time, whole replies and streams."""
    context = ssl.create_default_context(cafile=ca)
    session = stack.enter_context(requests.Session())
    # One per thread: Python's TLS connections break when two threads read and write at once.
    kept, streaming = (stack.enter_context(httpx.Client(http2=True, verify=context, timeout=20)) for _ in range(2))

    def whole(post: Callable[..., Any], **more: Any) -> None:
        reply = post(f"{url}/generate", json=WHOLE, timeout=20, **more)
        assert (reply.status_code, reply.json()) == (200, {"text": "hello"})

    def stream(post: Callable[..., Any], **more: Any) -> None:
        reply = post(f"{url}/v1/chat/completions", json=STREAM, timeout=20, **more)
        assert reply.status_code == 200
        check_stream(reply.text)

    def raw() -> None:
        body = json.dumps(WHOLE).encode()
        head = "POST /generate HTTP/1.1\r\nhost: g\r\nconnection: close\r\ncontent-type: application/json\r\n"
        with connect(url, context) as connection:
            connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            reply = b"".join(iter(lambda: connection.recv(65536), b""))
        assert reply.startswith(b"HTTP/1.1 200") and b'{"text":"hello"}' in reply, reply

    return {
        "requests": lambda: whole(session.post, verify=ca),
        "requests, new connections, streams": lambda: stream(requests.post, verify=ca),
        "httpx, HTTP/2": lambda: whole(kept.post),
        "httpx, HTTP/2, streams": lambda: stream(streaming.post),
        "httpx, new connections": lambda: whole(httpx.post, verify=context),
        "sockets": raw,
    }


def connect(url: str, context: ssl.SSLContext) -> ssl.SSLSocket:
    host, port = url.removeprefix("https://").split(":")
    plain = socket.create_connection((host, int(port)), timeout=20)
    return context.wrap_socket(plain, server_hostname=host)


def serial_shown(url: str, ca: str) -> int:
    """The serial number of the certificate that a new connection gets."""
    with connect(url, ssl.create_default_context(cafile=ca)) as connection:
        return int(connection.getpeercert()["serialNumber"], 16)  # type: ignore[index, arg-type]


def reloads(door: Router, side: str, result: str = "success") -> float:
    page = requests.get(door.metrics_url, timeout=5).text
    name = f'smg_tls_certificate_reloads_total{{result="{result}",side="{side}"}} '
    return sum(float(line.removeprefix(name)) for line in page.splitlines() if line.startswith(name))


class Stage:
    """A gateway between clients and a worker, with all its certificates in mounted secrets."""

    def __init__(self, folder: Path, stack: ExitStack, gateway: Callable[..., Router]) -> None:
        self.front, self.calling, self.behind = trustme.CA(), trustme.CA(), trustme.CA()
        self.ca = str(folder / "front.pem")
        self.front.cert_pem.write_to_path(self.ca)
        self.worker = Worker(folder / "worker", self.behind, self.calling)
        stack.callback(self.worker.stop)
        self.ours = Secret(folder / "ours", pair(self.front, "localhost", "127.0.0.1"))
        self.theirs = Secret(folder / "theirs", self._trusting(self.behind))
        door = self.door = gateway(
            [self.worker.url],
            ready=False,
            server_cert_path=self.ours.path("tls.crt"),
            server_key_path=self.ours.path("tls.key"),
            ca_cert_paths=[self.theirs.path("ca.crt")],
            client_cert_path=self.theirs.path("tls.crt"),
            client_key_path=self.theirs.path("tls.key"),
        )
        wait_for(lambda: requests.get(f"{door.url}/readiness", verify=self.ca, timeout=5).ok, "a ready worker")

    def _trusting(self, *authorities: trustme.CA) -> dict[str, bytes]:
        """What the gateway shows to workers, and whom it trusts."""
        return pair(self.calling, "gateway") | {"ca.crt": b"".join(each.cert_pem.bytes() for each in authorities)}

    def rotate(self) -> None:
        """Everything anew: the gateway's certificates of both sides, the worker's certificate and its authority."""
        shown, behind = pair(self.front, "localhost", "127.0.0.1"), trustme.CA()
        before = [reloads(self.door, side) for side in ("clients", "workers")]
        self.ours.swap(shown)
        # The next authority is trusted before the worker shows a certificate of it.
        self.theirs.swap(self._trusting(self.behind, behind))
        wait_for(lambda: reloads(self.door, "workers") == before[1] + 1, "both authorities are trusted")
        self.worker.show(behind)
        self.theirs.swap(self._trusting(behind))
        wait_for(lambda: reloads(self.door, "workers") == before[1] + 2, "the next authority alone is trusted")
        wait_for(lambda: reloads(self.door, "clients") == before[0] + 1, "the new certificate is in force")
        self.behind = behind
        assert serial_shown(self.door.url, self.ca) == load_pem_x509_certificate(shown["tls.crt"]).serial_number


def test_certificates_and_authorities_swapped_under_load_cost_no_request(tmp_path: Path, gateway) -> None:
    load = Load()
    with ExitStack() as stack:
        stage = Stage(tmp_path, stack, gateway)
        asking = clients(stage.door.url, stage.ca, stack)
        with load.of(asking):
            for _ in range(ROTATIONS):
                stage.rotate()
                load.wait_for_all(asking)
    assert not load.failures, load.failures[:5]
    assert reloads(stage.door, "clients", "failure") == reloads(stage.door, "workers", "failure") == 0
