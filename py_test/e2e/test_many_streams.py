"""A thousand streams at once through one gateway, and what is left when half of their clients vanish."""

from __future__ import annotations

import asyncio
import json
import resource
import time
from urllib.parse import urlsplit

import pytest
from support.client import get_json
from support.waiting import wait_for

STREAMS = 1000
BODY = json.dumps(
    {"model": "m", "stream": True, "max_tokens": 40, "messages": [{"role": "user", "content": "count"}]}
).encode()
REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n" % len(BODY)
) + BODY


@pytest.fixture(autouse=True)
def enough_files():
    """Three sockets a stream: client, gateway, worker, all in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(16_384, hard), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def open_stream(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    writer.write(REQUEST)
    return reader, writer


def in_flight(door) -> int:
    return sum(worker["load"] for worker in get_json(f"{door.url}/workers")["workers"])


def stats(workers, field: str) -> int:
    return sum(get_json(f"{worker.url}/sim/stats")[field] for worker in workers)


def test_a_thousand_streams_finish(sim_workers, gateway):
    workers = sim_workers(4, decode_step_base_ms=20.0, max_running_requests=1000)
    door = gateway([worker.url for worker in workers], policy="round_robin")

    async def one() -> bool:
        reader, writer = await open_stream(door.url)
        reply = await reader.read()
        writer.close()
        return reply.startswith(b"HTTP/1.1 200") and b"data: [DONE]\n\n" in reply and reply.endswith(b"0\r\n\r\n")

    async def all_of_them() -> list[bool]:
        return await asyncio.gather(*(one() for _ in range(STREAMS)))

    assert asyncio.run(all_of_them()) == [True] * STREAMS
    wait_for(lambda: in_flight(door) == 0, "all leases released")
    assert stats(workers, "disconnects") == 0


def test_five_hundred_vanishing_clients_leave_nothing_behind(sim_workers, gateway):
    # So slow that every stream would go on for a minute.
    workers = sim_workers(4, decode_step_base_ms=1500.0, max_running_requests=1000)
    door = gateway([worker.url for worker in workers], policy="round_robin")
    killed = STREAMS // 2

    async def run() -> float:
        streams = await asyncio.gather(*(open_stream(door.url) for _ in range(STREAMS)))
        await asyncio.gather(*(reader.readuntil(b"\r\n\r\n") for reader, _ in streams))
        assert in_flight(door) == STREAMS
        for _, writer in streams[:killed]:
            writer.transport.abort()
        start = time.monotonic()
        await asyncio.to_thread(
            wait_for, lambda: stats(workers, "disconnects") == killed, "workers saw every disconnect"
        )
        seen = time.monotonic() - start
        await asyncio.to_thread(wait_for, lambda: in_flight(door) == STREAMS - killed, "their leases released")
        for _, writer in streams[killed:]:
            writer.transport.abort()
        return seen

    assert asyncio.run(run()) < 1.0
    wait_for(lambda: in_flight(door) == 0, "all leases released")
    wait_for(lambda: stats(workers, "in_flight") == 0, "nothing left at the workers")
