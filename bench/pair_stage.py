"""A prefill and a decode worker (simulated) behind a gateway, and a client that says how its reply ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from processes import HOST, require_free, running, two_cores, wait_until_answered

MODEL = "m"
START_TIMEOUT = 60.0
# Of a row with two pairs: prefill workers, their bootstrap servers, decode workers, the gateway and its metrics.
PORTS = 8
# One token of a prompt takes 10 ms, one of a reply 20 ms; the time-outs of engines are SGLang's own, 300 s.
PACE = ("--prefill-tokens-per-sec", "100", "--decode-step-base-ms", "20")
POLL_S = 0.02


@dataclass(frozen=True)
class Gateway:
    """A gateway: the Python that it is installed for, and its module."""

    name: str
    python: str
    module: str

    def command(self, port: int, workers: Sequence[Worker], flags: Sequence[str]) -> list[str]:
        """With its defaults, but for what is measured and the places."""
        places: list[str] = []
        for worker in workers:
            url = f"http://{HOST}:{worker.port}"
            places += ["--prefill", url, str(worker.bootstrap)] if worker.bootstrap else ["--decode", url]
        return [
            *(self.python, "-m", self.module, "--pd-disaggregation", "--policy", "round_robin", *places),
            *("--host", HOST, "--port", str(port), "--prometheus-host", HOST, "--prometheus-port", str(port + 1)),
            *("--log-level", "warn", "--worker-startup-check-interval", "1", *flags),
        ]


@dataclass
class Reply:
    """What has come of a reply, and how it ended."""

    status: int = 0
    body: bytes = b""
    # As HTTP says it ends.
    whole: bool = False
    cut: bool = False
    # `time.monotonic()` of the first token, and of the moment at which the client knew the outcome.
    first: float = 0.0
    learnt: float = 0.0
    failure: bool = False

    def take(self, piece: bytes) -> None:
        now = time.monotonic()
        self.body += piece
        self.first = self.first or now
        if not self.learnt and any(map(is_failure, events(self.body))):
            self.failure, self.learnt = True, now
        if not self.learnt and self.body.endswith(b"data: [DONE]\n\n"):
            self.learnt = now

    @property
    def ended(self) -> bool:
        return self.whole or self.cut

    def end(self) -> str:
        """Status and end, in words."""
        if not self.ended:
            return f"{self.status}, no end" if self.status else "no answer"
        if self.status == 0:
            return "closed"
        if self.status != 200:
            return f"{self.status}{' cut' if self.cut else ''}"
        done = b"data: [DONE]" in self.body
        words = ["200", *(["error event"] if self.failure else []), *(["cut"] if self.cut else [])]
        if self.failure and done:
            words.append("[DONE]")
        if not self.failure and not self.cut:
            finished = b'"length"' in self.body and (done or not self.body.startswith(b"data:"))
            words.append("whole" if finished else "ends early")
        return ", ".join(words)


def events(body: bytes) -> Iterator[str]:
    """The payloads of the server-sent events that are complete."""
    for piece in body.split(b"\n\n")[:-1]:
        if piece.startswith(b"data: "):
            yield piece[6:].decode()


def is_failure(event: str) -> bool:
    """Whether an event of a stream is an error, or the end of an aborted request."""
    with contextlib.suppress(ValueError):
        value = json.loads(event)
        reason = (value.get("meta_info") or {}).get("finish_reason") or {}
        return "error" in value or value.get("object") == "error" or reason.get("type") == "abort"
    return False


async def exchange(port: int, method: str, path: str, body: Any, reply: Reply) -> None:
    """One request on a connection of its own; what comes goes to the reply."""
    data = b"" if body is None else json.dumps(body).encode()
    writer = None
    try:
        reader, writer = await asyncio.open_connection(HOST, port, limit=1 << 22)
        head = f"{method} {path} HTTP/1.1\r\nhost: {HOST}\r\ncontent-type: application/json\r\n"
        writer.write(head.encode() + b"content-length: %d\r\n\r\n" % len(data) + data)
        await read(reader, reply)
        reply.whole = True
    except (OSError, EOFError, ValueError):
        reply.cut = True
    finally:
        if writer:
            writer.transport.abort()
        if reply.ended:
            reply.learnt = reply.learnt or time.monotonic()


async def read(reader: asyncio.StreamReader, reply: Reply) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    reply.status = int(head.split(" ", 2)[1])
    if "\r\ntransfer-encoding: chunked" in head:
        while size := int(await reader.readline(), 16):
            reply.take((await reader.readexactly(size + 2))[:-2])
        await reader.readline()
        return
    left = int(head.partition("\r\ncontent-length: ")[2].partition("\r\n")[0] or 0)
    while left:
        piece = await reader.read(left)
        if not piece:
            raise EOFError
        reply.take(piece)
        left -= len(piece)


@dataclass
class Worker:
    """A simulated worker, and when it was last seen with a request (`time.monotonic()`; 0: never)."""

    port: int
    # Of a prefill worker.
    bootstrap: int = 0
    pid: int = 0
    held: int = 0
    busy: float = 0.0
    away: bool = False
    unwatched: bool = False

    def command(self, python: str) -> list[str]:
        role = ["prefill", "--disaggregation-bootstrap-port", str(self.bootstrap)] if self.bootstrap else ["decode"]
        words = ["--model", MODEL, "--port", str(self.port), "--disaggregation-mode", *role, *PACE]
        return [python, "-m", "sgl_model_gateway.sim_worker", *words]

    def send(self, number: int) -> None:
        """The process behind `setpriv` and `taskset`, which replace themselves."""
        os.kill(self.pid, number)
        self.away = number in (signal.SIGKILL, signal.SIGSTOP)

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        reply = Reply()
        await asyncio.wait_for(exchange(self.port, method, path, body, reply), 5)
        return json.loads(reply.body or b"null") if reply.status == 200 else None

    async def watch(self) -> None:
        """Counts its requests until `unwatched`: a cancellation may be lost in `wait_for`."""
        while not self.unwatched:
            if not self.away:
                with contextlib.suppress(asyncio.TimeoutError):
                    await self.look()
            await asyncio.sleep(POLL_S)

    async def look(self) -> None:
        answer = await self.ask("GET", "/v1/loads")
        if answer is None:
            return
        rank = answer["loads"][0]
        waiting = sum(count for name, count in rank["disaggregation"].items() if name.endswith("_reqs"))
        self.held = max(rank["num_running_reqs"] + rank["num_waiting_reqs"], waiting)
        if self.held:
            self.busy = time.monotonic()


@dataclass
class Stage:
    """The processes of one row."""

    port: int
    workers: dict[str, Worker] = field(default_factory=dict)

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Meanwhile the workers' requests are counted."""
        tasks = [asyncio.create_task(worker.watch()) for worker in self.workers.values()]
        try:
            yield
        finally:
            for worker in self.workers.values():
                worker.unwatched = True
            await asyncio.gather(*tasks, return_exceptions=True)


@contextmanager
def stage(
    gateway: Gateway, python: str, base_port: int, pairs: int, flags: Sequence[str], room: Path
) -> Iterator[Stage]:
    """Pairs behind the gateway, which has answered once. `python` runs the workers."""
    require_free(range(base_port, base_port + PORTS))
    gateway_core, worker_core = two_cores()
    built = Stage(base_port + PORTS - 2)
    for number in range(pairs):
        name, first = str(number + 1) if number else "", base_port + 3 * number
        built.workers["prefill" + name] = Worker(first, bootstrap=first + 1)
        built.workers["decode" + name] = Worker(first + 2)
    probe = json.dumps({"text": "a", "sampling_params": {"max_new_tokens": 1}}).encode()
    with ExitStack() as stack:
        for role, worker in built.workers.items():
            log = room / f"{role}.log"
            process = stack.enter_context(running(worker.command(python), worker_core, log))
            wait_until_answered(process, log, f"http://{HOST}:{worker.port}/health", None, START_TIMEOUT)
            worker.pid = process.pid
        log = room / "gateway.log"
        command = gateway.command(built.port, list(built.workers.values()), flags)
        process = stack.enter_context(running(command, gateway_core, log))
        wait_until_answered(process, log, f"http://{HOST}:{built.port}/generate", probe, START_TIMEOUT)
        try:
            yield built
        finally:
            for worker in built.workers.values():
                with contextlib.suppress(ProcessLookupError):
                    worker.send(signal.SIGCONT)
