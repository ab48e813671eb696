"""Instructions per request and per chunk, as valgrind counts them: the same on every machine, whatever else it does.

What is counted is the whole gateway process while requests go through it, kernel aside. Runs differ by less than one in
a hundred; the budgets are a twelfth above what was seen. Where valgrind is not installed, nothing is counted.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from support.gateway import Gateway
from support.waiting import until

pytestmark = pytest.mark.skipif(not shutil.which("valgrind"), reason="needs valgrind")

WARM, COUNTED = 100, 300
CHUNKS = 100
CHUNK = b'data: {"choices":[{"index":0,"delta":{"content":" word"}}]}\n\n'
DONE = b"data: [DONE]\n\n"
JSON = b'{"id":"x","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"ok"}}]}'
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter


class Counted(Gateway):
    """A gateway under valgrind that counts nothing until it is asked to."""

    options = "--tool=callgrind --instr-atstart=no --callgrind-out-file=counts"

    def __init__(self, worker: str, room: Path, *flags: str) -> None:
        self.room = room
        # In place of the interpreter.
        counted = room / "python"
        counted.write_text(f'#!/bin/sh\ncd {room} && exec valgrind -q {self.options} {sys.executable} "$@"\n')
        counted.chmod(0o755)
        super().__init__([worker], *flags, python=str(counted))

    def _order(self, *words: str) -> None:
        subprocess.run(["vgdb", f"--pid={self.process.pid}", *words], check=True, capture_output=True, timeout=60)

    def begin(self) -> None:
        self._order("instrumentation", "on")
        self._order("zero")

    def end(self) -> int:
        """Instructions since the beginning."""
        self._order("dump")
        self._order("instrumentation", "off")
        newest = max(self.room.glob("counts.*"), key=lambda file: int(file.suffix[1:]))
        found = re.search(r"^(?:summary|totals): (\d+)", newest.read_text(), re.M)
        assert found, newest.read_text()[:2000]
        return int(found[1])


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def body_of(reader: Reader) -> tuple[bytes, bytes]:
    """Head and body of a message with a length."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head, re.I)
    return head, await reader.readexactly(int(length[1])) if length else b""


class Worker:
    """Answers as its script has it; a chunk of a slow stream is sent when the client has the one before."""

    def __init__(self) -> None:
        self.answer: Callable[[Writer], Awaitable[None]] = self.whole
        self.arrived = asyncio.Event()
        self.url = ""
        self.connections: set[asyncio.Task | None] = set()

    @asynccontextmanager
    async def serving(self):
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server:
            yield self
        # They end with the gateway.
        await asyncio.gather(*self.connections)

    async def _connection(self, reader: Reader, writer: Writer) -> None:
        self.connections.add(asyncio.current_task())
        try:
            while True:
                head, _ = await body_of(reader)
                if head.startswith(b"POST /v1/chat"):
                    await self.answer(writer)
                else:
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}")
        except (OSError, EOFError):
            writer.close()

    async def whole(self, writer: Writer) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        writer.write(head % len(JSON) + JSON)

    async def burst(self, writer: Writer) -> None:
        writer.write(STREAM_HEAD + chunked(CHUNK) * CHUNKS + chunked(DONE) + b"0\r\n\r\n")

    async def paced(self, writer: Writer) -> None:
        writer.write(STREAM_HEAD)
        for _ in range(CHUNKS):
            self.arrived.clear()
            writer.write(chunked(CHUNK))
            await self.arrived.wait()
        writer.write(chunked(DONE) + b"0\r\n\r\n")


class Client:
    """One connection, one request after the other."""

    def __init__(self, worker: Worker, reader: Reader, writer: Writer) -> None:
        self.worker, self.reader, self.writer = worker, reader, writer

    async def ask(self, body: bytes) -> None:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\n"
        self.writer.write(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        head = await self.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        if length := re.search(rb"content-length: (\d+)", head, re.I):
            await self.reader.readexactly(int(length[1]))
            return
        while size := int(await self.reader.readline(), 16):
            await self.reader.readexactly(size + 2)
            self.worker.arrived.set()
        await self.reader.readexactly(2)


def prompt(number: int, length: int, *, stream: bool = False) -> bytes:
    """The first seven eighths are those of one of 64 groups."""
    shared = f"group {number % 64} ".encode() * (length // 8)
    own = f"request {number} ".encode() * (length // 8)
    text = shared[: length * 7 // 8] + own[: length // 8]
    streamed = b"true" if stream else b"false"
    return b'{"model":"m","stream":%s,"messages":[{"role":"user","content":"%s"}]}' % (streamed, text)


async def instructions_per_request(
    policy: str, script: str, length: int, room: Path, *flags: str, recording: Path | None = None
) -> float:
    """With a `recording`, those of its lines are counted, each of them and no others."""

    async def written(lines: int) -> None:
        if recording:
            await until(lambda: recording.read_bytes().count(b"\n") == lines, f"{lines} lines")

    worker = Worker()
    if recording:
        flags += ("--record", str(recording))
    async with worker.serving():
        worker.answer = getattr(worker, script)
        gateway = await asyncio.to_thread(Counted, worker.url, room, "--policy", policy, *flags)
        try:
            await asyncio.to_thread(gateway.wait_ready, 1)
            host, port = gateway.url.removeprefix("http://").split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            with closing(writer):
                client, streams = Client(worker, reader, writer), script != "whole"
                for number in range(WARM):
                    await client.ask(prompt(number, length, stream=streams))
                await written(WARM)
                await asyncio.to_thread(gateway.begin)
                for number in range(COUNTED):
                    await client.ask(prompt(WARM + number, length, stream=streams))
                await written(WARM + COUNTED)
                return await asyncio.to_thread(gateway.end) / COUNTED
        finally:
            gateway.destroy()


@pytest.mark.parametrize(
    ("policy", "script", "length", "budget"),
    [
        pytest.param("round_robin", "whole", 600, 49_000, id="short-request"),
        pytest.param("round_robin", "whole", 32_000, 78_500, id="long-request"),
        pytest.param("cache_aware", "whole", 4_000, 60_500, id="prompt-looked-up"),
        pytest.param("round_robin", "burst", 600, 77_000, id="stream-at-once"),
        pytest.param("round_robin", "paced", 600, 468_000, id="stream-chunk-by-chunk"),
    ],
)
def test_a_request_stays_within_its_budget_of_instructions(
    policy: str, script: str, length: int, budget: int, tmp_path: Path
) -> None:
    count = asyncio.run(instructions_per_request(policy, script, length, tmp_path))
    print(f"{count:.0f} instructions per request")
    assert count <= budget


@pytest.mark.parametrize(
    ("script", "length", "budget"),
    [
        pytest.param("whole", 600, 13_500, id="short-request"),
        pytest.param("whole", 4_000, 18_000, id="prompt-of-a-thousand-tokens"),
        pytest.param("burst", 600, 13_500, id="stream"),
    ],
)
def test_recording_costs_a_request_few_instructions(script: str, length: int, budget: int, tmp_path: Path) -> None:
    """Those of the thread that writes included, 8 800 for a short request; the lane has 3 600 more."""
    rooms = [tmp_path / name for name in ("without", "with")]
    counts = []
    for room, recording in zip(rooms, (None, tmp_path / "trace.jsonl"), strict=True):
        room.mkdir()
        count = instructions_per_request("cache_aware", script, length, room, recording=recording)
        counts.append(asyncio.run(count))
    print(f"{counts[0]:.0f} without, {counts[1]:.0f} with")
    assert counts[1] - counts[0] <= budget
