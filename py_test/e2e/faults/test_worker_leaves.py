"""`DELETE /workers/{id}`: what runs there ends well, nothing new comes, then the worker is gone."""

from __future__ import annotations

import asyncio
import time

from support.client import Client, Reply, ask_all, call, generate
from support.waiting import until

STREAMS = 12


def start_streams(client: Client, slot: int, tokens: int) -> list[asyncio.Task[Reply]]:
    headers = {"x-smg-target-worker": str(slot)}
    return [asyncio.create_task(client.ask(generate(tokens, stream=True), headers=headers)) for _ in range(STREAMS)]


def status_of(door, worker: str) -> int:
    return call(door.url, "GET", f"/workers/{worker}")[0]


def test_a_worker_that_leaves_finishes_its_streams_and_gets_no_new_request(workers, gateway):
    fleet = workers(3, decode_step_base_ms=20)
    door = gateway([w.url for w in fleet], "--policy", "round_robin")
    leaving = door.worker(fleet[0].url)["id"]

    async def run() -> None:
        async with Client(door.url) as client:
            streams = start_streams(client, 0, tokens=100)
            await until(lambda: door.worker(fleet[0].url)["load"] == STREAMS, "all streams there")
            status, said = await asyncio.to_thread(call, door.url, "DELETE", f"/workers/{leaving}")
            assert (status, said["in_flight"]) == (202, STREAMS)
            shown = door.worker(fleet[0].url)
            assert (shown["status"], shown["load"], shown["is_healthy"]) == ("draining", STREAMS, False)
            others = await ask_all(client, [generate(1)] * 60, 10)
            assert all(reply.ok and reply.worker != leaving for reply in others)
            assert not any(stream.done() for stream in streams), "the streams were too short to show anything"
            ended = await asyncio.gather(*streams)
            assert all(reply.finished_stream() and reply.worker == leaving for reply in ended), ended
            await until(lambda: status_of(door, leaving) == 404, "the worker is gone")
            aimed = await client.ask(generate(1), headers={"x-smg-target-worker": fleet[0].url})
            assert aimed.status == 503

    asyncio.run(run())
    assert fleet[0].stats()["requests"] == STREAMS
    assert len(door.workers()) == 2
    door.assert_nothing_left()


def test_a_worker_without_requests_is_gone_at_once_and_asking_twice_changes_nothing(workers, gateway):
    fleet = workers(2)
    door = gateway([w.url for w in fleet])
    leaving = door.worker(fleet[1].url)["id"]
    assert call(door.url, "DELETE", f"/workers/{leaving}")[0] == 202
    asyncio.run(until(lambda: status_of(door, leaving) == 404, "the worker is gone", 5))
    assert call(door.url, "DELETE", f"/workers/{leaving}")[0] == 404
    assert call(door.url, "DELETE", "/workers/1")[0] == 400


def test_a_drain_that_takes_too_long_ends_but_its_streams_go_on(workers, gateway):
    fleet = workers(2, decode_step_base_ms=20)
    door = gateway([w.url for w in fleet], "--worker-drain-timeout-secs", "1")
    leaving = door.worker(fleet[0].url)["id"]

    async def run() -> None:
        async with Client(door.url) as client:
            streams = start_streams(client, 0, tokens=200)
            await until(lambda: door.worker(fleet[0].url)["load"] == STREAMS, "all streams there")
            assert (await asyncio.to_thread(call, door.url, "DELETE", f"/workers/{leaving}"))[0] == 202
            asked = time.monotonic()
            await until(lambda: status_of(door, leaving) == 404, "the worker is gone")
            assert 0.9 < time.monotonic() - asked < 3
            assert not any(stream.done() for stream in streams), "the streams were too short to show anything"
            assert all(reply.finished_stream() for reply in await asyncio.gather(*streams))

    asyncio.run(run())
    door.assert_nothing_left()
