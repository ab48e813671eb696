"""Workers and gateways as processes of their own, and a client that tells exactly how each reply ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from conftest import DEADLINE, get_json, healthy_workers, wait_for

SCRIPTED = Path(__file__).with_name("scripted_worker.py")
JSON_TYPE = "application/json"


# --- processes ---------------------------------------------------------------------------------


class Process:
    """A child whose lines are kept; stopped for good by `end`."""

    def __init__(self, *command: str) -> None:
        self.command = [sys.executable, *command]
        self.lines: list[str] = []
        self._spawn()

    def _spawn(self) -> None:
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            self.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        self._reader = threading.Thread(target=self._read, args=(self.process,), daemon=True)
        self._reader.start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.lines.append(line.rstrip())

    def wait_for_line(self, pattern: str, after: int = 0) -> re.Match[str]:
        """The first match in the lines from number `after` on."""

        def found() -> re.Match[str] | None:
            matches = (re.search(pattern, line) for line in self.lines[after:])
            match = next((match for match in matches if match), None)
            assert match or self.process.poll() is None, f"ended without saying {pattern!r}: {self.lines[-5:]}"
            return match

        try:
            return wait_for(found, f"a line with {pattern!r}")
        except AssertionError:
            # Nobody else knows of a process whose start has failed.
            self.process.kill()
            raise

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def rss(self) -> int:
        """Resident memory, bytes."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def end(self) -> None:
        """Also one that has been stopped with SIGSTOP."""
        self.process.kill()
        self.process.wait()
        self._reader.join(DEADLINE)
        assert self.process.stdout is not None
        self.process.stdout.close()


class Worker(Process):
    """A simulated worker; it keeps its port through `kill` and `restart`."""

    def __init__(self, **options: Any) -> None:
        flags = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        self._flags = ["-m", "sgl_model_gateway.sim_worker", *flags]
        super().__init__(*self._flags, "--port", "0")
        self.url = self.wait_for_line(r"listening on (http://\S+)").group(1)

    def kill(self) -> None:
        """As the kernel's out-of-memory killer does it."""
        self.end()

    def restart(self) -> None:
        """On the same port, with nothing cached."""
        self.end()
        self.lines.clear()
        self.command = [sys.executable, *self._flags, "--port", str(urlsplit(self.url).port)]
        self._spawn()
        self.wait_for_line("listening on")

    def freeze(self) -> None:
        self.send(signal.SIGSTOP)

    def thaw(self) -> None:
        self.send(signal.SIGCONT)

    def set_faults(self, **faults: Any) -> None:
        """Replaces the faults in force; none ends them."""
        call(self.url, "POST", "/sim/faults", faults)

    def faults(self) -> dict[str, Any]:
        """Those in force."""
        return get_json(f"{self.url}/sim/faults")

    def stats(self) -> dict[str, int]:
        return get_json(f"{self.url}/sim/stats")


class Scripted(Process):
    """Workers scripted in Python (`scripted_worker.py`): one process, a port each, one set of counts."""

    def __init__(self, ports: int = 1, **script: Any) -> None:
        super().__init__(str(SCRIPTED), str(ports), json.dumps(script))
        self.urls: list[str] = json.loads(self.wait_for_line(r"listening on (.*)").group(1))

    def stats(self) -> dict[str, Any]:
        return get_json(f"{self.urls[0]}/script/stats")


class Gateway(Process):
    """A gateway started from the command line; its log is JSON."""

    def __init__(self, worker_urls: Iterable[str], *flags: str, port: int = 0) -> None:
        fixed = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-host", "127.0.0.1"]
        fixed += ["--prometheus-port", "0", "--json-log", "--worker-startup-check-interval", "1"]
        module = "sgl_model_gateway.launch_router"
        super().__init__("-m", module, *fixed, *flags, "--worker-urls", *worker_urls)
        said = self.wait_for_line(r'gateway listening.*"addr":"([^"]+)".*"metrics":"Some\(([^)]+)\)')
        self.url, self.metrics_url = (f"http://{address}" for address in said.groups())

    def wait_ready(self, count: int) -> Gateway:
        wait_for(lambda: self._ready() >= count, f"{count} workers ready")
        return self

    def _ready(self) -> int:
        try:
            return healthy_workers(self.url)
        except urllib.error.URLError:
            return 0  # a shared port is listened on once a worker is ready

    def workers(self) -> list[dict[str, Any]]:
        return get_json(f"{self.url}/workers")["workers"]

    def worker(self, url: str) -> dict[str, Any]:
        return next(worker for worker in self.workers() if worker["url"] == url)

    def load(self) -> int:
        """Requests in flight, as the gateway counts them."""
        return sum(worker["load"] for worker in self.workers())

    def limits(self) -> dict[str, Any]:
        return get_json(f"{self.url}/debug/limits")

    def decisions(self) -> list[tuple[float, str]]:
        """When (`time.monotonic`) and for which worker the last decisions were taken, retries included."""
        answer = get_json(f"{self.url}/debug/decisions?limit=100000")
        now = time.monotonic()
        decisions = answer["decisions"] if isinstance(answer, dict) else answer
        return [(now - decision["age_secs"], decision["worker"]) for decision in decisions]

    def metrics(self, name: str) -> dict[str, float]:
        """A metric's samples by their labels, as written."""
        with urllib.request.urlopen(f"{self.metrics_url}/metrics", timeout=DEADLINE) as response:
            page = response.read().decode()
        found = re.findall(rf"^{name}(\{{.*\}})? (\S+)$", page, re.MULTILINE)
        return {labels: float(value) for labels, value in found}

    def assert_nothing_left(self) -> None:
        """Alive, no panic, and no request counted anywhere."""
        wait_for(lambda: self.load() == 0, "every worker's load back at 0")
        limits = self.limits()
        assert (limits["queued"], limits["queued_for_a_worker"]) == (0, 0)
        assert limits["concurrent_requests"] in (None, 0)
        assert not [line for line in self.lines if "panicked" in line]


def call(url: str, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Status and JSON of one call, whatever the status."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"content-type": JSON_TYPE}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=DEADLINE) as response:
            status, text = response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            status, text = error.code, error.read()
    with contextlib.suppress(ValueError):
        return status, json.loads(text)
    return status, text


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def connect(url: str) -> socket.socket:
    """A bare connection."""
    where = urlsplit(url)
    return socket.create_connection((where.hostname, where.port), timeout=DEADLINE)


# --- a client ----------------------------------------------------------------------------------


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
        """One request; failures are told in the reply. Cancelling it breaks off the connection."""
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


async def until(condition: Callable[[], Any], what: str, deadline: float = DEADLINE) -> Any:
    """`wait_for`, while the event loop goes on."""
    return await asyncio.to_thread(wait_for, condition, what, deadline)


@contextlib.contextmanager
def many_files(wanted: int) -> Iterator[int]:
    """Room for so many open files, as far as the system grants; tells how many."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    granted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(granted, soft), hard))
    try:
        yield max(granted, soft)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
