"""Clients: one-line calls, and a raw HTTP/1.1 client that reports how each reply ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from .waiting import DEADLINE

JSON_TYPE = "application/json"


def get_json(url: str) -> Any:
    """The JSON behind a URL."""
    with urllib.request.urlopen(url, timeout=DEADLINE) as response:
        return json.load(response)


def call(
    url: str, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
) -> tuple[int, Any]:
    """Status and JSON of one call, whatever the status."""
    data = None if body is None else json.dumps(body).encode()
    sent = {"content-type": JSON_TYPE} | dict(headers or {})
    request = urllib.request.Request(url + path, data, sent, method=method)
    try:
        with urllib.request.urlopen(request, timeout=DEADLINE) as response:
            status, text = response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            status, text = error.code, error.read()
    with contextlib.suppress(ValueError):
        return status, json.loads(text)
    return status, text


def connect(url: str) -> socket.socket:
    """A bare connection."""
    where = urlsplit(url)
    return socket.create_connection((where.hostname, where.port), timeout=DEADLINE)


@dataclass
class Reply:
    """A reply, and how it ended."""

    status: int = 0
    """0: not even a whole head came."""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    whole: bool = False
    """It ended as HTTP says it ends."""
    error: str = ""
    took: float = 0.0

    @property
    def ok(self) -> bool:
        return self.status == 200 and self.whole

    @property
    def worker(self) -> str:
        """The id of the worker it came from."""
        return self.headers.get("x-smg-routed-worker-id", "")

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[str]:
        """The payloads of server-sent events."""
        pieces = self.body.decode().split("\n\n")
        return [piece.removeprefix("data: ") for piece in pieces if piece.startswith("data: ")]

    def finished_stream(self) -> bool:
        return self.ok and self.events()[-1:] == ["[DONE]"]

    def __repr__(self) -> str:
        tail = self.body[-160:]
        return f"<{self.status} whole={self.whole} took={self.took:.3f} {self.error} {self.headers} ..{tail!r}>"


OnPiece = Callable[[Reply], Awaitable[None]]
"""Called with what has come so far."""


def generate(tokens: int = 2, *, stream: bool = False, text: str = "hi", **more: Any) -> dict[str, Any]:
    """A body for `/generate`."""
    sampling = {"max_new_tokens": tokens, "ignore_eos": True}
    return {"text": text, "stream": stream, "sampling_params": sampling, **more}


def head(path: str, length: int, headers: dict[str, str] | None = None, method: str = "POST") -> bytes:
    """A request's head."""
    lines = [f"{method} {path} HTTP/1.1", "host: gateway", f"content-type: {JSON_TYPE}", f"content-length: {length}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode()


class Client:
    """Keeps connections, as browsers and SDKs do; `fresh=True` opens one per request instead."""

    def __init__(self, url: str, *, fresh: bool = False) -> None:
        where = urlsplit(url)
        self.address = (where.hostname, where.port)
        self.fresh = fresh
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        for _, writer in self._idle:
            writer.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            reader, writer = self._idle.pop()
            if not (reader.at_eof() or writer.transport.is_closing()):
                return reader, writer
            writer.transport.abort()
        return await asyncio.open_connection(*self.address, limit=1 << 20)

    async def ask(
        self,
        body: Any,
        path: str = "/generate",
        headers: dict[str, str] | None = None,
        *,
        method: str = "POST",
        patience: float = 60.0,
        on_piece: OnPiece | None = None,
    ) -> Reply:
        """One request; failures are in the reply. Cancelling it breaks off the connection."""
        reply, started = Reply(), time.monotonic()
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        exchange = self._exchange(head(path, len(data), headers, method) + data, reply, on_piece)
        try:
            await asyncio.wait_for(exchange, patience)
        except (OSError, EOFError, ValueError, asyncio.TimeoutError) as error:
            reply.error = repr(error)
        reply.took = time.monotonic() - started
        return reply

    async def _exchange(self, request: bytes, reply: Reply, on_piece: OnPiece | None) -> None:
        reader, writer = await self._connect()
        try:
            writer.write(request)
            await _read_head(reader, reply)
            await _read_body(reader, reply, on_piece)
            reply.whole = True
        finally:
            self._give_back(reader, writer, reply)

    def _give_back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, reply: Reply) -> None:
        stays = reply.whole and reply.headers.get("connection", "").lower() != "close"
        if stays and not self.fresh:
            self._idle.append((reader, writer))
        else:
            writer.transport.abort()


async def _read_head(reader: asyncio.StreamReader, reply: Reply) -> None:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    for line in filter(None, lines[1:]):
        name, _, value = line.partition(":")
        reply.headers[name.lower()] = value.strip()
    reply.status = int(lines[0].split()[1])


async def _read_body(reader: asyncio.StreamReader, reply: Reply, on_piece: OnPiece | None) -> None:
    if "chunked" not in reply.headers.get("transfer-encoding", ""):
        reply.body = await reader.readexactly(int(reply.headers["content-length"]))
        return
    while size := int(await reader.readuntil(b"\r\n"), 16):
        reply.body += (await reader.readexactly(size + 2))[:-2]
        if on_piece:
            await on_piece(reply)
    await reader.readexactly(2)


async def ask_all(client: Client, bodies: Iterable[Any], at_once: int = 50, **how: Any) -> list[Reply]:
    """One reply per body, so many requests at a time."""
    waiting = iter(list(bodies))
    replies: list[Reply] = []

    async def serve() -> None:
        for body in waiting:
            replies.append(await client.ask(body, **how))

    await asyncio.gather(*(serve() for _ in range(at_once)))
    return replies


class Load:
    """An open loop: requests begin on the clock, however slowly others are answered."""

    def __init__(self, client: Client, per_second: float, body: Callable[[int], Any]) -> None:
        self.client, self.per_second, self.body = client, per_second, body
        self.tasks: list[asyncio.Task[Reply]] = []

    async def __aenter__(self) -> Load:
        self._pacer = asyncio.create_task(self._pace())
        return self

    async def _pace(self) -> None:
        started = time.monotonic()
        while True:
            due = int((time.monotonic() - started) * self.per_second) - len(self.tasks)
            for _ in range(due):
                ask = self.client.ask(self.body(len(self.tasks)))
                self.tasks.append(asyncio.create_task(ask))
            await asyncio.sleep(1 / self.per_second)

    async def __aexit__(self, *_: object) -> None:
        """No more requests; those under way end."""
        self._pacer.cancel()
        self.replies = await asyncio.gather(*self.tasks)


@contextlib.contextmanager
def many_files(wanted: int) -> Iterator[int]:
    """Room for so many open files, as far as the system grants; yields how many."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    granted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(granted, soft), hard))
    try:
        yield max(granted, soft)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
