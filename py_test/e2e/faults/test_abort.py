"""`/abort_request` finds the worker that runs a request."""

from __future__ import annotations

import asyncio
import json

from support.client import Client, call, generate
from support.waiting import until

TOKENS = 200


def test_an_abort_reaches_the_worker_that_has_the_request(workers, gateway):
    fleet = workers(4, decode_step_base_ms=30)
    door = gateway([w.url for w in fleet], "--policy", "round_robin")

    async def run() -> list:
        async with Client(door.url) as client:
            bodies = [generate(TOKENS if name == "victim" else 40, stream=True, rid=name) for name in "abcdefg"]
            bodies.insert(3, generate(TOKENS, stream=True, rid="victim"))
            streams = [asyncio.create_task(client.ask(body)) for body in bodies]
            await until(lambda: sum(w.stats()["in_flight"] for w in fleet) == len(bodies), "all under way")
            status, _ = await asyncio.to_thread(call, door.url, "POST", "/abort_request", {"rid": "victim"})
            assert status == 200
            return await asyncio.gather(*streams)

    replies = asyncio.run(run())
    ends = [json.loads(reply.events()[-2])["meta_info"] for reply in replies]
    assert all(reply.finished_stream() for reply in replies)
    assert ends[3]["finish_reason"]["type"] == "abort" and ends[3]["completion_tokens"] < TOKENS
    assert {end["finish_reason"]["type"] for end in ends[:3] + ends[4:]} == {"length"}
    assert sorted(w.stats()["aborted"] for w in fleet) == [0, 0, 0, 1]
    door.assert_nothing_left()
