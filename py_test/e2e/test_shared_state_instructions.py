"""What a shared state costs a request on its lane, in instructions as valgrind counts them for that thread.

The control thread, which speaks with the server, works by the clock and is left out.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from support.ports import free_port
from support.waiting import wait_for
from test_instructions import COUNTED, WARM, Client, Counted, Worker, prompt

SERVER = shutil.which("redis-server") or shutil.which("valkey-server")
pytestmark = [
    pytest.mark.skipif(not shutil.which("valgrind"), reason="needs valgrind"),
    pytest.mark.skipif(not SERVER, reason="needs redis-server or valkey-server"),
]
KEYS = [{"name": "k", "key": "k-1", "rpm_limit": 1_000_000, "max_parallel_requests": 100_000}]


class CountedByThread(Counted):
    """The same, thread by thread."""

    options = f"{Counted.options} --separate-threads=yes"

    def busiest(self) -> int:
        """Instructions of the thread that had most to do since the beginning: the lane of the only connection."""
        before = set(self.room.glob("counts.*"))
        self._order("dump")
        self._order("instrumentation", "off")
        dumps = set(self.room.glob("counts.*")) - before
        found = [re.search(r"^(?:summary|totals): (\d+)", dump.read_text(), re.M) for dump in dumps]
        return max(int(one[1]) for one in found if one)


class KeyedClient(Client):
    """Its requests have a key, and a routing key of some."""

    number = 0

    async def ask(self, body: bytes) -> None:
        self.number += 1
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\n"
        head += b"authorization: Bearer k-1\r\nx-smg-routing-key: session-%d\r\n" % (self.number % 50)
        self.writer.write(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        head = await self.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        length = re.search(rb"content-length: (\d+)", head, re.I)
        assert length
        await self.reader.readexactly(int(length[1]))


@contextmanager
def redis(room: Path):
    """The URL of a server without files."""
    port = free_port()
    flags = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(room)]
    server = subprocess.Popen([str(SERVER), *flags], stdout=subprocess.DEVNULL)
    try:
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.kill()
        server.wait()


async def instructions_on_the_lane(policy: str, room: Path, flags: Sequence[str]) -> float:
    room.mkdir()
    keys = room / "keys.json"
    keys.write_text(json.dumps(KEYS))
    limits = ["--api-keys-file", str(keys), "--max-concurrent-requests", "99999", "--max-requests-per-worker", "99999"]
    worker = Worker()
    async with worker.serving():
        started = ["--policy", policy, *limits, *flags]
        gateway = await asyncio.to_thread(CountedByThread, worker.url, room, *started)
        try:
            await asyncio.to_thread(gateway.wait_ready, 1)
            if flags:
                await asyncio.to_thread(wait_for, lambda: shares(gateway), "limits are shared")
            host, port = gateway.url.removeprefix("http://").split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            with closing(writer):
                client = KeyedClient(worker, reader, writer)
                for number in range(WARM):
                    await client.ask(prompt(number, 600))
                await asyncio.to_thread(gateway.begin)
                for number in range(COUNTED):
                    await client.ask(prompt(WARM + number, 600))
                return await asyncio.to_thread(gateway.busiest) / COUNTED
        finally:
            gateway.destroy()


def shares(gateway: Counted) -> bool:
    slots = gateway.metrics("smg_shared_slots")
    return slots.get('{limit="max_concurrent_requests",state="allowed"}', 0) > 1000


@pytest.mark.parametrize("policy", ["manual", "cache_aware"])
def test_sharing_costs_a_request_few_instructions_on_its_lane(policy: str, tmp_path: Path) -> None:
    with redis(tmp_path) as url:
        alone = asyncio.run(instructions_on_the_lane(policy, tmp_path / "alone", []))
        shared = asyncio.run(instructions_on_the_lane(policy, tmp_path / "shared", ["--shared-state", url]))
    print(f"{alone:.0f} alone, {shared:.0f} shared")
    # Two microseconds are about as many at 2 per ns.
    assert shared - alone <= 4000
