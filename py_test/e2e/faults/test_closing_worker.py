"""A worker that says keep-alive and closes after every stream, as llama-server does."""

from __future__ import annotations

import asyncio

import pytest
from support.client import Client, ask_all, generate

STREAMS = 1000


@pytest.mark.parametrize("at_once", [1, 32])
def test_a_worker_that_closes_after_every_stream_fails_no_request(scripted, gateway, at_once):
    worker = scripted(1, hang_up=True)
    door = gateway(worker.urls, "--disable-retries")

    async def run() -> list:
        async with Client(door.url) as client:
            return await ask_all(client, [generate(3, stream=True)] * STREAMS, at_once)

    replies = asyncio.run(run())
    assert [reply for reply in replies if not reply.finished_stream()] == []
    stats = worker.stats()
    # It did close each time, and nothing was run twice.
    assert stats["connections"] >= stats["requests"] == stats["finished"] == STREAMS
    assert len(door.workers()) == 1 and door.workers()[0]["is_healthy"]
    assert sum(door.metrics("smg_worker_cb_outcomes_total").values()) == STREAMS
    door.assert_nothing_left()


def test_the_simulated_worker_that_closes_likewise_fails_no_request(workers, gateway):
    (worker,) = workers(1)
    worker.set_faults(close_after_stream=True)
    door = gateway([worker.url], "--disable-retries")

    async def run() -> list:
        async with Client(door.url) as client:
            return await ask_all(client, [generate(3, stream=True)] * 500, 8)

    replies = asyncio.run(run())
    assert [reply for reply in replies if not reply.finished_stream()] == []
    assert worker.stats()["connections"] >= 500
